"""A run's curves for TensorBoard, which go on where its checkpoint is."""

from __future__ import annotations

import time
from types import TracebackType

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from fedjx.experiment.run_directory import Run


class EventWriter:
    """Writes numbers of a run, each when it is given; what is flushed is on disk.

    `SummaryWriter` of tensorboardX hands them to a thread, for which its ``flush`` does not wait. Of several processes
    the first one alone writes.
    """

    def __init__(self, file: EventsWriter | None):
        self._file = file

    def add_scalar(self, name: str, value: float, round: int) -> None:
        """Adds a number to a curve."""
        if self._file is not None:
            summary = scalar(name, 0.0)
            summary.value[0].simple_value = float(value)  # `scalar` itself prints a warning of each NaN
            self._file.write_event(Event(wall_time=time.time(), step=round, summary=summary))

    def flush(self) -> None:
        """Waits until all that was added is on disk."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flushes, and writes no more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def event_writer(run: Run, after: int = 0) -> EventWriter:
    """Opens the events of a run, in a file of their own for each time that it is started.

    Flush it before a checkpoint is saved: then the curves have at least the rounds that a resumed run does not repeat.
    Those that an interrupted run has shown beyond its checkpoint are given up, so that none is shown twice.

    Args:
      run: The open run.
      after: The round of the checkpoint that the run goes on from.
    """
    if jax.process_index() != 0:
        return EventWriter(None)
    # The name has the time in seconds, and a file of that name would be written over.
    file = EventsWriter(str(run.path / "events"), f".{after}.{run.token}")
    if after:  # TensorBoard hides what earlier files have from here on
        file.write_event(Event(wall_time=time.time(), step=after + 1, session_log=SessionLog(status=SessionLog.START)))
    return EventWriter(file)
