"""Experiments: a run of many rounds, its directory, checkpoints and curves; a crash at any moment loses nothing."""

from fedjx.experiment.checkpointing import Checkpointer
from fedjx.experiment.checkpoints import Best, Checkpoint, best_checkpoint, last_checkpoint, save_checkpoint
from fedjx.experiment.evaluations import (
    Evaluation,
    central_evaluation,
    client_evaluation,
    personalised_evaluation,
)
from fedjx.experiment.events import EventWriter, event_writer
from fedjx.experiment.log import Log
from fedjx.experiment.loop import Result, run
from fedjx.experiment.plots import plot_clients, plot_comparison, plot_curves, plot_percentiles
from fedjx.experiment.report import report
from fedjx.experiment.rows import kept_rows, read_rows, rounds_to, values
from fedjx.experiment.run_directory import Run, RunError, open_run
from fedjx.experiment.sinks import Sink, csv_table, json_lines, progress_bar, tensorboard
from fedjx.experiment.stop import StopRule, limit, patience, stopped, target

__all__ = [
    "Best",
    "Checkpoint",
    "Checkpointer",
    "Evaluation",
    "EventWriter",
    "Log",
    "Result",
    "Run",
    "RunError",
    "Sink",
    "StopRule",
    "best_checkpoint",
    "central_evaluation",
    "client_evaluation",
    "csv_table",
    "event_writer",
    "json_lines",
    "kept_rows",
    "last_checkpoint",
    "limit",
    "open_run",
    "patience",
    "personalised_evaluation",
    "plot_clients",
    "plot_comparison",
    "plot_curves",
    "plot_percentiles",
    "progress_bar",
    "read_rows",
    "report",
    "rounds_to",
    "run",
    "save_checkpoint",
    "stopped",
    "target",
    "tensorboard",
    "values",
]
