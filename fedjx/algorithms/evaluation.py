"""Federated evaluation: a model's metrics over the clients' own data."""

from __future__ import annotations

import jax

from fedjx.core.execution.computation import Computation, federated_computation
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_broadcast, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.streams import AtClients
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model, Ratio, finalize_metrics
from fedjx.training.client import local_evaluate


def federated_evaluation(model: Model) -> Computation[[PyTree, AtClients], dict[str, jax.Array]]:
    """Builds the computation ``(params@SERVER, data@CLIENTS) -> metrics@SERVER``.

    Guarantees: Every metric equals that of all clients' examples taken together, however they
    are divided into clients and batches; exactly so for integer counts.
    """

    def client_evaluation(params: PyTree, data: Sequence) -> dict[str, Ratio]:
        return local_evaluate(model, params, data)

    @federated_computation
    def evaluation(params: FederatedValue, data: FederatedValue) -> FederatedValue:
        sums = federated_sum(federated_map(client_evaluation, federated_broadcast(params), data))
        return federated_map(summary, sums)

    return evaluation


def summary(sums: dict[str, Ratio]) -> dict[str, jax.Array]:
    """Finalises summed metrics, and says over how many examples they were taken."""
    return {**finalize_metrics(sums), "num_examples": sums["loss"].denominator}
