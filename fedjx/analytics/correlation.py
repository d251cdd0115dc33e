"""How several columns vary together: their covariances and correlations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedjx.analytics.moments import Bounds, covariance_of, products, question_of, stddevs, varying
from fedjx.analytics.question import Question, Total
from fedjx.core.language.checks import check_number


def covariance(columns: Sequence[str], *, bounds: Bounds | None = None, ddof: float = 1) -> Question:
    """Asks for the covariances of several columns, over all records, each number clipped to its bounds.

    They are made of ``d (d + 1) / 2 + d + 1`` sums: of products of distances from the middles, those of a pair once, of
    distances, and the number of records. Each has noise of its own if there is any, in proportion to the root of their
    number. To first order they have no bias. A record with something that is not finite is left out.

    Args:
      columns: Of numbers ``[]``, d of them.
      bounds: By column ``(low, high)``; nothing is clipped if not given, which only plain answers allow, and distances
        are from 0.
      ddof: As in `numpy.cov`.

    Returns:
      A `Question`; its answer is float64 ``[d, d]``, NaN of no more than ``ddof`` records.

    >>> from fedjx.analytics import ask, covariance
    >>> data = fedjx.data.FederatedData.from_clients([{"x": [0.0, 1.0], "y": [2.0, 4.0]}, {"x": [2.0], "y": [9.0]}])
    >>> ask(covariance(["x", "y"], bounds={"x": (0, 4), "y": (0, 16)}), data).value
    array([[ 1. ,  3.5],
           [ 3.5, 13. ]])
    """
    check_number("[0, inf)", ddof=ddof)
    entry = products(columns, bounds)

    def estimate(total: Total) -> tuple[np.ndarray, np.ndarray]:
        found, gradient = covariance_of(entry, total, ddof)
        return found, stddevs(total, gradient)

    return question_of(entry, estimate)


def correlation(columns: Sequence[str], *, bounds: Bounds | None = None) -> Question:
    """Asks for the correlations of several columns, over all records, each number clipped to its bounds.

    They are covariances over the roots of variances, see `covariance`; where noise would have one beyond -1 or 1 it is
    that.

    Args:
      columns: Of numbers ``[]``, d of them.
      bounds: By column ``(low, high)``; nothing is clipped if not given, which only plain answers allow.

    Returns:
      A `Question`; its answer is float64 ``[d, d]``, NaN where a column does not vary, or noise has it so.

    >>> from fedjx.analytics import ask, correlation
    >>> data = fedjx.data.FederatedData.from_clients([{"x": [0.0, 1.0], "y": [2.0, 4.0]}, {"x": [2.0], "y": [9.0]}])
    >>> ask(correlation(["x", "y"], bounds={"x": (0, 4), "y": (0, 16)}), data).value.round(4)
    array([[1.    , 0.9707],
           [0.9707, 1.    ]])
    """
    entry = products(columns, bounds)

    def estimate(total: Total) -> tuple[np.ndarray, np.ndarray]:
        found, gradient = covariance_of(entry, total, 0)
        variances = varying(entry, total, np.diagonal(found))
        roots = np.sqrt(np.outer(variances, variances))
        r = found / roots
        # The derivative of c_ij / sqrt(c_ii c_jj).
        of_variances = np.diagonal(gradient).T / variances[:, None]
        slopes = gradient / roots[:, :, None] - r[:, :, None] * (of_variances[:, None] + of_variances[None]) / 2
        np.fill_diagonal(r, np.where(np.isnan(variances), np.nan, 1.0))
        return np.clip(r, -1, 1), stddevs(total, slopes)

    return question_of(entry, estimate)
