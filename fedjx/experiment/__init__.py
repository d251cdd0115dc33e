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
from fedjx.experiment.seeds import Lanes, over_seeds, run_seeds
from fedjx.experiment.sinks import Sink, csv_table, json_lines, progress_bar, tensorboard
from fedjx.experiment.stop import StopRule, limit, patience, stopped, target
from fedjx.experiment.sweeps import Outcome, Sweep, read_sweep, sweep

__all__ = [
    "Best",
    "Checkpoint",
    "Checkpointer",
    "Evaluation",
    "EventWriter",
    "Lanes",
    "Log",
    "Outcome",
    "Result",
    "Run",
    "RunError",
    "Sink",
    "StopRule",
    "Sweep",
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
    "over_seeds",
    "patience",
    "personalised_evaluation",
    "plot_clients",
    "plot_comparison",
    "plot_curves",
    "plot_percentiles",
    "progress_bar",
    "read_rows",
    "read_sweep",
    "report",
    "rounds_to",
    "run",
    "run_seeds",
    "save_checkpoint",
    "stopped",
    "sweep",
    "target",
    "tensorboard",
    "values",
]
