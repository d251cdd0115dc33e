"""Federated evaluation: a model's metrics over the clients' own data, of all together and of each."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp

from fedjx.core.execution.computation import Computation
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.operators import federated_broadcast, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.streams import AtClients
from fedjx.core.language.values import Clients, Sequence
from fedjx.models.model import MetricSums, Model, finalize_metrics
from fedjx.training.client import as_batches, local_evaluate
from fedjx.training.meeting import data_hooks
from fedjx.training.method import ServerState


class Evaluated(NamedTuple):
    """What a client's examples add to an evaluation: the metrics' sums by name, and their number, int32 ``[]``."""

    sums: dict[str, MetricSums]
    num_examples: jax.Array


@overload
def federated_evaluation(
    model: Model, *, per_client: Literal[False] = False
) -> Computation[[PyTree, AtClients], Metrics]: ...
@overload
def federated_evaluation(
    model: Model, *, per_client: Literal[True]
) -> Computation[[PyTree, AtClients], tuple[Metrics, Clients]]: ...
def federated_evaluation(model: Model, *, per_client: bool = False) -> Computation[[PyTree, AtClients], Any]:
    """Builds the computation ``(params@SERVER, data@CLIENTS) -> metrics@SERVER``.

    Args:
      model: What is evaluated.
      per_client: Whether the metrics of each client come back too, ``(metrics@SERVER, metrics@CLIENTS)``: for their
        `distribution`, or, streamed with a ``sink``, for as many clients as there are.

    Guarantees: Every metric equals that of all clients' examples taken together, however they
    are divided into clients and batches; exactly so for integer counts. Over no example a loss is NaN.

    >>> model = fedjx.models.linear(10, input_shape=(8, 8, 1), scale=1 / 16)
    >>> train, _ = fedjx.data.digits(num_clients=5)
    >>> cohort = fedjx.data.Cohort(train, range(5), batch_size=50)
    >>> params = model.init(jax.random.key(0))
    >>> metrics, of_each = federated_evaluation(model, per_client=True)(params, cohort)
    >>> sorted(metrics), of_each.value["accuracy"].shape
    (['accuracy', 'loss', 'num_examples'], (5,))
    """

    def client_evaluation(params: PyTree, data: Sequence) -> Evaluated:
        return evaluated(model, params, data)

    def evaluation(params: FederatedValue, data: FederatedValue) -> PyTree:
        if isinstance(params.type.member, ServerState):
            raise TypeError("an evaluation takes a model's parameters; got the server's state. Pass state.params.")
        found = federated_map(client_evaluation, federated_broadcast(params), data)
        metrics = federated_map(summary, federated_sum(found))
        return (metrics, federated_map(summary, found)) if per_client else metrics

    return Computation(evaluation, hooks=data_hooks(model.input_spec))


def evaluated(model: Model, params: PyTree, data: Sequence) -> Evaluated:
    """Sums a model's metrics over one client's data, and counts its examples."""
    return Evaluated(local_evaluate(model, params, data), jnp.sum(as_batches(data).index >= 0, dtype=jnp.int32))


def summary(found: Evaluated) -> Metrics:
    """Finalises summed metrics, and says over how many examples they were taken."""
    return {**finalize_metrics(found.sums), "num_examples": found.num_examples}
