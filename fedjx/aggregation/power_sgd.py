"""PowerSGD: matrices are sent as two thin factors, found by one step of power iteration a round.

Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization"
(arXiv 1905.13727, algorithm 1; the memory is that of algorithm 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.bounding import with_own
from fedjx.aggregation.compress import Leaf, is_large, leaves_where
from fedjx.aggregation.error_feedback import StatefulAggregation, StatefulAggregator, counted, kept_if, sound
from fedjx.aggregation.mean import wrapped
from fedjx.aggregation.norms import unit
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_broadcast, federated_mean
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import all_finite, as_float


class PowerSGDState(NamedTuple):
    """The server's state between rounds.

    Attributes:
      factors: The right factors Q, ``[columns, rank]``, of the last round: where the next one starts.
      inner: The inner aggregator's state.
    """

    factors: list[jax.Array]
    inner: PyTree


_PAST = "the factors of large leaves go past it"


def power_sgd(rank: int, *, inner: Aggregator | None = None, where: Callable[[Leaf], bool] = is_large) -> Aggregator:
    """Averages matrices, and kernels as matrices of ``[everything else, last axis]``, as products of rank r.

    A client sends ``r * (rows + columns)`` numbers for each, but where these are no fewer than the matrix has, the
    matrix itself, as the other leaves. Factors are of use for two passes over the clients, so
    that what streamed clients compute, they compute twice.

    Args:
      rank: Of the product ``P Q^T``. Where the mean's rank is not above it, and the last round's Q sees all of the
        mean, the result is the mean.
      inner: How the other leaves are aggregated, which travel whole; the weighted `mean` if not given.
      where: Which leaves of floats of two or more axes are sent as factors, if that is less.

    Raises:
      ValueError: If the rank is not positive.
    """
    inner, where = wrapped(inner, unguarded=_PAST), _worthwhile(rank, where)

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        return _round(inner, where, key, state, value, weight)[:3]

    return Aggregator(_init(rank, inner, where), next)


def power_sgd_with_memory(
    rank: int, *, inner: Aggregator | None = None, where: Callable[[Leaf], bool] = is_large
) -> StatefulAggregator:
    """Adds to `power_sgd` a memory of what a client's own factors lacked, which it sends in later rounds.

    The mean of the clients' values and old memories is, up to rounding, the result and the mean of their new memories.
    """
    inner, where = wrapped(inner, unguarded=_PAST), _worthwhile(rank, where)

    @federated_computation
    def next(
        key: FederatedValue,
        state: FederatedValue,
        value: FederatedValue,
        weight: FederatedValue,
        memory: FederatedValue,
    ) -> StatefulAggregation:
        def rest(total: PyTree, left: list[jax.Array], weight: jax.Array, memory: PyTree) -> PyTree:
            matrices, others = _split(where, total)
            lost = [m - p @ (p.T @ m) for m, p in zip(matrices, left, strict=True)]
            lost = _join(where, total, lost, [jnp.zeros_like(x) for x in others])
            return kept_if((weight > 0) & all_finite(lost), lost, memory)

        total, weight, non_finite = federated_map(
            lambda value, memory, weight: sound(jax.tree.map(jnp.add, value, memory), weight), value, memory, weight
        )
        state, result, measured, left = _round(inner, where, key, state, total, weight)
        measured = federated_map(with_own, measured, counted(non_finite))
        return state, result, measured, federated_map(rest, total, left, weight, memory)

    def init_client(member: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), member)

    return StatefulAggregator(_init(rank, inner, where), init_client, next)


def _round(
    inner: Aggregator,
    where: Callable[[Leaf], bool],
    key: FederatedValue,
    state: FederatedValue,
    value: FederatedValue,
    weight: FederatedValue,
) -> StatefulAggregation:
    """Runs algorithm 1; returns the new state, the result, the measurements, and the left factors at the clients."""
    member = value.type.member
    matrices, others = federated_map(lambda value: _split(where, value), value)

    products = federated_map(_each(lambda m, q: m @ q), matrices, federated_broadcast(state.factors))
    left = federated_map(_each(_orthonormal), federated_mean(products, weight))
    left_at_clients = federated_broadcast(left)
    right = federated_mean(federated_map(_each(lambda m, p: m.T @ p), matrices, left_at_clients), weight)
    inner_state, others, measured = inner.next(key, state.inner, others, weight)

    factors = federated_map(_each(_next_factor), state.factors, right)
    result = federated_map(
        lambda left, right, others: _join(where, member, _each(lambda p, q: p @ q.T)(left, right), others),
        left,
        right,
        others,
    )
    state = federated_map(PowerSGDState, factors, inner_state)
    return state, result, measured, left_at_clients


def _orthonormal(product: jax.Array) -> jax.Array:
    return jnp.linalg.qr(product / unit(product))[0]


def _next_factor(old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns where the next round starts, of which only the direction counts."""
    # A round of nobody, of zeros, or of what is beyond float32, leaves nothing to start from.
    return jnp.where(jnp.any(new != 0) & all_finite(new), new / unit(new), old)


def _init(rank: int, inner: Aggregator, where: Callable[[Leaf], bool]) -> Callable[[PyTree], PowerSGDState]:
    def init(member: PyTree) -> PowerSGDState:
        matrices, others = jax.eval_shape(lambda tree: _split(where, tree), member)
        keys = jax.random.split(jax.random.key(0), len(matrices))
        factors = [
            jax.random.normal(k, (m.shape[1], rank), jnp.float32).astype(m.dtype)
            for k, m in zip(keys, matrices, strict=True)
        ]
        return PowerSGDState(factors, inner.init(others))

    return init


def _each(fn: Callable[..., jax.Array]) -> Callable[..., list[jax.Array]]:
    return lambda *lists: [fn(*xs) for xs in zip(*lists, strict=True)]


def _split(where: Callable[[Leaf], bool], tree: PyTree) -> tuple[list[jax.Array], list[jax.Array]]:
    """Returns the chosen leaves as matrices, wide, and the others as they are."""
    chosen = leaves_where(where, tree)
    leaves = list(zip(jax.tree.leaves(tree), chosen, strict=True))
    matrices = [as_float(x).reshape(-1, x.shape[-1]) for x, is_matrix in leaves if is_matrix]
    return matrices, [x for x, is_matrix in leaves if not is_matrix]


def _join(where: Callable[[Leaf], bool], tree: PyTree, matrices: list[jax.Array], others: list[jax.Array]) -> PyTree:
    """Puts what `_split` has taken apart into the form of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    left, right = iter(matrices), iter(others)
    chosen = leaves_where(where, tree)
    joined = [
        (next(left).reshape(x.shape) if is_matrix else next(right)).astype(x.dtype)
        for x, is_matrix in zip(leaves, chosen, strict=True)
    ]
    return treedef.unflatten(joined)


def _worthwhile(rank: int, where: Callable[[Leaf], bool]) -> Callable[[Leaf], bool]:
    """Restricts the leaves to those of which the factors are smaller."""
    check_integer("[1, inf)", rank=rank)

    def is_factored(leaf: Leaf) -> bool:
        columns = leaf.shape[-1] if len(leaf.shape) > 1 else leaf.size
        return rank * (leaf.size // columns + columns) < leaf.size and where(leaf)

    return is_factored
