"""Federated evaluation: a model's metrics over the clients' own data, of all together and of each."""

from __future__ import annotations

from collections.abc import Sequence as PySequence
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.execution.computation import Computation
from fedjx.core.language.checks import check_number
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


class Distribution(NamedTuple):
    """How a metric is distributed over clients, each of which counts once.

    Attributes:
      mean: Of the clients.
      lowest_decile: The mean of the tenth of the clients with the lowest values, at least of one: the worst ones'
        accuracy.
      highest_decile: Likewise of the highest: the worst ones' loss.
      quantiles: By the number that was asked for, linearly interpolated.
    """

    mean: jax.Array
    lowest_decile: jax.Array
    highest_decile: jax.Array
    quantiles: dict[float, jax.Array]


def distribution(
    per_client: Clients, *, quantiles: PySequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9)
) -> dict[str, PyTree]:
    """Describes how metrics are distributed over the clients that have examples.

    Args:
      per_client: What `federated_evaluation` returned of each: metrics by name, arrays ``[C, ...]``.
      quantiles: Numbers from 0 to 1.

    Returns:
      By name, a `Distribution` of each array ``[...]``; NaN if no client has an example. Not of ``num_examples``.

    >>> metrics = {"accuracy": jnp.arange(4.0), "num_examples": jnp.array([5, 5, 5, 0])}
    >>> found = distribution(Clients.of(metrics), quantiles=(0.5,))["accuracy"]
    >>> float(found.mean), float(found.lowest_decile), float(found.highest_decile), float(found.quantiles[0.5])
    (1.0, 0.0, 2.0, 1.0)
    """
    check_number("[0, 1]", **{f"quantile_{k}": x for k, x in enumerate(quantiles)})
    counts = jnp.asarray(per_client.mask) & (jnp.asarray(per_client.value["num_examples"]) > 0)

    def described(values: jax.Array) -> Distribution:
        values = jnp.asarray(values, jnp.float32)
        number, rows = jnp.sum(counts), _like(jnp.arange(len(values)), values)
        ordered = jnp.sort(jnp.where(_like(counts, values), values, jnp.inf), axis=0)  # who does not count comes last
        tenth = (number + 9) // 10

        def mean(first: PyTree, last: PyTree) -> jax.Array:
            return jnp.sum(jnp.where((rows >= first) & (rows < last), ordered, 0), axis=0) / (last - first)

        def quantile(part: float) -> jax.Array:
            place = jnp.maximum(part * (number - 1), 0)
            below, above = (ordered[x.astype(jnp.int32)] for x in (jnp.floor(place), jnp.ceil(place)))
            found = jnp.where(above == below, below, below + (place - jnp.floor(place)) * (above - below))
            return jnp.where(number > 0, found, jnp.nan)

        deciles = mean(0, tenth), mean(number - tenth, number)
        return Distribution(mean(0, number), *deciles, {float(part): quantile(part) for part in quantiles})

    named = {name: x for name, x in per_client.value.items() if name != "num_examples"}
    return jax.tree.map(described, named)


def _like(x: jax.Array | np.ndarray, values: jax.Array) -> jax.Array:
    return jnp.asarray(x).reshape(-1, *[1] * (values.ndim - 1))
