"""The benchmarks as several processes: they find what one process finds, one of them prints and writes, all end."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import compression, measuring
from fedjx.core.execution import distributed
from tests.benchmarks import processes_worker
from tests.benchmarks.processes_worker import RUNS
from tests.core.execution.test_hosts import free_port, together

ROOT = Path(__file__).resolve().parents[2]
# Every process computes all of it by itself, for half a minute: not run here.
BY_ITSELF = {"privacy", "privacy_tutorial", "robustness"}
OF_REPORTS = {"fetch_data", "privacy_report"}  # fetches files; draws what others have measured
ALONE = {
    "adaptive", "aggregation_memory", "analytics_scale", "client_states", "data_scale", "experiment_cost",
    "input_pipeline", "mcmahan", "peers", "scaling",
}  # fmt: skip
# What depends on the data and the seeds alone; all else is a time, a size in memory or a date.
NUMBERS = {
    "aggregation_cost": ("loss",),
    "algorithms": ("accuracies", "client_rate"),
    "compression": ("accuracy", "bits_up_per_round"),
    "limit": ("flops_per_example", "loss", "lanes", "real_steps"),
    "quickstart": ("test_accuracy", "centralised_accuracy", "rounds"),
    "tasks": ("final", "mean_of_last_100_rounds", "rounds", "num_tests"),
    "round_time": ("loss", "lanes", "real_steps", "examples_per_round", "num_devices"),
}


def numbers(report: Any, names: tuple[str, ...]) -> list[Any]:
    """Lists the values of some names, wherever they are in a report, in their order."""
    if isinstance(report, list):
        return [x for part in report for x in numbers(part, names)]
    if not isinstance(report, dict):
        return []
    return [x for name, part in report.items() for x in ([part] if name in names else numbers(part, names))]


def environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUM_PROCESSES", "2")
    monkeypatch.setenv("COORDINATOR", f"127.0.0.1:{free_port()}")


@contextlib.contextmanager
def started(commands: list[list[str]], logs: list[Path]) -> Iterator[list[subprocess.Popen]]:
    """Starts commands, which may fail, and leaves none of them behind."""
    processes = []
    try:
        for line, log in zip(commands, logs, strict=True):
            with log.open("wb") as output:
                processes.append(subprocess.Popen(line, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def command(rank: int, *what: str) -> list[str]:
    return ["env", f"PROCESS_ID={rank}", sys.executable, "-m", *what]


def test_every_script_is_run_by_several_processes_or_refuses_to():
    scripts = {path.stem: path.read_text() for path in (ROOT / "benchmarks").glob("*.py")}
    scripts |= {path.parent.name: path.read_text() for path in (ROOT / "benchmarks").glob("*/__main__.py")}
    scripts = {name: text for name, text in scripts.items() if "__main__" in text}
    assert RUNS.keys() == NUMBERS.keys()
    assert scripts.keys() == ALONE | BY_ITSELF | OF_REPORTS | RUNS.keys()
    for name in scripts.keys() - OF_REPORTS:
        text = scripts[name]
        begins = text[text.index('if __name__ == "__main__"') :]
        assert bool(re.search(r"\bstart_alone\(", begins)) == (name in ALONE)
        assert bool(re.search(r"\b(start|initialize_distributed)\(", begins)) == (name not in ALONE)


def test_two_processes_report_what_one_does(tmp_path, monkeypatch):
    environments(monkeypatch)
    commands = [command(rank, "tests.benchmarks.processes_worker", str(tmp_path / "two")) for rank in (0, 1)]
    with together(commands, tmp_path, timeout=280):
        monkeypatch.delenv("NUM_PROCESSES")
        monkeypatch.setattr(compression, "network", compression.network)  # so that it comes back after the test
        processes_worker.make_small()
        alone = {name: processes_worker.report(name, tmp_path / "one", 4) for name in RUNS}
    first, other = ((tmp_path / f"log{rank}").read_text().splitlines() for rank in (0, 1))
    reports = [json.loads(line) for line in first if line.startswith("{")]
    assert len(reports) == len(RUNS)
    for name, several in zip(RUNS, reports, strict=True):
        found, expected = (numbers(report, NUMBERS[name]) for report in (several, alone[name]))
        assert len(found) >= len(NUMBERS[name])
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3, err_msg=name)
        if name not in processes_worker.DIRECTORIES:
            assert (several["num_processes"], alone[name]["num_processes"]) == (2, 1)
            assert json.loads((tmp_path / "two" / f"{name}.json").read_text()) == several
    # Gloo writes of its ranks, in several threads, whose lines may be cut.
    assert [line for line in other if "[Gloo]" not in line and "peer ranks" not in line] == []
    assert len(list((tmp_path / "two" / "quickstart").glob("events.out.tfevents.*"))) == 1


def test_what_starts_processes_of_its_own_is_started_once(tmp_path, monkeypatch):
    environments(monkeypatch)
    logs = [tmp_path / f"log{rank}" for rank in (0, 1)]
    with started([command(rank, "benchmarks.scaling", "--devices", "1") for rank in (0, 1)], logs) as processes:
        assert [process.wait(120) for process in processes] == [1, 1]
    said = "".join(log.read_text() for log in logs)
    assert said.count("starts processes of its own, one after the other, and must be started once; got 2 proc") == 1


WAITING = """
import os, signal, sys, jax, fedjx
from jax.experimental import multihost_utils
jax.config.update("jax_num_cpu_devices", 1)
assert fedjx.initialize_distributed()
multihost_utils.sync_global_devices("together")
if jax.process_index() == int(sys.argv[1]):
    if sys.argv[2] == "raises":
        raise ValueError("my own fault")
    os.kill(os.getpid(), signal.SIGKILL)
