"""A run's curves for TensorBoard, which go on where its checkpoint is."""

from __future__ import annotations

import jax
from tensorboardX import SummaryWriter

from fedjx.experiment.run_directory import Run


def event_writer(run: Run, after: int = 0) -> SummaryWriter:
    """Opens the events of a run, in a file of their own for each time that it is started.

    Flush it before a checkpoint is saved: then the curves have at least the rounds that a resumed run does not repeat.
    Those that an interrupted run has shown beyond its checkpoint are given up, so that none is shown twice.

    Args:
      run: The open run.
      after: The round of the checkpoint that the run goes on from.
    """
    if jax.process_index() != 0:
        return SummaryWriter(write_to_disk=False)
    suffix = f".{after}.{run.token}"  # the name has the time in seconds, and a file of that name would be written over
    return SummaryWriter(str(run.path), purge_step=after + 1 if after else 0, filename_suffix=suffix)
