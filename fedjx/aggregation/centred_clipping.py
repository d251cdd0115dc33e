"""Centred clipping, and norm bounding, which is centred clipping around 0.

Karimireddy et al., "Learning from History for Byzantine Robust Optimization" (arXiv 2012.10333, equation 4); Sun et
al., "Can You Really Backdoor Federated Learning?" (arXiv 1911.07963, section 4).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.geometric_median import distance_between, zeros_at
from fedjx.aggregation.votes import Vote, measurements, votes
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_broadcast, federated_mean, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.types import CLIENTS


def centred_clipping(*, bound: float, num_steps: int = 1, weighted: bool = False) -> Aggregator:
    """Moves the previous aggregate by the mean of the members' differences from it, each clipped.

    ``v <- v + mean(clip(x - v, bound))``, from the aggregate of the last round that had clients, 0 in the first. A
    round in which no client takes part keeps v for the next one, and its result is 0. One client moves a
    step by at most ``bound`` over the number of clients; it is proven to converge with up to a tenth of them
    malicious, and in practice survives fewer than half. Memory is flat in the cohort: each step is a pass over it, in
    which the clients compute their values again.

    Args:
      bound: Largest norm of a difference.
      num_steps: Steps in a round.
      weighted: Whether to take the weighted mean. If not, weights say only who takes part.
    """
    _check(bound)
    check_integer("[1, inf)", num_steps=num_steps)
    clipped = _Clipped(bound)

    def init(member: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.result_type(x)), member)

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        del key
        vote = votes(value, weight, weighted=weighted)
        centre = state
        for _ in range(num_steps):
            moves = federated_map(clipped, vote, federated_broadcast(centre))
            centre = federated_map(_add, centre, federated_mean(moves, vote.weight))
        anyone = federated_map(lambda weight: weight > 0, federated_sum(vote.weight))
        return centre, federated_map(_where, anyone, centre), measurements(vote)

    return Aggregator(init, next)


def norm_bounding(*, bound: float, weighted: bool = False) -> Aggregator:
    """Averages the members, each shortened to a norm of at most ``bound``, in one pass and flat memory.

    One client of n moves the result by at most ``bound / n`` (its share of the weight, if weighted). States no
    fraction: f malicious clients move every round by ``f * bound / n``, all in one direction if they like.

    Args:
      bound: Largest norm.
      weighted: Whether to take the weighted mean. If not, weights say only who takes part.
    """
    _check(bound)
    clipped = _Clipped(bound)

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        del key
        vote = votes(value, weight, weighted=weighted)
        moves = federated_map(clipped, vote, zeros_at(CLIENTS, vote.value))
        return state, federated_mean(moves, vote.weight), measurements(vote)

    def bounded(key: PyTree, state: PyTree, value: PyTree, weight: PyTree) -> tuple[FederatedValue, FederatedValue]:
        del key, state
        vote = votes(value, weight, weighted=weighted)
        return federated_map(clipped, vote, zeros_at(CLIENTS, vote.value)), vote.weight

    return Aggregator(lambda member: (), next, bounded)


class _Clipped(NamedTuple):
    bound: float

    def __call__(self, vote: Vote, centre: PyTree) -> PyTree:
        distance = distance_between(vote.value, centre)
        scale = jnp.minimum(1.0, self.bound / jnp.maximum(distance, jnp.finfo(jnp.float32).tiny))
        # What is beyond the range of float32 has no direction either.
        move = lambda x, c: jnp.where(jnp.isfinite(distance), (x - c) * scale, 0).astype(x.dtype)  # noqa: E731
        return jax.tree.map(move, vote.value, centre)


def _add(centre: PyTree, move: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, centre, move)


def _where(anyone: jax.Array, centre: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.where(anyone, x, jnp.zeros_like(x)), centre)


def _check(bound: float) -> None:
    check_number("(0, inf]", "Take about the norm of an honest update.", bound=bound)
