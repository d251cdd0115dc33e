"""Gathers examples, one dict each, into columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fedjx.data.client_ids import ClientId
from fedjx.data.importers.grouping import Block

_MAX_ROWS, _BLOCK_BYTES = 4096, 1 << 24


def value_of(name: str, value: Any) -> Any:
    """Returns numbers, booleans, text or lists of these as an array or a str."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "U":
        array = np.asarray(value, object)
    if array.dtype.kind not in "biufO" or (array.dtype == object and {*map(type, array.ravel())} != {str}):
        raise ValueError(f"a feature is numbers, booleans, text or lists of these; got {name!r} with {str(value)[:50]}")
    return array


def owner_of(features: Mapping[str, Any], client: str, where: str) -> Any:
    """Returns the value of the feature that says whose an example is."""
    owner = features.get(client)
    owner = owner.item() if isinstance(owner, (np.ndarray, np.generic)) and owner.ndim == 0 else owner
    if type(owner) not in (str, bytes, int):
        raise ValueError(
            f"client is a feature with a str, bytes or integer; got {client=} with {type(owner).__name__} for {where}. "
            f"There are {sorted(features)}."
        )
    return owner


def blocks_of(rows: Iterable[tuple[str, ClientId, dict[str, Any]]]) -> Iterator[Block]:
    """Gathers examples, which need to be like the first one, into blocks."""
    first, owners, held, num_bytes = None, [], [], 0
    for where, owner, features in rows:
        layout = {name: _layout(value) for name, value in features.items()}
        first = first or layout
        if layout != first or not layout:
            raise ValueError(
                f"all examples need the same features, dtypes and shapes; got {layout} for {where} and {first} for the "
                "first. Convert them first."
            )
        owners.append(owner)
        held.append(features)
        num_bytes += sum(value.nbytes if isinstance(value, np.ndarray) else len(value) for value in features.values())
        if num_bytes >= _BLOCK_BYTES or len(held) == _MAX_ROWS:
            yield _joined(owners, held)
            owners, held, num_bytes = [], [], 0
    if held:
        yield _joined(owners, held)


def _layout(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _joined(owners: list[ClientId], held: list[dict[str, Any]]) -> Block:
    columns = {name: [features[name] for features in held] for name in held[0]}
    return objects(owners), {
        name: np.stack(values) if isinstance(values[0], np.ndarray) else objects(values)
        for name, values in columns.items()
    }


def objects(values: list[Any]) -> np.ndarray:
    """Returns values as an object array ``[n]``."""
    column = np.empty(len(values), object)
    column[:] = values
    return column
