"""Small problems that the tests of algorithms share."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjx.core.language.values import Clients, Sequence
from fedjx.data import FederatedData
from fedjx.models import Model, from_flax

SIZES = (1, 3, 5, 7, 8, 12, 2, 6, 4, 9)
BATCH_SIZE = 4
NUM_FEATURES = 5
NUM_CLASSES = 3


def federated_data(sizes: tuple[int, ...] = SIZES, seed: int = 0) -> FederatedData:
    """Clients of different sizes, each with its own shift of the features."""
    random = np.random.default_rng(seed)
    clients = []
    for size in sizes:
        x = random.normal(size=(size, NUM_FEATURES)) + random.normal(size=NUM_FEATURES)
        clients.append({"x": x.astype(np.float32), "y": random.integers(NUM_CLASSES, size=size).astype(np.int32)})
    return FederatedData.from_clients(clients)


def with_domains(data: FederatedData) -> FederatedData:
    """Every example has one of three domains, in turn; clients have several."""
    domain = (np.arange(data.num_examples) % 7 % 3).astype(np.int32)
    return FederatedData({**data.examples, "domain": domain}, data.offsets)


class Network(nnx.Module):
    """One hidden layer with dropout."""

    def __init__(self, rngs: nnx.Rngs, rate: float = 0.3):
        self.hidden = nnx.Linear(NUM_FEATURES, 6, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.out = nnx.Linear(6, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(self.dropout(nnx.tanh(self.hidden(x))))


def dropout_model() -> Model:
    """A network whose loss is random: the key of every client and step matters."""
    return from_flax(Network)


def plain_model() -> Model:
    """The same network without dropout."""
    return from_flax(functools.partial(Network, rate=0.0))


class Normed(nnx.Module):
    """Batch normalisation of the features, a linear layer and dropout."""

    def __init__(self, rngs: nnx.Rngs, rate: float = 0.0):
        self.norm = nnx.BatchNorm(NUM_FEATURES, momentum=0.8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.out = nnx.Linear(NUM_FEATURES, NUM_CLASSES, rngs=rngs)

    def __call__(self, x: Any, mask: Any) -> Any:
        return self.out(self.dropout(self.norm(x, mask=mask[:, None])))


def normed_model(rate: float = 0.0) -> Model:
    """A model with batch statistics."""
    return from_flax(functools.partial(Normed, rate=rate))


def materialised(data: FederatedData, ids: Any, *, num_steps: int, num_clients: int, garbage: float) -> Clients:
    """A cohort as padded rectangles instead of a pool, with garbage wherever nothing is meant to be.

    An id that the data does not have is a client without examples.
    """
    clients = [data.client(int(k)) if k < data.num_clients else {} for k in ids]
    sizes = [len(next(iter(client.values()))) if client else 0 for client in clients]
    mask = np.zeros((num_clients, num_steps, BATCH_SIZE), bool)
    lengths = np.full(num_clients, num_steps, np.int32)
    elements = {}
    for name, column in data.examples.items():
        fill = garbage if np.issubdtype(column.dtype, np.floating) else -7
        elements[name] = np.full((*mask.shape, *column.shape[1:]), fill, column.dtype)
    for c, (client, size) in enumerate(zip(clients, sizes, strict=True)):
        lengths[c] = -(-size // BATCH_SIZE)
        for name, x in client.items():
            elements[name][c].reshape(-1, *x.shape[1:])[:size] = x
        mask[c].reshape(-1)[:size] = True
        mask[c, lengths[c] :] = True  # steps past the length do not exist, whatever they hold
    real = np.arange(num_clients) < len(ids)
    padded_ids = np.where(real, np.resize(np.asarray(ids), num_clients), -1)
    return Clients.of(Sequence({**elements, "mask": mask}, jnp.asarray(lengths)), ids=padded_ids, mask=real)


def assert_trees_close(got: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """Compares two pytrees leaf by leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def assert_trees_equal(got: Any, expected: Any) -> None:
    """Compares two pytrees bit by bit."""
    assert_trees_close(got, expected, rtol=0, atol=0)
