"""The geometric median, by smoothed Weiszfeld steps.

Pillutla et al., "Robust Aggregation for Federated Learning" (arXiv 1912.13445, algorithm 2).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.norms import euclidean_norm
from fedjx.aggregation.votes import Vote, measurements, votes
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_broadcast, federated_collect, federated_mean, federated_value
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import as_float
from fedjx.core.language.types import SERVER, Placement
from fedjx.core.language.values import Sequence


def geometric_median(
    *, num_steps: int = 5, smoothing: float = 0.1, from_mean: bool = False, weighted: bool = False
) -> Aggregator:
    """Approximates the point of the least sum of distances to the members.

    Survives malicious clients that are fewer than half (of the weight, if weighted), wherever they are: in a step, f of
    n clients move it by at most f / (n - f) of the honest clients' largest distance, which at 0 is a norm. Memory is a
    number for each client of the cohort: each step is a pass over it, in which the clients compute their values again,
    and one more pass is for the first distances.

    Args:
      num_steps: Weiszfeld steps; the error falls geometrically.
      smoothing: The smallest distance that is divided by, in parts of the members' median distance at the step before.
        Members that are nearer pull in proportion to their distance, so that one at the start does not hold it there.
        The published one is a length, 1e-6, of which nobody knows whether it is much.
      from_mean: Whether to begin at the mean, as published, which takes a pass more and lies as far away as attackers
        like, so that many steps may be needed; or at 0, where updates of a model are near.
      weighted: Whether distances are weighted. If not, weights say only who takes part.
    """
    check_integer("[1, inf)", num_steps=num_steps)
    check_number("(0, 1]", "Pass 0.1.", smoothing=smoothing)
    reweighted = _Reweighted(smoothing)

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        del key
        vote = votes(value, weight, weighted=weighted)
        median = federated_mean(vote.value, vote.weight) if from_mean else zeros_at(SERVER, vote.value)
        spread = _spread(vote, median)
        for step in range(num_steps):
            weights = federated_map(reweighted, vote, federated_broadcast((median, spread)))
            # Distances at the step before cost no pass of their own.
            spread = _spread(vote, median) if step else spread
            median = federated_mean(vote.value, weights)
        return state, median, measurements(vote)

    return Aggregator(lambda member: (), next)


def _spread(vote: FederatedValue, centre: FederatedValue) -> FederatedValue:
    """Returns the weighted median of the members' distances, which a minority cannot make large or small."""
    distances = federated_map(_weighted_distance, vote, federated_broadcast(centre))
    return federated_map(_weighted_median, federated_collect(distances))


def _weighted_distance(vote: Vote, centre: PyTree) -> tuple[jax.Array, jax.Array]:
    return distance_between(vote.value, centre), vote.weight


def _weighted_median(members: Sequence) -> jax.Array:
    """Returns the least distance up to which half of the weight lies."""
    distance, weight = members.elements
    weight = jnp.where(members.mask, weight, 0.0)
    order = jnp.argsort(jnp.where(weight > 0, distance, jnp.inf))
    upto = jnp.cumsum(weight[order])
    return distance[order][jnp.argmax(upto >= upto[-1] / 2)]


class _Reweighted(NamedTuple):
    smoothing: float

    def __call__(self, vote: Vote, at: tuple[PyTree, jax.Array]) -> jax.Array:
        centre, spread = at
        distance, least = distance_between(vote.value, centre), self.smoothing * spread
        # A number in [0, 1], of which only the proportions count; where half of the members coincide, they alone.
        share = jnp.where(distance <= least, 1.0, least / jnp.where(distance > 0, distance, 1.0))
        # A distance beyond the range of float32 is a weight of 0.
        return jnp.where(jnp.isfinite(distance), vote.weight * share, 0.0)


def distance_between(value: PyTree, centre: PyTree) -> jax.Array:
    """Returns the Euclidean distance between two pytrees, ``[]``, wide."""
    return euclidean_norm(jax.tree.map(lambda v, c: as_float(v) - as_float(c), value, centre))


def zeros_at(placement: Placement, value: FederatedValue) -> FederatedValue:
    """Places zeros of the members' type."""
    return federated_value(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), value.type.member), placement)
