"""Writes a store: a client at a time, in memory that does not grow, visible when complete."""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_integer
from fedjx.data.client_ids import ClientId, encoded, write_index
from fedjx.data.client_metadata import MetadataColumn, plain, plain_values
from fedjx.data.columns import Column, ColumnWriter
from fedjx.data.federated_data import checked_examples, named_columns, notation, schema_of
from fedjx.data.manifest import client_file, partial_path, shard_file, sync_directory, write_manifest


class StoreWriter:
    """Writes a store, one client after another, as a context manager.

    The files are written into a hidden directory beside the path, which takes its name, atomically, when the
    block ends and all is on disk. If the block raises, nothing is left. A process that is killed leaves no
    store, only the hidden directory, ``.<name>.partial-*``, which may be deleted.

    Memory: the examples of one call, buffers, and some tens of MB for the index at the end.

    Args:
      path: The directory to write, which must not exist; its parent must.
      provenance: What the store was made from and how, for `manifest.json`; anything JSON can say.
      shard_bytes: A shard, which holds whole clients, gets at most so many bytes, unless one client has more.

    Attributes:
      path: The directory, absolute.
      provenance: As given; what is assigned before the block ends is what is written.

    Raises:
      FileExistsError: If there is something at the path.
      ValueError: If no example was added, two clients have the same id, or `shard_bytes` is less than 1.
      TypeError: If the provenance is not JSON.
    """

    def __init__(self, path: str | Path, *, provenance: object = None, shard_bytes: int = 1 << 29):
        check_integer("[1, inf)", "Leave it at 512 MiB.", shard_bytes=shard_bytes)
        self.path = Path(os.path.abspath(path))
        self._directory = partial_path(self.path, secrets.token_hex(4))
        self.provenance = json.loads(json.dumps(provenance))
        self._shard_bytes = shard_bytes
        self._is_writable = False
        self._num_clients = self._num_examples = self._largest = self._num_id_bytes = 0
        # Set by the first client.
        self._id_kind = ""
        self._metadata: dict[str, MetadataColumn] = {}
        # Set by the first client that has examples.
        self._types: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._notation = ""
        self._stems: dict[str, str] = {}
        # Open files by name of the feature or column; those of the current shard and those of all clients.
        self._shard: dict[str, ColumnWriter] = {}
        self._clients: dict[str, ColumnWriter] = {}
        self._shards: list[dict[str, int]] = []
        self._finished: list[Column] = []

    def __enter__(self) -> StoreWriter:
        _check_free(self.path)
        self._directory.mkdir()
        self._is_writable = True
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is None:
                self._finish()
        finally:
            self._is_writable = False
            for column in (*self._shard.values(), *self._clients.values()):
                column.close()
            shutil.rmtree(self._directory, ignore_errors=True)  # It is gone if it has become the store.

    def add(self, client_id: ClientId, examples: Mapping[str, ArrayLike], /, **metadata: str | float) -> None:
        """Appends a client; what is refused is not written, and others may follow.

        Args:
          client_id: What the client is called: str, bytes or int, the same for all clients.
          examples: Its features by name, each ``[n, ...]``. All clients have the features, dtypes and shapes of one
            example of the first one; of a client without examples, n = 0, they do not matter.
          **metadata: A value for each column of metadata: a str (at most 65,536 different ones), an
            int, a float or a bool. All clients have the columns and types of the first one.

        Raises:
          ValueError: If the client's features disagree on n, or it is unlike the first.
          TypeError: If an id, a feature or a value of the metadata is of a type that cannot be stored.
        """
        self._check_open()
        name = encoded(client_id)
        columns = _native(named_columns(examples, repr(client_id)))
        size = self._checked_size(client_id, columns)
        values = {key: plain(key, value) for key, value in metadata.items()}
        if self._num_clients:
            self._check_alike(client_id, name.kind, values)
        # What interrupts from here on, such as a full disk or Ctrl-C, may leave half a client.
        self._is_writable = False
        if not self._num_clients:
            self._begin(name.kind, values)
        if size:
            self._open_shard(columns, size)
        self._append(columns if size else {}, 1, size, size, (self._num_examples + size).to_bytes(8, "little"))
        self._append_names([name.value])
        for key, value in values.items():
            self._clients[f"metadata_{key}"].append(self._metadata[key].encoded([value]))
        self._is_writable = True

    def add_many(
        self,
        client_ids: Sequence[ClientId],
        examples: Mapping[str, ArrayLike],
        sizes: ArrayLike,
        /,
        **metadata: Sequence[str | float],
    ) -> None:
        """Appends many clients at once, several times faster than `add` where clients are small.

        The files become the same as if the clients were added one by one. If one is refused, none is written.

        Args:
          client_ids: ``[C]``, what the clients are called, as for `add`.
          examples: Features by name, each ``[N, ...]``, one client after another.
          sizes: Integers ``[C]``, how many examples each client has; N in all.
          **metadata: For each column of metadata the clients' values, ``[C]``.

        Raises:
          ValueError: As `add`, and if the sizes are not those of the ids and the examples.
          TypeError: As `add`.
        """
        self._check_open()
        client_ids = client_ids.tolist() if isinstance(client_ids, np.ndarray) else list(client_ids)
        columns = _native(named_columns(examples, "several clients"))
        counts = _checked_sizes(sizes, len(client_ids), checked_examples(columns, " of the clients"))
        if not client_ids:
            return
        self._checked_size(client_ids[0], columns)
        names = [encoded(client_id) for client_id in client_ids]
        values = {key: plain_values(key, column, len(names)) for key, column in metadata.items()}
        kind = self._id_kind or names[0].kind
        first = {key: column[0] for key, column in values.items()}
        if self._num_clients:
            self._check_alike(client_ids[0], names[0].kind, first)
        for client_id, name in zip(client_ids, names, strict=True):
            if name.kind != kind:
                raise _other_kind(client_id, name.kind, kind)
        for key, column in values.items():
            (self._metadata.get(key) or MetadataColumn(first[key])).check(key, *column)
        self._is_writable = False
        if not self._num_clients:
            self._begin(kind, first)
        self._append_runs(columns, counts)
        self._append_names([name.value for name in names])
        for key, column in values.items():
            self._clients[f"metadata_{key}"].append(self._metadata[key].encoded(column))
        self._is_writable = True

    def _check_open(self) -> None:
        if not self._is_writable:
            raise ValueError(
                "a writer needs to be open; got one that is not, or that has failed. Use it as a context manager."
            )

    def _begin(self, kind: str, values: Mapping[str, Any]) -> None:
        """Opens the files of the clients, for ids and metadata like those of the first one."""
        self._id_kind = kind
        self._metadata = {key: MetadataColumn(value) for key, value in values.items()}
        dtypes = {"offsets": "int64", "client_ids": "int64" if kind == "int" else "uint8"}
        if kind != "int":
            dtypes["client_id_offsets"] = "int64"
        dtypes |= {f"metadata_{key}": column.dtype for key, column in self._metadata.items()}
        for name, dtype in dtypes.items():
            self._clients[name] = ColumnWriter(self._directory / client_file(name), dtype)
            if name in ("offsets", "client_id_offsets"):
                self._clients[name].append(bytes(8))

    def _open_shard(self, columns: Mapping[str, np.ndarray], size: int) -> int:
        """Begins another shard if a client of so many of the examples has no room; returns the bytes in the shard."""
        num_bytes = size * sum(column[:1].nbytes for column in columns.values())
        written = sum(column.num_bytes for column in self._shard.values())
        if self._shard and not (size and written and written + num_bytes > self._shard_bytes):
            return written
        if not self._types:
            self._types = {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}
            self._stems, self._notation = _file_stems(columns), notation(schema_of(columns))
        self._finish_shard()
        for name, (dtype, shape) in self._types.items():
            path = self._directory / shard_file(self._stems[name], len(self._shards))
            self._shard[name] = ColumnWriter(path, dtype, shape)
        first_client = self._num_clients if self._shards else 0  # Clients without examples may come before it.
        self._shards.append({"first_client": first_client, "first_example": self._num_examples})
        return 0

    def _append(
        self, columns: Mapping[str, np.ndarray], num_clients: int, num_examples: int, largest: int, ends: bytes
    ) -> None:
        """Appends the examples of some clients to the current shard, and where they end."""
        for name, column in columns.items():
            self._shard[name].append(column.tobytes())
        self._num_clients += num_clients
        self._num_examples += num_examples
        self._largest = max(self._largest, largest)
        self._clients["offsets"].append(ends)

    def _append_names(self, names: list[bytes]) -> None:
        """Appends what some clients are called."""
        self._clients["client_ids"].append(b"".join(names))
        if self._id_kind != "int":
            ends = [*itertools.accumulate(map(len, names), initial=self._num_id_bytes)][1:]
            self._clients["client_id_offsets"].append(b"".join([end.to_bytes(8, "little") for end in ends]))
            self._num_id_bytes = ends[-1]

    def _append_runs(self, columns: Mapping[str, np.ndarray], sizes: np.ndarray) -> None:
        """Appends the examples of clients, as many at once as have room in a shard."""
        row_bytes = sum(column[:1].nbytes for column in columns.values())
        ends = np.append(0, np.cumsum(sizes))
        if not ends[-1]:
            self._append({}, len(sizes), 0, 0, np.full(len(sizes), self._num_examples, "<i8").tobytes())
            return
        start = 0
        while start < len(sizes):
            room = self._shard_bytes - self._open_shard(columns, int(sizes[start]))
            stop = int(np.searchsorted(ends * row_bytes, ends[start] * row_bytes + room, side="right")) - 1
            stop = max(stop, start + 1)  # A client larger than a shard has one of its own.
            rows = slice(ends[start], ends[stop])
            part = {name: column[rows] for name, column in columns.items()}
            offsets = self._num_examples - ends[start] + ends[start + 1 : stop + 1]
            largest = int(sizes[start:stop].max())
            self._append(part, stop - start, int(rows.stop - rows.start), largest, offsets.astype("<i8").tobytes())
            start = stop

    def _finish_shard(self) -> None:
        if self._shard:
            num_examples = self._num_examples - self._shards[-1]["first_example"]
            self._finished += [column.finish(num_examples) for column in self._shard.values()]
            self._shard = {}

    def _finish(self) -> None:
        """Completes the files, the index and the manifest, and gives the directory its name."""
        if not self._is_writable:
            raise ValueError("a store needs all its clients; got an error while one was written. Write it again.")
        if not self._num_examples:
            raise ValueError(
                f"a store needs at least one example; got none, and {self._num_clients} clients without, of "
                f"{self.provenance}. Check what is read."
            )
        self._finish_shard()
        columns = {}
        for name, column in self._clients.items():
            columns[client_file(name)] = column.finish(column.num_bytes // column.dtype.itemsize)
        salt, index = write_index(self._directory, columns, self._id_kind, self._num_clients)
        features = {
            name: {"dtype": dtype.name, "shape": shape, "file": self._stems[name]}
            for name, (dtype, shape) in self._types.items()
        }
        body = {
            "num_clients": self._num_clients,
            "num_examples": self._num_examples,
            "largest": self._largest,
            "client_ids": self._id_kind,
            "salt": salt,
            "features": features,
            "metadata": {key: column.values and list(column.values) for key, column in self._metadata.items()},
            "shards": self._shards,
            "provenance": self.provenance,
        }
        write_manifest(self._directory, body, [*columns.values(), *index, *self._finished])
        _check_free(self.path)
        try:
            os.rename(self._directory, self.path)
        except OSError:
            _check_free(self.path)  # Another writer may have put its store there between the two lines above.
            raise
        sync_directory(self.path.parent)

    def _checked_size(self, client_id: ClientId, columns: Mapping[str, np.ndarray]) -> int:
        """Returns the number of examples of a client, whose features are like the first client's."""
        types = {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}
        sizes = {column.shape[:1] for column in columns.values()}
        # The checks below take longer than writing a small client, so clients like the first one skip them. Of clients
        # without examples nothing is written.
        if sizes == {(0,)} or (types == self._types and len(sizes) == 1 and () not in sizes):
            return sizes.pop()[0]
        size = checked_examples(columns, f" of client {client_id!r}")
        if self._types and types != self._types:
            raise ValueError(
                "all clients need the same features, dtypes and shapes of one example; got "
                f"{notation(schema_of(columns))} for client {client_id!r} and {self._notation} for the first. "
                "Convert them first."
            )
        return size

    def _check_alike(self, client_id: ClientId, kind: str, values: Mapping[str, object]) -> None:
        """Refuses an id or metadata unlike the first client's."""
        if kind != self._id_kind:
            raise _other_kind(client_id, kind, self._id_kind)
        types = {key: type(value).__name__ for key, value in values.items()}
        expected = {key: column.type.__name__ for key, column in self._metadata.items()}
        if types != expected:
            raise ValueError(
                f"all clients need the same metadata; got {types} for client {client_id!r} and {expected} for the "
                "first. Give every client a value of the same type."
            )
        for key, value in values.items():
            self._metadata[key].check(key, value)


def _native(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: column if column.dtype.isnative else column.astype(column.dtype.newbyteorder("="))
        for name, column in columns.items()
    }


def _checked_sizes(sizes: ArrayLike, num_clients: int, num_examples: int) -> np.ndarray:
    """Returns the sizes of clients as int64, which are those of all examples."""
    counts = np.asarray(sizes)
    if counts.shape != (num_clients,) or (counts.size and counts.dtype.kind not in "iu"):
        raise ValueError(
            f"sizes need an integer for each client; got {counts.dtype}{list(counts.shape)} for {num_clients} "
            "clients. Give [C]."
        )
    if (counts < 0).any():
        raise ValueError(
            f"sizes must be at least 0; got {counts.min()} for client {counts.argmin()} of the call. Count again."
        )
    if counts.sum() != num_examples:
        raise ValueError(
            f"sizes need to add up to the number of examples; got {counts.sum()} and {num_examples=}. Compare them."
        )
    return counts.astype(np.int64)


def _other_kind(client_id: ClientId, kind: str, expected: str) -> TypeError:
    return TypeError(
        f"all client ids need the same type; got {client_id!r} of type {kind} after ids of type {expected}. "
        "Convert them first."
    )


def _file_stems(names: Iterable[str]) -> dict[str, str]:
    """Names the features' files after them, in characters that any file system takes, all different."""
    stems: dict[str, str] = {}
    for number, name in enumerate(names):
        stem = re.sub("[^A-Za-z0-9_]", "_", name)[:64] or "feature"
        taken = {other.lower() for other in stems.values()}
        stems[name] = stem if stem.lower() not in taken else f"{stem}-{number}"
    return stems


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(f"a store needs a path that is free; got {path}. Choose another, or delete it first.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"a store needs a directory to be in; got {path.parent}. Create it first.")
