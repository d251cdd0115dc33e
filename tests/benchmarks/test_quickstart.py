"""The quickstart: what it prints and writes, and that an interrupted run loses nothing."""

from __future__ import annotations

import functools
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest
from tensorboardX.proto.event_pb2 import Event

from benchmarks import quickstart
from fedjx.algorithms import fed_avg
from fedjx.data import uniform_sampler
from fedjx.experiment import RunError, last_checkpoint, open_run, read_rows
from fedjx.experiment.run_directory import checkpoints
from fedjx.models import mlp

SMALL = ["--model", "mlp", "--num-clients", "8", "--clients-per-round", "4", "--num-epochs", "1", "--eval-every", "2"]
SERVER = optax.sgd(1.0, momentum=0.9)
KEYS = {
    "test_accuracy", "centralised_accuracy", "rounds", "num_clients", "train_seconds", "examples_per_second",
}  # fmt: skip


def run(output: Any, *more: str) -> dict[str, Any]:
    return quickstart.main(quickstart.parse_flags([*SMALL, "--output", str(output), *more]))


def last_state(output: Any, copy: Any) -> list[bytes]:
    """Reads the newest checkpoint of a run, out of a copy of its directory."""
    shutil.copytree(output, copy)
    state = fed_avg(mlp(10, input_shape=(8, 8, 1)), client_optimizer=optax.sgd(0.1), server_optimizer=SERVER).init(
        jax.random.key(0)
    )
    marker = json.loads((copy / "run.json").read_text())
    with open_run(copy, marker["about"], start="resume") as run:
        last = last_checkpoint(run, state)
    assert last is not None
    leaves = [jax.random.key_data(x) if x.dtype == last.state.key.dtype else x for x in jax.tree.leaves(last.state)]
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def shown(output: Any) -> dict[str, list[int]]:
    """Lists the rounds that TensorBoard shows of each curve: a file takes back those from where it begins."""
    steps: dict[str, list[int]] = {}
    for path in sorted(output.glob("events.out.tfevents.*")):
        for event in events_of(path.read_bytes()):
            if event.HasField("session_log") and event.session_log.status == event.session_log.START:
                steps = {tag: [step for step in found if step < event.step] for tag, found in steps.items()}
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    return steps


def events_of(data: bytes) -> Iterator[Event]:
    while len(data) >= 12:
        (length,) = struct.unpack("<Q", data[:8])
        if len(data) < 16 + length:
            return
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_a_run_reports_writes_and_resumes_bitwise(tmp_path, capsys, monkeypatch):
    whole = run(tmp_path / "whole", "--num-rounds", "5")
    printed = capsys.readouterr().out.strip().splitlines()
    assert json.loads(printed[-1]) == whole
    assert set(whole) == KEYS
    assert (whole["rounds"], whole["num_clients"]) == (5, 8)
    assert whole["train_seconds"] > 0
    assert whole["examples_per_second"] > 0
    assert 0 < whole["test_accuracy"] <= 1
    assert (tmp_path / "whole" / "curves.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (tmp_path / "whole").glob("events.out.tfevents.*")
    assert all(
        tag in events.read_bytes() for tag in (b"train/loss", b"test/accuracy", b"total/bits_up", b"total/bits_down")
    )

    run(tmp_path / "parts", "--num-rounds", "3")
    resumed = run(tmp_path / "parts", "--num-rounds", "5", "--resume")
    assert [row["round"] for row in read_rows(tmp_path / "parts")] == [0, 1, 2, 3, 4, 5]
    assert resumed["test_accuracy"] == whole["test_accuracy"]
    assert last_state(tmp_path / "parts", tmp_path / "a") == last_state(tmp_path / "whole", tmp_path / "b")
    assert shown(tmp_path / "parts")["train/loss"] == shown(tmp_path / "whole")["train/loss"] == [1, 2, 3, 4, 5]
    assert shown(tmp_path / "whole")["test/accuracy"] == [0, 2, 4, 5]

    again = run(tmp_path / "parts", "--num-rounds", "5", "--resume")  # a finished run has nothing left to do
    assert again["test_accuracy"] == whole["test_accuracy"]

    with pytest.raises(
        RunError,
        match=r"needs what it began with; got \{'flags.seed': 1, 'algorithm': .*, 'key': .*, 'sampler.seed': 1\}, was",
    ):
        run(tmp_path / "parts", "--resume", "--seed", "1")
    with pytest.raises(RunError, match=r"holds a run. Resume it, or overwrite it"):
        run(tmp_path / "parts")
    with pytest.raises(RunError, match=r"got no run.json in .*/prats. Check the path"):
        run(tmp_path / "prats", "--resume")
    assert not (tmp_path / "prats").exists()

    # Who copies the file and changes the sampler changes no flag; the run knows the sampler too.
    monkeypatch.setattr(quickstart, "uniform_sampler", functools.partial(uniform_sampler, replacement=True))
    message = (
        r"a resumed run needs what it began with; got \{'sampler.replacement': True, 'sampler.min_separation': 0\}, "
        r"was \{'sampler.replacement': False, 'sampler.min_separation': 1\}"
    )
    with pytest.raises(RunError, match=message):
        run(tmp_path / "parts", "--num-rounds", "6", "--resume")


def test_a_run_that_is_killed_goes_on_where_it_was_saved(tmp_path):
    """Killed at some moment after its first checkpoint, in the middle of a round or of a checkpoint."""
    command = [sys.executable, "-m", "benchmarks.quickstart", *SMALL, "--output"]
    killed = subprocess.Popen([*command, str(tmp_path / "killed"), "--num-rounds", "100000"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while not checkpoints(tmp_path / "killed"):
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(RunError, match=rf"is in use by process {killed.pid} on "):
            run(tmp_path / "killed", "--resume")
    finally:
        killed.kill()
        killed.wait()
    last = int(checkpoints(tmp_path / "killed")[-1].name)
    assert shown(tmp_path / "killed")["train/loss"][:last] == list(range(1, last + 1))
    foreign = tmp_path / "killed" / "checkpoints" / "99"
    foreign.mkdir()
    (tmp_path / "killed" / "thesis.pt").write_text("mine")
    rounds = ["--num-rounds", str(last + 3)]
    resumed = run(tmp_path / "killed", *rounds, "--resume")
    whole = run(tmp_path / "whole", *rounds)
    assert resumed["test_accuracy"] == whole["test_accuracy"]
    assert last_state(tmp_path / "killed", tmp_path / "a") == last_state(tmp_path / "whole", tmp_path / "b")
    assert shown(tmp_path / "killed")["train/loss"] == shown(tmp_path / "whole")["train/loss"]
    assert foreign.is_dir()
    assert (tmp_path / "killed" / "thesis.pt").read_text() == "mine"


def test_the_default_run_learns_as_well_as_training_on_the_pooled_images(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "benchmarks.quickstart", "--output", str(tmp_path)]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    report = json.loads(printed.strip().splitlines()[-1])
    assert report["test_accuracy"] >= 0.95
    assert abs(report["centralised_accuracy"] - report["test_accuracy"]) <= 0.02
