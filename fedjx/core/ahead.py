"""Chunks of the next rounds, made and placed in a background thread while the current one computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from fedjx.core.chunks import Planned
from fedjx.core.hosts import Share
from fedjx.core.values import Clients


class Ahead:
    """A cohort whose chunks come from a background thread, in the order in which they are read.

    It can be read again, or by a computation on other devices; the wrapped cohort then makes the chunks.
    """

    def __init__(self, cohort: Planned, share: Share, room: threading.Semaphore):
        self.ids, self.sizes = cohort.ids, cohort.sizes
        self.lanes: int | Literal["auto"] = cohort.lanes
        self._cohort, self._share, self._room = cohort, share, room
        self._made: queue.SimpleQueue[tuple[Any, Clients | BaseException] | None] = queue.SimpleQueue()
        self._next: tuple[Any, Clients | BaseException] | None = None
        self._is_finished = False

    def members(self, ids: np.ndarray, mask: np.ndarray, share: Share) -> Clients:
        """Returns the chunk of the named clients, which waits here if these are the next to be read."""
        if share != self._share:
            return self._cohort.members(ids, mask, share)
        if self._next is None and not self._is_finished:
            self._next = self._made.get()
            self._is_finished = self._next is None
        if self._next is None or not np.array_equal(self._next[0], ids):
            return self._cohort.members(ids, mask, share)
        (_, chunk), self._next = self._next, None
        self._room.release()
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    def put(self, made: tuple[Any, Clients | BaseException] | None) -> None:
        """Adds the next chunk, or None after the last."""
        self._made.put(made)

    def drop(self) -> None:
        """Gives up the chunks that nobody has read."""
        while not self._is_finished:
            if self._next is not None:
                self._room.release()
            self._next = self._made.get()
            self._is_finished = self._next is None


def fed(
    cohorts: Iterable[Planned],
    order: Callable[[Planned], Iterable[tuple[np.ndarray, np.ndarray]]],
    make: Callable[[Planned, np.ndarray, np.ndarray], Clients],
    num_chunks: int,
    share: Share,
) -> Iterator[Ahead]:
    """Yields the cohorts, whose chunks a background thread makes ahead.

    Args:
      cohorts: Read in the thread.
      order: From a cohort to its chunks' clients and masks, in the order of reading.
      make: Makes and places one chunk.
      num_chunks: How many chunks may wait at any time.
      share: The devices that the chunks are made for.
    """
    room, stopped = threading.Semaphore(num_chunks), threading.Event()
    ready: queue.SimpleQueue[Ahead | BaseException | None] = queue.SimpleQueue()

    def produce() -> None:
        try:
            for cohort in cohorts:
                ahead = Ahead(cohort, share, room)
                ready.put(ahead)
                _make_all(ahead, cohort)
                if stopped.is_set():
                    return
            ready.put(None)
        except BaseException as error:  # the reader raises it
            ready.put(error)

    def _make_all(ahead: Ahead, cohort: Planned) -> None:
        try:
            for ids, mask in order(cohort):
                room.acquire()
                if stopped.is_set():
                    return
                try:
                    ahead.put((ids, make(cohort, ids, mask)))
                except BaseException as error:  # the reader raises it
                    ahead.put((ids, error))
                    return
        finally:
            ahead.put(None)

    thread = threading.Thread(target=produce, name="fedjx-ahead", daemon=True)
    thread.start()
    try:
        while (ahead := ready.get()) is not None:
            if isinstance(ahead, BaseException):
                raise ahead
            yield ahead
            ahead.drop()
    finally:
        stopped.set()
        room.release(num_chunks + 1)
        thread.join()
