"""Times of rounds: what is reported, and that recompilations and padding are seen."""

from __future__ import annotations

import functools
import itertools
import json
import os

import numpy as np
import pytest

from benchmarks import round_time
from benchmarks.measuring import client_mesh, run_apart
from benchmarks.round_time import Round
from benchmarks.workloads import constant_sizes, logistic
from fedjx.core.execution.chunks import Level
from fedjx.data import Cohort

ABOUT = {"benchmark", "workload", "clients", "asked_lanes", "lanes", "device", "platform", "num_devices", "jax", "date"}
QUARTILES = ["min", "lower_quartile", "median", "upper_quartile", "max"]


def some_rounds(number, lanes=lambda number: 2):
    """Runs rounds of four clients of 40 examples, with the lanes of a function of the round's number."""
    numbers = itertools.count()

    def cohort(*args, **kwargs):
        return Cohort(*args, **{**kwargs, "lanes": lanes(next(numbers))})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_time, "Cohort", cohort)
        workload = logistic()._replace(sizes=functools.partial(constant_sizes, 40))
        stream = round_time.rounds(workload, mesh=client_mesh(1), cohort_size=4, population=8)
        return list(itertools.islice(stream, number))


def test_rounds_are_counted_and_do_not_recompile():
    first, *later = some_rounds(4)
    assert first.compilations > 0
    assert 0 < first.compile_seconds < first.seconds
    assert [(r.compilations, r.compile_seconds) for r in later] == [(0, 0.0)] * 3
    assert {(r.num_clients, r.num_examples, r.real_steps, r.lane_steps) for r in (first, *later)} == {(4, 160, 8, (8,))}
    assert 0 < later[-1].loss < 1.1 * np.log(62)


def test_a_run_that_recompiles_is_seen():
    done = some_rounds(4, lanes=lambda number: [1, 1, 2, 4][number])
    assert [r.lanes for r in done] == [1, 1, 2, 4]
    assert done[1].compilations == 0
    assert done[2].compilations > 0
    assert done[3].compilations > 0
    summary = round_time.report(done[:1], done[1:])
    assert summary["recompilations"] == done[2].compilations + done[3].compilations


@pytest.mark.parametrize(
    ("lanes", "num_devices", "expected"),
    [([1], 1, (7,)), ([2], 1, (8,)), ([3], 1, (12,)), ([1], 2, (4, 3)), ([2], 2, (6, 2)), ([2, 1], 1, (7,))],
)
def test_padded_steps_are_counted(lanes, num_devices, expected):
    data = logistic()._replace(sizes=lambda rng, n: np.array([20, 40, 60, 20])).data(4, 0)
    cohort = Cohort(data, [0, 1, 2, 3], batch_size=20)
    # Clients of 3, 2, 1 and 1 steps: those that run at the same time take as long as the longest.
    levels = [Level(number, 1.0) for number in lanes]
    assert round_time.lane_steps(cohort, levels, num_devices) == expected


def test_a_report_summarises_rounds():
    warm = [Round(9.0, 2, 30, 3, (3, 1), 2, compilations=5, compile_seconds=7.0, loss=4.0)]
    timed = [
        Round(1.0, 2, 30, 3, (3, 1), 2, compilations=0, compile_seconds=0.0, loss=3.0),
        Round(2.0, 2, 40, 4, (3, 1), 2, compilations=1, compile_seconds=0.5, loss=2.0),
        Round(4.0, 2, 50, 5, (3, 1), 2, compilations=2, compile_seconds=0.5, loss=1.0),
    ]
    summary = round_time.report(warm, timed)
    assert summary.pop("seconds_per_round") == dict(zip(QUARTILES, [1.0, 1.5, 2.0, 3.0, 4.0], strict=True))
    assert summary == {
        "rounds": 3,
        "warm_up_rounds": 1,
        "examples_per_second": 20.0,
        "best_examples_per_second": 30.0,
        "clients_per_second": 1.0,
        "examples_per_round": 40.0,
        "first_round_seconds": 9.0,
        "compile_seconds": 7.0,
        "compilations": 5,
        "recompilations": 3,
        "padded_work": 1.0,
        "imbalance": 1.5,
        "lane_steps": 12,
        "real_steps": 12,
        "lanes": 2,
        "loss": 1.0,
    }


def test_the_command_prints_a_table_and_json(capsys):
    flags = ["--workload", "emnist_dense", "--clients", "3", "--rounds", "2", "--population", "6", "--lanes", "1"]
    report = round_time.main(round_time.parse_flags([*flags, "--devices", "2"]))
    header, _, row, *_, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == report
    assert header.split()[0] == "workload"
    assert row.split()[0] == "emnist_dense"
    assert set(report) >= ABOUT | {"recompilations", "compile_seconds", "examples_per_second", "peak_device_bytes"}
    assert list(report["seconds_per_round"]) == QUARTILES
    assert (report["clients"], report["rounds"], report["num_devices"], report["lanes"]) == (3, 2, 2, 1)
    assert 0 < report["seconds_per_round"]["min"] <= report["seconds_per_round"]["median"]
    assert report["examples_per_second"] <= report["best_examples_per_second"]
    assert report["padded_work"] >= 1
    assert 0.8 < report["batch_fill"] <= 1
    assert 2**26 < report["peak_host_bytes"] < 2**36


def test_a_process_of_its_own_has_a_device_per_core(tmp_path):
    flags = ["--workload", "logistic", "--clients", 2, "--population", 4, "--rounds", 1]
    report = run_apart("round_time", *flags, "--output", tmp_path / "round.json")
    assert report == json.loads((tmp_path / "round.json").read_text())
    assert report["num_devices"] == len(os.sched_getaffinity(0))
    assert report["compile_seconds"] < report["first_round_seconds"]


def test_all_workloads_are_run_one_by_one(monkeypatch):
    asked = []

    def run_apart(module, *flags):
        asked.append((module, *flags))
        return report

    flags = ["--workload", "logistic", "--clients", "2", "--population", "4", "--rounds", "1"]
    report = round_time.main(round_time.parse_flags(flags))
    monkeypatch.setattr(round_time, "run_apart", run_apart)
    everything = round_time.main(round_time.parse_flags(["--workload", "all", "--rounds", "7", "--clients", "3"]))
    assert everything["workloads"] == [report] * len(round_time.WORKLOADS)
    assert [call[:3] for call in asked] == [("round_time", "--workload", name) for name in round_time.WORKLOADS]
    parsed = round_time.parse_flags([str(flag) for flag in asked[0][1:]])
    assert (parsed.rounds, parsed.clients, parsed.lanes) == (7, 3, "auto")


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--warm-up", "0"], ["--lanes", "0"], ["--lanes", "many"]])
def test_flags_that_mean_nothing_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        round_time.parse_flags(flags)
    assert "at least 1" in capsys.readouterr().err
