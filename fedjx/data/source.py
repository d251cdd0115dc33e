"""What importers return, clients that are read one after another, and how it becomes a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from tqdm import tqdm

from fedjx.data.client_ids import ClientId
from fedjx.data.federated_data import ClientData
from fedjx.data.store import Store
from fedjx.data.store_writer import StoreWriter

_BLOCK_BYTES = 1 << 24


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


def write_store(
    path: str | Path, source: Source | ClientData, *, shard_bytes: int = 1 << 29, progress: bool = True
) -> Store:
    """Writes the clients of a source into a store and opens it.

    A store is a data set of its own: its clients keep what they are called and are numbered from 0, in the order of the
    source, also those without examples. If reading or writing fails, there is no store.

    Args:
      path: The directory to write, see `StoreWriter`.
      source: What an importer returns, or client data, as `preprocess` returns them.
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
    source = as_source(source)
    with StoreWriter(path, provenance=dict(source.provenance), shard_bytes=shard_bytes) as writer:
        bar = tqdm(source.clients(), total=source.num_clients, unit=" clients", disable=not progress)
        for client in bar:
            writer.add(client.id, client.examples, **client.metadata)
    return Store(path)


def as_source(data: Source | ClientData) -> Source:
    """Returns client data as a source: their ids, or numbers, their metadata and where they come from."""
    if isinstance(data, Source):
        return data
    if own := getattr(data, "as_source", None):
        return own()

    def clients() -> Iterator[Client]:
        metadata = {name: cast(Any, data).metadata(name) for name in getattr(data, "metadata_names", ())}
        for ids in blocks(data, np.asarray(data.ids[:])):
            clients = zip(client_ids(data, ids), data.places(ids), read_clients(data, ids), strict=True)
            for name, k, columns in clients:
                yield Client(name, columns, {key: values[k] for key, values in metadata.items()})

    return Source(clients, data.num_clients, getattr(data, "provenance", {}))


def with_metadata(source: Source, metadata_fn: Callable[[Client], Mapping[str, str | float]]) -> Source:
    """Replaces the metadata of each client by those that a function tells.

    Raises:
      ValueError: When clients are read, if the function refuses one; names the client.

    >>> sized = with_metadata(Source(lambda: iter([Client("ada", {"x": np.ones(3)})])), lambda client: {"n": 3})
    >>> next(sized.clients()).metadata
    {'n': 3}
    """

    def clients() -> Iterator[Client]:
        for client in source.clients():
            try:
                metadata = metadata_fn(client)
            except ValueError as error:
                raise ValueError(f"client {client.id!r}: {error}") from error
            yield client._replace(metadata=metadata)

    return source._replace(clients=clients)


def client_ids(data: ClientData, ids: np.ndarray) -> list[ClientId]:
    """Returns under which ids some clients were written, or their numbers where they have no other ids."""
    named = getattr(data, "client_ids", None)
    return named(ids) if named else ids.tolist()


def blocks(data: ClientData, ids: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts the numbers of clients into blocks to read at once: few calls, and some 16 MB if all have a like size."""
    length = max(1, min(256, _BLOCK_BYTES * data.num_clients // max(data.num_bytes, 1)))
    for start in range(0, len(ids), length):
        yield ids[start : start + length]


def read_clients(data: ClientData, ids: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Reads some clients in one call, and returns the columns of each."""
    examples, ends = data.read(ids), np.asarray(data.sizes[data.places(ids)]).cumsum()
    for first, end in zip([0, *ends], ends, strict=False):
        yield {name: column[first:end] for name, column in examples.items()}
