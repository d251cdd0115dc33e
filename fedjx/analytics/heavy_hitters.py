"""Which strings are frequent, by one sum of hashed counters of all prefixes, of which the server expands the tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.special import ndtri

from fedjx.analytics.question import Entry, Question, Sensitivity, Total
from fedjx.analytics.text import fitted, from_bytes, hash_bytes, hash_coefficients
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import Array, PyTree

_FALSE = 0.05  # the probability that a string which nobody has is shown at all
_LOCAL = "a report is of one bin, and a string has many. Use prefix_tree"


def heavy_hitters(
    column: str,
    *,
    num_bytes: int,
    max_hitters: int = 500,
    min_count: float = 10.0,
    num_stddevs: float | None = None,
    distinct: bool = False,
    num_hashes: int = 3,
    width: int = 1 << 13,
    seed: int = 0,
) -> Question:
    """Asks for the most frequent strings, in one pass over the clients.

    Each string, and each of its prefixes of two bytes or more, adds one to a counter in each of ``num_hashes`` rows of
    its level, which a hash chooses out of ``width``: count-min sketches (Cormode and Muthukrishnan 2005) of a tree. The
    server goes down the tree, a byte at a time, and keeps the prefixes whose least counter is largest. The counts of
    the strings at the end are those of least squares: c = A f + b, where c are the counters of whole strings, A says
    whose they are, and b, what all other strings and the noise add, is measured where there is no string that was
    found, as is its variance v: the stddev is the root of v times the diagonal of (A^T A)^-1, and about that of v over
    the number of rows. Counts are exact if all strings are found.

    Args:
      column: Of strings, uint8 ``[length]``; see `to_bytes`. The empty one is left out.
      num_bytes: How many bytes of a string count; strings of the same beginning are one.
      max_hitters: The most strings, and prefixes of each level, that are kept.
      min_count: What is estimated to be rarer is not shown; of clients if ``distinct``, of records otherwise.
      num_stddevs: Nor is what is less than so many standard deviations; by default so many that noise alone shows a
        string with a probability of 5%.
      distinct: Whether a client counts once for a string, however often it has it; and with ``max_records`` once in
        each counter, so that noise is in proportion to its root.
      num_hashes: Rows of counters of a level.
      width: Counters of a row, at least four times ``max_hitters``.
      seed: Of the hash functions.

    Returns:
      A `Question`, not for local reports; its answer is a dict of float by string, the most frequent first, and so is
      the stddev.

    Raises:
      ValueError: If a number is out of range.

    >>> from fedjx.analytics import ask, heavy_hitters, to_bytes
    >>> words = [["tea", "milk"], ["tea"], ["coffee", "tea"], ["milk"]]
    >>> data = fedjx.data.FederatedData.from_clients([{"word": to_bytes(client, 6)} for client in words])
    >>> ask(heavy_hitters("word", num_bytes=6, min_count=2, max_hitters=10, width=64), data, trust="secure").value
    {'tea': 3.0, 'milk': 2.0}
    """
    check_integer("[1, inf)", num_bytes=num_bytes, max_hitters=max_hitters, num_hashes=num_hashes)
    check_integer(f"[{4 * max_hitters}, inf)", "Others need room beside those that are kept.", width=width)
    check_number("[0, inf)", min_count=min_count)
    if num_stddevs is None:
        num_stddevs = -float(ndtri(_FALSE / (256 * max_hitters)))
    check_number("[0, inf)", num_stddevs=num_stddevs)
    sketch = _Sketch(column, num_bytes, num_hashes, width, seed)
    estimate = _Found(sketch, max_hitters, min_count, num_stddevs)
    refuses = {"local_dp": _LOCAL, "shuffled_dp": _LOCAL}
    return Question(
        (column,), sketch, sketch.num_bins, estimate, sketch.sensitivity, distinct=distinct, refuses=refuses
    )


class _Sketch(NamedTuple):
    """Counters of prefixes: of each level ``num_hashes`` rows of some width, and of whole strings two levels.

    Attributes:
      column: See `heavy_hitters`, as are the next ones.
      num_bytes: See there.
      num_hashes: See there.
      width: See there.
      seed: See there.
    """

    column: str
    num_bytes: int
    num_hashes: int
    width: int
    seed: int

    @property
    def num_levels(self) -> int:
        """Prefixes of two bytes and more, and whole strings once more: what survives by chance does not twice."""
        return max(self.num_bytes, 2)

    @property
    def num_rows(self) -> int:
        """Of all levels."""
        return self.num_levels * self.num_hashes

    @property
    def num_bins(self) -> int:
        """Counters in all."""
        return self.num_rows * self.width

    def coefficients(self) -> np.ndarray:
        """Returns the hash functions, uint32 ``[num_rows, num_bytes + 1]``, each of a prefix."""
        drawn = hash_coefficients(self.num_rows, self.num_bytes, self.seed)
        level = np.arange(self.num_rows)[:, None] // self.num_hashes  # 0 for prefixes of two bytes
        return drawn * (np.arange(self.num_bytes + 1) <= level + 2)

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        string = fitted(record[self.column], self.num_bytes)
        hashes = hash_bytes(string, self.coefficients())
        rows = np.arange(self.num_rows, dtype=np.int32) * self.width
        bins = (hashes % np.uint32(self.width)).astype(np.int32) + rows
        return Entry((string[0] == 0) * -self.num_bins + bins, identity=hashes[-1])

    def sensitivity(self, max_records: int, distinct: bool) -> Sensitivity:
        """Returns that of records that are all in the same bins, or once in each of so many."""
        number = float(max_records)
        return Sensitivity(number * self.num_rows, (number**0.5 if distinct else number) * self.num_rows**0.5)


class _Found(NamedTuple):
    """The estimate of `heavy_hitters`."""

    sketch: _Sketch
    max_hitters: int
    min_count: float
    num_stddevs: float

    def __call__(self, total: Total) -> tuple[dict[str, float], dict[str, float]]:
        strings = self.expanded(total.table.reshape(self.sketch.num_rows, -1))
        counts, stddevs = self.fitted(strings, total)
        shown = counts >= np.maximum(self.min_count, self.num_stddevs * stddevs)
        return ordered(strings[shown], counts[shown], stddevs[shown])

    def expanded(self, table: np.ndarray) -> np.ndarray:
        """Goes down the tree; returns the strings at its end, uint8 ``[at most max_hitters, num_bytes]``."""
        sketch = self.sketch
        coefficients = sketch.coefficients().reshape(sketch.num_levels, sketch.num_hashes, -1)
        levels = table.reshape(sketch.num_levels, sketch.num_hashes, -1)
        levels = levels - np.median(levels, axis=-1, keepdims=True)
        found = _longer(np.zeros((1, sketch.num_bytes), np.uint8), 0)
        for level, (counters, hashes) in enumerate(zip(levels, coefficients, strict=True)):
            found = _longer(found, level + 1) if level + 1 < sketch.num_bytes else found
            bins = hash_bytes(found, hashes) % np.uint32(sketch.width)
            least = counters[np.arange(sketch.num_hashes), bins].min(axis=1)
            best = np.argsort(-least, kind="stable")[: self.max_hitters]
            # A rare prefix has no frequent string; below zero there is nothing but noise.
            found = found[best[least[best] > 0]]
        return found

    def fitted(self, strings: np.ndarray, total: Total) -> tuple[np.ndarray, np.ndarray]:
        """Returns the counts of strings by least squares, and their standard deviations."""
        sketch, rows = self.sketch, 2 * self.sketch.num_hashes
        if not len(strings):
            return np.zeros(0), np.zeros(0)
        table = total.table.reshape(sketch.num_rows, -1)[-rows:]
        bins = hash_bytes(strings, sketch.coefficients()[-rows:]) % np.uint32(sketch.width)
        places = (bins + np.arange(rows) * sketch.width).astype(np.int64)
        ends = np.arange(len(strings) + 1) * rows
        of_string = csr_array((np.ones(places.size), places.reshape(-1), ends), (len(strings), table.size))
        others = np.ones(table.size, bool)
        others[places.reshape(-1)] = False
        others = others.reshape(table.shape)
        middle = np.array([row[is_other].mean() for row, is_other in zip(table, others, strict=True)])
        rest = (table - middle[:, None]).reshape(-1)
        # Strings that share their counters with others in every row are not told apart; they share the count too.
        inverse = np.linalg.pinv((of_string @ of_string.T).toarray(), hermitian=True)
        variance = rest[others.reshape(-1)].var() * np.diag(inverse)
        drawn = total.variance.reshape(sketch.num_rows, -1)[-rows:].reshape(-1)
        drawn = (drawn[places] - drawn[others.reshape(-1)].mean()).mean(
            axis=1
        )  # of a sample, which is one for all rows
        return np.round(inverse @ (of_string @ rest), 6), np.sqrt(np.maximum(variance, 0) + np.maximum(drawn, 0))


def _longer(prefixes: np.ndarray, length: int) -> np.ndarray:
    """Returns prefixes with each byte after them, or none after those that have ended, uint8 ``[n, num_bytes]``."""
    goes_on = np.ones(len(prefixes), bool) if length == 0 else prefixes[:, length - 1] > 0
    longer = np.repeat(prefixes[goes_on], 256, axis=0)
    longer[:, length] = np.tile(np.arange(256, dtype=np.uint8), int(goes_on.sum()))
    return np.concatenate([prefixes[~goes_on], longer[1:] if length == 0 else longer])


def ordered(strings: np.ndarray, counts: np.ndarray, stddevs: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """Returns counts and stddevs by string, the most frequent first; in the order of bytes if they are the same."""
    order = np.lexsort((*strings.T[::-1], -counts))
    names = from_bytes(strings[order])
    by_name = dict(zip(names, counts[order].tolist(), strict=True))
    return by_name, dict(zip(names, stddevs[order].tolist(), strict=True))
