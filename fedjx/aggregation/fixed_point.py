"""Fixed point: floats as integers whose sum over a cohort cannot overflow.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017,
§6.2 and §7: values are quantised into a ring with room for the whole sum). Integers are symmetric
about 0, so that 0 is exact and the sum decodes without the number of clients.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import PyTree

_FLOAT32_BITS = 24  # of the significand: finer steps than a float has are none


class FixedPoint(NamedTuple):
    """A grid of ``2 * num_levels + 1`` values in ``[-bound, bound]``.

    Attributes:
      bound: The largest value.
      num_levels: Its integer; exact in float32.
      num_bits: Of the ring in which the integers are summed.
    """

    bound: float
    num_levels: int
    num_bits: int


def fixed_point(*, bound: float, max_clients: int, num_bits: int = 32) -> FixedPoint:
    """Chooses the finest grid whose sum over the clients fits into signed integers of the ring.

    Raises:
      ValueError: If there is none: ``max_clients`` clients with a value of ``bound`` each would overflow.

    >>> fixed_point(bound=1.0, max_clients=100, num_bits=15)
    FixedPoint(bound=1.0, num_levels=163, num_bits=15)
    """
    check_number("(0, inf)", "Pass the largest value to be encoded.", bound=bound)
    check_integer("[1, inf)", "Pass the size of the largest cohort.", max_clients=max_clients)
    check_integer("[1, 32]", "A 32-bit ring is the widest.", num_bits=num_bits)
    num_levels = (2 ** (num_bits - 1) - 1) // max_clients
    if num_levels < 1:
        raise ValueError(
            f"the sum over all clients must fit into the ring; got {max_clients=} and {num_bits=}. "
            f"Use at least {max_clients.bit_length() + 1} bits."
        )
    surplus = max(0, num_levels.bit_length() - _FLOAT32_BITS)
    return FixedPoint(float(bound), num_levels >> surplus << surplus, num_bits)


def encode(grid: FixedPoint, value: PyTree, key: jax.Array | None = None) -> PyTree:
    """Rounds floats to int32, clipped to the bound; what is not a number becomes 0.

    Args:
      grid: The fixed point.
      value: Floats of any shape.
      key: Rounds at random, without bias within the bound; to the nearest if not given.
    """
    leaves, treedef = jax.tree.flatten(value)
    keys = [None] * len(leaves) if key is None else list(jax.random.split(key, max(len(leaves), 1)))
    return treedef.unflatten([_encoded(grid, x, k) for x, k in zip(leaves, keys, strict=False)])


def _encoded(grid: FixedPoint, x: jax.Array, key: jax.Array | None) -> jax.Array:
    x = jnp.nan_to_num(x.astype(jnp.float32), nan=0.0, posinf=grid.bound, neginf=-grid.bound)
    x = jnp.clip(x / grid.bound, -1.0, 1.0) * grid.num_levels
    if key is None:
        return jnp.round(x).astype(jnp.int32)
    # The fraction is exact; a random number added to a large float would be rounded away.
    whole = jnp.floor(x)
    return (whole + (jax.random.uniform(key, x.shape, jnp.float32) < x - whole)).astype(jnp.int32)


def decode(grid: FixedPoint, total: PyTree) -> PyTree:
    """Turns integers, or sums of them, into float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) * (grid.bound / grid.num_levels), total)


def num_clipped(grid: FixedPoint, value: PyTree) -> jax.Array:
    """Counts the elements that `encode` moves to the bound, and those that are not numbers; int32 ``[]``."""
    outside = [jnp.sum(~(jnp.abs(x) <= grid.bound), dtype=jnp.int32) for x in jax.tree.leaves(value)]
    return sum(outside, jnp.int32(0))
