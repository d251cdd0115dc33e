"""What a data set looks like: how large its clients are, and how the values of its columns are distributed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from tqdm import tqdm

from fedjx.core.language.types import ArrayType
from fedjx.data.federated_data import ClientData
from fedjx.data.tables import bytes_text, counts_text, number_text, table
from fedjx.data.tallies import (
    MAX_LABELS,
    MAX_SAMPLE,
    Labels,
    LabelsTally,
    LengthsTally,
    Numbers,
    NumbersTally,
    count_into,
    most_frequent,
    quantiles_of,
    quantiles_of_counts,
)

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_HEADS = ("least", "5%", "25%", "50%", "75%", "95%", "most")
# Clients whose sizes are read at once, and values that are: some megabytes, and little time spent on calls.
_CLIENTS = 1 << 17
_VALUES = 1 << 21
# Clients whose metadata are read at once.
_METADATA = 1 << 17


class Feature(NamedTuple):
    """What the values of a feature are.

    Attributes:
      type: Dtype and shape of one example.
      numbers: How its numbers are distributed; None for text and complex numbers.
      labels: How often each value is there; None unless they are scalar integers or booleans of at most 256 values.
      lengths: Examples by length of their text in bytes; None unless all are uint8 ``[L]``, padded with zeros, without
        control characters but tabulators and ends of lines.
    """

    type: ArrayType
    numbers: Numbers | None
    labels: Labels | None
    lengths: dict[int, int] | None


class Description(NamedTuple):
    """What `describe` finds; as text it is tables.

    Attributes:
      num_clients: Number of clients.
      num_examples: Number of examples of all clients together.
      num_bytes: Size of the examples' features that are described, in bytes.
      sizes: Clients by number of examples, of increasing number.
      features: What is known of each feature.
      metadata: For each column of metadata the clients by value, the most frequent first, or, for one of numbers that
        take over 256 values, how these are distributed.
    """

    num_clients: int
    num_examples: int
    num_bytes: int
    sizes: dict[int, int]
    features: dict[str, Feature]
    metadata: dict[str, dict[str | int | bool, int] | Numbers]

    @property
    def size_quantiles(self) -> dict[float, float]:
        """Quantiles of the clients' numbers of examples, exact."""
        return dict(zip(QUANTILES, quantiles_of_counts(self.sizes, QUANTILES).tolist(), strict=True))

    def share_of_largest(self, share: float) -> float:
        """Returns the share of all examples that the largest clients have, this share of the clients, rounded up.

        >>> Description(4, 10, 80, {1: 2, 3: 1, 5: 1}, {}, {}).share_of_largest(0.5)
        0.8
        """
        size, count = (np.array(list(column))[::-1] for column in (self.sizes.keys(), self.sizes.values()))
        wanted = math.ceil(round(share * self.num_clients, 6))
        taken = np.minimum(count, (wanted - (count.cumsum() - count)).clip(0))
        return int(size @ taken) / self.num_examples

    def __str__(self) -> str:
        return "\n\n".join(_tables(self))


