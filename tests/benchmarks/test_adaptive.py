"""The five methods on the plays: each is a run that goes on, beside the paper's table."""

from __future__ import annotations

import functools
import json

import numpy as np

from benchmarks import adaptive
from benchmarks.tasks import __main__ as command
from benchmarks.tasks import shakespeare
from benchmarks.tasks.task import Place
from fedjx.experiment import read_rows
from fedjx.models import lstm


def test_methods_are_trained_compared_drawn_and_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shakespeare, "shakespeare_lstm", lambda: lstm(90, hidden=(8,), ignored=0))
    monkeypatch.setattr(command, "Place", functools.partial(Place, mean_examples=20))
    monkeypatch.setattr(adaptive, "ACCURACIES", (0.0, 0.99))
    given = ["--data", str(tmp_path), "--twin", "--runs", str(tmp_path / "runs"), "--evaluate-every", "1"]
    given += ["--methods", "fed_yogi", "fed_avg", "--output", str(tmp_path / "out" / "adaptive.json")]
    report = adaptive.main(adaptive.parse_flags([*given, "--num-rounds", "1"]))
    more = adaptive.main(adaptive.parse_flags([*given, "--num-rounds", "2"]))
    printed = capsys.readouterr().out.strip().splitlines()
    assert json.loads(printed[-1]) == more == json.loads((tmp_path / "out" / "adaptive.json").read_text())
    assert (tmp_path / "out" / "adaptive.png").read_bytes().startswith(b"\x89PNG")
    published = {"fed_yogi": (1.0, 0.01, 57.2), "fed_avg": (1.0, 1.0, 56.9)}
    assert list(more["methods"]) == list(published)
    for method, found in more["methods"].items():
        assert (found["client_rate"], found["server_rate"], found["published"]) == published[method]
        tested = [row["test/accuracy"] for row in read_rows(tmp_path / "runs" / method)]
        assert len(tested) == 3  # rounds 0, 1 and 2: nothing was trained twice
        np.testing.assert_allclose(found["curve"], [[k, accuracy] for k, accuracy in enumerate(tested)], rtol=1e-5)
        assert found["curve"][:2] == report["methods"][method]["curve"]
        np.testing.assert_allclose(found["final"], 100 * tested[2], atol=1e-4)
        assert found["rounds_to"] == {"0 %": 0, "99 %": None}
        (line,) = [x for x in printed[-4:] if x.startswith(method)]
        assert line.split()[-3:] == [f"{found['published']:.4g}", "0", "-"]
