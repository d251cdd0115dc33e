"""When a run has done enough: functions of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.experiment.rows import Mode, Row, better, check_measured, rounds_to, values

StopRule: TypeAlias = Callable[[Sequence[Row]], str | None]  # says why a run stops, or None


def target(metric: str, value: float, *, mode: Mode | None = None, x: str = "round") -> StopRule:
    """Stops when a metric is as good as its target, and says after how many rounds.

    Args:
      metric: A name in the rows, such as ``"test/accuracy"``.
      value: To be reached.
      mode: Whether more or less is better; by default as in `rounds_to`.
      x: What is counted, as in `rounds_to`.

    >>> target("test/accuracy", 0.9)([{"round": 0, "test/accuracy": 0.8}, {"round": 10, "test/accuracy": 1.0}])
    'test/accuracy 0.9 was reached at round 5'
    """
    mode = better(metric) if mode is None else mode
    check_choice(("max", "min"), mode=mode)
    check_number("(-inf, inf)", value=value)

    def rule(rows: Sequence[Row]) -> str | None:
        check_measured(rows, metric)
        reached = rounds_to(rows, metric, value, mode=mode, x=x)
        return None if reached is None else f"{metric} {value:g} was reached at {x} {reached:g}"

    return rule


def patience(metric: str, evaluations: int, *, mode: Mode | None = None, min_change: float = 0.0) -> StopRule:
    """Stops when a metric has not become better in so many evaluations.

    Args:
      metric: A name in the rows, such as ``"test/loss"``.
      evaluations: How many since the best one.
      mode: Whether more or less is better; by default as in `rounds_to`.
      min_change: What is less than this counts as none.
    """
    mode = better(metric) if mode is None else mode
    check_choice(("max", "min"), mode=mode)
    check_integer("[1, inf)", evaluations=evaluations)
    check_number("[0, inf)", min_change=min_change)
    sign = 1 if mode == "max" else -1

    def rule(rows: Sequence[Row]) -> str | None:
        check_measured(rows, metric)
        _, measured = values(rows, metric)
        best, since = -np.inf, -1
        for value in sign * measured:  # NaN is not better than anything
            best, since = (value, 0) if value > best + min_change else (best, since + 1)
        return f"{metric} has not become better in {since} evaluations" if since >= evaluations else None

    return rule


def limit(metric: str, most: float) -> StopRule:
    """Stops when what adds up, such as ``"total/bits_up"``, ``"total/seconds"`` or an epsilon, is as much as it may be.

    >>> limit("total/bits_up", 100)([{"round": 1, "total/bits_up": 64}, {"round": 2, "total/bits_up": 128}])
    'total/bits_up is 128, of at most 100'
    """
    check_number("(-inf, inf)", most=most)

    def rule(rows: Sequence[Row]) -> str | None:
        check_measured(rows, metric)
        last = next((row[metric] for row in reversed(rows) if metric in row), None)
        return f"{metric} is {last:g}, of at most {most:g}" if last is not None and last >= most else None

    return rule


def stopped(rules: Iterable[StopRule], rows: Sequence[Row]) -> str | None:
    """Returns what the first rule says that stops a run; none is asked before there is a row."""
    for rule in rules if rows else ():
        reason = rule(rows)
        if not isinstance(reason, str | None):
            raise TypeError(f"a rule says why a run stops, or None; got {reason!r} of {rule}. Return a sentence.")
        if reason:
            return reason
    return None
