"""A cohort in chunks: what the streamed executor reads, whatever form the cohort is given in."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.execution.devices import own_part
from fedjx.core.language.names import PyTree
from fedjx.core.language.shares import Share
from fedjx.core.language.streams import Planned, ids_or_nobody, is_planned
from fedjx.core.language.values import Clients, check_same_clients, map_own, side_by_side

# Groups of lanes in one chunk: enough to hide the cost of a dispatch, few enough to bound memory.
_GROUPS = 16
# Results that stay with the clients wait on the device for the whole chunk; more bytes are work enough for a dispatch.
_RESULT_BYTES = 1 << 24


class Level(NamedTuple):
    """A number of clients that a device runs at once.

    Attributes:
      lanes: The number.
      seconds: What a client takes among so many, up to a factor common to all levels.
    """

    lanes: int
    seconds: float


class Chunks:
    """The arguments at CLIENTS, side by side in chunks: of each chunk the part of this process's devices.

    The first `Planned` argument with sizes leads: it says who is in a chunk, and all others are read by id.
    Without one, streams come in the chunks that they are, and whole `Clients` are cut.

    Attributes:
      asked_lanes: How many clients each device is to run at once: a number, "auto", or None where
        nothing leads.
      are_fresh: Whether nobody writes to the chunks' arrays any more.

    Args:
      arguments: The arguments at CLIENTS, at least one.
      share: Which of the devices are this process's.
      result_bytes: What a client leaves behind: so many bytes at most, or None if that is unknown.
    """

    def __init__(self, arguments: list[PyTree], share: Share, *, result_bytes: int | None):
        if not arguments:
            raise ValueError("a cohort needs at least one client; got no argument at CLIENTS. Pass Clients.")
        self._arguments, self._share, self._num_devices = arguments, share, share.num_devices
        self._result_bytes = result_bytes
        planned = [a for a in arguments if is_planned(a)]
        self._leader: Planned | None = next((a for a in planned if a.sizes is not None), (*planned, None)[0])
        self._ids = np.zeros(0, np.int64) if self._leader is None else ids_or_nobody(self._leader)
        self.asked_lanes = None if self._leader is None else self._leader.lanes
        self.are_fresh = len(planned) == len(arguments)
        if self._leader is None:
            check_same_clients([a for a in arguments if isinstance(a, Clients)])

    @property
    def has_client(self) -> bool:
        """Whether there is anybody in what leads."""
        return bool(np.any(self._ids >= 0))

    def cut(self, levels: list[Level]) -> _Again:
        """Returns the chunks, each with how many of its clients a device runs at once; can be read again.

        Args:
          levels: At most which numbers of lanes to use, the fastest first. None given, or nothing
            that leads: all clients of a chunk run at once.
        """
        if self._leader is None:
            size = levels[0].lanes * self._num_devices if levels else None
            streams = [_cut(a, size) if isinstance(a, Clients) else a for a in self._arguments]
            return _Again(lambda: ((None, own_part(chunk, self._share)) for chunk in _zipped(streams)))
        order = self.order(levels)
        return _Again(lambda: ((lanes, self._chunk(ids, mask)) for lanes, ids, mask in order))

    def order(self, levels: list[Level]) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Returns the chunks of what leads: lanes, ids and mask of each."""
        assert self._leader is not None
        sizes = self._sizes()
        return [
            (lanes, *self._named(np.where(rows < 0, -1, members[rows])))
            for lanes, members in levelled(sizes, levels)
            for rows in arranged(sizes[members], lanes, self._num_devices, self._num_groups(lanes))
        ]

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Returns where in ``ids``, those of the chunks' clients, the first of the cohort is, the second, and so on."""
        if self._leader is None:
            return np.arange(len(ids))  # nobody has rearranged them
        asked = self._ids  # [C], in the order of the cohort; ids [C], in that of the chunks
        order, by_id = np.argsort(asked, kind="stable"), np.argsort(ids, kind="stable")
        # Who is named again is there again: which time it is, too, tells who belongs where.
        times = np.empty(len(ids), np.int64)  # [C], for each of ids: 0 the first time, 1 the second, ...
        times[by_id] = np.arange(len(ids)) - np.searchsorted(ids[by_id], ids[by_id])
        in_cohort = order[np.searchsorted(asked[order], ids) + times]  # [C], where in asked each of ids is
        return np.argsort(in_cohort)  # [C], its inverse

    def sample(self, lanes: int, *, is_full: bool) -> Clients:
        """Returns a chunk of the shape that `cut` gives, of copies of a middling client: one group, or all."""
        assert self._leader is not None
        middling = np.argsort(self._sizes())[len(self._ids) // 2]
        rows = np.full((self._num_devices, self._num_groups(lanes), lanes), -1)  # [D, G, L]
        rows[:, : None if is_full else 1] = middling
        return self._chunk(*self._named(rows.reshape(-1)))

    def lane_counts(self) -> list[int]:
        """Returns the numbers of lanes worth trying, from few to many."""
        assert self._leader is not None
        most = -(-len(self._ids) // self._num_devices)
        return [lanes for lanes in (1, 4, 16, 64, 256, 1024) if lanes == 1 or lanes <= most]

    def _sizes(self) -> np.ndarray:
        assert self._leader is not None
        sizes = self._leader.sizes
        is_known = sizes is not None and len(sizes) == len(self._ids)
        return np.asarray(sizes) if is_known else np.ones(len(self._ids), np.int64)

    def _num_groups(self, lanes: int) -> int:
        assert self._leader is not None
        needed = -(-len(self._ids) // (lanes * self._num_devices))
        groups = min(_GROUPS, 1 << (needed - 1).bit_length())  # powers of two: few shapes
        while groups > 1 and (self._result_bytes is None or groups * lanes * self._result_bytes > _RESULT_BYTES):
            groups //= 2
        return groups

    def _named(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids at these positions, and which are not padding, which is copies of its predecessor."""
        assert self._leader is not None
        by_device = rows.reshape(self._num_devices, -1)  # [D, G * L], -1 for padding
        # [D, G * L], for each place the last one up to it that is no padding; -1 before a device's first client
        last = np.maximum.accumulate(np.where(by_device < 0, -1, np.arange(by_device.shape[1])), axis=1)
        real = np.take_along_axis(by_device, last, axis=1)  # -1 still where a device has no client at all
        real = np.where(real < 0, rows[rows >= 0][-1], real)
        ids = self._ids[real.reshape(-1)]
        return ids, (rows >= 0) & (ids >= 0)  # both [D * G * L]

    def _chunk(self, ids: np.ndarray, mask: np.ndarray) -> Clients:
        own_ids, own_mask = self._share.of(ids), self._share.of(mask)
        parts = [
            _rows(a, own_ids, own_mask) if isinstance(a, Clients) else a.members(ids, mask, self._share)
            for a in self._arguments
        ]
        # All were asked for the same clients, and what the leader brings may lie on the devices already.
        leading = parts[[a is self._leader for a in self._arguments].index(True)]
        return Clients(tuple(part.value for part in parts), leading.mask, leading.id)


def levelled(sizes: np.ndarray, levels: list[Level]) -> Iterator[tuple[int, np.ndarray]]:
    """Distributes a cohort over numbers of lanes, so that few lanes wait for a much longer one.

    A group of clients of very different size goes to the next level, where fewer wait.

    Args:
      sizes: Of the clients, ``[C]``.
      levels: From the most lanes to the fewest.

    Yields:
      Lanes, and the positions in ``sizes`` of the clients that run in so many, int64 ``[...]``.

    >>> levels = [Level(4, 1.0), Level(1, 1.5)]
    >>> [(lanes, rows.tolist()) for lanes, rows in levelled(np.array([3, 90, 3, 4, 3, 4, 9, 3, 4]), levels)]
    [(4, [8, 0, 2, 4]), (1, [1, 6, 3, 5, 7])]
    """
    order = np.argsort(-sizes, kind="stable")
    for level, slower in itertools.zip_longest(levels, levels[1:]):
        if slower is None:
            stays = np.ones(len(order), bool)
        else:
            padded = np.append(sizes[order], np.zeros(-len(order) % level.lanes, sizes.dtype))
            groups = padded.reshape(-1, level.lanes)  # [groups, L], the sizes of those who would run together
            together = level.lanes * groups.max(axis=1) * level.seconds  # [groups], all lanes run as the longest
            stays = np.repeat(together <= groups.sum(axis=1) * slower.seconds, level.lanes)[: len(order)]
        if stays.any():
            yield level.lanes, order[stays]
        order = order[~stays]


def arranged(sizes: ArrayLike, lanes: int, num_devices: int, num_groups: int) -> np.ndarray:
    """Arranges a cohort in chunks whose groups hold clients of similar size.

    Args:
      sizes: Of the clients, ``[C]``.
      lanes: Clients that a device runs at once, L.
      num_devices: Devices, D; each gets its part of a chunk's rows.
      num_groups: Groups of lanes that a device runs one after the other in a chunk, G.

    Returns:
      Positions in ``sizes``, longest first, and -1 for padding: int64 ``[chunks, D * G * L]``.

    >>> arranged([5, 1, 9, 7, 3], lanes=1, num_devices=2, num_groups=2).tolist()
    [[2, 4, 3, 0], [1, -1, -1, -1]]
    """
    order = np.argsort(-np.asarray(sizes), kind="stable")  # [C], longest first
    missing = -len(order) % (num_groups * num_devices * lanes)
    groups = np.concatenate([order, np.full(missing, -1)]).reshape(-1, num_devices, lanes)  # [chunks * G, D, L]
    groups[1::2] = groups[1::2, ::-1]  # no device always gets the larger ones
    by_device = groups.reshape(-1, num_groups, num_devices, lanes).swapaxes(1, 2)  # [chunks, D, G, L]
    return by_device.reshape(-1, num_devices * num_groups * lanes)


class _Again:
    """An iterable that can be read again."""

    def __init__(self, read: Callable[[], Iterator[PyTree]]):
        self._read = read

    def __iter__(self) -> Iterator[PyTree]:
        return self._read()


def _zipped(streams: list[PyTree]) -> Iterator[Clients]:
    for number, chunks in enumerate(itertools.zip_longest(*streams)):
        if any(chunk is None for chunk in chunks):
            raise ValueError(
                "all arguments at CLIENTS need the same clients in the same chunks; "
                f"got one that ends after {number} chunks. Sample them together."
            )
        yield side_by_side(list(chunks))


def _rows(clients: Clients, ids: np.ndarray, mask: np.ndarray) -> Clients:
    """Selects the named clients of a cohort that is given whole."""
    known = np.where(clients.mask, clients.id, -1)  # [C], those of the cohort; ids [chunk], those asked for
    order = np.argsort(known)
    places = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(order) - 1)]  # [chunk], rows of clients
    missing = ids[known[places] != ids]
    if len(missing):
        raise ValueError(
            "all arguments at CLIENTS need the same clients; "
            f"got none of id {sorted(set(missing.tolist()))[:5]} in one. Sample them together."
        )
    value = map_own(lambda x: x[places], clients.value)
    return Clients(value, mask, np.where(mask, ids, -1).astype(np.int32))


def _cut(clients: Clients, size: int | None) -> list[Clients]:
    """Cuts a cohort into chunks of one size, the last padded with copies of its first clients."""
    num_clients = clients.num_clients
    size = min(size or num_clients, num_clients)
    chunks = []
    for start in range(0, num_clients, size):
        rows = np.arange(start, start + size)  # [size], past the end of the cohort for padding
        chunk = map_own(lambda x, rows=rows: x[rows % num_clients], clients)
        real = rows < num_clients
        chunks.append(Clients(chunk.value, jnp.asarray(chunk.mask) & real, jnp.where(real, chunk.id, -1)))
    return chunks
