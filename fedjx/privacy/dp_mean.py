"""Means with noise: clipped per client, added up, made noisy once at the server, divided by an expected number.

McMahan et al., "Learning Differentially Private Recurrent Language Models" (arXiv 1710.06963, the estimator with a
fixed denominator of section 2.3), and with an adaptive clip Andrew et al., "Differentially Private Learning with
Adaptive Clipping" (arXiv 1905.03871, algorithm 1).

Floating-point noise simulates what a mechanism does to learning. It is no defence of real data against who sees its
last bits (Mironov, "On Significance of the Least Significant Bits", CCS 2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.norms import euclidean_norm, follow_quantile, joint_norm, within_norm
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.trees import number_dtype
from fedjx.privacy.events import Event, Independent, Laplacian
from fedjx.privacy.noise import Noise, independent
from fedjx.privacy.query import Query, private_sum

Number = float | jax.Array


class _Record(NamedTuple):
    """What a client adds: its value, clipped, plus or minus a half for the clip's quantile, and counts."""

    value: PyTree
    vote: jax.Array
    clients: jax.Array
    clipped: jax.Array
    non_finite: jax.Array


class _Mean(NamedTuple):
    """What the means with a fixed and an adaptive clip share."""

    expected_clients: float
    noise_clients: float
    max_weight: float | None
    norm: Callable[[PyTree], jax.Array] = euclidean_norm
    unit_stddev: float = 1.0  # of noise whose multiplier and clip are 1


def dp_mean(
    *,
    clip: float,
    noise_multiplier: float,
    expected_clients: float,
    max_weight: float | None = None,
    noise: Noise | None = None,
    noise_clients: float | None = None,
) -> Aggregator:
    """Adds up the clients' values, each clipped, with noise, and divides by a number that no client changes.

    Args:
      clip: The most that the joint L2 norm of a client's value may be, or the L1 norm with `laplace` noise; more is
        scaled to it. Infinity, with ``noise_multiplier=0``, clips nothing.
      noise_multiplier: Standard deviation of the noise on the sum, in clips; of `laplace` noise, its scale.
      expected_clients: The number to divide by: the *expected* size of a cohort, for the real one is not public; with
        ``max_weight`` the expected sum of shares.
      max_weight: Clients count once each, whatever they weigh, if this is not given; else in proportion to their
        weights, up to this: a client's share is ``min(weight, max_weight) / max_weight``.
      noise: Its distribution, and how it hangs together over the rounds: `independent` if not given; `tree` or
        `matrix` for DP-FTRL; `laplace`.
      noise_clients: Simulates the noise of larger cohorts, of so many expected clients, with the few that are here: the
        noise shrinks by ``expected_clients / noise_clients``. The guarantee is then that of a run which nobody has run;
        it is measured, and `account` asks for that run's population.

    Returns:
      An `Aggregator` with the state of the noise, and an ``event`` for `account`. A client whose norm is not finite
      adds nothing. It measures ``clip``, ``noise_stddev``, of the noise on an element of the result, and
      ``noise_clients``; and in ``not_private`` what is exact and outside of any guarantee: ``clipped_fraction``,
      ``num_non_finite``, and with noise ``signal_to_noise``, the norm of the exact mean over that of independent noise.

    Guarantees: the noise is drawn once, at the server, from the round's key, so it does not depend on chunks, lanes,
    devices or hosts.

    Raises:
      ValueError: If a number is out of range.

    >>> private = dp_mean(clip=1.0, noise_multiplier=0.5, expected_clients=2)
    >>> value, weight = fedjx.Clients.of(np.float32([[3.0, 4.0], [0.0, 0.2]])), fedjx.Clients.of(np.ones(2))
    >>> _, result, measured = private.next(jax.random.key(0), private.init(jnp.zeros(2)), value, weight)
    >>> result.shape, float(measured["noise_stddev"]), float(measured["not_private"]["clipped_fraction"])
    ((2,), 0.25, 0.5)
    """
    check_number("(0, inf]", clip=clip)
    mean = _mean(noise_multiplier, expected_clients, noise_clients, max_weight)
    noise = independent() if noise is None else noise
    if isinstance(noise.kind, Laplacian):
        mean = mean._replace(norm=lambda value: joint_norm(value, 1), unit_stddev=math.sqrt(2))
    if math.isinf(clip) and noise_multiplier > 0:
        raise ValueError(
            f"noise is in clips; got {clip=} and {noise_multiplier=}. Choose a finite clip, such as the median norm."
        )

    def result(key: jax.Array, state: PyTree, total: _Record, member: PyTree) -> tuple[PyTree, PyTree, Metrics]:
        del member
        state, drawn = noise.next(key, state, total.value)
        return state, *_noisy(mean, total, drawn, noise_multiplier, clip)

    def preprocess(parameters: PyTree, value: PyTree, weight: jax.Array) -> _Record:
        del parameters
        return _record(mean, clip, value, weight)

    event = Event(noise_multiplier, noise.kind, clip, noise_clients)
    return private_sum(Query(noise.init, lambda state: (), preprocess, result, event))


