"""One aggregator for each group of clients, where every client has told to which it belongs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.error_feedback import StatefulAggregator
from fedjx.aggregation.mean import wrapped
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.names import PyTree
from fedjx.core.language.placed import FederatedValue, federated_map


class Assigned(NamedTuple):
    """A client's change and the number of the model, int32 ``[]``, that it is for."""

    cluster: jax.Array
    delta: PyTree


def per_cluster(
    num_clusters: int, *, inner: Aggregator | StatefulAggregator | None, of_cohort: bool = False
) -> Aggregator:
    """Aggregates what is `Assigned` cluster by cluster; in the others a client has no weight, or else (`of_cohort`) 0.

    Each client sends one change per cluster, so that nobody sees which is its own.
    """
    if isinstance(inner, StatefulAggregator):
        raise TypeError(
            "who is in a cluster changes from round to round, so clients keep no memory for it; got an aggregator that "
            "has one. Use one without."
        )
    may_be_split = getattr(getattr(inner, "event", None), "may_be_split", False)
    counted = "a client counts in every cluster" if of_cohort else "it counts the clients of each cluster"
    inner = wrapped(inner, unguarded=None if may_be_split and not of_cohort else counted)

    def share(j: int) -> Callable[[Assigned, jax.Array], tuple[PyTree, jax.Array]]:
        def of_client(value: Assigned, weight: jax.Array) -> tuple[PyTree, jax.Array]:
            mine = value.cluster == j
            delta = jax.tree.map(lambda x: jnp.where(mine, x, jnp.zeros_like(x)), value.delta)
            return delta, weight if of_cohort else jnp.where(mine, weight, jnp.zeros_like(weight))

        return of_client

    def init(member: Assigned) -> tuple[PyTree, ...]:
        return tuple(inner.init(member.delta) for _ in range(num_clusters))

    @federated_computation
    def next(
        key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue
    ) -> tuple[tuple[FederatedValue, ...], FederatedValue, FederatedValue]:
        keys = federated_map(lambda key: tuple(jax.random.split(key, num_clusters)), key)
        parts = []
        for j in range(num_clusters):
            delta, own = federated_map(share(j), value, weight)
            parts.append(inner.next(keys[j], state[j], delta, own))
        states, deltas, measured = zip(*parts, strict=True)
        stacked = federated_map(lambda *rows: jax.tree.map(lambda *xs: jnp.stack(xs), *rows), *deltas)
        return (
            tuple(states),
            stacked,
            federated_map(lambda *rows: jax.tree.map(lambda *xs: jnp.stack(xs), *rows), *measured),
        )

    # Who changes its cluster changes two of the sums, each by one clip: less than two clips in one of them.
    return Aggregator(init, next, event=inner.event)
