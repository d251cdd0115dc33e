"""The networks that the benchmarks train, as a user of Flax writes them, who knows nothing of fedjx."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

NUM_WORDS = 10_004  # of Stack Overflow: 10,000, and padding, beginning, end and unknown
NUM_CHARACTERS = 90  # of Shakespeare: 86, and the same four


class PlainCnn(nnx.Module):
    """The EMNIST network as a user of Flax writes it, who knows nothing of fedjx."""

    def __init__(self, num_classes: int, side: int, channels: int, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(channels, 32, (3, 3), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), padding="VALID", rngs=rngs)
        self.dropout1 = nnx.Dropout(0.25, rngs=rngs)
        self.hidden = nnx.Linear(((side - 4) // 2) ** 2 * 64, 128, rngs=rngs)
        self.dropout2 = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(128, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(x))
        x = nnx.relu(self.conv2(x))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = self.dropout1(x).reshape(x.shape[0], -1)
        x = self.dropout2(nnx.relu(self.hidden(x)))
        return self.head(x)


class Cnn(PlainCnn):
    """The same network with max-pooling as the maximum of a reshaped array, as in `fedjx.models.cnn`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        batch, height, width, depth = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, depth).max(axis=(2, 4))
        x = self.dropout1(x).reshape(batch, -1)
        return self.head(self.dropout2(nnx.relu(self.hidden(x))))


