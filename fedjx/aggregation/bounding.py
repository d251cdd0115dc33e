"""What clipping and zeroing share: a bound on the norm of each client's value, fixed or following a quantile."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.mean import wrapped
from fedjx.aggregation.norms import check_order, follow_quantile, joint_norm
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator, bounded_after
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.operators import (
    federated_broadcast,
    federated_secure_sum,
    federated_sum,
    federated_value,
    federated_zip,
)
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import number_dtype
from fedjx.core.language.types import SERVER

Bound = float | jax.Array  # a fixed one, or one that follows the norms
Change = Callable[[PyTree, jax.Array, Bound], PyTree]  # (value, its norm, bound) -> value within the bound
Report = Callable[[jax.Array, dict[str, jax.Array]], dict[str, jax.Array]]  # (bound, votes) -> measurements


class Adaptive(NamedTuple):
    """How a bound follows a quantile of the clients' norms.

    Attributes:
      initial: The first estimate of the quantile.
      quantile: Which.
      learning_rate: Of the geometric update.
      multiplier: The bound is ``multiplier * estimate + increment``.
      increment: See there.
    """

    initial: float
    quantile: float
    learning_rate: float
    multiplier: float = 1.0
    increment: float = 0.0


class BoundState(NamedTuple):
    """The state of an adaptive bound.

    Attributes:
      estimate: ``[]``; of the quantile.
      inner: The inner aggregator's state.
    """

    estimate: jax.Array
    inner: PyTree


class _Bounded(NamedTuple):
    value: PyTree
    weight: jax.Array
    votes: dict[str, jax.Array]


def _bound(value: PyTree, weight: jax.Array, estimate: Bound, bound: Bound, order: float, change: Change) -> _Bounded:
    """Bounds one client's value; one of no finite norm becomes zero, of weight zero, and is counted."""
    norm = joint_norm(value, order)
    finite, counts = jnp.isfinite(norm), weight > 0
    changed = change(value, norm, bound)
    value = jax.tree.map(lambda new, old: jnp.where(finite, new, 0).astype(old.dtype), changed, value)
    votes = {"client": finite, "at_most": finite & (norm <= estimate), "above": norm > bound, "non_finite": ~finite}
    votes["above"] &= finite
    return _Bounded(value, jnp.where(finite & counts, weight, 0), {k: v & counts for k, v in votes.items()})


def fraction(count: jax.Array, votes: dict[str, jax.Array]) -> jax.Array:
    """Returns a count as a fraction of the clients with weight and a finite norm; 0 of none."""
    return count / jnp.maximum(votes["client"], 1).astype(jnp.float32)


def fixed_bound(bound: float, inner: Aggregator, order: float, change: Change, report: Report) -> Aggregator:
    """Wraps an aggregator in a fixed bound; ``report(bound, votes)`` makes the measurements."""
    check_order(order)

    def each(value: FederatedValue, weight: FederatedValue) -> FederatedValue:
        return federated_map(lambda v, w: _bound(v, w, bound, bound, order, change), value, weight)

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        bounded = each(value, weight)
        votes = _counted(bounded.votes, inner.secure)
        state, result, measured = inner.next(key, state, bounded.value, bounded.weight)
        own = federated_map(report, federated_value(jnp.float32(bound), SERVER), votes)
        return state, result, federated_map(with_own, measured, exact_beside(inner, own))

    def to_inner(key: PyTree, state: PyTree, value: PyTree, weight: PyTree) -> tuple[PyTree, PyTree, PyTree, PyTree]:
        bounded = each(value, weight)
        return key, state, bounded.value, bounded.weight

    return Aggregator(inner.init, next, bounded_after(inner, to_inner), inner.secure, inner.event)


def adaptive_bound(
    adaptive: Adaptive, inner: Aggregator | None, order: float, change: Change, report: Report
) -> Aggregator:
    """Wraps an aggregator in a bound that follows a quantile of the norms of the rounds before."""
    inner = wrapped(inner, unguarded="the bound follows the other clients' norms, which no noise hides")
    check_order(order)
    check_number("(0, inf]", initial=adaptive.initial, learning_rate=adaptive.learning_rate)
    check_number("[0, 1]", quantile=adaptive.quantile)

    def init(member: PyTree) -> BoundState:
        return BoundState(jnp.asarray(adaptive.initial, number_dtype(member)), inner.init(member))

    def of(estimate: jax.Array) -> jax.Array:
        return adaptive.multiplier * estimate + adaptive.increment

    def bound_one(value: PyTree, weight: jax.Array, estimate: jax.Array) -> _Bounded:
        return _bound(value, weight, estimate, of(estimate), order, change)

    def follow(estimate: jax.Array, votes: dict[str, jax.Array]) -> jax.Array:
        at_most = fraction(votes["at_most"].astype(estimate.dtype), votes)
        moved = follow_quantile(estimate, at_most, quantile=adaptive.quantile, learning_rate=adaptive.learning_rate)
        return jnp.where(votes["client"] > 0, moved, estimate)

    def each(state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> FederatedValue:
        return federated_map(bound_one, value, weight, federated_broadcast(state.estimate))

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        bounded = each(state, value, weight)
        votes = _counted(bounded.votes, inner.secure)
        inner_state, result, measured = inner.next(key, state.inner, bounded.value, bounded.weight)
        own = federated_map(lambda estimate, votes: report(of(estimate), votes), state.estimate, votes)
        new = federated_map(BoundState, federated_map(follow, state.estimate, votes), inner_state)
        return new, result, federated_map(with_own, measured, own)

    def to_inner(key: PyTree, state: PyTree, value: PyTree, weight: PyTree) -> tuple[PyTree, PyTree, PyTree, PyTree]:
        bounded = each(state, value, weight)
        return key, state.inner, bounded.value, bounded.weight

    return Aggregator(init, next, bounded_after(inner, to_inner), inner.secure)


def _counted(votes: FederatedValue, secure: bool) -> FederatedValue:
    """Counts the votes: exact small integers, so that a secure sum does as well, where only such are to be."""
    return federated_secure_sum(federated_map(_as_integers, votes)) if secure else federated_sum(votes)


def _as_integers(votes: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: vote.astype(jnp.int32) for name, vote in votes.items()}


def exact_beside(inner: Aggregator, own: FederatedValue) -> FederatedValue:
    """Returns exact measurements of a wrapper: as they are, or marked, if the inner aggregator is private."""
    return own if inner.event is None else federated_zip({"not_private": own})


def with_own(inner: Metrics, own: Metrics) -> Metrics:
    """Joins a wrapper's measurements to the inner ones, which go under ``inner`` if a name is in both."""
    return {**({"inner": inner} if inner.keys() & own.keys() else inner), **own}
