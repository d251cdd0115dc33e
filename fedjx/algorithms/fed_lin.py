"""FedLin: local steps whose gradients are corrected by the global one, exact at the server's parameters.

Mitra et al., "Linear Convergence in Federated Learning: Tackling Client Heterogeneity and Sparse
Gradients" (arXiv 2102.07053, algorithm 1; what it sparsifies is an aggregator's affair).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster, broadcast
from fedjx.aggregation.mean import by_examples, mean
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator, Algorithm, keeps_type
from fedjx.core.language.operators import federated_broadcast, federated_keys, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.models.model import Model
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, LocalAmount, check_amount, local_train, no_schedule, reported
from fedjx.training.compose import ServerState, round_keys
from fedjx.training.gradients import both_finite, gradient_update, metrics_of_both, shift

PyTree = Any


def fed_lin(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    **amount: Unpack[LocalAmount],
) -> Algorithm:
    """Builds FedLin. What is not described here is as for `fed_avg`.

    A round has two passes over the clients: they send their gradients at x, get the mean g of these back, and take
    local steps with ``∇f_i(y) - ∇f_i(x) + g``. Who is left out of the first pass is left out of the second.

    Args:
      model: What is trained.
      client_optimizer: Gets the corrected gradients. Its rate is the same for all clients; the paper divides it by each
        one's number of steps, which makes a difference where ``num_epochs`` are given and sizes differ.
      server_optimizer: As for `fed_avg`.
      aggregator: Of the gradients in the first pass, and, with another state, of the changes in the second.
      broadcaster: Of the parameters; g is sent as it is.
      client_weight: In both means.
      metrics_sum: As for `fed_avg`.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`.

    Returns:
      An `Algorithm` with a `ServerState`, whose ``aggregator`` is the pair of both passes. Metrics are those of
      `fed_avg`, and ``gradient_aggregation``, the aggregator's measurements of the first pass.

    Raises:
      ValueError: When it is initialised, if the model has batch statistics.
    """
    check_amount(**amount)
    model, client_optimizer = no_batch_stats(model, "fed_lin"), no_schedule(client_optimizer)
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    broadcaster = broadcast() if broadcaster is None else broadcaster
    client_gradient = gradient_update(model, weight=client_weight)

    @jax.jit
    def init(key: jax.Array) -> ServerState:
        key_params, key_rounds = jax.random.split(key)
        params = model.init(key_params)
        aggregators = (aggregator.init(params), aggregator.init(params))
        inner = server_optimizer.init(params), aggregators, broadcaster.init(params)
        return ServerState(params, *inner, key_rounds, jnp.int32(0))

    def client_update(params: PyTree, own: ClientUpdate, whole: PyTree, data: Any, key: jax.Array) -> ClientUpdate:
        trained = local_train(
            model,
            params,
            data,
            key,
            optimizer=optax.chain(shift(optax.tree.sub(whole, own.delta)), client_optimizer),
            **amount,
        )
        return both_finite(own, reported(params, trained, client_weight))

    def finish(state: ServerState, aggregators: Any, broadcaster_state: PyTree, delta: PyTree) -> ServerState:
        updates, optimizer = server_optimizer.update(delta, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return ServerState(params, optimizer, aggregators, broadcaster_state, state.key, state.round + 1)

    @federated_computation
    def next(state: Any, data: Any) -> Any:
        keys = federated_map(round_keys, state.key, state.round)
        aggregator_keys = federated_map(lambda key: tuple(jax.random.split(key)), keys.aggregator)
        client_keys = federated_keys(keys.clients)
        broadcaster_state, params = broadcaster.next(keys.broadcaster, state.broadcaster, state.params)
        own = federated_map(client_gradient, params, data, client_keys)
        first, gradient, of_gradient = aggregator.next(aggregator_keys[0], state.aggregator[0], own.delta, own.weight)
        update = federated_map(client_update, params, own, federated_broadcast(gradient), data, client_keys)
        second, delta, measured = aggregator.next(aggregator_keys[1], state.aggregator[1], update.delta, update.weight)
        after = federated_map(finish, state, (first, second), broadcaster_state, delta)
        metrics = federated_map(metrics_of_both, metrics_sum(update.metrics), measured, of_gradient)
        return keeps_type("an algorithm", state, after), metrics

    return Algorithm(init, next)
