"""What the benchmarks train: the networks, sizes and batches of published settings, with made-up content.

Pixels, tokens and labels are drawn uniformly: they have the shapes, the dtypes and the number of
examples per client of the real data sets, which a speed depends on, and nothing that could be
learned. No accuracy comes from here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fedjx.data import FederatedData
from fedjx.models import Model, Ratio, from_flax, linear, mlp

NUM_WORDS = 10_004  # of Stack Overflow: 10,000, and padding, beginning, end and unknown
SENTENCE = 20


class Workload(NamedTuple):
    """A model, and clients of a certain size to train it.

    Attributes:
      name: As on the command line.
      model: The model.
      client_optimizer: Of the clients.
      batch_size: Examples in a local batch.
      sizes: ``(rng, clients) -> int64 [clients]``, how many examples each client has.
      examples: ``(rng, N) -> features [N, ...]``.
      num_clients: The population.
      cohort_size: Clients in a round.
    """

    name: str
    model: Model
    client_optimizer: optax.GradientTransformation
    batch_size: int
    sizes: Callable[[np.random.Generator, int], np.ndarray]
    examples: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    num_clients: int
    cohort_size: int

    def data(self, num_clients: int, seed: int) -> FederatedData:
        """Makes up the data of a population."""
        rng = np.random.default_rng(seed)
        offsets = np.concatenate([[0], np.cumsum(self.sizes(rng, num_clients))])
        return FederatedData(self.examples(rng, int(offsets[-1])), offsets)


# --- clients ------------------------------------------------------------------------------------


def emnist_sizes(rng: np.random.Generator, num_clients: int) -> np.ndarray:
    """Draws sizes like those of the writers of EMNIST: 180 images in the middle, 20 to 418."""
    return np.clip(np.round(rng.lognormal(np.log(180), 0.4, num_clients)), 20, 418).astype(np.int64)


def constant_sizes(size: int, rng: np.random.Generator, num_clients: int) -> np.ndarray:
    """Gives every client the same number of examples."""
    del rng
    return np.full(num_clients, size, np.int64)


def heavy_tailed_sizes(
    smallest: int, shape: float, largest: int, rng: np.random.Generator, num_clients: int
) -> np.ndarray:
    """Draws sizes from a Pareto distribution, cut off at the largest."""
    return np.minimum(smallest * (1 + rng.pareto(shape, num_clients)), largest).astype(np.int64)


def images(shape: tuple[int, ...], num_classes: int, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Draws bytes as pixels, and labels."""
    return {
        "x": rng.integers(0, 256, (size, *shape), dtype=np.uint8),
        "y": rng.integers(0, num_classes, size, dtype=np.int32),
    }


