"""What importers return, clients that are read one after another, and how it becomes a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from fedjx.data.client_ids import ClientId
from fedjx.data.store import Store
from fedjx.data.store_writer import StoreWriter


class Client(NamedTuple):
    """A client on its way into a store.

    Attributes:
      id: What the client is called, str, bytes or int.
      examples: Its features by name, each ``[n, ...]``. Text is an object array of bytes or str until a
        function of `preprocess` encodes it.
      metadata: A value by name of the column, str, int, float or bool.
    """

    id: ClientId
    examples: Mapping[str, np.ndarray]
    metadata: Mapping[str, str | float] = {}


class Source(NamedTuple):
    """Clients that are read one after another from somewhere else, in memory that does not grow.

    Attributes:
      clients: Begins to read; each call begins anew.
      num_clients: How many there are, where that is known before reading.
      provenance: What is read and how, for the manifest of a store; anything JSON can say.
    """

    clients: Callable[[], Iterator[Client]]
    num_clients: int | None = None
    provenance: Mapping[str, Any] = {}


def write_store(path: str | Path, source: Source, *, shard_bytes: int = 1 << 29, progress: bool = True) -> Store:
    """Writes the clients of a source into a store and opens it.

    Clients without examples are left out; the provenance counts them. If reading or writing fails, there
    is no store.

    Args:
      path: The directory to write, see `StoreWriter`.
      source: What to write.
      shard_bytes: Most bytes in a shard, see `StoreWriter`.
      progress: Whether to show a bar on stderr.

    Raises:
      ValueError: If what is read is not as it must be, saying where; as `StoreWriter` too.
      FileExistsError: If there is something at the path.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/store"
    >>> source = Source(lambda: (Client(k, {"x": np.arange(k)}) for k in range(1, 4)))
    >>> write_store(path, source, progress=False)
    Store(num_clients=3, num_examples=6, examples=<x=int64>)
    """
    with StoreWriter(path, provenance=dict(source.provenance), shard_bytes=shard_bytes) as writer:
        bar = tqdm(source.clients(), total=source.num_clients, unit=" clients", disable=not progress)
        num_empty = 0
        for client in bar:
            if client.examples and not any(map(len, client.examples.values())):
                num_empty += 1
            else:
                writer.add(client.id, client.examples, **client.metadata)
        if num_empty:
            writer.provenance = {**source.provenance, "num_empty_clients": num_empty}
    return Store(path)
