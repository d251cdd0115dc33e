"""Writes client data as the SQLite databases of TensorFlow Federated and of FedJAX."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np

from fedjx.data.client_ids import ClientId
from fedjx.data.federated_data import ClientData
from fedjx.data.importers.fedjax_sqlite import ARRAY, BYTES_ARRAY
from fedjx.data.manifest import partial_path, sync_directory
from fedjx.data.source import Source, as_source

_TFF_TABLES = (
    "CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, serialized_example_proto BLOB NOT NULL)",
    "CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL, num_examples INTEGER NOT NULL)",
)
_TFF_INDICES = (
    "CREATE INDEX idx_examples_client_id ON examples (client_id)",
    "CREATE INDEX idx_examples_client_id_split ON examples (split_name, client_id)",
    "CREATE INDEX idx_metadata_client_id ON client_metadata (client_id)",
)
_TFF_DUPLICATE = "SELECT client_id FROM client_metadata GROUP BY client_id HAVING COUNT(*) > 1 LIMIT 1"
_FEDJAX_TABLE = (
    "CREATE TABLE federated_data "
    "(client_id BLOB NOT NULL PRIMARY KEY, data BLOB NOT NULL, num_examples INTEGER NOT NULL)"
)


def to_tff_sqlite(data: ClientData | Source, path: str | Path, split: str) -> None:
    """Writes clients as a database of TensorFlow Federated with the indices that published ones have.

    Floats become float32 and integers int64, which is all that a `tf.train.Example` knows, and arrays are flat: the
    reader is told dtypes and shapes. Ids become text. The file appears when all is on disk.

    Args:
      data: A source, or a data set, whose clients are called by their numbers where they have no ids.
      path: The file to write, which must not exist.
      split: Its name in the file.

    Raises:
      FileExistsError: If there is something at the path.
      ValueError: If a feature cannot be written without loss, an id is not UTF-8, or two clients have the same id.

    >>> import tempfile
    >>> from fedjx.data.importers import tff_sqlite
    >>> data = fedjx.data.FederatedData({"x": np.arange(4) / 4}, offsets=np.array([0, 1, 4]))
    >>> path = tempfile.mkdtemp() + "/data.sqlite"
    >>> to_tff_sqlite(data, path, "train")
    >>> [(client.id, client.examples["x"]) for client in tff_sqlite(path).clients()]
    [('0', array([0.], dtype=float32)), ('1', array([0.25, 0.5 , 0.75], dtype=float32))]
    """
    with _database(Path(path), _TFF_TABLES) as connection:
        for client in as_source(data).clients():
            client_id, examples = _as_text(client.id), serialised_examples(client.examples)
            connection.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", (client_id, split, len(examples)))
            rows = ((split, client_id, example) for example in examples)
            connection.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
        for statement in _TFF_INDICES:
            connection.execute(statement)
        for (client_id,) in connection.execute(_TFF_DUPLICATE):
            raise ValueError(_duplicate(client_id))


def to_fedjax_sqlite(data: ClientData | Source, path: str | Path, *, level: int = -1) -> None:
    """Writes clients as a database of FedJAX, dtypes and shapes as they are; the file appears when all is on disk.

    Args:
      data: A source, or a data set, whose clients are called by their numbers where they have no ids.
      path: The file to write, which must not exist.
      level: Of zlib's compression, 0 to 9; by default zlib's own, as FedJAX writes. 1 is several times as fast.

    Raises:
      FileExistsError: If there is something at the path.
      ValueError: If an object array holds something else than bytes, or two clients have the same id.
    """
    with _database(Path(path), [_FEDJAX_TABLE]) as connection:
        for client in as_source(data).clients():
            size = _size(map(len, client.examples.values()))
            packed = {name: _extension(name, np.asarray(column)) for name, column in client.examples.items()}
            client_id = client.id if isinstance(client.id, bytes) else str(client.id).encode()
            row = (client_id, zlib.compress(_packed(packed), level), size)
            try:
                connection.execute("INSERT INTO federated_data VALUES (?, ?, ?)", row)
            except sqlite3.IntegrityError:
                raise ValueError(_duplicate(client_id)) from None


def serialised_examples(columns: Any) -> list[bytes]:
    """Serialises examples as `tf.train.Example`, the features in the order of their names.

    Args:
      columns: Features by name, ``[n, ...]`` each; of dtype object for bytes.

    Raises:
      ValueError: If a feature cannot be written without loss, or features disagree on n, or there is none.

    >>> serialised_examples({"y": np.array([7])})[0].hex()
    '0a0c0a0a0a017912051a030a0107'
    """
    entries = []
    for name, column in sorted(columns.items()):
        key = _field(1, name.encode())
        entries.append([_field(1, key + _field(2, value)) for value in _feature_values(name, np.asarray(column))])
    _size(map(len, entries))
    return [_field(1, b"".join(example)) for example in zip(*entries, strict=True)]


def _size(sizes: Iterable[int]) -> int:
    """Returns the one size of all features."""
    found = set(sizes)
    if len(found) != 1:
        raise ValueError(f"features need the same number of examples; got {sorted(found)}. Give one row each.")
    return found.pop()


def _feature_values(name: str, column: np.ndarray) -> list[bytes]:
    """Serialises the values of a feature, a `tf.train.Feature` for each row."""
    if not len(column):
        return []
    flat = column.reshape(len(column), -1 if column.size else 0)
    if column.dtype.hasobject:
        if not all(type(value) is bytes for value in flat.flat):
            raise ValueError(f"text needs to be bytes to be written; got others in {name!r}. Encode it first.")
        return [_field(1, b"".join([_field(1, value) for value in row])) for row in flat]
    if jnp.issubdtype(column.dtype, jnp.floating):
        narrow = flat.astype("<f4")
        if not np.array_equal(narrow.astype(flat.dtype), flat, equal_nan=True):
            raise ValueError(f"floats need to be exact in float32; got others in {name!r}. Cast them first.")
        return [_field(2, _field(1, row.tobytes())) for row in narrow]
    if column.dtype.kind not in "iub" or (column.dtype == np.uint64 and flat.size and flat.max() >= 1 << 63):
        raise ValueError(f"features need to fit in int64 or float32; got {column.dtype} in {name!r}. Convert it first.")
    return [_field(3, _field(1, row)) for row in _varints(flat.astype(np.int64))]


def _varints(rows: np.ndarray) -> list[bytes]:
    """Encodes each row of integers as varints, one after the other."""
    if rows.size and 0 <= rows.min() <= rows.max() < 128:
        return [row.tobytes() for row in rows.astype(np.uint8)]
    values = rows.reshape(-1, 1).view(np.uint64) >> (7 * np.arange(10, dtype=np.uint64))
    # A byte is written if it is the first or there is something in or after it.
    octets = (values & 127 | np.where(values >> 7, 128, 0).astype(np.uint64)).astype(np.uint8)
    is_written = (values > 0) | (np.arange(10) == 0)
    ends = is_written.reshape(len(rows), -1).sum(axis=1).cumsum().tolist()
    data = octets[is_written].tobytes()
    return [data[first:end] for first, end in zip([0, *ends], ends, strict=False)]


def _field(number: int, value: bytes) -> bytes:
    """Returns a field of bytes, or of a message."""
    length, head = len(value), bytearray([number << 3 | 2])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + value


def _extension(name: str, column: np.ndarray) -> msgpack.ExtType:
    """Packs an array as FedJAX does."""
    shape = list(column.shape)
    if not column.dtype.hasobject:
        native = column.astype(column.dtype.newbyteorder("<"), copy=False)
        return msgpack.ExtType(ARRAY, _packed((shape, column.dtype.name, native.tobytes())))
    values: list[object] = column.reshape(-1).tolist()
    if not all(type(value) is bytes for value in values):
        raise ValueError(f"text needs to be bytes to be written; got others in {name!r}. Encode it first.")
    return msgpack.ExtType(BYTES_ARRAY, _packed((shape, values)))


def _packed(value: object) -> bytes:
    packed = msgpack.packb(value)
    assert packed is not None  # Its type says that it might be.
    return packed


@contextlib.contextmanager
def _database(path: Path, tables: Iterable[str]) -> Iterator[sqlite3.Connection]:
    """Writes a database beside its place, which it takes, complete and on disk, when the block ends."""
    _check_free(path)
    partial = partial_path(path, secrets.token_hex(4))
    try:
        with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as connection:
            # Nobody reads it before it is renamed, so that SQLite need not guard against interruption.
            for statement in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "BEGIN", *tables):
                connection.execute(statement)
            yield connection
            connection.execute("COMMIT")
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        _check_free(path)
        os.rename(partial, path)
        sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(f"a database needs a path that is free; got {path}. Choose another, or delete it first.")


def _duplicate(client_id: ClientId) -> str:
    return f"client ids need to be different; got {client_id!r} twice. Join the client's examples."


def _as_text(client_id: ClientId) -> str:
    try:
        return client_id.decode() if isinstance(client_id, bytes) else str(client_id)
    except UnicodeDecodeError:
        raise ValueError(f"client ids need to be UTF-8; got {client_id!r}. Rename the client.") from None
