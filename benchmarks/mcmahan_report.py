"""Shows what `benchmarks.mcmahan` found beside what McMahan et al. report, as a table and as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np

from benchmarks.mcmahan_paper import CELLS, SPLITS, TARGETS, Cell, published
from benchmarks.measuring import table

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib import ticker
from matplotlib.axes import Axes

DRAWN = {"plain": "fedjx", "centred": "fedjx, pixels centred"}


class Curve(NamedTuple):
    """Accuracy on the test set while a cell was trained with one learning rate.

    Attributes:
      cell: What was trained.
      rate: Learning rate of the clients.
      seed: Of the partition, the cohorts and the first parameters.
      variant: What was changed; "plain" if nothing.
      rounds: After how many rounds it was tested; the first is 0.
      accuracies: What was found then.
      seconds_per_round: How long a round took, tests and compiling included.
    """

    cell: Cell
    rate: float
    seed: int
    variant: str
    rounds: list[int]
    accuracies: list[float]
    seconds_per_round: float


def rounds_to_target(curve: Curve) -> float | None:
    """Returns where the best accuracy so far, linear between two tests, crosses the target; None if it does not.

    >>> cell = Cell("2nn", "iid", 0.1, 10, 1)
    >>> rounds_to_target(Curve(cell, 0.1, 0, "plain", [0, 10, 20, 30], [0.1, 0.95, 0.9, 0.99], 1.0))
    25.0
    """
    target, best = TARGETS[curve.cell.network], np.maximum.accumulate(np.nan_to_num(curve.accuracies))
    if best[-1] < target:
        return None
    after = int(np.argmax(best >= target))
    if not after:
        return float(curve.rounds[0])
    share = (target - best[after - 1]) / (best[after] - best[after - 1])
    return float(curve.rounds[after - 1] + share * (curve.rounds[after] - curve.rounds[after - 1]))


def quality(curve: Curve) -> tuple[float, float]:
    """Returns what is greater for a better curve: fewer rounds to the target, else more accuracy."""
    reached = rounds_to_target(curve)
    return -np.inf if reached is None else -reached, max(curve.accuracies)


def best_curves(curves: Sequence[Curve], *, reached: bool = True) -> list[Curve]:
    """Returns the best curve of each cell, seed and variant, in the order of the paper's tables.

    Args:
      curves: What was trained.
      reached: Whether only those are wanted that reach the target.
    """

    def group(curve: Curve) -> tuple:
        return CELLS.index(curve.cell), curve.seed, curve.variant

    wanted = sorted((c for c in curves if not reached or rounds_to_target(c) is not None), key=group)
    return [max(found, key=quality) for _, found in itertools.groupby(wanted, group)]


def show(curves: Sequence[Curve]) -> str:
    """Formats a row for each cell that was tried: the paper's rounds, ours, the best rate and the others."""
    best = {(c.cell, c.seed, c.variant): c for c in best_curves(curves)}
    rows = []
    for cell, seed, variant in sorted(
        {(c.cell, c.seed, c.variant) for c in curves}, key=lambda g: (CELLS.index(g[0]), g)
    ):
        found = best.get((cell, seed, variant))
        tried = sorted(c.rate for c in curves if (c.cell, c.seed, c.variant) == (cell, seed, variant))
        paper = " or ".join("-" if rounds is None else str(rounds) for rounds in published(cell))
        ours, rate = (None, None) if found is None else (round(rounds_to_target(found) or 0.0, 1), found.rate)
        rows.append([str(cell), variant, seed, paper, ours, rate, " ".join(f"{r:g}" for r in tried)])
    return table(["cell", "variant", "seed", "paper's rounds", "ours", "rate", "rates tried"], rows)


def draw(path: Path, curves: Sequence[Curve]) -> None:
    """Draws the best curves of each network and split, and rounds to the target beside the paper's."""
    best = [curve for curve in best_curves(curves, reached=False) if curve.variant in DRAWN]
    networks = [network for network in TARGETS if any(c.cell.network == network for c in best)]
    if not networks:
        return
    height = 4 * len(networks)
    figure, panels = plt.subplots(
        len(networks), 3, figsize=(17, height), layout="constrained", squeeze=False, width_ratios=[4, 4, 3]
    )
    for row, network in zip(panels, networks, strict=True):
        mine = [curve for curve in best if curve.cell.network == network]
        for panel, split in zip(row, SPLITS, strict=False):
            _draw_curves(panel, [c for c in mine if (c.cell.split, c.variant) == (split, "plain")])
            panel.axhline(TARGETS[network], color="grey", linewidth=1)
            panel.set(xscale="log", xlabel="round", ylabel="best test accuracy so far", title=f"{network}, {split}")
            panel.set_ylim(*{"2nn": (0.8, 1), "cnn": (0.9, 1), "lstm": (0.1, 0.6)}[network])
            panel.grid(alpha=0.3)
        _draw_rounds(row[-1], mine)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_curves(panel: Axes, curves: Sequence[Curve]) -> None:
    for number, curve in enumerate(curves):
        label = f"{str(curve.cell).split(' ', 2)[2]}, rate {curve.rate:g}"
        panel.plot(curve.rounds, np.maximum.accumulate(curve.accuracies), color=f"C{number % 10}", label=label)
    if curves:
        panel.legend(fontsize=7, loc="lower right")
    else:
        panel.text(0.5, 0.5, "not run", transform=panel.transAxes, ha="center")


def _draw_rounds(panel: Axes, curves: Sequence[Curve]) -> None:
    cells = list(dict.fromkeys(c.cell for c in curves))[::-1]
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ("paper", *DRAWN.values())}
    for height, cell in enumerate(cells):
        found["paper"] += [(rounds, height) for rounds in published(cell) if rounds is not None]
        reached = [(DRAWN[c.variant], rounds_to_target(c)) for c in curves if c.cell == cell]
        for name, rounds in reached:
            found[name] += [] if rounds is None else [(rounds, height)]
    for (name, points), marker in zip(found.items(), "Dos", strict=True):
        x, y = [x for x, _ in points], [y for _, y in points]
        panel.plot(x, y, marker, label=name if points else None, fillstyle="none" if name == "paper" else "full")
    panel.set(xscale="log", xlabel="rounds to the target", yticks=range(len(cells)))
    panel.set_yticklabels([str(cell).split(" ", 1)[1] for cell in cells], fontsize=7)
    low, high = panel.get_xlim()
    panel.set_xlim(low / 1.5, high * 1.5)
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.grid(alpha=0.3)
    panel.legend(loc="best")
