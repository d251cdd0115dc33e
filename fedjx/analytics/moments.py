"""First and second moments of several columns: of what variances, correlations and regressions are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjx.analytics.numbers import Range, bounds
from fedjx.analytics.question import Entry, Question, Total, of_values
from fedjx.core.language.names import Array, PyTree

Bounds = Mapping[str, tuple[float, float]]

_ROUNDING = 1e-6  # of a mean of squares in float32, about: a variance that is less a part of it may be none


class Products(NamedTuple):
    """The entry of a record: its distances z from the middles, and their products, those of a pair once.

    A square is counted from half its largest value, by which its bound, and so its noise, is half as large.

    Attributes:
      columns: Of numbers ``[]``, d of them.
      ranges: Of each.
    """

    columns: tuple[str, ...]
    ranges: tuple[Range, ...]

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        """Returns what a record adds; one with something that is not finite takes no part."""
        distances, is_whole = [], jnp.bool_(True)
        for column, within in zip(self.columns, self.ranges, strict=True):
            distances.append(within.distance(record[column]))
            is_whole = is_whole & jnp.isfinite(record[column])
        z, (rows, columns) = jnp.stack(distances), self.pairs
        products = z[rows] * z[columns] - jnp.asarray(self.shifts, jnp.float32)
        return Entry(jnp.where(is_whole, 0, -1).astype(jnp.int32), jnp.concatenate([z, products]))

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Of which the products are."""
        rows, columns = np.triu_indices(len(self.columns))
        return rows, columns

    @property
    def halves(self) -> np.ndarray:
        """The largest distances, float64 ``[d]``."""
        return np.array([within.half for within in self.ranges])

    @property
    def middles(self) -> np.ndarray:
        """From where distances are, float64 ``[d]``."""
        return np.array([within.middle for within in self.ranges])

    @property
    def shifts(self) -> np.ndarray:
        """From where products are counted, float64 ``[d (d + 1) / 2]``."""
        (rows, columns), halves = self.pairs, self.halves
        is_square = (rows == columns) & np.isfinite(halves[rows])
        return np.where(is_square, halves[rows] ** 2 / 2, 0.0)

    @property
    def bounds(self) -> tuple[float, ...]:
        """Of all these numbers."""
        (rows, columns), halves = self.pairs, self.halves
        products = halves[rows] * halves[columns] - self.shifts
        return (*halves.tolist(), *products.tolist())


class Moments(NamedTuple):
    """What a table says of the distances z, and how that changes with the k elements of the table's row.

    Attributes:
      number: Of records.
      first: The means of z, ``[d]``.
      of_first: Their gradients, ``[d, k]``.
      second: The means of z z', ``[d, d]``.
      of_second: Their gradients, ``[d, d, k]``.
    """

    number: float
    first: np.ndarray
    of_first: np.ndarray
    second: np.ndarray
    of_second: np.ndarray

    def about(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the means of ``(z - point) (z - point)'``, and their gradients; of a fixed point, or the mean."""
        cross = np.outer(point, self.first)
        of_cross = point[:, None, None] * self.of_first[None]
        matrix = self.second - cross - cross.T + np.outer(point, point)
        return matrix, self.of_second - of_cross - of_cross.swapaxes(0, 1)


def products(columns: Sequence[str], within: Bounds | None) -> Products:
    """Returns the entry of some columns, within their bounds.

    Raises:
      ValueError: If a column is there twice or lacks bounds.
    """
    if isinstance(columns, str) or not columns or len(set(columns)) < len(columns):
        raise ValueError(f"columns are some, each once; got {list(columns)}. Name them.")
    if within is not None and set(columns) - set(within):
        raise ValueError(
            f"each column has bounds; got none of {sorted(set(columns) - set(within))}. Pass "
            "bounds={column: (low, high), ...}, or none at all, which only plain answers allow."
        )
    ranges = (bounds(None, None) if within is None else bounds(*within[column]) for column in columns)
    return Products(tuple(columns), tuple(ranges))


def moments(entry: Products, total: Total) -> Moments | None:
    """Returns what a table of one row says; None if there is no record to say it of."""
    row, d = total.table[0], len(entry.columns)
    number = float(row[-1])
    if number <= 0:
        return None
    first, (rows, columns) = row[:d] / number, entry.pairs
    of_first = np.eye(d, len(row)) / number
    of_first[:, -1] = -first / number
    second, of_second = np.empty((d, d)), np.zeros((d, d, len(row)))
    for place, (i, j, shift) in enumerate(zip(rows, columns, entry.shifts, strict=True), start=d):
        second[i, j] = second[j, i] = row[place] / number + shift
        of_second[i, j, place] = of_second[j, i, place] = 1 / number
        of_second[i, j, -1] = of_second[j, i, -1] = -row[place] / number**2
    return Moments(number, first, of_first, second, of_second)


def stddevs(total: Total, gradients: np.ndarray) -> np.ndarray:
    """Returns the standard deviations of what has these gradients ``[..., k]`` in the table."""
    flat = [total.stddev(gradient) for gradient in gradients.reshape(-1, gradients.shape[-1])]
    return np.array(flat).reshape(gradients.shape[:-1])


def covariance_of(entry: Products, total: Total, ddof: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the covariances and their gradients, ``[d, d]`` and ``[d, d, k]``; NaN of too few records."""
    d, found = len(entry.columns), moments(entry, total)
    if found is None or found.number <= ddof:
        return np.full((d, d), np.nan), np.full((d, d, total.table.shape[1]), np.nan)
    matrix, gradient = found.about(found.first)
    factor = found.number / (found.number - ddof)
    gradient = gradient * factor
    gradient[:, :, -1] -= matrix * ddof / (found.number - ddof) ** 2
    return matrix * factor, gradient


def varying(entry: Products, total: Total, variances: np.ndarray) -> np.ndarray:
    """Returns the variances that are more than rounding, ``[d]``; NaN in place of the others."""
    found = moments(entry, total)
    most = 0 if found is None else np.diagonal(found.second)
    return np.where(variances > _ROUNDING * most, variances, np.nan)


def question_of(entry: Products, estimate: Callable[[Total], tuple[Any, Any]]) -> Question:
    """Returns the question whose entry this is."""
    return Question(entry.columns, entry, 1, estimate, of_values(len(entry.bounds), counts=True), entry.bounds)
