"""The engines that `benchmarks.peers` compares: their environments, and their worker processes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers_workers.protocol import Weights

WORKERS = Path(__file__).parent / "peers_workers"


class Engine(NamedTuple):
    """How an engine is installed and started.

    Attributes:
      script: The worker, in `peers_workers`.
      environment: Its environment's name; empty for that of this process.
      requirements: For pip, in steps: the CPU build of PyTorch goes first, so that nothing else decides on it.
      arguments: Of the worker, after the folder of the problem.
      python: The interpreter to make the environment with; that of this process if not given.
    """

    script: str
    environment: str = ""
    requirements: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    python: str = sys.executable


class EngineError(Exception):
    """What kept an engine from its work."""


def engines(num_cores: int) -> dict[str, Engine]:
    """Returns all engines; ``2x1`` is two processes with one thread each."""
    torch = ("torch==2.13.0", "numpy==2.4.6")
    fedjax = "fedjax==0.0.17 jax==0.5.3 jaxlib==0.5.3 dm-haiku==0.0.17 flax==0.10.6 optax==0.2.8 numpy==2.4.6"
    processes, threads = f"{num_cores}x1", f"1x{num_cores}"
    shapes = dict.fromkeys([processes, threads])
    return {
        "fedjx": Engine("fedjx_worker.py"),
        "fedjax": Engine("fedjax_worker.py", "fedjax", (fedjax,)),
        **{f"pfl_{n}": Engine("pfl_worker.py", "pfl", (*torch, "pfl[pytorch]==0.6.0"), (n,)) for n in shapes},
        # 3.0 needs Python 3.14.
        **{
            f"blazefl_{mode}": Engine(
                "blazefl_worker.py",
                "blazefl",
                (*torch, "blazefl[contrib,reproducibility]==2.0.3"),
                (mode, str(num_cores)),
                "python3.13",
            )
            for mode in ("threads", "processes")
        },
        "flower": Engine("flower_worker.py", "flower", (*torch, "flwr[simulation]==1.41.0")),
        "drjax": Engine("drjax_worker.py", "drjax", ("drjax==0.2.1 jax==0.10.2 jaxlib==0.10.2",)),
        **{f"torch_{n}": Engine("torch_worker.py", "torch", torch, (n,)) for n in shapes},
        "jax": Engine("jax_worker.py"),
    }


def python_of(engine: Engine, environments: Path) -> Path:
    """Returns the interpreter of an engine, whose environment it makes where it is missing or outdated.

    Raises:
      EngineError: If the engine cannot be installed.
    """
    environments.mkdir(parents=True, exist_ok=True)
    if not engine.environment:
        return Path(sys.executable)
    folder = environments / engine.environment
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(engine.requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    if shutil.which(engine.python) is None:
        raise EngineError(f"it needs {engine.python}, which is not on the path; install it, or leave the engine out")
    print(f"installing {engine.environment} in {folder}", flush=True)
    _run(engine.python, "-m", "venv", "--clear", str(folder))
    for step in engine.requirements:
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step.split())
    stamp.write_text(wanted)
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"the installation failed: {_last_words(done.stderr)}")


class Worker:
    """The process of one engine. What it prints, and it alone, is in the log."""

    def __init__(self, name: str, python: Path, engine: Engine, folder: str, log: Path):
        self.name, self._log, self._lines, self._doing = name, log, queue.SimpleQueue(), "its start"
        # Each engine chooses its own threads; JAX processes side by side must leave each other an accelerator's memory.
        dropped = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "XLA_FLAGS", "PYTHONPATH")
        environment = {k: v for k, v in os.environ.items() if k not in dropped}
        paths = os.pathsep.join([str(WORKERS), str(WORKERS.parent.parent)])
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": paths}
        environment |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [str(python.absolute()), str(WORKERS / engine.script), folder, *engine.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def receive(self, limit: float) -> dict[str, Any]:
        """Waits for an answer.

        Raises:
          EngineError: If the worker ends, or takes longer than `limit` seconds.
        """
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise EngineError(f"{self.name}: {self._doing} took more than {limit:g} seconds") from None
        if not line:
            raise EngineError(
                f"{self.name}: {self._doing} failed: {_last_words(self._log.read_text())} (see {self._log})"
            )
        return json.loads(line)

    def _ask(self, doing: str, limit: float, **question: Any) -> dict[str, Any]:
        assert self._process.stdin
        self._doing = doing
        with contextlib.suppress(BrokenPipeError):  # Its last words are in the log.
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self.receive(limit)

    def round(self, ids: list[int], limit: float) -> dict[str, Any]:
        """Runs a round with a cohort; returns its seconds and, where the engine tells, the loss."""
        return self._ask("a round", limit, clients=ids)

    def check(self, ids: list[int], folder: Path, limit: float) -> Weights:
        """Runs a round from the initial weights without dropout; returns the parameters."""
        path = folder / "check.npz"
        self._ask("the check of the parameters", limit, clients=ids, path=str(path))
        with np.load(path) as weights:
            return dict(weights)

    def close(self) -> None:
        """Ends the worker and all that it has started."""
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, signal_number)
                self._process.wait(timeout=10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()


def _last_words(text: str) -> str:
    """Returns the last error in a log, else its last line."""
    errors = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", text, flags=re.MULTILINE)
    return (errors or text.strip().splitlines() or ["without a word"])[-1][:300]
