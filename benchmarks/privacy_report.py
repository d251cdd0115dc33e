"""Shows what `benchmarks.privacy` measured, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.measuring import table

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib import ticker

Points = Sequence[Mapping[str, Any]]
REFERENCE = "DP-FedAvg"  # drawn in both panels


def show(no_noise: Mapping[str, Any], results: Mapping[str, Points]) -> str:
    """Formats a row for each mechanism: the mean accuracy, and the noise multiplier, at every epsilon."""
    epsilons = [point["epsilon"] for point in next(iter(results.values()))]
    rows = [
        [name, *(f"{p['mean']:.3f} ({p['noise_multiplier']:.3g})" for p in points)] for name, points in results.items()
    ]
    header = ["accuracy (noise)", *(f"epsilon {epsilon:g}" for epsilon in epsilons)]
    return f"{table(header, rows)}\nwithout noise: {no_noise['mean']:.4f}"


def show_sweep(found: Points) -> str:
    """Formats a row for each clip and client rate."""
    columns = ["clip", "client_rate", "server_rate", "mean"]
    return table(["clip", "client rate", "server rate", "accuracy"], [[row[c] for c in columns] for row in found])


def draw(path: Path, delta: float, no_noise: Mapping[str, Any], results: Mapping[str, Points]) -> None:
    """Draws accuracy against epsilon: means over the seeds, between the least and the greatest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", sharey=True)
    ftrl = [name for name in results if "FTRL" in name]
    drawn = [[name for name in results if name not in ftrl], [name for name in results if name in (*ftrl, REFERENCE)]]
    colors = {name: f"C{number}" for number, name in enumerate(results)}
    for panel, names, title in zip(panels, drawn, ("Poisson cohorts", "Cohorts by turns"), strict=True):
        panel.axhline(no_noise["mean"], color="black", linestyle="--", linewidth=1, label="no noise")
        for name in names:
            x, accuracies = [p["epsilon"] for p in results[name]], [p["accuracies"] for p in results[name]]
            panel.plot(x, [p["mean"] for p in results[name]], "o-", markersize=4, color=colors[name], label=name)
            panel.fill_between(
                x, list(map(min, accuracies)), list(map(max, accuracies)), color=colors[name], alpha=0.15
            )
        panel.set(xscale="log", xlabel=f"epsilon at delta = {delta:g}", title=title)
        panel.xaxis.set_major_locator(ticker.FixedLocator([p["epsilon"] for p in next(iter(results.values()))]))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right")
    panels[0].set_ylabel("test accuracy")
    figure.savefig(path, dpi=120)
    plt.close(figure)
