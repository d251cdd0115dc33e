"""What pictures of runs are made of, drawn on axes that are there: curves, what they came to, percentiles."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedjx.experiment.curves import Columns, Curve, Ends, curve, thinned

# Six that people with each kind of colour blindness tell apart, at least 3 to 1 on white; then other dashes.
COLOURS = ("#0069ba", "#d56000", "#0a6066", "#c579af", "#212856", "#894a00")
DASHES = ((), (3.7, 1.6), (1, 1.65), (6.4, 1.6, 1, 1.6), (6, 1.5, 1, 1.5, 1, 1.5))  # in widths of the line
LABELS = {
    "total/bits_up": "bits from clients to the server",
    "total/bits_down": "bits from the server to clients",
    "total/clients": "clients, each time it takes part",
    "total/examples": "examples, each time one is seen",
    "total/seconds": "seconds",
    "total/simulated_seconds": "simulated seconds",
    "privacy/epsilon": "epsilon",
}
# Up to so many points of a line are marked: one alone would not be seen.
_MOST_MARKED = 30
_LONGEST_LINE = 40
# So many times the median is far.
_FAR = 1000


def draw_curves(
    axes: Any,
    curves: Mapping[str, Curve | None],
    y: str,
    x: str,
    *,
    target: float | None = None,
    num_parts: int | None = None,
) -> None:
    """Draws curves, each of the look of its place among all of them.

    Args:
      axes: Where.
      curves: By the name of the run; None of one that has not the metric, which keeps its look for it.
      y: Name of the metric.
      x: What is counted.
      target: Where to draw a line across.
      num_parts: Of how many parts of the axis as much is kept as is seen; by default all points.
    """
    from matplotlib.ticker import EngFormatter

    known = [(i, found) for i, found in enumerate(curves.values()) if found is not None]
    for i, found in known:
        found = found if num_parts is None else thinned(found, num_parts)
        look = look_of(i, len(found.x))
        axes.plot(found.x, found.mean, label=f"run {i}", **look)
        if len(found.seeds) > 1:
            axes.fill_between(found.x, found.low, found.high, color=look["color"], alpha=0.2, linewidth=0)
            axes.plot(found.x, _alone(found).T, **look | {"linewidth": 0.8, "markersize": 2}, alpha=0.7)
    if target is not None:
        axes.axhline(target, color="#808080", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    values = np.concatenate([found.seeds.ravel() for _, found in known])
    _scale(axes, values[np.isfinite(values)])
    axes.set_xlabel(plain(LABELS.get(x, x)))
    axes.set_ylabel(wrapped(y))
    if x == "round":
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    elif x.startswith("total/") and not x.endswith("seconds"):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 10k, 5M
    tidy(axes)


def draw_ends(axes: Any, ends: Mapping[str, Ends]) -> None:
    """Draws a line of dots for each name, from above, with a bar at their mean."""
    for place, (values, lost) in enumerate(ends.values()):
        known = values[np.isfinite(values)]
        axes.plot(known, np.full(len(known), place), "o", color=COLOURS[0], markersize=5, alpha=0.6)
        if len(known) == len(values) > 1:
            axes.plot([known.mean()], [place], "|", color=COLOURS[1], markersize=16, markeredgewidth=2.5)
        if lost:
            axes.annotate(lost, (1, place), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=8)
    axes.set_yticks(range(len(ends)), [wrapped(name) for name in ends], fontsize=8)
    axes.set_ylim(len(ends) - 0.5, -0.5)
    tidy(axes)


def draw_percentiles(axes: Any, metrics: Columns, metric: str, x: str, *, num_parts: int | None = None) -> None:
    """Draws bands between the percentiles of clients, 10 and 90, 20 and 80, ..., and a line at the median."""
    found = {number: curve([metrics], f"{metric}_p{number}", x) for number in percentiles(metrics, metric)}
    lines = {number: line for number, line in found.items() if line is not None}
    if not lines:
        raise ValueError(
            f"rows need percentiles of {metric!r}, such as '{metric}_p50'; got none. Evaluate with client_evaluation."
        )
    lines = {number: thinned(line, num_parts) if num_parts else line for number, line in lines.items()}
    pairs = [(number, 100 - number) for number in lines if number < 50 and 100 - number in lines]
    for low, high in pairs:
        # Both are of the same rows, at the same places.
        edges = np.interp(lines[low].x, lines[high].x, lines[high].mean)
        axes.fill_between(lines[low].x, lines[low].mean, edges, color=COLOURS[0], alpha=0.2, linewidth=0)
    for number, line in lines.items():
        is_median = number == 50
        look = look_of(0, len(line.x)) | {"linewidth": 1.8 if is_median else 0.7}
        axes.plot(line.x, line.mean, **look if is_median else look | {"marker": None})
    axes.set_xlabel(plain(LABELS.get(x, x)))
    axes.set_ylabel(wrapped(metric))
    said = ["line: the median"] * (50 in lines) + [f"band: {low} to {high}%" for low, high in pairs]
    axes.set_title("clients; " + ", ".join(said), fontsize=8, loc="left")
    tidy(axes)


def height_of(names: Iterable[str]) -> float:
    """Returns how high `draw_ends` needs to be for some names, in inches."""
    return 0.7 + sum(0.16 + 0.14 * (wrapped(name).count("\n") + 1) for name in names)


def percentiles(metrics: Iterable[str], metric: str) -> list[int]:
    """Lists the percentiles of a metric among names of metrics, increasing.

    >>> percentiles(["clients/loss", "clients/loss_p90", "clients/loss_p5"], "clients/loss")
    [5, 90]
    """
    numbers = (name.removeprefix(f"{metric}_p") for name in metrics if name.startswith(f"{metric}_p"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def _alone(found: Curve) -> np.ndarray:
    """Returns the seeds where not all are there, with the points beside, so that lines meet."""
    is_alone = np.isnan(found.mean)
    is_near = is_alone.copy()
    is_near[1:] |= is_alone[:-1]
    is_near[:-1] |= is_alone[1:]
    return np.where(is_near, found.seeds, np.nan)


def look_of(place: int, num_points: int) -> dict[str, Any]:
    """Returns how the line at a place among others looks; few points are marked."""
    turn, colour = divmod(place, len(COLOURS))
    marker = "o" if num_points <= _MOST_MARKED else None
    dashes = DASHES[turn % len(DASHES)]
    return {
        "color": COLOURS[colour],
        "linestyle": (0, dashes) if dashes else "solid",
        "linewidth": 1.6,
        "marker": marker,
        "markersize": 3,
    }


def _scale(axes: Any, values: np.ndarray) -> None:
    """Makes the scale logarithmic where some values would hide all others."""
    if len(values) and values.min() > 0 and values.max() > _FAR * np.median(values):
        axes.set_yscale("log")


def wrapped(name: str) -> str:
    """Breaks a long name into lines, and leaves no formula in it."""
    return plain("\n".join(textwrap.wrap(re.sub(", *", ", ", name), _LONGEST_LINE)))


def plain(text: str) -> str:
    """Writes a text so that Matplotlib finds no formula in it."""
    return text.replace("$", r"\$")


def tidy(axes: Any) -> None:
    """Takes away the frame where nothing is read off it, and draws a grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
