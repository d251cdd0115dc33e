"""What runs came to, as tables of text: results, what determines them, and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjx.experiment.collect import Member
from fedjx.experiment.curves import Columns, Ends, ends, points, rank
from fedjx.experiment.rows import Mode, rounds_to

# What is shown of a run besides its metric, where some run has it.
_TOTALS = {
    "privacy/epsilon": "epsilon",
    "total/bits_up": "bits up",
    "total/bits_down": "bits down",
    "total/examples": "examples",
    "total/simulated_seconds": "simulated seconds",
    "total/seconds": "seconds",
}


class Table(NamedTuple):
    """Text in rows.

    Attributes:
      head: Names of the columns.
      rows: A text for each.
      best: The row of the best run; None if there is none, or only one.
    """

    head: list[str]
    rows: list[list[str]]
    best: int | None = None


def results(found: Mapping[str, Sequence[Member]], metric: str, mode: Mode, target: float | None) -> Table:
    """Tabulates the last and the best of each run, when it reached a target, what it has used, and why it ended.

    Numbers are means of seeds ± their standard deviation, the round of the target the median, for which a seed that
    did not reach it counts as the last.
    """
    seeds = {name: [member.metrics for member in members if member.metrics] for name, members in found.items()}
    totals = [key for key in _TOTALS if any(len(points(metrics, key)[0]) for run in seeds.values() for metrics in run)]
    head = ["run", "seeds", "rounds", f"last {metric}", "best"]
    head += [] if target is None else [f"rounds to {target:g}"]
    reasons = {name: list(dict.fromkeys(m.reason for m in members if m.reason)) for name, members in found.items()}
    ended = ["ended"] if any(reasons.values()) else []
    rows = []
    for name, run in seeds.items():
        row = [name, _of(len(run), len(found[name])), _rounds(run)]
        row += [_spread(ends(run, metric, at, mode), _metric_text) for at in ("last", "best")]
        row += [] if target is None else [_reached(run, metric, target, mode)]
        row += [_spread(ends(run, key, "last", "max"), _total_text) for key in totals]
        rows.append(row + [_first(reasons[name]) for _ in ended])
    order = [rank(ends(run, metric, "last", mode).values, mode) for run in seeds.values()]
    best = int(np.argmin(order)) if len(order) > 1 and np.isfinite(min(order)) else None
    return Table([*head, *(_TOTALS[key] for key in totals), *ended], rows, best)


def problems(found: Mapping[str, Sequence[Member]]) -> Iterator[str]:
    """Yields what a reader of the results needs to know: what is missing, and what was not finite."""
    for name, members in found.items():
        seen: dict[str, list[str]] = {}
        for member in members:
            for what, text in ((member.problem, ""), *_not_finite(member.metrics)):
                if what:
                    seen.setdefault(what, []).append(": ".join(part for part in (member.name, text) if part))
        for what, texts in seen.items():
            where = "; ".join(text for text in texts if text)
            yield f"{name or 'the run'}: {what}" + (f" ({where})" if where else "")


def settings(found: Mapping[str, Sequence[Member]]) -> tuple[Table, Table]:
    """Tabulates what all runs were begun with, and in what they differ."""
    flat = {name: [(member, dict(_flat(member.about))) for member in members] for name, members in found.items()}
    texts: dict[str, dict[str, None]] = {key: {} for run in flat.values() for _, about in run for key in about}
    for key, seen in texts.items():
        for member, about in (pair for run in flat.values() for pair in run):
            if key in about or member.metrics:  # what did not come to its first round has not said all
                seen[about.get(key, "–")] = None
    differing = [key for key, seen in texts.items() if len(seen) > 1]
    rows = [
        [name, *(", ".join(dict.fromkeys(about.get(key, "–") for _, about in run)) for key in differing)]
        for name, run in flat.items()
    ]
    common = Table(["", ""], [[key, *seen] for key, seen in texts.items() if key not in differing])
    return common, Table(["run", *differing], rows if differing else [])


def _flat(about: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in about.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _not_finite(metrics: Columns) -> Iterator[tuple[str, str]]:
    """Yields what counts of what was not finite are not zero, and what metrics are not finite, and in which rounds."""
    for key in metrics:
        at, value = points(metrics, key)
        if "non_finite" in key.rpartition("/")[2] and (value > 0).any():
            yield f"{key} is not 0", f"{np.nansum(value):,.0f} in all, {_in_rounds(at[value > 0])}"
        elif np.isnan(value).any():
            yield f"{key} is not finite", _in_rounds(at[np.isnan(value)])


def _in_rounds(at: np.ndarray) -> str:
    return f"in round {at[0]:g}" if len(at) == 1 else f"in {len(at):,} rounds from {at[0]:g} on"


def _of(number: int, total: int) -> str:
    return f"{number}" if number == total else f"{number} of {total}"


def _first(texts: Sequence[str]) -> str:
    return "–" if not texts else texts[0] + (f", and {len(texts) - 1} more" if len(texts) > 1 else "")


def _rounds(run: Sequence[Columns]) -> str:
    last = sorted({int(points(metrics, "round")[0][-1]) for metrics in run})
    return "–" if not last else f"{last[0]:,}" if len(last) == 1 else f"{last[0]:,} to {last[-1]:,}"


def _spread(found: Ends, text: Callable[[float], str]) -> str:
    """Says the mean of seeds and their standard deviation; those that have no number are counted instead."""
    values, lost = found
    if lost or not len(values):
        return lost or "–"
    mean = text(float(values.mean()))
    if len(values) == 1 or np.ptp(values) == 0:
        return mean
    deviation = float(values.std(ddof=1))
    return f"{mean} ± {deviation:.2g}" if deviation < 100 else f"{mean} ± {_total_text(deviation)}"


def _metric_text(number: float) -> str:
    return f"{number:.4g}"


def _total_text(number: float) -> str:
    """Says a number that adds up, the large ones in thousands of thousands."""
    for letter, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(number) >= factor:
            return f"{number / factor:.4g} {letter}"
    return f"{number:.4g}" if abs(number) < 100 else f"{number:,.0f}"


def _reached(run: Sequence[Columns], metric: str, target: float, mode: Mode) -> str:
    measured = [[{"round": x, "y": y} for x, y in zip(*points(metrics, metric), strict=True)] for metrics in run]
    found = [rounds_to(rows, "y", target, mode=mode) for rows in measured]
    reached = [number for number in found if number is not None]
    middle = np.median([np.inf if number is None else number for number in found]) if found else np.inf
    if not any(measured):
        return "not measured" if run else "–"
    shown = f"{middle:.4g}" if np.isfinite(middle) else "not reached"
    return shown if len(reached) in (0, len(found)) else f"{shown} ({len(reached)} of {len(found)})"
