"""Imports arrays in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike

from fedjx.data.importers.grouping import plain, uniques
from fedjx.data.source import Client, Source


def arrays(examples: Mapping[str, ArrayLike], clients: ArrayLike) -> Source:
    """Groups columns in memory by client.

    Args:
      examples: Features by name, each ``[N, ...]``.
      clients: Whose each example is, ``[N]``: integers, str or bytes.

    Returns:
      The clients in increasing order of their ids; the rows of each keep their order.

    Raises:
      ValueError: If there is no example, the lengths differ, or the ids are neither integers, str nor bytes.

    >>> source = arrays({"x": [1, 2, 3]}, ["bob", "ada", "bob"])
    >>> [(client.id, client.examples["x"].tolist()) for client in source.clients()]
    [('ada', [2]), ('bob', [1, 3])]
    """
    columns = {name: _column(column, repr(name)) for name, column in examples.items()}
    keys = _column(clients, "clients")
    for name, column in columns.items():
        if column.shape[:1] != keys.shape[:1] or keys.ndim != 1:
            raise ValueError(
                f"features and clients need one row for each example; got {name!r} of shape {list(column.shape)} and "
                f"clients of shape {list(keys.shape)}. Give as many."
            )
    if not len(keys) or not columns:
        raise ValueError(f"an import needs examples; got {len(columns)} features, {keys.size} rows. Give some.")
    names, codes = uniques(keys)
    numbers = {name: rank for rank, name in enumerate(sorted(names))}
    client = np.array([numbers[name] for name in names])[codes]
    order = np.argsort(client, kind="stable")
    ends = np.bincount(client).cumsum().tolist()

    def read() -> Iterator[Client]:
        for name, (start, end) in zip(numbers, itertools.pairwise([0, *ends]), strict=True):
            rows = order[start:end]
            yield Client(name, {key: column[rows] for key, column in columns.items()})

    return Source(read, len(numbers), {"importer": "arrays", "files": {}, "options": {}})


def _column(values: ArrayLike, name: str) -> np.ndarray:
    try:
        column = np.asarray(values)
        if column.dtype.kind in "US" and not isinstance(values, np.ndarray):
            # As text of fixed width, b"a\0" would be b"a", and 1 beside "1" the same.
            column = np.asarray(values, object)
    except ValueError:
        raise ValueError(f"rows need one shape; got several in {name}. Pad them.") from None
    return plain(column)
