"""Sweeps: a function is run at each point of a grid with each of the same seeds; what is done is not done again."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from fedjx.core.execution.hosts import agreed
from fedjx.data.manifest import checked_text, replace_file
from fedjx.experiment.comparison import Metric, Table, compared
from fedjx.experiment.grid import Grid, Point, name_of, points_of, seeds_of
from fedjx.experiment.rows import Mode, Row, flat, line, read_rows
from fedjx.experiment.run_directory import MARKER, ROWS, RunError, check_same, locked

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Outcome(NamedTuple):
    """What came of a run at one point with one seed.

    Attributes:
      point: The values that were swept, by name.
      seed: The seed.
      rows: What was measured, by round; none if it failed.
      error: Why it failed, such as ``"ValueError: ..."``; empty if it did not.
      traceback: Where it failed.
    """

    point: Point
    seed: int
    rows: list[Row]
    error: str = ""
    traceback: str = ""


class Sweep(NamedTuple):
    """What came of a sweep. It prints as what is done and what failed.

    Attributes:
      outcomes: Of each point and seed.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def runs(self) -> dict[str, list[list[Row]]]:
        """Returns the rows of all runs that did not fail, seed by seed under the names of the points."""
        found: dict[str, list[list[Row]]] = {}
        for outcome in self.outcomes:
            if not outcome.error:
                found.setdefault(name_of(outcome.point), []).append(outcome.rows)
        return found

    def table(self, metric: Metric, mode: Mode | None = None, *, last: int = 1) -> Table:
        """Compares the points, the best first, those that failed or are not finite last.

        What is missing or not finite is told below it, and where seeds change nothing.

        Args:
          metric: Name of a metric in the rows, or a function of a run's rows to a number, or None where there is none,
            such as ``lambda rows: rounds_to(rows, "test/accuracy", 0.9)``.
          mode: Whether more or less of it is better; by default less of what is called a loss, an error, a perplexity
            or an epsilon, as in a report. Of a function it must be said.
          last: A run counts with the mean of so many last values of the metric.

        Raises:
          ValueError: If no row of any run has the metric, though there are some.
        """
        return compared(self.outcomes, metric, mode, last)

    def best(self, metric: Metric, mode: Mode | None = None, *, last: int = 1) -> Point:
        """Returns the point that is best in the mean over the seeds; the arguments are those of `table`.

        Raises:
          ValueError: If no point has the metric, finite and with all of its seeds.
        """
        first, *_ = self.table(metric, mode, last=last).lines
        if not first.is_whole:
            raise ValueError(f"the best point needs a finite metric; got {metric!r} at none. Look at the table.")
        return first.point

    def plot(self, metric: str, mode: Mode | None = None, *, x: str = "round", most: int = 8) -> Figure:
        """Plots the curves of the best points, with bands over the seeds, by `plot_curves`.

        Args:
          metric: Name of a metric in the rows.
          mode: Whether more or less of it is better; by default as in `table`.
          x: What is counted, such as "total/bits_up".
          most: How many points are shown.
        """
        from fedjx.experiment.plots import plot_curves

        runs = self.runs
        names = [name for found in self.table(metric, mode).lines if (name := name_of(found.point)) in runs]
        return plot_curves({name: runs[name] for name in names[:most]}, metric, x)

    def __str__(self) -> str:
        """Says what is done and what failed."""
        failed = [outcome for outcome in self.outcomes if outcome.error]
        num_points = len({name_of(outcome.point) for outcome in self.outcomes})
        lines = [f"{num_points} points, {len(self.outcomes)} runs, {len(failed)} of them failed"]
        return "\n".join([*lines, *(f"{_run_name(found)}: {found.error}" for found in failed)])


