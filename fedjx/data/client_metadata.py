"""The columns of metadata of a store's clients: which values they take, and how these are written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_MAX_VALUES = 1 << 16


class MetadataColumn:
    """A column of metadata: numbers as they are, or strings by their numbers."""

    def __init__(self, first: str | float | bool):
        self.type = type(first)
        self.dtype = np.dtype({str: "int32", bool: "bool", int: "int64", float: "float64"}[self.type])
        self.values: dict[str, int] | None = {} if self.type is str else None

    def check(self, name: str, *values: Any) -> None:
        """Refuses one string too many."""
        if self.values is not None and len(self.values) + len(set(values).difference(self.values)) > _MAX_VALUES:
            raise ValueError(
                f"metadata need to have few different strings; got more than {_MAX_VALUES} for {name!r}. Number them, "
                "or make them a feature."
            )

    def encoded(self, values: list[Any]) -> bytes:
        """Returns values as they are written."""
        if self.values is not None:
            values = [self.values.setdefault(value, len(self.values)) for value in values]
        return np.array(values, self.dtype).tobytes()


def plain(name: str, value: Any) -> str | float | bool:
    """Returns a value of metadata as Python's own str, bool, int or float."""
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,63}", name):
        raise ValueError(f"metadata need a plain name, of letters, digits and _; got {name!r}. Rename it.")
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) not in (str, bool, int, float):
        raise TypeError(f"metadata are str, int, float or bool; got {name}={value!r}. Convert it.")
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"metadata of type int need to fit in 64 bits; got {name}={value}. Give a str.")
    return value


def plain_values(name: str, values: Sequence[Any], num_clients: int) -> list[str | float | bool]:
    """Returns the clients' values of a column of metadata, which need to be of one type."""
    column = [plain(name, value) for value in values]
    if len(column) != num_clients:
        raise ValueError(
            f"metadata need a value for each client; got {len(column)} for {num_clients} clients, {name=}. Give [C]."
        )
    if len({type(value) for value in column}) > 1:
        types = sorted({type(value).__name__ for value in column})
        raise ValueError(f"all clients need the same metadata; got {types} for {name!r}. Give values of one type.")
    return column
