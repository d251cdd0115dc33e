"""Grids: the points of a sweep, what they are called, and the seeds that all of them have."""

from __future__ import annotations

import hashlib
import itertools
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fedjx.core.language.checks import check_integer

Point: TypeAlias = dict[str, Any]
Grid: TypeAlias = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]

_LONGEST = 200  # characters of a name; file systems take 255 bytes


def name_of(point: Mapping[str, Any]) -> str:
    """Names a point, for people and directories.

    >>> name_of({"rate": 0.1, "model": "a/b"})
    'rate=0.1,model=a%2Fb'
    """
    parts = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in point.items()]
    name = ",".join(urllib.parse.quote(part, safe="=+,[]") for part in parts) or "point"
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{digest}"


def points_of(grid: Grid) -> list[Point]:
    """Returns the points of a grid, which differ, of values that JSON holds."""
    if isinstance(grid, Mapping):
        for name, values in grid.items():
            if isinstance(values, str) or not hasattr(values, "__len__"):
                raise TypeError(
                    f"a grid has a list of values for each name; got {name}={values!r}. Write [{values!r}]."
                )
        grid = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    points = [{name: _plain(name, value) for name, value in point.items()} for point in grid]
    names = [name_of(point) for point in points]
    if not points:
        raise ValueError(f"a grid needs a point; got {grid!r}. Give each name a value, or no name at all.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the points of a grid must differ; got {twice[0]} twice. Leave one out.")
    return points


def _plain(name: str, value: Any) -> Any:
    """Returns a value that JSON holds."""
    value = value.tolist() if hasattr(value, "tolist") else value
    try:
        json.dumps(value)
    except TypeError:
        advice = "Give it a name, and look that up in the function."
        raise TypeError(f"the values of a grid must be numbers or text; got {name}={value!r}. {advice}") from None
    return value


def seeds_of(seeds: int | Sequence[int]) -> list[int]:
    """Returns so many seeds, or those that are given."""
    if isinstance(seeds, int):
        check_integer("[1, inf)", seeds=seeds)
        return list(range(seeds))
    found = [int(seed) for seed in seeds]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds must be some that differ; got {seeds=}. Pass 3, for example.")
    return found
