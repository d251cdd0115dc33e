"""The networks of `benchmarks.networks` as a user of PyTorch writes them, with the same names for the same layers.

Normalisations take Flax's epsilon and GELU its approximation, so that the two compute the same.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

NUM_WORDS, NUM_CHARACTERS = 10_004, 90
GroupNorm = functools.partial(nn.GroupNorm, eps=1e-6)
LayerNorm = functools.partial(nn.LayerNorm, eps=1e-6)
Attention = functools.partial(nn.MultiheadAttention, batch_first=True)


class McMahanCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.hidden, self.head = nn.Linear(64 * 7 * 7, 512), nn.Linear(512, 10)
        self.hidden.image = (64, 7, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = GroupNorm(32, outputs), GroupNorm(32, outputs)
        self.around = self.norm3 = None
        if stride != 1 or inputs != outputs:
            self.around, self.norm3 = nn.Conv2d(inputs, outputs, 1, stride, bias=False), GroupNorm(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.around is not None and self.norm3 is not None:
            x = self.norm3(self.around(x))
        return F.relu(x + y)


class ResNet18(nn.Module):
    def __init__(self, num_classes: int = 10, stem: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, stem, 1 if stem == 3 else 2, padding=stem // 2, bias=False)
        self.norm = GroupNorm(32, 64)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if stem == 7 else nn.Identity()
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        pairs = [[(inputs, width, stride), (width, width, 1)] for inputs, width, stride in widths]
        self.blocks = nn.Sequential(*(ResidualBlock(*sizes) for pair in pairs for sizes in pair))
        self.head = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.conv(x))))
        return self.head(self.blocks(x).mean(dim=(2, 3)))


class Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm1, self.norm2 = GroupNorm(8, inputs), GroupNorm(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.depthwise(x)))
        return F.relu(self.norm2(self.pointwise(x)))


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 32, 3, 2, padding=1, bias=False), GroupNorm(8, 32)
        sizes = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
        self.blocks = nn.Sequential(*(Separable(*size) for size in sizes))
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(self.blocks(x).mean(dim=(2, 3)))


class CharacterLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(NUM_CHARACTERS, 8), lstm(8, 256, num_layers=2)
        self.head = nn.Linear(256, NUM_CHARACTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0])


class WordLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(NUM_WORDS, 96), lstm(96, 670)
        self.dense, self.head = nn.Linear(670, 96), nn.Linear(96, NUM_WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.dense(self.lstm(self.embed(tokens))[0]))


def lstm(inputs: int, width: int, num_layers: int = 1) -> nn.LSTM:
    """Returns an LSTM with one bias for each gate that trains, as those of Keras and Flax; PyTorch's has two."""
    made = nn.LSTM(inputs, width, num_layers, batch_first=True)
    for layer in range(num_layers):
        nn.init.zeros_(getattr(made, f"bias_ih_l{layer}")).requires_grad_(False)
    return made


class EncoderBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.attention = Attention(width, 4)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, attn_mask=mask, is_causal=True, need_weights=False)[0]
        return x + self.narrow(F.gelu(self.wide(self.norm2(x)), approximate="tanh"))


class CharacterTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(NUM_CHARACTERS, 128), nn.Embedding(64, 128)
        self.blocks = nn.ModuleList([EncoderBlock(128) for _ in range(2)])
        self.norm, self.head = LayerNorm(128), nn.Linear(128, NUM_CHARACTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places.weight[: tokens.shape[1]]
        mask = later(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class WordBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attention = Attention(width, 8)
        self.wide, self.narrow = nn.Linear(width, 16 * width), nn.Linear(16 * width, width)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor, padding: Tensor) -> Tensor:
        y = self.attention(x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False)[0]
        x = self.norm1(x + self.dropout(y))
        return self.norm2(x + self.dropout(self.narrow(F.relu(self.wide(x)))))


class WordTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(NUM_WORDS, 96)
        self.blocks = nn.ModuleList([WordBlock(96) for _ in range(3)])

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)[:, None]
        angle = places / 10_000 ** (torch.arange(48, device=tokens.device) / 48)
        x = self.embed(tokens) + torch.cat([angle.sin(), angle.cos()], dim=-1)
        mask, padding = later(tokens), tokens == 0
        for block in self.blocks:
            x = block(x, mask, padding)
        return F.linear(x, self.embed.weight)


def later(tokens: Tensor) -> Tensor:
    """Returns which positions each position must not see, bool ``[T, T]``."""
    ones = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device)
    return ones.triu(1)


class Dense(nn.Module):
    def __init__(self, widths: tuple[int, ...], activation: Callable[[Tensor], Tensor] = F.relu):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(*pair) for pair in itertools.pairwise(widths)])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mcmahan_cnn": McMahanCnn,
    "resnet18": ResNet18,
    "resnet18_cifar100": functools.partial(ResNet18, 100, stem=7),
    "mobilenet": MobileNet,
    "char_lstm": CharacterLstm,
    "char_transformer": CharacterTransformer,
    "autoencoder": functools.partial(Dense, (784, 1000, 500, 250, 30, 250, 500, 1000, 784), torch.sigmoid),
    "wide_mlp": functools.partial(Dense, (1000, 2400, 2400, 640, 10)),
    "stackoverflow_lstm": WordLstm,
    "transformer": WordTransformer,
}
