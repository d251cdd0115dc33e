"""What a run says of its rounds, written while the device goes on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from fedjx.core.language.names import PyTree
from fedjx.experiment.rows import Row, flat
from fedjx.experiment.run_directory import RunError
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
        self._error: Exception | None = None
        self._waiting: queue.Queue[tuple[int, Mapping[str, PyTree]] | threading.Event | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._work, name="fedjx log", daemon=True)
        self._thread.start()

    def add(self, round: int, groups: Mapping[str, PyTree]) -> None:
        """Adds a row: metrics by group, nested as they come, numbers on the device or not."""
        self._check()
        self._waiting.put((round, groups))

    def wait(self) -> list[Row]:
        """Waits for all rows that were added, and returns those of the whole run."""
        self._meet(threading.Event())
        return list(self._rows)

    def flush(self) -> None:
        """Waits until all rows that were added are on disk."""
        self.wait()
        for sink in self._sinks:
            self._try(sink.flush)
        self._check()

    def close(self) -> None:
        """Flushes, and takes no more rows."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
            for sink in self._sinks:
                self._try(sink.flush)
                self._try(sink.close)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if error is None:
            self._check()

    # --- the thread ---------------------------------------------------------------------------------

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            elif self._error is None:
                self._try(lambda item=item: self._write(*item))

    def _write(self, round: int, groups: Mapping[str, PyTree]) -> None:
        row = {"round": round, **flat(groups)}
        before = self._rows[-1] if self._rows else {}
        for name in row:
            if name.startswith("total/"):
                row[name] += before.get(name, 0)
        row["total/seconds"] = self._before + time.perf_counter() - self._begun  # after `flat`, which waits
        self._rows.append(row)
        for sink in self._sinks:
            sink.write(row)

    def _try(self, action) -> None:
        try:
            action()
        except Exception as error:
            self._error = self._error or error

    def _meet(self, event: threading.Event) -> None:
        self._waiting.put(event)
        event.wait()
        self._check()

    def _check(self) -> None:
        if isinstance(self._error, OSError):
            raise RunError(
                f"a run needs room to write what it measures; got {self._error}. Make some, and resume from the last "
                "checkpoint."
            ) from self._error
        if self._error is not None:
            raise self._error
