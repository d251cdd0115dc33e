"""Sweeps: what is run and what is not, what is kept of failures and interruptions, and the statistics of the table."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from fedjx.experiment import Outcome, RunError, Sweep, read_rows, read_sweep, rounds_to, sweep
from fedjx.experiment.collect import collect
from fedjx.experiment.grid import name_of
from tests.experiment.trees import contents

RATES = {"rate": [0.1, 0.5]}


def rows_of(rate, seed):
    return [{"round": r, "loss": (1 - rate) ** r + 0.01 * seed, "list": [rate, math.nan]} for r in range(3)]


def calls_of(fn=rows_of, fails=lambda rate, seed: False, error=ValueError):
    """A function that is swept, and the list of its calls."""
    calls = []

    def train(rate, seed):
        calls.append((rate, seed))
        if fails(rate, seed):
            raise error(f"no | {rate}\nof {seed}")
        return fn(rate, seed)

    return train, calls


def same(a, b):
    return json.dumps([o._asdict() for o in a.outcomes]) == json.dumps([o._asdict() for o in b.outcomes])


def test_every_point_runs_with_the_same_seeds_seed_by_seed(capsys):
    train, calls = calls_of()
    found = sweep(train, RATES, seeds=2)
    assert capsys.readouterr().err.splitlines()[1] == "2 of 4: rate=0.5, seed 0"
    assert same(sweep(calls_of()[0], RATES, seeds=2, progress=False), found)
    assert capsys.readouterr().err == ""
    assert calls == [(0.1, 0), (0.5, 0), (0.1, 1), (0.5, 1)]
    assert [(o.point["rate"], o.seed) for o in found.outcomes] == [(0.1, 0), (0.1, 1), (0.5, 0), (0.5, 1)]
    assert found.outcomes[3].rows[2] == {"round": 2, "loss": 0.26, "list": [0.5, pytest.approx(math.nan, nan_ok=True)]}
    assert list(found.runs) == ["rate=0.1", "rate=0.5"]
    assert str(found) == "2 points, 4 runs, 0 of them failed"


def test_what_is_done_is_not_done_again_and_a_changed_grid_keeps_it(tmp_path):
    train, calls = calls_of()
    first = sweep(train, RATES, seeds=2, path=tmp_path / "a" / "b")
    before = contents(tmp_path)
    again = sweep(train, RATES, seeds=2, path=tmp_path / "a" / "b")
    assert len(calls) == 4
    assert {k: v for k, v in before.items() if "lock" not in k} == {
        k: v for k, v in contents(tmp_path).items() if "lock" not in k
    }
    more = sweep(train, [{"rate": 0.2}, {"rate": 0.5}], seeds=[1, 7], path=tmp_path / "a" / "b")
    assert calls[4:] == [(0.2, 1), (0.2, 7), (0.5, 7)]
    assert [(o.point["rate"], o.seed) for o in more.outcomes] == [(0.2, 1), (0.2, 7), (0.5, 1), (0.5, 7)]
    assert same(first, again)
    assert len(read_sweep(tmp_path / "a" / "b").outcomes) == 7
    assert read_rows(tmp_path / "a" / "b" / "rate=0.5" / "seed-7")[2]["loss"] == 0.25 + 0.07


def test_what_is_interrupted_is_missing_and_the_rest_stays(tmp_path):
    train, calls = calls_of(fails=lambda rate, seed: (rate, seed) == (0.1, 1), error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(train, RATES, seeds=2, path=tmp_path)
    assert len(read_sweep(tmp_path).outcomes) == 2
    train, calls = calls_of()
    assert same(sweep(train, RATES, seeds=2, path=tmp_path), sweep(rows_of, RATES, seeds=2))
    assert calls == [(0.1, 1), (0.5, 1)]


def test_failures_are_kept_others_go_on_and_they_are_tried_again(tmp_path):
    train, calls = calls_of(fails=lambda rate, seed: rate == 0.5 and seed)
    message = r"1 of 4 runs failed, the first with rate=0.5, seed 1: ValueError: no \| 0.5 of 1. Mend the function"
    with pytest.warns(UserWarning, match=message):
        found = sweep(train, RATES, seeds=2, path=tmp_path)
    assert len(calls) == 4
    assert found.outcomes[3].rows == []
    assert "in train" in found.outcomes[3].traceback
    assert same(found, read_sweep(tmp_path))
    assert str(found).splitlines()[1] == "rate=0.5, seed 1: ValueError: no | 0.5 of 1"
    assert found.best("loss", "min") == {"rate": 0.1}  # though the seed that is left of 0.5 is better
    text = str(found.table("loss", "min"))
    assert "| 0.5 | 0.25 | – | 1 | -0.56 | – |" in text
    assert text.endswith("\n\nrate=0.5, seed=1: ValueError: no | 0.5 of 1")
    train, calls = calls_of()
    assert not sweep(train, RATES, seeds=2, path=tmp_path).outcomes[3].error
    assert calls == [(0.5, 1)]


def test_errors_of_a_runs_directory_are_no_failures(tmp_path):
    train, calls = calls_of(fails=lambda rate, seed: True, error=RunError)
    with pytest.raises(RunError, match=r"no \| 0.1"):
        sweep(train, RATES, seeds=2, path=tmp_path)
    assert len(calls) == 1
    with pytest.raises(RunError, match="has results in its directory; got none in"):
        read_sweep(tmp_path)


def test_other_defaults_are_other_runs(tmp_path):
    def train(rate, seed, num_rounds=3, optimizer=max):
        return rows_of(rate, seed)[:num_rounds]

    sweep(train, RATES, seeds=1, path=tmp_path)
    sweep(functools.partial(train, num_rounds=3, optimizer=min), RATES, seeds=1, path=tmp_path)
    with pytest.raises(RunError, match=r"got \{'num_rounds': 2\}, was \{'num_rounds': 3\} in .*rate=0.1. Repeat it"):
        sweep(functools.partial(train, num_rounds=2), RATES, seeds=1, path=tmp_path)
    found = sweep(train, {**RATES, "num_rounds": [2]}, seeds=1, path=tmp_path)
    assert [len(rows) for (rows,) in found.runs.values()] == [2, 2]


def test_other_defaults_are_told_in_all_that_json_holds(tmp_path):
    def any_of(rate, seed, sizes, options, other):
        return rows_of(rate, seed)

    train = functools.partial(any_of, sizes=(1, 2), options={2: "a", 10: [math.nan]}, other=(max,))
    sweep(train, RATES, seeds=1, path=tmp_path)
    again = functools.partial(train, sizes=[1, 2], other=(min,))
    assert same(sweep(again, RATES, seeds=1, path=tmp_path), read_sweep(tmp_path))
    with pytest.raises(RunError, match=r"got \{'sizes': \[1, 3\]\}, was \{'sizes': \[1, 2\]\}"):
        sweep(functools.partial(train, sizes=(1, 3)), RATES, seeds=1, path=tmp_path)
    with pytest.raises(RunError, match=r"got \{'options.2': 'b'\}"):
        sweep(functools.partial(train, options={2: "b", 10: [math.nan]}), RATES, seeds=1, path=tmp_path)


def test_damaged_and_deleted_results_are_missing(tmp_path):
    train, calls = calls_of()
    sweep(train, RATES, seeds=1, path=tmp_path)
    file = tmp_path / "rate=0.1" / "seed-0.json"
    for damaged in (file.read_bytes().replace(b"0.1", b"0.2"), b"[1]", b"{", b""):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"rate=0.1/seed-0.json is not. It counts as missing"):
            sweep(train, RATES, seeds=1, path=tmp_path)
    (tmp_path / "rate=0.5" / "seed-0" / "metrics.jsonl").unlink()
    sweep(train, RATES, seeds=1, path=tmp_path)
    assert [rate for rate, _ in calls] == [0.1, 0.5, *[0.1] * 4, 0.5]


def test_a_function_of_seeds_is_called_once_for_those_that_are_missing(tmp_path):
    calls = []

    def train(rate, seeds, path):
        calls.append((rate, seeds, path))
        return {seed: rows_of(rate, seed) for seed in seeds}

    sweep(train, RATES, seeds=[3], path=tmp_path)
    found = sweep(train, RATES, seeds=[2, 3, 5], path=tmp_path)
    assert calls[0] == (0.1, [3], tmp_path / "rate=0.1")
    assert [(rate, seeds) for rate, seeds, _ in calls] == [(0.1, [3]), (0.5, [3]), (0.1, [2, 5]), (0.5, [2, 5])]
    assert same(found, sweep(rows_of, RATES, seeds=[2, 3, 5]))
    with pytest.raises(TypeError, match="must return by seed, the rows of its runs"):
        sweep(lambda rate, seeds: [], RATES, seeds=1)


HOLDER = """
import sys, time
from fedjx.experiment import sweep
def train(rate, seed):
    if rate > .3:
        print("second", flush=True)
        time.sleep(100)
    return [{"round": 1, "loss": rate}]
