"""What the benchmarks train: networks with the sizes and batches of published settings, and made-up content.

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

from benchmarks.networks import NETWORKS, NUM_CHARACTERS, NUM_WORDS, Cnn, PlainCnn
from fedjx.data import FederatedData
from fedjx.models import Model, Ratio, from_flax, linear, mlp

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


def characters(length: int, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Draws texts of equal length, ``tokens`` uint8 ``[N, length + 1]``: one character more, to be predicted."""
    return {"tokens": rng.integers(1, NUM_CHARACTERS, (size, length + 1), dtype=np.uint8)}


# --- models -------------------------------------------------------------------------------------


def image_model(network: Any) -> Model:
    """Adapts a network to bytes, which become numbers from 0 to 1 inside the step."""
    return from_flax(network, inputs=pixels)


def pixels(batch: Any) -> jax.Array:
    """Makes numbers from 0 to 1 of bytes."""
    return jnp.asarray(batch["x"], jnp.float32) / 255


def autoencoder_model(network: Any) -> Model:
    """Adapts a network from bytes to bytes: the loss is the mean square of the error."""

    def loss(outputs: jax.Array, batch: Any) -> jax.Array:
        return jnp.square(outputs - pixels(batch).reshape(outputs.shape)).mean(axis=1)

    return from_flax(network, inputs=pixels, loss=loss)


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
    return _stack_overflow("stackoverflow_lstm")


def transformer() -> Workload:
    """Trains the next-word Transformer on the same users."""
    return _stack_overflow("transformer")


def _stack_overflow(name: str) -> Workload:
    model, sizes = next_word_model(NETWORKS[name]), functools.partial(heavy_tailed_sizes, 8, 1.2, 128)
    return Workload(name, model, optax.sgd(0.3), 16, sizes, sentences, num_clients=100, cohort_size=4)


def _equal_clients(
    name: str, model: Callable[[Any], Model], examples: Any, *, batch_size: int, size: int, cohort_size: int
) -> Workload:
    """Combines a network of `NETWORKS` with clients of one size, of whom there are four times as many as in a round."""
    sizes = functools.partial(constant_sizes, size)
    optimizer, num_clients = optax.sgd(0.05), 4 * cohort_size
    return Workload(name, model(NETWORKS[name]), optimizer, batch_size, sizes, examples, num_clients, cohort_size)


def mcmahan_cnn() -> Workload:
    """Trains the network of McMahan et al. on images of ten classes, 1,663,370 parameters."""
    drawn = functools.partial(images, (28, 28, 1), 10)
    return _equal_clients("mcmahan_cnn", image_model, drawn, batch_size=10, size=60, cohort_size=6)


def resnet18() -> Workload:
    """Trains ResNet-18 with the stem of small images, 11,173,962 parameters."""
    drawn = functools.partial(images, (32, 32, 3), 10)
    return _equal_clients("resnet18", image_model, drawn, batch_size=20, size=40, cohort_size=2)


def resnet18_cifar100() -> Workload:
    """Trains ResNet-18 with the stem of large images on users as in CIFAR-100, 11,227,812 parameters."""
    drawn = functools.partial(images, (32, 32, 3), 100)
    return _equal_clients("resnet18_cifar100", image_model, drawn, batch_size=20, size=100, cohort_size=4)


def mobilenet() -> Workload:
    """Trains depthwise separable convolutions."""
    drawn = functools.partial(images, (32, 32, 3), 10)
    return _equal_clients("mobilenet", image_model, drawn, batch_size=20, size=60, cohort_size=6)


def char_lstm() -> Workload:
    """Trains the next-character LSTM of McMahan et al. on sequences of 80, 820,522 parameters."""
    drawn = functools.partial(characters, 80)
    return _equal_clients("char_lstm", next_word_model, drawn, batch_size=10, size=40, cohort_size=4)


def char_transformer() -> Workload:
    """Trains a small next-character Transformer on sequences of 64."""
    drawn = functools.partial(characters, 64)
    return _equal_clients("char_transformer", next_word_model, drawn, batch_size=8, size=32, cohort_size=4)


def autoencoder() -> Workload:
    """Trains the autoencoder of EMNIST's images, 2,837,314 parameters."""
    drawn = functools.partial(images, (28, 28, 1), 10)
    return _equal_clients("autoencoder", autoencoder_model, drawn, batch_size=20, size=100, cohort_size=10)


def wide_mlp() -> Workload:
    """Trains dense layers that are large for five steps of a client: 9,707,850 parameters."""
    drawn = functools.partial(images, (1000,), 10)
    return _equal_clients("wide_mlp", image_model, drawn, batch_size=8, size=40, cohort_size=20)


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
        mcmahan_cnn,
        resnet18,
        resnet18_cifar100,
        mobilenet,
        char_lstm,
        char_transformer,
        autoencoder,
        wide_mlp,
    )
}