def describe(data: ClientData, *, features: Iterable[str] | None = None, progress: bool = True) -> Description:
    """Reads all of a data set once, and says how its clients and their values are distributed.

    It takes memory for a few megabytes of examples and of each column's sample, and for the different sizes of clients;
    not more for more clients. Counts, means, deviations, minima, maxima and quantiles of sizes are exact; quantiles
    of values come of a sample where there are over 131,072, see `Numbers`, and are the same each time.

    Args:
      data: In memory, on disk, or your own; also views of some clients and preprocessed data.
      features: Names of those to describe; by default all.
      progress: Whether to show a bar where it takes longer and stderr is a terminal.

    Raises:
      ValueError: If a feature is not there; as `read` of the data too.

    >>> from fedjx.data import FederatedData, describe
    >>> data = FederatedData({"x": np.array([1.0, 2.0, 6.0, 0.0]), "y": np.array([3, 3, 3, 8])}, np.array([0, 3, 4]))
    >>> description = describe(data)
    >>> description.sizes, description.features["x"].numbers.mean, description.features["y"].labels.counts
    ({1: 1, 3: 1}, 2.25, {3: 3, 8: 1})
    """
    schema = _chosen(data.schema, features)
    columns = {name: _Column(feature, data) for name, feature in schema.items()}
    sizes: Counter[int] = Counter()
    disable = None if progress else True
    with tqdm(desc="Describing", total=data.num_clients, unit=" clients", delay=1, leave=False, disable=disable) as bar:
        for own, examples in _passes(data, schema):
            count_into(sizes, own)
            for name, column in columns.items():
                column.add(examples[name], own)
            bar.update(len(own))
    num_examples = sum(size * count for size, count in sizes.items())
    return Description(
        num_clients=data.num_clients,
        num_examples=num_examples,
        num_bytes=num_examples * sum(_width(feature) * feature.dtype.itemsize for feature in schema.values()),
        sizes=dict(sorted(sizes.items())),
        features={name: column.result() for name, column in columns.items()},
        metadata={name: _metadata(data, name) for name in getattr(data, "metadata_names", ())},
    )


class _Column:
    """What is kept of a feature."""

    def __init__(self, feature: ArrayType, data: ClientData):
        self.type, kind, num_axes = feature, feature.dtype.kind, len(feature.shape)
        self._numbers = None if kind == "c" else NumbersTally(data.num_examples * _width(feature), feature.dtype)
        self._labels = LabelsTally(data.num_clients) if kind in "iub" and not num_axes else None
        self._lengths = LengthsTally() if feature.dtype == np.uint8 and num_axes == 1 else None

    def add(self, column: np.ndarray, sizes: np.ndarray) -> None:
        """Looks at the examples of the next clients."""
        if self._numbers:
            self._numbers.add(column)
        if self._labels:
            self._labels.add(column, sizes)
        if self._lengths:
            self._lengths.add(column)

    def result(self) -> Feature:
        """Returns what has been found."""
        lengths = self._lengths.result() if self._lengths else None
        numbers = self._numbers.result() if self._numbers and lengths is None else None
        return Feature(self.type, numbers, self._labels.result() if self._labels else None, lengths)


def _chosen(schema: Mapping[str, ArrayType], features: Iterable[str] | None) -> dict[str, ArrayType]:
    names = list(schema) if features is None else list(dict.fromkeys(features))
    unknown = [name for name in names if name not in schema]
    if unknown or not names:
        raise ValueError(f"features need to be some of {sorted(schema)}; got {unknown or names}. Choose among these.")
    return {name: schema[name] for name in names}


