"""Clients that fail: that are lost, get done with a part of their work, or return something that is no number.

The systems heterogeneity of Li et al., "Federated Optimization in Heterogeneous Networks" (arXiv 1812.06127, section
5.2: stragglers do a part of their work, uniformly drawn), and the drop-outs of Bonawitz et al., "Towards Federated
Learning at Scale" (arXiv 1902.01046). Who reports in time is for the sampler: `fedjx.data.over_select`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from fedjx.core.language.names import PyTree
from fedjx.core.language.values import Sequence
from fedjx.training.client import ClientUpdate, zeroed_if_non_finite

# The key's stream of fates, so that clients that do not fail draw what they would draw without failures.
_FATE = 0xFA17


class Failures(NamedTuple):
    """The probabilities with which a client fails in a round; it fails in one way or in none.

    What happens is a function of the client's key, that is of the run's key, the round and the client's id.

    Guarantees: The fates do not depend on the cohort or how it is run. A client that does not fail reports bit by bit
    what it would without failures. Who is dropped or not finite weighs nothing, in metrics too, and keeps its state;
    so the round is the one for which it was never sampled. A client without examples does not fail. Metrics count
    ``num_dropped_clients`` and ``num_partial_clients``; ``num_non_finite_clients`` are those by themselves as well.

    Attributes:
      dropped: It is lost before it reports.
      non_finite: It reports a delta of NaN.
      partial: It reports after a part of its steps, drawn uniformly from (0, 1].
      forged: ``(id, ClientUpdate) -> ClientUpdate``, no probability: what arrives of a client instead of what it would
        report, in every pass; for Byzantine clients, such as `fedjx.algorithms.attacks.lying`. What is not finite then
        is left out, and whether it takes part is the server's to see, by its weight, not the client's to say.
    """

    dropped: float = 0.0
    non_finite: float = 0.0
    partial: float = 0.0
    forged: Callable[[jax.Array, ClientUpdate], ClientUpdate] | None = None

    @property
    def probabilities(self) -> tuple[float, float, float]:
        """Returns those of failing, in the order of the attributes."""
        return self.dropped, self.non_finite, self.partial


class Fate(NamedTuple):
    """What happens to a client: bool ``[]`` each, and ``completed``, float32 ``[]``, the part of its steps."""

    dropped: jax.Array
    non_finite: jax.Array
    partial: jax.Array
    completed: jax.Array


def fate(failures: Failures, key: jax.Array) -> Fate:
    """Draws what happens to a client in a round from its key."""
    kind, part = jax.random.uniform(jax.random.fold_in(key, _FATE), (2,), jnp.float32)
    first, second, third = failures.dropped, failures.dropped + failures.non_finite, sum(failures.probabilities)
    partial = (second <= kind) & (kind < third)
    return Fate(kind < first, (first <= kind) & (kind < second), partial, jnp.where(partial, 1 - part, 1.0))


def may_happen(probability: float | jax.Array) -> bool:
    """Tells whether a probability is not 0; one that JAX traces may be any."""
    return isinstance(probability, jax.core.Tracer) or bool(probability != 0)


def checked_failures(failures: Failures) -> Failures:
    """Returns the probabilities, and refuses those that are none.

    Raises:
      ValueError: If they are negative or add up to more than one.
    """
    known = [p for p in failures.probabilities if not isinstance(p, jax.core.Tracer)]
    if min(known, default=0) < 0 or sum(known) > 1:
        raise ValueError(f"probabilities are not negative and add up to at most one; got {failures}. Lower them.")
    return failures


def remaining(data: PyTree, happens: Fate) -> PyTree:
    """Returns the data of a client: none of a dropped one, which so takes no step, and no time either."""
    if not isinstance(data, Sequence):
        return data
    return Sequence(data.elements, jnp.where(happens.dropped, 0, data.length))


def failed(update: ClientUpdate, happens: Fate, has_examples: jax.Array) -> ClientUpdate:
    """Returns what arrives of an update, and counts the failures."""
    dropped, non_finite, partial = (has_examples & kind for kind in happens[:3])
    sent = update._replace(delta=jax.tree.map(lambda x: _nan(non_finite, x), update.delta))
    arrived = zeroed_if_non_finite(
        ClientUpdate(*jax.tree.map(lambda x: jnp.where(dropped, jnp.zeros_like(x), x), tuple(sent)))
    )
    by_itself = sent.metrics.get("num_non_finite_clients", jnp.int32(0))
    counts = {
        "num_non_finite_clients": jnp.maximum(by_itself, arrived.metrics["num_non_finite_clients"]),
        "num_dropped_clients": dropped.astype(jnp.int32),
        "num_partial_clients": partial.astype(jnp.int32),
    }
    return arrived._replace(metrics={**arrived.metrics, **counts})


def _nan(happens: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(happens, jnp.nan, x).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x
