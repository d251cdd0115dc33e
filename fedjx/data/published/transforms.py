"""Named functions of one client's columns, so that a store says what was done to its examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjx.data.source import Client, Source

Columns = Mapping[str, np.ndarray]


class Transform(NamedTuple):
    """A pure function of the columns of one client, with a name; `fedjx.data.preprocess` takes it too.

    Attributes:
      name: What it is called in the name and the manifest of a store.
      fn: From the columns of a client, each ``[n, ...]``, to those of its examples, each ``[m, ...]``.
      parameters: What else the result depends on; anything JSON can say.

    >>> double = Transform("double", lambda columns: {"x": 2 * columns["x"]})
    >>> double({"x": np.arange(3)})
    {'x': array([0, 2, 4])}
    """

    name: str
    fn: Callable[[Columns], dict[str, np.ndarray]]
    parameters: Mapping[str, Any] = {}

    def __call__(self, columns: Columns) -> dict[str, np.ndarray]:
        """Applies the function; what it refuses is a ValueError."""
        return self.fn(columns)


def transformed(source: Source, transform: Transform) -> Source:
    """Applies a transform to each client on its way into a store, whose provenance names it.

    Args:
      source: The clients.
      transform: What is applied to the examples of each.

    Raises:
      ValueError: When clients are read, if the transform refuses one; names the client.
    """

    def clients() -> Iterator[Client]:
        for client in source.clients():
            try:
                examples = transform(client.examples)
            except ValueError as error:
                raise ValueError(f"client {client.id!r}: {error}") from error
            yield client._replace(examples=examples)

    applied = {"name": transform.name, **transform.parameters}
    provenance = {**source.provenance, "transforms": [*source.provenance.get("transforms", []), applied]}
    return Source(clients, source.num_clients, provenance)


def with_metadata(source: Source, metadata_fn: Callable[[Client], Mapping[str, str | float]]) -> Source:
    """Replaces the metadata of each client by those that a function tells.

    Raises:
      ValueError: When clients are read, if the function refuses one; names the client.
    """

    def clients() -> Iterator[Client]:
        for client in source.clients():
            try:
                metadata = metadata_fn(client)
            except ValueError as error:
                raise ValueError(f"client {client.id!r}: {error}") from error
            yield client._replace(metadata=metadata)

    return source._replace(clients=clients)
