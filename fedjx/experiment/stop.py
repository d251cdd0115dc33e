"""When a run has done enough: functions of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from fedjx.core.language.checks import check_choice, check_integer
from fedjx.experiment.rows import Mode, Row, rounds_to, values

StopRule: TypeAlias = Callable[[Sequence[Row]], str | None]  # says why a run stops, or None


def target(metric: str, value: float, *, mode: Mode = "max", x: str = "round") -> StopRule:
    """Stops when a metric is as good as its target, and says after how many rounds.

    Args:
      metric: A name in the rows, such as ``"test/accuracy"``.
      value: To be reached.
      mode: Whether more or less is better.
      x: What is counted, as in `rounds_to`.

    >>> target("test/accuracy", 0.9)([{"round": 0, "test/accuracy": 0.8}, {"round": 10, "test/accuracy": 1.0}])
    'test/accuracy 0.9 was reached at round 5'
    """
    check_choice(("max", "min"), mode=mode)

    def rule(rows: Sequence[Row]) -> str | None:
        _check_measured(rows, metric)
        reached = rounds_to(rows, metric, value, mode=mode, x=x)
        return None if reached is None else f"{metric} {value:g} was reached at {x} {reached:g}"

    return rule


def patience(metric: str, evaluations: int, *, mode: Mode = "max", min_change: float = 0.0) -> StopRule:
    """Stops when a metric has not become better in so many evaluations.

    Args:
      metric: A name in the rows, such as ``"test/loss"``.
      evaluations: How many since the best one.
      mode: Whether more or less is better.
      min_change: What is less than this counts as none.
    """
    check_choice(("max", "min"), mode=mode)
    check_integer("[1, inf)", evaluations=evaluations)
    sign = 1 if mode == "max" else -1

    def rule(rows: Sequence[Row]) -> str | None:
        _check_measured(rows, metric)
        _, measured = values(rows, metric)
        best, since = -np.inf, 0
        for value in sign * measured:
            best, since = (value, 0) if value > best + min_change or best == -np.inf else (best, since + 1)
        return f"{metric} has not become better in {since} evaluations" if since >= evaluations else None

    return rule


def limit(metric: str, most: float) -> StopRule:
    """Stops when what adds up, such as ``"total/bits_up"``, ``"total/seconds"`` or an epsilon, is as much as it may be.

    >>> limit("total/bits_up", 100)([{"round": 1, "total/bits_up": 64}, {"round": 2, "total/bits_up": 128}])
    'total/bits_up is 128, of at most 100'
    """

    def rule(rows: Sequence[Row]) -> str | None:
        _check_measured(rows, metric)
        _, measured = values(rows, metric)
        return f"{metric} is {measured[-1]:g}, of at most {most:g}" if measured.size and measured[-1] >= most else None

    return rule


def _check_measured(rows: Sequence[Row], metric: str) -> None:
    """Refuses a name that no row has once there was a round: a rule of it would never stop a run."""
    if rows and rows[-1]["round"] > 0 and not any(metric in row for row in rows):
        names = sorted({name for row in rows for name in row} - {"round"})
        raise ValueError(f"a rule needs a metric that is measured; got {metric!r}. Choose among {names}.")


def stopped(rules: Iterable[StopRule], rows: Sequence[Row]) -> str | None:
    """Returns what the first rule says that stops a run; none is asked before there is a row."""
    return next((reason for rule in rules if rows and (reason := rule(rows))), None)
