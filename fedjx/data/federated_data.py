"""A federated data set: flat columns of examples, and where each client's rows begin."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from collections.abc import Sequence as PySequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.narrow import is_numeric
from fedjx.core.language.types import ArrayType
from fedjx.core.language.values import MASK
from fedjx.data.pool import pool_of
from fedjx.data.random_words import digest

if TYPE_CHECKING:
    cached = property  # To a type checker no protocol has a functools.cached_property.
else:
    cached = functools.cached_property


class ClientData(Protocol):
    """What a cohort asks of a data set: `FederatedData` in memory, a `Store` on disk, or your own.

    A client's number is its identity. Splits, selections and views keep it, and a client may be empty in some of them.

    Attributes:
      num_clients: Number of clients K.
      ids: Their numbers, increasing, as if int64 ``[K]``: from 0 to K - 1, unless the others are elsewhere.
      num_examples: Number of examples N of all clients together.
      num_bytes: Their size in bytes.
      largest: Number of examples of the largest client.
      schema: The type of one example, an `ArrayType` by name of the feature.
      sizes: Number of examples of each client, in the order of `ids`; indexed with int64 ``[...]`` it gives
        int64 ``[...]``.
      offsets: Where each client begins in `pool`; indexed likewise.
      pool: All examples on the device, each feature ``[M, ...]``, where rows past N are of no meaning.
    """

    @property
    def num_clients(self) -> int: ...  # noqa: D102
    @property
    def ids(self) -> Any: ...  # noqa: D102
    @property
    def num_examples(self) -> int: ...  # noqa: D102
    @property
    def num_bytes(self) -> int: ...  # noqa: D102
    @property
    def largest(self) -> int: ...  # noqa: D102
    @property
    def schema(self) -> Mapping[str, ArrayType]: ...  # noqa: D102
    @property
    def sizes(self) -> Any: ...  # noqa: D102
    @property
    def offsets(self) -> Any: ...  # noqa: D102
    @property
    def pool(self) -> Mapping[str, jax.Array]: ...  # noqa: D102

    def places(self, ids: ArrayLike) -> np.ndarray:
        """Returns where in `ids`, `sizes` and `offsets` the clients of these numbers are, int64 ``[C]``."""
        ...

    def read(self, ids: ArrayLike, out: Mapping[str, np.ndarray] | None = None) -> Mapping[str, np.ndarray]:
        """Copies the examples of some clients, one after another; into `out` where it is given, what it names."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FederatedData:
    """The examples of all clients, one client after another.

    The examples of client ``ids[k]`` are the rows ``offsets[k]:offsets[k+1]`` of every feature. A client may have none.

    Attributes:
      examples: Features by name, each ``[N, ...]``, in the narrowest dtype that holds them;
        casting and scaling belong to the jitted step.
      offsets: int64 ``[K+1]``, from 0 to N, never decreasing.
      ids: The clients' numbers, int64 ``[K]``, increasing; by default 0 to K - 1.
      provenance: What to say of the origin of a store that is made of them; anything JSON can say.

    Raises:
      ValueError: If there is no feature, no client or no example, a feature is named "mask", the features
        disagree on N, the offsets do not go from 0 to N, or the ids do not increase.
      TypeError: If a feature is not numeric or the offsets are not integers.

    >>> data = FederatedData({"x": np.arange(10, 15), "y": np.eye(5)}, offsets=np.array([0, 2, 5]))
    >>> data
    FederatedData(num_clients=2, num_examples=5, examples=<x=int64,y=float64[5]>)
    >>> data.client(1)["x"]
    array([12, 13, 14])
    """

    examples: Mapping[str, np.ndarray]
    offsets: np.ndarray
    ids: np.ndarray = None  # type: ignore[assignment]  # Never None once it is made.
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        examples = named_columns(self.examples)
        offsets = _integers("offsets", self.offsets)
        num_examples = checked_examples(examples)
        if len(offsets) < 2:
            raise ValueError(f"a federated data set needs at least one client; got {offsets=}. Give [0, ..., N].")
        if offsets[0] != 0 or offsets[-1] != num_examples or (np.diff(offsets) < 0).any():
            raise ValueError(
                f"offsets need to increase from 0 to the number of examples; got {offsets=} and {num_examples=}. "
                "Cumulate the clients' sizes: [0, n_0, n_0 + n_1, ...]."
            )
        if not num_examples:
            raise ValueError("a federated data set needs at least one example; got none. Look at how it was made.")
        ids = np.arange(len(offsets) - 1) if self.ids is None else _integers("ids", self.ids)
        if len(ids) != len(offsets) - 1 or ids[0] < 0 or (np.diff(ids) <= 0).any():
            raise ValueError(
                f"ids need to be a number for each client, from 0 and increasing; got {ids=} for {len(offsets) - 1} "
                "clients. Sort the clients by number."
            )
        object.__setattr__(self, "examples", examples)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "ids", ids)

    @classmethod
    def from_clients(cls, clients: PySequence[Mapping[str, ArrayLike]]) -> FederatedData:
        """Joins one dict of arrays per client.

        Args:
          clients: For each client its features by name, each ``[n_k, ...]``.

        Raises:
          TypeError: If it is no list of dicts.
          ValueError: If a client's features disagree on ``n_k``, or two clients disagree on the
            features' names, dtypes or shapes of one example; and as the class.

        >>> FederatedData.from_clients([{"x": [1, 2]}, {"x": [3]}]).offsets
        array([0, 2, 3])
        """
        if isinstance(clients, Mapping):
            raise TypeError(
                "clients are a list of dicts; got a dict. Give `list(clients.values())`; a `Store` has names."
            )
        arrays = [named_columns(client, k) for k, client in enumerate(clients)]
        if not arrays:
            raise ValueError("a federated data set needs at least one client; got clients=[]. Give one dict each.")
        sizes = [checked_examples(client, f" of client {k}") for k, client in enumerate(arrays)]
        first = notation(schema_of(arrays[0]))
        for k, client in enumerate(arrays):
            if notation(schema_of(client)) != first:
                raise ValueError(
                    "all clients need the same features, dtypes and shapes of one example; got "
                    f"{notation(schema_of(client))} for client {k} and {first} for client 0. Convert them first."
                )
        examples = {name: np.concatenate([client[name] for client in arrays]) for name in arrays[0]}
        return cls(examples, np.cumsum([0, *sizes]))

    @classmethod
    def from_partition(cls, examples: Mapping[str, ArrayLike], partition: PySequence[ArrayLike]) -> FederatedData:
        """Distributes the examples of a central data set over clients.

        Args:
          examples: Features by name, each ``[N, ...]``.
          partition: For each client the rows it gets, integers in ``[0, N)``, or none. Rows may be left
            out or given to several clients. The provenance has their SHA-256.

        Raises:
          ValueError: If a row is outside ``[0, N)``, or all clients get none.
          TypeError: If the rows are not integers.

        >>> FederatedData.from_partition({"x": [7, 8, 9]}, [[2, 0], [1]]).client(0)["x"]
        array([9, 7])
        """
        arrays = named_columns(examples)
        num_examples = checked_examples(arrays)
        parts = [_integers(f"rows of client {k}", rows) for k, rows in enumerate(partition)]
        for k, rows in enumerate(parts):
            if len(rows) and not (0 <= rows.min() and rows.max() < num_examples):
                raise ValueError(
                    f"rows of a partition need to be in [0, {num_examples}); got {rows.min()} to {rows.max()} for "
                    f"client {k}. Partition the same examples."
                )
        order = np.concatenate([np.empty(0, np.int64), *parts])
        offsets = np.cumsum([0, *map(len, parts)])
        told = {"num_examples": num_examples, "offsets": digest(offsets), "rows": digest(order)}
        return cls({name: column[order] for name, column in arrays.items()}, offsets, provenance={"partition": told})

    @property
    def num_clients(self) -> int:
        """Number of clients K."""
        return len(self.offsets) - 1

    @property
    def num_examples(self) -> int:
        """Number of examples N of all clients together."""
        return int(self.offsets[-1])

    @cached
    def sizes(self) -> np.ndarray:
        """Number of examples of each client, int64 ``[K]``."""
        return np.diff(self.offsets)

    @cached
    def largest(self) -> int:
        """Number of examples of the largest client."""
        return int(self.sizes.max())

    @property
    def num_bytes(self) -> int:
        """Size of the examples in bytes."""
        return sum(column.nbytes for column in self.examples.values())

    @property
    def schema(self) -> dict[str, ArrayType]:
        """The type of one example, by name of the feature."""
        return schema_of(self.examples)

    def places(self, ids: ArrayLike) -> np.ndarray:
        """Returns where in `ids`, `sizes` and `offsets` the clients of these numbers are, int64 ``[C]``.

        Raises:
          ValueError: If there is no number or no such client.
        """
        return places_of(self.ids, ids)

    def read(self, ids: ArrayLike, out: Mapping[str, np.ndarray] | None = None) -> Mapping[str, np.ndarray]:
        """Copies the examples of some clients, one client after another.

        Args:
          ids: Integers ``[C]``, the clients, in any order; one may be named again.
          out: Where to: features by name, each ``[n, ...]`` for n examples in all; other features are not copied. By
            default new arrays for all of them.

        Raises:
          ValueError: If there is no client or an id does not exist.

        >>> data = FederatedData({"x": np.arange(10, 15)}, offsets=np.array([0, 2, 5]))
        >>> data.read([1, 0])["x"]
        array([12, 13, 14, 10, 11])
        """
        places = self.places(ids)
        sizes = self.sizes[places]
        rows = np.repeat(self.offsets[places] - sizes.cumsum() + sizes, sizes) + np.arange(sizes.sum())
        if out is None:
            return {name: column[rows] for name, column in self.examples.items()}
        for name, place in out.items():
            np.take(self.examples[name], rows, axis=0, out=place, mode="clip")  # With another mode NumPy copies twice.
        return out

    def select_clients(self, ids: ArrayLike) -> FederatedData:
        """Copies some clients, integers ``[C]`` or a mask ``[K]``, under their own numbers.

        >>> odd = FederatedData({"x": np.arange(10, 15)}, offsets=np.array([0, 2, 3, 3, 5])).select_clients([3, 1])
        >>> odd.ids, odd.sizes, odd.client(3)["x"]
        (array([1, 3]), array([1, 2]), array([13, 14]))
        """
        ids = selected(self, ids)
        return FederatedData(self.read(ids), np.append(0, self.sizes[self.places(ids)].cumsum()), ids, self.provenance)

    def client(self, k: int) -> dict[str, np.ndarray]:
        """Returns the examples of the client of number k, each feature ``[n_k, ...]``, without a copy."""
        (place,) = self.places([k])
        return {name: column[self.offsets[place] : self.offsets[place + 1]] for name, column in self.examples.items()}

    @cached
    def pool(self) -> dict[str, jax.Array]:
        """The examples on the device; a copy, placed at first use, once.

        Each feature is ``[M, ...]``: the N examples, then rows of zeros, which nobody reads, so that data sets of about
        one size have one shape (`fedjx.data.buckets`). Columns of 64 bits become 32 bits wide, unless jax_enable_x64 is
        on; what would change by that is refused.
        """
        return pool_of(self.examples)

    def __repr__(self) -> str:
        return (
            f"FederatedData(num_clients={self.num_clients}, num_examples={self.num_examples}, "
            f"examples={notation(self.schema)})"
        )


