"""Shows what `benchmarks.scaling` measured, as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.measuring import table

mpl.use("Agg")
from matplotlib import pyplot as plt


def show(result: dict[str, Any]) -> str:
    """Formats the measured parts as tables."""
    tables = {"cohort": _cohort, "devices": _devices, "spread": _spread}
    shown = [tables[name](result[name]) for name in tables if name in result]
    if "cohort" in result:
        shown.append(
            f"Peak memory of the largest cohort, against 100 clients: {result['peak_memory_ratio']:.3f} times."
        )
    if "recompilation" in result:
        counted = result["recompilation"]
        shown.append(f"Compilations in {counted['rounds']} rounds after the first: {counted['recompilations']}.")
    if "overhead" in result:
        shown.append(_overhead(result["overhead"]))
    return "\n\n".join(shown)


def _cohort(rows: list[dict[str, Any]]) -> str:
    return table(
        ["clients in a round", "s/round", "clients/s", "examples/s", "peak MiB"],
        [
            (
                f"{r['clients']:,}",
                r["seconds_per_round"]["median"],
                r["clients_per_second"],
                r["examples_per_second"],
                r["peak_host_bytes"] / 2**20,
            )
            for r in rows
        ],
    )


def _devices(rows: list[dict[str, Any]]) -> str:
    return table(
        ["simulated devices", "s/round", "steps per device", "MFLOP per device and chunk", "collectives"],
        [
            (
                str(r["devices"]),
                r["seconds_per_round"]["median"],
                r["lane_steps_per_device"],
                r["flops_per_device"] / 1e6,
                r["collectives_per_round"],
            )
            for r in rows
        ],
    )


def _spread(rows: list[dict[str, Any]]) -> str:
    return table(
        [
            "sizes of clients",
            "s/round",
            "lanes",
            "padded work",
            "imbalance",
            "µs/example, median",
            "least",
            "recompiled",
        ],
        [
            (
                r["sizes"],
                r["seconds_per_round"]["median"],
                r["lanes"],
                r["padded_work"],
                r["imbalance"],
                1e6 * r["seconds_per_example"]["median"],
                1e6 * r["seconds_per_example"]["min"],
                r["recompilations"],
            )
            for r in rows
        ],
    )


def _overhead(measured: dict[str, Any]) -> str:
    streamed, in_graph = (measured[f"{how}_seconds"] for how in ("streamed", "in_graph"))
    return (
        f"{measured['clients']} clients streamed: {streamed['median']:.3f} s a round (best {streamed['min']:.3f}); "
        f"as one program: {in_graph['median']:.3f} s (best {in_graph['min']:.3f}).\nStreaming costs "
        f"{measured['overhead_of_medians']:+.1%} of a round (of the best ones, {measured['overhead_of_bests']:+.1%})."
    )


# --- picture ------------------------------------------------------------------------------------


def draw(path: Path, result: dict[str, Any]) -> None:
    """Draws the parts that were measured side by side."""
    panels = {"cohort": (_draw_time, _draw_memory), "spread": (_draw_spread,), "devices": (_draw_devices,)}
    chosen = [(panel, result[name]) for name, drawn in panels.items() if name in result for panel in drawn]
    if not chosen:
        raise SystemExit(f"a picture needs one of the parts {', '.join(panels)}; got none. Add it to --parts.")
    figure, axes = plt.subplots(1, len(chosen), figsize=(4 * len(chosen), 3.6), layout="constrained", squeeze=False)
    for axis, (panel, rows) in zip(axes[0], chosen, strict=True):
        panel(axis, rows)
    figure.suptitle(f"{result['device']}, {result['num_devices']} devices, JAX {result['jax']}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_time(axis: Any, rows: list[dict[str, Any]]) -> None:
    clients, seconds = [r["clients"] for r in rows], [r["seconds_per_round"]["median"] for r in rows]
    axis.loglog(clients, seconds, "o-", label="measured")
    axis.loglog(clients, [seconds[-1] * c / clients[-1] for c in clients], "k--", linewidth=1, label="proportional")
    axis.set(xlabel="clients in a round", ylabel="seconds", title="Time of a round")
    axis.legend()


def _draw_memory(axis: Any, rows: list[dict[str, Any]]) -> None:
    peaks = [r["peak_host_bytes"] / 2**20 for r in rows]
    axis.semilogx([r["clients"] for r in rows], peaks, "o-", color="tab:green")
    axis.set(xlabel="clients in a round", ylabel="MiB", title="Peak memory of the process")
    axis.set_ylim(0, 1.25 * max(peaks))


def _draw_spread(axis: Any, rows: list[dict[str, Any]]) -> None:
    least = rows[0]["seconds_per_example"]["median"]
    series = {
        "steps executed per real step": [r["padded_work"] for r in rows],
        f"time per example ({rows[0]['sizes']} = 1)": [r["seconds_per_example"]["median"] / least for r in rows],
    }
    for number, (label, heights) in enumerate(series.items()):
        places = [i + 0.4 * number - 0.2 for i in range(len(rows))]
        axis.bar_label(axis.bar(places, heights, 0.38, label=label), fmt="%.2f", fontsize=8, padding=2)
    axis.axhline(1, color="black", linestyle="--", linewidth=1, zorder=0)
    axis.set_xticks(range(len(rows)), [r["sizes"] for r in rows])
    axis.set(title="Unequal clients", ylim=(0, 1.45 * max(max(heights) for heights in series.values())))
    axis.legend(loc="upper left", fontsize=8)


def _draw_devices(axis: Any, rows: list[dict[str, Any]]) -> None:
    devices, steps = [r["devices"] for r in rows], [r["lane_steps_per_device"] for r in rows]
    axis.loglog(devices, steps, "o-", base=2, label="executed")
    axis.loglog(devices, [steps[0] * devices[0] / d for d in devices], "k--", base=2, linewidth=1, label="divided")
    axis.set_xticks(devices, [str(d) for d in devices])
    axis.set_yticks(steps, [f"{s:g}" for s in steps])
    axis.minorticks_off()
    axis.set(xlabel="devices", ylabel="steps per device", title="Work of a device")
    axis.legend()
