"""The robustness table: attacks work, rules are judged by what they lose, and both are shown."""

from __future__ import annotations

import copy

import pytest

from benchmarks import robustness, robustness_lies
from benchmarks.robustness_report import draw, show, show_lies
from fedjx.aggregation.attacks import boosted
from fedjx.aggregation.centred_clipping import norm_bounding
from fedjx.aggregation.mean import mean
from fedjx.data.poison import flip_labels


def test_an_attack_breaks_the_mean_and_not_a_rule():
    flags = robustness.parse_flags(["--num-clients", "5", "--num-rounds", "60"])
    compared = {"mean": mean(), "norm bounding": norm_bounding(bound=1.0), "calm": mean(), "taken over": mean()}
    number = {"mean": 1, "norm bounding": 1, "calm": 0, "taken over": 5}
    faced = {
        "none": robustness.Threat(),
        "attack": robustness.Threat(boosted(factor=10.0), flip_labels(num_classes=10)),
    }
    results = robustness.compete(robustness.setting(flags), compared, faced, number)
    accuracy = {attack: {rule: x["accuracy"] for rule, x in row.items()} for attack, row in results.items()}
    assert accuracy["none"]["mean"] > 0.8
    assert accuracy["attack"]["mean"] < 0.5
    assert accuracy["attack"]["calm"] == accuracy["none"]["mean"] == accuracy["none"]["taken over"]
    assert accuracy["attack"]["taken over"] < 0.2
    survivors = {"mean": False, "norm bounding": True, "calm": True, "taken over": False}
    assert robustness.survives(results)["attack"] == survivors


def test_a_lie_moves_no_server_beyond_the_clip(monkeypatch):
    monkeypatch.setattr(robustness_lies, "LIES", {"says x 1e6": 1e6})
    monkeypatch.setattr(robustness_lies, "METHODS", {"FedExP": robustness_lies.METHODS["FedExP"]})
    given = robustness.setting(robustness.parse_flags(["--num-clients", "5"]))
    found = robustness_lies.lies(given.data, given.model, given.evaluate, num_clients=5, num_rounds=2)
    assert 0 < found["FedExP"]["says x 1e6"]["moves"] <= 1.0001
    assert show_lies(found).splitlines()[-1].startswith("FedExP ")


CALM, BROKEN, OPEN = ({"accuracy": a, "backdoor": b} for a, b in ((0.93, 0.01), (0.12, 0.02), (0.92, 0.97)))
RESULTS = {
    "none": {"mean": CALM, "Krum": CALM},
    "sign flip": {"mean": BROKEN, "Krum": CALM},
    "backdoor": {"mean": OPEN, "Krum": CALM},
}


def test_a_rule_survives_if_it_loses_little_and_stays_shut():
    assert robustness.survives(RESULTS) == {
        "sign flip": {"mean": False, "Krum": True},
        "backdoor": {"mean": False, "Krum": True},
    }
    nearly = copy.deepcopy(RESULTS)
    nearly["sign flip"]["Krum"] = {"accuracy": 0.84, "backdoor": 0.1}
    assert robustness.survives(nearly)["sign flip"]["Krum"]
    nearly["sign flip"]["Krum"]["accuracy"] = 0.82
    assert not robustness.survives(nearly)["sign flip"]["Krum"]


def test_failures_are_marked_and_the_sweep_is_drawn(tmp_path):
    report = {
        "results": {"same number": RESULTS},
        "survives": {"same number": robustness.survives(RESULTS)},
        "num_malicious": {"same number": {"mean": 5, "Krum": 5}},
        "honest_norm": 0.6,
        "sweep": {"none": {"none": CALM, "0.6": CALM}, "backdoor": {"none": OPEN, "0.6": CALM}},
    }
    lines = show(report).splitlines()
    assert lines[3].split() == ["mean", "5", "0.93", "0.12*", "0.92*", "0.97*"]
    assert lines[4].split() == ["Krum", "5", "0.93", "0.93", "0.93", "0.01"]
    assert lines[-1].split() == ["0.6", "0.93", "0.93", "0.01", "0.01"]
    draw(tmp_path / "sweep.png", report)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("num_clients", [11, 23])
def test_rules_and_attacks_are_for_any_number_of_clients(num_clients):
    stated = robustness.stated(num_clients)
    rules = robustness.rules(num_clients, stated, 1.0)
    assert set(stated) < set(rules)
    assert stated["Bulyan"] == {11: 2, 23: 5}[num_clients]
    model = robustness.setting(robustness.parse_flags(["--num-clients", str(num_clients)])).model
    threats = robustness.threats(model, num_clients)
    assert [name for name, threat in threats.items() if threat.alone] == [
        "backdoor",
        "projected backdoor",
        "constrained backdoor",
    ]
