"""What a run says of its rounds: rows, where they go, and the rules that read them."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import io
import json
import math
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.experiment import (
    Checkpoint,
    Checkpointer,
    Log,
    RunError,
    Sink,
    csv_table,
    json_lines,
    kept_rows,
    limit,
    open_run,
    patience,
    progress_bar,
    read_rows,
    rounds_to,
    stopped,
    target,
    tensorboard,
    values,
)
from fedjx.experiment.rows import flat, line
from fedjx.experiment.run_directory import checkpoints
from tests.benchmarks.test_quickstart import shown


def curve(*accuracies, every=10):
    return [{"round": every * k, "test/accuracy": x, "total/bits_up": 8.0 * k} for k, x in enumerate(accuracies)]


def test_metrics_become_names_and_numbers():
    nested = {
        "train": {"loss": jnp.float32(0.5), "state": optax.EmptyState(), "aggregation": {"clip": np.float64(2.0)}},
        "test": {"of_class": jnp.arange(3), "flag": True, "name": "a", "names": ("a", "b"), "nothing": None, "no": []},
    }
    assert flat(nested) == {
        "train/loss": 0.5,
        "train/aggregation/clip": 2.0,
        "test/of_class": [0, 1, 2],
        "test/flag": True,
        "test/name": "a",
        "test/names": ["a", "b"],
        "test/no": [],
    }
    for wrong, got in ((1j, "complex"), (Path("x"), "PosixPath"), ([{"a": 1}], "ndarray"), ([[1], [1, 2]], "list")):
        with pytest.raises(TypeError, match=rf"a metric needs to be a number, .* got {got} for test/x"):
            flat({"test": {"x": wrong}})
    with pytest.raises(ValueError, match=r"names of their own; got \['a/b/c'\] twice"):
        flat({"a": {"b/c": 1}, "a/b": {"c": 2}})


def test_a_row_is_strict_json_and_comes_back(tmp_path):
    rows = [{"round": 0, "a": math.nan, "b": math.inf, "c": -math.inf, "d": [1.5, math.nan], "e": 0.1, "f": "ü\n"}]

    def refuse(text):
        raise AssertionError(text)

    assert json.loads(line(rows[0]), parse_constant=refuse)["a"] is None
    (tmp_path / "metrics.jsonl").write_bytes(line(rows[0]) + b'{"round": 1, "a"')  # as it was killed
    (found,) = read_rows(tmp_path)
    assert repr(found) == repr(rows[0])
    for wrong in (b"\x00", b"[1, 2]", b"{}", b"{"):
        (tmp_path / "metrics.jsonl").write_bytes(line(rows[0]) + wrong + b"\n")
        with pytest.raises(RunError, match=r"line 2 of .* is damaged"):
            read_rows(tmp_path)
    with pytest.raises(RunError, match=r"nowhere/metrics.jsonl; got No such file"):
        read_rows(tmp_path / "nowhere")


def test_rounds_to_a_target_are_those_of_the_best_so_far():
    rows = curve(0.1, 0.5, 0.3, 0.4, 0.9)
    assert rounds_to(rows, "test/accuracy", 0.3) == pytest.approx(5.0)
    assert rounds_to(rows, "test/accuracy", 0.7) == pytest.approx(35.0)  # from .5, not from .4
    assert rounds_to(rows, "test/accuracy", 0.7, x="total/bits_up") == pytest.approx(28.0)
    assert rounds_to(rows, "test/accuracy", 0.05) == 0
    assert rounds_to(rows, "test/accuracy", 0.95) is None
    assert rounds_to(curve(2.0, 0.5), "test/accuracy", 1.0, mode="min") == pytest.approx(20 / 3)
    lost = [{"round": row["round"], "test/loss": row["test/accuracy"]} for row in curve(2.0, 0.5)]
    assert rounds_to(lost, "test/loss", 1.0) == pytest.approx(20 / 3)  # less of a loss is better
    assert rounds_to(curve(0.1, math.inf, 0.5), "test/accuracy", 0.3) == pytest.approx(15.0)
    assert rounds_to([], "test/accuracy", 0.5) is None
    assert rounds_to(rows[:1], "train/loss", 0.5) is None  # before the first round
    for metric, x in (("test/acc", "round"), ("test/accuracy", "total/bits")):
        with pytest.raises(ValueError, match="a metric needs to be measured; got"):
            rounds_to(rows, metric, 0.5, x=x)
    with pytest.raises(TypeError, match=r"rows are a list of dicts; got 'runs/a'. Read them"):
        rounds_to("runs/a", "test/accuracy", 0.5)
    with pytest.raises(ValueError, match=r"name by round needs to be numbers; got \(0, 'a'\)"):
        values([{"round": 0, "name": "a"}], "name")
    assert rounds_to(curve(2.0, math.nan, 1.0), "test/accuracy", 1.5, mode="min") == pytest.approx(15.0)
    assert rounds_to(curve(math.nan, math.nan, 1.0), "test/accuracy", 0.5) == 20


def until_of(accuracies, rule):
    rows = curve(*accuracies)
    return next((k for k in range(len(rows) + 1) if rule(rows[:k])), None)


def test_rules_stop_where_they_say():
    rows = curve(0.1, 0.5, 0.5, 0.4, 0.6)
    until = functools.partial(until_of, (0.1, 0.5, 0.5, 0.4, 0.6))
    assert until(target("test/accuracy", 0.5)) == 2
    assert until(target("test/accuracy", 0.05, mode="min")) is None
    assert until(patience("test/accuracy", 2)) == 4
    assert until(patience("test/accuracy", 3)) is None
    assert until(patience("test/accuracy", 2, min_change=0.2)) == 4
    assert until(patience("test/accuracy", 2, mode="min")) == 3
    assert until(limit("total/bits_up", 16)) == 3
    assert stopped([limit("total/bits_up", 100), patience("test/accuracy", 2)], rows[:4]) == (
        "test/accuracy has not become better in 2 evaluations"
    )
    assert stopped([lambda rows: f"{rows[-1]['round']}"], []) is None
    # Of what is NaN first, and of a loss.
    assert until_of([math.nan, 1.0, 2.0, 3.0], patience("test/accuracy", 2)) is None
    assert until_of([math.nan, math.nan, math.nan], patience("test/accuracy", 2)) == 3
    falls = [{"round": k, "test/loss": 1 / (k + 1)} for k in range(9)]
    assert patience("test/loss", 2)(falls) is None
    assert target("test/loss", 0.5)(falls) == "test/loss 0.5 was reached at round 1"
    for rule in (target("test/acc", 0.5), patience("test/acc", 1), limit("test/acc", 1)):
        for known in (rows[:1], rows):  # before the first round, too, where its neighbours are measured
            with pytest.raises(ValueError, match=r"got 'test/acc'. Choose among \['test/accuracy', 'total/bits_up'\]"):
                rule(known)
    for rule in (target("train/loss", 0.5), patience("train/loss", 1), limit("train/loss", 1)):
        assert rule(rows[:1]) is None
    for wrong in (lambda: target("a", "0.5"), lambda: limit("a", "1h"), lambda: patience("a", 1, min_change="0")):
        with pytest.raises(TypeError, match="must be a"):
            wrong()
    with pytest.raises(TypeError, match="a rule says why a run stops, or None; got True"):
        stopped([lambda rows: True], rows)
    with pytest.raises(ValueError, match="mode must be one of"):
        target("test/accuracy", 0.5, mode="most")


def test_the_bar_says_how_far_how_fast_and_what_was_sent(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    first = {"round": 2, "total/seconds": 10.0, "total/clients": 20, "total/examples": 400}
    bar = progress_bar(6, [first])
    sent = {"total/bits_down": 3 * 2**23, "total/bits_up": 2**23, "total/simulated_seconds": 90.0}
    row = {"round": 4, "total/seconds": 14.0, "total/clients": 40, "total/examples": 1200, **sent, "train/loss": 0.25}
    others = {"test/accuracy": 0.5, "privacy/epsilon": 1.5, "train/num_clients": 10, "test/loss_of_class": [1.0, 2.0]}
    bar.write({**row, **others, "clients/accuracy/p10": 0.1})
    bar.write({**row, "round": 5, "train/loss": 0.125})
    bar.close()
    said = capsys.readouterr().err.split("\r")[-1]
    assert "| 5/6 [" in said  # with the time left before the comma
    for text in ("5 clients/s", "200 examples/s", "4.0 MiB", "90 s simulated", "train/loss 0.125", "epsilon 1.5"):
        assert text in said
    assert "test/accuracy 0.5" in said
    assert not any(name in said for name in ("num_clients", "of_class", "p10"))


def test_rows_go_to_all_files_and_on_after_an_interruption(tmp_path):
    path = tmp_path / "run"

    def written(rounds, start):
        with open_run(path, {}, start=start) as run:
            rows = kept_rows(path, rounds[0] - 1)
            sinks = [json_lines(run), csv_table(run, rows), tensorboard(run, rounds[0] - 1), progress_bar(6, rows)]
            with Log(sinks, rows) as log:
                for number in rounds:
                    tested = {"test": {"accuracy": number / 10}} if number % 2 == 0 else {}
                    metrics = {"loss": jnp.float32(1 / number), "of_each": [1, 2]}
                    log.add(number, {"train": metrics, **tested, "total": {"clients": 3}})
                return log.wait()

    written(range(1, 6), "new")
    table = list(csv.DictReader(io.StringIO((path / "metrics.csv").read_text())))
    assert [row["round"] for row in table] == list("12345")  # a column that came late has cost no line
    rows = written(range(4, 7), "resume")  # from a checkpoint of round 3
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["total/clients"] for row in rows] == [3, 6, 9, 12, 15, 18]
    seconds = [row["total/seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert read_rows(path) == rows
    table = list(csv.DictReader(io.StringIO((path / "metrics.csv").read_text())))
    assert [row["round"] for row in table] == list("123456")
    assert [row["test/accuracy"] for row in table] == ["", "0.2", "", "0.4", "", "0.6"]
    assert shown(path)["train/loss"] == [1, 2, 3, 4, 5, 6]
    assert shown(path)["test/accuracy"] == [2, 4, 6]


def test_adding_a_row_does_not_wait_for_who_writes_it():
    goes_on = threading.Event()
    log = Log([Sink(lambda row: goes_on.wait(20) or pytest.fail("it waited"))])
    for number in range(5):
        log.add(number, {"train": {"loss": number}})
    goes_on.set()
    assert len(log.wait()) == 5
    log.close()


def test_sinks_are_called_in_one_thread_whoever_waits_for_them():
    seen = []

    def note(*_):
        seen.append(threading.current_thread())

    with Log([Sink(note, note, note)]) as log:
        log.add(1, {})
        other = threading.Thread(target=log.flush)  # as who saves a checkpoint
        other.start()
        other.join()
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert seen[0] not in (other, threading.current_thread())


def test_a_log_that_is_closed_is_not_waited_for():
    with Log([]) as log:
        log.add(1, {})
    assert [row["round"] for row in log.wait()] == [1]
    log.flush()
    with pytest.raises(RuntimeError, match="shutdown"):
        log.add(2, {})


def test_a_sink_that_exits_is_heard():
    log = Log([Sink(lambda row: sys.exit(3))])
    log.add(1, {})
    with pytest.raises(SystemExit):
        log.wait()
    log.close()


def test_a_checkpoint_does_not_wait_for_a_log_that_is_closed(tmp_path):
    is_closed = threading.Event()

    def flush_late():
        is_closed.wait(20)
        log.flush()

    with open_run(tmp_path, {}) as run, Checkpointer(run) as saved:
        with Log([]) as log:
            log.add(1, {})
            saved.save(Checkpoint(1, np.zeros(2)), before=flush_late)
        is_closed.set()
    assert [found.name for found in checkpoints(tmp_path)] == ["00000001"]


def test_what_is_beyond_a_checkpoint_need_not_be_whole(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(line({"round": 1}) + line({"round": 2}) + b"\x00\x00\n")
    with pytest.raises(RunError, match="is damaged"):
        kept_rows(tmp_path, 3)
    assert kept_rows(tmp_path, 2) == read_rows(tmp_path) == [{"round": 1}, {"round": 2}]
    assert kept_rows(tmp_path, -1) == read_rows(tmp_path) == []


def test_what_cannot_be_written_is_an_error_of_the_next_call(tmp_path):
    def full(row):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = Log([Sink(full)])
    log.add(1, {})
    with pytest.raises(RunError, match=r"room to write what it measures; got .*No space left.*resume from the last"):
        log.wait()
    log.close()
    with pytest.raises(ZeroDivisionError), Log([Sink(lambda row: 1 // 0)]) as log:
        log.add(1, {})

    def down(row):
        raise ConnectionError("no route to the board")

    with pytest.raises(ConnectionError, match="no route"), Log([Sink(down)]) as log:  # which is no full disk
        log.add(1, {})


def test_a_sink_has_rows_of_its_own():
    with Log([Sink(dict.clear)]) as log:
        log.add(1, {"train": {"loss": 2.0}})
        (row,) = log.wait()
    assert (row["round"], row["train/loss"]) == (1, 2.0)


def test_more_rows_than_may_wait_are_written():
    with Log([]) as log:
        for number in range(80):
            log.add(number, {})
        assert len(log.wait()) == 80


def test_nothing_is_written_after_what_could_not_be():
    asked, both_wait = [], threading.Event()

    def full(row):
        both_wait.wait(20)
        asked.append(row["round"])
        raise OSError(errno.ENOSPC, "No space left on device")

    log = Log([Sink(full)])
    log.add(1, {})
    log.add(2, {})
    both_wait.set()
    with contextlib.suppress(RunError):
        log.wait()
    log.close()
    assert asked == [1]
