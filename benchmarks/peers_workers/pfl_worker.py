"""pfl-research: its federated averaging on its simulated back end, in one process or in several that all-reduce.

Several processes share the users as pfl does it: by greedy balancing of their numbers of examples.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import numpy as np
from protocol import Gate, Problem, Weights, conversation, load_problem, without_dropout


def start_helpers(num_processes: int) -> list[subprocess.Popen]:
    """Starts the other processes, as torchrun does, and makes this one the first; each gets a pipe to wait on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"TORCHELASTIC_RUN_ID": "peers", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    helpers = []
    for rank in range(1, num_processes):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        helpers.append(subprocess.Popen([sys.executable, *sys.argv], env=environment, **pipes))
    if helpers:
        os.environ.update(shared, RANK="0", LOCAL_RANK="0")
    return helpers


class Turns:
    """Where each process waits for its turn: the first for the parent, and the others for the first."""

    def __init__(self, helpers: list[subprocess.Popen] | None):
        self.gate, self.helpers, self.first = Gate(), helpers or [], helpers is not None
        if not self.first:
            self._answers = os.fdopen(os.dup(1), "w", buffering=1)
            os.dup2(2, 1)

    def wait(self) -> list[list[int]]:
        """Waits for the next round; returns the cohorts that it begins or goes on with."""
        if not self.first:
            return json.loads(sys.stdin.readline() or sys.exit())
        cohorts = self.gate.wait()
        for helper in self.helpers:
            print(json.dumps(cohorts), file=helper.stdin, flush=True)
        return cohorts

    def done(self, loss_sum: float, weights: Weights | None) -> None:
        """Tells that the round is done, with the sum of the losses of this process's users."""
        if not self.first:
            print(loss_sum, file=self._answers)
            return
        # The first is done when all are: a round ends with the all-reduce.
        others = [float(helper.stdout.readline()) for helper in self.helpers if helper.stdout]
        self.gate.answer((loss_sum + sum(others), weights))


def serve_parent(serve: Any, problem: Problem, turns: Turns) -> None:
    """Answers the parent, in a thread of its own, since pfl runs its own loop."""

    def run_round(ids: list[int]) -> float:
        loss_sum, _ = turns.gate.ask(problem.cohorts)
        return loss_sum / sum(map(problem.size, ids))

    def run_check(ids: list[int]) -> Weights:
        return turns.gate.ask([ids])[1]

    version = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("pfl", "torch"))
    serve(version=version, run_round=run_round, run_check=run_check)


def main() -> None:
    folder, num_processes, num_threads = sys.argv[1], *map(int, sys.argv[2].split("x"))
    is_first = "RANK" not in os.environ
    serve = conversation() if is_first else None
    problem, turns = load_problem(folder), Turns(start_helpers(num_processes) if is_first else None)

    import torch  # pyright: ignore[reportMissingImports]
    from pfl_training import federated_averaging

    torch.set_num_threads(num_threads)
    np.random.seed(0)  # noqa: NPY002, pfl seeds itself from NumPy's global generator
    if serve is not None:
        threading.Thread(target=serve_parent, args=(serve, problem, turns), daemon=True).start()
    while True:
        cohorts = turns.wait()
        net = problem.net if cohorts == problem.cohorts else without_dropout(problem.net)
        federated_averaging(problem, net, cohorts, turns)


if __name__ == "__main__":
    main()
