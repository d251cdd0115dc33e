"""The same federated training with fedjx and with other engines, side by side in one run.

Each engine is a worker process in an environment of its own, made at first use under `runs/peers`. All start from the
same weights and train the same clients on the same batches in the same order, in turns: round 1 of every engine, then
round 2 of every engine, and so on. Only one works at a time. An engine that cannot be installed, fails or takes too
long is shown with the reason.

    python -m benchmarks.peers --workload emnist_cnn --clients 10 --rounds 8
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import start_alone
from benchmarks.peers_engines import Engine, EngineError, Worker, engines, python_of
from benchmarks.peers_problem import WORKLOADS, problem_of
from benchmarks.peers_workers.protocol import Problem, Weights, save_problem

TOLERANCE = 1e-3

# --- the run ------------------------------------------------------------------------------------


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Starts the engines, runs the rounds in turns, prints a table and, in the last line, all figures as JSON."""
    workload = WORKLOADS[flags.workload]()
    num_clients = flags.clients or workload.cohort_size
    with tempfile.TemporaryDirectory() as folder:
        problem, checks = problem_of(workload, num_clients, flags.rounds, num_cores=flags.cores)
        save_problem(Path(folder), problem)
        results = {name: {"version": "", "seconds": [], "error": ""} for name in flags.engines}
        workers: dict[str, Worker] = {}
        try:
            for name in flags.engines:
                attempt(results[name], prepare, name, flags, folder, problem, checks, workers, results[name])
            for number, ids in enumerate(problem.cohorts[-flags.rounds :], 1):
                for name, worker in list(workers.items()):
                    attempt(results[name], run_round, worker, ids, flags.round_limit, results[name])
                    if results[name]["error"]:
                        workers.pop(name).close()
                print(f"round {number} of {flags.rounds}", flush=True)
        finally:
            for worker in workers.values():
                worker.close()
    num_examples = [sum(map(problem.size, ids)) for ids in problem.cohorts[-flags.rounds :]]
    report = {
        "workload": flags.workload,
        "clients": num_clients,
        "cores": flags.cores,
        "processor": processor(),
        "parameters": sum(weight.size for weight in problem.weights.values()),
        "examples": num_examples,
        "engines": summary(results, num_examples, problem.weights),
    }
    print(table(report))
    if flags.output:
        flags.output.parent.mkdir(parents=True, exist_ok=True)
        flags.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return report


def attempt(result: dict[str, Any], step: Any, *args: Any) -> None:
    """Takes a step of one engine; what goes wrong becomes its result."""
    try:
        step(*args)
    except EngineError as error:
        result["error"] = str(error)
        print(f"{error}", flush=True)


def prepare(
    name: str, flags: argparse.Namespace, folder: str, problem: Problem, checks: list, workers: dict, result: dict
) -> None:
    """Starts an engine, checks its parameters, and warms it up."""
    engine: Engine = engines(flags.cores)[name]
    print(f"preparing {name}", flush=True)
    worker = Worker(name, python_of(engine, flags.environments), engine, folder, flags.environments / f"{name}.log")
    try:
        result["version"] = worker.receive(flags.start_limit)["version"]
        result["checks"] = [worker.check(ids, Path(folder), flags.start_limit) for ids in checks]
        warm_up = [worker.round(ids, flags.start_limit)["seconds"] for ids in problem.cohorts[: -flags.rounds]]
        result["first_round_seconds"] = warm_up[0]
    except EngineError:
        worker.close()
        raise
    workers[name] = worker


def run_round(worker: Worker, ids: list[int], limit: float, result: dict[str, Any]) -> None:
    """Runs and times one round."""
    answer = worker.round(ids, limit)
    result["seconds"].append(answer["seconds"])
    result["last_loss"] = answer["loss"]


# --- the report ---------------------------------------------------------------------------------


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


def processor() -> str:
    """Returns the name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="emnist_cnn")
    parser.add_argument("--clients", type=int, help="clients a round; the workload's own number if not given")
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds of each engine")
    parser.add_argument("--cores", type=int, default=num_cores, help="cores for each engine, %(default)s here")
    parser.add_argument("--engines", help="names with commas, all if not given", type=lambda names: names.split(","))
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--environments", type=Path, default=Path("runs/peers"), help="where peers are installed")
    parser.add_argument("--start-limit", type=float, default=300, help="seconds for a start, and for a first round")
    parser.add_argument("--round-limit", type=float, default=120, help="seconds for a round")
    flags = parser.parse_args(arguments)
    known = engines(flags.cores)
    flags.engines = flags.engines or list(known)
    unknown = [name for name in flags.engines if name not in known]
    if unknown:
        parser.error(f"engines need to be among {list(known)}; got {unknown}")
    return flags


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that it ends the workers when it is ended.
    parsed = parse_flags()
    start_alone(1)
    main(parsed)
