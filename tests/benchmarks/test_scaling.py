"""Scaling: each part, small; that memory and work are those of their own process; the picture."""

from __future__ import annotations

import json

import pytest

from benchmarks import scaling, scaling_report
from benchmarks.workloads import logistic


def run(*flags):
    return scaling.main(scaling.parse_flags([*flags, "--rounds", "1"]))


def test_cohorts_and_devices_are_measured_apart_and_drawn(capsys, tmp_path):
    numbers = ["--cohorts", "6", "--device-numbers", "1", "2", "--lanes", "3"]
    report = run("--parts", "cohort", "devices", *numbers, "--plot", str(tmp_path / "new" / "scaling.png"))
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == report
    (cohort,) = report["cohort"]
    counted = {name: cohort[name] for name in ("clients", "examples_per_round", "real_steps", "recompilations")}
    assert counted == {"clients": 6, "examples_per_round": 120, "real_steps": 6, "recompilations": 0}
    assert 2**26 < cohort["peak_host_bytes"] < 2**32
    assert report["peak_memory_ratio"] == 1

    one, two = report["devices"]
    assert (one["devices"], two["devices"]) == (1, 2)
    assert (one["lane_steps_per_device"], two["lane_steps_per_device"]) == (128, 64)  # 16 clients of 8 steps
    assert one["flops_per_device"] > 8 * 20 * 941_600  # a step of eight lanes, and what is no product
    assert two["flops_per_device"] == pytest.approx(one["flops_per_device"] / 2, rel=0.02)
    assert two["collectives_per_round"] == 1
    assert (tmp_path / "new" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_unequal_clients_recompilations_and_overhead(monkeypatch, capsys):
    for name in ("emnist_dense", "emnist_cnn"):
        monkeypatch.setattr(scaling, name, logistic)
    small = ["--spread-clients", "3", "--many-rounds", "2", "--overhead-clients", "4", "--overhead-examples", "40"]
    report = run("--parts", "spread", "recompilation", "overhead", "--devices", "1", "--lanes", "10", *small)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert [row["sizes"] for row in report["spread"]] == ["constant", "lognormal", "heavy-tailed"]
    assert report["spread"][0]["examples_per_round"] == 540
    assert all(row["padded_work"] >= 1 for row in report["spread"])
    assert all(row["seconds_per_example"]["min"] > 0 for row in report["spread"])
    assert report["recompilation"]["rounds"] == 2
    assert report["recompilation"]["recompilations"] >= 0
    measured = report["overhead"]
    ratio = measured["streamed_seconds"]["min"] / measured["in_graph_seconds"]["min"]
    assert measured["overhead_of_bests"] == pytest.approx(ratio - 1, rel=1e-3, abs=1e-4)
    assert measured["clients"] == 4


def test_memory_is_compared_with_a_hundred_clients():
    peaks = {10: 4, 100: 5, 1000: 6, 200: 7}
    rows = [{"clients": clients, "peak_host_bytes": peak} for clients, peak in peaks.items()]
    assert scaling.memory_ratio(rows) == 6 / 5
    assert scaling.memory_ratio([rows[0], rows[2]]) == 6 / 4


def test_a_picture_needs_something_to_draw(tmp_path):
    with pytest.raises(SystemExit, match="needs one of the parts cohort, spread, devices; got none"):
        scaling_report.draw(tmp_path / "none.png", {"overhead": {}})
