"""A loop in PyTorch by hand, in one process with several threads or in several processes with one thread each."""

from __future__ import annotations

import sys
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.multiprocessing as mp  # pyright: ignore[reportMissingImports]
from protocol import Problem, Weights, conversation, load_problem, without_dropout
from torch.nn.utils import parameters_to_vector  # pyright: ignore[reportMissingImports]
from torch_net import device, examples, load_weights, network, set_parameters, train, weights_of


class Trainer:
    """One process's models and data."""

    def __init__(self, problem: Problem, num_threads: int):
        torch.set_num_threads(num_threads)
        self.problem, self.device = problem, device()
        nets = (problem.net, without_dropout(problem.net))
        self.models = [network(net).to(self.device) for net in nets]
        self.data = examples(problem, range(problem.num_clients), device=self.device)

    def train(self, server: torch.Tensor, ids: list[int], *, check: bool) -> tuple[torch.Tensor, float]:
        """Trains clients from the server's parameters; returns weighted sums of the parameters and losses."""
        model, sums, losses = self.models[check], torch.zeros_like(server), []
        for k in ids:
            set_parameters(model, server)
            x, y = self.data[k]
            losses.append(train(model, x, y, batch_size=self.problem.batch_size, rate=self.problem.rate))
            sums.add_(parameters_to_vector(model.parameters()).detach(), alpha=len(y))
        return sums, float(sum(losses, torch.zeros((), device=self.device)))


def helper(folder: str, num_threads: int, pipe: Any, server: torch.Tensor, sums: torch.Tensor) -> None:
    """Runs in another process: trains its share whenever it is told to, until the pipe is closed."""
    trainer = Trainer(load_problem(folder), num_threads)
    pipe.send("ready")
    while True:
        ids, check = pipe.recv()
        trained, loss = trainer.train(server.to(trainer.device), ids, check=check)
        sums.copy_(trained)
        pipe.send(loss)


def shares(ids: list[int], problem: Problem, num_processes: int) -> list[list[int]]:
    """Divides a cohort, each client going to whom has least to do, longest first."""
    parts: list[list[int]] = [[] for _ in range(num_processes)]
    work = [0] * num_processes
    for k in sorted(ids, key=problem.size, reverse=True):
        least = work.index(min(work))
        parts[least].append(k)
        work[least] += problem.size(k)
    return parts


def main() -> None:
    serve = conversation()
    folder, num_processes, num_threads = sys.argv[1], *map(int, sys.argv[2].split("x"))
    problem = load_problem(folder)
    trainer = Trainer(problem, num_threads)
    load_weights(trainer.models[0], problem)
    initial = parameters_to_vector(trainer.models[0].parameters()).detach().clone()
    server, helpers = initial.cpu().clone().share_memory_(), []
    for _ in range(num_processes - 1):
        ours, theirs = mp.Pipe()
        sums = torch.zeros_like(server).share_memory_()
        mp.get_context("spawn").Process(
            target=helper, args=(folder, num_threads, theirs, server, sums), daemon=True
        ).start()
        ours.recv()
        helpers.append((ours, sums))

    def train_cohort(ids: list[int], *, check: bool) -> float:
        mine, *others = shares(ids, problem, num_processes)
        for (pipe, _), share in zip(helpers, others, strict=True):
            pipe.send((share, check))
        total, loss = trainer.train(server.to(trainer.device), mine, check=check)
        for pipe, sums in helpers:
            loss += pipe.recv()
            total += sums.to(total.device)
        num_examples = sum(map(problem.size, ids))
        server.copy_(total / num_examples)
        return loss / num_examples

    def run_check(ids: list[int]) -> Weights:
        before = server.clone()
        server.copy_(initial)
        train_cohort(ids, check=True)
        set_parameters(trainer.models[1], server)
        server.copy_(before)
        return weights_of(trainer.models[1], problem)

    serve(
        version=f"torch {torch.__version__}, {trainer.device}",
        run_round=lambda ids: train_cohort(ids, check=False),
        run_check=run_check,
    )


if __name__ == "__main__":
    main()
