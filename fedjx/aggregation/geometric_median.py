"""The geometric median, by smoothed Weiszfeld steps.

Pillutla et al., "Robust Aggregation for Federated Learning" (arXiv 1912.13445, algorithm 2).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.votes import Vote, measurements, votes
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_broadcast, federated_mean, federated_value
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import as_float, squared_norm
from fedjx.core.language.types import SERVER, Placement


def geometric_median(
    *, num_steps: int = 5, smoothing: float = 1e-6, from_mean: bool = False, weighted: bool = False
) -> Aggregator:
    """Approximates the point of the least sum of distances to the members.

    Survives malicious clients that are fewer than half (of the weight, if weighted), however far off they are: in a
    step, f of n clients move it by at most f / (n - f) of the honest clients' largest distance, which at 0 is a norm.
    Memory is flat in the cohort: each step is a pass over it, in which the clients compute their values again.

    Args:
      num_steps: Weiszfeld steps; the error falls geometrically.
      smoothing: The smallest distance that is divided by.
      from_mean: Whether to begin at the mean, as published, which takes a pass more and lies as far away as attackers
        like, so that many steps may be needed; or at 0, where updates of a model are near.
      weighted: Whether distances are weighted. If not, weights say only who takes part.
    """
    check_integer("[1, inf)", num_steps=num_steps)
    check_number("(0, inf]", smoothing=smoothing)
    reweighted = _Reweighted(smoothing)

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        del key
        vote = votes(value, weight, weighted=weighted)
        median = federated_mean(vote.value, vote.weight) if from_mean else zeros_at(SERVER, vote.value)
        for _ in range(num_steps):
            weights = federated_map(reweighted, vote, federated_broadcast(median))
            median = federated_mean(vote.value, weights)
        return state, median, measurements(vote)

    return Aggregator(lambda member: (), next)


class _Reweighted(NamedTuple):
    smoothing: float

    def __call__(self, vote: Vote, centre: PyTree) -> jax.Array:
        distance = distance_between(vote.value, centre)
        # A distance beyond the range of float32 is a weight of 0.
        return jnp.where(jnp.isfinite(distance), vote.weight / jnp.maximum(self.smoothing, distance), 0.0)


def distance_between(value: PyTree, centre: PyTree) -> jax.Array:
    """Returns the Euclidean distance between two pytrees, ``[]``, wide."""
    return jnp.sqrt(squared_norm(jax.tree.map(lambda v, c: as_float(v) - as_float(c), value, centre)))


def zeros_at(placement: Placement, value: FederatedValue) -> FederatedValue:
    """Places zeros of the members' type."""
    return federated_value(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), value.type.member), placement)
