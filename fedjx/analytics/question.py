"""What a question is: what one record adds to a sum, and what the answer makes of the total. Most are nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjx.core.language.names import Array, PyTree


class Entry(NamedTuple):
    """What one record adds to a table of ``num_bins`` rows, or to several of them.

    Attributes:
      bins: int32 ``[]`` or ``[m]``; the rows. A record whose first is below 0 takes no part.
      values: float32 ``[d]``, added to each of these rows, within the question's bounds; or integers, which are added
        modulo 2^32 if the question says so; None if records are only counted.
      priority: A number ``[]``; of a client with more than ``max_records`` those of the highest are taken. None if they
        are drawn at random.
      identity: Integer ``[]``; of a client's records with the same one a distinct question takes one. The first bin if
        not given.
    """

    bins: Array
    values: Array | None = None
    priority: Array | None = None
    identity: Array | None = None


class Total(NamedTuple):
    """The sums over the clients, or what is known of them, in float64.

    Attributes:
      table: ``[num_bins, d]``; for a question that counts its records their number is the last column.
      variance: ``[num_bins, d]``; of the table's elements, by noise and sampling; 0 where it is exact.
      covariance: ``[num_bins * d, num_bins * d]``, if elements vary together; None if each varies by itself.
    """

    table: np.ndarray
    variance: np.ndarray
    covariance: np.ndarray | None = None

    def stddev(self, gradient: np.ndarray) -> float:
        """Returns the standard deviation, to first order, of what has this gradient in the table."""
        flat = gradient.reshape(-1)
        if self.covariance is None:
            return float(np.sqrt(np.sum(flat**2 * self.variance.reshape(-1))))
        return float(np.sqrt(max(flat @ self.covariance @ flat, 0.0)))


class Sensitivity(NamedTuple):
    """The most that one record, or a client's several, change the table.

    Attributes:
      l1: The sum of the changes.
      l2: Their Euclidean norm.
    """

    l1: float
    l2: float


class Question(NamedTuple):
    """A question to clients whose answer is made of one sum over them.

    Attributes:
      columns: The features of a record that it is about.
      entry: ``(record, told) -> Entry``, a pure function of one record, a dict of the columns, and of what is told.
      num_bins: Rows of the table.
      estimate: ``(total) -> (value, stddev)``, what the server makes of the sums.
      sensitivity: ``(max_records, distinct) -> Sensitivity``, the most that a client's entries change the table, whose
        values are counted in bounds.
      bounds: The largest magnitude of each of the d numbers in an entry; infinite ones are for plain answers alone.
      counts: Whether the table has the numbers of records too.
      distinct: Whether of a client's records with the same `Entry.identity` one takes part; and what ``max_records``
        bounds and is only counted adds to each bin once, however many records are there.
      told: Arrays that the server tells everybody, as the second argument of `entry`.
      refuses: Why, by the model of trust, for those in which it cannot be asked.
      modular: Whether values are integers, added modulo 2^32, in plain and secure sums.
    """

    columns: tuple[str, ...]
    entry: Callable[[Mapping[str, Array], PyTree], Entry]
    num_bins: int
    estimate: Callable[[Total], tuple[Any, Any]]
    sensitivity: Callable[[int, bool], Sensitivity]
    bounds: tuple[float, ...] = ()
    counts: bool = True
    distinct: bool = False
    told: PyTree = ()
    refuses: Mapping[str, str] = {}
    modular: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Of the table."""
        return self.num_bins, len(self.bounds) + int(self.counts)


def once(max_records: int, distinct: bool) -> Sensitivity:
    """Returns the sensitivity of entries that are each 1 in one bin.

    >>> once(4, distinct=False), once(4, distinct=True)
    (Sensitivity(l1=4.0, l2=4.0), Sensitivity(l1=4.0, l2=2.0))
    """
    return Sensitivity(float(max_records), float(max_records) ** (0.5 if distinct else 1.0))


def of_values(num_values: int, counts: bool) -> Callable[[int, bool], Sensitivity]:
    """Returns the sensitivity of so many bounded values, with a count if there is one, in one bin.

    >>> of_values(1, counts=True)(3, False).l1
    6.0
    """

    def sensitivity(max_records: int, distinct: bool) -> Sensitivity:
        number = num_values + int(counts)
        return Sensitivity(max_records * float(number), max_records * float(number) ** 0.5)

    return sensitivity
