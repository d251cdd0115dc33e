"""Local differential privacy: what one client says of its value is private by itself, whoever sees it.

The randomizers of numbers and categories are exact: for any two values no report, or no density of one, is more than
``exp(epsilon)`` times as likely. Their means are unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.norms import within_norm
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.operators import federated_keys, federated_mean, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import as_float, cast_like
from fedjx.privacy.events import Event, Local
from fedjx.privacy.noise import independent


class Randomizer(NamedTuple):
    """How one client reports its value.

    Attributes:
      check: Refuses a value that it is not for, by its shapes and dtypes: ``(member) -> None``, or a TypeError.
      report: ``(key, value) -> report``, numbers whose mean over clients estimates the mean of their values, or of the
        indicators of their categories.
      epsilon: Of a report, for any two values; None for Gaussian noise.
      noise_multiplier: Of Gaussian noise, in the most that a value is bounded to; None for others.
      variance: Of a report of a number, the most for any; of an element of another one, where the client's own value,
        or indicator, is 0.
    """

    check: Callable[[PyTree], None]
    report: Callable[[jax.Array, PyTree], PyTree]
    epsilon: float | None
    noise_multiplier: float | None
    variance: float


def local_mean(randomizer: Randomizer) -> Aggregator:
    """Averages what clients report through a randomizer, each of which counts once, whatever it weighs.

    Who reports is no secret, so that the mean is over those who do.

    Returns:
      An `Aggregator` with an ``event`` for `account`: how clients are drawn makes nothing cheaper, but that somebody
      shuffles the reports may, ``account(..., shuffled=True)``. Its result is float32 ``[]`` of numbers, ``[k]`` of k
      categories, the estimated frequency of each, and of other values their shapes and dtypes. It measures
      ``num_clients`` and ``noise_stddev``, of the noise on an element of the result, by `Randomizer.variance`.

    >>> reports = local_mean(category_response(epsilon=9.0, num_categories=2))
    >>> value, weight = fedjx.Clients.of(np.int32([0, 1, 1, 1])), fedjx.Clients.of(np.ones(4))
    >>> reports.next(jax.random.key(0), (), value, weight)[1].round(1)
    Array([0.2, 0.8], dtype=float32)
    """

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        randomizer.check(value.type.member)
        report = federated_map(randomizer.report, federated_keys(key), value)
        counts = federated_map(lambda weight: (weight > 0).astype(jnp.float32), weight)
        result, number = federated_mean(report, counts), federated_sum(counts)
        return state, result, federated_map(measured, number)

    def measured(number: jax.Array) -> Metrics:
        return {"num_clients": number, "noise_stddev": jnp.sqrt(randomizer.variance / jnp.maximum(number, 1))}

    event = Event(randomizer.noise_multiplier or 0.0, Local(randomizer.epsilon))
    return Aggregator(lambda member: (), next, event=event)


def laplace_response(*, epsilon: float, bound: float) -> Randomizer:
    """Reports a number in ``[-bound, bound]`` with Laplace noise; of variance ``8 bound^2 / epsilon^2``.

    >>> laplace_response(epsilon=1.0, bound=1.0).variance
    8.0
    """
    _check_bounded(epsilon, bound)
    scale = 2 * bound / epsilon

    def report(key: jax.Array, value: jax.Array) -> jax.Array:
        return _bounded(value, bound) + scale * jax.random.laplace(key, (), jnp.float32)

    return Randomizer(_number, report, float(epsilon), None, 2 * scale**2)


def two_point_response(*, epsilon: float, bound: float) -> Randomizer:
    """Reports one of two numbers, ``-B`` or ``B = bound (e^epsilon + 1) / (e^epsilon - 1)``: one bit.

    Duchi, Jordan & Wainwright, "Minimax Optimal Procedures for Locally Private Estimation" (arXiv 1604.02390, section
    4.2.1, in one dimension); best for epsilon below 0.6. Its variance is B^2 for 0, and less elsewhere.

    >>> round(two_point_response(epsilon=1.0, bound=1.0).variance, 6)
    4.682694
    """
    _check_bounded(epsilon, bound)
    size = bound / math.tanh(epsilon / 2)

    def report(key: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.where(_uniform(key) < 0.5 + _bounded(value, bound) / (2 * size), size, -size)

    return Randomizer(_number, report, float(epsilon), None, size**2)


def piecewise_response(*, epsilon: float, bound: float) -> Randomizer:
    """Reports a number of ``[-C bound, C bound]``, with a large density near the value and a small one elsewhere.

    Wang et al., "Collecting and Analyzing Multidimensional Data with Local Differential Privacy" (arXiv 1907.00782,
    algorithm 2), ``C = (e^(epsilon/2) + 1) / (e^(epsilon/2) - 1)``; better than `two_point_response` for larger
    epsilons. Its variance is largest at the bound.

    >>> round(piecewise_response(epsilon=2.0, bound=1.0).variance, 6)
    1.227565
    """
    _check_bounded(epsilon, bound)
    root = math.exp(epsilon / 2)
    most = (root + 1) / (root - 1)

    def report(key: jax.Array, value: jax.Array) -> jax.Array:
        key_near, key_place = jax.random.split(key)
        x = _bounded(value, bound) / bound
        low = (most + 1) / 2 * x - (most - 1) / 2
        near = low + (most - 1) * _uniform(key_place)
        # Of the two intervals beside the near one, as if they were one of length C + 1.
        place = (most + 1) * _uniform(key_place) - most
        far = jnp.where(place < low, place, place + most - 1)
        return bound * jnp.where(_uniform(key_near) < root / (root + 1), near, far)

    variance = bound**2 * (1 / (root - 1) + (root + 3) / (3 * (root - 1) ** 2))
    return Randomizer(_number, report, float(epsilon), None, variance)


def category_response(*, epsilon: float, num_categories: int) -> Randomizer:
    """Reports a category, ``[]``, int: the true one with probability ``e^epsilon / (e^epsilon + k - 1)``.

    k-ary randomised response, Kairouz, Bonawitz & Ramage, "Discrete Distribution Estimation under Local Privacy"
    (arXiv 1602.07387, section 3.1). The report estimates the indicators of the categories, ``[k]``.

    >>> round(category_response(epsilon=1.0, num_categories=16).variance, 6)
    5.66243
    """
    _check_categories(epsilon, num_categories)
    k, grown = num_categories, math.exp(epsilon)
    truth, other = grown / (grown + k - 1), 1 / (grown + k - 1)

    def report(key: jax.Array, value: jax.Array) -> jax.Array:
        key_truth, key_other = jax.random.split(key)
        value = jnp.clip(value, 0, k - 1)
        lie = (value + 1 + jax.random.randint(key_other, (), 0, k - 1)) % k
        said = jnp.where(_uniform(key_truth) < truth, value, lie)
        return ((jnp.arange(k) == said) - other) / (truth - other)

    return Randomizer(_category, report, float(epsilon), None, (k - 2 + grown) / (grown - 1) ** 2)


def unary_response(*, epsilon: float, num_categories: int) -> Randomizer:
    """Reports a bit for each category: the true one's is 1 in half of all cases, another one's in 1 of e^epsilon + 1.

    Optimised unary encoding, Wang et al., "Locally Differentially Private Protocols for Frequency Estimation" (USENIX
    Security 2017, section 4.3); better than `category_response` for many categories, at k bits a client.

    >>> round(unary_response(epsilon=1.0, num_categories=256).variance, 6)
    3.682694
    """
    _check_categories(epsilon, num_categories)
    k, grown = num_categories, math.exp(epsilon)
    other = 1 / (grown + 1)

    def report(key: jax.Array, value: jax.Array) -> jax.Array:
        is_true = jnp.arange(k) == jnp.clip(value, 0, k - 1)
        said = jax.random.uniform(key, (k,), jnp.float32) < jnp.where(is_true, 0.5, other)
        return (said - other) / (0.5 - other)

    return Randomizer(_category, report, float(epsilon), None, 4 * grown / (grown - 1) ** 2)


def gaussian_response(*, clip: float, noise_multiplier: float) -> Randomizer:
    """Reports a value, of any floats, clipped to an L2 norm, with Gaussian noise of ``noise_multiplier * clip``."""
    check_number("(0, inf)", clip=clip, noise_multiplier=noise_multiplier)

    def report(key: jax.Array, value: PyTree) -> PyTree:
        clipped, _ = within_norm(value, clip)
        _, noise = independent().next(key, (), value)
        return cast_like(value, jax.tree.map(lambda x, n: x + clip * noise_multiplier * n, clipped, noise))

    return Randomizer(lambda member: None, report, None, float(noise_multiplier), (clip * noise_multiplier) ** 2)


def _uniform(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (), jnp.float32)


def _bounded(value: jax.Array, bound: float) -> jax.Array:
    return jnp.clip(jnp.nan_to_num(as_float(value)), -bound, bound)


def _check_bounded(epsilon: float, bound: float) -> None:
    check_number("(0, inf)", epsilon=epsilon, bound=bound)


def _check_categories(epsilon: float, num_categories: int) -> None:
    check_number("(0, inf)", epsilon=epsilon)
    check_integer("[2, inf)", num_categories=num_categories)


def _number(member: PyTree) -> None:
    _check_member(member, jnp.floating, "one floating-point number")


def _category(member: PyTree) -> None:
    _check_member(member, jnp.integer, "one integer, the number of its category")


def _check_member(member: PyTree, kind: type, what: str) -> None:
    leaves = jax.tree.leaves(member)
    if len(leaves) != 1 or leaves[0].shape or not jnp.issubdtype(leaves[0].dtype, kind):
        got = ", ".join(f"{x.dtype}{list(x.shape)}" for x in leaves)
        raise TypeError(f"each client reports {what}; got {got}. Map the values first: more of them cost more.")
