"""What the benchmarks share: devices, counting compilations, memory, tables and the final line of JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import fedjx

# --- flags and devices --------------------------------------------------------------------------


def flag_parser(doc: str | None) -> argparse.ArgumentParser:
    """Starts a command line with the flags of every benchmark."""
    summary = (doc or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--devices", type=int, help="devices of each process; on a CPU one per core if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the cohorts and the model")
    parser.add_argument("--output", type=Path, help="file for the JSON")
    return parser


def start(num_devices: int | None = None) -> None:
    """Divides the CPU into devices, and joins the processes that were started together, of which the first one prints.

    To be called before JAX starts.

    Args:
      num_devices: Of each process on a CPU; one per core if not said.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", num_devices or cores)
    if fedjx.initialize_distributed() and not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends


def start_alone(num_devices: int | None = None) -> None:
    """Starts a benchmark that starts processes of its own."""
    start(num_devices)
    check_alone()


def check_alone() -> None:
    """Refuses to start processes of its own from one of several, each of which would."""
    if jax.distributed.is_initialized():
        sentence = (
            f"this benchmark starts processes of its own, one after the other, and must be started once; got "
            f"{jax.process_count()} processes. Start it alone; benchmarks.round_time measures several."
        )
        raise SystemExit(sentence if is_first() else 1)


def is_first() -> bool:
    """Tells whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def client_mesh(num_devices: int | None = None) -> Mesh:
    """Returns a mesh of the first devices of every process, of all if not said."""
    most = jax.local_device_count()
    if num_devices is not None and not 1 <= num_devices <= most:
        raise SystemExit(f"--devices needs to be from 1 to {most} here; got {num_devices}. Ask for fewer.")
    processes = range(jax.process_count())
    devices = [device for k in processes for device in jax.local_devices(process_index=k)[:num_devices]]
    return Mesh(np.array(devices), ("clients",))


def environment(mesh: Mesh) -> dict[str, Any]:
    """Describes where and when something was measured."""
    device = mesh.devices.flat[0]
    return {
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "platform": device.platform,
        "num_devices": mesh.size,
        "num_processes": jax.process_count(),
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    """Names the processor, which JAX calls "cpu"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# --- what is measured ---------------------------------------------------------------------------


class Compilations:
    """Counts and times what XLA compiles while it is entered.

    Attributes:
      number: Programs compiled.
      seconds: How long that took.
    """

    def __init__(self) -> None:
        self.number, self.seconds = 0, 0.0

    def __enter__(self) -> Compilations:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.number += 1
            self.seconds += duration_secs


def peak_memory(mesh: Mesh) -> dict[str, int | None]:
    """Returns the most memory that this process, and the busiest of its devices, have held, in bytes."""
    on_devices = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in mesh.local_devices]
    known = [peak for peak in on_devices if peak is not None]
    return {
        "peak_host_bytes": _peak_host_bytes(),
        "peak_device_bytes": max(known) if known else None,
    }


def _peak_host_bytes() -> int:
    status = Path("/proc/self/status")
    # Linux counts in ru_maxrss what the process that started this one held; not so here.
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def quartiles(values: Iterable[float]) -> dict[str, float]:
    """Summarises repeated measurements."""
    low, lower, middle, upper, high = np.quantile(list(values), [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {"min": low, "lower_quartile": lower, "median": middle, "upper_quartile": upper, "max": high}


# --- reports ------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Formats rows as aligned columns, the first to the left and the others to the right."""
    cells = [list(header), *([_cell(x) for x in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(x.rjust(width) for x, width in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def finish(report: dict[str, Any], output: Path | None) -> dict[str, Any]:
    """Prints a report as one line of JSON, the last of a benchmark, and writes it whole or not at all."""
    report = _rounded(report)
    line = json.dumps(report, allow_nan=False)
    if output is not None and is_first():
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = output.with_name(f"{output.name}.{os.getpid()}.part")
        unfinished.write_text(line + "\n", encoding="utf-8")
        unfinished.replace(output)
    print(line, flush=True)
    return report


def _rounded(value: Any) -> Any:
    """Makes numbers plain and keeps six digits of them."""
    if isinstance(value, dict):
        return {name: _rounded(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(x) for x in value]
    value = value.item() if isinstance(value, (np.generic, jax.Array)) else value
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run_apart(module: str, *flags: Any, platform: str | None = None) -> dict[str, Any]:
    """Runs a benchmark in a process of its own, which starts with no memory and no compiled program.

    Args:
      module: Its name in `benchmarks`.
      *flags: Its command line.
      platform: What JAX runs on there; what it finds, if not given.

    Returns:
      Its report.
    """
    chosen = {"JAX_PLATFORMS": platform} if platform else {}
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, flags)]
    ended = subprocess.run(command, env={**os.environ, **chosen}, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"'{' '.join(command)}' ended with {ended.returncode}; its messages are above.")
    return json.loads(ended.stdout.splitlines()[-1])
