"""Short runs of the benchmarks, in one process of several that `test_processes` starts, or in its own.

``python -m tests.benchmarks.processes_worker FOLDER``, with the variables that `fedjx.initialize_distributed` reads.
"""

from __future__ import annotations

import faulthandler
import importlib
import sys
from pathlib import Path
from typing import Any

from benchmarks import compression, measuring
from fedjx.models import mlp

SECONDS_TO_LIVE = 290  # whatever becomes of the tests, no process stays behind

RUNS = {
    "aggregation_cost": "--workload logistic --clients 4 --rounds 1 --aggregators mean",
    "algorithms": "--num-clients 6 --cohort 3 --num-rounds 2 --num-seeds 1 --client-rates 0.1 0.3 0.2 "
    "--server-rates 1.0 --methods FedAvg",
    "compression": "--num-clients 4 --clients-per-round 4 --num-rounds 2 --eval-every 2 --num-seeds 1 "
    "--variants float32 --client-rate 0.01",  # at .1 two rounds make of rounding what one sees
    "limit": "--workload logistic --clients 4 --rounds 1 --lanes 1 --seconds 0.01 --sizes 64 --megabytes 1",
    "quickstart": "--model mlp --num-clients 8 --clients-per-round 4 --num-rounds 2 --eval-every 2 --lanes 1",
    "round_time": "--workload logistic --clients 4 --rounds 1 --lanes 1",
    "tasks": "emnist_logistic --twin --num-clients 4 --num-rounds 2 --evaluate-every 1 --lanes 1",
}
DIRECTORIES = ("quickstart", "tasks")  # whose output is a directory


def make_small() -> None:
    """Leaves of the slowest benchmark what is enough to be compared."""
    compression.network = lambda *args, **options: mlp(10, input_shape=(8, 8, 1), hidden=())


def report(name: str, folder: Path, num_devices: int) -> dict[str, Any]:
    """Runs a benchmark."""
    script = importlib.import_module("benchmarks.tasks.__main__" if name == "tasks" else f"benchmarks.{name}")
    flags = RUNS[name].split() + (["--data", str(folder / "data")] if name == "tasks" else [])
    if name in DIRECTORIES:
        return script.main(script.parse_flags([*flags, "--output", str(folder / name)]))
    output = ["--output", str(folder / f"{name}.json"), "--devices", str(num_devices)]
    return script.main(script.parse_flags([*flags, *output]))


def main(folder: Path) -> None:
    """Runs all of them, as one of the processes that were started together."""
    faulthandler.dump_traceback_later(SECONDS_TO_LIVE, exit=True)
    measuring.start(2)
    make_small()
    for name in RUNS:
        report(name, folder, 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
