"""Local frequency oracles: what one client says of its category is private by itself, whoever sees it.

Decoded, each message estimates the indicators of all categories, float32 ``[k]``, without bias. A category outside of
``[0, k)`` counts as the nearest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import PyTree
from fedjx.privacy.local import Randomizer, check_epsilon, check_member, uniform

_ALMOST = 1.05  # so much more variance than the least is no reason to send more bits


def category_response(*, epsilon: float, num_categories: int) -> Randomizer:
    """Reports a category: the true one with probability ``e^epsilon / (e^epsilon + k - 1)``, any other one else.

    k-ary randomised response, Kairouz, Bonawitz & Ramage, "Discrete Distribution Estimation under Local Privacy"
    (arXiv 1602.07387, section 3.1). A message is the smallest unsigned integer that fits.

    >>> round(category_response(epsilon=1.0, num_categories=16).variance, 6)
    5.66243
    """
    _check(epsilon, num_categories)
    k, grown = num_categories, math.exp(epsilon)
    truth, other = grown / (grown + k - 1), 1 / (grown + k - 1)

    def report(key: jax.Array, value: jax.Array) -> jax.Array:
        return _said(key, _within(value, k), k, truth)

    def decode(message: jax.Array) -> jax.Array:
        return ((jnp.arange(k) == message).astype(jnp.float32) - other) / (truth - other)

    return _of_category(report, decode, epsilon, truth, other)


def unary_response(*, epsilon: float, num_categories: int) -> Randomizer:
    """Reports a bit for each category: the true one's is 1 in half of all cases, another one's in 1 of e^epsilon + 1.

    Optimised unary encoding, Wang et al., "Locally Differentially Private Protocols for Frequency Estimation" (USENIX
    Security 2017, section 4.3); better than `category_response` for many categories. A message is bools ``[k]``.

    >>> round(unary_response(epsilon=1.0, num_categories=256).variance, 6)
    3.682694
    """
    _check(epsilon, num_categories)
    k, grown = num_categories, math.exp(epsilon)
    other = 1 / (grown + 1)

    def report(key: jax.Array, value: jax.Array) -> jax.Array:
        is_true = jnp.arange(k) == _within(value, k)
        return jax.random.uniform(key, (k,), jnp.float32) < jnp.where(is_true, 0.5, other)

    def decode(message: jax.Array) -> jax.Array:
        return (message.astype(jnp.float32) - other) / (0.5 - other)

    return _of_category(report, decode, epsilon, 0.5, other)


def hash_response(*, epsilon: float, num_categories: int) -> Randomizer:
    """Reports the hash of the category among g, by `category_response`, and the seed of the hash function.

    Optimised local hashing, Wang et al. (USENIX Security 2017, section 4.4): ``g = round(e^epsilon) + 1``, at least 2.
    The client's key draws the seed, and the seed the hashes of all k categories, independent and uniform. Next to the
    variance of `unary_response`, ``(e^epsilon + g - 1)^2 / ((g - 1) (e^epsilon - 1)^2)``, in few bits for any k. A
    message is ``seed``, uint32, and ``said``, the smallest unsigned integer that fits. To decode one takes k hashes.

    >>> round(hash_response(epsilon=1.0, num_categories=256).variance, 6)
    3.691655
    """
    _check(epsilon, num_categories)
    k, grown = num_categories, math.exp(epsilon)
    g = round(grown) + 1
    truth = grown / (grown + g - 1)

    def hashes(seed: jax.Array) -> jax.Array:
        return (jax.random.bits(jax.random.key(seed, impl="threefry2x32"), (k,), jnp.uint32) % g).astype(jnp.int32)

    def report(key: jax.Array, value: jax.Array) -> PyTree:
        key_seed, key_said = jax.random.split(key)
        seed = jax.random.bits(key_seed, (), jnp.uint32)
        return {"seed": seed, "said": _said(key_said, hashes(seed)[_within(value, k)], g, truth)}

    def decode(message: PyTree) -> jax.Array:
        is_said = hashes(message["seed"]) == message["said"]
        return (is_said.astype(jnp.float32) - 1 / g) / (truth - 1 / g)

    return _of_category(report, decode, epsilon, truth, 1 / g)


def hadamard_response(*, epsilon: float, num_categories: int) -> Randomizer:
    """Reports a row of a Hadamard matrix in which the category's column is 1, or, in 1 of e^epsilon + 1 cases, -1.

    Acharya, Sun & Zhang, "Hadamard Response" (arXiv 1802.04705), as it is for small epsilons, with the K x K matrix of
    Sylvester, K the smallest power of two above the number of categories. Its blocks for larger epsilons are left out:
    clients whose categories share a block would add more variance to each other's. Here it is
    ``((e^epsilon + 1) / (e^epsilon - 1))^2`` whatever the others have: at most 4 % above the least for epsilon below
    0.4, and never below 1. A message is the smallest unsigned integer that fits K rows.

    >>> round(hadamard_response(epsilon=1.0, num_categories=255).variance, 6)
    4.682694
    """
    _check(epsilon, num_categories)
    k, grown, num_rows = num_categories, math.exp(epsilon), 1 << num_categories.bit_length()

    def report(key: jax.Array, value: jax.Array) -> jax.Array:
        key_row, key_truth = jax.random.split(key)
        row, column = jax.random.randint(key_row, (), 0, num_rows), _within(value, k) + 1
        is_wrong = _is_negative(row, column) == (uniform(key_truth) < grown / (grown + 1))
        # One bit that the column has moves a row to one of the other sign there: a uniform one, as it was.
        return jnp.where(is_wrong, row ^ (column & -column), row).astype(np.min_scalar_type(num_rows - 1))

    def decode(message: jax.Array) -> jax.Array:
        negative = _is_negative(message.astype(jnp.int32), jnp.arange(k) + 1)
        return jnp.where(negative, -1, 1) * jnp.float32((grown + 1) / (grown - 1))

    return _of_category(report, decode, epsilon, grown / (grown + 1), 0.5)


def frequency_response(*, epsilon: float, num_categories: int) -> Randomizer:
    """Reports a category by that one of the four that sends the fewest bits, of those with next to the least variance.

    Next to it is up to 5 % more; of as many bits the one with less variance.

    >>> few, many = (frequency_response(epsilon=2.0, num_categories=k) for k in (4, 1000))
    >>> round(few.variance, 6), round(many.variance, 6)
    (0.230011, 0.724591)
    """
    makers = (category_response, unary_response, hash_response, hadamard_response)
    made = [make(epsilon=epsilon, num_categories=num_categories) for make in makers]
    most = _ALMOST * min(one.variance for one in made)
    return min((one for one in made if one.variance <= most), key=lambda one: (_num_bits(one), one.variance))


def _of_category(
    report: Callable[[jax.Array, PyTree], PyTree],
    decode: Callable[[PyTree], PyTree],
    epsilon: float,
    held: float,
    other: float,
) -> Randomizer:
    """Makes a randomizer of what speaks for a category with one likelihood where it is held, and else with another."""
    of_other, of_held = (chance * (1 - chance) / (held - other) ** 2 for chance in (other, held))
    return Randomizer(_category, report, float(epsilon), None, of_other, decode, of_held)


def _said(key: jax.Array, value: jax.Array, num: int, truth: float) -> jax.Array:
    """Draws a value with the probability of the truth, and any other one of so many else."""
    key_truth, key_other = jax.random.split(key)
    lie = (value + 1 + jax.random.randint(key_other, (), 0, num - 1)) % num
    return jnp.where(uniform(key_truth) < truth, value, lie).astype(np.min_scalar_type(num - 1))


def _is_negative(row: jax.Array, column: jax.Array) -> jax.Array:
    return (jax.lax.population_count(row & column) & 1).astype(bool)


def _num_bits(randomizer: Randomizer) -> int:
    message = jax.tree.leaves(jax.eval_shape(randomizer.report, jax.random.key(0), jnp.int32(0)))
    return sum(x.size * (1 if x.dtype == bool else 8 * x.dtype.itemsize) for x in message)


def _within(value: jax.Array, num_categories: int) -> jax.Array:
    return jnp.clip(value.astype(jnp.int32), 0, num_categories - 1)


def _check(epsilon: float, num_categories: int) -> None:
    check_epsilon(epsilon)
    check_integer("[2, 2^30)", num_categories=num_categories)


def _category(member: PyTree) -> None:
    check_member(member, jnp.integer, "one integer, the number of its category")