sweep(train, {"rate": [.1, .5]}, seeds=1, path=sys.argv[1])
"""


def test_one_sweep_at_a_time_and_what_a_killed_one_leaves(tmp_path):
    train, calls = calls_of()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"second\n"
        with pytest.raises(RunError, match=rf"for one at a time; .* in use by process {holder.pid}"):
            sweep(train, RATES, seeds=1, path=tmp_path)
        holder.send_signal(signal.SIGKILL)
    found = sweep(train, RATES, seeds=1, path=tmp_path)
    assert calls == [(0.5, 0)]
    assert found.runs["rate=0.1"] == [[{"round": 1, "loss": 0.1}]]


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals come to the main thread")
def test_a_sweep_that_is_told_to_end_ends(tmp_path):
    train, _ = calls_of(fn=lambda rate, seed: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match=r"told to end, by SIGTERM\. Call it again"):
        sweep(train, RATES, seeds=2, path=tmp_path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert "run.lock" in contents(tmp_path)
    assert len(contents(tmp_path)) == 1


def outcomes(table):
    """Outcomes of a table of values, or errors, by point and seed."""
    return Sweep(
        tuple(
            Outcome({"rate": rate}, seed, [], x) if isinstance(x, str) else Outcome({"rate": rate}, seed, x)
            for rate, of_seed in table.items()
            for seed, x in enumerate(of_seed)
        )
    )


def test_the_table_has_means_deviations_and_paired_differences():
    generator = np.random.default_rng(0)
    seeds = np.arange(5.0)
    numbers = np.array([[1.0], [3.0], [2.0]]) + seeds + 0.01 * generator.normal(size=(3, 5))
    curves = {
        rate: [[{"round": r, "x": v + d} for r, d in enumerate((9, -0.5, 0.5))] for v in row]
        for rate, row in enumerate(numbers)
    }
    table = outcomes(curves).table("x", last=2)
    assert [line.point["rate"] for line in table.lines] == [1, 2, 0]
    for line in table.lines:
        own, best = numbers[line.point["rate"]], numbers[1]
        np.testing.assert_allclose([line.mean, line.deviation], [own.mean(), own.std(ddof=1)])
        apart = own - best
        expected = [apart.mean(), apart.std(ddof=1) / np.sqrt(5)]
        np.testing.assert_allclose([line.difference, line.error], expected, atol=1e-12)
    # The seeds are further apart than the points, which pairs do not mind.
    assert table.lines[1].error < 0.01 < 0.7 < table.lines[1].deviation / np.sqrt(5)
    assert outcomes(curves).best("x", "min") == {"rate": 0}
    np.testing.assert_allclose(outcomes(curves).table("x").lines[0].mean, numbers[1].mean() + 0.5)


def test_what_has_no_finite_metric_comes_last():
    def at(x):
        return [{"round": 1, "x": x}]

    found = outcomes({1: [at(2.0), at(math.nan)], 2: ["E: bad", at(9.0)], 3: [at(1.0), at(2.0)], 4: [[], []]})
    for mode in ("max", "min"):
        table = found.table("x", mode)
        assert [line.point["rate"] for line in table.lines] == [3, 1, 2, 4]
        assert math.isnan(table.lines[1].mean)
    assert "E: bad" in str(found.table("x"))
    assert "| 3 | 1.5 | 0.7071 | 2 | best |  |" in str(found.table("x"))
    for name in (found.best, found.table):
        with pytest.raises(ValueError, match=r"a number in some rows; got metric='y'. Choose among \['round', 'x'\]"):
            name("y")
    with pytest.raises(ValueError, match="needs a finite metric; got 'x' at none"):
        outcomes({1: [at(math.nan)]}).best("x")
    text = str(outcomes({1: ["E: a"], 2: ["E: b"]}).table("x"))
    assert "| 1 | failed | – | 0 | – | – |" in text


def test_metrics_of_ones_own_and_edges_of_the_grid():
    found = sweep(rows_of, {"rate": [0.1, 0.3, 0.5, 0.6]}, seeds=1)
    table = found.table(lambda rows: rounds_to(rows, "loss", 0.5, mode="min"), "min")
    assert [line.point["rate"] for line in table.lines] == [0.6, 0.5, 0.3, 0.1]
    np.testing.assert_allclose([line.mean for line in table.lines], [5 / 6, 1, 1 + 0.2 / 0.21, np.nan], rtol=1e-6)
    assert str(table).endswith("\n\nrate=0.1: without a value\nThe best rate, 0.6, is the largest that was tried.")
    with pytest.raises(ValueError, match="mode must be said where metric is a function"):
        found.best(len)
    assert "that was tried" not in str(outcomes({r: [[{"round": 1, "x": -r * r}]] for r in (-1, 0, 1)}).table("x"))


def test_what_is_not_known_is_told_under_the_table():
    def at(x):
        return [{"round": 1, "x": x, "total/seconds": next(seconds)}]

    seconds = iter(range(100))
    found = outcomes({1: [at(1.0), at(2.0), at(math.inf), [], at(math.nan)], 3: [[], []], 2: [at(1.0), at(1.0)]})
    lines = str(found.table("x")).splitlines()
    assert lines[lines.index("") + 1 :] == [
        "rate=1: 2 of 5 seeds not finite: seed 2, 4",
        "rate=1: 1 of 5 seeds never measured: seed 3",
        "rate=3: never measured",
        "All seeds have the same rows at 1 of 3 points, as at rate=2: use the seed in what is random.",
    ]
    assert "" not in str(outcomes({1: [at(1.0), at(2.0)], 2: [at(1.0)]}).table("x")).splitlines()


def test_less_of_a_loss_is_better_unless_it_is_said():
    found = sweep(lambda rate, seed: [{"round": 0, "test/loss": rate, "accuracy": rate}], RATES, seeds=1)
    assert [found.best(*a)["rate"] for a in (["test/loss"], ["accuracy"], ["test/loss", "max"])] == [0.1, 0.5, 0.5]
    assert found.table("test/loss").mode == "min"
    assert [text.get_text() for text in found.plot("test/loss").legends[0].get_texts()] == ["rate=0.1", "rate=0.5"]


def test_a_function_of_any_arguments_gets_seed_and_path(tmp_path):
    calls = []
    sweep(lambda **own: calls.append(own) or rows_of(own["rate"], 0), {"rate": [0.1]}, seeds=[3], path=tmp_path)
    assert calls == [{"rate": 0.1, "seed": 3, "path": tmp_path / "rate=0.1" / "seed-3"}]


def test_names_are_of_any_values():
    points = [{"a": 0.1, "b": True}, {"a": "x/y ,\n=", "b": None}, {"c": [1, 2]}, {"d": "é" * 300}, {}, {"a": ".."}]
    names = [name_of(point) for point in points]
    assert names[:3] == ["a=0.1,b=true", "a=x%2Fy%20,%0A=,b=null", "c=[1,%202]"]
    assert all(len(os.fsencode(name)) < 255 and "/" not in name for name in names)
    assert len(set(names)) == len(names)
    assert {n for n in names if n in ("", ".", "..")} == set()
    values = np.logspace(-2, 0, 3, dtype=np.float32)
    found = sweep(rows_of, {"rate": values}, seeds=1)
    assert [type(o.point["rate"]) for o in found.outcomes] == [float] * 3


def test_the_picture_has_the_curves_of_the_best_points(tmp_path):
    found = sweep(rows_of, {"rate": [0.1, 0.5, 0.3]}, seeds=2, path=tmp_path)
    figure = found.plot("loss", "min", most=2)
    (legend,), (axes,) = figure.legends, figure.axes
    assert [text.get_text() for text in legend.get_texts()] == ["rate=0.5", "rate=0.3"]
    curves = [line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")]
    np.testing.assert_allclose(curves, [[1.005, 0.505, 0.255], [1.005, 0.705, 0.495]])
    assert {name: len(seeds) for name, seeds in collect(tmp_path).items()} == dict.fromkeys(found.runs, 2)


@pytest.mark.parametrize(
    ("fn", "grid", "seeds", "message"),
    [
        (rows_of, {"rate": 0.1}, 1, r"a list of values for each name; got rate=0.1. Write \[0.1\]"),
        (rows_of, {"rate": "ab"}, 1, r"a list of values for each name; got rate='ab'"),
        (rows_of, {"rate": []}, 1, "a grid needs a point"),
        (rows_of, {"rate": [0.1, 0.1]}, 1, "must differ; got rate=0.1 twice"),
        (rows_of, {"rate": [max]}, 1, "must be numbers or text; got rate=<built-in function max>. Give it a name"),
        (rows_of, {"seed": [1]}, 1, "a grid has no seed; got"),
        (rows_of, {"ratio": [1]}, 1, r"must take ratio, seed; got rows_of\(rate, seed\): missing a required argument"),
        (lambda rate: [], RATES, 1, "must take seed, or seeds"),
        (
            lambda rate, seed: None,
            RATES,
            1,
            "must return the rows of its run, each with its round, as `run` does; got {0: None}",
        ),
        (lambda rate, seed: [{"round": 0}, {"loss": 1}], RATES, 1, "each with its round"),
        (rows_of, RATES, 0, "seeds must be an integer of at least 1"),
        (rows_of, RATES, [1, 1], "seeds must be some that differ"),
        (rows_of, RATES, [], "seeds must be some that differ"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_it_is(tmp_path, fn, grid, seeds, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sweep(fn, grid, seeds=seeds, path=tmp_path / "x")
    assert not [name for name in contents(tmp_path) if "seed-" in name]


def test_a_path_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"a sweep needs a directory; got .*file: File exists. Choose another"):
        sweep(rows_of, RATES, seeds=1, path=tmp_path / "file")


def test_a_tilde_is_the_home_and_a_runs_directory_is_no_sweeps(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sweep(rows_of, RATES, seeds=1, path="~/x")
    assert len(read_sweep("~/x").outcomes) == len(read_sweep(tmp_path / "x").outcomes) == 2
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(
        RunError, match=r"a sweep needs a directory of its own; got .*, which has a run. Choose another"
    ):
        sweep(rows_of, RATES, seeds=1, path=tmp_path)
