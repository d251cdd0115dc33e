"""The sum of the numbers in a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjx.analytics.numbers import Range, bounds, finite
from fedjx.analytics.question import Entry, Question, Total, of_values
from fedjx.core.language.names import Array, PyTree


def total(column: str, *, low: float | None = None, high: float | None = None) -> Question:
    """Asks for the sum of the numbers in a column, each clipped to ``[low, high]``.

    Noise is in proportion to the largest magnitude that a number may have. What is not finite is left out.

    Args:
      column: Of numbers ``[]``.
      low: The least number; nothing is clipped if neither is given, which only plain answers allow.
      high: The largest.

    Returns:
      A `Question`; its answer is a number.

    >>> from fedjx.analytics import ask, total
    >>> visits = fedjx.data.FederatedData.from_clients([{"visits": [3, 1]}, {"visits": [12]}])
    >>> float(ask(total("visits", low=0, high=10), visits).value)
    14.0
    """
    within = bounds(low, high)
    most = max(abs(within.low), abs(within.high))

    def estimate(sums: Total) -> tuple[float, float]:
        return float(sums.table[0, 0]), sums.stddev(np.ones(1))

    entry, sensitivity = _Clipped(column, within), of_values(1, counts=False)
    return Question((column,), entry, 1, estimate, sensitivity, (most,), counts=False)


class _Clipped(NamedTuple):
    column: str
    within: Range

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        x = record[self.column]
        return Entry(finite(x), self.within.clipped(x).astype(jnp.float32)[None])
