"""What a run's rows have in them, and the log that they go to."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.traffic import traffic
from fedjx.experiment.log import Log
from fedjx.experiment.rows import kept_rows
from fedjx.experiment.run_directory import ROWS, Run, has_rounds, set_aside
from fedjx.experiment.sinks import Sink, csv_table, json_lines, progress_bar, tensorboard


def log_of(directory: Run | None, done: int, num_rounds: int, sinks: Sequence[Sink], progress: bool) -> Log:
    """Returns the log of a run, with its files in the directory, and the rows that they have until round `done`."""
    if jax.process_index() != 0:
        return Log([])
    bar = functools.partial(progress_bar, num_rounds)
    if directory is None:
        return Log([*([bar()] if progress else []), *sinks])
    if not done and has_rounds(directory.path):
        aside = set_aside(directory.path / ROWS)
        warnings.warn(
            f"a run goes on from a checkpoint; {directory.path} has rows and none. It begins anew; the rows are kept "
            f"as {aside.name}.",
            stacklevel=3,
        )
    rows = kept_rows(directory.path, done or -1)  # what begins again has measured nothing
    if done and (not rows or rows[-1]["round"] != done):
        warnings.warn(
            f"rows before round {done} are missing in {directory.path}; totals count without them.", stacklevel=3
        )
    files = [json_lines(directory), csv_table(directory, rows), tensorboard(directory, done)]
    return Log([*files, *([bar(rows)] if progress else []), *sinks], rows)


def totals_of(
    algorithm: Any, example: Sequence[PyTree], simulated_seconds: Callable[[int], float] | None
) -> Callable[..., Metrics]:
    """Returns the function that says what a round adds to what has been done; round 0 is before the first.

    Args:
      algorithm: What a round is.
      example: Its arguments, of one client; what that receives and sends is counted if it is known before.
      simulated_seconds: From the round, if they are counted.
    """
    sent = None
    with contextlib.suppress(ValueError):
        sent = traffic(algorithm.next, *example)

    def totals(number: int, num_clients: int = 0, metrics: Mapping[str, Any] = {}) -> Metrics:
        counted: Metrics = {"clients": num_clients, "examples": metrics.get("num_examples", 0)}
        if sent is not None:
            everyone = sent * num_clients
            counted |= {"bits_down": everyone.down, "bits_up": everyone.up}
        if simulated_seconds is not None:
            counted["simulated_seconds"] = simulated_seconds(number) if number else 0.0
        return counted

    return totals


def grouped(metrics: Metrics) -> Metrics:
    """Puts what a round's privacy has cost beside its metrics."""
    own = {name: value for name, value in metrics.items() if name != "privacy"}
    return {"train": own, "privacy": metrics.get("privacy", {})}
