"""The most frequent categories or strings."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjx.analytics.heavy_hitters import heavy_hitters
from fedjx.analytics.histogram import histogram
from fedjx.analytics.question import Question, Total
from fedjx.core.language.checks import check_integer


def top_k(
    column: str,
    k: int,
    *,
    num_categories: int | None = None,
    num_bytes: int | None = None,
    min_count: float = 10.0,
    distinct: bool = False,
    **sketch: int,
) -> Question:
    """Asks for the k most frequent categories, by a `histogram`, or strings, by `heavy_hitters`.

    Args:
      column: Of categories, integers ``[]``, or of strings, uint8 ``[length]``.
      k: How many are shown at most.
      num_categories: They are 0 to this number.
      num_bytes: How many bytes of a string count; give one of the two.
      min_count: What is estimated to be rarer is not shown; of clients if ``distinct``, of records otherwise.
      distinct: Whether a client counts once for a category or string, however often it has it.
      **sketch: For strings, ``max_hitters``, ``num_hashes``, ``width`` and ``seed`` of `heavy_hitters`.

    Returns:
      A `Question`; its answer is a dict of float by category or string, the most frequent first, and so is the stddev,
      which is of each count by itself: that of the first of many is likely to be too large.

    Raises:
      ValueError: If a number is out of range, or it is not clear which of the two is meant.

    >>> from fedjx.analytics import ask, top_k
    >>> data = fedjx.data.FederatedData.from_clients([{"label": [3, 1]}, {"label": [3, 2]}, {"label": [2, 3]}])
    >>> ask(top_k("label", 2, num_categories=10, min_count=2), data).value
    {3: 3.0, 2: 2.0}
    """
    check_integer("[1, inf)", k=k)
    if (num_categories is None) == (num_bytes is None) or (sketch and num_bytes is None):
        raise ValueError(
            f"a column is of categories or of strings; got {num_categories=}, {num_bytes=} and {sorted(sketch)}. Pass "
            "num_categories= alone, or num_bytes=."
        )
    if num_bytes is not None:
        question = heavy_hitters(column, num_bytes=num_bytes, min_count=min_count, distinct=distinct, **sketch)
    else:
        assert num_categories is not None
        question = histogram(column, bins=num_categories, distinct=distinct)
    by_name = question.estimate

    def estimate(total: Total) -> tuple[Any, Any]:
        counts, stddevs = by_name(total)
        if num_bytes is None:
            order = np.argsort(-counts, kind="stable")
            order = order[(counts[order] >= min_count)].tolist()
            counts, stddevs = ({name: float(x[name]) for name in order} for x in (counts, stddevs))
        return dict(list(counts.items())[:k]), dict(list(stddevs.items())[:k])

    return question._replace(estimate=estimate)