def sweep(
    fn: Callable[..., Any],
    grid: Grid,
    *,
    seeds: int | Sequence[int],
    path: str | Path | None = None,
    progress: bool = True,
) -> Sweep:
    """Runs a function at each point of a grid, each with the same seeds, and keeps what comes of it.

    Killed at any moment and called again, it runs what is missing: a run that has finished is read, and one that was
    interrupted or failed goes on if the function passes its path to `run` with ``start="auto"``. Other points and seeds
    may have come or gone meanwhile. A run that raises an error has failed; the others go on, and a warning says so in
    the end.

    Args:
      fn: Takes the values of a point by name, ``seed``, and ``path``, a directory of its own, if it has these
        parameters, or any (``**arguments``); returns the rows of its run, each with its ``round``, or what has them,
        such as the result of `run`. If it takes ``seeds`` instead, it is called once for each point with all that are
        missing, and returns these by seed, as `run_seeds` does; then ``path`` is the directory in which each seed has
        its own. Its other defaults, and those that `functools.partial` sets, must stay the same in a directory, if they
        are what JSON holds: numbers, text, and tuples, lists and dicts of such.
      grid: Lists of values by name, of which every combination is a point, or a list of points. Values are what JSON
        holds: for a function or an optimizer give a name, and look it up.
      seeds: How many, ``0, 1, ...``; or which.
      path: The sweep's directory: what is measured is in ``<point>/seed-<n>/metrics.jsonl``. One sweep at a time has
        it, and none has a run's. Of several processes the first one writes, and all read. Nothing is written if not
        given.
      progress: Whether stderr says which run begins.

    Raises:
      RunError: If somebody else has the directory, or a run, or what is in it was run with other arguments; and any
        that the function raises, as `run` does in the directory of another run: that is no failure of a point.
      TypeError: If the function does not take what the grid names, or returns no rows, or such without a round.

    >>> def train(rate, seed):
    ...     return [{"round": r, "loss": (1 - rate) ** r + 0.01 * seed} for r in range(3)]
    >>> found = sweep(train, {"rate": [0.1, 0.5]}, seeds=3)
    >>> found.best("loss")
    {'rate': 0.5}
    >>> print(found.table("loss"))
    | rate | loss | std | seeds | to the best | s.e. |
    |---|---|---|---|---|---|
    | 0.5 | 0.26 | 0.01 | 3 | best | |
    | 0.1 | 0.82 | 0.01 | 3 | 0.56 | ... |
    """
    points, seeds = points_of(grid), seeds_of(seeds)
    plan = _Plan(fn, _parameters(fn, points), None if path is None else Path(path).expanduser())
    groups = [(p, seeds) for p in points] if plan.takes_seeds else [(p, [s]) for s in seeds for p in points]
    with _opened(plan.path), _told_to_end():
        found = {(name_of(p), s): outcome for p in points for s in seeds if (outcome := _finished(plan, p, s))}
        for number, (point, group) in enumerate(groups, 1):
            missing = [seed for seed in group if (name_of(point), seed) not in found]
            if missing:
                if progress:
                    _say(f"{number} of {len(groups)}: {_described(point, missing)}")
                found |= {(name_of(point), outcome.seed): outcome for outcome in _run(plan, point, missing)}
    done = Sweep(tuple(found[name_of(point), seed] for point in points for seed in seeds))
    if failed := [outcome for outcome in done.outcomes if outcome.error]:
        warnings.warn(
            f"{len(failed)} of {len(done.outcomes)} runs failed, the first with {_run_name(failed[0])}: "
            f"{failed[0].error}. Mend the function and call again: what is done stays.",
            stacklevel=2,
        )
    return done


def read_sweep(path: str | Path) -> Sweep:
    """Reads what has been done in the directory of a sweep, also while it goes on.

    Raises:
      RunError: If nothing has.
    """
    found = [file for file in Path(path).expanduser().glob("*/seed-*.json") if re.fullmatch(r"seed--?\d+", file.stem)]
    files = sorted(found, key=lambda file: (file.parent.name, int(file.stem[5:])))
    if not files:
        raise RunError(f"a sweep has results in its directory; got none in {path}. Check the path.")
    results = [(file, _read(file)) for file in files]
    return Sweep(tuple(_outcome(file, result) for file, result in results if result is not None))


# --- the function -------------------------------------------------------------------------------


def _parameters(fn: Callable[..., Any], points: Sequence[Point]) -> dict[str, Any]:
    """Returns the defaults of a function's parameters, by name, if it takes all points."""
    signature = inspect.signature(fn)
    names = signature.parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in names.values())
    own = {name: 0 for name in ("seeds" if "seeds" in names else "seed", "path") if name in names or takes_any}
    for point in points:
        if reserved := {"seed", "seeds", "path"} & point.keys():
            raise ValueError(f"a grid has no {', '.join(reserved)}; got {point}. Pass seeds and path to the sweep.")
        try:
            signature.bind(**{**own, **point})
        except TypeError as error:
            shown = f"{getattr(fn, '__name__', 'fn')}{signature}"
            raise TypeError(f"the function must take {', '.join([*point, 'seed'])}; got {shown}: {error}.") from None
    if "seed" not in own and "seeds" not in own:
        raise TypeError(
            f"the function must take seed, or seeds; got {signature}. Seeds that change nothing are no sample."
        )
    return {name: parameter.default for name, parameter in names.items()} | own


class _Plan(NamedTuple):
    """What is run, and where."""

    fn: Callable[..., Any]
    parameters: dict[str, Any]
    path: Path | None

    @property
    def takes_seeds(self) -> bool:
        return "seeds" in self.parameters

    def file(self, point: Point, seed: int) -> Path | None:
        """Returns where it is said that a run has ended, and how; what it measured is in the directory of that name."""
        return None if self.path is None else self.path / name_of(point) / f"seed-{seed}.json"

    def arguments(self, point: Point) -> dict[str, Any]:
        """Returns what must be the same where a result is used again, as far as it can be written down."""
        defaults = {k: v for k, v in self.parameters.items() if k not in ("seed", "seeds", "path")}
        written = {}
        for name, value in defaults.items():
            with contextlib.suppress(TypeError, ValueError):  # such as an optimizer
                written[name] = json.loads(json.dumps(value))
        return {**written, **point}


