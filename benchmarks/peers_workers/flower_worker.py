"""Flower's simulation engine: FedAvg on Ray actors of one thread, as many as there are cores."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import threading
import time
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch_net
from flower_client import client_app
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict  # pyright: ignore[reportMissingImports]
from flwr.serverapp import ServerApp  # pyright: ignore[reportMissingImports]
from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]
from flwr.simulation import run_simulation  # pyright: ignore[reportMissingImports]
from protocol import Gate, Problem, conversation, load_problem


class Turns(FedAvg):
    """Flower's FedAvg, except that the parent says when a round begins, and with whom."""

    def __init__(self, problem: Problem, gate: Gate):
        super().__init__(fraction_evaluate=0.0)
        self.gate, self.problem, self.is_check = gate, problem, False
        self.model = torch_net.network(problem.net)
        torch_net.load_weights(self.model, problem)
        self.initial = self.arrays = ArrayRecord(self.model.state_dict())

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> list[Message]:
        """Sends each client of the cohort to a node."""
        ids, self.is_check = self.gate.wait()
        arrays = self.initial if self.is_check else self.arrays
        return [
            Message(
                RecordDict({"arrays": arrays, "config": ConfigRecord({"client": k, "check": int(self.is_check)})}),
                dst_node_id=node,
                message_type="train",
            )
            for k, node in zip(ids, grid.get_node_ids(), strict=False)
        ]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Averages, and answers the parent."""
        replies = list(replies)
        failures = [reply.error.reason for reply in replies if reply.has_error()]
        if failures:  # Flower would go on without them.
            raise RuntimeError(failures[0])
        arrays, metrics = super().aggregate_train(server_round, replies)
        weights = None
        if self.is_check:
            self.model.load_state_dict(arrays.to_torch_state_dict())
            weights = torch_net.weights_of(self.model, self.problem)
        else:
            self.arrays = arrays
        self.gate.answer((metrics["loss"], weights))
        return arrays, metrics


def serve_parent(serve: Any, gate: Gate) -> None:
    """Answers the parent, in a thread of its own, since Flower runs its own loop."""
    version = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("flwr", "ray", "torch"))
    serve(
        version=version,
        run_round=lambda ids: gate.ask((ids, False))[0],
        run_check=lambda ids: gate.ask((ids, True))[1],
    )


def main() -> None:
    serve = conversation()
    folder = sys.argv[1]
    problem, gate, server = load_problem(folder), Gate(), ServerApp()
    num_nodes = max(map(len, problem.cohorts))
    logging.getLogger("flwr").setLevel(logging.WARNING)

    @server.main()
    def run(grid: Any, _: Any) -> None:
        strategy = Turns(problem, gate)
        while len(list(grid.get_node_ids())) < num_nodes:
            time.sleep(0.1)
        threading.Thread(target=serve_parent, args=(serve, gate), daemon=True).start()
        strategy.start(grid, strategy.initial, num_rounds=10**9)

    num_gpus = 1 / problem.num_cores if torch.cuda.is_available() else 0.0
    run_simulation(
        server,
        client_app(folder),
        num_supernodes=num_nodes,
        backend_config={
            "init_args": {"num_cpus": problem.num_cores, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": num_gpus},
        },
    )


if __name__ == "__main__":
    main()
