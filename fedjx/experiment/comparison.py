"""The points of a sweep side by side: mean and deviation over the seeds, and paired differences to the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from fedjx.core.language.checks import check_choice, check_integer
from fedjx.experiment.rows import Mode, Row, better, values

Metric: TypeAlias = str | Callable[[list[Row]], float | None]


class HasOutcome(Protocol):
    """A run of a sweep, an `Outcome`."""

    @property
    def point(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def rows(self) -> list[Row]: ...  # noqa: D102
    @property
    def error(self) -> str: ...  # noqa: D102


class Line(NamedTuple):
    """A point of a sweep beside the others.

    Attributes:
      point: Its values by name.
      values: The metric by seed; NaN where it is not known.
      mean: Over the seeds.
      deviation: The standard deviation over the seeds; NaN for one seed.
      difference: The mean over the seeds of the metric here minus that at the best point with the same seed.
      error: The standard error of that mean; NaN for one seed.
      failures: What runs failed with, by seed.
      lost: Why a metric is not known, by seed: "not finite", "never measured", or "without a value" of a function.
      is_constant: Whether several seeds have the same rows, but for the time they took.
    """

    point: dict[str, Any]
    values: Mapping[int, float]
    mean: float
    deviation: float
    difference: float
    error: float
    failures: Mapping[int, str]
    lost: Mapping[int, str]
    is_constant: bool

    @property
    def is_whole(self) -> bool:
        """Tells whether all runs were done, with a finite metric."""
        return not self.failures and math.isfinite(self.mean)


class Table(NamedTuple):
    """A comparison of the points of a sweep. It prints as a table in Markdown.

    Attributes:
      metric: What is compared.
      mode: Whether more or less of it is better.
      lines: Of each point, the best first; those that failed or are not finite last.
    """

    metric: str
    mode: Mode
    lines: tuple[Line, ...]

    def __str__(self) -> str:
        """Prints the table, what failed or is not known, and where the best is at the edge of what was tried."""
        names = list(dict.fromkeys(name for line in self.lines for name in line.point))
        head = [*names, self.metric, "std", "seeds", "to the best", "s.e."]
        rows = [_cells(line, names, is_best=line is self.lines[0]) for line in self.lines]
        failures = [
            f"{_said({**line.point, 'seed': seed})}: {text}"
            for line in self.lines
            for seed, text in line.failures.items()
        ]
        notes = [*failures, *_unknown(self.lines), *_constants(self.lines), *_edges(self.lines)]
        return "\n".join(
            [_markdown(head), "|---" * len(head) + "|", *map(_markdown, rows), *([""] if notes else []), *notes]
        )

    def _repr_markdown_(self) -> str:
        return str(self)


def compared(outcomes: Sequence[HasOutcome], metric: Metric, mode: Mode | None, last: int) -> Table:
    """Compares the points of a sweep; see `Sweep.table`."""
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    if mode is None and callable(metric):
        raise ValueError(f"mode must be said where metric is a function; got {mode=}. Pass 'max' or 'min'.")
    mode = mode or better(name)
    check_choice(("max", "min"), mode=mode)
    check_integer("[1, inf)", last=last)
    if not callable(metric):
        _check_measured(outcomes, metric)
    points: dict[str, list[HasOutcome]] = {}
    for outcome in outcomes:
        points.setdefault(str(outcome.point), []).append(outcome)
    lines = [_line(runs, metric, last) for runs in points.values()]
    sign = -1 if mode == "max" else 1
    lines = sorted(lines, key=lambda line: sign * line.mean if line.is_whole else math.inf)
    return Table(name, mode, tuple(_against(line, lines[0]) for line in lines))


def _check_measured(outcomes: Sequence[HasOutcome], metric: str) -> None:
    """Refuses a name that no run has, if runs have some."""
    cells = (cell for outcome in outcomes for row in outcome.rows for cell in row.items())
    known = {name for name, value in cells if isinstance(value, int | float)}
    if known and metric not in known:
        raise ValueError(f"metric must be a number in some rows; got {metric=}. Choose among {sorted(known)}.")


def _line(runs: Sequence[HasOutcome], metric: Metric, last: int) -> Line:
    found = {run.seed: _value(run.rows, metric, last) for run in runs if not run.error}
    known = {seed: math.nan if value is None else value for seed, value in found.items()}
    missing = "without a value" if callable(metric) else "never measured"
    lost = {
        seed: missing if value is None else "not finite"
        for seed, value in found.items()
        if value is None or not math.isfinite(value)
    }
    failures = {run.seed: run.error for run in runs if run.error}
    mean, deviation, _ = _statistics(list(known.values()))
    texts = [_text_of_rows(run.rows) for run in runs if run.rows]
    is_constant = len(texts) > 1 == len(set(texts))
    return Line(runs[0].point, known, mean, deviation, math.nan, math.nan, failures, lost, is_constant)


def _text_of_rows(rows: Sequence[Row]) -> str:
    """Writes down what a run measured, but for the time it took; NaN is the same text as NaN."""
    return str([{name: value for name, value in row.items() if name != "total/seconds"} for row in rows])


def _value(rows: list[Row], metric: Metric, last: int) -> float | None:
    if callable(metric):
        found = metric(rows)
        return None if found is None else float(found)
    _, value = values(rows, metric)
    return _statistics(value[-last:].tolist())[0] if len(value) else None


def _against(line: Line, best: Line) -> Line:
    """Adds the difference to the best, of the seeds that both have."""
    if not best.is_whole:
        return line
    common = [seed for seed in line.values if seed in best.values]
    mean, _, error = _statistics([line.values[seed] - best.values[seed] for seed in common])
    return line._replace(difference=mean, error=error)


def _statistics(sample: Sequence[float]) -> tuple[float, float, float]:
    """Returns mean, standard deviation, and standard error of the mean."""
    if len(sample) < 2 or not np.isfinite(sample).all():
        return sum(sample) / len(sample) if sample else math.nan, math.nan, math.nan
    deviation = float(np.std(sample, ddof=1))
    return float(np.mean(sample)), deviation, deviation / math.sqrt(len(sample))


# --- text ---------------------------------------------------------------------------------------


def _cells(line: Line, names: Sequence[str], *, is_best: bool) -> list[str]:
    own = [str(line.point.get(name, "")) for name in names]
    measured = [_text(line.mean) if line.values else "failed", _text(line.deviation), str(len(line.values))]
    apart = ["best", ""] if is_best and line.is_whole else [_text(line.difference), _text(line.error)]
    return [*own, *measured, *apart]


def _text(value: float) -> str:
    return f"{value:.4g}" if not math.isnan(value) else "–"


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _said(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in point.items())


def _unknown(lines: Sequence[Line]) -> Iterator[str]:
    """Says where the metric is not known, and why."""
    for line in lines:
        for why in dict.fromkeys(line.lost.values()):
            seeds = [str(seed) for seed, what in line.lost.items() if what == why]
            which = f"{len(seeds)} of {len(line.values)} seeds {why}: seed {', '.join(seeds)}"
            of_point = f"{_said(line.point)}: " if line.point else ""
            yield of_point + (why if len(seeds) == len(line.values) else which)


def _constants(lines: Sequence[Line]) -> list[str]:
    """Says where seeds change nothing, of which a deviation of 0 is no finding."""
    constant = [_said(line.point) for line in lines if line.is_constant]
    where = f"{len(constant)} of {len(lines)} points, as at {constant[0]}" if constant and constant[0] else "the point"
    return [f"All seeds have the same rows at {where}: use the seed in what is random."] if constant else []


def _edges(lines: Sequence[Line]) -> list[str]:
    """Says of which numbers the best is the least or the largest of three or more: a better one may lie beyond."""
    best, notes = lines[0], []
    for name, value in best.point.items() if best.is_whole else ():
        tried = sorted({line.point[name] for line in lines if _is_number(line.point.get(name))})
        if _is_number(value) and len(tried) > 2 and value in (tried[0], tried[-1]):
            which = "least" if value == tried[0] else "largest"
            notes.append(f"The best {name}, {value}, is the {which} that was tried.")
    return notes


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