class AdaptiveClip(NamedTuple):
    """The state of a mean with an adaptive clip.

    Attributes:
      clip: ``[]``; for the next round.
    """

    clip: jax.Array


def dp_mean_adaptive(
    *,
    noise_multiplier: float,
    expected_clients: float,
    max_weight: float | None = None,
    quantile: float = 0.5,
    initial_clip: float = 0.1,
    learning_rate: float = 0.2,
    count_stddev: float | None = None,
    noise_clients: float | None = None,
) -> Aggregator:
    """Averages as `dp_mean`, with a clip that follows a quantile of the clients' norms, privately.

    A round spends a part of its privacy on a noisy count of the clients whose norm is at most the clip C, which then
    becomes ``C exp(-learning_rate (fraction - quantile))``. The noise on the values is larger for it, so that both
    together have the ``noise_multiplier`` (arXiv 1905.03871, theorem 1).

    Args:
      noise_multiplier: Of values and count together.
      expected_clients: As for `dp_mean`.
      max_weight: As for `dp_mean`; the count has every client once.
      quantile: The fraction of clients not to be clipped.
      initial_clip: The clip of the first round.
      learning_rate: How fast it moves.
      count_stddev: Of the noise on the count of ``noise_clients``; a twentieth of these if not given.
      noise_clients: As for `dp_mean`.

    Returns:
      An `Aggregator` with an `AdaptiveClip`, measured as `dp_mean`, and ``values_multiplier``.

    Raises:
      ValueError: If the count alone takes more privacy than there is: ``noise_multiplier >= 2 count_stddev``.
    """
    check_number("(0, inf)", initial_clip=initial_clip, learning_rate=learning_rate)
    check_number("[0, 1]", quantile=quantile)
    mean, noise = _mean(noise_multiplier, expected_clients, noise_clients, max_weight), independent()
    stddev = mean.noise_clients / 20 if count_stddev is None else count_stddev
    of_values = values_multiplier(noise_multiplier, stddev)
    of_count = stddev * expected_clients / mean.noise_clients if noise_multiplier > 0 else 0.0

    def init(member: PyTree) -> AdaptiveClip:
        return AdaptiveClip(jnp.asarray(initial_clip, number_dtype(member)))

    def result(
        key: jax.Array, state: AdaptiveClip, total: _Record, member: PyTree
    ) -> tuple[AdaptiveClip, PyTree, Metrics]:
        del member
        key_values, key_count = jax.random.split(key)
        _, drawn = noise.next(key_values, (), total.value)
        value, measured = _noisy(mean, total, drawn, of_values, state.clip)
        noisy = total.vote + of_count * jax.random.normal(key_count, dtype=jnp.float32).astype(state.clip.dtype)
        fraction = jnp.clip(noisy / expected_clients + 0.5, 0, 1)
        clip = follow_quantile(state.clip, fraction, quantile=quantile, learning_rate=learning_rate)
        return AdaptiveClip(clip), value, measured | {"values_multiplier": jnp.float32(of_values)}

    def preprocess(clip: jax.Array, value: PyTree, weight: jax.Array) -> _Record:
        return _record(mean, clip, value, weight)

    event = Event(noise_multiplier, Independent(), None, noise_clients)
    return private_sum(Query(init, lambda state: state.clip, preprocess, result, event))


