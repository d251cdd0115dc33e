"""Where the rows of a run go: JSON lines, a table, TensorBoard, a bar in the terminal; or a function of your own."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from fedjx.data.manifest import replace_file
from fedjx.experiment.events import event_writer
from fedjx.experiment.rows import Row, line
from fedjx.experiment.run_directory import ROWS, TABLE, Run


def _nothing() -> None:
    pass


class Sink(NamedTuple):
    """What is done with rows. All are called in one background thread, in the order of the rounds.

    Attributes:
      write: Takes a row.
      flush: Waits until all rows that were written are on disk.
      close: Takes leave.
    """

    write: Callable[[Row], None]
    flush: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing


def json_lines(run: Run) -> Sink:
    """Appends each row to ``metrics.jsonl`` in the run's directory; `read_rows` reads it."""
    file = _Appended(run.path / ROWS)
    return Sink(lambda row: file.write(line(row)), file.flush, file.close)


def csv_table(run: Run, rows: Sequence[Row]) -> Sink:
    """Keeps ``metrics.csv`` in the run's directory: a column for each name, a line for each row.

    Args:
      run: The open run.
      rows: Those until the round that the run goes on from.
    """
    path, seen = run.path / TABLE, list(rows)
    names = list(dict.fromkeys(name for row in seen for name in row))

    def table() -> _Appended:
        """Writes all again, since there is another column, and keeps the file open for more."""
        replace_file(path, _csv([dict(zip(names, names, strict=True)), *seen], names))
        return _Appended(path)

    file = table()

    def write(row: Row) -> None:
        nonlocal file
        seen.append(row)
        if new := [name for name in row if name not in names]:
            names.extend(new)
            file.close()
            file = table()
        else:
            file.write(_csv([row], names))

    return Sink(write, lambda: file.flush(), lambda: file.close())


def _csv(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, names, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class _Appended:
    """A file to whose end is written, at once: what is killed has lost nothing that it wrote."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, text: bytes) -> None:
        while text:
            text = text[os.write(self._file, text) :]

    def flush(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def tensorboard(run: Run, after: int) -> Sink:
    """Writes the numbers in each row as TensorBoard's events, in the run's directory.

    Args:
      run: The open run.
      after: The round that the run goes on from.
    """
    events = event_writer(run, after)

    def write(row: Row) -> None:
        for name, value in row.items():
            if name != "round" and isinstance(value, (int, float)):
                events.add_scalar(name, value, row["round"])

    return Sink(write, events.flush, events.close)


def progress_bar(num_rounds: int, rows: Sequence[Row] = ()) -> Sink:
    """Shows in the terminal how far a run is, how fast, what it has sent, and its last metrics.

    Args:
      num_rounds: Of the whole run.
      rows: Those until the round that the run goes on from.
    """
    first: Row = rows[-1] if rows else {"round": 0}
    interval = 0.1 if sys.stderr.isatty() else 30.0  # in the file of a batch system each change is a line
    bar = tqdm(total=num_rounds, initial=first["round"], unit=" round", smoothing=0.1, mininterval=interval)
    bar.set_postfix_str("compiling, the first time")
    tested: Row = {}

    def write(row: Row) -> None:
        tested.update({name: value for name, value in row.items() if _is_shown(name, value)})
        bar.set_postfix_str(", ".join([*_rates(first, row), *(f"{k} {v:.4g}" for k, v in tested.items())]), False)
        bar.update(row["round"] - bar.n)

    return Sink(write, close=bar.close)


def _is_shown(name: str, value: object) -> bool:
    """Says whether the bar shows a number: losses and accuracies, the mean of clients', and what privacy has cost."""
    short = name.rpartition("/")[2]
    is_main = name.count("/") == 1 and short in ("loss", "accuracy", "epsilon")
    return is_main and isinstance(value, (int, float))


def _rates(first: Row, row: Row) -> list[str]:
    """Says how much of what adds up a run has done by the second, and in all, since it was started."""
    done = {
        name.removeprefix("total/"): (row[name] - first.get(name, 0), row[name])
        for name in row
        if name.startswith("total/")
    }
    seconds = done.get("seconds", (0, 0))[0]
    found = [f"{done[name][0] / seconds:.0f} {name}/s" for name in ("clients", "examples") if name in done and seconds]
    bits = sum(done[name][1] for name in ("bits_down", "bits_up") if name in done)
    found += [f"{bits / 2**23:,.1f} MiB"] if bits else []
    found += [f"{done['simulated_seconds'][1]:.0f} s simulated"] if "simulated_seconds" in done else []
    return found
