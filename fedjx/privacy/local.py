"""Local differential privacy: what one client says of its value is private by itself, whoever sees it.

For any two numbers or categories no report, or no density of one, is more than ``exp(epsilon)`` times as likely, up to
the rounding of chances in float32. Their means are unbiased. Reports of categories are in `local_frequency`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedjx.aggregation.norms import within_norm
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.operators import federated_decode, federated_keys, federated_mean, federated_sum, federated_zip
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import as_float, cast_like
from fedjx.privacy.events import Event, Local
from fedjx.privacy.noise import independent


def _as_it_is(message: PyTree) -> PyTree:
    return message


class Randomizer(NamedTuple):
    """How one client reports its value, and what the server makes of the report.

    Attributes:
      check: Refuses a value that it is not for, by its shapes and dtypes: ``(member) -> None``, or a TypeError.
      report: ``(key, value) -> message``, what the client sends.
      epsilon: Of a message, for any two values; None for Gaussian noise.
      noise_multiplier: Of Gaussian noise, in the most that a value is bounded to; None for others.
      variance: Of what is decoded: of a number, the most for any value; of several numbers, the most for any one; of
        the indicator of a category, where the client's is another one; of other values, of an element.
      decode: ``message -> estimate``, floats whose mean over clients estimates the mean of their values, or of the
        indicators of their categories. The message itself if not given.
      variance_held: Of the indicator of a category, where it is the client's; None of other values.
    """

    check: Callable[[PyTree], None]
    report: Callable[[jax.Array, PyTree], PyTree]
    epsilon: float | None
    noise_multiplier: float | None
    variance: float
    decode: Callable[[PyTree], PyTree] = _as_it_is
    variance_held: float | None = None


def local_mean(randomizer: Randomizer) -> Aggregator:
    """Averages what clients report through a randomizer, each of which counts once, whatever it weighs.

    Who reports is no secret, so that the mean is over those who do. A client sends its message, and a bit that says
    whether it reports; the server decodes messages as they arrive.

    Returns:
      An `Aggregator` with an ``event`` for `account`: how clients are drawn makes nothing cheaper, but that somebody
      shuffles the reports may, ``account(..., shuffled=True)``. Its result is float32 ``[]`` of numbers, ``[k]`` of k
      categories, the estimated frequency of each, and of other values their shapes and dtypes. It measures
      ``num_clients`` and ``noise_stddev``, of the noise on an element of the result, by `Randomizer.variance`.

    >>> reports = local_mean(two_point_response(epsilon=9.0, bound=1.0))
    >>> value, weight = fedjx.Clients.of(np.float32([-1, 1, 1, 1])), fedjx.Clients.of(np.ones(4))
    >>> reports.next(jax.random.key(0), (), value, weight)[1].round(2)
    Array(0.5, dtype=float32)
    >>> [message.bits for message in reports.next.communication(jax.random.key(0), (), value, weight)]
    [64, 2]
    """

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        randomizer.check(value.type.member)
        message = federated_map(randomizer.report, federated_keys(key), value)
        sent = federated_zip((message, federated_map(lambda weight: weight > 0, weight)))
        report, count = federated_decode(sent, decoded)
        return state, federated_mean(report, count), federated_map(measured, federated_sum(count))

    def decoded(sent: tuple[PyTree, jax.Array]) -> tuple[PyTree, jax.Array]:
        message, reports = sent
        return randomizer.decode(message), reports.astype(jnp.float32)

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
    """Reports a bool, which is decoded to ``-B`` or ``B = bound (e^epsilon + 1) / (e^epsilon - 1)``.

    Duchi, Jordan & Wainwright, "Minimax Optimal Procedures for Locally Private Estimation" (arXiv 1604.02390, section
    4.2.1, in one dimension); best for epsilon below 1.29. Its variance is B^2 for 0, and less elsewhere.

    >>> round(two_point_response(epsilon=1.0, bound=1.0).variance, 6)
    4.682694
    """
    _check_bounded(epsilon, bound)
    size = bound / math.tanh(epsilon / 2)

    def report(key: jax.Array, value: jax.Array) -> jax.Array:
        return uniform(key) < 0.5 + _bounded(value, bound) / (2 * size)

    def decode(message: jax.Array) -> jax.Array:
        return jnp.where(message, jnp.float32(size), -jnp.float32(size))

    return Randomizer(_number, report, float(epsilon), None, size**2, decode)


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
        near = low + (most - 1) * uniform(key_place)
        # Of the two intervals beside the near one, as if they were one of length C + 1.
        place = (most + 1) * uniform(key_place) - most
        far = jnp.where(place < low, place, place + most - 1)
        return bound * jnp.where(uniform(key_near) < root / (root + 1), near, far)

    variance = bound**2 * (1 / (root - 1) + (root + 3) / (3 * (root - 1) ** 2))
    return Randomizer(_number, report, float(epsilon), None, variance)


def number_response(*, epsilon: float, bound: float) -> Randomizer:
    """Reports a number in ``[-bound, bound]`` by whichever of the three has the least `Randomizer.variance`.

    >>> [round(number_response(epsilon=x, bound=1.0).variance, 3) for x in (0.5, 1.0, 4.0)]
    [16.671, 4.683, 0.241]
    """
    return min(_of_numbers(epsilon, bound), key=lambda one: one.variance)


def sampled_response(*, epsilon: float, bounds: ArrayLike) -> Randomizer:
    """Reports one of d bounded numbers, drawn by the client's key, which counts d times.

    Wang et al. (arXiv 1907.00782, algorithm 4, with one coordinate): with all of epsilon for one number the noise grows
    like ``sqrt(d)``, where d reports of ``epsilon / d`` each grow like d. A message is ``coordinate``, the smallest
    unsigned integer that fits, and ``said``, of `two_point_response`, `piecewise_response` or `laplace_response`.

    Args:
      epsilon: Of the message.
      bounds: ``[d]``, of the absolute values of the numbers.

    Returns:
      A `Randomizer` of floats ``[d]``. Of a number of bound b its variance is at most ``b^2 d V`` by two points, whose
      square is always V, and ``b^2 (d (V + 1) - 1)`` by the others, for V the variance that they have with a bound of
      1; the kind is that of which this is least. `Randomizer.variance` is that of the largest bound.

    >>> answers = sampled_response(epsilon=1.0, bounds=[1.0, 1.0, 10.0])
    >>> message = answers.report(jax.random.key(0), jnp.float32([0.5, -0.5, 4.0]))
    >>> message
    {'coordinate': Array(1, dtype=uint8), 'said': Array(True, dtype=bool)}
    >>> answers.decode(message)
    Array([0.     , 6.49186, 0.     ], dtype=float32)
    """
    sizes = np.asarray(bounds, np.float32)
    check_number("(0, inf)", bounds=sizes)
    if sizes.ndim != 1 or not len(sizes):
        raise ValueError(f"bounds must be one number for each coordinate; got shape {sizes.shape}. Pass [1.0, 5.0].")
    d = len(sizes)
    two_points, *others = _of_numbers(epsilon, 1.0)
    most = [(d * two_points.variance, two_points), *((d * (one.variance + 1) - 1, one) for one in others)]
    variance, one = min(most, key=lambda pair: pair[0])

    def check(member: PyTree) -> None:
        check_member(member, jnp.floating, f"{d} floating-point numbers", (d,))

    def report(key: jax.Array, value: jax.Array) -> PyTree:
        key_coordinate, key_said = jax.random.split(key)
        coordinate = jax.random.randint(key_coordinate, (), 0, d)
        said = one.report(key_said, (as_float(value) / sizes)[coordinate])
        return {"coordinate": coordinate.astype(np.min_scalar_type(d - 1)), "said": said}

    def decode(message: PyTree) -> jax.Array:
        return jnp.where(jnp.arange(d) == message["coordinate"], d * sizes * one.decode(message["said"]), 0)

    return Randomizer(check, report, float(epsilon), None, float(sizes.max()) ** 2 * variance, decode)


def gaussian_response(*, clip: float, noise_multiplier: float) -> Randomizer:
    """Reports a value, of any floats, clipped to an L2 norm, with Gaussian noise of ``noise_multiplier * clip``."""
    check_number("(0, inf)", clip=clip, noise_multiplier=noise_multiplier)

    def report(key: jax.Array, value: PyTree) -> PyTree:
        clipped, _ = within_norm(value, clip)
        _, noise = independent().next(key, (), value)
        return cast_like(value, jax.tree.map(lambda x, n: x + clip * noise_multiplier * n, clipped, noise))

    return Randomizer(lambda member: None, report, None, float(noise_multiplier), (clip * noise_multiplier) ** 2)


def _of_numbers(epsilon: float, bound: float) -> list[Randomizer]:
    return [make(epsilon=epsilon, bound=bound) for make in (two_point_response, piecewise_response, laplace_response)]


def uniform(key: jax.Array) -> jax.Array:
    """Draws a number in [0, 1), float32 ``[]``: less than a chance with that chance."""
    return jax.random.uniform(key, (), jnp.float32)


def _bounded(value: jax.Array, bound: float) -> jax.Array:
    return jnp.clip(jnp.nan_to_num(as_float(value)), -bound, bound)


def _check_bounded(epsilon: float, bound: float) -> None:
    check_epsilon(epsilon)
    check_number("(0, inf)", bound=bound)


def check_epsilon(epsilon: float) -> None:
    """Refuses an epsilon of which chances cannot be drawn."""
    check_number("[0.001, 12]", "Chances are drawn in float32, which has none below 1e-7.", epsilon=epsilon)


def _number(member: PyTree) -> None:
    check_member(member, jnp.floating, "one floating-point number")


def check_member(member: PyTree, kind: type, what: str, shape: tuple[int, ...] = ()) -> None:
    """Refuses, with a TypeError, values that are not one array of a kind and shape."""
    leaves = jax.tree.leaves(member)
    if len(leaves) != 1 or leaves[0].shape != shape or not jnp.issubdtype(leaves[0].dtype, kind):
        got = ", ".join(f"{x.dtype}{list(x.shape)}" for x in leaves)
        raise TypeError(f"each client reports {what}; got {got}. Map the values first: more of them cost more.")
