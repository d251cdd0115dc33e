"""What clients are called in a store, and an index from a name to the client's number."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import operator
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjx.data.columns import Column, ColumnWriter
from fedjx.data.manifest import client_file

# The index is sorted in ranges of so many clients, so that the memory does not grow with their number.
_RANGE = 1 << 20

ClientId = str | bytes | int


class EncodedId(NamedTuple):
    """A client's name as bytes, and what it was: "str", "bytes" or "int"."""

    value: bytes
    kind: str


def encoded(client_id: ClientId) -> EncodedId:
    """Encodes a name: a str as UTF-8, an integer as 8 bytes, little-endian.

    Raises:
      TypeError: If it is of another type.
      ValueError: If it is an integer of more than 64 bits or a str that is no text.
    """
    if isinstance(client_id, str):
        return EncodedId(client_id.encode(), "str")
    if isinstance(client_id, bytes):
        return EncodedId(client_id, "bytes")
    if isinstance(client_id, (int, np.integer)) and not isinstance(client_id, bool):
        number = operator.index(client_id)
        if not -(2**63) <= number < 2**63:
            raise ValueError(f"a client id of type int needs to fit in 64 bits; got {number}. Give it as a str.")
        return EncodedId(number.to_bytes(8, "little", signed=True), "int")
    raise TypeError(f"a client id is a str, bytes or int; got {client_id!r} of {type(client_id).__name__}. Convert it.")


class ClientIds:
    """The names of a store's clients.

    On disk: their bytes one after the other in `client_ids.npy`, with where they begin in
    `client_id_offsets.npy`, or int64 in `client_ids.npy` alone; and for lookup the 64-bit hashes of the
    names in increasing order, and whose they are. The hashes are salted until they are all different.
    """

    def __init__(self, columns: Mapping[str, Column], kind: str, salt: int = 0):
        self.kind, self.salt = kind, salt
        self._columns = columns

    def read(self, rows: np.ndarray | range) -> list[ClientId]:
        """Reads the names of some clients."""
        names = self.read_encoded(rows)
        if self.kind == "int":
            return [int.from_bytes(name, "little", signed=True) for name in names]
        try:
            return [name.decode() for name in names] if self.kind == "str" else list(names)
        except UnicodeDecodeError:
            path = self._columns[client_file("client_ids")].path
            raise ValueError(f"client ids of type str need to be UTF-8; {path} is corrupt. Verify the store.") from None

    def read_encoded(self, rows: np.ndarray | range) -> list[bytes]:
        """Reads the names of some clients as bytes."""
        column = self._columns[client_file("client_ids")]
        if self.kind == "int":
            ends = np.arange(8, 8 * len(rows) + 1, 8)
            text = column.rows(rows).tobytes()
        else:
            first, end = self._columns[client_file("client_id_offsets")].pairs(rows)
            if (first > end).any() or (first < 0).any() or (end > len(column)).any():
                raise ValueError(f"offsets need to increase; {column.path.parent} is corrupt. Verify the store.")
            ends = (end - first).cumsum()
            text = column.ranges(first, end - first).tobytes()
        return [text[a:b] for a, b in itertools.pairwise([0, *ends.tolist()])]

    def find(self, client_ids: list[ClientId]) -> np.ndarray:
        """Returns the rows of the clients of these names, int64 ``[C]``; -1 where there is none."""
        names = [encoded(client_id) for client_id in client_ids]
        hashes, rows = self._index
        hashed = hashes_of([name.value for name in names], self.salt)
        places = np.minimum(np.searchsorted(hashes, hashed), len(hashes) - 1)
        found = np.where(hashes[places] == hashed, rows[places], -1)
        held = self.read_encoded(np.maximum(found, 0))
        same = [name == (value, self.kind) for name, value in zip(names, held, strict=True)]
        return np.where(same, found, -1)

    @functools.cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        columns = (self._columns[client_file(name)] for name in ("index_hashes", "index_rows"))
        hashes, rows = (column.rows(range(len(column))) for column in columns)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(rows):
            raise ValueError("the index of a store needs to point at its clients; it is corrupt. Verify the store.")
        return hashes, rows


def write_index(
    directory: Path, columns: Mapping[str, Column], kind: str, num_clients: int
) -> tuple[int, list[Column]]:
    """Writes the index of a store's names, and returns the salt of the hashes and the finished columns.

    Raises:
      ValueError: If two clients have the same name.
    """
    for salt in itertools.count():
        client_ids = ClientIds(columns, kind, salt)
        hashes = ColumnWriter(directory / client_file("index_hashes"), "uint64")
        rows = ColumnWriter(directory / client_file("index_rows"), "int64")
        with contextlib.closing(hashes), contextlib.closing(rows):
            if _write_sorted(hashes, rows, client_ids, num_clients):
                return salt, [hashes.finish(num_clients), rows.finish(num_clients)]
        # Two different names share a hash, which happens to one large store of a million: all are hashed anew.
        hashes.path.unlink()
        rows.path.unlink()
    raise AssertionError("unreachable")


def hashes_of(names: list[bytes], salt: int) -> np.ndarray:
    """Hashes names to uint64 ``[C]``."""
    key = salt.to_bytes(8, "little")
    digests = b"".join([hashlib.blake2b(name, digest_size=8, salt=key).digest() for name in names])
    return np.frombuffer(digests, "<u8")


def _write_sorted(hashes: ColumnWriter, rows: ColumnWriter, client_ids: ClientIds, num_clients: int) -> bool:
    """Writes the hashes in increasing order and whose they are, unless two names share one."""
    num_ranges = -(-num_clients // _RANGE)
    starts = range(0, num_clients, _RANGE)
    with tempfile.TemporaryFile(dir=hashes.path.parent) as file:
        for start in starts:
            names = client_ids.read_encoded(range(start, min(start + _RANGE, num_clients)))
            file.write(hashes_of(names, client_ids.salt).tobytes())
        # All hashes are read again for each range of values.
        for k in range(num_ranges):
            low, high = (2**64 * bound // num_ranges for bound in (k, k + 1))
            file.seek(0)
            values, owners = [], []
            for start in starts:
                part = np.frombuffer(file.read(8 * _RANGE), "<u8")
                inside = np.flatnonzero((part >= np.uint64(low)) & (part <= np.uint64(high - 1)))
                values.append(part[inside])
                owners.append(inside + start)
            value, owner = np.concatenate(values), np.concatenate(owners)
            order = np.argsort(value, kind="stable")
            value, owner = value[order], owner[order]
            same = np.flatnonzero(value[1:] == value[:-1])
            if len(same):
                _check_different(client_ids, owner[same], owner[same + 1])
                return False
            hashes.append(value.tobytes())
            rows.append(owner.tobytes())
    return True


def _check_different(client_ids: ClientIds, first: np.ndarray, second: np.ndarray) -> None:
    for a, b, k, m in zip(client_ids.read(first), client_ids.read(second), first, second, strict=True):
        if a == b:
            raise ValueError(
                f"client ids need to be different; got {a!r} for clients {k} and {m}. Join the examples of a client, "
                "or write a store for each split."
            )
