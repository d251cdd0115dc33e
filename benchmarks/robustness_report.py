"""Shows what `benchmarks.robustness` measured, as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.measuring import table

mpl.use("Agg")
from matplotlib import pyplot as plt


def show(report: dict[str, Any]) -> str:
    """Formats both tables of rules, with a star where one does not survive, and the sweep of the bound."""
    shown = [
        f"Accuracy, {name} of malicious clients (* does not survive):\n{_rules(report, name)}"
        for name in report["results"]
    ]
    sweep = f"Norm bounding (honest norm {report['honest_norm']:.3g}):\n{_sweep(report['sweep'])}"
    return "\n\n".join([*shown, sweep, *([show_lies(report["lies"])] if "lies" in report else [])])


def show_lies(lies: dict[str, Any]) -> str:
    """Formats how far the server of each method moves under each lie, and how accurate it is then."""
    rows = [
        [method, *(f"{x['moves']:.2f} ({x['accuracy']:.2f})" for x in row.values())] for method, row in lies.items()
    ]
    return f"Farthest round, in clips (accuracy):\n{table(['method', *next(iter(lies.values()))], rows)}"


def _rules(report: dict[str, Any], name: str) -> str:
    results, survives, number = (report[key][name] for key in ("results", "survives", "num_malicious"))
    backdoors = [attack for attack in results if "backdoor" in attack]

    def cell(attack: str, rule: str, measured: str) -> str:
        star = " " if survives.get(attack, {}).get(rule, True) else "*"
        return f"{results[attack][rule][measured]:.2f}{star}"

    rows = [
        [rule, number[rule]]
        + [cell(attack, rule, "accuracy") for attack in results]
        + [cell(attack, rule, "backdoor") for attack in backdoors]
        for rule in results["none"]
    ]
    return table(["rule", "malicious", *results, *(f"{attack} opens" for attack in backdoors)], rows)


def _sweep(sweep: dict[str, Any]) -> str:
    calm, attacked = sweep["none"], sweep["backdoor"]
    rows = [
        [
            bound,
            calm[bound]["accuracy"],
            attacked[bound]["accuracy"],
            calm[bound]["backdoor"],
            attacked[bound]["backdoor"],
        ]
        for bound in calm
    ]
    return table(["bound", "accuracy, no attack", "under attack", "opens, no attack", "under attack"], rows)


def draw(path: Path, report: dict[str, Any]) -> None:
    """Draws accuracy and the backdoor's success against the bound; dashed lines have no bound."""
    calm, attacked = report["sweep"]["none"], report["sweep"]["backdoor"]
    bounds = [bound for bound in attacked if bound != "none"]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    series = {
        "main accuracy, no attack": (calm, "accuracy", "tab:gray"),
        "main accuracy": (attacked, "accuracy", "tab:blue"),
        "backdoor success": (attacked, "backdoor", "tab:red"),
    }
    for label, (results, measured, color) in series.items():
        axis.semilogx(
            [float(b) for b in bounds], [results[b][measured] for b in bounds], "o-", label=label, color=color
        )
        axis.axhline(results["none"][measured], color=color, linestyle="--", linewidth=1)
    axis.axvline(report["honest_norm"], color="black", linewidth=1, label="median honest norm")
    axis.set(xlabel="bound of the norm", ylim=(-0.03, 1.03), title="One attacker in every tenth round, digits")
    axis.legend(loc="center left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