def places_of(numbers: range | np.ndarray, ids: ArrayLike) -> np.ndarray:
    """Returns where some ids are among the numbers of clients, which increase; int64 ``[C]``.

    Raises:
      ValueError: If there is no id or one is not among the numbers.
      TypeError: If the ids are no vector of integers.

    >>> places_of(np.array([2, 5, 7]), [7, 2])
    array([2, 0])
    """
    ids = np.asarray(ids)
    if ids.size == 0:
        raise ValueError("a cohort needs at least one client; got ids=[]. Sample again, or name some.")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TypeError(
            f"ids need to be a vector of integers; got {ids.dtype}{list(ids.shape)}. Give int32 [C]; "
            "Store.find returns the numbers of clients by what they are called."
        )
    places, is_known = located(numbers, ids.astype(np.int64))
    if not is_known.all():
        raise ValueError(
            f"ids need to be clients of the data set, {len(numbers)} from {numbers[0]} to {numbers[-1]}; got "
            f"{ids[~is_known][:5].tolist()} ({(~is_known).sum()} in all). Choose among its ids."
        )
    return places


def located(numbers: range | np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where some ids are among numbers that increase, and whether they are there."""
    if isinstance(numbers, range):
        return ids - numbers.start, (ids >= numbers.start) & (ids < numbers.stop)
    places = np.searchsorted(numbers, ids)
    return places, numbers[np.minimum(places, len(numbers) - 1)] == ids


def selected(data: ClientData, ids: ArrayLike) -> np.ndarray:
    """Returns the numbers of the clients that integers ``[C]`` or a mask ``[K]`` select, increasing."""
    ids = np.asarray(ids)
    if ids.dtype == bool and ids.shape != (data.num_clients,):
        raise ValueError(f"a mask needs to be bool [{data.num_clients}]; got bool{list(ids.shape)}. Give one a client.")
    places = np.flatnonzero(ids) if ids.dtype == bool else np.unique(data.places(ids))
    if not len(places):
        raise ValueError("a selection needs at least one client; got none. Look at the mask.")
    return np.asarray(data.ids[places])


def notation(schema: Mapping[str, ArrayType]) -> str:
    """Prints the type of one example as types are printed: ``<x=uint8[8,8,1],y=int32>``."""
    shapes = {name: str(list(feature.shape)).replace(" ", "") for name, feature in schema.items()}
    return "<" + ",".join(f"{n}={schema[n].dtype}{shapes[n].replace('[]', '')}" for n in sorted(shapes)) + ">"


def named_columns(examples: Mapping[str, ArrayLike], k: Any = None) -> dict[str, np.ndarray]:
    """Returns the features of client k, or of all, as arrays."""
    who, owner = ("examples are", "") if k is None else ("a client is", f"client {k}")
    if not isinstance(examples, Mapping):
        got = " for ".join(filter(None, (type(examples).__name__, owner)))
        advice = "`fedjx.data.importers.table` reads frames." if hasattr(examples, "columns") else "Name them."
        raise TypeError(f"{who} a dict of arrays by name; got {got}. {advice}")
    columns = {}
    for name, column in examples.items():
        try:
            columns[name] = np.asarray(column)
        except ValueError as error:
            raise ValueError(
                f"every example of a feature needs the same shape; got rows of different length in "
                f"{' of '.join(filter(None, (repr(name), owner)))}. Pad them."
            ) from error
    return columns


def checked_examples(examples: Mapping[str, np.ndarray], owner: str = "") -> int:
    """Checks the features and returns the number of examples on which they agree."""
    if not examples:
        raise ValueError(f"the examples{owner} need at least one feature; got examples={{}}. Give arrays by name.")
    if MASK in examples:
        raise ValueError(f"'{MASK}' names the padding of a batch; got it as a feature{owner}. Rename the feature.")
    for name, column in examples.items():
        if not is_numeric(column.dtype):
            raise TypeError(
                f"features{owner} need to be numeric; got '{name}' of dtype {column.dtype}. Leave it out, or encode it "
                "first: categories as numbers from 0, as by pandas.factorize, text with fedjx.data.tokenize."
            )
        if column.ndim == 0:
            raise ValueError(f"features{owner} need an examples axis; got the scalar '{name}'. Give an array [N, ...].")
    first, size = next((name, len(column)) for name, column in examples.items())
    for name, column in examples.items():
        if len(column) != size:
            raise ValueError(
                f"all features{owner} need the same number of examples; got '{first}' with {size} and '{name}' with "
                f"{len(column)}. Give one row per example in each."
            )
    return size


def schema_of(examples: Mapping[str, np.ndarray]) -> dict[str, ArrayType]:
    """Returns the type of one example, by name of the feature."""
    return {name: ArrayType(column.shape[1:], column.dtype) for name, column in examples.items()}


def _integers(name: str, values: ArrayLike) -> np.ndarray:
    """Returns a copy of a vector of integers; an empty one may have any dtype."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(
            f"{name} need to be a vector of integers; got {array.dtype}{list(array.shape)}. Give int64 [...] indices."
        )
    return array.astype(np.int64)
