"""The start of k-means++: points that are far from one another.

Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding" (2007, §2.2), a pass over the clients a centre.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.algorithms.kmeans import squared_distances
from fedjx.algorithms.sufficient_statistics import points
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_integer
from fedjx.core.language.operators import federated_broadcast, federated_keys, federated_reduce, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.sequence import sequence_reduce
from fedjx.core.language.values import MASK, Sequence
from fedjx.models.flax_models import feature_x
from fedjx.models.model import Batch
from fedjx.training.client import as_batches
from fedjx.training.round import round_keys


class StartState(NamedTuple):
    """Centres ``[K, d]``, of which the first ``round`` are chosen, and the random key of the run."""

    params: jax.Array
    key: jax.Array
    round: jax.Array


class Candidate(NamedTuple):
    """A point ``[d]`` and its lot: the highest wins; that of no point is minus infinity."""

    point: jax.Array
    lot: jax.Array


class Drawn(NamedTuple):
    """What a client draws, and how many of its points are not finite, so that they could not be drawn."""

    best: Candidate
    num_non_finite_points: jax.Array


def kmeans_start(
    num_clusters: int, *, num_features: int, inputs: Callable[[Batch], jax.Array] = feature_x
) -> Algorithm[StartState]:
    """Builds the start of k-means++: a centre a round, a point drawn by its squared distance to those before.

    A client draws one of its points, and the server one of the clients'. Drawing the highest of Gumbel lots raised by
    the logarithms of weights draws in proportion to the weights, among all points at once.

    Args:
      num_clusters: Number of centres K; run so many rounds in which there are points.
      num_features: Size d of a point.
      inputs: As for `kmeans`.

    Returns:
      An `Algorithm`; ``state.params`` are the centres, ``[K, d]``, those to come 0. The server sees a point a client.
      Its metric is ``num_non_finite_points``.

    Guarantees: A centre is a finite point of a client. A round in which there is none changes nothing.

    Raises:
      ValueError: If there is no cluster.
    """
    check_integer("[1, inf)", num_clusters=num_clusters)

    def init(key: jax.Array) -> StartState:
        return StartState(jnp.zeros((num_clusters, num_features)), key, jnp.int32(0))

    def draw(state: tuple[jax.Array, jax.Array], data: Sequence, key: jax.Array) -> Drawn:
        centers, round = state
        chosen = jnp.arange(num_clusters) < round

        def highest(carry: tuple[Drawn, jax.Array], batch: Batch) -> tuple[Drawn, jax.Array]:
            (best, num_non_finite), t = carry
            x = points(inputs(batch), batch[MASK], centers.dtype)
            finite = jnp.isfinite(x).all(axis=1)
            distances = jnp.where(chosen, squared_distances(x, centers), jnp.inf).min(axis=1)
            # The least positive weight lets a point be drawn where all points are centres.
            limits = jnp.finfo(jnp.float32)
            weights = jnp.where(round > 0, jnp.clip(distances, limits.tiny, limits.max), 1.0)
            lots = jnp.where(batch[MASK] & finite, draw_lots(jax.random.fold_in(key, t), weights), -jnp.inf)
            drawn = Candidate(x[lots.argmax()], lots.max())
            # Padding is 0, which is finite.
            return Drawn(higher(best, drawn), num_non_finite + jnp.sum(~finite, dtype=jnp.int32)), t + 1

        batches = as_batches(data)
        start = Drawn(nobody(), jnp.int32(0)), jnp.int32(0)
        return sequence_reduce(highest, start, Sequence(batches, data.length))[0]

    def nobody() -> Candidate:
        return Candidate(jnp.zeros(num_features), jnp.full((), -jnp.inf))

    def add(state: StartState, drawn: Candidate) -> StartState:
        is_new = (jnp.arange(num_clusters) == state.round) & (drawn.lot > -jnp.inf)
        params = jnp.where(is_new[:, None], drawn.point[None], state.params)
        return StartState(params, state.key, state.round + is_new.any())

    @federated_computation
    def next(state: FederatedValue, data: FederatedValue) -> tuple[FederatedValue, dict[str, FederatedValue]]:
        keys = federated_map(round_keys, state.key, state.round)
        sent = federated_broadcast((state.params, state.round))
        drawn = federated_map(draw, sent, data, federated_keys(keys.clients))
        best = federated_reduce(drawn.best, nobody(), higher)
        metrics = {"num_non_finite_points": federated_sum(drawn.num_non_finite_points)}
        return federated_map(add, state, best), metrics

    return Algorithm(init, next)


def draw_lots(key: jax.Array, weights: jax.Array) -> jax.Array:
    """Draws a lot for each positive weight ``[n]``: the highest of all is one's with a probability as its weight.

    They are of twice 23 random bits: those of one float are at most 16.6, so that of ten million the highest are equal.
    """
    return jnp.log(weights) + jax.random.gumbel(key, weights.shape, jnp.float32, mode="high")


def higher(a: Candidate, b: Candidate) -> Candidate:
    """Returns the candidate with the higher lot."""
    return jax.tree.map(lambda x, y: jnp.where(a.lot >= b.lot, x, y), a, b)
