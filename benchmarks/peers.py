"""The same federated training with fedjx and with other engines, side by side in one run.

Each engine is a worker process in an environment of its own, made at first use under `runs/peers`. All start from the
same weights and train the same clients on the same batches in the same order, in turns: round 1 of every engine, then
round 2 of every engine, and so on. Only one works at a time. An engine that cannot be installed, fails or takes too
long is shown with the reason.

    python -m benchmarks.peers --workload emnist_cnn --clients 10 --rounds 8
    python -m benchmarks.peers --workload networks --engines fedjx,torch_2x1,torch_1x2 --output runs/networks.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import start_alone
from benchmarks.networks import NETWORKS
from benchmarks.peers_engines import Engine, EngineError, Worker, engines, python_of
from benchmarks.peers_problem import WORKLOADS, problem_of
from benchmarks.peers_report import markdown, processor, summary, table
from benchmarks.peers_workers.protocol import Problem, save_problem

# --- the run ------------------------------------------------------------------------------------


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Compares the engines on one workload or several, and prints in the last line all figures as JSON."""
    reports, result = [], {}
    for name in flags.workload:
        reports.append(compare(name, flags))
        print(table(reports[-1]), flush=True)
        result = reports[0] if len(flags.workload) == 1 else {"workloads": reports}
        if flags.output:  # After each, so that a run that is ended keeps what it has.
            flags.output.parent.mkdir(parents=True, exist_ok=True)
            flags.output.write_text(json.dumps(result, indent=1) + "\n")
    if len(reports) > 1:
        print(f"\n{markdown(reports)}\n")
    print(json.dumps(result))
    return result


def compare(name: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Starts the engines and runs the rounds in turns."""
    workload = WORKLOADS[name]()
    num_clients = flags.clients or workload.cohort_size
    with tempfile.TemporaryDirectory() as folder:
        problem, checks = problem_of(workload, num_clients, flags.rounds, num_cores=flags.cores)
        save_problem(Path(folder), problem)
        results = {name: {"version": "", "seconds": [], "error": ""} for name in flags.engines}
        workers: dict[str, Worker] = {}
        try:
            for engine in flags.engines:
                attempt(results[engine], prepare, engine, flags, folder, problem, checks, workers, results[engine])
            for number, ids in enumerate(problem.cohorts[-flags.rounds :], 1):
                for engine, worker in list(workers.items()):
                    attempt(results[engine], run_round, worker, ids, flags.round_limit, results[engine])
                    if results[engine]["error"]:
                        workers.pop(engine).close()
                print(f"round {number} of {flags.rounds}", flush=True)
        finally:
            for worker in workers.values():
                worker.close()
    num_examples = [sum(map(problem.size, ids)) for ids in problem.cohorts[-flags.rounds :]]
    return {
        "workload": name,
        "clients": num_clients,
        "cores": flags.cores,
        "processor": processor(),
        "parameters": sum(weight.size for weight in problem.weights.values()),
        "examples": num_examples,
        "engines": summary(results, num_examples, problem.weights),
    }


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
    """Starts an engine, checks its parameters, and warms it up; its very first round is the first check."""
    engine: Engine = engines(flags.cores)[name]
    print(f"preparing {name}", flush=True)
    worker = Worker(name, python_of(engine, flags.environments), engine, folder, flags.environments / f"{name}.log")
    try:
        result["version"] = worker.receive(flags.start_limit)["version"]
        result["checks"] = []
        for ids in checks:
            started = time.perf_counter()
            result["checks"].append(worker.check(ids, Path(folder), flags.start_limit))
            result.setdefault("first_round_seconds", time.perf_counter() - started)
        for ids in problem.cohorts[: -flags.rounds]:
            worker.round(ids, flags.start_limit)
    except BaseException:  # Also where this process is told to end.
        worker.close()
        raise
    workers[name] = worker


def run_round(worker: Worker, ids: list[int], limit: float, result: dict[str, Any]) -> None:
    """Runs and times one round."""
    answer = worker.round(ids, limit)
    result["seconds"].append(answer["seconds"])
    result["last_loss"] = answer["loss"]


# --- command line -------------------------------------------------------------------------------


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workload",
        choices=[*WORKLOADS, "networks"],
        nargs="+",
        default=["emnist_cnn"],
        help="one or several, which end with a table of all; networks are those of benchmarks.networks",
    )
    parser.add_argument("--clients", type=int, help="clients a round; the workload's own number if not given")
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds of each engine")
    parser.add_argument("--cores", type=int, default=num_cores, help="cores for each engine, %(default)s here")
    parser.add_argument("--engines", help="names with commas, all if not given", type=lambda names: names.split(","))
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--environments", type=Path, default=Path("runs/peers"), help="where peers are installed")
    parser.add_argument("--start-limit", type=float, default=300, help="seconds for a start, and for a first round")
    parser.add_argument("--round-limit", type=float, default=120, help="seconds for a round")
    flags = parser.parse_args(arguments)
    flags.workload = [name for given in flags.workload for name in (NETWORKS if given == "networks" else [given])]
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
