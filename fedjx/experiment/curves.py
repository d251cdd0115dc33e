"""Curves of metrics: the seeds of a run on one axis, with their mean and how far they are apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from fedjx.experiment.rows import Mode, Row

Band = Literal["range", "deviation"]
At = Literal["last", "best"]
# By name of a metric: in which rows it is, and what it is in each, ``[n]``.
Columns: TypeAlias = Mapping[str, tuple[np.ndarray, np.ndarray]]


class Curve(NamedTuple):
    """A metric of the seeds of one run. NaN is where it is not known.

    Attributes:
      x: Where it is known of some seed, increasing, ``[X]``.
      seeds: Of each seed, linear between its rounds, ``[S, X]``.
      mean: Of all seeds, where all of them are known, ``[X]``.
      low: The lower edge of the band around it, ``[X]``.
      high: The upper one, ``[X]``.
    """

    x: np.ndarray
    seeds: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def columns(rows: Iterable[Row]) -> Columns:
    """Turns rows into columns of numbers; text and lists are left out.

    >>> columns([{"round": 0, "loss": 2.0}, {"round": 1}, {"round": 2, "loss": 1.0}])["loss"]
    (array([0, 2]), array([2., 1.]))
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    for place, row in enumerate(rows):
        for name, value in row.items():
            if isinstance(value, int | float):
                places, values = found.setdefault(name, ([], []))
                places.append(place)
                values.append(value)
    return {name: (np.array(places), np.array(values, np.float64)) for name, (places, values) in found.items()}


def points(metrics: Columns, y: str, x: str = "round") -> tuple[np.ndarray, np.ndarray]:
    """Returns where a metric was measured and what it was, ``[n]`` each; NaN where it was not finite.

    >>> points(columns([{"round": 0, "loss": 2.0}, {"round": 1}, {"round": 2, "loss": float("inf")}]), "loss")
    (array([0., 2.]), array([ 2., nan]))
    """
    if x not in metrics or y not in metrics:
        return np.zeros(0), np.zeros(0)
    _, of_x, of_y = np.intersect1d(metrics[x][0], metrics[y][0], assume_unique=True, return_indices=True)
    at, value = metrics[x][1][of_x], metrics[y][1][of_y]
    at, last = np.unique(at[::-1], return_index=True)
    value = value[::-1][last]
    is_somewhere = np.isfinite(at)
    return at[is_somewhere], np.where(np.isfinite(value), value, np.nan)[is_somewhere]


def curve(seeds: Sequence[Columns], y: str, x: str = "round", band: Band = "range") -> Curve | None:
    """Puts the seeds of a run on one axis; None if none of them has the metric.

    Args:
      seeds: The metrics of each.
      y: The metric.
      x: What is counted.
      band: "range", from the least of the seeds to the greatest; "deviation", a standard deviation up and down.

    >>> seeds = [{"round": 0, "loss": 2.0}, {"round": 2, "loss": 0.0}], [{"round": 1, "loss": 3.0}]
    >>> curve([columns(rows) for rows in seeds], "loss").mean
    array([nan,  2., nan])
    """
    measured = [found for metrics in seeds if len((found := points(metrics, y, x))[0])]
    if not measured:
        return None
    grid = np.unique(np.concatenate([at for at, _ in measured]))
    values = np.stack([np.interp(grid, at, value, left=np.nan, right=np.nan) for at, value in measured])
    mean = values.mean(0)
    if band == "range":
        return Curve(grid, values, mean, values.min(0), values.max(0))
    with np.errstate(over="ignore"):  # what diverges may be as large as a float can be
        deviation = values.std(0, ddof=1) if len(values) > 1 else 0 * mean
    return Curve(grid, values, mean, mean - deviation, mean + deviation)


class Ends(NamedTuple):
    """What the seeds of a run came to.

    Attributes:
      values: Of each seed, ``[S]``; NaN where it was not finite, or never measured.
      lost: Of how many that is, and which of both it was, in words; empty if of none.
    """

    values: np.ndarray
    lost: str


def thinned(curve: Curve, num_parts: int) -> Curve:
    """Keeps of each part of the axis what a picture shows of it: where each line is least, greatest and interrupted."""
    size = len(curve.x)
    if size <= 4 * num_parts:
        return curve
    width = -(-size // num_parts)
    index = np.arange(width * num_parts).clip(0, size - 1).reshape(num_parts, width)
    kept = [np.array([0, size - 1])]
    for line in [*curve.seeds, curve.mean, curve.low, curve.high]:
        part = line[index]
        for positions in (
            np.where(np.isnan(part), np.inf, part),
            np.where(np.isnan(part), np.inf, -part),
            ~np.isnan(part),
        ):
            kept.append(np.take_along_axis(index, positions.argmin(1)[:, None], 1)[:, 0])
    columns = np.unique(np.concatenate(kept))
    return Curve(*(line[..., columns] for line in curve))


def ends(seeds: Sequence[Columns], y: str, at: At, mode: Mode) -> Ends:
    """Returns what each seed came to: last or best.

    >>> runs = [{"round": 0, "loss": 2.0}], [{"round": 0, "loss": float("nan")}], [{"round": 0}]
    >>> ends([columns(rows) for rows in runs], "loss", "last", "min")
    Ends(values=array([ 2., nan, nan]), lost='1 of 3 not measured, 1 of 3 not finite')
    """
    measured = [points(metrics, y)[1] for metrics in seeds]
    of_all = {"last": lambda value: value[-1], "best": (np.fmax if mode == "max" else np.fmin).reduce}[at]
    found = np.array([of_all(value) if len(value) else np.nan for value in measured])
    num_unmeasured = sum(not len(value) for value in measured)
    num_lost = {"not measured": num_unmeasured, "not finite": int(np.isnan(found).sum()) - num_unmeasured}
    parts = [what if n == len(seeds) else f"{n} of {len(seeds)} {what}" for what, n in num_lost.items() if n]
    return Ends(found, ", ".join(parts))


def rank(values: np.ndarray, mode: Mode) -> float:
    """Returns a number to sort runs by, the best first: their mean, and those last of which a seed has no number."""
    mean = values.mean() if len(values) else np.nan
    return np.inf if np.isnan(mean) else float(-mean if mode == "max" else mean)


def ranked(runs: Mapping[str, Sequence[Columns]], y: str, at: At, mode: Mode) -> dict[str, Ends]:
    """Returns what the seeds of each run came to, the best run first."""
    found = {name: ends(seeds, y, at, mode) for name, seeds in runs.items()}
    return dict(sorted(found.items(), key=lambda item: rank(item[1].values, mode)))
