"""The cost of aggregators: paired with plain rounds, and reported."""

from __future__ import annotations

import json

import numpy as np

from benchmarks import aggregation_cost
from fedjx.training.method import ServerState


def test_ratios_are_of_the_same_cohorts():
    seconds = {"mean": [9.0, 1.0, 2.0, 4.0], "median": [8.0, 3.0, 4.0, 8.0]}
    params = np.zeros(10, np.float32)
    plain = ServerState(params, (), (), (), (), 3)
    states = {"mean": plain, "median": plain._replace(aggregator=np.zeros((3, 10), np.float32))}
    timed = aggregation_cost.Timed(states, seconds, seconds, {"mean": 0, "median": 2}, {"mean": 0.5, "median": 0.25})
    results = aggregation_cost.summary(timed)
    assert results["mean"]["ratio"]["min"] == results["mean"]["ratio"]["max"] == 1.0
    median = results["median"]
    assert (median["ratio"]["min"], median["ratio"]["median"], median["ratio"]["max"]) == (2.0, 2.0, 3.0)
    assert (median["ratio_of_bests"], median["first_round_seconds"], median["recompilations"]) == (3.0, 8.0, 2)
    assert (median["ratio_of_medians"], median["ratio_of_processor_seconds"], median["loss"]) == (2.0, 2.0, 0.25)
    assert (results["mean"]["state_share"], median["state_share"]) == (0.0, 3.0)


def test_the_command_prints_a_table_and_json(capsys):
    flags = ["--workload", "logistic", "--clients", "2", "--rounds", "1", "--aggregators", "norm bounding"]
    report = aggregation_cost.main(aggregation_cost.parse_flags([*flags, "--devices", "1"]))
    _, _, plain, bounded, _, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == report
    assert plain.startswith("mean ")
    assert bounded.startswith("norm bounding ")
    assert list(report["aggregators"]) == ["mean", "norm bounding"]
    for measured in report["aggregators"].values():
        assert measured["recompilations"] == 0
        assert 0 < measured["seconds_per_round"]["min"] < measured["first_round_seconds"]
    assert (report["clients"], report["rounds"], report["num_devices"]) == (2, 1, 1)
