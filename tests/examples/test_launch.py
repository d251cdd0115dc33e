"""The launch scripts: each starts the command that it is given, once for each process, and says who is who."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.execution.test_hosts import free_port

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "examples" / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir())
SAY = ["sh", "-c", 'echo "$NUM_PROCESSES $PROCESS_ID $COORDINATOR $1"', "sh", "two words"]

# What stands for programs that are not here: each does what it is told to on this machine.
STAND_INS = {
    "ssh": '[ "$1" = -tt ] || exit; echo "ssh $2" >&2; cd /; exec bash -c "$3"',
    "srun": 'echo "$1 $2" >&2; shift 2; for R in 0 1; do SLURM_PROCID=$R "$@"; done',
    "mpirun": 'shift 2; for R in 0 1; do OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=$R "$@"; done',
    "gcloud": 'echo "$1 $2 $3 $4 $5 $6 $7" >&2; exec sh -c "${8#--command=}"',
}


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a script with `STAND_INS` on the path, and without what would tell it of other processes."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("NUM_PROCESSES", "PROCESS_ID", "COORDINATOR", "PORT", "CUDA_VISIBLE_DEVICES", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def run(script: str, *arguments: str, timeout: float = 20) -> subprocess.CompletedProcess[str]:
        command = [str(LAUNCH / script), *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)

    return run


def said(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 0, result.stderr
    return sorted(result.stdout.splitlines())


def test_scripts_are_bash_and_the_page_names_each_of_them():
    page = (ROOT / "docs" / "pods.md").read_text(encoding="utf-8")
    for script in SCRIPTS:
        assert os.access(LAUNCH / script, os.X_OK)
        assert f"examples/launch/{script}" in page
        subprocess.run(["bash", "-n", LAUNCH / script], check=True)
        text = (LAUNCH / script).read_text(encoding="utf-8")
        assert re.search(rf"^#   (?:sbatch )?examples/launch/{script} .*python -m", text, re.MULTILINE), script


def test_one_process_has_all_cores_unless_told_otherwise(launch, monkeypatch):
    show = ["sh", "-c", "echo $JAX_NUM_CPU_DEVICES"]
    assert int(said(launch("one_process.sh", *show))[0]) >= 1
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    assert said(launch("one_process.sh", *show)) == ["3"]


def test_one_process_has_the_gpus_that_are_named(launch):
    assert said(launch("several_gpus.sh", "0,2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")) == ["0,2"]


def test_several_processes_are_told_who_they_are(launch):
    expected = [f"3 {rank} 127.0.0.1:9876 two words" for rank in range(3)]
    assert said(launch("several_processes.sh", "3", *SAY)) == expected


def test_several_processes_end_with_the_error_of_any(launch):
    for rank in (0, 1):
        assert launch("several_processes.sh", "2", "sh", "-c", f"exit $((7 * ($PROCESS_ID == {rank})))").returncode == 7


WAITS = """
import os, signal, sys, time
def end(number, frame):
    time.sleep(0.3)
    os.write(1, b"a checkpoint\\n")
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
os.write(1, b"here\\n")
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("script", ["several_processes.sh 2", "over_ssh.sh a\\ b"])
def test_a_wish_to_end_is_that_of_all_processes(script, number, launch):
    command = ["bash", "-c", f'exec {LAUNCH}/{script} "$@"', "bash", sys.executable, "-c", WAITS]
    # What the tests are started by may ignore it, and so would bash.
    heard = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    with process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["here\n"] * 2
        process.send_signal(number)
        rest = process.stdout.read()  # until nobody holds it any more
        if script.startswith("several"):
            assert (rest, process.wait(20)) == ("a checkpoint\n" * 2, 3)
        assert process.wait(20) != 0


def test_processes_over_ssh_are_told_who_they_are(launch):
    result = launch("over_ssh.sh", "first second", *SAY)
    assert said(result) == ["2 0 first:9876 two words", "2 1 first:9876 two words"]
    assert sorted(result.stderr.splitlines()) == ["ssh first", "ssh second"]
    assert said(launch("over_ssh.sh", "first", "pwd")) == [str(ROOT)]
    assert launch("over_ssh.sh", "first second", "sh", "-c", "exit $((5 * $PROCESS_ID))").returncode == 5


def test_processes_of_mpi_are_told_who_they_are(launch):
    first, second = (line.split() for line in said(launch("mpirun.sh", "-n", "2", "--", *SAY)))
    assert [first[:2], second[:2]] == [["2", "0"], ["2", "1"]]
    assert first[2:] == second[2:]
    assert first[2].endswith(":9876")
    assert first[3:] == ["two", "words"]
    wrong = launch("mpirun.sh", "-n", "2", "python")
    assert (wrong.returncode, wrong.stderr.startswith("mpirun.sh needs -- between")) == (2, True)


def test_slurm_and_a_tpu_pod_are_given_the_command(launch, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    result = launch("slurm.sbatch", "sh", "-c", 'echo "$SLURM_PROCID $1"', "sh", "two words")
    assert said(result) == ["0 two words", "1 two words"]
    assert result.stderr == "--kill-on-bad-exit=0 --cpus-per-task=16\n"
    result = launch("tpu_pod.sh", "a pod", "a zone", "/", *SAY)
    assert said(result) == ["   two words"]
    assert result.stderr == "compute tpus tpu-vm ssh a pod --zone=a zone --worker=all\n"


def test_two_processes_train(launch, monkeypatch, tmp_path):
    """Two rounds of the quickstart, by two processes of one device each."""
    monkeypatch.setenv("COORDINATOR", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    flags = [
        "--model",
        "mlp",
        "--num-clients",
        "8",
        "--clients-per-round",
        "4",
        "--num-rounds",
        "2",
        "--eval-every",
        "2",
    ]
    quickstart = [sys.executable, "-m", "benchmarks.quickstart", *flags, "--output", str(tmp_path / "run")]
    flags = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    monkeypatch.setenv("XLA_FLAGS", flags)
    result = launch("several_processes.sh", "2", *quickstart, timeout=200)
    reports = [json.loads(line) for line in said(result) if line.startswith("{")]
    assert [(report["rounds"], report["num_clients"]) for report in reports] == [(2, 8)]  # the first one's alone
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["00000002"]