# --- runs ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[None]:
    if path is None or jax.process_index() != 0:
        yield
        return
    if (path / MARKER).exists():
        raise RunError(f"a sweep needs a directory of its own; got {path}, which has a run. Choose another.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"a sweep needs a directory; got {path}: {error.strerror}. Choose another.") from None
    with locked(path):
        yield


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """Ends the process at SIGTERM; within `run`, after the round, when its checkpoint is saved."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit("the sweep was told to end, by SIGTERM. Call it again, and it goes on.")

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(plan: _Plan, point: Point, seeds: list[int]) -> list[Outcome]:
    """Calls the function, and keeps what comes of it."""
    try:
        found = _called(plan, point, seeds)
    except RunError:
        raise  # of a directory, and for the user to decide
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split()):.500}"
        where = "".join(traceback.format_exception(error))
        outcomes = [Outcome(point, seed, [], message, where) for seed in seeds]
    else:
        outcomes = [Outcome(point, seed, _rows(plan, found, seed)) for seed in seeds]
    for outcome in outcomes if jax.process_index() == 0 else ():
        _write(plan, outcome)
    return outcomes


def _called(plan: _Plan, point: Point, seeds: list[int]) -> Any:
    file = plan.file(point, seeds[0])
    own: dict[str, Any] = {"seeds": seeds} if plan.takes_seeds else {"seed": seeds[0]}
    if "path" in plan.parameters:
        own["path"] = None if file is None else file.parent if plan.takes_seeds else file.with_suffix("")
    found = plan.fn(**point, **own)
    return found if plan.takes_seeds else {seeds[0]: found}


def _rows(plan: _Plan, found: Any, seed: int) -> list[Row]:
    rows = found.get(seed) if isinstance(found, Mapping) else None
    rows = getattr(rows, "rows", rows)
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) and "round" in row for row in rows):
        of = "by seed, the rows of its runs" if plan.takes_seeds else "the rows of its run"
        raise TypeError(
            f"the function must return {of}, each with its round, as `run` does; got {found!r:.80}. Return them."
        )
    return [flat({k: np.asarray(v) if isinstance(v, list) else v for k, v in row.items()}) for row in rows]


def _say(text: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stderr)


def _described(point: Point, seeds: Sequence[int]) -> str:
    return f"{name_of(point)}, seed {', '.join(map(str, seeds))}"


def _run_name(outcome: Outcome) -> str:
    return _described(outcome.point, [outcome.seed])


# --- files --------------------------------------------------------------------------------------


def _write(plan: _Plan, outcome: Outcome) -> None:
    """Writes the rows, then that the run has ended."""
    file = plan.file(outcome.point, outcome.seed)
    if file is None:
        return
    file.with_suffix("").mkdir(parents=True, exist_ok=True)
    if not outcome.error:
        replace_file(file.with_suffix("") / ROWS, b"".join(map(line, outcome.rows)))
    result = {"format": "fedjx sweep", "version": 1, "arguments": plan.arguments(outcome.point)}
    told = {"point": outcome.point, "seed": outcome.seed, "error": outcome.error, "traceback": outcome.traceback}
    replace_file(file, checked_text({**result, **told}))


def _read(file: Path) -> dict[str, Any] | None:
    """Reads how a run has ended; None if it has not, or is not there any more, or, with a warning, if it is damaged."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    with contextlib.suppress(ValueError, AttributeError):
        result = json.loads(text)
        if checked_text({name: value for name, value in result.items() if name != "sha256"}) == text:
            return result if result["error"] or (file.with_suffix("") / ROWS).exists() else None
    warnings.warn(f"a result needs to be as it was written; {file} is not. It counts as missing.", stacklevel=5)
    return None


def _outcome(file: Path, result: dict[str, Any]) -> Outcome:
    rows = [] if result["error"] else read_rows(file.with_suffix(""))
    return Outcome(result["point"], result["seed"], rows, result["error"], result["traceback"])


def _finished(plan: _Plan, point: Point, seed: int) -> Outcome | None:
    """Reads a run that has finished, if it was with the same arguments."""
    file = plan.file(point, seed)
    if file is None:
        return None
    result = _read(file)
    if not agreed(result is not None and not result["error"]):
        return None
    if result is None:
        raise RunError(
            f"the processes of a sweep need one directory; got a {file} that the first one alone has. Share it."
        )
    check_same(file.parent, plan.arguments(point), result["arguments"])
    return _outcome(file, result)
