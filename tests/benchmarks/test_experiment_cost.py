"""The benchmark of a run's cost: both kinds of turns train the same, and it reports their ratio."""

from __future__ import annotations

from benchmarks import experiment_cost


def test_a_run_beside_bare_rounds(capsys):
    flags = ["--workload", "logistic", "--clients", "2", "--rounds", "2", "--turns", "1", "--devices", "1"]
    report = experiment_cost.main(experiment_cost.parse_flags(flags))
    assert report["benchmark"] == "experiment_cost"
    assert report["ratio"]["median"] > 0
    assert "times the bare rounds" in capsys.readouterr().out