class McMahanCnn(nnx.Module):
    """The network of McMahan et al. (arXiv 1602.05629), two 5 x 5 convolutions: 1,663,370 parameters for ten."""

    def __init__(self, num_classes: int = 10, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, (5, 5), padding="SAME", rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (5, 5), padding="SAME", rngs=rngs)
        self.hidden = nnx.Linear(7 * 7 * 64, 512, rngs=rngs)
        self.head = nnx.Linear(512, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), strides=(2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), strides=(2, 2))
        return self.head(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


class ResidualBlock(nnx.Module):
    """Two 3 x 3 convolutions around which the input goes, as it is or through a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = functools.partial(nnx.GroupNorm, outputs, num_groups=32, rngs=rngs)
        self.conv1, self.norm1 = conv(inputs, outputs, (3, 3), strides=(stride, stride)), norm()
        self.conv2, self.norm2 = conv(outputs, outputs, (3, 3)), norm()
        changes = stride != 1 or inputs != outputs
        self.around = conv(inputs, outputs, (1, 1), strides=(stride, stride)) if changes else None
        self.norm3 = norm() if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.around is not None and self.norm3 is not None:
            x = self.norm3(self.around(x))
        return nnx.relu(x + y)


class ResNet18(nnx.Module):
    """ResNet-18 with group normalisation: the 3 x 3 stem of small images, or the 7 x 7 one with pooling."""

    def __init__(self, num_classes: int = 10, *, stem: int = 3, rngs: nnx.Rngs):
        strides = (1, 1) if stem == 3 else (2, 2)
        self.pooled = stem == 7
        self.conv = nnx.Conv(3, 64, (stem, stem), strides=strides, use_bias=False, rngs=rngs)
        self.norm = nnx.GroupNorm(64, num_groups=32, rngs=rngs)
        widths = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]
        blocks = [[(inputs, width, stride), (width, width, 1)] for inputs, width, stride in widths]
        self.blocks = nnx.List([ResidualBlock(*sizes, rngs=rngs) for pair in blocks for sizes in pair])
        self.head = nnx.Linear(512, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        if self.pooled:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


class Separable(nnx.Module):
    """A depthwise 3 x 3 and a pointwise convolution, each normalised."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        strides = (stride, stride)
        self.depthwise = nnx.Conv(
            inputs, inputs, (3, 3), strides=strides, feature_group_count=inputs, use_bias=False, rngs=rngs
        )
        self.norm1 = nnx.GroupNorm(inputs, num_groups=8, rngs=rngs)
        self.pointwise = nnx.Conv(inputs, outputs, (1, 1), use_bias=False, rngs=rngs)
        self.norm2 = nnx.GroupNorm(outputs, num_groups=8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm1(self.depthwise(x)))
        return nnx.relu(self.norm2(self.pointwise(x)))


class MobileNet(nnx.Module):
    """Depthwise separable convolutions on images of 32 x 32 x 3, in the manner of MobileNet (arXiv 1704.04861)."""

    def __init__(self, num_classes: int = 10, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 32, (3, 3), strides=(2, 2), use_bias=False, rngs=rngs)
        self.norm = nnx.GroupNorm(32, num_groups=8, rngs=rngs)
        sizes = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
        self.blocks = nnx.List([Separable(*size, rngs=rngs) for size in sizes])
        self.head = nnx.Linear(256, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


class CharacterLstm(nnx.Module):
    """The next-character model of McMahan et al.: width 8, then two LSTMs of 256."""

    def __init__(self, vocabulary: int = NUM_CHARACTERS, *, rngs: nnx.Rngs):
        quick = nnx.initializers.lecun_normal()  # an orthogonal matrix takes seconds, and speed is all that counts
        cell = functools.partial(nnx.OptimizedLSTMCell, recurrent_kernel_init=quick, rngs=rngs)
        self.embed = nnx.Embed(vocabulary, 8, rngs=rngs)
        self.lstm1, self.lstm2 = (nnx.RNN(cell(width, 256), rngs=False) for width in (8, 256))
        self.head = nnx.Linear(256, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        zeros = jnp.zeros((tokens.shape[0], 256))
        x: Any = self.embed(tokens)
        for lstm in (self.lstm1, self.lstm2):
            x = lstm(x, initial_carry=(zeros, zeros))
        return self.head(x)


class WordLstm(nnx.Module):
    """The next-word model of Reddi et al. (arXiv 2003.00295), 4,050,748 parameters."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(NUM_WORDS, 96, rngs=rngs)
        quick = nnx.initializers.lecun_normal()  # an orthogonal matrix takes seconds, and speed is all that counts
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(96, 670, recurrent_kernel_init=quick, rngs=rngs), rngs=False)
        self.dense = nnx.Linear(670, 96, rngs=rngs)
        self.head = nnx.Linear(96, NUM_WORDS, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        zeros = jnp.zeros((tokens.shape[0], 670))
        features: Any = self.lstm(self.embed(tokens), initial_carry=(zeros, zeros))
        return self.head(self.dense(features))


class EncoderBlock(nnx.Module):
    """Attention to earlier tokens and two dense layers, each of what is normalised before, and added."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.narrow(nnx.gelu(self.wide(self.norm2(x))))


class CharacterTransformer(nnx.Module):
    """Two blocks of width 128 over 64 characters."""

    def __init__(self, vocabulary: int = NUM_CHARACTERS, length: int = 64, *, rngs: nnx.Rngs):
        self.embed, self.places = nnx.Embed(vocabulary, 128, rngs=rngs), nnx.Embed(length, 128, rngs=rngs)
        self.blocks = nnx.List([EncoderBlock(128, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(128, rngs=rngs)
        self.head = nnx.Linear(128, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        mask = nnx.make_causal_mask(tokens)
        x = self.embed(tokens) + self.places(jnp.arange(tokens.shape[1]))[None]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class WordBlock(nnx.Module):
    """Attention to earlier words, then two dense layers, each added and normalised."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(8, width, decode=False, rngs=rngs)
        self.wide = nnx.Linear(width, 16 * width, rngs=rngs)
        self.narrow = nnx.Linear(16 * width, width, rngs=rngs)
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        x = self.norm1(x + self.dropout(self.attention(x, mask=mask)))
        return self.norm2(x + self.dropout(self.narrow(nnx.relu(self.wide(x)))))


class WordTransformer(nnx.Module):
    """A next-word Transformer of pfl-research's size: width 96, three blocks, tied embedding, 1,962,912 parameters."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(NUM_WORDS, 96, rngs=rngs)
        self.blocks = nnx.List([WordBlock(96, rngs=rngs) for _ in range(3)])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        mask = nnx.combine_masks(nnx.make_causal_mask(tokens), nnx.make_attention_mask(tokens > 0, tokens > 0))
        angle = jnp.arange(tokens.shape[1])[:, None] / 10_000 ** (jnp.arange(48)[None] / 48)
        x = self.embed(tokens) + jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[None]
        for block in self.blocks:
            x = block(x, mask)
        return self.embed.attend(x)


class Dense(nnx.Module):
    """Dense layers with an activation between them."""

    def __init__(self, widths: tuple[int, ...], activation: Any = nnx.relu, *, rngs: nnx.Rngs):
        pairs = itertools.pairwise(widths)
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairs])
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


AUTOENCODER = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
MLP = (1000, 2400, 2400, 640, 10)
# The networks that other engines train too, each called with ``rngs``.
NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "mcmahan_cnn": McMahanCnn,
    "resnet18": ResNet18,
    "resnet18_cifar100": functools.partial(ResNet18, 100, stem=7),
    "mobilenet": MobileNet,
    "char_lstm": CharacterLstm,
    "char_transformer": CharacterTransformer,
    "autoencoder": functools.partial(Dense, AUTOENCODER, nnx.sigmoid),
    "wide_mlp": functools.partial(Dense, MLP),
    "stackoverflow_lstm": WordLstm,
    "transformer": WordTransformer,
}
