"""What a run says of its rounds, written while the device goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from fedjx.core.language.names import PyTree
from fedjx.experiment.rows import Row, flat
from fedjx.experiment.run_directory import RunError, is_full
from fedjx.experiment.sinks import Sink

_AHEAD = 32  # rounds


class Log:
    """Makes a row of each round's metrics, adds totals up, and hands it to the sinks, all in a background thread.

    `add` returns at once, though a device still computes the numbers; it waits only where the device is 32 rounds
    behind. What is said in the group ``total`` is added to what it was in the row before, over interruptions too, and
    so are the seconds since, ``total/seconds``.

    A sink that fails, as on a full disk, is an error of the next call.

    Args:
      sinks: Where rows go.
      rows: Those until the round that a run goes on from.

    >>> with Log([]) as log:
    ...     log.add(1, {"train": {"loss": jnp.float32(2)}, "total": {"clients": 3}})
    ...     log.add(2, {"train": {"loss": jnp.float32(1)}, "total": {"clients": 4}})
    ...     [(row["round"], row["train/loss"], row["total/clients"]) for row in log.wait()]
    [(1, 2.0, 3), (2, 1.0, 7)]
    """

    def __init__(self, sinks: Sequence[Sink], rows: Sequence[Row] = ()):
        self._sinks, self._rows = list(sinks), list(rows)
        self._begun, self._before = time.perf_counter(), (self._rows[-1] if self._rows else {}).get("total/seconds", 0)
        self._error: BaseException | None = None
        self._is_closed, self._room = False, threading.Semaphore(_AHEAD)
        # It alone calls the sinks, which then need not be safe against who saves a checkpoint meanwhile.
        self._thread = ThreadPoolExecutor(1, "fedjx log")

    def add(self, round: int, groups: Mapping[str, PyTree]) -> None:
        """Adds a row: metrics by group, nested as they come, numbers on the device or not."""
        self._check()
        self._room.acquire()
        self._thread.submit(self._write, round, groups)

    def wait(self) -> list[Row]:
        """Waits for all rows that were added, and returns those of the whole run."""
        self._done(lambda: None)
        self._check()
        return list(self._rows)

    def flush(self) -> None:
        """Waits until all rows that were added are on disk."""
        self._done(self._flush)
        self._check()

    def close(self) -> None:
        """Flushes, and takes no more rows."""
        if not self._is_closed:
            self._is_closed = True
            self._thread.submit(self._flush)
            for sink in self._sinks:
                self._thread.submit(self._try, sink.close)
            self._thread.shutdown()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if error is None:
            self._check()

    # --- the thread ---------------------------------------------------------------------------------

    def _done(self, action: Callable[[], object]) -> None:
        """Waits until the thread has done an action after all others; once it is closed, until all of them are done."""
        try:
            self._thread.submit(action).result()
        except RuntimeError:
            self._thread.shutdown()  # another thread may be closing it

    def _write(self, round: int, groups: Mapping[str, PyTree]) -> None:
        self._room.release()
        if self._error is None:
            self._try(lambda: self._write_row(round, groups))

    def _write_row(self, round: int, groups: Mapping[str, PyTree]) -> None:
        row = {"round": round, **flat(groups)}
        before = self._rows[-1] if self._rows else {}
        for name in row:
            if name.startswith("total/"):
                row[name] += before.get(name, 0)
        row["total/seconds"] = self._before + time.perf_counter() - self._begun  # after `flat`, which waits
        self._rows.append(row)
        for sink in self._sinks:
            sink.write(dict(row))  # which is then its own

    def _flush(self) -> None:
        for sink in self._sinks:
            self._try(sink.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as error:  # also of a sink that wants to exit: else nobody hears of it
            self._error = self._error or error

    def _check(self) -> None:
        if is_full(self._error):
            raise RunError(
                f"a run needs room to write what it measures; got {self._error}. Make some, and resume from the last "
                "checkpoint."
            ) from self._error
        if self._error is not None:
            raise self._error
