"""Chunks of the next rounds, made and placed in a background thread while the current one computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import jax
import numpy as np

from fedjx.core.language.shares import Share
from fedjx.core.language.streams import Planned, whole
from fedjx.core.language.values import Batches, Clients


class Room:
    """Place for chunks that wait, bounded in number and in bytes."""

    def __init__(self, num_chunks: int, max_bytes: int):
        self._free, self._free_bytes, self._is_open = num_chunks, max_bytes, True
        self._changed = threading.Condition()

    def enter(self) -> bool:
        """Waits for a place and takes it; False if the room has closed."""
        with self._changed:
            # A chunk's bytes are known when it is made, so one chunk may go beyond the limit.
            self._changed.wait_for(lambda: not self._is_open or (self._free > 0 and self._free_bytes > 0))
            self._free -= 1
            return self._is_open

    def fill(self, num_bytes: int) -> None:
        """Says how much the chunk takes that has entered last."""
        with self._changed:
            self._free_bytes -= num_bytes

    def leave(self, num_bytes: int) -> None:
        """Gives back the place of a chunk."""
        with self._changed:
            self._free, self._free_bytes = self._free + 1, self._free_bytes + num_bytes
            self._changed.notify()

    def close(self) -> None:
        """Lets in nobody any more, and does not keep anybody waiting."""
        with self._changed:
            self._is_open = False
            self._changed.notify()


class _Made(NamedTuple):
    """A chunk, or the error that making it raised."""

    ids: np.ndarray
    chunk: Clients | BaseException
    num_bytes: int


class Ahead:
    """A cohort whose chunks come from a background thread, in the order in which they are read.

    It can be read again, or by a computation on other devices; the wrapped cohort then makes the chunks.
    """

    def __init__(self, cohort: Planned, share: Share, room: Room):
        self.ids, self.sizes = cohort.ids, cohort.sizes
        self.lanes: int | Literal["auto"] = cohort.lanes
        self._cohort, self._share, self._room = cohort, share, room
        self._made: queue.SimpleQueue[_Made | None] = queue.SimpleQueue()
        self._next: _Made | None = None
        self._is_finished = False

    def members(self, ids: np.ndarray, mask: np.ndarray, share: Share) -> Clients:
        """Returns the chunk of the named clients, which waits here if these are the next to be read."""
        if share != self._share:
            return self._cohort.members(ids, mask, share)
        if self._next is None and not self._is_finished:
            self._next = self._made.get()
            self._is_finished = self._next is None
        if self._next is None or not np.array_equal(self._next.ids, ids):
            return self._cohort.members(ids, mask, share)
        (_, chunk, num_bytes), self._next = self._next, None
        self._room.leave(num_bytes)
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    def whole(self) -> Clients:
        """Returns the wrapped cohort whole; nothing of it is made ahead."""
        return whole(self._cohort)

    def identity(self) -> dict[str, str]:
        """Returns what the wrapped cohort says of itself."""
        return getattr(self._cohort, "identity", dict)()

    def put(self, made: _Made | None) -> None:
        """Adds the next chunk, or None after the last."""
        self._made.put(made)

    def drop(self) -> None:
        """Gives up the chunks that nobody has read."""
        while not self._is_finished:
            if self._next is not None:
                self._room.leave(self._next.num_bytes)
            self._next = self._made.get()
            self._is_finished = self._next is None


def fed(
    cohorts: Iterable[Planned],
    order: Callable[[Planned], Iterable[tuple[np.ndarray, np.ndarray]]],
    make: Callable[[Planned, np.ndarray, np.ndarray], Clients],
    num_chunks: int,
    max_bytes: int,
    share: Share,
) -> Iterator[Ahead]:
    """Yields the cohorts, whose chunks a background thread makes ahead.

    Args:
      cohorts: Read in the thread.
      order: From a cohort to its chunks' clients and masks, in the order of reading.
      make: Makes and places one chunk.
      num_chunks: How many chunks may wait at any time.
      max_bytes: No chunk is begun while those that wait have so many bytes.
      share: The devices that the chunks are made for.
    """
    room, stopped = Room(num_chunks, max_bytes), threading.Event()
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
                if not room.enter():
                    return
                try:
                    chunk = make(cohort, ids, mask)
                except BaseException as error:  # the reader raises it
                    ahead.put(_Made(ids, error, 0))
                    return
                room.fill(num_bytes := _num_bytes(chunk))
                ahead.put(_Made(ids, chunk, num_bytes))
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
        room.close()
        thread.join()


def _num_bytes(chunk: Clients) -> int:
    """Returns the size of a chunk, without a pool that is on the device anyway."""

    def own(x: object) -> object:
        return x.index if isinstance(x, Batches) and x.shared else x

    own_parts = jax.tree.map(own, chunk, is_leaf=lambda x: isinstance(x, Batches))
    return sum(x.nbytes for x in jax.tree.leaves(own_parts))