def values_multiplier(noise_multiplier: float, count_stddev: float) -> float:
    """Returns the noise multiplier of values beside a noisy count, so that both together have the one given.

    The count adds one half for a client or takes it away: its sensitivity is 1/2.

    >>> round(values_multiplier(1.0, 5.0), 6)
    1.005038
    """
    check_number("(0, inf)", count_stddev=count_stddev)
    if noise_multiplier >= 2 * count_stddev:
        raise ValueError(
            f"the noisy count of an adaptive clip needs noise_multiplier < 2 * count_stddev; got {noise_multiplier=} "
            f"and {count_stddev=}. Take larger cohorts, a larger count_stddev, or a fixed clip."
        )
    return (noise_multiplier**-2 - (2 * count_stddev) ** -2) ** -0.5 if noise_multiplier > 0 else 0.0


def _mean(
    noise_multiplier: float, expected_clients: float, noise_clients: float | None, max_weight: float | None
) -> _Mean:
    check_number("[0, inf)", noise_multiplier=noise_multiplier)
    advice = "Pass probability * num_clients of the sampler."
    check_number("(0, inf)", advice, expected_clients=expected_clients)
    if max_weight is not None:
        check_number("(0, inf)", "Pass the largest weight.", max_weight=max_weight)
    noise_clients = expected_clients if noise_clients is None else noise_clients
    if not noise_clients >= expected_clients:
        raise ValueError(
            f"noise is simulated for larger cohorts; got {noise_clients=} and {expected_clients=}. Leave it out."
        )
    check_number("(0, inf)", noise_clients=noise_clients)
    return _Mean(expected_clients, noise_clients, max_weight)


def _record(mean: _Mean, clip: Number, value: PyTree, weight: jax.Array) -> _Record:
    """Clips one client's value; one of no finite norm, or without weight, adds nothing at all."""
    clipped, norm = within_norm(value, clip, mean.norm)
    counts = jnp.isfinite(norm) & (weight > 0)
    share = 1.0 if mean.max_weight is None else jnp.minimum(weight / mean.max_weight, 1.0)
    clipped = jax.tree.map(lambda v: jnp.where(counts, v * share, 0), clipped)
    vote = jnp.where(counts, (norm <= clip).astype(norm.dtype) - 0.5, 0)
    return _Record(clipped, vote, counts, counts & (norm > clip), ~jnp.isfinite(norm) & (weight > 0))


def _noisy(mean: _Mean, total: _Record, drawn: PyTree, noise_multiplier: float, clip: Number) -> tuple[PyTree, Metrics]:
    """Makes the mean of a sum, with noise that was drawn for a multiplier and a clip of 1, and measures both."""
    scale = noise_multiplier * clip / mean.noise_clients if noise_multiplier else 0.0
    stddev = mean.unit_stddev * scale
    exact = jax.tree.map(lambda x: x / mean.expected_clients, total.value)
    result = jax.tree.map(lambda x, n: x + scale * n, exact, drawn) if noise_multiplier else exact
    size = sum(x.size for x in jax.tree.leaves(exact))
    not_private = {
        "clipped_fraction": total.clipped / jnp.maximum(total.clients, 1).astype(jnp.float32),
        "num_non_finite": total.non_finite,
    }
    if noise_multiplier:
        not_private["signal_to_noise"] = euclidean_norm(exact) / (stddev * math.sqrt(size))
    measured = {"clip": clip, "noise_stddev": stddev, "noise_clients": mean.noise_clients, "not_private": not_private}
    return result, jax.tree.map(lambda x: jnp.asarray(x, number_dtype(exact)), measured)
