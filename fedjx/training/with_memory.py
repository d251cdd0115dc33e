"""Rounds whose aggregation keeps a memory at the clients: error feedback, EF21, PowerSGD with memory.

With error feedback it is FedAvg as Karimireddy et al. treat SGD, "Error Feedback Fixes SignSGD" (arXiv
1901.09847, algorithm 2): a client sends its compressed update and memory, and remembers what was lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.error_feedback import StatefulAggregator
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator, StatefulAlgorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.training.compose import ServerState, compose

PyTree = Any


def compose_with_memory(
    client_update: Callable[..., Any],
    server_update: optax.GradientTransformation | None,
    aggregator: StatefulAggregator,
    *,
    init: Callable[[jax.Array], PyTree],
    broadcaster: Broadcaster | None = None,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
) -> StatefulAlgorithm:
    """Makes an algorithm of a client update, as `compose` does, of which the clients keep the aggregator's memory.

    Args:
      client_update: As for `compose`; that of federated averaging is `local_update`.
      server_update: As for `compose`; ``optax.sgd(1.0)`` if None.
      aggregator: Such as `error_feedback`, `ef21` or `power_sgd_with_memory`.
      init: ``(key) -> params``, the first parameters.
      broadcaster: How the parameters are sent; as they are if not given.
      metrics_sum: Adds the clients' metrics up.

    >>> from fedjx.aggregation import error_feedback, top_k
    >>> from fedjx.algorithms import ClientUpdate
    >>> def client_update(params, data, key):  # as if its gradient were its data
    ...     return ClientUpdate(data, jnp.float32(1), {})
    >>> aggregator = error_feedback(top_k(0.5), where=lambda leaf: True)
    >>> algorithm = compose_with_memory(client_update, None, aggregator, init=lambda key: jnp.zeros(2))
    >>> state = algorithm.init(jax.random.key(0))
    >>> memories = fedjx.Clients.of([algorithm.init_client(state)])
    >>> for _ in range(2):  # what is small waits until it has added up
    ...     state, _, memories = algorithm.next(state, fedjx.Clients.of(np.float32([[3, 2]])), memories)
    ...     print(state.params, memories.value)
    [-3.  0.] [[0. 2.]]
    [-3. -4.] [[3. 0.]]
    """

    def round_of(aggregate: Callable[..., Any]) -> Any:
        plain = Aggregator(aggregator.init, aggregate)
        parts = {"init": init, "broadcaster": broadcaster, "metrics_sum": metrics_sum}
        return compose(client_update, server_update, plain, **parts)

    @federated_computation
    def next(state: Any, data: Any, memories: Any) -> Any:
        kept = []

        def aggregate(key: Any, aggregator_state: Any, value: Any, weight: Any) -> Any:
            *results, memory = aggregator.next(key, aggregator_state, value, weight, memories)
            kept.append(memory)
            return results

        return *round_of(aggregate).next(state, data), *kept

    def init_client(state: ServerState) -> PyTree:
        return aggregator.init_client(state.params)

    return StatefulAlgorithm(round_of(aggregator.next).init, init_client, next)
