"""The sum of the clients' values."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_sum, federated_value
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.types import SERVER


def total() -> Aggregator:
    """Sums the clients' values; 0 over no client.

    A weight says only whether a client takes part: one of weight 0, or less, changes nothing, all
    others count once. Types narrower than 32 bits are summed, and returned, in 32 bits.

    >>> value, weight = fedjx.Clients.of(np.array([1, 2, 4])), fedjx.Clients.of(np.array([5.0, 1.0, 0.0]))
    >>> total().next(jax.random.key(0), (), value, weight)[1]
    Array(3, dtype=int32)
    """

    def init(member: PyTree) -> tuple[()]:
        del member
        return ()

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        del key
        return state, federated_sum(federated_map(_where_weight, value, weight)), federated_value({}, SERVER)

    return Aggregator(init, next)


def _where_weight(value: PyTree, weight: jax.Array) -> PyTree:
    return jax.tree.map(lambda v: jnp.where(weight > 0, v, jnp.zeros((), v.dtype)), value)
