"""Integer noise that survives a sum modulo a power of two: discrete Gaussian and Skellam.

Both are drawn by inverting the distribution function, to 32 bits: with integers alone, so that a draw is the same bit
for bit in every program. Rejection from float32 numbers is not, and `jax.random.poisson` has another variance, by some
percent, where the mean is a million. It shows what noise does to learning, and is no defence of real data.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from fedjx.core.language.checks import check_number

_ALIKE = 2.0**28  # the variance above which the two are alike to 32 bits, and Bessel functions of it no longer known
_ADVICE = "Take coarser steps, that is fewer bits."


def skellam(key: jax.Array, variance: float, shape: tuple[int, ...]) -> jax.Array:
    """Draws differences of two Poisson variables of one mean; sums of such are such again.

    Args:
      key: Of any kind.
      variance: In ``[0, 2^32]``; the fourth cumulant is the same number. The table of the distribution function has 13
        words for each standard deviation.
      shape: Of what is drawn.

    Returns:
      int32 ``shape``.

    Raises:
      ValueError: If the variance is out of range.

    >>> skellam(jax.random.key(0), 4.0, (5,)).dtype
    dtype('int32')
    """
    check_number("[0, 2^32]", _ADVICE, variance=variance)
    return _drawn(key, _skellam_table(float(variance)), shape)


def discrete_gaussian(key: jax.Array, stddev: float, shape: tuple[int, ...]) -> jax.Array:
    """Draws integers x with probability in proportion to ``exp(-x^2 / (2 stddev^2))``.

    Canonne, Kamath & Steinke, "The Discrete Gaussian for Differential Privacy" (arXiv 2004.00010).

    Args:
      key: Of any kind.
      stddev: In ``[0, 2^16]``; of the continuous Gaussian. Below 1 the integers have a smaller one.
      shape: Of what is drawn.

    Returns:
      int32 ``shape``.

    Raises:
      ValueError: If ``stddev`` is out of range.

    >>> discrete_gaussian(jax.random.key(0), 4.0, (5,)).dtype
    dtype('int32')
    """
    check_number("[0, 2^16]", _ADVICE, stddev=stddev)
    return _drawn(key, _gaussian_table(float(stddev)), shape)


class _Table(NamedTuple):
    """The distribution function of integers from the least on, in parts of 2^32, where these are not 0 or all."""

    least: int
    ends: np.ndarray


def _drawn(key: jax.Array, table: _Table, shape: tuple[int, ...]) -> jax.Array:
    words = jax.random.bits(key, shape, jnp.uint32)
    return table.least + jnp.searchsorted(jnp.asarray(table.ends), words, side="right").astype(jnp.int32)


@functools.lru_cache(maxsize=4)
def _skellam_table(variance: float) -> _Table:
    if variance > _ALIKE:
        return _gaussian_table(math.sqrt(variance))
    return _table(special.ive(_magnitudes(math.sqrt(variance)), variance))


@functools.lru_cache(maxsize=4)
def _gaussian_table(stddev: float) -> _Table:
    return _table(np.exp(-0.5 * (_magnitudes(stddev) / max(stddev, 1e-9)) ** 2))


def _magnitudes(stddev: float) -> np.ndarray:
    """Returns 0, 1, 2, ... as far as a word of 32 bits sees."""
    return np.arange(10 + math.ceil(6.5 * stddev), dtype=np.float64)


def _table(likelihood: np.ndarray) -> _Table:
    """Returns the table of symmetric integers, of how likely each magnitude is."""
    both = np.concatenate([likelihood[:0:-1], likelihood])
    ends = np.round(np.cumsum(both) / both.sum() * 2.0**32)
    below = int(np.sum(ends == 0))
    return _Table(1 - len(likelihood) + below, ends[(ends > 0) & (ends < 2.0**32)].astype(np.uint32))
