"""The reductions behind the federated operators: sum, mean, min, max and the general aggregate.

Accumulators are never narrower than float32 or int32, so that no result depends on how the
cohort was cut into chunks. Padding may hold anything, NaN included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from fedjx.core.language.names import DType, PyTree
from fedjx.core.language.passes import Merge, Reduction
from fedjx.core.language.trees import number_dtype, wide_dtype

_MANY, _BLOCK = 4096, 512  # of so many clients, floats are summed in blocks of so many
_TABLES, _CELLS = 256, 1 << 16  # of floats that are summed by bins: at most so many tables, of so many numbers together


def _select(mask: jax.Array, members: jax.Array, other: ArrayLike) -> jax.Array:
    return jnp.where(mask.reshape(-1, *[1] * (members.ndim - 1)), members, jnp.asarray(other, members.dtype))


def _masked_sum(members: jax.Array, mask: jax.Array) -> jax.Array:
    """Sums the real members of a chunk ``[C, ...]`` in the wide dtype."""
    members = _select(mask, members.astype(wide_dtype(members.dtype)), 0)
    if not jnp.issubdtype(members.dtype, jnp.inexact):
        return members.sum(axis=0, dtype=members.dtype)
    # As a product with the mask: XLA's sum over the leading axis is tens of times slower on a CPU. A product adds one
    # after the other, and a float that is added to very many loses its last digits: so of very many, in blocks.
    number = mask.shape[0]  # not known where a program is exported for any
    if not isinstance(number, int) or number < _MANY or number % _BLOCK:
        return jnp.tensordot(mask.astype(members.dtype), members, axes=1, precision=lax.Precision.HIGHEST)
    blocks, masks = members.reshape(-1, _BLOCK, *members.shape[1:]), mask.astype(members.dtype).reshape(-1, _BLOCK)
    return jnp.einsum("kb,kb...->k...", masks, blocks, precision=lax.Precision.HIGHEST).sum(axis=0)


def _zero_sum(member: PyTree) -> PyTree:
    return jax.tree.map(lambda m: jnp.zeros(m.shape, wide_dtype(m.dtype)), member)


def _add_chunk(total: PyTree, members: PyTree, mask: jax.Array) -> PyTree:
    return jax.tree.map(lambda t, m: t + _masked_sum(m, mask), total, members)


SUM = Reduction(_zero_sum, _add_chunk, "sum")

SECURE_SUM = SUM._replace(secure=True)


@functools.cache
def bin_sum(num_bins: int, secure: bool) -> Reduction:
    """Returns the reduction of members ``(bins [...], values [..., *V])`` to the sums of the bins, ``[num_bins, *V]``.

    What is in no bin, because its number is less than 0 or too large, is left out.
    """

    def zero(member: PyTree) -> PyTree:
        bins, values = member
        return jnp.zeros((num_bins, *values.shape[bins.ndim :]), wide_dtype(values.dtype))

    def update(total: PyTree, members: PyTree, mask: jax.Array) -> PyTree:
        bins, values = members
        bins = bins.astype(jnp.promote_types(bins.dtype, jnp.int32))  # a narrow one has no number for what is left out
        real = mask.reshape(-1, *[1] * (bins.ndim - 1)) & (bins >= 0) & (bins < num_bins)
        rows = jnp.where(real, bins, num_bins).reshape(-1)
        each = values.astype(total.dtype).reshape(-1, *total.shape[1:])
        if not jnp.issubdtype(total.dtype, jnp.inexact):
            return total.at[rows].add(each, mode="drop")
        # Not to the running total, and to few others, in several tables if they are small: see `_masked_sum`.
        num_tables = min(max(_CELLS // max(total.size, 1), 1), _TABLES)
        table = jnp.arange(rows.shape[0]) % num_tables
        tables = jnp.zeros((num_tables, *total.shape), total.dtype)
        return total + tables.at[table, rows].add(each, mode="drop").sum(axis=0, dtype=total.dtype)

    return Reduction(zero, update, "sum", secure=secure)


@functools.cache
def mean_of(dtypes: tuple[DType, ...]) -> Reduction:
    """Returns the reduction to the plain mean, in the members' own dtypes; 0 over no client."""

    def zero(member: PyTree) -> PyTree:
        return _zero_sum(member), jnp.zeros((), jnp.float32)

    def update(accumulator: PyTree, members: PyTree, mask: jax.Array) -> PyTree:
        total, num_clients = accumulator
        return _add_chunk(total, members, mask), num_clients + mask.sum(dtype=jnp.float32)

    return Reduction(zero, update, "sum", lambda accumulator: divide(accumulator[0], accumulator[1], dtypes))


def divide(total: PyTree, weight: jax.Array, dtypes: tuple[DType, ...]) -> PyTree:
    """Divides a sum by its scalar weight, 0 where the weight is 0, and casts the leaves to the dtypes."""
    # One division for all elements of all leaves, as precise as they are.
    weight = weight.astype(jnp.promote_types(weight.dtype, number_dtype(total)))
    scale = jnp.where(weight == 0, 0.0, 1 / jnp.where(weight == 0, 1.0, weight))
    leaves, treedef = jax.tree.flatten(total)
    return treedef.unflatten([(leaf * scale).astype(d) for leaf, d in zip(leaves, dtypes, strict=True)])


def _extremum(
    across: Literal["min", "max"],
    combine: Callable[[jax.Array, jax.Array], jax.Array],
    reduce: Callable[..., jax.Array],
    identity: Callable[[DType], ArrayLike],
) -> Reduction:
    def zero(member: PyTree) -> PyTree:
        return jax.tree.map(lambda m: jnp.full(m.shape, identity(m.dtype), m.dtype), member)

    def update(accumulator: PyTree, members: PyTree, mask: jax.Array) -> PyTree:
        def one(a: jax.Array, m: jax.Array) -> jax.Array:
            return combine(a, reduce(_select(mask, m, identity(m.dtype)), axis=0))

        return jax.tree.map(one, accumulator, members)

    return Reduction(zero, update, across)


def _largest(dtype: DType) -> ArrayLike:
    if dtype == jnp.bool_:
        return True
    return jnp.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).max


def _smallest(dtype: DType) -> ArrayLike:
    if dtype == jnp.bool_:
        return False
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).min


MIN = _extremum("min", jnp.minimum, jnp.min, _largest)
MAX = _extremum("max", jnp.maximum, jnp.max, _smallest)


def aggregate_of(
    zero: PyTree,
    accumulate: Merge,
    merge: Merge,
    report: Callable[[PyTree], PyTree],
) -> Reduction:
    """Returns the reduction that folds members one at a time, and devices by ``merge``."""

    def update(accumulator: PyTree, members: PyTree, mask: jax.Array) -> PyTree:
        def one(accumulator: PyTree, member_and_mask: tuple[PyTree, jax.Array]) -> tuple[PyTree, None]:
            member, real = member_and_mask
            updated = accumulate(accumulator, member)
            return jax.tree.map(lambda new, old: jnp.where(real, new, old), updated, accumulator), None

        return lax.scan(one, accumulator, (members, mask))[0]

    return Reduction(lambda _: jax.tree.map(jnp.asarray, zero), update, merge, report)
