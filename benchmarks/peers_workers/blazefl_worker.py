"""BlazeFL: federated averaging on its pool of threads, or of processes, each of one of PyTorch's threads."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch._dynamo  # pyright: ignore - else each forked process imports it, for its first optimizer
import torch.multiprocessing as mp  # pyright: ignore[reportMissingImports]
import torch_net
from blazefl.contrib import FedAvgBaseServerHandler  # pyright: ignore[reportMissingImports]
from blazefl.core import (  # pyright: ignore[reportMissingImports]
    IPCMode,
    ProcessPoolClientTrainer,
    SHMHandle,
    ThreadPoolClientTrainer,
    deserialize_model,
    serialize_model,
)
from protocol import Problem, Weights, conversation, load_problem, without_dropout


@dataclass
class Downlink:
    """What the server sends."""

    parameters: torch.Tensor
    folder: str
    check: bool


@dataclass
class Uplink:
    """What a client sends; in a pool of processes the parameters travel in shared memory."""

    parameters: Any
    num_examples: int = 0
    loss: float = 0.0


@functools.cache
def held(folder: str) -> tuple[Problem, list[Any], dict]:
    """Returns the problem, models with and without dropout, and tensors; forked processes have them already."""
    problem = load_problem(folder)
    models = [torch_net.network(net).to(torch_net.device()) for net in (problem.net, without_dropout(problem.net))]
    return problem, models, torch_net.examples(problem, range(problem.num_clients), device=torch_net.device())


def trained(client: int, received: Downlink) -> Uplink:
    """Trains one client."""
    problem, models, data = held(received.folder)
    model, (x, y) = copy.deepcopy(models[received.check]), data[client]
    deserialize_model(model, received.parameters)
    loss = torch_net.train(model, x, y, batch_size=problem.batch_size, rate=problem.rate)
    return Uplink(serialize_model(model), len(y), float(loss))


class Threads(ThreadPoolClientTrainer):
    """Clients in threads of this process."""

    def __init__(self, num_parallels: int):
        self.num_parallels, self.device, self.cache, self.stop_event = num_parallels, "cpu", [], threading.Event()

    def worker(self, cid: int, device: str, payload: Downlink, stop_event: Any) -> Uplink:
        """Trains one client in a thread."""
        return trained(cid, payload)


class Processes(ProcessPoolClientTrainer):
    """Clients in processes, which BlazeFL starts for each round."""

    def __init__(self, num_parallels: int, parameters: torch.Tensor):
        self.num_parallels, self.device, self.cache, self.share_dir = num_parallels, "cpu", [], Path()
        self.ipc_mode, self.stop_event, self.like = IPCMode.SHARED_MEMORY, mp.Manager().Event(), parameters

    def prepare_uplink_package_buffer(self) -> Uplink:
        """Returns where a client puts its parameters."""
        return Uplink(torch.empty_like(self.like))

    def get_client_config(self, cid: int) -> int:
        """Returns all that a process has to know of a client."""
        return cid

    @staticmethod
    def worker(config: int, payload: Downlink, device: str, stop_event: Any, *, shm_buffer: Uplink) -> Uplink:
        """Trains one client in a process."""
        sent = trained(config, payload)
        shm_buffer.parameters.copy_(sent.parameters)
        return Uplink(SHMHandle(), sent.num_examples, sent.loss)


def main() -> None:
    serve = conversation()
    folder, mode, num_parallels = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    problem, models, _ = held(folder)
    torch_net.load_weights(models[0], problem)
    initial = server = serialize_model(models[0]).clone()
    pool = Threads(num_parallels) if mode == "threads" else Processes(num_parallels, initial)

    def train_cohort(parameters: torch.Tensor, ids: list[int], *, check: bool) -> tuple[torch.Tensor, float]:
        pool.local_process(Downlink(parameters, folder, check), ids)
        received, pool.cache = pool.cache, []
        sizes = [sent.num_examples for sent in received]
        mean = FedAvgBaseServerHandler.aggregate([sent.parameters for sent in received], sizes)
        return mean, sum(sent.loss for sent in received) / sum(sizes)

    def run_round(ids: list[int]) -> float:
        nonlocal server
        server, loss = train_cohort(server, ids, check=False)
        return loss

    def run_check(ids: list[int]) -> Weights:
        deserialize_model(models[1], train_cohort(initial, ids, check=True)[0])
        return torch_net.weights_of(models[1], problem)

    version = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("blazefl", "torch"))
    serve(version=f"{version}, {num_parallels} {mode}", run_round=run_round, run_check=run_check)


if __name__ == "__main__":
    main()
