"""Mime and MimeLite: local steps that mimic those of a centralised optimizer.

Karimireddy et al., "Breaking the centralized barrier for cross-device federated learning" (2008.03606, algorithm 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedjx.aggregation.broadcast import Broadcaster, broadcast
from fedjx.aggregation.mean import by_examples, mean
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator, Algorithm, keeps_type
from fedjx.core.language.operators import federated_broadcast, federated_keys, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.models.model import Model
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, LocalAmount, check_amount, local_train, no_schedule, reported
from fedjx.training.compose import round_keys
from fedjx.training.gradients import both_finite, gradient_update, metrics_of_both, shift

PyTree = Any


class MimeState(NamedTuple):
    """The server's state: as `ServerState`, with ``statistics``, the state s of the base optimizer."""

    params: PyTree
    statistics: PyTree
    optimizer: PyTree
    aggregator: PyTree
    broadcaster: PyTree
    key: jax.Array
    round: jax.Array


def mime(
    model: Model,
    *,
    base_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    corrected: bool = True,
    **amount: Unpack[LocalAmount],
) -> Algorithm:
    """Builds Mime, or MimeLite. What is not described here is as for `fed_avg`.

    Clients step by the base optimizer with the statistics s that the server sends, which they do not change; the server
    does, by the mean c of their gradients over all their examples at x. Mime corrects the gradient of each batch by
    its difference to c at x, in a second pass over the clients; MimeLite does not.

    Args:
      model: What is trained.
      base_optimizer: The paper's B: its ``update`` returns ``-η U(g, s)`` and the state V(g, s). With `optax.adam` a
        step's own gradient is thus part of the second moment by which it is divided.
      server_optimizer: As for `fed_avg`.
      aggregator: Of the gradients and, with another state, of the changes of parameters.
      broadcaster: Of the parameters; s and c are sent as they are.
      client_weight: In both means.
      metrics_sum: As for `fed_avg`.
      corrected: True for Mime, False for MimeLite.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`.

    Returns:
      An `Algorithm` with a `MimeState`, whose ``aggregator`` is the pair of both means, and the metrics of
      `fed_lin`. Who is left out of the gradients' mean is left out of the other.

    Raises:
      ValueError: When it is initialised, if the model has batch statistics.
    """
    check_amount(**amount)
    model, base_optimizer = no_batch_stats(model, "mime"), no_schedule(base_optimizer)
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    broadcaster = broadcast() if broadcaster is None else broadcaster
    client_gradient = gradient_update(model, weight=client_weight)
    train = functools.partial(local_train, **amount)

    @jax.jit
    def init(key: jax.Array) -> MimeState:
        key_params, key_rounds = jax.random.split(key)
        params = model.init(key_params)
        aggregators = (aggregator.init(params), aggregator.init(params))
        inner = base_optimizer.init(params), server_optimizer.init(params), aggregators, broadcaster.init(params)
        return MimeState(params, *inner, key_rounds, jnp.int32(0))

    def lite_update(params: PyTree, statistics: PyTree, data: Any, key: jax.Array) -> ClientUpdate:
        trained = train(model, params, data, key, optimizer=fixed_statistics(base_optimizer, statistics))
        return reported(params, trained, client_weight)

    def mime_update(params: PyTree, statistics: PyTree, data: Any, key: jax.Array, gradient: PyTree) -> ClientUpdate:
        optimizer = optax.chain(shift(gradient), fixed_statistics(base_optimizer, statistics))
        trained = train(centred(model, params), params, data, key, optimizer=optimizer)
        return reported(params, trained, client_weight)

    def finish(
        state: MimeState, aggregators: Any, broadcaster_state: PyTree, delta: PyTree, gradient: PyTree
    ) -> MimeState:
        _, statistics = base_optimizer.update(gradient, state.statistics, state.params)
        updates, optimizer = server_optimizer.update(delta, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return MimeState(params, statistics, optimizer, aggregators, broadcaster_state, state.key, state.round + 1)

    @federated_computation
    def next(state: Any, data: Any) -> Any:
        keys = federated_map(round_keys, state.key, state.round)
        aggregator_keys = federated_map(lambda key: tuple(jax.random.split(key)), keys.aggregator)
        client_keys = federated_keys(keys.clients)
        broadcaster_state, params = broadcaster.next(keys.broadcaster, state.broadcaster, state.params)
        own = federated_map(client_gradient, params, data, client_keys)
        first, gradient, of_gradient = aggregator.next(aggregator_keys[0], state.aggregator[0], own.delta, own.weight)
        sent = (params, federated_broadcast(state.statistics), data, client_keys)
        if corrected:
            update = federated_map(mime_update, *sent, federated_broadcast(gradient))
        else:
            update = federated_map(lite_update, *sent)
        update = federated_map(both_finite, own, update)
        second, delta, measured = aggregator.next(aggregator_keys[1], state.aggregator[1], update.delta, update.weight)
        after = federated_map(finish, state, (first, second), broadcaster_state, delta, gradient)
        metrics = federated_map(metrics_of_both, metrics_sum(update.metrics), measured, of_gradient)
        return keeps_type("an algorithm", state, after), metrics

    return Algorithm(init, next)


def fixed_statistics(base_optimizer: optax.GradientTransformation, statistics: PyTree) -> optax.GradientTransformation:
    """Steps by an optimizer whose state stays as it is."""
    return optax.stateless(lambda gradient, params: base_optimizer.update(gradient, statistics, params)[0])


def centred(model: Model, center: PyTree) -> Model:
    """Takes off the gradient of every batch what it is at the center; the loss is the same number."""

    def loss(params: PyTree, batch: Any, key: jax.Array) -> jax.Array:
        away = jax.tree.map(jnp.subtract, params, center)
        _, linear = jax.jvp(lambda params: model.loss(params, batch, key), (center,), (away,))
        return model.loss(params, batch, key) - (linear - lax.stop_gradient(linear))

    return model._replace(loss=loss)
