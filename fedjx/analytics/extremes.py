"""The least and the largest number in a column, to one of some points; with noise, one that is surely reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjx.analytics.numbers import Range, bounds
from fedjx.analytics.question import Entry, Question, Total, once
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import Array, PyTree


def maximum(column: str, *, low: float, high: float, num_bins: int, confidence: float = 0.95) -> Question:
    """Asks for the largest number in a column, rounded down to one of the points ``linspace(low, high, num_bins)``.

    Records are counted by the highest point that they reach, one of a client at a point. In a plain or a secure answer
    the largest number is at least the value, and less than the next point; of integers between integers ``low`` and
    ``high``, with a point at each, it is the value. If a client has more than ``max_records``, its largest ones go
    in, not random ones, so that ``max_records=1`` is enough.

    With noise, or of a sample, it is the highest point for which the number of clients that reach it, or a higher one,
    is estimated as more than ``ln(num_bins / (2 (1 - confidence))) / sqrt(2)`` standard deviations: at least one client
    reaches it with probability ``confidence``, even if noise is Laplace's, which has the longest tail. Fewer clients
    than that are not seen above it; there is no standard deviation of the answer.

    Args:
      column: Of numbers ``[]``; what is not finite is left out.
      low: The least of the points, to which smaller numbers are clipped.
      high: The highest, likewise.
      num_bins: How many points.
      confidence: That a private answer is reached, in ``[0.5, 1)``.

    Returns:
      A `Question`; its answer is a number, NaN if there is none, or none that is sure.

    >>> from fedjx.analytics import ask, maximum
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [31, 52]}, {"age": [7]}, {"age": [60, 64]}])
    >>> float(ask(maximum("age", low=0, high=120, num_bins=121), ages, trust="secure").value)
    64.0
    """
    return _extreme(column, low, high, num_bins, confidence, sign=1)


def minimum(column: str, *, low: float, high: float, num_bins: int, confidence: float = 0.95) -> Question:
    """Asks for the least number in a column, rounded up to a point: `maximum` of the numbers with another sign.

    Args:
      column: See `maximum`, as for the others and what the answer means.
      low: The least of the points.
      high: The highest.
      num_bins: How many.
      confidence: See there.

    Returns:
      A `Question`; its answer is a number.

    >>> from fedjx.analytics import ask, minimum
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [31, 52]}, {"age": [7]}, {"age": [60, 64]}])
    >>> float(ask(minimum("age", low=0, high=120, num_bins=121), ages).value)
    7.0
    """
    return _extreme(column, low, high, num_bins, confidence, sign=-1)


def _extreme(column: str, low: float, high: float, num_bins: int, confidence: float, *, sign: int) -> Question:
    check_integer("[2, 2^30)", num_bins=num_bins)
    check_number("[0.5, 1)", confidence=confidence)
    within = bounds(low, high)
    ends = (within.low, within.high) if sign > 0 else (-within.high, -within.low)
    points = np.linspace(*ends, num_bins)
    threshold = math.log(num_bins / (2 * (1 - confidence))) / math.sqrt(2)

    def estimate(total: Total) -> tuple[float, None]:
        reach, variance = (np.cumsum(x[::-1, 0])[::-1] for x in (total.table, total.variance))
        surely = np.flatnonzero((reach > threshold * np.sqrt(variance)) & (reach > 0.5))
        return (float(sign * points[surely[-1]] + 0.0) if len(surely) else math.nan), None

    entry = _Reached(column, within, tuple(points.tolist()), sign)
    return Question((column,), entry, num_bins, estimate, once, distinct=True)


class _Reached(NamedTuple):
    column: str
    within: Range
    points: tuple[float, ...]
    sign: int

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        x = record[self.column]
        signed = self.sign * self.within.clipped(x).astype(jnp.float32)
        points = jnp.asarray(self.points, jnp.float32)
        reached = jnp.maximum(jnp.searchsorted(points, signed, side="right").astype(jnp.int32) - 1, 0)
        return Entry(jnp.where(jnp.isfinite(x), reached, -1), priority=reached)
