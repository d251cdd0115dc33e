"""One round of clients that keep something for themselves, composed like one of clients that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator, Algorithm, StatefulAlgorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.values import Sequence
from fedjx.training.client import ClientUpdate, examples
from fedjx.training.compose import compose

PyTree = Any

# Folded into keys that have other uses: `jax.random.split` in two is folding in 0 and 1, and rounds count from 0.
OWN = 2  # Into a client's key of the round, for what it trains besides the shared parameters.
FIRST = 2**32 - 1  # Into the key of the run, for the clients' first states.


class _Step(NamedTuple):
    update: ClientUpdate
    state: PyTree


def compose_stateful(
    client_update: Callable[[PyTree, Sequence, PyTree, jax.Array], tuple[ClientUpdate, PyTree]],
    server_update: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    *,
    init: Callable[[jax.Array], PyTree],
    init_client: Callable[[Any], PyTree],
    broadcaster: Broadcaster | None = None,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
) -> StatefulAlgorithm:
    """Makes an algorithm of a client update that also takes and returns the client's own state.

    Args:
      client_update: A pure function of one client, ``(params, data, client state, key) -> (ClientUpdate, client
        state)``; the update is `checked`.
      server_update: As for `compose`.
      aggregator: As for `compose`.
      init: As for `compose`.
      init_client: ``(server state) -> client state`` of a client that was never here.
      broadcaster: As for `compose`.
      metrics_sum: As for `compose`.

    Returns:
      A `StatefulAlgorithm`, with the metrics of `compose` and the count ``num_non_finite_states``.

    Guarantees: A client keeps the state it came with if it has no examples, if its update weighs nothing, as one that
    is not finite does, or if its new state is not finite, which is counted.

    >>> from fedjx.algorithms import ClientUpdate
    >>> def client_update(center, data, visits, key):
    ...     return ClientUpdate(center - 1.0, jnp.float32(1), {}), visits + 1
    >>> init, init_client, next = compose_stateful(
    ...     client_update, init=lambda key: jnp.float32(0), init_client=lambda state: jnp.int32(0)
    ... )
    >>> data = fedjx.data.FederatedData.from_clients([{"x": np.float32([4])}, {"x": np.float32([8])}])
    >>> states = fedjx.Clients.of(np.int32([5, 0]))
    >>> state, _, states = next(init(jax.random.key(0)), fedjx.data.cohort(data, [0, 1], batch_size=1), states)
    >>> float(state.params), states.value.tolist()
    (1.0, [6, 1])
    """

    def step(params: PyTree, data: Sequence, own: PyTree, key: jax.Array) -> _Step:
        update, new = client_update(params, data, own, key)
        finite = _all_finite(new)
        arrives = jnp.any(examples(data).index >= 0) & (update.weight > 0)
        metrics = {**update.metrics, "num_non_finite_states": (arrives & ~finite).astype(jnp.int32)}
        kept = jax.tree.map(lambda after, before: jnp.where(arrives & finite, after, before), new, own)
        return _Step(update._replace(metrics=metrics), kept)

    def composed(updates: Callable[..., Any]) -> Algorithm:
        return compose(updates, server_update, aggregator, init=init, broadcaster=broadcaster, metrics_sum=metrics_sum)

    @federated_computation
    def next(state: Any, data: Any, states: Any) -> Any:
        steps = []

        @federated_computation
        def updates(params: Any, data: Any, key: Any) -> Any:
            steps.append(federated_map(step, params, data, states, key))
            return steps[0].update

        after, metrics = composed(updates).next(state, data)
        return after, metrics, steps[0].state

    return StatefulAlgorithm(composed(client_update).init, init_client, next)


def _all_finite(tree: PyTree) -> jax.Array:
    inexact = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.array(True), *(jnp.all(jnp.isfinite(x)) for x in inexact)]))
