"""Clients that fail: that are lost, get done with a part of their work, or return something that is no number.

The systems heterogeneity of Li et al., "Federated Optimization in Heterogeneous Networks" (arXiv 1812.06127, section
5.2: stragglers do a part of their work, uniformly drawn), and the drop-outs of Bonawitz et al., "Towards Federated
Learning at Scale" (arXiv 1902.01046). Who reports in time is for the sampler: `fedjx.data.over_select`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjx.core.execution.computation import Computation
from fedjx.core.language.values import Sequence
from fedjx.training.client import ClientUpdate, checked

PyTree = Any

# The key's stream of fates, so that clients that do not fail draw what they would draw without failures.
_FATE = 0xFA17


class Failures(NamedTuple):
    """The probabilities with which a client fails in a round; it fails in one way or in none.

    Attributes:
      dropped: It is lost before it reports.
      non_finite: It reports a delta of NaN.
      partial: It reports after a part of its steps, drawn uniformly from (0, 1].
    """

    dropped: float = 0.0
    non_finite: float = 0.0
    partial: float = 0.0


class Fate(NamedTuple):
    """What happens to a client: bool ``[]`` each, and ``completed``, float32 ``[]``, the part of its steps."""

    dropped: jax.Array
    non_finite: jax.Array
    partial: jax.Array
    completed: jax.Array


def fate(failures: Failures, key: jax.Array) -> Fate:
    """Draws what happens to a client in a round from its key."""
    kind, part = jax.random.uniform(jax.random.fold_in(key, _FATE), (2,))
    first, second, third = failures.dropped, failures.dropped + failures.non_finite, sum(failures)
    partial = (second <= kind) & (kind < third)
    return Fate(kind < first, (first <= kind) & (kind < second), partial, jnp.where(partial, 1 - part, 1.0))


def with_failures(client_update: Callable[..., ClientUpdate], failures: Failures) -> Callable[..., ClientUpdate]:
    """Lets clients fail at random, as a function of their key: of the run's key, the round and the client's id.

    It is what ``failures=`` of `compose` and of the methods made by it is for. Methods with a pass more, or with
    client states (`scaffold`, `mime`, `fed_lin`, those of `compose_stateful`), have clients that fail by the sampler.

    Args:
      client_update: ``(params, data, key, ...) -> ClientUpdate``, as of `local_update`, for `compose`. For partial
        failures it takes ``completed`` as `local_train` does, and weighs what was done.
      failures: How often.

    Returns:
      A client update with the counts ``num_dropped_clients`` and ``num_partial_clients`` among its metrics; those of
      non-finite updates are counted with those that came about by themselves. Who is dropped or not finite weighs
      nothing, in metrics too; so the round is the one for which they were never sampled.

    Guarantees: The fates do not depend on the cohort or how it is run. A client that does not fail reports bit by bit
    what it would without failures. A dropped client takes no step, so it costs no time either. A client
    without examples does not fail.

    Raises:
      ValueError: If the probabilities are negative or add up to more than one.
      TypeError: If the client update cannot be left incomplete and should be, or is a computation of all clients.

    >>> from fedjx.algorithms import ClientUpdate, compose
    >>> def client_update(params, data, key):
    ...     delta = fedjx.sequence_reduce(lambda total, batch: total - batch["x"].sum(), params, data)
    ...     return ClientUpdate(delta, jnp.float32(1), {})
    >>> algorithm = compose(with_failures(client_update, Failures(dropped=0.5)), init=lambda key: jnp.float32(0))
    >>> data = fedjx.data.FederatedData.from_clients([{"x": np.float32([3])}] * 8)
    >>> clients = fedjx.data.cohort(data, range(8), batch_size=1)
    >>> state, metrics = algorithm.next(algorithm.init(jax.random.key(0)), clients)
    >>> float(state.params), int(metrics["num_clients"]), int(metrics["num_dropped_clients"])
    (3.0, 3, 5)
    """
    if min(failures) < 0 or sum(failures) > 1:
        raise ValueError(f"probabilities are not negative and add up to at most one; got {failures}. Lower them.")
    if isinstance(client_update, Computation):
        raise TypeError("clients fail one by one; got a computation of all of them. Pass a function of one client.")
    if failures.partial and "completed" not in inspect.signature(client_update).parameters:
        raise TypeError(
            f"a client update that is left incomplete takes completed; got {failures} for one that does not. "
            "Give it the keyword, and hand it to local_train."
        )

    def failing(params: PyTree, data: Sequence, key: jax.Array, *others: Any) -> ClientUpdate:
        drawn = fate(failures, key)
        part = {"completed": drawn.completed} if failures.partial else {}
        remaining = Sequence(data.elements, jnp.where(drawn.dropped, 0, data.length))
        return _failed(client_update(params, remaining, key, *others, **part), drawn, data.length > 0)

    return failing


def _failed(update: ClientUpdate, drawn: Fate, has_examples: jax.Array) -> ClientUpdate:
    """Returns what arrives of an update, and counts the failures."""
    dropped, non_finite, partial = (has_examples & happens for happens in drawn[:3])
    sent = update._replace(delta=jax.tree.map(lambda x: _nan(non_finite, x), update.delta))
    arrived = checked(ClientUpdate(*jax.tree.map(lambda x: jnp.where(dropped, jnp.zeros_like(x), x), tuple(sent))))
    by_itself = sent.metrics.get("num_non_finite_clients", jnp.int32(0))
    counts = {
        "num_non_finite_clients": jnp.maximum(by_itself, arrived.metrics["num_non_finite_clients"]),
        "num_dropped_clients": dropped.astype(jnp.int32),
        "num_partial_clients": partial.astype(jnp.int32),
    }
    return arrived._replace(metrics={**arrived.metrics, **counts})


def _nan(happens: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(happens, jnp.nan, x).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x
