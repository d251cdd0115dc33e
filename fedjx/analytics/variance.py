"""The variance of the numbers in a column, whose root is their standard deviation."""

from __future__ import annotations

import numpy as np

from fedjx.analytics.moments import Products, covariance_of, question_of, stddevs
from fedjx.analytics.numbers import bounds
from fedjx.analytics.question import Question, Total
from fedjx.core.language.checks import check_number


def variance(column: str, *, low: float | None = None, high: float | None = None, ddof: float = 0) -> Question:
    """Asks for the variance of the numbers in a column, over all records, each clipped to ``[low, high]``.

    It is made of three sums: of the distances from the middle, of their squares, and of their number n, each with noise
    of its own if there is any: ``(sum of squares - (sum of distances)^2 / n) / (n - ddof)``, to first order without
    bias. The sums are of float32, whose rounding is in proportion to the squares: so let the bounds be near the
    numbers; without bounds, distances are from 0. What is not finite is left out.

    The numbers' standard deviation is its root, ``answer.value**0.5``, with an error of
    ``answer.stddev / (2 * answer.value**0.5)`` to first order.

    Args:
      column: Of numbers ``[]``.
      low: The least number; nothing is clipped if neither is given, which only plain answers allow.
      high: The largest.
      ddof: As in `numpy.var`; 1 for that of a population of which the records are a sample.

    Returns:
      A `Question`; its answer is a number, 0 where noise would have it below, and NaN of no more than ``ddof`` records.

    >>> from fedjx.analytics import ask, variance
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [k % 90, 40]} for k in range(2000)])
    >>> for trust in ("plain", "secure"):
    ...     print(round(float(ask(variance("age", low=0, high=100), ages, trust=trust).value), 1))
    344.6
    344.6
    """
    check_number("[0, inf)", ddof=ddof)
    entry = Products((column,), (bounds(low, high),))

    def estimate(total: Total) -> tuple[float, float]:
        found, gradient = covariance_of(entry, total, ddof)
        return float(np.maximum(found[0, 0], 0)), float(stddevs(total, gradient)[0, 0])

    return question_of(entry, estimate)
