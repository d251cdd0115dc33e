"""All strings of not too many, exactly, out of one secure sum: an invertible Bloom lookup table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjx.analytics.heavy_hitters import ordered
from fedjx.analytics.question import Entry, Question, Sensitivity, Total
from fedjx.analytics.text import fitted, hash_bytes, hash_coefficients
from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.core.language.names import Array, PyTree

# Cells for each string of which all can be decoded, in the limit of many, by the number of hash functions.
_CELLS_EACH = {3: 1.222, 4: 1.295, 5: 1.425, 6: 1.570}
_NOISY: tuple[str, ...] = ("central_dp", "distributed_dp", "local_dp", "shuffled_dp")
_EXACT = "a table is decoded from exact sums. Use heavy_hitters or prefix_tree"


class Decoded(NamedTuple):
    """What a lookup table had in it.

    Attributes:
      counts: Records, or clients, by string, the most frequent first; those of at least ``min_count``.
      num_undecoded: Records of strings that could not be told apart, because there were too many; 0 up to capacity.
    """

    counts: dict[str, float]
    num_undecoded: int


def lookup_table(
    column: str,
    *,
    num_bytes: int,
    capacity: int,
    min_count: float = 10.0,
    distinct: bool = False,
    num_hashes: int = 3,
    seed: int = 0,
) -> Question:
    """Asks for all strings and their counts, in one sum that has room for so many different ones.

    An invertible Bloom lookup table (Goodrich and Mitzenmacher 2011): each string is added, as numbers, with a checksum
    and a one, to a cell for each of ``num_hashes`` hash functions. A cell with one string alone shows it: it is the sum
    over the count. It is then taken out of its other cells, until nothing is left. Sums are modulo 2^32.

    Args:
      column: Of strings, uint8 ``[length]``; see `to_bytes`. The empty one is left out.
      num_bytes: How many bytes of a string count; strings of the same beginning are one.
      capacity: How many different strings there may be. Of more all or most remain undecoded.
      min_count: Strings with less are decoded and not shown; of clients if ``distinct``, of records otherwise.
      distinct: Whether a client counts once for a string, however often it has it.
      num_hashes: 3 to 6.
      seed: Of the hash functions.

    Returns:
      A `Question` for plain and secure sums; its answer is a `Decoded`, exact up to capacity, all but surely. What the
      server holds has the rare strings in it: that it does not show them is its word.

    Raises:
      ValueError: If a number is out of range.

    >>> from fedjx.analytics import ask, lookup_table, to_bytes
    >>> words = [["tea", "milk"], ["tea"], ["coffee", "tea"], ["milk"]]
    >>> data = fedjx.data.FederatedData.from_clients([{"word": to_bytes(client, 6)} for client in words])
    >>> ask(lookup_table("word", num_bytes=6, capacity=10, min_count=2), data, trust="secure").value
    Decoded(counts={'tea': 3.0, 'milk': 2.0}, num_undecoded=0)
    """
    check_integer("[1, inf)", num_bytes=num_bytes, capacity=capacity)
    check_choice(tuple(_CELLS_EACH), num_hashes=num_hashes)
    check_number("[0, inf)", min_count=min_count)
    table = _Table(column, num_bytes, num_hashes, cells(capacity, num_hashes), seed)

    def estimate(total: Total) -> tuple[Decoded, float]:
        return _decoded(table, total.table, min_count), 0.0

    refuses: dict[str, str] = dict.fromkeys(_NOISY, _EXACT)
    bounds, size = (1.0,) * table.num_values, num_hashes * table.width
    return Question(
        (column,), table, size, estimate, _unknown, bounds, distinct=distinct, refuses=refuses, modular=True
    )


def cells(capacity: int, num_hashes: int) -> int:
    """Returns how many cells of a hash function there are for so many strings.

    >>> cells(1000, 3)
    458
    """
    return math.floor(1.1 * _CELLS_EACH[num_hashes] * capacity / num_hashes + 10)


def _unknown(max_records: int, distinct: bool) -> Sensitivity:
    return Sensitivity(math.inf, math.inf)


class _Table(NamedTuple):
    """What a string adds, and where.

    Attributes:
      column: See `lookup_table`.
      num_bytes: See there.
      num_hashes: See there.
      width: Cells of a hash function.
      seed: See `lookup_table`.
    """

    column: str
    num_bytes: int
    num_hashes: int
    width: int
    seed: int

    @property
    def num_values(self) -> int:
        """Numbers in a cell besides the count: two bytes each, and the checksum."""
        return -(-self.num_bytes // 2) + 1

    def hashed(self, strings: Array) -> tuple[Array, Array]:
        """Returns the cells of strings, int32 ``[..., num_hashes]``, and their checksums, uint32 ``[..., 1]``."""
        hashes = hash_bytes(strings, hash_coefficients(self.num_hashes + 1, self.num_bytes, self.seed))
        first = np.arange(self.num_hashes, dtype=np.int32) * self.width
        first = first.reshape(*[1] * (strings.ndim - 1), -1)
        return (hashes[..., 1:] % np.uint32(self.width)).astype(np.int32) + first, hashes[..., :1]

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        string = fitted(record[self.column], self.num_bytes)
        places, checksum = self.hashed(string)
        padded = fitted(string, 2 * (self.num_values - 1)).astype(jnp.uint32)
        values = jnp.concatenate([(padded[0::2] << 8) + padded[1::2], checksum])
        return Entry(jnp.where(string[0] > 0, places, -1), values, identity=checksum[0])

    def read(self, sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what string a cell has if it has one, uint8 ``[n, num_bytes]``, and whether it has, bool ``[n]``.

        The sum s = c x modulo 2^32 is divided by c = 2^k o with o odd: by o's inverse, which Newton's method finds, and
        by 2^k, as x is less than 2^16.
        """
        twos = np.where(counts > 0, counts & (~counts + np.uint32(1)), np.uint32(1))
        odd = counts // twos
        inverse = odd
        for _ in range(5):
            inverse = inverse * (np.uint32(2) - odd * inverse)
        pairs = sums[:, :-1] * inverse[:, None] // twos[:, None]
        strings = np.stack([pairs >> np.uint32(8), pairs & np.uint32(255)], axis=-1)
        strings = strings.reshape(len(sums), -1)[:, : self.num_bytes].astype(np.uint8)
        again = np.concatenate([pairs, self.hashed(strings)[1]], axis=1) * counts[:, None]
        return strings, (counts > 0) & (strings[:, 0] > 0) & (pairs < 65536).all(axis=1) & (again == sums).all(axis=1)


