"""Splits of one client's data in two: support and query, training and test.

A split is a pure function of one client, ``(data, key) -> (first, second)``; write your own with `split_where`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjx.core.language.checks import check_number
from fedjx.core.language.padding import own_padding
from fedjx.core.language.values import Batches, Sequence
from fedjx.training.client import as_batches

Split = Callable[[Sequence, jax.Array], tuple[Sequence, Sequence]]


def split_where(data: Sequence, is_first: jax.Array) -> tuple[Sequence, Sequence]:
    """Splits a client's examples by a mask, bool ``[S, B]``; each is in exactly one part.

    The parts have the batches of the whole, with padding in the other part's places: evaluation ignores it, and
    training packs its batches anew.
    """
    batches = as_batches(data)

    def part(mask: jax.Array) -> Sequence:
        index = jnp.where(mask, batches.index, -1)
        return Sequence(own_padding(Batches(batches.pool, index, batches.shared)), data.length)

    return part(is_first), part(~is_first)


def alternate_split(data: Sequence, key: jax.Array) -> tuple[Sequence, Sequence]:
    """Puts the first, third, ... example in the first part, the others in the second.

    >>> data = fedjx.data.central({"x": np.arange(5)}, batch_size=2)
    >>> [part.elements.index.tolist() for part in alternate_split(data, jax.random.key(0))]
    [[[0, -1], [2, -1], [4, -1]], [[-2, 1], [-2, 3], [-2, -2]]]
    """
    del key
    return split_where(data, _rank(data) % 2 == 0)


def random_split(fraction: float) -> Split:
    """Returns a split that draws a fraction of each client's examples, rounded up, for the first part.

    Raises:
      ValueError: If the fraction is not between 0 and 1.
    """
    check_number("[0, 1]", "Pass the first part's.", fraction=fraction)

    def split(data: Sequence, key: jax.Array) -> tuple[Sequence, Sequence]:
        real = (as_batches(data).index >= 0).reshape(-1)
        # Drawn by rank, so that padding between the examples changes nothing.
        draws = jax.vmap(lambda rank: jax.random.uniform(jax.random.fold_in(key, rank), dtype=jnp.float32))(
            _rank(data).reshape(-1)
        )
        order = jnp.argsort(jnp.argsort(jnp.where(real, draws, 2.0)))
        return split_where(data, (order < jnp.ceil(fraction * jnp.sum(real))).reshape(as_batches(data).index.shape))

    return split


def feature_split(name: str) -> Split:
    """Returns a split by a boolean feature of the examples: where it is True, they are in the first part."""

    def split(data: Sequence, key: jax.Array) -> tuple[Sequence, Sequence]:
        del key
        return split_where(data, as_batches(data).gather()[name].astype(bool))

    return split


def no_split(data: Sequence, key: jax.Array) -> tuple[Sequence, Sequence]:
    """Uses all examples twice."""
    del key
    return data, data


def _rank(data: Sequence) -> jax.Array:
    """Numbers a client's examples in their order, int32 ``[S, B]``."""
    index = as_batches(data).index
    return (jnp.cumsum(index.reshape(-1) >= 0, dtype=jnp.int32) - 1).reshape(index.shape)
