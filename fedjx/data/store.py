"""A federated data set on disk: columns in shards of whole clients, read by position."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.types import ArrayType
from fedjx.data.client_ids import ClientId, ClientIds
from fedjx.data.columns import Column, OnDisk
from fedjx.data.federated_data import FederatedData, cached, located, notation, places_of, selected
from fedjx.data.manifest import client_file, read_manifest, shard_file

# Clients in a pass over all of them: little memory, and little time spent on calls.
_PASS = 1 << 20


class Store:
    """The examples of any number of clients, on disk; `StoreWriter` writes it.

    A store takes the place of `FederatedData` in a `Cohort`. Opening it reads the manifest and compares
    the sizes and headers of the files; all else is read when it is asked for. No example is cached or memory-mapped
    and no file is kept open, so threads and processes may share a store, also by pickling.

    Clients are numbered from 0 in the order in which they were written. What `select_clients` returns is
    a store too, a view of the same files, whose clients keep their numbers.

    Attributes:
      path: The directory.
      manifest: What `manifest.json` says, among it the provenance and the files' sizes and checksums.

    Raises:
      FileNotFoundError: If there is no store at the path, writing it was interrupted, or a file is missing.
      ValueError: If the manifest is corrupt, contradicts itself or is of another version, or a file has not the size
        and type that it was written with.

    >>> import tempfile
    >>> from fedjx.data import Cohort, StoreWriter
    >>> path = tempfile.mkdtemp() + "/store"
    >>> with StoreWriter(path) as writer:
    ...     writer.add("ada", {"x": np.arange(3)}, split="train")
    ...     writer.add("bob", {"x": np.arange(3, 5)}, split="train")
    ...     writer.add("eve", {"x": np.arange(5, 9)}, split="test")
    >>> train = Store(path).select_clients(split="train")
    >>> train
    Store(num_clients=2, num_examples=5, examples=<x=int64>)
    >>> train.ids[:], train.find(["bob"]), train.client(1)["x"]
    (array([0, 1]), array([1]), array([3, 4]))
    >>> chunks = Cohort(train, [0, 1], batch_size=2, lanes=2, placement="streamed")
    """

    def __init__(self, path: str | Path):
        self.path = Path(os.path.abspath(path))
        self.manifest, self._columns = read_manifest(self.path)
        for column in self._columns.values():
            column.check_file()
            column.check_header()
        self._rows: range | np.ndarray = range(self.manifest["num_clients"])

    @property
    def num_clients(self) -> int:
        """Number of clients K."""
        return len(self._rows)

    @property
    def ids(self) -> OnDisk:
        """The numbers of the clients, increasing, as if int64 ``[K]``, made when it is indexed."""
        return OnDisk(self.num_clients, lambda places: _numbers(self._rows_of(places)))

    @property
    def num_examples(self) -> int:
        """Number of examples N of all clients together."""
        return self._totals[0]

    @property
    def largest(self) -> int:
        """Number of examples of the largest client."""
        return self._totals[1]

    @property
    def num_bytes(self) -> int:
        """Size of the examples in bytes."""
        return self.num_examples * sum(self._column(name, 0).row_bytes for name in self.schema)

    @cached
    def schema(self) -> dict[str, ArrayType]:
        """The type of one example, by name of the feature."""
        return {
            name: ArrayType(feature["shape"], np.dtype(feature["dtype"]))
            for name, feature in self.manifest["features"].items()
        }

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the manifest, which has the checksums of all that is in the store."""
        return self.manifest["sha256"]

    @property
    def provenance(self) -> dict[str, Any]:
        """What to say of the origin of data that are made out of this store."""
        return {"store": self.path.name, "fingerprint": self.fingerprint, "provenance": self.manifest["provenance"]}

    @property
    def metadata_names(self) -> list[str]:
        """The columns of the metadata."""
        return list(self.manifest["metadata"])

    @property
    def sizes(self) -> OnDisk:
        """Number of examples of each client, in the order of `ids`, as if int64 ``[K]``, read when it is indexed."""
        return OnDisk(self.num_clients, lambda ids: np.diff(self._extents(self._rows_of(ids)), axis=0)[0])

    @cached
    def offsets(self) -> OnDisk | np.ndarray:
        """Where each client begins in `pool`, as if int64 ``[K+1]``, read when it is indexed."""
        if isinstance(self._rows, np.ndarray):
            return np.append(0, np.cumsum(self.sizes))
        start, column = self._rows.start, self._columns[client_file("offsets")]
        first = column.rows(range(start, start + 1))
        return OnDisk(self.num_clients + 1, lambda ids: column.rows(_shifted(ids, start)) - first)

    @cached
    def pool(self) -> Mapping[str, jax.Array]:
        """The examples on the device, as `FederatedData.pool`; loaded at first use, once."""
        return self.load().pool

    def load(self) -> FederatedData:
        """Reads all examples into memory."""
        return FederatedData(self._read(self._rows, None), np.asarray(self.offsets), self.ids[:], self.provenance)

    def places(self, ids: ArrayLike) -> np.ndarray:
        """Returns where in `ids`, `sizes`, `offsets` and metadata the clients of these numbers are, int64 ``[C]``.

        Raises:
          ValueError: If there is no number or no such client.
        """
        return places_of(self._rows, ids)

    def read(self, ids: ArrayLike, out: Mapping[str, np.ndarray] | None = None) -> Mapping[str, np.ndarray]:
        """Reads the examples of some clients, one client after another.

        What is adjacent in the files, or nearly so, is read in one call, straight to its place.

        Args:
          ids: Integers ``[C]``, the clients, in any order; one may be named again. A `range` of neighbours is read
            fastest.
          out: Where to: features by name, each a contiguous ``[n, ...]`` for n examples in all; other features are
            not read. By default new arrays for all of them.

        Raises:
          ValueError: If there is no client, an id does not exist, `out` does not fit, or a file has
            become shorter or contradicts the manifest.
        """
        if isinstance(ids, range) and isinstance(self._rows, range) and ids.step == 1 and len(ids):
            self.places([ids.start, ids.stop - 1])  # Raises where one is no client of the data.
            return self._read(ids, out)  # whose numbers are their rows
        return self._read(self._rows_of(self.places(ids)), out)

    def client(self, k: int) -> dict[str, np.ndarray]:
        """Reads the examples of the client of number k, each feature ``[n_k, ...]``."""
        return dict(self.read([k]))

    def select_clients(self, ids: ArrayLike | None = None, /, **metadata: Any) -> Store:
        """Returns a view of some clients, under their own numbers; nothing is copied.

        Args:
          ids: Integers ``[C]`` or a mask, bool ``[K]``; by default all clients.
          **metadata: For a column of the metadata a value, or several, of which a client has one.

        Raises:
          ValueError: If there is no such client, column or value.
        """
        chosen = np.ones(self.num_clients, bool)
        if ids is not None:
            chosen[:] = False
            chosen[self.places(selected(self, ids))] = True
        for name, wanted in metadata.items():
            column, values = self._metadata(name)
            wanted = np.atleast_1d(np.asarray(wanted))
            codes = wanted if values is None else np.flatnonzero(np.isin(values, wanted))
            for part in _passes(self.num_clients):
                chosen[part.start : part.stop] &= np.isin(column.rows(self._rows_of(part)), codes)
        count, first = int(chosen.sum()), int(chosen.argmax())
        if not count:
            raise ValueError(f"a selection needs at least one client; got none for {metadata}. Look at metadata(name).")
        view = object.__new__(type(self))
        view.path, view.manifest, view._columns = self.path, self.manifest, self._columns
        # Neighbours, as the clients of a split usually are, take no memory.
        are_neighbours = chosen[first : first + count].all()
        view._rows = self._rows_of(range(first, first + count) if are_neighbours else np.flatnonzero(chosen))
        return view

    def metadata(self, name: str) -> np.ndarray:
        """Reads a column of the metadata: str, int64, float64 or bool ``[K]``."""
        column, values = self._metadata(name)
        codes = column.rows(self._rows)
        if values is None:
            return codes
        if not 0 <= codes.min() <= codes.max() < len(values):
            raise ValueError(
                f"metadata need to be one of {len(values)} values; {column.path} is corrupt. Verify the store."
            )
        return np.array(values)[codes]

    def client_ids(self, ids: ArrayLike) -> list[ClientId]:
        """Reads under which ids, str, bytes or int, the clients of these numbers were written."""
        return self._client_ids.read(self._rows_of(self.places(ids)))

    def find(self, client_ids: Iterable[ClientId]) -> np.ndarray:
        """Returns the numbers of the clients that were written under these ids, int64 ``[C]``.

        The first call reads the index, 16 bytes for each client of the store.

        Raises:
          KeyError: If there is no such client.
        """
        client_ids = list(client_ids)
        numbers = self._client_ids.find(client_ids)
        is_known = located(self._rows, numbers)[1]
        if not is_known.all():
            unknown = [client_ids[k] for k in np.flatnonzero(~is_known)]
            raise KeyError(
                f"client ids need to be in the store; got {unknown[:5]} ({len(unknown)} in all). Check them."
            )
        return numbers

    def verify(self) -> None:
        """Reads every file and compares it with its checksums.

        Raises:
          FileNotFoundError: If a file is missing.
          ValueError: If a file is not as it was written, saying which and where.
        """
        problems: list[str] = []
        for column in self._columns.values():
            column.check_file()
            problems += column.problems()
        if problems:
            raise ValueError(
                f"a store needs to be as it was written; {'; '.join(problems[:5])} ({len(problems)} faults in all). "
                "Import it again."
            )

    def __getstate__(self):
        return {name: vars(self)[name] for name in ("path", "manifest", "_columns", "_rows")}

    def __repr__(self) -> str:
        return (
            f"Store(num_clients={self.num_clients}, num_examples={self.num_examples}, examples={notation(self.schema)})"
        )

    @cached
    def _totals(self) -> tuple[int, int]:
        """The number of examples, and of those of the largest client."""
        if self.num_clients == self.manifest["num_clients"]:
            return self.manifest["num_examples"], self.manifest["largest"]
        sizes = (self.sizes[part.start : part.stop] for part in _passes(self.num_clients))
        totals = np.array([(part.sum(), part.max()) for part in sizes])
        return int(totals[:, 0].sum()), int(totals[:, 1].max())

    @cached
    def _client_ids(self) -> ClientIds:
        return ClientIds(self._columns, self.manifest["client_ids"], self.manifest["salt"])

    def _column(self, feature: str, shard: int) -> Column:
        return self._columns[shard_file(self.manifest["features"][feature]["file"], shard)]

    def _metadata(self, name: str) -> tuple[Column, list[str] | None]:
        """Returns a column of the metadata and, if it numbers strings, these."""
        columns = self.manifest["metadata"]
        if name not in columns:
            raise ValueError(f"metadata need to be a column of the store; got {name!r}. It has {sorted(columns)}.")
        return self._columns[client_file(f"metadata_{name}")], columns[name]

    def _rows_of(self, ids: np.ndarray | range) -> np.ndarray | range:
        """Returns the rows in the files of some clients of this view."""
        if isinstance(self._rows, range):
            return _shifted(ids, self._rows.start)
        return self._rows[ids.start : ids.stop] if isinstance(ids, range) else self._rows[ids]

    def _extents(self, rows: np.ndarray | range) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the clients of some rows begin and end."""
        first, end = self._columns[client_file("offsets")].pairs(rows)
        sizes = end - first
        if len(sizes) and not (
            0 <= sizes.min() <= sizes.max() <= self.manifest["largest"]
            and 0 <= first.min() <= end.max() <= self.manifest["num_examples"]
        ):
            raise ValueError(f"offsets need to increase; those in {self.path} are corrupt. Verify the store.")
        return first, end

    def _read(self, rows: np.ndarray | range, out: Mapping[str, np.ndarray] | None) -> Mapping[str, np.ndarray]:
        first, end = self._extents(rows)
        count = end - first
        place, total = count.cumsum() - count, int(count.sum())
        if out is None:
            out = {name: np.empty((total, *feature.shape), feature.dtype) for name, feature in self.schema.items()}
        else:
            _check_out(out, total, self.schema)
        order = np.argsort(first, kind="stable")
        order = order[count[order] > 0]
        first, count, place = first[order], count[order], place[order]
        starts = np.array([shard["first_example"] for shard in self.manifest["shards"]])
        shards = np.searchsorted(starts, first, side="right") - 1
        for shard in range(shards[0], shards[-1] + 1) if len(shards) else ():
            part = slice(*np.searchsorted(shards, [shard, shard + 1]))
            for name in out:
                self._column(name, shard).read(first[part] - starts[shard], count[part], out[name], place[part])
        return out


def _passes(num_clients: int) -> Iterator[range]:
    for start in range(0, num_clients, _PASS):
        yield range(start, min(start + _PASS, num_clients))


def _numbers(rows: np.ndarray | range) -> np.ndarray:
    return np.arange(rows.start, rows.stop) if isinstance(rows, range) else np.asarray(rows, np.int64)


def _shifted(ids: np.ndarray | range, start: int) -> np.ndarray | range:
    return range(ids.start + start, ids.stop + start) if isinstance(ids, range) else ids + start


def _check_out(out: Mapping[str, np.ndarray], total: int, schema: Mapping[str, ArrayType]) -> None:
    for name, array in out.items():
        if name not in schema:
            raise ValueError(f"out needs features of the store; got {name!r}. It has {sorted(schema)}.")
        shape, dtype = (total, *schema[name].shape), schema[name].dtype
        if array.shape != shape or array.dtype != dtype:
            found = f"{array.dtype}{list(array.shape)}"
            raise ValueError(f"out needs {name!r} as {dtype}{list(shape)}; got {found}. Leave it out, or fit it.")
        if not array.flags.c_contiguous:
            raise ValueError(f"out needs contiguous arrays; got a strided one for {name!r}. Read to a new array.")
