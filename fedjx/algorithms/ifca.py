"""Clustered federated learning: a model for each of K groups of clients, who find out which is theirs.

IFCA, Ghosh et al., "An Efficient Framework for Clustered Federated Learning" (arXiv 2006.04088, algorithm 1); with
clients weighted by examples, HypCluster of Mansour et al., "Three Approaches for Personalization" (2002.10619, §3).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.per_cluster import Assigned, per_cluster
from fedjx.core.execution.computation import Computation
from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_choice, check_integer
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_broadcast
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.streams import AtClients
from fedjx.core.language.values import Clients, Sequence
from fedjx.models.model import Model, Ratio, finalize_metrics
from fedjx.training.client import ClientOptimizer, ClientUpdate, Local, drop_non_finite, local_evaluate
from fedjx.training.gradients import local_gradient
from fedjx.training.meeting import data_hooks
from fedjx.training.method import Method, ServerState
from fedjx.training.round import LocalArguments, compose

Weight = Callable[[jax.Array], jax.Array]
Trained = tuple[PyTree, dict[str, Ratio], jax.Array]  # a client's change, its metrics, and its number of examples


def ifca(
    model: Model,
    num_clusters: int,
    *,
    client_optimizer: ClientOptimizer | None = None,
    average: Literal["models", "gradients"] = "models",
    init: Callable[[jax.Array], PyTree] | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    **arguments: Unpack[LocalArguments],
) -> Algorithm[ServerState]:
    """Builds the iterative federated clustering algorithm, of the arguments of `fed_avg` and its own.

    A client picks the model of the least loss on its examples, and trains it. The paper weights clients alike.

    Args:
      model: What is trained, once for each cluster.
      num_clusters: Number of models, K.
      client_optimizer: Of every client; only to average models.
      average: "models": each becomes the mean of those trained by its cluster. "gradients": the clients send the
        gradient over all their examples, and the mean is over the cohort, in which those of other clusters count as 0.
      init: ``(key) -> params``, the first models, leaves ``[K, ...]``; K draws of ``model.init`` if not given.
      server_optimizer: As for `fed_avg`, of the stacked models; its rate is the step size γ if gradients are averaged.
      **arguments: As for `fed_avg`. The broadcaster is that of the stacked models, the aggregator that of each cluster,
        with a state of its own.

    Returns:
      An `Algorithm`, leaves of ``state.params`` ``[K, ...]``. Beside the metrics of `fed_avg` it has ``cluster_sizes``,
      int32 ``[K]``. A model without clients is left to the server optimizer with a delta of 0.

    Raises:
      ValueError: If there is no cluster, what is averaged is neither, or the client optimizer does not go with it.
      TypeError: If the aggregator keeps a memory at the clients.
    """
    check_choice(("models", "gradients"), average=average)
    check_integer("[1, inf)", num_clusters=num_clusters)
    if (client_optimizer is None) != (average == "gradients"):
        raise ValueError(
            f"a client optimizer is given to average models only; got {average=}, {client_optimizer=}. "
            "Give one, or none."
        )

    def first(key: jax.Array) -> PyTree:
        return jax.tree.map(lambda *xs: jnp.stack(xs), *map(model.init, jax.random.split(key, num_clusters)))

    def model_update(models: PyTree, data: Sequence, key: jax.Array, *, local: Local) -> ClientUpdate:
        def train(params: PyTree) -> Trained:
            trained = local.train(model, params, data, key, optimizer=local.optimizer)
            return jax.tree.map(jnp.subtract, params, trained.params), trained.metrics, trained.num_examples

        return update(models, data, train, local.weight)

    def gradient_update(models: PyTree, data: Sequence, key: jax.Array, *, weight: Weight) -> ClientUpdate:
        return update(models, data, lambda params: local_gradient(model, params, data, key), weight)

    def update(models: PyTree, data: Sequence, train: Callable[[PyTree], Trained], weight: Weight) -> ClientUpdate:
        cluster = least_loss(model, models, data)
        delta, metrics, num_examples = train(jax.tree.map(lambda x: x[cluster], models))
        sizes = jax.nn.one_hot(cluster, num_clusters, dtype=jnp.int32) * (num_examples > 0)
        metrics = {**metrics, "num_examples": num_examples, "cluster_sizes": sizes}
        return drop_non_finite(ClientUpdate(Assigned(cluster, delta), weight(num_examples), metrics))

    def delta(models: PyTree) -> Assigned:
        return Assigned(jnp.int32(0), jax.tree.map(lambda x: x[0], models))

    arguments["aggregator"] = per_cluster(
        inner=arguments.get("aggregator"), num_clusters=num_clusters, of_cohort=average == "gradients"
    )
    client_update = model_update if average == "models" else gradient_update
    method = Method(first if init is None else init, client_update, delta=delta, input_spec=model.input_spec)
    return compose(method, client_optimizer=client_optimizer, server_optimizer=server_optimizer, **arguments)


def least_loss(model: Model, models: PyTree, data: Sequence) -> jax.Array:
    """Returns which of K models, leaves ``[K, ...]``, has the least mean loss on a client's examples; int32 ``[]``."""
    losses = jax.vmap(lambda params: finalize_metrics(local_evaluate(model, params, data))["loss"])(models)
    return jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses)).astype(jnp.int32)


def client_clusters(model: Model) -> Computation[[PyTree, AtClients], Clients]:
    """Builds the computation ``(params@SERVER, data@CLIENTS) -> clusters@CLIENTS``: which model each client picks."""
    pick = functools.partial(least_loss, model)

    def clusters(models: FederatedValue, data: FederatedValue) -> FederatedValue:
        return federated_map(pick, federated_broadcast(models), data)

    return Computation(clusters, hooks=data_hooks(model.input_spec))
