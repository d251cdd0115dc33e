"""Plots of runs: curves with bands over seeds, runs compared, and clients before and after personalisation.

Each returns a `matplotlib.figure.Figure` that no global state knows: it is shown where a notebook displays it and
saved with ``figure.savefig(path)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_choice, check_number
from fedjx.experiment.collect import RunLike, Runs, collect
from fedjx.experiment.curves import At, Band, Columns, curve, points, ranked
from fedjx.experiment.drawing import (
    COLOURS,
    draw_curves,
    draw_ends,
    draw_percentiles,
    height_of,
    look_of,
    plain,
    tidy,
    wrapped,
)
from fedjx.experiment.rows import Mode, better

if TYPE_CHECKING:  # Matplotlib takes a while to import, which those who plot nothing need not wait for.
    from matplotlib.figure import Figure

# Above so many points a cloud is stored as an image.
_MOST_POINTS = 2000


def plot_curves(
    runs: Runs,
    y: str,
    x: str = "round",
    *,
    target: float | None = None,
    band: Band = "range",
) -> Figure:
    """Plots a metric of runs as they go on: for each the mean of its seeds, and a band around it.

    Mean and band are where all seeds of a run are; where one has ended, or is not finite, the others go on as thin
    lines of their own. A scale is logarithmic where a curve is over 1,000 times its median.

    Args:
      runs: Rows or directories by name, for each one or several seeds; or as `fedjx.experiment.collect.collect` takes
        them.
      y: Name of a metric in the rows, such as ``"test/accuracy"``; it need not be in all.
      x: What is counted: "round", "total/bits_up", "total/examples", "total/seconds", or another name in the rows.
      target: Where to draw a line across.
      band: "range", from the least seed to the greatest; "deviation", one standard deviation up and down.

    Raises:
      ValueError: If there is no run, or none has the metric, finite somewhere.

    >>> seeds = [[{"round": 0, "test/loss": 2.0}, {"round": 10, "test/loss": 1.0 + seed}] for seed in range(3)]
    >>> (axes,) = plot_curves({"fed_avg": seeds}, "test/loss", target=1.5).axes
    >>> axes.lines[0].get_ydata()
    array([2., 2.])
    """
    from matplotlib.figure import Figure

    check_choice(("range", "deviation"), band=band)
    if target is not None:
        check_number("(-inf, inf)", "Pass one, or None for no line.", target=target)
    curves = {name: line for name, rows in _having(runs, y, x).items() if (line := curve(rows, y, x, band))}
    names = {name: wrapped(name) for name in curves if name}
    num_lines = sum(name.count("\n") + 1 for name in names.values())
    figure = Figure(
        figsize=(9.4 if len(names) > 1 else 6.4, max(4.2, 0.6 + 0.16 * num_lines + 0.07 * len(names))),
        layout="constrained",
    )
    axes: Any = figure.subplots()
    draw_curves(axes, curves, y, x, target=target)
    handles = [line for line in axes.lines if not line.get_label().startswith("_")]
    if len(names) > 1:
        figure.legend(
            handles, list(names.values()), loc="outside right upper", frameon=False, fontsize=9, handlelength=3.5
        )
    elif names:
        axes.set_title(*names.values(), fontsize=10)
    if any(len(found.seeds) > 1 for found in curves.values()):
        axes.set_title(said_of_band(band), fontsize=8, loc="left")
    return figure


def plot_comparison(runs: Runs, y: str, *, at: At = "last", mode: Mode | None = None) -> Figure:
    """Plots what runs came to: a dot for each seed, and a bar at their mean, the best run above.

    Args:
      runs: As `fedjx.experiment.collect.collect` takes them.
      y: Name of a metric in the rows.
      at: "last", where it was measured last; "best", the best that each seed ever had, which flatters noisy runs.
      mode: Whether more or less is better; by default as `better` takes it to be.

    Raises:
      ValueError: If there is no run, or none has the metric, finite somewhere.

    >>> rows = {"rate=0.1": [{"round": 9, "test/accuracy": 0.5}], "rate=0.2": [{"round": 9, "test/accuracy": 0.7}]}
    >>> [label.get_text() for label in plot_comparison(rows, "test/accuracy").axes[0].get_yticklabels()]
    ['rate=0.2', 'rate=0.1']
    """
    from matplotlib.figure import Figure

    check_choice(("last", "best"), at=at)
    mode = mode or better(y)
    check_choice(("max", "min"), mode=mode)
    found = ranked(_having(runs, y), y, at, mode)
    figure = Figure(figsize=(6.4, height_of(found)), layout="constrained")
    axes: Any = figure.subplots()
    draw_ends(axes, found)
    of_each = " of each seed" if any(len(values) > 1 for values, _ in found.values()) else ""
    axes.set_xlabel(wrapped(f"{y}, {at}{of_each}"))
    return figure


def plot_percentiles(run: RunLike, metric: str, x: str = "round") -> Figure:
    """Plots how a metric is distributed over clients as a run goes on: bands between its percentiles.

    Args:
      run: Its rows or directory, with percentiles of clients by name, such as ``clients/accuracy_p10``, as
        `client_evaluation` makes them.
      metric: What they are percentiles of, such as ``"clients/accuracy"``.
      x: What is counted.

    Raises:
      ValueError: If the rows have no percentiles of it, or there are several runs.

    >>> rows = [{"round": r, "clients/accuracy_p10": 0.1 * r, "clients/accuracy_p90": 0.3 * r} for r in range(3)]
    >>> plot_percentiles(rows, "clients/accuracy").axes[0].get_ylabel()
    'clients/accuracy'
    """
    from matplotlib.figure import Figure

    member, *others = collect({"": run})[""]
    if others:
        raise ValueError(
            f"percentiles are of one run; got {1 + len(others)} in {run!r:.80}. Give one's directory or rows."
        )
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    draw_percentiles(figure.subplots(), member.metrics, metric, x)
    return figure


def plot_clients(before: ArrayLike, after: ArrayLike | Mapping[str, ArrayLike], quantity: str = "accuracy") -> Figure:
    """Plots a metric of each client before and after personalisation, and what each client gains.

    Args:
      before: Of each client, with the model that all share, ``[K]``; NaN where a client has none.
      after: Of the same clients, in the same order, with a model of their own, ``[K]``; or several of them by name.
      quantity: What it is.

    Raises:
      ValueError: If they are not of the same clients, or nobody has both.

    >>> figure = plot_clients([0.5, 0.75, 0.2], [0.75, 0.5, 0.9])
    >>> print(figure.get_suptitle())
    mean 0.4833 before, 0.7167 after; 67% of 3 clients gain, 33% lose
    """
    from matplotlib.figure import Figure

    pairs = {name: _pair(before, values) for name, values in _by_name(after).items()}
    figure = Figure(figsize=(10.0, 4.4 + 0.2 * len(pairs)), layout="constrained")
    cloud, gains = figure.subplots(1, 2)
    for i, (old, new) in enumerate(pairs.values()):
        cloud.plot(
            old, new, "o", color=COLOURS[i % len(COLOURS)], markersize=4, alpha=0.6, rasterized=len(old) > _MOST_POINTS
        )
        gained = np.sort(new - old)
        share = (np.arange(len(gained)) + 0.5) / len(gained)
        gains.plot(100 * share, gained, **look_of(i, len(gained)))
    ends = np.array([[pair.min(), pair.max()] for columns in pairs.values() for pair in columns])
    cloud.axline((ends.min(), ends.min()), slope=1, color="#808080", linewidth=1, zorder=0)
    gains.axhline(0, color="#808080", linewidth=1, zorder=0)
    cloud.set(xlabel=f"{plain(quantity)} before", ylabel=f"{plain(quantity)} after")
    gains.set(xlabel="clients, the least gain first (%)", ylabel=f"gain of {plain(quantity)}")
    figure.suptitle("\n".join(_gain(name, *pair) for name, pair in pairs.items()), fontsize=9)
    if len(pairs) > 1:
        gains.legend(gains.lines[: len(pairs)], [wrapped(name) for name in pairs], frameon=False, fontsize=8)
    for axes in (cloud, gains):
        tidy(axes)
    return figure


def said_of_band(band: Band) -> str:
    """Says what lines and bands are."""
    what = "from the least seed to the greatest" if band == "range" else "one standard deviation of seeds"
    return f"lines: means of seeds; bands: {what}"


def _having(runs: Runs, y: str, x: str = "round") -> dict[str, list[Columns]]:
    """Returns the seeds that have a metric, of each run with such."""
    collected = {name: [member.metrics for member in members] for name, members in collect(runs).items()}
    having = {
        name: [metrics for metrics in seeds if len(points(metrics, y, x)[0])] for name, seeds in collected.items()
    }
    if not any(np.isfinite(points(metrics, y, x)[1]).any() for seeds in having.values() for metrics in seeds):
        pairs = (pair for seeds in collected.values() for metrics in seeds for pair in metrics.items())
        known = sorted({name for name, (_, values) in pairs if np.isfinite(values).any()})
        raise ValueError(f"{y!r} and {x!r} must be finite numbers of the same rows; got none. Choose among {known}.")
    return {name: seeds for name, seeds in having.items() if seeds}


def _gain(name: str, old: np.ndarray, new: np.ndarray) -> str:
    gained = new - old
    means = f"mean {old.mean():.4g} before, {new.mean():.4g} after"
    shares = f"{(gained > 0).mean():.0%} of {len(gained):,} clients gain, {(gained < 0).mean():.0%} lose"
    return f"{wrapped(name)}{': ' if name else ''}{means}; {shares}"


def _by_name(values: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, Any]:
    found = dict(values) if isinstance(values, Mapping) else {"": values}
    if not found:
        raise ValueError("a plot needs something to show; got {}. Give what personalisation came to.")
    return found


def _pair(before: ArrayLike, after: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns both columns, of the clients that have both."""
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if old.ndim != 1 or old.shape != new.shape:
        raise ValueError(f"before and after need to be of the same clients; got {old.shape} and {new.shape}.")
    is_known = np.isfinite(old) & np.isfinite(new)
    if not is_known.any():
        raise ValueError(f"before and after need numbers of some client; got none of {len(old)}. Evaluate clients.")
    return old[is_known], new[is_known]
