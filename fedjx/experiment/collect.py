"""Runs to look at: rows in memory, runs' directories and sweeps', by name, each with its seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias
from urllib.parse import unquote

from fedjx.experiment.curves import Columns, columns
from fedjx.experiment.rows import Row, read_rows
from fedjx.experiment.run_directory import ENDED, MARKER, ROWS, RunError, checkpoints


class HasRows(Protocol):
    """What has the rows of a run, such as the result of `run`."""

    @property
    def rows(self) -> Sequence[Row]:
        """One for each round."""
        ...


_SEED = r"seed--?\d+"


class HasOutcomes(Protocol):
    """What has the runs of a sweep: each with its ``point``, ``seed``, ``rows`` and ``error``."""

    @property
    def outcomes(self) -> Sequence[Any]:
        """One for each run."""
        ...


RunLike: TypeAlias = str | Path | Sequence[Row] | HasRows
Runs: TypeAlias = RunLike | Sequence[RunLike] | HasOutcomes | Mapping[str, RunLike | Sequence[RunLike]]


class Member(NamedTuple):
    """A run, one seed of what a name stands for.

    Attributes:
      name: Of its directory, if that is a seed's, such as ``"seed-0"``; empty if not.
      metrics: What it measured; nothing if it has not come to the first round.
      about: What determines it, as its directory says.
      problem: Why its rows could not be read, are none, or are not all; empty if nothing is wrong.
      reason: Why it has ended, as its directory says.
    """

    name: str
    metrics: Columns
    about: Mapping[str, Any] = {}
    problem: str = ""
    reason: str = ""


def collect(runs: Runs) -> dict[str, list[Member]]:
    """Reads runs, and groups them by name: under each one or several seeds.

    Args:
      runs: One run, several that are seeds of one, or those of several names. A run is its rows, what has them, or its
        directory; a directory with runs below it, such as a sweep's, stands for all of them, by their paths in it. Runs
        ``seed-0``, ``seed-1``, ... in one folder are seeds of one; of a list of directories each is by itself. Or what
        `sweep` returns.

    Raises:
      ValueError: If there is no run.
      TypeError: If it is something else.

    >>> found = collect({"fed_avg": [[{"round": 0}], [{"round": 0}]], "fed_prox": [{"round": 0}]})
    >>> {name: len(seeds) for name, seeds in found.items()}
    {'fed_avg': 2, 'fed_prox': 1}
    """
    if isinstance(runs, Mapping):
        found = {str(name): list(_members(value)) for name, value in runs.items()}
    elif hasattr(runs, "outcomes"):
        found = _of_sweep(runs)
    elif isinstance(runs, str | Path):
        found = _in_directory(Path(runs))
    elif isinstance(runs, Sequence) and not runs:
        found = {}
    elif paths := _paths(runs):
        found = _in_directories(paths)
    else:
        found = {"": list(_members(runs))}
    if empty := [name for name, members in found.items() if not members]:
        raise ValueError(f"each name needs a run; got none for {empty[0]!r}. Leave it out.")
    if not found:
        raise ValueError(f"there must be runs to look at; got {runs!r}. Give rows, or directories of runs.")
    return found


def _members(value: Any) -> Iterator[Member]:
    """Yields the runs of one name."""
    if hasattr(value, "rows"):
        yield from _members(value.rows)
    elif isinstance(value, str | Path):
        for members in _in_directory(Path(value)).values():
            yield from members
    elif not isinstance(value, Sequence):
        raise TypeError(f"a run must be rows or a directory; got {value!r:.80}. Give the rows that `run` returns.")
    elif value and not all(isinstance(row, Mapping) for row in value):
        for run in value:
            yield from _members(run)
    else:
        yield Member("", columns(value), problem="" if value else "it has no rounds yet")


def _of_sweep(sweep: Any) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for outcome in sweep.outcomes:
        name = ",".join(f"{key}={value}" for key, value in outcome.point.items())
        problem = f"it failed with {outcome.error}" if outcome.error else ""
        member = Member(f"seed-{outcome.seed}", columns(outcome.rows), outcome.point, problem)
        found.setdefault(name, []).append(member)
    return found


def _paths(value: Any) -> list[Path]:
    """Returns a list of paths as such, and of anything else nothing."""
    are_paths = isinstance(value, Sequence) and all(isinstance(item, str | Path) for item in value)
    return [Path(item) for item in value] if are_paths else []


def _in_directories(paths: Sequence[Path]) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for path in paths:
        below = _in_directory(path)
        for name, members in below.items():
            name = name if 1 in (len(below), len(paths)) else f"{path.absolute().name}/{name}"
            found[f"{path}: {name}" if name in found else name] = members
    return found


def _in_directory(path: Path) -> dict[str, list[Member]]:
    """Reads the runs in a directory and below it."""
    path = path.expanduser()
    found: dict[str, list[Member]] = {}
    for run in _runs_below(path):
        is_seed = run != path and re.fullmatch(_SEED, run.name)
        name = (run.parent if is_seed else run).relative_to(path).as_posix()
        name = path.absolute().name if name == "." else name
        found.setdefault(unquote(name) if is_seed else name, []).append(_member(run))
    if not found:
        raise ValueError(f"there must be runs to look at; got none in {path}. Give a run's directory, or a sweep's.")
    return found


def _runs_below(path: Path) -> Iterator[Path]:
    if (path / ROWS).exists():
        yield path
        return
    folders = [entry for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else []
    below = [run for folder in sorted(folders, key=_by_numbers) for run in _runs_below(folder)]
    # A run before its first round has a marker alone, and one that failed in a sweep what the sweep says of it.
    is_run = (path / MARKER).exists() or _said(path).exists()
    yield from below or ([path] if is_run else [])


def _by_numbers(path: Path) -> list[tuple[str, float]]:
    """Sorts seed-2 before seed-10, and rate=0.05 before rate=0.1."""
    parts = re.findall(r"(\D*)(\d+(?:\.\d+)?(?:e[+-]?\d+)?|$)", path.name)
    return [(text, float(number or 0)) for text, number in parts]


def _member(path: Path) -> Member:
    said, ended, rows, problem = _json(_said(path)), _json(path / ENDED), [], ""
    others = sorted(path.parent.glob("seed-*.json"))  # of the same point, in a sweep
    try:
        rows = read_rows(path)
    except RunError as error:
        problem = str(error) if (path / ROWS).exists() else ""
    if said.get("error"):
        rows, problem = [], f"it failed with {said['error']}"
    elif ended.get("error"):
        problem = problem or f"it ended with {ended['error']}"
    elif rows and not said and not ended and (others or (path / MARKER).exists()):
        problem = "it has not ended: it goes on, or was killed"
    about = {**(_json(others[0]).get("arguments", {}) if others else {}), **_json(path / MARKER).get("about", {})}
    if saved := checkpoints(path):
        about |= {"versions": _json(saved[-1] / "about.json").get("versions", {})}
    name = path.name if re.fullmatch(_SEED, path.name) else ""
    problem = problem or ("" if rows else "it has no rounds yet")
    return Member(name, columns(rows), about, problem, str(ended.get("reason", "")))


def _said(path: Path) -> Path:
    """Returns the file in which a sweep says how a run has ended."""
    path = path.absolute()  # "." has no name
    return path.with_name(f"{path.name}.json")


def _json(path: Path) -> dict[str, Any]:
    """Reads what is there, and nothing of what is damaged."""
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
