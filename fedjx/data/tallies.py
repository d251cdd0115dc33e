"""What `describe` keeps of the columns that pass by: little, however many values there are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# Quantiles are exact up to so many values; of more, their ranks have a standard error of at most 0.14 per cent.
MAX_SAMPLE = 1 << 17
MAX_LABELS = 256
# Values that stay in the cache of a core while they are looked at in turn.
_SLICE = 1 << 16
# Bytes of text may be tabulators and ends of lines, and no other control character.
_IS_CONTROL = np.isin(np.arange(256), [*range(1, 9), 11, 12, *range(14, 32), 127])


class Numbers(NamedTuple):
    """How the numbers of a column are distributed; of features that are arrays, all their elements.

    Attributes:
      num_values: How many there are.
      num_non_finite: How many of them are NaN or infinite. All that follows but `zeros` is of the others, and NaN if
        there are none.
      minimum: The least.
      mean: The mean, in float64.
      standard_deviation: The root of the mean square of the deviations from the mean (``ddof=0``), in float64.
      maximum: The greatest.
      zeros: The share of zeros among all values.
      sample: The finite ones, increasing, ``[S]``: all of up to 131,072 values; of more, one drawn at random from each
        of as many equal parts of the column, so that each value is as likely to be there.
    """

    num_values: int
    num_non_finite: int
    minimum: float
    mean: float
    standard_deviation: float
    maximum: float
    zeros: float
    sample: np.ndarray

    @property
    def is_exact(self) -> bool:
        """Whether the sample has all values."""
        return self.num_values <= MAX_SAMPLE


class Labels(NamedTuple):
    """How often each value of a column of few different integers is there, and how clients differ in it.

    Attributes:
      counts: Examples by value, the most frequent first.
      num_labels: How many different values a client has, increasing, int64 ``[S]``: of all clients that have examples;
        if there are over 131,072 clients, of those among a sample as in `Numbers`.
      largest_share: The share of a client's examples that have its most frequent value, increasing, likewise.
    """

    counts: dict[int, int]
    num_labels: np.ndarray
    largest_share: np.ndarray


class Sample:
    """A sample of a sequence whose length is known: a value drawn at random from each of some equal parts of it."""

    def __init__(self, length: int, dtype: np.dtype | type):
        num_parts = min(length, MAX_SAMPLE)
        edges = np.linspace(0, length, num_parts + 1).astype(np.int64)
        self._places = np.random.default_rng(0).integers(edges[:-1], edges[1:])
        self._buffer = np.empty(num_parts, dtype)
        self._num_seen = self._num_taken = 0

    @property
    def values(self) -> np.ndarray:
        """What has been drawn so far."""
        return self._buffer[: self._num_taken]

    def add(self, values: np.ndarray) -> None:
        """Passes the next values of the sequence, ``[n]``."""
        end = int(np.searchsorted(self._places, self._num_seen + len(values)))
        chosen = slice(self._num_taken, end)
        self._buffer[chosen] = values[self._places[chosen] - self._num_seen]
        self._num_seen, self._num_taken = self._num_seen + len(values), end


class NumbersTally:
    """Numbers that come in blocks; their means and squares are merged as in Chan, Golub and LeVeque 1979, (1.5)."""

    def __init__(self, num_values: int, dtype: np.dtype):
        self._dtype = _plain(dtype)
        self._sample = Sample(num_values, self._dtype)
        self._num_values = self._num_finite = self._num_zeros = 0
        self._offset = self._mean = self._squares = 0.0  # The mean is counted from the offset.
        self._minimum, self._maximum = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        """Counts an array of further values."""
        values = values.reshape(-1).astype(self._dtype, copy=False)
        self._sample.add(values)
        for start in range(0, len(values), _SLICE):
            self._add_slice(values[start : start + _SLICE])

    def result(self) -> Numbers:
        """Returns what has been found."""
        sample, num_values, num_finite = self._sample.values, self._num_values, self._num_finite
        deviation = math.sqrt(self._squares / num_finite) if num_finite else math.nan
        return Numbers(
            num_values,
            num_non_finite=num_values - num_finite,
            minimum=self._minimum if num_finite else math.nan,
            mean=self._offset + self._mean if num_finite else math.nan,
            standard_deviation=deviation,
            maximum=self._maximum if num_finite else math.nan,
            zeros=self._num_zeros / max(num_values, 1),
            sample=np.sort(sample[np.isfinite(sample)]),
        )

    def _add_slice(self, values: np.ndarray) -> None:
        self._num_values += len(values)
        self._num_zeros += len(values) - int(np.count_nonzero(values))
        if values.dtype.kind == "f" and not (is_finite := np.isfinite(values)).all():
            values = values[is_finite]
        if not len(values):
            return
        self._minimum = min(self._minimum, values.min().item())
        self._maximum = max(self._maximum, values.max().item())
        with np.errstate(over="ignore", invalid="ignore"):  # Values of 1e200 have no variance that float64 can hold.
            if not self._num_finite:  # Close to most values, so that little is lost by far offsets; none is an outlier.
                self._offset = float(np.median(values[:1001]))
            deviations = np.subtract(values, self._offset, dtype=np.float64)
            mean = float(deviations.mean())
            deviations -= mean
            squares = float(np.square(deviations, out=deviations).sum())  # A product would wait for BLAS's threads.
            before, self._num_finite = self._num_finite, self._num_finite + len(values)
            shift, share = mean - self._mean, len(values) / self._num_finite
            self._mean += shift * share
            self._squares += squares + shift * before * share * shift


class LabelsTally:
    """Scalar integers of clients that come in passes; given up as soon as they have too many values."""

    def __init__(self, num_clients: int):
        self._counts: Counter[int] | None = Counter()
        self._num_labels, self._shares = Sample(num_clients, np.int64), Sample(num_clients, np.float64)

    def add(self, values: np.ndarray, sizes: np.ndarray) -> None:
        """Counts the values of the next clients, ``[n]``, of whom each has so many, ``[C]``."""
        if self._counts is None:
            return
        num_labels, shares = np.zeros(len(sizes), np.int64), np.zeros(len(sizes))
        if len(values):
            labels, counts, codes = _coded(values)
            self._counts.update(dict(zip(labels, counts, strict=True)))
            if len(self._counts) > MAX_LABELS:
                self._counts = None
                return
            owner, run = _runs(codes, sizes)
            num_labels = np.bincount(owner, minlength=len(sizes))
            starts = (num_labels.cumsum() - num_labels)[sizes > 0]
            shares[sizes > 0] = np.maximum.reduceat(run, starts) / sizes[sizes > 0]
        self._num_labels.add(num_labels)
        self._shares.add(shares)

    def result(self) -> Labels | None:
        """Returns what has been found, or None where there are too many values."""
        if self._counts is None:
            return None
        has_examples = self._num_labels.values > 0
        columns = (np.sort(tally.values[has_examples]) for tally in (self._num_labels, self._shares))
        return Labels(most_frequent(self._counts), *columns)


class LengthsTally:
    """Rows of bytes that may be text padded with zeros; given up as soon as one is not."""

    def __init__(self):
        self._counts: Counter[int] | None = Counter()

    def add(self, rows: np.ndarray) -> None:
        """Counts the lengths of rows, uint8 ``[n, L]``."""
        if self._counts is None:
            return
        is_padding = rows == 0
        is_wrong = _IS_CONTROL[rows]
        is_wrong[:, 1:] |= is_padding[:, :-1] & ~is_padding[:, 1:]
        if is_wrong.any():
            self._counts = None
        else:
            count_into(self._counts, rows.shape[1] - is_padding.sum(1))

    def result(self) -> dict[int, int] | None:
        """Returns how many rows there are of each length, or None if they are no text; nothing but zeros is none."""
        return dict(sorted(self._counts.items())) if self._counts and max(self._counts) else None


def count_into(counts: Counter, values: np.ndarray) -> None:
    """Counts some values, of few different ones."""
    found, number = np.unique(values, return_counts=True)
    counts.update(dict(zip(found.tolist(), number.tolist(), strict=True)))


def most_frequent(counts: Mapping) -> dict:
    """Sorts counts by value, and then the most frequent first."""
    return dict(sorted(sorted(counts.items()), key=lambda item: -item[1]))


def quantiles_of(values: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """Returns quantiles in float64; NaN if there are no values."""
    return np.quantile(values.astype(np.float64), quantiles) if len(values) else np.full(len(quantiles), np.nan)


def quantiles_of_counts(counts: Mapping[int, int], quantiles: ArrayLike) -> np.ndarray:
    """Returns quantiles, as `np.quantile` does, of values that are there so many times.

    >>> quantiles_of_counts({1: 3, 5: 1}, [0.5, 1]), np.quantile([1, 1, 1, 5], [0.5, 1])
    (array([1., 5.]), array([1., 5.]))
    """
    values = np.array(sorted(counts))
    ends = np.cumsum([counts[value] for value in values.tolist()])
    rank = np.asarray(quantiles) * (ends[-1] - 1)
    below = np.floor(rank).astype(np.int64)
    low, high = (values[np.searchsorted(ends, np.minimum(k, ends[-1] - 1), side="right")] for k in (below, below + 1))
    return low + (rank - below) * (high - low)


def _plain(dtype: np.dtype) -> np.dtype:
    """Returns a dtype of NumPy's own for booleans and for those that NumPy calculates with one by one, as bfloat16."""
    return dtype if dtype.kind in "iuf" else np.dtype(np.uint8 if dtype.kind == "b" else np.float32)


def _coded(values: np.ndarray) -> tuple[list[int], list[int], np.ndarray]:
    """Returns the different integers of a vector, how often each is there, and small numbers that stand for them."""
    values = values if values.dtype.kind == "u" else values.astype(np.int64)
    low = values.min()
    if int(values.max()) - int(low) >= _SLICE:
        labels, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
        return labels.tolist(), counts.tolist(), codes
    codes = (values - low).astype(np.int64)
    counts = np.bincount(codes)
    present = np.flatnonzero(counts)
    return [int(low) + code for code in present.tolist()], counts[present].tolist(), codes


def _runs(codes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each code that a client has, client by client, whose it is and how often it is there."""
    width = int(codes.max()) + 1
    keys = np.repeat(np.arange(len(sizes)) * width, sizes) + codes
    keys.sort()
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[starts] // width, np.diff(starts, append=len(keys))