def sentences(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Draws sentences of 4 to 20 words, ``tokens`` uint16 ``[N, 21]``: one word more, to be predicted; 0 is padding."""
    tokens = rng.integers(4, NUM_WORDS, (size, SENTENCE + 1), dtype=np.uint16)
    lengths = rng.integers(4, SENTENCE + 1, size)
    return {"tokens": np.where(np.arange(SENTENCE + 1) <= lengths[:, None], tokens, np.uint16(0))}


# --- models -------------------------------------------------------------------------------------


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


def image_model(network: Any) -> Model:
    """Adapts a network to bytes, which become numbers from 0 to 1 inside the step."""
    return from_flax(network, inputs=lambda batch: jnp.asarray(batch["x"], jnp.float32) / 255)


class Lstm(nnx.Module):
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


class Block(nnx.Module):
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


class Transformer(nnx.Module):
    """A next-word Transformer of pfl-research's size: width 96, three blocks, tied embedding, 1,962,912 parameters."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(NUM_WORDS, 96, rngs=rngs)
        self.blocks = nnx.List([Block(96, rngs=rngs) for _ in range(3)])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        mask = nnx.combine_masks(nnx.make_causal_mask(tokens), nnx.make_attention_mask(tokens > 0, tokens > 0))
        angle = jnp.arange(tokens.shape[1])[:, None] / 10_000 ** (jnp.arange(48)[None] / 48)
        x = self.embed(tokens) + jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[None]
        for block in self.blocks:
            x = block(x, mask)
        return self.embed.attend(x)


def next_word_model(network: Any) -> Model:
    """Adapts a network from words to logits: the loss and the accuracy are means over the words, not the sentences."""

    def per_word(values: jax.Array, batch: Any) -> Ratio:
        real = batch["tokens"][:, 1:] > 0
        return Ratio(jnp.where(real, values, 0).sum(axis=1), real.sum(axis=1, dtype=jnp.int32))

    def loss(logits: jax.Array, batch: Any) -> Ratio:
        words = batch["tokens"][:, 1:].astype(jnp.int32)
        return per_word(optax.softmax_cross_entropy_with_integer_labels(logits, words), batch)

    def accuracy(logits: jax.Array, batch: Any) -> Ratio:
        return per_word(logits.argmax(axis=-1) == batch["tokens"][:, 1:], batch)

    return from_flax(
        network,
        inputs=lambda batch: batch["tokens"][:, :-1].astype(jnp.int32),
        loss=loss,
        metrics={"accuracy": accuracy},
    )


# --- workloads ----------------------------------------------------------------------------------


def _emnist(name: str, model: Model) -> Workload:
    """Combines a model with writers like those of EMNIST with 62 classes."""
    pixels = functools.partial(images, (28, 28, 1), 62)
    return Workload(name, model, optax.sgd(0.05), 20, emnist_sizes, pixels, num_clients=100, cohort_size=10)


def emnist_cnn() -> Workload:
    """Trains the EMNIST network with dropout, 1,206,590 parameters."""
    return _emnist("emnist_cnn", image_model(functools.partial(Cnn, 62, 28, 1)))


def emnist_cnn_flax() -> Workload:
    """Trains the same network as a user's own Flax module."""
    return _emnist("emnist_cnn_flax", image_model(functools.partial(PlainCnn, 62, 28, 1)))


def emnist_dense() -> Workload:
    """Trains two dense layers of 200, 209,662 parameters."""
    return _emnist("emnist_dense", mlp(62, input_shape=(28, 28, 1), hidden=(200, 200), scale=1 / 255))


def logistic() -> Workload:
    """Trains a logistic regression, 48,670 parameters."""
    return _emnist("logistic", linear(62, input_shape=(28, 28, 1), scale=1 / 255))


def cifar10_cnn() -> Workload:
    """Trains pfl-research's CIFAR-10 setting: 50 of 1,000 users with 50 images each, 1,626,442 parameters."""
    model = image_model(functools.partial(Cnn, 10, 32, 3))
    pixels, sizes = functools.partial(images, (32, 32, 3), 10), functools.partial(constant_sizes, 50)
    return Workload("cifar10_cnn", model, optax.sgd(0.1), 10, sizes, pixels, num_clients=1000, cohort_size=50)


def femnist_flute() -> Workload:
    """Trains FLUTE's FEMNIST setting: 10 of 3,400 clients. Its authors' GPU took 0.33 s a round, tests included."""
    return emnist_cnn()._replace(name="femnist_flute", client_optimizer=optax.sgd(0.1), num_clients=3400)


def stackoverflow_lstm() -> Workload:
    """Trains the next-word LSTM on users of 8 to 128 sentences, few of them with many."""
    return _stack_overflow("stackoverflow_lstm", Lstm)


def transformer() -> Workload:
    """Trains the next-word Transformer on the same users."""
    return _stack_overflow("transformer", Transformer)


def _stack_overflow(name: str, network: Any) -> Workload:
    model, sizes = next_word_model(network), functools.partial(heavy_tailed_sizes, 8, 1.2, 128)
    return Workload(name, model, optax.sgd(0.3), 16, sizes, sentences, num_clients=100, cohort_size=4)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    workload.__name__: workload
    for workload in (
        emnist_cnn,
        emnist_cnn_flax,
        emnist_dense,
        logistic,
        cifar10_cnn,
        femnist_flute,
        stackoverflow_lstm,
        transformer,
    )
}
