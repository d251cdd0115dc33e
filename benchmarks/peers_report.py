"""What `benchmarks.peers` says of a run: a table of each workload, and one of all of them in Markdown."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_workers.protocol import Weights

TOLERANCE = 1e-3


def summary(results: dict[str, dict], num_examples: list[int], initial: Weights) -> dict[str, dict]:
    """Returns each engine's speeds, ratios to fedjx, and how far its parameters are from fedjx's."""
    reference = results.get("fedjx", {"seconds": [], "error": "not run"})
    engines = {}
    for name, result in results.items():
        speeds = np.array(num_examples[: len(result["seconds"])]) / result["seconds"]
        ratios = [ours / theirs for theirs, ours in zip(reference["seconds"], result["seconds"], strict=False)]
        pairs = zip(result.get("checks", []), reference.get("checks", []), strict=False)
        distances = [distance(theirs, ours, initial) for theirs, ours in pairs]
        kept = {key: value for key, value in result.items() if key != "checks"}
        engines[name] = {
            **kept,
            "examples_per_second": spread(speeds),
            "fedjx_times_as_fast": spread(ratios),
            "difference_whole_batches": distances[0] if distances else None,
            "difference_short_batches": distances[1] if distances else None,
        }
    return engines


def spread(values: Any) -> dict[str, float] | None:
    """Returns median, least and most."""
    if not len(values):
        return None
    return {"median": float(np.median(values)), "min": float(np.min(values)), "max": float(np.max(values))}


def distance(theirs: Weights, ours: Weights, initial: Weights) -> float:
    """Returns the Euclidean norm of the difference of all parameters, relative to that of our change by training."""
    norms = [
        np.sqrt(sum(np.square(a[name] - b[name], dtype=np.float64).sum() for name in initial))
        for a, b in ((theirs, ours), (ours, initial))
    ]
    return float(norms[0] / norms[1])


def table(report: dict[str, Any]) -> str:
    """Formats a report."""
    lines = [
        f"\n{report['workload']}, {report['parameters']:,} parameters, {report['clients']} clients a round, "
        f"{np.mean(report['examples']):,.0f} examples a round, {report['cores']} cores of {report['processor']}",
        f"{'engine':<11}{'examples/s':>11}{'range':>18}{'fedjx is x times as fast':>27}{'differs by':>20}  version",
    ]
    for name, engine in report["engines"].items():
        speed, ratio = engine["examples_per_second"], engine["fedjx_times_as_fast"]
        pace = f"{speed['median']:>11,.0f}{speed['min']:>9,.0f} -{speed['max']:>7,.0f}" if speed else " " * 29
        times = f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})" if ratio else ""
        differences = [engine["difference_whole_batches"], engine["difference_short_batches"]]
        away = " ".join(f"{d:.0e}{'!' if d > TOLERANCE else ''}" for d in differences if d is not None)
        lines.append(f"{name:<11}{pace}{times:>27}{away:>20}  {engine['version']}")
        if engine["error"]:
            lines.append(f"{'':<11}FAILED: {engine['error']}")
    lines.append(
        "Differences of the parameters after a round without dropout, relative to their change by training: clients "
        f"with whole batches only, and with short last batches; ! is over {TOLERANCE:g}."
    )
    return "\n".join(lines)


PEERS = {"torch": "PyTorch loop", "pfl": "pfl", "blazefl": "BlazeFL", "fedjax": "FedJAX", "jax": "JAX loop"}


def markdown(reports: list[dict[str, Any]]) -> str:
    """Formats reports of several workloads as one table, with the better mode of each peer.

    A cell has examples a second, median and best, and how many times as fast fedjx is, the median of the rounds.
    """
    groups = {engine: engine.split("_")[0] for report in reports for engine in report["engines"]}
    peers = [group for group in dict.fromkeys(groups.values()) if group != "fedjx"]
    header = ["workload", "parameters", "fedjx", *(PEERS.get(peer, peer) for peer in peers), "first round, s"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for report in reports:
        engines = report["engines"]
        best = [best_mode([engines[name] for name in engines if groups[name] == peer]) for peer in peers]
        ours = engines.get("fedjx", {"examples_per_second": None})
        first = ours.get("first_round_seconds")
        cells = [cell(ours, is_reference=True), *map(cell, best), "" if first is None else f"{first:.1f}"]
        lines.append(f"| {report['workload']} | {report['parameters']:,} | {' | '.join(cells)} |")
    failures = [
        f"* {report['workload']}, {name}: {engine['error']}"
        for report in reports
        for name, engine in report["engines"].items()
        if engine["error"]
    ]
    return "\n".join([*lines, "", *failures]).strip()


def best_mode(modes: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the mode with the highest median, if any has run."""
    ran = [mode for mode in modes if mode["examples_per_second"]]
    return max(ran, key=lambda mode: mode["examples_per_second"]["median"], default=None)


def cell(engine: dict[str, Any] | None, *, is_reference: bool = False) -> str:
    """Formats an engine's speed."""
    if engine is None or not engine["examples_per_second"]:
        return "failed"
    speed, ratio = engine["examples_per_second"], engine["fedjx_times_as_fast"]
    shown = f"{speed['median']:,.0f} / {speed['max']:,.0f}"
    return f"**{shown}**" if is_reference else f"{shown} ({ratio['median']:.2f})" if ratio else shown


def processor() -> str:
    """Returns the name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()
