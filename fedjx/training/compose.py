"""One round, put together of what a client does, how that is aggregated, and what the server does with it.

The generalised federated averaging of Reddi et al., "Adaptive Federated Optimization" (arXiv
2003.00295, algorithm 1), for any client update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster, broadcast
from fedjx.aggregation.mean import mean
from fedjx.core.execution.computation import Computation, federated_computation
from fedjx.core.execution.process import Aggregator, Algorithm, keeps_type
from fedjx.core.language.operators import federated_broadcast, federated_keys, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.models.model import Ratio, finalize_metrics
from fedjx.training.batch_stats import trained_alone
from fedjx.training.client import ClientOptimizer
from fedjx.training.failures import Failures, with_failures

PyTree = Any


class ServerState(NamedTuple):
    """The server's state between rounds.

    Attributes:
      params: The model's parameters.
      optimizer: The server optimizer's state.
      aggregator: The aggregator's state.
      broadcaster: The broadcaster's state.
      key: The random key of the whole run; never changes.
      round: int32 ``[]``; how many rounds are done.
    """

    params: PyTree
    optimizer: PyTree
    aggregator: PyTree
    broadcaster: PyTree
    key: jax.Array
    round: jax.Array


class RoundKeys(NamedTuple):
    """The random keys of one round, a stream for each purpose."""

    broadcaster: jax.Array
    clients: jax.Array
    aggregator: jax.Array


def round_keys(key: jax.Array, round: jax.Array) -> RoundKeys:
    """Draws a round's keys from the key of the run."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(key, round), 3))


def compose(
    client_update: Callable[..., Any],
    server_update: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    *,
    init: Callable[[jax.Array], PyTree],
    broadcaster: Broadcaster | None = None,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    context: Callable[[ServerState], PyTree] | None = None,
    failures: Failures | None = None,
) -> Algorithm[ServerState]:
    """Makes an algorithm of a client update.

    Args:
      client_update: A pure function of one client, ``(params, data, key) -> ClientUpdate``; or a
        `federated_computation` of all of them, ``(params@CLIENTS, data@CLIENTS, key@CLIENTS) -> ClientUpdate@CLIENTS``.
      server_update: Applied to the aggregated delta (initial minus trained parameters) as if it were a gradient;
        ``optax.sgd(1.0)``, which takes what is aggregated off the parameters, if not given. One that takes extra
        arguments (`optax.GradientTransformationExtraArgs`) gets the round's ``metrics`` as well.
        Batch statistics are not its business: they become what is aggregated of the clients'.
      aggregator: The weighted `mean` if not given.
      init: ``(key) -> params``, the first parameters.
      broadcaster: How the parameters are sent; as they are if not given.
      metrics_sum: Adds the clients' metrics up; `fedjx.aggregation.secure.secure_total` lets the server see no more
        than the totals.
      context: What else every client is told, ``(state) -> context``: the round number, a coefficient that the server
        adapts. The client update then takes it, at CLIENTS, as its fourth argument.
      failures: How often clients fail, `with_failures`; the client update is then a function of one client.

    Returns:
      An `Algorithm`. Its metrics are the clients', summed up, ratios divided, and ``aggregation``, the aggregator's
      measurements.

    >>> from fedjx.algorithms import ClientUpdate
    >>> def client_update(center, data, key):  # one step towards each of its numbers
    ...     moved = fedjx.sequence_reduce(lambda c, batch: c + 0.5 * (batch["x"].mean() - c), center, data)
    ...     return ClientUpdate(center - moved, jnp.float32(1), {})
    >>> algorithm = compose(client_update, init=lambda key: jnp.float32(0))
    >>> data = fedjx.data.FederatedData.from_clients([{"x": np.float32([4])}, {"x": np.float32([8, 4])}])
    >>> state = algorithm.init(jax.random.key(0))
    >>> state, _ = algorithm.next(state, fedjx.data.cohort(data, [0, 1], batch_size=1))
    >>> float(state.params)  # the mean of 2 and 4
    3.0
    """
    server_update = trained_alone(optax.sgd(1.0) if server_update is None else server_update)
    aggregator = mean() if aggregator is None else aggregator
    client_update = client_update if failures is None else with_failures(client_update, failures)
    broadcaster = broadcast() if broadcaster is None else broadcaster

    @jax.jit
    def init_state(key: jax.Array) -> ServerState:
        key_params, key_rounds = jax.random.split(key)
        params = init(key_params)
        inner = server_update.init(params), aggregator.init(params), broadcaster.init(params)
        return ServerState(params, *inner, key_rounds, jnp.int32(0))

    def finish(
        state: ServerState, aggregator_state: PyTree, broadcaster_state: PyTree, delta: PyTree, metrics: PyTree
    ) -> ServerState:
        updates, optimizer = server_update.update(delta, state.optimizer, state.params, metrics=metrics)
        params = optax.apply_updates(state.params, updates)
        return ServerState(params, optimizer, aggregator_state, broadcaster_state, state.key, state.round + 1)

    @federated_computation
    def next(state: Any, data: Any) -> Any:
        keys = federated_map(round_keys, state.key, state.round)
        broadcaster_state, params = broadcaster.next(keys.broadcaster, state.broadcaster, state.params)
        told = [] if context is None else [federated_broadcast(federated_map(context, state))]
        update = each_client(client_update, params, data, federated_keys(keys.clients), *told)
        aggregator_state, delta, measured = aggregator.next(
            keys.aggregator, state.aggregator, update.delta, update.weight
        )
        aggregator_state = keeps_type("an aggregator", state.aggregator, aggregator_state)
        metrics = federated_map(round_metrics, metrics_sum(update.metrics), measured)
        after = federated_map(finish, state, aggregator_state, broadcaster_state, delta, metrics)
        return keeps_type("an algorithm", state, after), metrics

    return Algorithm(init_state, next)


def round_context(client_optimizer: ClientOptimizer) -> Callable[[ServerState], jax.Array] | None:
    """Returns what a client optimizer needs as context: the number of the round, if it is a function of it."""
    return (lambda state: state.round) if callable(client_optimizer) else None


class Scaled(NamedTuple):
    """The state of `scaled`: the last round's factor, float32 ``[]``, 1 at first."""

    scale: jax.Array


def scaled(scale: Callable[[PyTree, dict[str, Any]], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """Multiplies the aggregated delta by ``(delta, metrics) -> scale``; to be chained before a server's optimizer."""

    def update(updates: PyTree, state: Any, params: PyTree = None, metrics: Any = None, **_: Any) -> Any:
        del state, params
        factor = scale(updates, metrics)
        return jax.tree.map(lambda d: factor * d, updates), Scaled(factor)

    return optax.GradientTransformationExtraArgs(lambda params: Scaled(jnp.float32(1)), update)


def each_client(client_update: Callable[..., Any], *values: FederatedValue) -> FederatedValue:
    """Maps a function of one client, or calls a computation of all of them."""
    return client_update(*values) if isinstance(client_update, Computation) else federated_map(client_update, *values)


def round_metrics(sums: dict[str, Any], measured: PyTree) -> dict[str, Any]:
    """Divides the summed ratios, passes on the counts, and adds the aggregator's measurements."""
    ratios = {name: x for name, x in sums.items() if isinstance(x, Ratio)}
    counts = {name: x for name, x in sums.items() if name not in ratios}
    return {**finalize_metrics(ratios), **counts, "aggregation": measured}
