"""FedDyn: a regulariser that every client adapts, so that their optima become those of all.

Acar et al., "Federated Learning Based on Dynamic Regularization" (arXiv 2111.04263, algorithm 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster, broadcast
from fedjx.aggregation.mean import mean, uniform
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator, StatefulAlgorithm, keeps_type
from fedjx.core.language.operators import federated_keys, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.models.model import Model
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, LocalAmount, check_amount, local_train, no_schedule, reported
from fedjx.training.compose import round_keys, round_metrics

PyTree = Any


class FedDynState(NamedTuple):
    """The server's state: as `ServerState`, with ``gradient``, the paper's h, the mean of all clients' g_k."""

    params: PyTree
    gradient: PyTree
    optimizer: PyTree
    aggregator: PyTree
    broadcaster: PyTree
    key: jax.Array
    round: jax.Array


def fed_dyn(
    model: Model,
    *,
    num_clients: int,
    proximal_strength: float,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = uniform,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    **amount: Unpack[LocalAmount],
) -> StatefulAlgorithm:
    """Builds FedDyn. What is not described here is as for `fed_avg`.

    A client descends its loss minus ``<g_k, y>`` plus ``α/2 |y - x|²``, and then takes α (y - x) off its g_k.

    Args:
      model: What is trained.
      num_clients: The paper's m: all clients there are, not those of a round.
      proximal_strength: The paper's α. It vanishes from the clients as it goes to zero, but not from the server, which
        adds all changes of earlier rounds again, each for the part of all clients that were in the round.
      client_optimizer: Gets the gradients of the regularised loss.
      server_optimizer: Applied to the mean of x - y, plus h / α.
      aggregator: As for `fed_avg`.
      broadcaster: As for `fed_avg`.
      client_weight: Of the change of parameters, also in h.
      metrics_sum: As for `fed_avg`.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`.

    Returns:
      A `StatefulAlgorithm` with a `FedDynState`; a client's state is its gradient g_k, of the parameters' type.

    Guarantees: With uniform weights and the mean, h stays the mean of all m clients' g_k.

    Raises:
      ValueError: If ``num_clients`` or ``proximal_strength`` is not positive; when initialised, if the model has batch
        statistics.
    """
    if num_clients < 1 or not proximal_strength > 0:
        raise ValueError(f"FedDyn takes positive numbers; got {num_clients=}, {proximal_strength=}. Raise them.")
    check_amount(**amount)
    model, client_optimizer = no_batch_stats(model, "fed_dyn"), no_schedule(client_optimizer)
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    broadcaster = broadcast() if broadcaster is None else broadcaster
    train = functools.partial(local_train, **amount)

    @jax.jit
    def init(key: jax.Array) -> FedDynState:
        key_params, key_rounds = jax.random.split(key)
        params = model.init(key_params)
        inner = server_optimizer.init(params), aggregator.init(params), broadcaster.init(params)
        return FedDynState(params, optax.tree.zeros_like(params), *inner, key_rounds, jnp.int32(0))

    def client_update(params: PyTree, data: Any, own: PyTree, key: jax.Array) -> tuple[ClientUpdate, PyTree]:
        def regularised(gradient: PyTree, moved: Any) -> PyTree:
            return jax.tree.map(lambda g, h, y, x: g - h + proximal_strength * (y - x), gradient, own, moved, params)

        optimizer = optax.chain(optax.stateless(regularised), client_optimizer)
        trained = train(model, params, data, key, optimizer=optimizer)
        update = reported(params, trained, client_weight)
        # What is not finite is zero in the update, and so changes nothing.
        new = jax.tree.map(lambda h, d: jnp.where(update.weight > 0, h + proximal_strength * d, h), own, update.delta)
        return update, new

    def server_update(state: FedDynState, inner: tuple[Any, Any], delta: PyTree, num_sampled: jax.Array) -> FedDynState:
        share = proximal_strength * num_sampled / num_clients
        gradient = jax.tree.map(lambda h, d: h + (share * d).astype(h.dtype), state.gradient, delta)
        direction = jax.tree.map(lambda d, h: d + h / proximal_strength, delta, gradient)
        updates, optimizer = server_optimizer.update(direction, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return FedDynState(params, gradient, optimizer, *inner, state.key, state.round + 1)

    @federated_computation
    def next(state: Any, data: Any, gradients: Any) -> Any:
        keys = federated_map(round_keys, state.key, state.round)
        broadcaster_state, params = broadcaster.next(keys.broadcaster, state.broadcaster, state.params)
        update, gradients = federated_map(client_update, params, data, gradients, federated_keys(keys.clients))
        aggregator_state, delta, measured = aggregator.next(
            keys.aggregator, state.aggregator, update.delta, update.weight
        )
        sums = metrics_sum(update.metrics)
        inner = (aggregator_state, broadcaster_state)
        after = federated_map(server_update, state, inner, delta, sums["num_clients"])
        metrics = federated_map(round_metrics, sums, measured)
        return keeps_type("an algorithm", state, after), metrics, gradients

    return StatefulAlgorithm(init, lambda state: optax.tree.zeros_like(state.params), next)
