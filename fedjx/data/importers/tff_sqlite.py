"""Imports the SQLite databases of TensorFlow Federated: a row is an example."""

from __future__ import annotations

import itertools
import operator
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedjx.data.importers.features import Features, checked_text, existing, located, provenance, shown
from fedjx.data.importers.sqlite_files import check_whole, is_packed, opened
from fedjx.data.importers.tf_example import example_reader
from fedjx.data.source import Client, Source

_TABLES = {
    "examples": ("split_name", "client_id", "serialized_example_proto"),
    "client_metadata": ("split_name", "client_id", "num_examples"),
}
# A scan in an order that SQL guarantees; published files have an index for it.
_ROWS = (
    "SELECT client_id, serialized_example_proto FROM examples WHERE split_name = ? ORDER BY client_id, examples.rowid"
)
_FIRST = "SELECT client_id, serialized_example_proto FROM examples WHERE split_name = ? LIMIT 1"
_CLIENTS = "SELECT client_id, num_examples FROM client_metadata WHERE split_name = ? ORDER BY client_id"


def tff_sqlite(path: str | Path, *, split: str | None = None, features: Features | None = None) -> Source:
    """Reads a database of TensorFlow Federated, ``.sqlite``, or packed, ``.sqlite.lzma`` or ``.sqlite.xz``.

    Clients come in TFF's order, that of their ids as text ("10" before "2"), with the metadata `split`; their
    examples in the order of the rows. Each time that clients are read, a packed file is unpacked to the temporary
    directory (set TMPDIR to choose it; EMNIST needs 4.7 GB there) and the whole database is checked. Without an index
    on (split_name, client_id), as in files of TFF's own saving function, SQLite sorts there too.

    Args:
      path: The file, which nobody writes to at the same time.
      split: Which split to read; by default all, one after the other, which must then have different clients.
      features: The type of one example by name of the feature; see `example_reader`. By default as in the file:
        integers are int64, lists are flat.

    Returns:
      A source, which knows the number of clients unless the file is packed. Reading it raises ValueError if the
      database is corrupt, the numbers of examples are not those in `client_metadata`, or an example is not as asked.

    Raises:
      FileNotFoundError: If there is no file.
      ValueError: If it is not such a database or has no such split; for a packed file, when clients are read.
    """
    path = existing(path)
    num_clients = None
    if not is_packed(path):
        with opened(path, _TABLES) as connection:
            num_clients = sum(_splits(connection, path, split).values())

    def clients() -> Iterator[Client]:
        with opened(path, _TABLES) as connection:
            check_whole(connection, path)
            yield from _clients(connection, path, split, features)

    return Source(clients, num_clients, provenance("tff_sqlite", [path], features, split=split))


def _clients(
    connection: sqlite3.Connection, path: Path, split: str | None, features: Features | None
) -> Iterator[Client]:
    splits = _splits(connection, path, split)
    read = example_reader(features)
    for name in splits:
        with located(str(path), f"split {name!r}"):
            first = connection.execute(_FIRST, (name,)).fetchone()
            if first is None:
                raise ValueError("a split needs examples; got none. Fetch the file again, or choose another split.")
            with located(shown(first[0])):
                read(first[1:])  # Also a client without examples, which may come first, has its features.
            for client_id, rows in _grouped(connection, name):
                with located(shown(client_id)):
                    yield Client(checked_text(client_id), read(rows), {"split": name})


def _grouped(connection: sqlite3.Connection, split: str) -> Iterator[tuple[Any, list[Any]]]:
    """Yields the rows of each client, as many as `client_metadata` says."""
    groups = itertools.groupby(connection.execute(_ROWS, (split,)), operator.itemgetter(0))
    group = next(groups, None)
    for client_id, num_examples in connection.execute(_CLIENTS, (split,)):
        rows = []
        if group is not None and group[0] == client_id:
            rows = [row for _, row in group[1]]
            group = next(groups, None)
        if len(rows) != num_examples:
            raise ValueError(
                f"tables 'examples' and 'client_metadata' need to agree; got {len(rows)} rows and {num_examples=} for "
                f"{shown(client_id)}. Fetch the file again, or correct the table."
            )
        yield client_id, rows
    if group is not None:
        raise ValueError(
            f"tables 'examples' and 'client_metadata' need to agree; got {shown(group[0])} only in the first. Fetch "
            "the file again, or correct the table."
        )


def _splits(connection: sqlite3.Connection, path: Path, split: str | None) -> dict[str, int]:
    """Returns the number of clients of each split to read."""
    counts = "SELECT split_name, COUNT(*) FROM client_metadata GROUP BY split_name ORDER BY split_name"
    splits = dict(connection.execute(counts))
    with located(str(path)):
        for name in splits:
            if not isinstance(name, str):
                raise ValueError(f"names of splits need to be text; got {name!r}. Convert them in the file.")
        if not splits or (split is not None and split not in splits):
            raise ValueError(f"a split needs to be in the file; got {split=}, and it has {list(splits)}. Choose one.")
    if split is not None:
        return {split: splits[split]}
    shared = "SELECT client_id FROM client_metadata GROUP BY client_id HAVING COUNT(DISTINCT split_name) > 1 LIMIT 1"
    for (client_id,) in connection.execute(shared):
        raise ValueError(
            f"{path}: splits need different clients to be read together; got {shown(client_id)} in several of "
            f"{list(splits)}. Pass one of them as split."
        )
    return splits
