"""Preprocessing: functions of one client's columns, composed lazily, or baked into a new store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast, overload

import jax
import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from fedjx.core.language.types import ArrayType
from fedjx.data.client_ids import ClientId
from fedjx.data.federated_data import (
    ClientData,
    FederatedData,
    cached,
    checked_examples,
    named_columns,
    notation,
    schema_of,
    selected,
)
from fedjx.data.source import Client, Source, as_source, blocks, client_ids, read_clients

Columns = Mapping[str, np.ndarray]


class Step(NamedTuple):
    """A pure function of one client's columns that says what it is, and may tell how many examples it leaves.

    Attributes:
      name: What it is called in a manifest.
      function: From a client's columns, each ``[n, ...]``, to its new columns, each ``[m, ...]``.
      parameters: What else the result depends on; anything JSON can say.
      num_examples: From the numbers n of some clients, int64 ``[C]``, to the numbers m; None if that takes
        reading the examples.
      takes_id: Whether the function takes the client's id too, after the columns.

    >>> double = Step("times", lambda columns: {"x": 2 * columns["x"]}, {"factor": 2})
    >>> double({"x": np.arange(3)})
    {'x': array([0, 2, 4])}
    """

    name: str
    function: Callable[..., Mapping[str, ArrayLike]]
    parameters: Mapping[str, Any] = {}
    num_examples: Callable[[np.ndarray], np.ndarray] | None = None
    takes_id: bool = False

    def __call__(self, columns: Columns, client_id: ClientId | None = None) -> Mapping[str, Any]:
        """Applies the function to one client; what it refuses is a ValueError."""
        return self.function(columns, client_id) if self.takes_id else self.function(columns)


Function = Step | Callable[[Columns], Mapping[str, ArrayLike]]


@overload
def preprocess(data: Source, *functions: Function) -> Source: ...
@overload
def preprocess(data: ClientData, *functions: Function) -> Preprocessed: ...
def preprocess(data, *functions):
    """Applies functions of one client to every client, one function after the other, when it is read.

    Nothing is computed before it is needed. `write_store` bakes the result.

    Args:
      data: What an importer returns, or client data in memory or on disk.
      *functions: From a client's columns by name, each ``[n, ...]``, to its new columns, each ``[m, ...]``; pure,
        since a client may be read many times. A client that is left without examples keeps its number, and no
        function sees it any more.

    Returns:
      A `Source` of a source, else client data. The provenance lists the functions after those that were applied before:
      a `Step` with its parameters, others by their names. Where a function does not say how many examples it leaves,
      client data are read once, at first use, for their sizes.

    Raises:
      ValueError: When a client is read which a function refuses, or whose new columns are not alike in length, or
        unlike the first client's; names the client.

    >>> data = FederatedData({"x": np.arange(6), "y": np.ones(6)}, offsets=np.array([0, 1, 6]))
    >>> odd = preprocess(data, lambda columns: {"x": columns["x"][columns["x"] % 2 == 1]})
    >>> odd.sizes, odd.client(1)["x"]
    (array([0, 3]), array([1, 3, 5]))
    """
    if not isinstance(data, Source):
        return Preprocessed(data, functions)
    steps = tuple(map(as_step, functions))

    def clients() -> Iterator[Client]:
        for client in data.clients():
            yield client._replace(examples=_applied(steps, client.id, client.examples))

    said = [*data.provenance.get("preprocessed", ()), *({"name": step.name, **step.parameters} for step in steps)]
    return data._replace(clients=clients, provenance={**data.provenance, "preprocessed": said})


class Preprocessed:
    """Client data as some functions leave them; `preprocess` makes it.

    It takes the place of `FederatedData` in a `Cohort`. Clients keep their numbers, also those without examples.
    """

    def __init__(self, data: ClientData, functions: Sequence[Function]):
        self.data, self._functions = data, functions
        self._steps = tuple(map(as_step, functions))

    @property
    def num_clients(self) -> int:
        """Number of clients K."""
        return self.data.num_clients

    @property
    def ids(self) -> Any:
        """The numbers of the clients, increasing, as if int64 ``[K]``: those of the data."""
        return self.data.ids

    def places(self, ids: ArrayLike) -> np.ndarray:
        """Returns where in `ids`, `sizes` and `offsets` the clients of these numbers are; as `FederatedData.places`."""
        return self.data.places(ids)

    @cached
    def sizes(self) -> np.ndarray:
        """Number of examples of each client, int64 ``[K]``."""
        sizes = np.array(self.data.sizes[:], np.int64)
        if all(step.num_examples for step in self._steps):
            for step in self._steps:
                sizes = step.num_examples(sizes) if step.num_examples else sizes
        else:
            clients = self._read_clients(np.asarray(self.ids[sizes > 0]))
            bar = tqdm(
                clients, "Counting examples", int(np.count_nonzero(sizes)), unit=" clients", delay=1, leave=False
            )
            sizes[sizes > 0] = [num_rows(columns) for columns in bar]
        if not sizes.any():
            raise ValueError("a data set needs at least one example; got none after preprocessing. Filter less.")
        return sizes

    @cached
    def offsets(self) -> np.ndarray:
        """Where each client begins in `pool`, int64 ``[K+1]``."""
        return np.append(0, self.sizes.cumsum())

    @property
    def num_examples(self) -> int:
        """Number of examples N of all clients together."""
        return int(self.offsets[-1])

    @cached
    def largest(self) -> int:
        """Number of examples of the largest client."""
        return int(self.sizes.max())

    @cached
    def schema(self) -> dict[str, ArrayType]:
        """The type of one example, by name of the feature."""
        return schema_of(next(self._read_clients(self.ids[(self.sizes > 0).argmax()][None])))

    @property
    def num_bytes(self) -> int:
        """Size of the examples in bytes."""
        widths = [feature.dtype.itemsize * int(np.prod(feature.shape)) for feature in self.schema.values()]
        return self.num_examples * sum(widths)

    @cached
    def pool(self) -> Mapping[str, jax.Array]:
        """The examples on the device, as `FederatedData.pool`; loaded at first use, once."""
        return self.load().pool

    def as_source(self) -> Source:
        """Returns the clients as `preprocess` would of a source: read once, and not counted before."""
        return preprocess(as_source(self.data), *self._functions)

    def load(self) -> FederatedData:
        """Preprocesses all examples into memory."""
        return FederatedData(self.read(self.ids[:]), self.offsets, self.ids[:], self.as_source().provenance)

    def read(self, ids: ArrayLike, out: Mapping[str, np.ndarray] | None = None) -> Mapping[str, np.ndarray]:
        """Reads and preprocesses some clients, one client after another; as `FederatedData.read`."""
        sizes, type_ = self.sizes[self.places(ids)], notation(self.schema)
        ids, sizes = np.asarray(ids)[sizes > 0], sizes[sizes > 0]
        if out is None:
            total = int(sizes.sum())
            out = {name: np.empty((total, *feature.shape), feature.dtype) for name, feature in self.schema.items()}
        end = 0
        for k, size, columns in zip(ids, sizes, self._read_clients(ids), strict=True):
            if (found := notation(schema_of(columns))) != type_ or num_rows(columns) != size:
                raise ValueError(
                    f"all clients need the same type, and the sizes that were counted, here {type_} and {size}; got "
                    f"{found} and {num_rows(columns)} for client {k}. Let the functions be pure, and cast what differs."
                )
            for name, place in out.items():
                place[end : end + size] = columns[name]
            end += size
        return out

    def client(self, k: int) -> dict[str, np.ndarray]:
        """Returns the examples of the client of number k, each feature ``[n_k, ...]``."""
        return dict(self.read([k]))

    def client_ids(self, ids: ArrayLike) -> list[ClientId]:
        """Returns the ids under which the clients of these numbers were written, or these where there are none."""
        self.places(ids)  # Raises where there is no such client.
        return client_ids(self.data, np.asarray(ids))

    @property
    def metadata_names(self) -> Sequence[str]:
        """The columns of the metadata of the data."""
        return getattr(self.data, "metadata_names", ())

    def metadata(self, name: str) -> np.ndarray:
        """Reads a column of the metadata of the data, ``[K]``."""
        return cast(Any, self.data).metadata(name)

    def select_clients(self, ids: ArrayLike) -> Preprocessed:
        """Returns a view of some clients, integers ``[C]`` or a mask ``[K]``, under their own numbers."""
        return Preprocessed(cast(Any, self.data).select_clients(selected(self, ids)), self._functions)

    def __repr__(self) -> str:
        return (
            f"Preprocessed(num_clients={self.num_clients}, num_examples={self.num_examples}, "
            f"examples={notation(self.schema)})"
        )

    def _read_clients(self, ids: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Reads some clients of `data` and applies the functions to each."""
        for block in blocks(self.data, ids):
            for name, columns in zip(client_ids(self.data, block), read_clients(self.data, block), strict=True):
                columns = _applied(self._steps, name, columns)
                checked_examples(columns, f" of client {name!r} after preprocessing")
                yield columns


def _applied(steps: Sequence[Step], client_id: ClientId, columns: Columns) -> dict[str, np.ndarray]:
    for step in steps:
        if not num_rows(columns):
            break  # What is computed of no examples, such as their mean, is seldom meant.
        try:
            columns = named_columns(step(columns, client_id), repr(client_id))
        except ValueError as error:
            raise ValueError(f"{step.name} of client {client_id!r}: {error}") from error
    return dict(columns)


def as_step(function: Function) -> Step:
    """Returns a function of columns as a step, which has its name."""
    if isinstance(function, Step):
        return function
    if not callable(function):
        raise TypeError(f"preprocess needs functions; got {function!r}. Give one from columns to columns.")
    return Step(name_of(function), function)


def name_of(function: Any) -> str:
    """Returns what a manifest calls a function: its name, or that of the function which made it."""
    return getattr(function, "__qualname__", type(function).__name__).split(".<locals>")[0]


def num_rows(columns: Columns) -> int:
    """Returns the number of examples in some columns."""
    return len(next(iter(columns.values()), ()))
