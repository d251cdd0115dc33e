"""Linear regression of one column on others, by sums of products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjx.analytics.moments import Bounds, Moments, Products, moments, products, question_of, stddevs
from fedjx.analytics.question import Question, Total
from fedjx.core.language.checks import check_number

_ROUNDING = 1e-6  # of float32 in sums: what features vary less than that in a direction, of 1, they may not vary at all


class Regression(NamedTuple):
    """A line through the records: ``target = intercept + features @ coefficients``.

    Attributes:
      coefficients: float64 ``[d]``, of the features.
      intercept: 0 if it was not asked for.
      residual_variance: Of the target about the line, whose degrees of freedom are the records' less the line's.
      standard_errors: float64 ``[d]``, of the coefficients, if the records are a sample whose residuals are independent
        and of one variance; of those of a ridge they are the spread alone, not the bias.
    """

    coefficients: np.ndarray
    intercept: float | np.ndarray
    residual_variance: float | np.ndarray | None = None
    standard_errors: np.ndarray | None = None


def linear_regression(
    features: Sequence[str],
    target: str,
    *,
    bounds: Bounds | None = None,
    intercept: bool = True,
    ridge: float = 0.0,
) -> Question:
    """Asks for the line through all records that has the least squares, each number clipped to its bounds.

    It minimises ``sum (target - intercept - features @ coefficients)^2 + ridge |coefficients|^2``, by the same sums as
    `fedjx.analytics.covariance` of the d features and the target: ``(d + 1) (d + 2) / 2 + d + 2`` numbers of a client,
    each with noise of its own if there is any. A direction of the features in which they do not vary, beyond rounding,
    or in which noise hides it, adds nothing to the line: so of collinear features, in units of their standard
    deviations, it is the shortest. A record with something that is not finite is left out.

    Args:
      features: Columns of numbers ``[]``, d of them.
      target: Another one.
      bounds: By column ``(low, high)``; nothing is clipped if not given, which only plain answers allow.
      intercept: Whether the line has one, or goes through the origin.
      ridge: As above; more of it steadies a line that noise shakes.

    Returns:
      A `Question`; its answer is a `Regression`, and its ``stddev`` one of coefficients and intercept, by noise and
      sampling of clients, to first order.

    >>> from fedjx.analytics import ask, linear_regression
    >>> data = fedjx.data.FederatedData.from_clients([{"x": [0.0, 1.0], "y": [1.0, 3.0]}, {"x": [3.0], "y": [7.0]}])
    >>> line = ask(linear_regression(["x"], "y", bounds={"x": (0, 4), "y": (0, 8)}), data).value
    >>> line.coefficients.round(5), round(float(line.intercept), 5)
    (array([2.]), 1.0)
    """
    check_number("[0, inf)", ridge=ridge)
    entry = products((*features, target), bounds)
    if not features:
        raise ValueError(f"a line needs a feature; got {features=}. Ask for the mean, or name one.")

    def estimate(total: Total) -> tuple[Regression, Regression]:
        found = moments(entry, total)
        if found is None:
            nan = np.full(len(features), np.nan)
            return Regression(nan, nan[0], nan[0], nan), Regression(nan, nan[0])
        return _fitted(entry, total, found, intercept, ridge)

    return question_of(entry, estimate)


def _fitted(
    entry: Products, total: Total, found: Moments, intercept: bool, ridge: float
) -> tuple[Regression, Regression]:
    """Returns the line, and its standard deviations by noise."""
    matrix, gradient = found.about(found.first if intercept else -entry.middles)
    penalty = ridge / found.number
    inverse = _inverse(matrix[:-1, :-1], penalty)
    slopes = inverse @ matrix[:-1, -1]
    # Of the slopes A^-1 c the differential is A^-1 (dc - dA slopes); the number of records is in the penalty too.
    change = gradient[:-1, -1] - np.einsum("ijk,j->ik", gradient[:-1, :-1], slopes)
    change[:, -1] += penalty / found.number * slopes
    of_slopes = inverse @ change
    residual = matrix[-1, -1] - 2 * slopes @ matrix[:-1, -1] + slopes @ matrix[:-1, :-1] @ slopes
    freedom = found.number - len(slopes) - int(intercept)
    variance = max(residual, 0.0) * found.number / freedom if freedom > 0 else np.nan
    errors = np.sqrt(variance / found.number * np.diagonal(inverse @ matrix[:-1, :-1] @ inverse).clip(0))
    constant, of_constant = 0.0, np.zeros(total.table.shape[1])
    if intercept:
        means = entry.middles + found.first
        constant = means[-1] - slopes @ means[:-1]
        of_constant = found.of_first[-1] - slopes @ found.of_first[:-1] - means[:-1] @ of_slopes
    line = Regression(slopes, constant, variance, errors)
    return line, Regression(stddevs(total, of_slopes), stddevs(total, of_constant))


def _inverse(matrix: np.ndarray, penalty: float) -> np.ndarray:
    """Inverts a matrix of moments with a penalty on its diagonal, in the directions in which it is positive."""
    scales = np.sqrt(np.maximum(np.diagonal(matrix), 0) + penalty)
    scales = np.where(scales > 0, scales, np.inf)
    values, vectors = np.linalg.eigh((matrix + penalty * np.eye(len(matrix))) / np.outer(scales, scales))
    kept = values > _ROUNDING * max(values[-1], 0.0)
    vectors = vectors[:, kept] / scales[:, None]
    return vectors / values[kept] @ vectors.T
