"""SCAFFOLD: control variates against the drift of clients with different data.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning" (arXiv
1910.06378, algorithm 1, options I and II).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster, broadcast
from fedjx.aggregation.mean import mean, uniform
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator, StatefulAlgorithm, keeps_type
from fedjx.core.language.operators import federated_keys, federated_sum, federated_zip
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.models.model import Model
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, LocalAmount, check_amount, local_train, no_schedule, reported
from fedjx.training.compose import round_keys, round_metrics
from fedjx.training.gradients import averaged, local_gradient, shift

PyTree = Any


class ScaffoldState(NamedTuple):
    """The server's state: as `ServerState`, with ``control``, the server's control variate c."""

    params: PyTree
    control: PyTree
    optimizer: PyTree
    aggregator: PyTree
    broadcaster: PyTree
    key: jax.Array
    round: jax.Array


def scaffold(
    model: Model,
    *,
    num_clients: int,
    option: Literal["I", "II"] = "II",
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = uniform,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    **amount: Unpack[LocalAmount],
) -> StatefulAlgorithm:
    """Builds SCAFFOLD. What is not described here is as for `fed_avg`.

    Args:
      model: What is trained.
      num_clients: The paper's N: all clients there are, not those of a round.
      option: Which gradient becomes a client's control: "I", that of all its examples at the server's parameters, for
        one more pass over them; "II", the mean of those of its local steps, which costs nothing. With plain SGD of
        rate η and K steps that is the paper's ``c_i - c + (x - y) / (K η)``.
      client_optimizer: Gets the corrected gradients, g - c_i + c.
      server_optimizer: ``optax.sgd(rate)`` is the paper's global step size.
      aggregator: Of the changes of parameters and control, together.
      broadcaster: Of the server's parameters and control, together.
      client_weight: Weighted clients have weighted controls: c is then the weighted mean of them, in expectation.
      metrics_sum: As for `fed_avg`.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`.

    Returns:
      A `StatefulAlgorithm` with a `ScaffoldState`; a client's state is its control c_i, of the parameters' type. A
      client that takes no step keeps it.

    Guarantees: With uniform weights and the mean, c stays the mean of all N clients' controls.

    Raises:
      ValueError: If ``num_clients`` is not positive, or the option another; when initialised, if the model has batch
        statistics.
    """
    if num_clients < 1 or option not in ("I", "II"):
        raise ValueError(f"SCAFFOLD has clients, and options I and II; got {num_clients=}, {option=}. Choose of these.")
    check_amount(**amount)
    model, client_optimizer = no_batch_stats(model, "scaffold"), no_schedule(client_optimizer)
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator
    broadcaster = broadcast() if broadcaster is None else broadcaster
    train = functools.partial(local_train, **amount)

    @jax.jit
    def init(key: jax.Array) -> ScaffoldState:
        key_params, key_rounds = jax.random.split(key)
        params = model.init(key_params)
        both = (params, optax.tree.zeros_like(params))
        inner = server_optimizer.init(params), aggregator.init(both), broadcaster.init(both)
        return ScaffoldState(*both, *inner, key_rounds, jnp.int32(0))

    def client_update(sent: Any, data: Any, own: PyTree, key: jax.Array) -> tuple[ClientUpdate, PyTree]:
        params, control = sent
        corrected = optax.chain(averaged(), shift(optax.tree.sub(control, own)), client_optimizer)
        trained = train(model, params, data, key, optimizer=corrected)
        new = trained.optimizer[0].mean if option == "II" else local_gradient(model, params, data, key).gradient
        update = reported((params, own), trained._replace(params=(trained.params, new)), client_weight)
        return update, jax.tree.map(lambda new, own: jnp.where(update.weight > 0, new, own), new, own)

    def server_update(
        state: ScaffoldState, inner: tuple[Any, Any], delta: Any, num_sampled: jax.Array
    ) -> ScaffoldState:
        updates, optimizer = server_optimizer.update(delta[0], state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        share = num_sampled / num_clients
        control = jax.tree.map(lambda c, d: c - (share * d).astype(c.dtype), state.control, delta[1])
        return ScaffoldState(params, control, optimizer, *inner, state.key, state.round + 1)

    @federated_computation
    def next(state: Any, data: Any, controls: Any) -> Any:
        keys = federated_map(round_keys, state.key, state.round)
        server = federated_zip((state.params, state.control))
        broadcaster_state, sent = broadcaster.next(keys.broadcaster, state.broadcaster, server)
        update, controls = federated_map(client_update, sent, data, controls, federated_keys(keys.clients))
        aggregator_state, delta, measured = aggregator.next(
            keys.aggregator, state.aggregator, update.delta, update.weight
        )
        sums = metrics_sum(update.metrics)
        inner = (aggregator_state, broadcaster_state)
        after = federated_map(server_update, state, inner, delta, sums["num_clients"])
        metrics = federated_map(round_metrics, sums, measured)
        return keeps_type("an algorithm", state, after), metrics, controls

    return StatefulAlgorithm(init, lambda state: optax.tree.zeros_like(state.params), next)
