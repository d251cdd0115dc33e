"""What the workers of all engines share: the problem, and the conversation with the parent.

A worker is a script that any interpreter with NumPy can start. It answers one line of JSON with one
line of JSON; what its engine prints goes to the log.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Weights = dict[str, np.ndarray]


class Problem(NamedTuple):
    """The work that all engines do.

    Attributes:
      x: ``[N, ...]``, the examples of all clients one after another: float32 ``[N, height, width, channels]``, or what
        else the network takes, such as words, int32 ``[N, T]``.
      y: ``[N, ...]``: int32 ``[N]``, or what else it should give, see `summed_losses` of `flax_net`.
      offsets: Client ``k`` has the rows ``offsets[k]:offsets[k+1]``.
      weights: The initial parameters: ``w0, b0, w1, ...``, kernels as ``[height, width, in, out]``, dense layers as
        ``[in, out]``, with ``[height, width, channels]`` flattened in this order. Of a network with a name in Flax's
        layouts, and by their paths, such as ``blocks/0/conv1/kernel``.
      net: Either ``name``, one of `benchmarks.networks`, and one rate of ``dropout``; or a plain network: ``shape`` of
        an example, widths of ``convs`` and ``hidden``, two rates of ``dropout``, ``classes``.
      cohorts: The ids of every round's clients, the two warm-up rounds first.
      batch_size: Examples in a step; a client's last batch may be short.
      rate: The clients' learning rate.
      num_cores: How many cores each engine may use.
    """

    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray
    weights: Weights
    net: Mapping[str, Any]
    cohorts: list[list[int]]
    batch_size: int
    rate: float
    num_cores: int

    def client(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns a client's examples, ``[n, ...]``, and labels."""
        rows = slice(self.offsets[k], self.offsets[k + 1])
        return self.x[rows], self.y[rows]

    def size(self, k: int) -> int:
        """Returns a client's number of examples."""
        return int(self.offsets[k + 1] - self.offsets[k])

    @property
    def num_clients(self) -> int:
        """Number of clients in the pool."""
        return len(self.offsets) - 1


def save_problem(folder: Path, problem: Problem) -> None:
    """Writes a problem for the workers."""
    for name in ("x", "y", "offsets"):
        np.save(folder / f"{name}.npy", getattr(problem, name))
    np.savez(folder / "weights.npz", **problem.weights)  # pyright: ignore[reportArgumentType]
    about = {name: getattr(problem, name) for name in ("net", "cohorts", "batch_size", "rate", "num_cores")}
    (folder / "about.json").write_text(json.dumps(about))


def load_problem(folder: str | Path) -> Problem:
    """Reads a problem. The examples stay in the file, whose pages all workers share, until they are used."""
    folder = Path(folder)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("x", "y", "offsets")}
    weights = dict(np.load(folder / "weights.npz"))
    return Problem(**arrays, weights=weights, **json.loads((folder / "about.json").read_text()))


def without_dropout(net: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same network with its dropout rates 0."""
    return {**net, "dropout": [0.0 for _ in net["dropout"]]}


def num_layers(net: Mapping[str, Any]) -> int:
    """Returns the number of layers with parameters of a plain network."""
    return len(net["convs"]) + len(net["hidden"]) + 1


def conversation() -> Callable[..., None]:
    """Takes standard output for the answers, gives the engine's prints to the log, and returns what serves the parent.

    The function returned is called as ``serve(version=..., run_round=..., run_check=...)`` when the engine is ready.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Of this process and of those it starts.
    sys.stdout = sys.stderr

    def answer(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    def serve(
        *,
        version: str,
        run_round: Callable[[list[int]], float | None],
        run_check: Callable[[list[int]], Weights],
    ) -> None:
        """Answers until the parent hangs up, and ends then with all that the engine has started.

        Args:
          version: Of the engine, for the table.
          run_round: From the ids of a cohort to the mean loss of its steps, if known; returns when the new parameters
            are there.
          run_check: From the ids of a cohort to the parameters after one round from the initial ones, without dropout.
        """
        with contextlib.suppress(BrokenPipeError):
            answer(version=version)
            for line in sys.stdin:
                request = json.loads(line)
                started = time.perf_counter()
                if "path" in request:
                    np.savez(request["path"], **run_check(request["clients"]))  # pyright: ignore[reportArgumentType]
                    answer(checked=True)
                else:
                    loss = run_round(request["clients"])
                    answer(seconds=time.perf_counter() - started, loss=loss)
        if os.getpgrp() == os.getpid():  # As the parent starts it.
            os.killpg(0, signal.SIGKILL)

    return serve


class Gate:
    """Hands rounds to an engine that runs its own loop, in another thread."""

    def __init__(self):
        self._questions, self._answers = queue.SimpleQueue(), queue.SimpleQueue()

    def ask(self, question: Any) -> Any:
        """Hands over a question and waits for the engine's answer."""
        self._questions.put(question)
        return self._answers.get()

    def wait(self) -> Any:
        """Waits for the next question; called by the engine."""
        return self._questions.get()

    def answer(self, answer: Any) -> None:
        """Answers the question; called by the engine."""
        self._answers.put(answer)
