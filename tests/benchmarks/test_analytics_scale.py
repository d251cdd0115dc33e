"""The benchmark of questions to very many clients: it asks what NumPy is asked, and finds wrong answers out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import analytics_scale
from fedjx import analytics
from fedjx.data import Store

CLIENTS = 2000


def flags_of(folder, *more):
    return analytics_scale.parse_flags(["--folder", str(folder), "--clients", str(CLIENTS), "--turns", "1", *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analytics")
    report = analytics_scale.main(flags_of(folder, "--step", "write"))
    assert report["num_clients"] == CLIENTS < report["num_records"] < 2.2 * CLIENTS
    return folder


def test_numpy_passes_see_all_records_whatever_the_blocks(folder, monkeypatch):
    store = Store(analytics_scale.path_of(flags_of(folder)))
    column = {name: np.concatenate(list(analytics_scale.blocks(store, name))) for name in ("age", "word")}
    monkeypatch.setattr(analytics_scale, "BLOCK", 300)
    edges = np.linspace(0, 110, 23)
    np.testing.assert_allclose(analytics_scale.numpy_mean(store), column["age"].mean(dtype=np.float64), rtol=1e-6)
    np.testing.assert_array_equal(analytics_scale.numpy_histogram(store, edges), np.histogram(column["age"], edges)[0])
    words = [bytes(row).rstrip(b"\0").decode() for row in column["word"]]
    frequent = {word: words.count(word) for word in set(words) if words.count(word) >= 30}
    assert analytics_scale.numpy_words(store, 30) == frequent
    assert "word0" in frequent


@pytest.mark.parametrize("name", analytics_scale.NAMES)
def test_each_question_is_answered_as_numpy_does(name, folder):
    report = analytics_scale.main(flags_of(folder, "--step", "turns", "--questions", name))
    assert report[name]["seconds"]["median"] > 0
    ratio = report[name]["seconds"]["median"] / report[name]["numpy_seconds"]["median"]
    assert report[name]["ratio"]["median"] == pytest.approx(ratio, rel=1e-4)
    assert report[name]["clients_per_second"] == pytest.approx(CLIENTS / report[name]["seconds"]["median"], rel=1e-4)


def test_a_wrong_answer_is_found_out(folder, monkeypatch):
    monkeypatch.setattr(analytics_scale, "numpy_mean", lambda store: 52.0)
    with pytest.raises(SystemExit, match=r"mean is not what NumPy finds; got 50.*, NumPy 52"):
        analytics_scale.main(flags_of(folder, "--step", "turns", "--questions", "mean"))


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ({"tea": 100.4, "milk": 50.0}, True),
        ({"tea": 100.4, "milk": 50.0, "gin": 12.0}, True),  # as frequent as the least, up to six standard deviations
        ({"tea": 100.4, "milk": 50.0, "gin": 14.0}, False),
        ({"tea": 104.0, "milk": 50.0}, False),
        ({"tea": 100.4}, False),
        ({}, False),
    ],
)
def test_words_are_the_same_up_to_the_errors_of_a_sketch(found, same):
    answer = analytics.Answer(found, dict.fromkeys(found, 0.5), 9, 9, 1, "", "plain")
    assert analytics_scale.same_words(answer, {"tea": 100, "milk": 50}, 10) == same


def test_memory_of_many_is_compared_with_that_of_few(monkeypatch, capsys, tmp_path):
    def apart(module, *flags):
        assert module == "analytics_scale"
        flags = list(map(str, flags))
        number = int(flags[flags.index("--clients") + 1])
        return {
            "write": {"num_clients": number, "num_records": 2 * number, "disk_bytes": 9},
            "memory": {"peak_host_bytes": 400 + number // 100},
            "turns": {
                "mean": {
                    "seconds": {"median": 2.0},
                    "numpy_seconds": {"median": 1.0},
                    "ratio": {"median": 2.0},
                    "clients_per_second": number / 2,
                }
            },
        }[flags[flags.index("--step") + 1]]

    monkeypatch.setattr(analytics_scale, "run_apart", apart)
    flags = ["--clients", "1000", "--few", "100", "--questions", "mean", "--folder", str(tmp_path)]
    report = analytics_scale.main(analytics_scale.parse_flags(flags))
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == report
    assert report["questions"]["mean"]["of_few"] == pytest.approx(410 / 401, rel=1e-4)
    assert printed[2].split() == ["mean", "2", "1", "2", "500", "410", "1.022"]
