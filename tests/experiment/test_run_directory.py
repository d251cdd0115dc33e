"""Directories of runs: whose they are, one run at a time, and nothing deleted that is not the run's."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fedjx.experiment import Checkpoint, RunError, event_writer, last_checkpoint, open_run, save_checkpoint
from tests.experiment.trees import contents

ABOUT = {"flags": {"seed": 0, "rate": 0.1, "model": "mlp"}, "data": "c0ffee"}
STATE = {"w": np.arange(3.0)}


def begun(path, about=ABOUT, rounds=(2, 4), **options):
    """A run with some checkpoints and events."""
    with open_run(path, about, **options) as run:
        for k in rounds:
            save_checkpoint(run, Checkpoint(k, STATE, [k]))
        with event_writer(run, after=0) as events:
            events.add_scalar("loss", 1.0, 1)
    return path


def refused(message, path, about=ABOUT, **options):
    with pytest.raises(RunError, match=message), open_run(path, about, **options):
        raise AssertionError("it was opened")


def test_a_run_goes_on_as_itself_alone(tmp_path):
    path = begun(tmp_path / "deep" / "run")
    before = contents(path)
    with open_run(path, dict(reversed(ABOUT.items())), start="resume") as run:
        assert last_checkpoint(run, STATE).round == 4
    for other, got in (
        ({"flags": {**ABOUT["flags"], "seed": 1}, "data": "c0ffee"}, r"\{'flags.seed': 1\}, was \{'flags.seed': 0\}"),
        (
            {"flags": {**ABOUT["flags"], "rate": 0.1 + 1e-16}, "data": "c0ffee"},
            r"\{'flags.rate': 0.1000.*\}, was .* 0.1\}",
        ),
        ({"flags": ABOUT["flags"]}, r"\{\}, was \{'data': 'c0ffee'\}"),
        ({**ABOUT, "sampler": None, "extra": [1]}, r"\{'sampler': None, 'extra': \[1\]\}, was \{\}"),
        ({**ABOUT, "flags": {**ABOUT["flags"], "seed": False}}, r"\{'flags.seed': False\}, was \{'flags.seed': 0\}"),
    ):
        refused(
            rf"a resumed run needs what it began with; got .*{got} in .*run\. Repeat it", path, other, start="resume"
        )
    refused("holds a run. Resume it, or overwrite it", path)
    with pytest.raises(ValueError, match="start must be one of"), open_run(path, ABOUT, start="again"):
        pass
    after = contents(path)
    assert {k: v for k, v in after.items() if k != "run.lock"} == {k: v for k, v in before.items() if k != "run.lock"}


def test_there_must_be_something_to_resume(tmp_path):
    for path in (tmp_path / "typo", tmp_path):
        refused(rf"needs one to go on with; got no run.json in {path}. Check the path", path, start="resume")
    assert not (tmp_path / "typo").exists()


def test_a_directory_of_somebody_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "thesis_model.pt").write_text("three years")
    (tmp_path / "events.out.tfevents.1.mine").write_text("mine")
    before = contents(tmp_path)
    for options in ({}, {"start": "overwrite"}):
        refused(
            r"needs an empty directory; .* holds checkpoints, events.* \(2 in all\), and no run.json",
            tmp_path,
            **options,
        )
    after = contents(tmp_path)
    assert after.pop("run.lock", None) is not None
    assert after == before


def test_overwriting_deletes_what_the_run_has_written_and_nothing_else(tmp_path):
    path = begun(tmp_path / "run")
    foreign = {
        "thesis.pt": "a", "checkpoints/thesis.pt": "b", "checkpoints/99/x": "c", "checkpoints/00000004/notes.txt": "d",
        "events.out.tfevents.1.mine": "e", "checkpoints/00000077/x": "f", "checkpoints/00000004/state/x": "g",
    }  # fmt: skip
    for name, text in foreign.items():
        (path / name).parent.mkdir(exist_ok=True, parents=True)
        (path / name).write_text(text)
    with open_run(path, {"another": "run"}, start="overwrite") as run:
        pass
    left = contents(path)
    assert {left.pop(name) != b"" for name in ("run.json", "run.lock", "ended.json")} == {True}
    found = {re.sub(r"\.damaged-\w{8}", "", name): text for name, text in left.items()}
    assert found == {name: text.encode() for name, text in foreign.items()}
    with open_run(path, {"another": "run"}, start="resume") as run:
        assert last_checkpoint(run, STATE) is None


def test_it_is_said_how_a_run_ended_and_not_while_it_goes_on(tmp_path):
    said = tmp_path / "ended.json"

    def fails():
        with open_run(tmp_path, ABOUT, start="auto"):
            assert not said.exists()
            raise ValueError("my own fault")

    for round in (2, 4):
        with pytest.raises(ValueError, match="my own fault"):
            fails()
        assert json.loads(said.read_bytes()) == {"reason": "", "error": "ValueError: my own fault"}
        begun(tmp_path, rounds=(round,), start="auto")
        assert json.loads(said.read_bytes()) == {"reason": "", "error": ""}
    refused("holds a run. Resume it", tmp_path)
    assert json.loads(said.read_bytes()) == {"reason": "", "error": ""}


def test_no_room_to_say_how_it_ended_is_no_end_of_its_own(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with open_run(tmp_path, ABOUT):
        monkeypatch.setattr("fedjx.experiment.run_directory.replace_file", full)
    assert not (tmp_path / "ended.json").exists()


def test_paths_that_are_no_directories(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file", tmp_path / "dangling", tmp_path / "file" / "below"):
        refused(rf"a run needs a directory; got {path}: .*\. Choose another", path)
        refused("got no run.json in", path, start="resume")
    for name in ("run.json", "run.lock"):
        (tmp_path / name / name).mkdir(parents=True)
        refused(r"the marker of a run needs to be a file|needs to lock its directory", tmp_path / name)


def test_links_to_directories_are_as_good(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "checkpoints").symlink_to(tmp_path / "scratch")
    path = begun(tmp_path / "link")
    assert sorted(os.listdir(tmp_path / "scratch")) == ["00000002", "00000004"]
    begun(path, start="overwrite")
    with open_run(path, ABOUT, start="resume") as run:
        assert last_checkpoint(run, STATE).round == 4
    begun(path, rounds=(), start="overwrite")
    assert os.listdir(tmp_path / "scratch") == []


def test_flipped_bits_of_the_marker_are_a_sentence(tmp_path):
    path = begun(tmp_path / "run", rounds=())
    text = (path / "run.json").read_bytes()
    for bit in range(0, 8 * len(text), 7):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        (path / "run.json").write_bytes(flipped)
        options = {"start": "resume"} if bit % 2 else {"start": "overwrite"}
        refused(r"run.json is damaged, or no marker of this release", path, **options)
    for cut in (0, 1, len(text) // 2, len(text) - 1):
        (path / "run.json").write_bytes(text[:cut])
        refused("is damaged", path, start="resume")


HOLDER = """
import sys, time
from fedjx.experiment import open_run
with open_run(sys.argv[1], {"seed": 0}):
    print("open", flush=True)
    time.sleep(100)
