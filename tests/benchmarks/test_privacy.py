"""Utility against epsilon: the noise is what the accounts ask for, and a run is tuned, reported and drawn."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import privacy, privacy_report, privacy_tutorial
from fedjx.models import linear
from fedjx.privacy import account

TINY: str = "--num-clients 8 --cohort 2 --num-rounds 4 --num-seeds 2 --server-rates 0.1 1 --epsilons 1"


# Not the buffers, whose matrix takes long to find.
@pytest.mark.parametrize("name", ["DP-FedAvg", "DP-FedAvg, adaptive clip", "DP-FTRL, tree", "DP-FTRL, bands"])
def test_noise_is_the_least_that_costs_no_more(name):
    flags, mechanism = privacy.parse_flags(TINY.split()), privacy.MECHANISMS[name]

    def cost(noise_multiplier: float) -> float:
        private, sampler = mechanism.aggregator(flags, noise_multiplier), mechanism.sampler(flags, 3)
        return account(private, sampler).epsilon(flags.num_rounds, flags.delta)

    found = privacy.least_noise(mechanism, flags, 1.0)
    assert cost(found) <= 1.0 < cost(found / 1.001)


def test_few_bits_cannot_have_every_epsilon():
    flags = privacy.parse_flags(["--mnist", "there"])
    few, more = (privacy.MECHANISMS[f"distributed, {num_bits} bits"] for num_bits in (12, 16))
    with pytest.raises(ValueError, match=r"some noise should cost at most .*; got none"):
        privacy.least_noise(few, flags, 0.5)
    assert privacy.least_noise(few, flags, 8.0) > privacy.least_noise(more, flags, 8.0) > 0.6


def test_rates_are_chosen_with_another_seed_on_another_half():
    flags = privacy.parse_flags(["--num-seeds", "2", "--server-rates", "0.1", "0.2", "0.3"])
    by_rate = {0.1: (0.5, 0.9), 0.2: (0.7, 0.4), 0.3: (np.nan, 0.8)}
    asked = []

    def train(rate: float, seed: int) -> np.ndarray:
        asked.append((rate, seed))
        return np.array(by_rate[rate]) - 0.1 * seed

    found = privacy.tuned(flags, train)
    assert asked == [(0.1, 2), (0.2, 2), (0.3, 2), (0.2, 0), (0.2, 1)]
    assert found["server_rate"] == 0.2
    assert found["accuracies"] == pytest.approx([0.4, 0.3])
    assert found["mean"] == pytest.approx(0.35)


def test_a_small_run_reports_and_draws(tmp_path, capsys):
    flags = [*TINY.split(), "--mechanisms", "DP-FTRL, tree", "--output", str(tmp_path / "small.json")]
    report = privacy.main(privacy.parse_flags(flags))
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == report == json.loads((tmp_path / "small.json").read_text())
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")
    assert list(report["results"]) == ["DP-FTRL, tree"]
    for name, [row] in report["results"].items():
        assert row["epsilon"] == 1.0
        assert len(row["accuracies"]) == 2
        assert row["mean"] == pytest.approx(np.mean(row["accuracies"]), rel=1e-5)
        assert f"{name} at 1: {row['mean']:.4f}" in printed
    # Two or three images of each of eight clients, in four rounds: better than a guess without noise.
    assert report["no_noise"]["mean"] > 0.25


def test_a_sweep_is_without_noise(capsys):
    flags = [*TINY.split(), "--sweep", "--clips", "10", "--client-rates", "0.1"]
    report = privacy.main(privacy.parse_flags(flags))
    [row] = report["sweep"]
    assert (row["clip"], row["client_rate"]) == (10.0, 0.1)
    assert row["mean"] > 0.25
    assert "client rate" in capsys.readouterr().out


def test_the_tutorial_counts_what_its_rounds_cost(capsys, monkeypatch):
    monkeypatch.setattr(privacy_tutorial, "mlp", lambda *sizes, hidden, **others: linear(*sizes, **others))
    flags = ["--num-clients", "60", "--cohort", "30", "--num-rounds", "2", "--lanes", "1", "--devices", "1"]
    report = privacy_tutorial.main(privacy_tutorial.parse_flags(flags))
    assert 0 < report["epsilon"]["pld"] < report["epsilon"]["rdp"]
    assert list(report["results"]) == ["mean", "DP-FedAvg, adaptive clip"]
    for row in report["results"].values():
        assert 0 < row["accuracy"] <= 1
        assert 0 < row["seconds_per_round"]["min"]
    assert report["clip"] != pytest.approx(0.1)
    assert f"epsilon {report['epsilon']['pld']:.4g} (PLD)" in capsys.readouterr().out


def test_runs_of_the_same_data_are_shown_together(tmp_path, capsys):
    def saved(name: str, delta: float, *points: tuple[float, float]) -> Path:
        rows = [{"epsilon": e, "noise_multiplier": 2.0, "accuracies": [a], "mean": a} for e, a in points]
        alike = dict.fromkeys(("data", "num_clients", "cohort", "num_rounds", "clip", "client_rate"), 1)
        report = {**alike, "delta": delta, "no_noise": {"mean": 0.9}, "results": {name: rows}}
        (path := tmp_path / f"{name}-{delta}.json").write_text(json.dumps(report))
        return path

    first, second = saved("DP-FTRL", 1e-5, (1.0, 0.7), (2.0, 0.8)), saved("DP-FedAvg", 1e-5, (2.0, 0.75))
    picture = tmp_path / "both.png"
    privacy_report.main(argparse.Namespace(reports=[first, second], output=picture))
    header, _, ftrl, fed_avg, _ = capsys.readouterr().out.splitlines()
    assert header.split("  ")[-1].strip() == "epsilon 2"
    assert ftrl.split()[-4:] == ["0.700", "(2)", "0.800", "(2)"]
    assert fed_avg.split() == ["DP-FedAvg", "-", "0.750", "(2)"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="delta"):
        privacy_report.main(argparse.Namespace(reports=[first, saved("DP-FedAvg", 1e-6)], output=picture))