def _passes(data: ClientData, schema: Mapping[str, ArrayType]) -> Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]:
    """Cuts the clients into runs of few values; yields their sizes and examples."""
    most = max(1, _VALUES // max(1, sum(map(_width, schema.values()))))
    for start in range(0, data.num_clients, _CLIENTS):
        part = slice(start, min(start + _CLIENTS, data.num_clients))
        ids, sizes = data.ids[part], np.asarray(data.sizes[part])
        ends = sizes.cumsum()
        first = 0
        while first < len(ids):
            before = int(ends[first] - sizes[first])
            end = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
            yield sizes[first:end], _read(data, schema, ids[first:end], int(ends[end - 1]) - before)
            first = end


def _read(data: ClientData, schema: Mapping[str, ArrayType], ids: np.ndarray, total: int) -> Mapping[str, np.ndarray]:
    out = {name: np.empty((total, *feature.shape), feature.dtype) for name, feature in schema.items()}
    are_neighbours = ids[-1] - ids[0] == len(ids) - 1
    return data.read(range(int(ids[0]), int(ids[-1]) + 1) if are_neighbours else ids, out)


def _metadata(data: ClientData, name: str) -> dict[Any, int] | Numbers:
    """Reads a column of the metadata, and counts its values."""
    counts: Counter = Counter()
    numbers: NumbersTally | None = None
    for start in range(0, data.num_clients, _METADATA):
        values = cast(Any, data).select_clients(data.ids[start : start + _METADATA]).metadata(name)
        if values.dtype.kind in "if":
            numbers = numbers or NumbersTally(data.num_clients, values.dtype)
            numbers.add(values)
        if values.dtype.kind != "f" and (numbers is None or len(counts) <= MAX_LABELS):
            count_into(counts, values)
    if numbers and not 0 < len(counts) <= MAX_LABELS:
        return numbers.result()
    return most_frequent(counts)


def _width(feature: ArrayType) -> int:
    return math.prod(feature.shape)


def _tables(description: Description) -> Iterator[str]:
    features = description.features
    one, ten = (f"{description.share_of_largest(share):.1%}" for share in (0.01, 0.1))
    largest = f"the largest 1% of clients have {one} of them, the largest 10% {ten}"
    yield table(
        [
            ("clients", f"{description.num_clients:,}"),
            ("examples", f"{description.num_examples:,}; {largest}"),
            ("size", bytes_text(description.num_bytes)),
        ]
    )
    yield table([("of a client", *_HEADS), *_rows_of_clients(description)])
    if rows := [(name, *_type(f), *_numbers_cells(f.numbers)) for name, f in features.items() if f.lengths is None]:
        yield table([("feature", "dtype", "shape", "mean", "deviation", *_HEADS, "zeros", "not finite"), *rows])
    if rows := [(name, *_type(f), *_size_cells(f.lengths)) for name, f in features.items() if f.lengths is not None]:
        yield table([("length of text", "dtype", "shape", *_HEADS), *rows])
    if rows := [
        (name, f"{len(f.labels.counts):,}", counts_text(f.labels.counts)) for name, f in features.items() if f.labels
    ]:
        yield table([("labels", "different", "examples by value"), *rows])
    if rows := [(name, _metadata_text(found)) for name, found in description.metadata.items()]:
        yield table([("metadata", "clients by value"), *rows])
    yield _exactness(description)


def _rows_of_clients(description: Description) -> Iterator[tuple[str, ...]]:
    yield ("examples", *_size_cells(description.sizes))
    for name, feature in description.features.items():
        if labels := feature.labels:
            shares = quantiles_of(labels.largest_share, QUANTILES)
            yield (f"different {name}", *map(number_text, quantiles_of(labels.num_labels, QUANTILES).tolist()))
            yield (f"share of its most frequent {name}", *(f"{share:.1%}" for share in shares.tolist()))


def _exactness(description: Description) -> str:
    """Says which quantiles are those of a sample."""
    features = description.features.items()
    sampled = [name for name, feature in features if feature.numbers and not feature.numbers.is_exact]
    if description.num_clients > MAX_SAMPLE:
        sampled += [f"a client's {name}" for name, feature in features if feature.labels]
    if not sampled:
        return "All numbers are exact."
    return f"Quantiles of {', '.join(sampled)} are those of {MAX_SAMPLE:,} values drawn at random. All else is exact."


def _type(feature: Feature) -> tuple[str, str]:
    return feature.type.dtype.name, str(list(feature.type.shape))


def _size_cells(counts: Mapping[int, int]) -> Iterator[str]:
    return map(number_text, quantiles_of_counts(counts, QUANTILES).tolist())


def _numbers_cells(found: Numbers | None) -> list[str]:
    if found is None:
        return ["-"] * (len(_HEADS) + 4)
    middle = quantiles_of(found.sample, QUANTILES[1:-1]).tolist()
    shown = (found.mean, found.standard_deviation, found.minimum, *middle, found.maximum)
    return [*map(number_text, shown), f"{found.zeros:.1%}", f"{found.num_non_finite:,}"]


def _metadata_text(found: Mapping[Any, int] | Numbers) -> str:
    if isinstance(found, Mapping):
        return counts_text(found)
    least, middle, most = map(number_text, (found.minimum, quantiles_of(found.sample, [0.5]).item(), found.maximum))
    return f"{least} to {most}, the median {middle}, the mean {number_text(found.mean)}"
