"""The records of any number of clients as a stream: chunks of clients that have about as many, read once per pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from fedjx.core.language.narrow import narrowed
from fedjx.core.language.values import Clients
from fedjx.core.language.values import Sequence as Elements
from fedjx.data.federated_data import ClientData

_CLIENTS = 1 << 18  # whose sizes are read at once
_ROWS = 1 << 20  # of which the records are
_CELLS = 1 << 17  # of a chunk, clients times the most records of one


class Records:
    """Columns of the clients' records, in chunks of `Clients` that a computation reads as often as it has passes.

    A client's value is a `Sequence` of records, a dict of the columns. The clients of a chunk have up to as many
    records as the next power of two says, and the last chunk of them is filled up with padding: few shapes, whatever
    the clients' sizes. Memory does not grow with the number of clients, and only the named columns are read.

    Attributes:
      data: The clients' records: `FederatedData` in memory, a `Store` on disk.
      columns: The features to read; the one of the fewest bytes if none is named.
      ids: Integers ``[C]``, the clients, each once; all of them if not given.

    Raises:
      ValueError: If a column is not there, an id does not exist or is there twice.

    >>> data = fedjx.data.FederatedData.from_clients([{"age": [31, 52]}, {"age": [7]}, {"age": [60, 61]}])
    >>> for chunk in Records(data, ["age"]):
    ...     print(chunk.value.elements["age"][chunk.mask].tolist(), chunk.id[chunk.mask].tolist())
    [[7]] [1]
    [[31, 52], [60, 61]] [0, 2]
    """

    def __init__(self, data: ClientData, columns: Sequence[str], ids: np.ndarray | None = None):
        self.data, self.columns = data, tuple(columns) or (_narrowest(data),)
        unknown = [name for name in self.columns if name not in data.schema]
        if unknown:
            raise ValueError(
                f"a question is about columns of the data; got {unknown[0]!r}. They have {sorted(data.schema)}."
            )
        self.ids = None if ids is None else np.sort(np.asarray(ids))
        if self.ids is not None and len(self.ids) and len(np.unique(data.places(self.ids))) < len(self.ids):
            raise ValueError("each client is asked once; got ids that are there twice. Sample without replacement.")

    @property
    def num_clients(self) -> int:
        """How many clients are asked."""
        return self.data.num_clients if self.ids is None else len(self.ids)

    def whole(self) -> Clients:
        """Returns all clients as one rectangle, for programs that are one; in memory that grows with them."""
        ids = np.asarray(self.data.ids[:] if self.ids is None else self.ids)
        sizes = np.asarray(self.data.sizes[self.data.places(ids)])
        width = int(sizes.max(initial=1))
        first = (sizes.cumsum() - sizes).astype(np.int32)
        return _rectangle(self._read(ids, sizes), ids, sizes, first, width)

    def __iter__(self) -> Iterator[Clients]:
        if not self.num_clients:  # of a sample that may be empty: there is noise on nothing, too
            yield self._nobody()
        waiting: dict[int, list[Clients]] = {}  # by the most records of one, clients that do not yet fill a chunk
        are_full: set[int] = set()
        for ids, sizes in self._blocks():
            columns = self._read(ids, sizes)
            first, digits = (sizes.cumsum() - sizes).astype(np.int32), np.frexp(np.maximum(sizes, 1) - 1)[1]
            for digit in np.flatnonzero(np.bincount(digits)).tolist():
                rows, width, most = np.flatnonzero(digits == digit), 1 << digit, _most(1 << digit)
                part = _rectangle(columns, ids[rows], sizes[rows], first[rows], width)
                part = _joined([*waiting.pop(width, []), part])
                for start in range(0, part.num_clients // most * most, most):
                    are_full.add(width)
                    yield jax.tree.map(lambda x, start=start, most=most: x[start : start + most], part)
                rest = jax.tree.map(lambda x, most=most: x[len(x) // most * most :], part)
                waiting[width] = [rest] if rest.num_clients else []
        for width, parts in waiting.items():
            if parts:
                most = _most(width)
                number = _joined(parts).num_clients
                yield _filled(_joined(parts), most if width in are_full else min(_places(number), most))

    def _nobody(self) -> Clients:
        columns = {
            name: np.zeros((0, *self.data.schema[name].shape), self.data.schema[name].dtype) for name in self.columns
        }
        nothing = np.zeros(16, np.int32)
        padding = _rectangle(_narrowed(columns), nothing, nothing, nothing, 1)
        return Clients(padding.value, nothing > 0, nothing - 1)

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields neighbours, whose records are read at once, and their numbers of records."""
        for start in range(0, self.num_clients, _CLIENTS):
            stop = min(start + _CLIENTS, self.num_clients)
            if self.ids is None:
                ids, sizes = np.asarray(self.data.ids[start:stop]), np.asarray(self.data.sizes[start:stop])
            else:
                ids = self.ids[start:stop]
                sizes = np.asarray(self.data.sizes[self.data.places(ids)])
            ends = sizes.cumsum()
            first = 0
            while first < len(ids):
                before = ends[first - 1] if first else 0
                last = max(first + 1, int(np.searchsorted(ends, before + _ROWS, side="right")))
                yield ids[first:last], sizes[first:last]
                first = last

    def _read(self, ids: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Reads the columns of some clients, one client after the other, as a device holds them."""
        total, schema = int(sizes.sum()), self.data.schema
        out = {name: np.empty((total, *schema[name].shape), schema[name].dtype) for name in self.columns}
        are_neighbours = len(ids) and ids[-1] - ids[0] == len(ids) - 1
        self.data.read(range(int(ids[0]), int(ids[-1]) + 1) if are_neighbours else ids, out)
        return _narrowed(out)


def _narrowed(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: narrowed(column, f"column {name!r}", may_round=True) for name, column in columns.items()}


def _narrowest(data: ClientData) -> str:
    return min(
        data.schema, key=lambda name: (data.schema[name].dtype.itemsize * math.prod(data.schema[name].shape), name)
    )


def _most(width: int) -> int:
    """Returns how many clients of so many records fill a chunk."""
    return max(1, _CELLS // width)


def _places(number: int) -> int:
    """Returns for how many clients there is room where there are so many: one of a few numbers."""
    places = 16
    while places < number:
        places *= 4
    return places


def _joined(parts: list[Clients]) -> Clients:
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _filled(part: Clients, places: int) -> Clients:
    """Fills a chunk up with padding, copies of its first client."""
    rows = np.append(np.arange(part.num_clients), np.zeros(places - part.num_clients, np.int64))
    real = np.arange(places) < part.num_clients
    value = jax.tree.map(lambda x: x[rows], part.value)
    return Clients(value, real, np.where(real, part.id[rows], -1).astype(np.int32))


def _rectangle(
    columns: dict[str, np.ndarray], ids: np.ndarray, sizes: np.ndarray, first: np.ndarray, width: int
) -> Clients:
    """Cuts some clients out of the columns, where their records begin at `first`, with room for so many of each."""
    index = first if width == 1 else first[:, None] + np.arange(width, dtype=np.int32)

    def cut(column: np.ndarray) -> np.ndarray:
        if not len(column):
            return np.zeros((len(ids), width, *column.shape[1:]), column.dtype)
        cells = np.take(column, index, axis=0, mode="clip")  # past a client's end is padding, whatever it holds
        return cells.reshape(len(ids), width, *column.shape[1:])

    value = Elements(jax.tree.map(cut, columns), sizes.astype(np.int32))
    return Clients(value, np.ones(len(ids), bool), ids.astype(np.int32))
