"""Shows what `benchmarks.privacy` measured, as a table and as a picture; also what several runs measured together."""

from __future__ import annotations

import argparse
import json
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
    epsilons = _epsilons(results)

    def cell(point: Mapping[str, Any] | None) -> str | None:
        return None if point is None else f"{point['mean']:.3f} ({point['noise_multiplier']:.3g})"

    found = {name: {point["epsilon"]: point for point in points} for name, points in results.items()}
    rows = [[name, *(cell(points.get(epsilon)) for epsilon in epsilons)] for name, points in found.items()]
    header = ["accuracy (noise)", *(f"epsilon {epsilon:g}" for epsilon in epsilons)]
    return f"{table(header, rows)}\nwithout noise: {no_noise['mean']:.4f}"


def _epsilons(results: Mapping[str, Points]) -> list[float]:
    return sorted({point["epsilon"] for points in results.values() for point in points})


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
        for number, name in enumerate(names):
            width = 3 - 2 * number / len(names)  # lines that are hidden by later ones show at their sides
            x, accuracies = [p["epsilon"] for p in results[name]], [p["accuracies"] for p in results[name]]
            means, drawn_as = [p["mean"] for p in results[name]], {"markersize": 2 + width, "linewidth": width}
            panel.plot(x, means, "o-", color=colors[name], label=name, **drawn_as)
            panel.fill_between(
                x, list(map(min, accuracies)), list(map(max, accuracies)), color=colors[name], alpha=0.15
            )
        panel.set(xscale="log", xlabel=f"epsilon at delta = {delta:g}", title=title)
        panel.xaxis.set_major_locator(ticker.FixedLocator(_epsilons(results)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.grid(alpha=0.3)
        panel.legend(loc="lower right")
    panels[0].set_ylabel("test accuracy")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(flags: argparse.Namespace) -> None:
    """Shows runs together, whose mechanisms differ and whose data, rounds and delta are the same."""
    first, *others = (json.loads(path.read_text(encoding="utf-8")) for path in flags.reports)
    shared = ("data", "delta", "num_clients", "cohort", "num_rounds", "clip", "client_rate")
    for other in others:
        if differing := [name for name in shared if other[name] != first[name]]:
            raise SystemExit(f"runs that are shown together are alike in {list(shared)}; these differ in {differing}.")
        first["results"] |= other["results"]
    print(show(first["no_noise"], first["results"]))
    draw(flags.output, first["delta"], first["no_noise"], first["results"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("reports", nargs="+", type=Path, help="files for the JSON that the runs wrote")
    parser.add_argument("--output", type=Path, required=True, help="file for the picture")
    main(parser.parse_args())
