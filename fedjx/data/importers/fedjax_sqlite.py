"""Imports the SQLite databases of FedJAX: a row is a client."""

from __future__ import annotations

import math
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np

from fedjx.data.importers.features import Features, existing, located, provenance, selected, shown
from fedjx.data.importers.sqlite_files import check_whole, opened
from fedjx.data.source import Client, Source

_TABLES = {"federated_data": ("client_id", "data", "num_examples")}
# The extension types of msgpack that FedJAX defines.
ARRAY, COMPLEX, SCALAR, BYTES_ARRAY = 1, 2, 3, 4
_MANY_BYTES, _PIECE = 1 << 26, 1 << 20


def fedjax_sqlite(path: str | Path, *, features: Features | None = None, max_client_bytes: int = 1 << 30) -> Source:
    """Reads a database of FedJAX, in which a client is a map of arrays, packed with msgpack and zlib.

    Clients come in the order of the rows, as FedJAX iterates over them; their ids are bytes.

    Args:
      path: The file, which nobody writes to at the same time.
      features: The type of one example by name of the feature, of dtype object for bytes; others are left out. By
        default all, as they are.
      max_client_bytes: Most bytes of a client once it is unpacked. A few bytes of zlib may stand for a thousand times
        as many.

    Returns:
      A source. Reading it raises ValueError if the database is corrupt, a client is not as asked, or has another number
      of examples than the table says.

    Raises:
      FileNotFoundError: If there is no file.
      ValueError: If it is not such a database.
    """
    path = existing(path)
    with opened(path, _TABLES) as connection:
        (num_clients,) = connection.execute("SELECT COUNT(*) FROM federated_data").fetchone()

    def clients() -> Iterator[Client]:
        with opened(path, _TABLES) as connection:
            check_whole(connection, path)
            for client_id, data, num_examples in _rows(connection):
                with located(str(path), shown(client_id)):
                    if not isinstance(client_id, bytes):
                        raise ValueError(
                            f"client ids need to be of type BLOB; got {type(client_id).__name__}. Cast them."
                        )
                    yield Client(client_id, selected(_columns(data, num_examples, max_client_bytes), features))

    return Source(clients, num_clients, provenance("fedjax_sqlite", [path], features))


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[Any, Any, Any]]:
    yield from connection.execute("SELECT client_id, data, num_examples FROM federated_data ORDER BY rowid")


def _columns(data: Any, num_examples: Any, max_client_bytes: int) -> dict[str, np.ndarray]:
    """Unpacks the examples of a client, as many as the table says."""
    if not isinstance(data, bytes):
        raise ValueError(f"a client's data need to be a BLOB; got {type(data).__name__}. Mend the file.")
    try:
        columns = msgpack.unpackb(_decompressed(data, max_client_bytes), ext_hook=_extension)
    except (ValueError, TypeError, KeyError, zlib.error, msgpack.UnpackException) as error:
        raise ValueError(
            f"a client's data need to be a map of arrays in msgpack in zlib; got {error}. Fetch the file again."
        ) from error
    if not isinstance(columns, dict):
        raise ValueError(f"a client's data need to be a map of arrays; got {type(columns).__name__}. Fetch it again.")
    for name, column in columns.items():
        size = len(column) if isinstance(column, np.ndarray) and column.ndim else None
        if not isinstance(name, str) or size is None or size != num_examples:
            raise ValueError(
                f"a client's features need to be arrays of num_examples rows; got {num_examples=} and {size} rows of "
                f"{name!r}. Fetch the file again."
            )
    return columns


def _decompressed(data: bytes, max_client_bytes: int) -> bytes:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(data, min(max_client_bytes, _MANY_BYTES))
    if unpacker.unconsumed_tail:
        # What is large is counted, piece by piece, before memory is taken for it.
        counter, count = unpacker.copy(), len(unpacked)
        while counter.unconsumed_tail and count <= max_client_bytes:
            count += len(counter.decompress(counter.unconsumed_tail, _PIECE))
        if count > max_client_bytes or counter.unconsumed_tail:
            raise ValueError(f"more than {max_client_bytes=}; if this is no attack, ask for more")
        unpacked += unpacker.decompress(unpacker.unconsumed_tail)
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("data that do not end where zlib's do")
    return unpacked


def _extension(code: int, data: bytes) -> Any:
    """Decodes one of FedJAX's extension types."""
    if code == COMPLEX:
        return complex(*msgpack.unpackb(data))
    if code not in (ARRAY, SCALAR, BYTES_ARRAY):
        raise ValueError(f"the extension type {code}")
    # Nothing nested is decoded, so that the recursion is not the writer's to choose.
    shape, *dtype, values = msgpack.unpackb(data, raw=True)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape}")
    if code != BYTES_ARRAY:
        return _array(shape, dtype[0].decode(), values)[() if code == SCALAR else ...]
    if math.prod(shape) != len(values) or not all(type(value) is bytes for value in values):
        raise ValueError(f"an array of shape {shape} without its bytes")
    column = np.empty(len(values), object)
    column[:] = values
    return column.reshape(shape)


def _array(shape: list[int], name: str, values: bytes) -> np.ndarray:
    dtype = np.dtype(jnp.bfloat16 if name == "bfloat16" else name)
    if dtype.kind not in "biufc" and name != "bfloat16":
        raise ValueError(f"an array of dtype {name}")
    if math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"{len(values)} bytes for {name}{shape}")
    return np.frombuffer(values, dtype).reshape(shape)
