"""Private sums: what each client adds, and what the server makes of the total, with noise. Every mean here is one.

The idea is that of `DPQuery` in TensorFlow Privacy: McMahan et al., "A General Approach to Adding Differential Privacy
to Iterative Training Procedures" (arXiv 1812.06210).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.operators import federated_broadcast, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import cast_like
from fedjx.privacy.events import Event


class Query(NamedTuple):
    """A private sum, as pure functions.

    Attributes:
      init: ``(member) -> state``, the server's, for values of the type of ``member``.
      sent: ``(state) -> parameters``, what clients are told of the state.
      preprocess: ``(parameters, value, weight) -> record``, what one client adds: for every value, also one that is not
        finite, within the sensitivity that the event is about; zeros where the weight is 0.
      result: ``(key, state, total, member) -> (state, result, measurements)``, with noise on the total of the records.
      event: What an accountant is told.
    """

    init: Callable[[PyTree], PyTree]
    sent: Callable[[PyTree], PyTree]
    preprocess: Callable[[PyTree, PyTree, jax.Array], PyTree]
    result: Callable[[jax.Array, PyTree, PyTree, PyTree], tuple[PyTree, PyTree, Metrics]]
    event: Event


def private_sum(query: Query) -> Aggregator:
    """Makes an aggregator of a query, for any algorithm.

    Returns:
      An `Aggregator` with the query's state, event and measurements; its result has the dtypes of the clients' values.
    """

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        member = value.type.member
        record = federated_map(query.preprocess, federated_broadcast(federated_map(query.sent, state)), value, weight)

        def finish(key: jax.Array, state: PyTree, total: PyTree) -> tuple[PyTree, PyTree, Metrics]:
            state, result, measured = query.result(key, state, total, member)
            return state, cast_like(member, result), measured

        state, result, measured = federated_map(finish, key, state, federated_sum(record))
        return state, result, measured

    return Aggregator(query.init, next, event=query.event)