multihost_utils.sync_global_devices("never")
"""


@pytest.mark.parametrize("how", ["is killed", "raises"])
def test_when_one_process_ends_the_other_ends_and_says_why(how, tmp_path, monkeypatch):
    environments(monkeypatch)
    logs = [tmp_path / f"log{rank}" for rank in (0, 1)]
    lines = [["env", f"PROCESS_ID={rank}", sys.executable, "-c", WAITING, "1", how] for rank in (0, 1)]
    with started(lines, logs) as (waits, ends):
        ended, then = ends.wait(120), time.monotonic()
        assert waits.wait(60) != 0
        assert time.monotonic() - then < 20
    first, other = (log.read_text() for log in logs)
    assert "another process has ended or cannot be reached" in first or "another task died" in first
    if how == "raises":
        assert ended == 1
        assert "ValueError: my own fault" in other
        assert "fedjx: process 1 of 2 ends by the error above" in other
    else:
        assert ended == -signal.SIGKILL


@pytest.mark.parametrize(
    "environment",
    [
        {"NUM_PROCESSES": "2"},
        {"NUM_PROCESSES": "2", "COORDINATOR": "localhost:1", "PROCESS_ID": "2"},
        {"NUM_PROCESSES": "two", "COORDINATOR": "localhost:1", "PROCESS_ID": "0"},
    ],
)
def test_variables_that_are_no_process_of_several(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"a process of several needs COORDINATOR .* Set all three, or none\."):
        measuring.fedjx.initialize_distributed()


@pytest.mark.parametrize("launcher", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "libtpu"])
def test_processes_of_a_launcher_are_found_by_jax(launcher, monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: asked.append((args, options)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: asked if name == launcher else None)
    for name in ("NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for number, times in (("1", 0), ("2", 1)):
        if launcher != "libtpu":
            monkeypatch.setenv(launcher, number)
        measuring.fedjx.initialize_distributed()
        assert len(asked) == times or launcher == "libtpu"
    assert asked[-1] == ((), {"local_device_ids": None, "heartbeat_timeout_seconds": 12})

    def finds_none(**options):
        raise ValueError("no cluster")

    monkeypatch.setattr(jax.distributed, "initialize", finds_none)
    if launcher != "OMPI_COMM_WORLD_SIZE":
        assert measuring.fedjx.initialize_distributed() is False
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # as Open MPI 5, whose coordinator JAX does not find
    with pytest.raises(ValueError, match=r"mpirun has started together need a coordinator; .*no cluster Set COORD"):
        measuring.fedjx.initialize_distributed()


SAYS = """
import sys, jax, fedjx
jax.config.update("jax_num_cpu_devices", 1)
try:
    assert fedjx.initialize_distributed()
except ValueError as error:
    sys.exit(str(error))
print(jax.process_count(), jax.process_index(), jax.config.read("jax_cuda_visible_devices"))
"""
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
MPI_5 = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_VERSION": "5.0.3"}
MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")


@pytest.mark.parametrize(
    ("launcher", "numbers", "devices"),
    [
        ({**SLURM, "SLURM_LOCALID": "0"}, ["SLURM_PROCID"], ["all", "all"]),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "1"}, ["SLURM_PROCID", "SLURM_LOCALID"], ["0", "1"]),
        ({**MPI_5, "NUM_PROCESSES": "2"}, [*MPI_RANKS, "PROCESS_ID"], ["all", "all"]),
        (MPI_5, MPI_RANKS, None),
    ],
    ids=["slurm, two nodes", "slurm, one node", "mpirun with three variables", "mpirun alone"],
)
def test_launchers_as_they_are(launcher, numbers, devices, tmp_path, monkeypatch):
    """With the variables that they set, and JAX as it is: who has which GPUs, or what is to be done."""
    port = str(free_port())
    told = {"COORDINATOR": f"127.0.0.1:{port}"} if "NUM_PROCESSES" in launcher else {"JAX_COORDINATOR_PORT": port}
    for name, value in (launcher | told).items():
        monkeypatch.setenv(name, value)
    lines = [["env", *(f"{name}={rank}" for name in numbers), sys.executable, "-c", SAYS] for rank in (0, 1)]
    logs = [tmp_path / f"log{rank}" for rank in (0, 1)]
    with started(lines, logs) as processes:
        codes = [process.wait(120) for process in processes]
    said = [log.read_text().splitlines() for log in logs]
    if devices is None:
        assert codes == [1, 1]
        assert all("mpirun has started together need a coordinator" in text[-1] for text in said)
    else:
        for rank, text in enumerate(said):
            assert f"2 {rank} {devices[rank]}" in text


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "4"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "1", "SLURM_NNODES": "4"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "1", "SLURM_GPUS_PER_TASK": "2"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_NODES": "4", "JAX_LOCAL_DEVICE_IDS": "2,3"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, False),
        ({}, False),
    ],
)
def test_who_has_all_devices_that_it_sees(environment, expected):
    assert distributed._has_all_that_it_sees(environment) is expected


def test_a_process_alone_stays_alone(monkeypatch):
    hook = sys.excepthook
    for environment in ({}, {"NUM_PROCESSES": "1", "COORDINATOR": "localhost:1", "PROCESS_ID": "0"}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert measuring.fedjx.initialize_distributed() is False
    assert sys.excepthook is hook
    assert os.environ["NUM_PROCESSES"] == "1"
