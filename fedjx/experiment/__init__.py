"""Experiments: the directory of a run, its checkpoints and its curves, so that a crash at any moment loses nothing."""

from fedjx.experiment.checkpoints import Checkpoint, last_checkpoint, save_checkpoint
from fedjx.experiment.events import EventWriter, event_writer
from fedjx.experiment.run_directory import Run, RunError, open_run

__all__ = [
    "Checkpoint",
    "EventWriter",
    "Run",
    "RunError",
    "event_writer",
    "last_checkpoint",
    "open_run",
    "save_checkpoint",
]