def _decoded(table: _Table, total: np.ndarray, min_count: float) -> Decoded:
    """Takes strings out of the cells that have one alone until there is none; the last column are counts."""
    if (total != np.floor(total)).any():
        raise ValueError(
            "a table is decoded from exact sums; got an estimate by a sample. Pass clients=, not sampler=."
        )
    cells = (total.astype(np.int64) % 2**32).astype(np.uint32)
    found: list[np.ndarray] = []
    counted: list[np.ndarray] = []
    while True:
        strings, is_one = table.read(cells[:, :-1], cells[:, -1])
        places = table.hashed(strings)[0]
        is_one &= (places == np.arange(len(cells))[:, None]).any(axis=1)
        strings, first = np.unique(strings[is_one], axis=0, return_index=True)
        if not len(strings):
            break
        alone = np.flatnonzero(is_one)[first]
        found.append(strings)
        counted.append(cells[alone, -1])
        taken = np.repeat(cells[alone], table.num_hashes, axis=0)
        np.subtract.at(cells, places[alone].reshape(-1), taken)
    none = np.zeros((0, table.num_bytes), np.uint8)
    counts = np.concatenate([np.zeros(0), *counted])
    shown = counts >= min_count
    strings = np.concatenate([none, *found])[shown]
    by_string, _ = ordered(strings, counts[shown], counts[shown])
    return Decoded(by_string, int(cells[:, -1].sum(dtype=np.int64)) // table.num_hashes)
