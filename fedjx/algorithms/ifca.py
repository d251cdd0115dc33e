"""Clustered federated learning: a model for each of K groups of clients, who find out which is theirs.

IFCA, Ghosh et al., "An Efficient Framework for Clustered Federated Learning" (arXiv 2006.04088, algorithm 1); with
clients weighted by examples, HypCluster of Mansour et al., "Three Approaches for Personalization" (2002.10619, §3).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import by_examples
from fedjx.aggregation.per_cluster import Assigned, per_cluster
from fedjx.core.execution.computation import Computation, federated_computation
from fedjx.core.execution.process import Aggregator, Algorithm
from fedjx.core.language.operators import federated_broadcast, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model, finalize_metrics
from fedjx.training.client import (
    ClientUpdate,
    LocalAmount,
    check_amount,
    checked,
    examples,
    local_evaluate,
    local_train,
)
from fedjx.training.compose import compose
from fedjx.training.gradients import local_gradient

PyTree = Any


def ifca(
    model: Model,
    num_clusters: int,
    *,
    client_optimizer: optax.GradientTransformation | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    average: Literal["models", "gradients"] = "models",
    init: Callable[[jax.Array], PyTree] | None = None,
    **amount: Unpack[LocalAmount],
) -> Algorithm:
    """Builds the iterative federated clustering algorithm.

    A client picks the model of the least loss on its examples, and trains it. The paper weights clients alike.

    Args:
      model: What is trained, once for each cluster.
      num_clusters: Number of models, K.
      client_optimizer: Of every client; only to average models.
      server_optimizer: As for `fed_avg`, of the stacked models; its rate is the step size γ if gradients are averaged.
      aggregator: Of each cluster, with a state of its own; the weighted `mean` if not given.
      broadcaster: As for `fed_avg`, of the stacked models.
      client_weight: As for `fed_avg`.
      metrics_sum: As for `fed_avg`.
      average: "models": each becomes the mean of those trained by its cluster. "gradients": the clients send the
        gradient over all their examples, and the mean is over the cohort, in which those of other clusters count as 0.
      init: ``(key) -> params``, the first models, leaves ``[K, ...]``; K draws of ``model.init`` if not given.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`.

    Returns:
      An `Algorithm`, leaves of ``state.params`` ``[K, ...]``. Beside the metrics of `fed_avg` it has ``cluster_sizes``,
      int32 ``[K]``. A model without clients is left to the server optimizer with a delta of 0.

    Raises:
      ValueError: If there is no cluster, what is averaged is neither, or the client optimizer does not go with it.
    """
    if average not in ("models", "gradients"):
        raise ValueError(f'what is averaged is "models" or "gradients"; got {average=}. Pass one of these.')
    if num_clusters < 1 or (client_optimizer is None) != (average == "gradients"):
        raise ValueError(
            "there is a cluster, and a client optimizer is given to average models only; got "
            f"{num_clusters=}, {average=}, {client_optimizer=}. Give one, or none."
        )
    check_amount(amount.get("num_epochs"), amount.get("num_steps"))

    def first(key: jax.Array) -> PyTree:
        return jax.tree.map(lambda *xs: jnp.stack(xs), *map(model.init, jax.random.split(key, num_clusters)))

    def trained(params: PyTree, data: Sequence, key: jax.Array) -> Any:
        if client_optimizer is None:
            found = local_gradient(model, params, data, key)
            return found.gradient, found.metrics
        result = local_train(model, params, data, key, optimizer=client_optimizer, **amount)
        return jax.tree.map(jnp.subtract, params, result.params), result.metrics

    def client_update(models: PyTree, data: Sequence, key: jax.Array) -> ClientUpdate:
        cluster = least_loss(model, models, data)
        delta, metrics = trained(jax.tree.map(lambda x: x[cluster], models), data, key)
        num_examples = jnp.sum(examples(data).index >= 0, dtype=jnp.int32)
        sizes = jax.nn.one_hot(cluster, num_clusters, dtype=jnp.int32) * (num_examples > 0)
        metrics = {**metrics, "num_examples": num_examples, "cluster_sizes": sizes}
        return checked(ClientUpdate(Assigned(cluster, delta), client_weight(num_examples), metrics))

    return compose(
        client_update,
        server_optimizer,
        per_cluster(aggregator, num_clusters, of_cohort=average == "gradients"),
        init=first if init is None else init,
        broadcaster=broadcaster,
        metrics_sum=metrics_sum,
    )


def least_loss(model: Model, models: PyTree, data: Sequence) -> jax.Array:
    """Returns which of K models, leaves ``[K, ...]``, has the least mean loss on a client's examples; int32 ``[]``."""
    losses = jax.vmap(lambda params: finalize_metrics(local_evaluate(model, params, data))["loss"])(models)
    return jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses)).astype(jnp.int32)


def client_clusters(model: Model) -> Computation:
    """Builds the computation ``(params@SERVER, data@CLIENTS) -> clusters@CLIENTS``: which model each client picks."""
    pick = functools.partial(least_loss, model)
    return federated_computation(lambda models, data: federated_map(pick, federated_broadcast(models), data))
