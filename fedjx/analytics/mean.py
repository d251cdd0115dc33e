"""The mean of the numbers in a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedjx.analytics.numbers import Range, bounds, finite
from fedjx.analytics.question import Entry, Question, Total, of_values
from fedjx.core.language.names import Array, PyTree


def mean(column: str, *, low: float | None = None, high: float | None = None) -> Question:
    """Asks for the mean of the numbers in a column, over all records, each clipped to ``[low, high]``.

    It is the sum of the numbers' distances from the middle over their count, each with noise of its own if there is
    any. Of local reports the count is known: it is the mean over clients, of a record each. What is not finite is left
    out; in a local report it counts as the middle, for who reports would tell.

    Args:
      column: Of numbers ``[]``.
      low: The least number; nothing is clipped if neither is given, which only plain answers allow.
      high: The largest.

    Returns:
      A `Question`; its answer is a number, NaN if there is nothing to average, or noise has the count so.

    >>> from fedjx.analytics import ask, mean
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [k % 90, 40]} for k in range(2000)])
    >>> for trust in ("plain", "secure"):
    ...     print(round(float(ask(mean("age", low=0, high=100), ages, trust=trust).value), 2))
    42.08
    42.08
    """
    within = bounds(low, high)

    def estimate(sums: Total) -> tuple[float, float]:
        total, number = sums.table[0]
        if number <= 0:
            return float("nan"), float("nan")
        return within.middle + total / number, sums.stddev(np.array([1.0, -total / number]) / number)

    entry, sensitivity = _Distance(column, within), of_values(1, counts=True)
    return Question((column,), entry, 1, estimate, sensitivity, (within.half,))


class _Distance(NamedTuple):
    column: str
    within: Range

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        x = record[self.column]
        return Entry(finite(x), self.within.distance(x)[None])