"""


def test_two_runs_in_one_directory_and_the_lock_of_a_dead_one(tmp_path):
    path = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"open\n"
        for options in ({}, {"start": "resume"}, {"start": "overwrite"}):
            refused(rf"one at a time; .*run is in use by process {holder.pid} on ", path, {"seed": 0}, **options)
        holder.send_signal(signal.SIGKILL)
    with open_run(path, {"seed": 0}, start="resume"):
        refused(rf"in use by process {os.getpid()} on ", path, {"seed": 0}, start="resume")
    with open_run(path, {"seed": 0}, start="resume"):
        pass


def test_other_versions_say_programs_in_another_way(tmp_path, monkeypatch):
    path, about = tmp_path / "run", {"seed": 0, "algorithm": "1f"}
    with open_run(path, about) as run:
        pass
    other = {"seed": 0, "algorithm": "2e"}
    refused(r"got {'algorithm': '2e'}, was {'algorithm': '1f'}", path, other, start="resume", of_versions=["algorithm"])
    monkeypatch.setattr("fedjx.experiment.run_directory.versions", lambda: {"jax": "another"})
    with open_run(path, other, start="resume", of_versions=["algorithm"]) as resumed:
        assert resumed.identity == run.identity
    refused(r"got {'algorithm': '2e'}", path, other, start="resume")
    refused(r"got {'seed': 1}", path, {**other, "seed": 1}, start="resume", of_versions=["algorithm"])


def test_what_is_being_overwritten_is_whole_or_not_there(tmp_path, monkeypatch):
    path = begun(tmp_path / "run")
    before = {name: text for name, text in contents(path).items() if not name.startswith("checkpoints")}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedjx.experiment.run_directory.delete_listed", interrupted)
    with pytest.raises(KeyboardInterrupt), open_run(path, ABOUT, start="overwrite"):
        pass
    assert {name: text for name, text in contents(path).items() if name in before and name != "run.lock"} == {
        name: text for name, text in before.items() if name != "run.lock"
    }


def test_numbers_of_numpy_are_numbers(tmp_path):
    with open_run(tmp_path / "run", {"rate": np.float32(0.5), "seed": np.int64(3), "clip": np.array(2.0)}):
        pass
    with open_run(tmp_path / "run", {"rate": 0.5, "seed": 3, "clip": 2.0}, start="resume"):
        pass


def test_what_a_run_is_about_must_be_json(tmp_path):
    message = r"what a run is about must be JSON; got .*Path.*Give text and numbers"
    with pytest.raises(TypeError, match=message), open_run(tmp_path / "run", {"output": tmp_path}):
        pass


def test_a_crash_before_the_marker_leaves_a_directory_for_a_new_run(tmp_path):
    (tmp_path / "run.lock").write_text("")
    (tmp_path / "run.json.partial").write_text("{")
    begun(tmp_path)


def test_a_run_that_failed_before_its_first_round_is_begun_anew(tmp_path):
    other = {"flags": "mended"}

    def failed(path, *lines, more=None):
        with open_run(path, ABOUT) as run, event_writer(run, after=0):
            (path / "metrics.jsonl").write_text("".join(lines))
            (path / "metrics.csv").write_text("round\n")
            (path / "client_states").mkdir()
        if more:
            (path / more).parent.mkdir(exist_ok=True)
            (path / more).write_text("mine")
        return path

    first = '{"round": 0, "test/loss": 2.0}\n'
    for name, options, lines in (("a", {}, [first]), ("b", {"start": "auto"}, [first]), ("c", {}, [])):
        path = failed(tmp_path / name, *lines)
        refused(r"got {'flags': 'mended'}", path, other, start="resume")
        with open_run(path, other, **options):
            pass
        assert sorted(x.name for x in path.iterdir()) == ["ended.json", "run.json", "run.lock"]
        with open_run(path, other, start="resume"):
            pass
    second = '{"round": 1, "train/loss": 1.0}\n'
    for name, lines, more in (
        ("d", [first, second], None),
        ("e", [second], None),
        ("f", [first], "notes.txt"),
        ("g", [first], "checkpoints/thesis.pt"),
        ("h", [first], "events.out.tfevents.1.mine"),
    ):
        path = failed(tmp_path / name, *lines, more=more)
        before = contents(path)
        refused("holds a run. Resume it, or overwrite it", path, other)
        refused(r"got {'flags': 'mended'}", path, other, start="auto")
        assert {k: v for k, v in contents(path).items() if k != "run.lock"} == {
            k: v for k, v in before.items() if k != "run.lock"
        }


def test_events_are_of_a_file_for_each_start(tmp_path):
    path = begun(tmp_path / "run", rounds=())
    with open_run(path, ABOUT, start="resume") as run, event_writer(run, after=7) as events:
        events.add_scalar("loss", 1.0, 8)
    names = sorted(path.glob("events.out.tfevents.*"))
    assert len(names) == 2
    assert time.time() - os.stat(names[0]).st_mtime < 100
