"""Tests of which runs are found, and under which names."""

import json
from types import SimpleNamespace

import pytest

from fedjx.experiment.collect import collect
from tests.experiment.histories import history, write_run, write_sweep


def sizes(found):
    return {name: [len(member.metrics.get("round", [[]])[0]) for member in members] for name, members in found.items()}


def test_rows_in_memory():
    rows = history(3)
    assert sizes(collect(rows)) == {"": [4]}
    assert sizes(collect([rows, rows[:2]])) == {"": [4, 2]}
    assert sizes(collect({"a": rows, "b": [rows, SimpleNamespace(rows=rows[:1])]})) == {"a": [4], "b": [4, 1]}


def test_directories(tmp_path):
    for name in ("b/seed-10", "b/seed-2", "a", "rate=0.05", "rate=0.1", "rate=1e-05"):
        write_run(tmp_path / name, history(10 if "10" in name else 2), {"seed": 3})
    (tmp_path / "notes").mkdir()
    found = collect(tmp_path)
    assert list(found) == ["a", "b", "rate=1e-05", "rate=0.05", "rate=0.1"]
    assert sizes(found)["b"] == [3, 11]
    assert [member.name for member in found["b"]] == ["seed-2", "seed-10"]
    assert found["a"][0].about == {"seed": 3}
    assert list(collect(tmp_path / "a")) == list(collect([tmp_path / "a"])) == ["a"]
    assert list(collect([tmp_path / "a", str(tmp_path / "b")])) == ["a", "b"]
    assert sizes(collect({"mine": tmp_path / "b"})) == {"mine": [3, 11]}


def test_where_one_stands_is_a_directory_too(tmp_path, monkeypatch):
    write_run(tmp_path / "a", history(2))
    monkeypatch.chdir(tmp_path)
    assert sizes(collect(".")) == {"a": [3]}
    monkeypatch.chdir(tmp_path / "a")
    assert sizes(collect(".")) == {"a": [3]}


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "a", history(2))
    assert sizes(collect("~/a")) == sizes(collect(["~/a"])) == {"a": [3]}


def test_two_sweeps_of_the_same_points_stay_apart(tmp_path):
    for place in ("one/runs", "one/others", "two/runs"):
        write_run(tmp_path / place / "rate=1/seed-0", history(2))
        write_run(tmp_path / place / "rate=2/seed-0", history(2))
    found = collect([tmp_path / "one/runs", tmp_path / "one/others", tmp_path / "two/runs"])
    assert len(found) == 6
    assert list(found)[:4] == ["runs/rate=1", "runs/rate=2", "others/rate=1", "others/rate=2"]


def test_what_a_sweep_says_of_its_runs(tmp_path):
    write_sweep(tmp_path / "s")
    found = collect(tmp_path / "s")
    assert {name: [member.problem for member in members] for name, members in found.items()} == {
        "rate=0.05": ["", ""],
        "rate=0.1": ["", "it has not ended: it goes on, or was killed"],
        "rate=4.0": ["it failed with ValueError: rate must be <b>below</b> 2"],
    }
    assert sizes(found) == {"rate=0.05": [21, 21], "rate=0.1": [21, 21], "rate=4.0": [0]}
    assert found["rate=0.05"][0].about == {"rate": 0.05, "data": "8f3b"}


def test_what_runs_say_of_their_end(tmp_path):
    write_run(tmp_path / "a", history(2), ended={"reason": "all 2 rounds are done", "error": ""})
    write_run(tmp_path / "b", history(2), ended={"reason": "", "error": "ValueError: no"})
    write_run(tmp_path / "c", history(2))
    (tmp_path / "c" / "ended.json").unlink()  # killed
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "metrics.jsonl").write_bytes((tmp_path / "c" / "metrics.jsonl").read_bytes())  # no `open_run`
    found = {name: (members[0].problem, members[0].reason) for name, members in collect(tmp_path).items()}
    assert found == {
        "a": ("", "all 2 rounds are done"),
        "b": ("it ended with ValueError: no", ""),
        "c": ("it has not ended: it goes on, or was killed", ""),
        "d": ("", ""),
    }


def test_what_sweep_returns():
    outcome = SimpleNamespace(point={"rate": 0.1, "model": "a/b"}, seed=3, rows=history(2), error="")
    failed = SimpleNamespace(point={"rate": 0.1, "model": "a/b"}, seed=4, rows=[], error="ValueError: no")
    found = collect(SimpleNamespace(outcomes=(outcome, failed)))
    assert sizes(found) == {"rate=0.1,model=a/b": [3, 0]}
    assert found["rate=0.1,model=a/b"][1].problem == "it failed with ValueError: no"


def test_a_run_that_cannot_be_read_is_told(tmp_path):
    write_run(tmp_path / "new", None)
    write_run(tmp_path / "empty", [])
    write_run(tmp_path / "damaged", [])
    (tmp_path / "damaged" / "metrics.jsonl").write_text("no json\n")
    (tmp_path / "damaged" / "run.json").write_text("[]")
    (tmp_path / "damaged" / "checkpoints" / "00000003").mkdir(parents=True)
    (tmp_path / "damaged" / "checkpoints" / "00000003" / "about.json").write_text(
        json.dumps({"versions": {"jax": "1"}})
    )
    found = {name: members[0] for name, members in collect(tmp_path).items()}
    assert found["new"].problem == found["empty"].problem == "it has no rounds yet"
    assert "damaged" in found["damaged"].problem
    assert found["damaged"].about == {"versions": {"jax": "1"}}


@pytest.mark.parametrize(
    ("runs", "error", "words"),
    [
        ({}, ValueError, "runs to look at"),
        ([], ValueError, r"runs to look at; got \[\]"),
        ("nowhere", ValueError, "got none in nowhere"),
        (3, TypeError, "got 3"),
        ({"a": 3}, TypeError, "got 3"),
    ],
)
def test_what_is_no_run_is_refused(runs, error, words):
    with pytest.raises(error, match=words):
        collect(runs)


def test_no_rows_are_a_run_before_its_first_round():
    assert [collect(runs)[""][0].problem for runs in ([[]], {"": []})] == ["it has no rounds yet"] * 2
