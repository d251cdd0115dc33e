"""The clients of a round in device form: a pool of examples, and the plan of who trains on which of them when."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.execution.chunks import arranged
from fedjx.core.execution.hosts import device_memory
from fedjx.core.language.checks import check_choice, check_integer
from fedjx.core.language.narrow import narrowed
from fedjx.core.language.shares import Share
from fedjx.core.language.streams import ids_or_nobody
from fedjx.core.language.values import Batches, Clients, Sequence
from fedjx.data.buckets import bucket, chunk_steps, part_rows
from fedjx.data.federated_data import ClientData, FederatedData, cached
from fedjx.data.fingerprint import fingerprint

_ALIGNMENT = 64  # bytes; of rows too, so that each device's part begins so


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
    """The clients of a round, of any number, whose batches are planned while a computation reads them.

    Each client goes once through its examples in their order; its last batch may be short.

    A computation that is called with a cohort runs as a stream of chunks: clients of similar size run
    together, longest first. All chunks have the same few shapes, whoever is in them; the padding costs next to
    nothing, since each loop over a client's batches ends with the longest of the clients that run together.
    Where one program is asked for, by `in_graph`, by `scanned` or under a transformation of JAX such as `grad`, the
    cohort is taken `whole`.

    An id that is named again, as by sampling with replacement, is a member again: it counts twice in every
    sum and mean. Its random key is made from its id, so it does the same thing twice.

    Without ids, as when `poisson_sampler` drew no client, it is a cohort of nobody: one chunk of padding. Sums over the
    clients are then 0, and what the server does each round, such as adding noise, is done.

    Attributes:
      data: The clients' examples: `FederatedData` in memory or a `Store` on disk.
      ids: Integers ``[C]``, the members of the cohort; copied to int64.
      batch_size: Examples in a batch, B.
      lanes: How many clients each device runs at once. "auto" measures it at the first round and
        keeps it; two runs then agree up to rounding. Give a number for runs that are bitwise equal.
      placement: "resident": every device holds the whole data set, and a chunk brings only its
        plan; "streamed": a chunk brings the examples of its clients too; "auto": resident if the
        data set takes at most a quarter of the device's memory (of the CPU: at most 2 GiB).

    Raises:
      ValueError: If an id does not exist, or a number is less than one.
      TypeError: If the ids are no integers, or the data no client data.

    >>> data = FederatedData({"x": np.arange(6)}, offsets=np.array([0, 1, 4, 6]))
    >>> for chunk in Cohort(data, [0, 1, 2], batch_size=1, lanes=2):
    ...     print(chunk.id.tolist(), chunk.value.length.tolist())
    [1, 2] [3, 2]
    [0, -1] [1, 1]
    >>> [chunk] = Cohort(data, [], batch_size=1)
    >>> chunk.mask.tolist(), chunk.id.tolist()
    ([False], [-1])
    """

    data: ClientData
    ids: Any
    _: dataclasses.KW_ONLY
    batch_size: int
    lanes: int | Literal["auto"] = "auto"
    placement: Literal["resident", "streamed", "auto"] = "auto"

    def __post_init__(self):
        if not hasattr(self.data, "places"):
            raise TypeError(
                "a cohort is of client data, such as FederatedData or a Store, and of ids; "
                f"got Cohort({type(self.data).__name__}, {type(self.ids).__name__}). Pass the data, then the ids."
            )
        if np.size(self.ids):
            self.data.places(self.ids)  # Raises where one is no client of the data.
        object.__setattr__(self, "ids", np.array(self.ids, np.int64))
        advice = "For all of a client's examples in one batch pass data.largest."
        check_integer("[1, inf)", advice, batch_size=self.batch_size)
        if self.lanes != "auto":
            check_integer("[1, inf)", lanes=self.lanes)
        check_choice(("resident", "streamed", "auto"), placement=self.placement)

    @cached
    def sizes(self) -> np.ndarray:
        """Number of batches of each member, int64 ``[C]``."""
        return self._batches_of(self.ids) if len(self.ids) else np.zeros(0, np.int64)

    def whole(self, *, num_steps: int | None = None, num_places: int | None = None) -> Clients:
        """Plans the whole cohort as arrays, one rectangle for all its members, in the order of the ids.

        It is what a function that you transform yourself, as by `jax.jit`, takes; each of its shapes is one program.

        Args:
          num_steps: Capacity S of the clients' sequences; by default the longest client's number of
            batches, rounded up to 1, 2, 3, 4, 6, 8, 12, 16, 24, ... so that few shapes are compiled. For data that
            change between rounds give a number, and nothing is compiled again.
          num_places: Pads the clients axis to this number with copies of the first client (a real
            client, so that nothing computed on padding is non-finite), with id -1 and mask False.

        Returns:
          `Clients` of a `Sequence` of `Batches` with index int32 ``[C, S, B]`` and length int32 ``[C]``.
          The plan is in NumPy, fresh at every call; the pool of a resident data set is on the device.

        Raises:
          ValueError: If `num_steps` or `num_places` is too small.

        >>> data = FederatedData({"x": np.arange(5)}, offsets=np.array([0, 2, 5]))
        >>> clients = Cohort(data, [1, 0], batch_size=2).whole()
        >>> clients.value.elements.index.tolist()
        [[[2, 3], [4, -1]], [[0, 1], [-1, -1]]]
        >>> clients.value.length.tolist()
        [2, 1]
        """
        members = ids_or_nobody(self)
        sizes = self._batches_of(members)
        longest = int(sizes.max())
        num_steps = bucket(longest) if num_steps is None else num_steps
        num_places = len(members) if num_places is None else num_places
        if num_steps < longest:
            raise ValueError(
                f"num_steps needs to hold the longest client; got {num_steps=} and {longest} batches for client "
                f"{members[sizes.argmax()]}. Raise num_steps, or leave it out."
            )
        if num_places < len(members):
            raise ValueError(
                f"num_places needs to hold the cohort; got {num_places=} for {len(members)} ids. Raise it, or "
                "leave it out."
            )
        is_member = np.arange(num_places) < len(members)
        ids = members[np.where(is_member, np.arange(num_places), 0)]
        planned = self._planned(ids, is_member & (ids >= 0), Share(), num_steps)
        batches = dataclasses.replace(planned.value.elements, shared=True)  # its one part is the whole
        return dataclasses.replace(planned, value=Sequence(batches, planned.value.length))

    def identity(self) -> dict[str, str]:
        """Says what must be the same in all processes that share a round, besides the ids."""
        return {
            "data": fingerprint(self.data),
            "batch_size": str(self.batch_size),
            "placement": self.placement,
        }

    def members(self, ids: np.ndarray, mask: np.ndarray, share: Share = Share()) -> Clients:
        """Plans this process's share of a chunk of the named clients; where the mask is False it is padding."""
        longest, most = self._batches_of(ids).max(), _num_batches(self.data.largest, self.batch_size)
        return self._planned(ids, mask, share, chunk_steps(int(longest), int(most)))

    def __iter__(self) -> Iterator[Clients]:
        lanes = 1 if self.lanes == "auto" else self.lanes
        members = ids_or_nobody(self)
        for rows in arranged(self._batches_of(members), lanes, num_devices=1, num_groups=1):
            ids = members[np.where(rows < 0, rows[rows >= 0][-1], rows)]
            yield self.members(ids, (rows >= 0) & (ids >= 0))

    def _batches_of(self, ids: np.ndarray) -> np.ndarray:
        return _num_batches(self.data.sizes[self.data.places(self._existing(ids))], self.batch_size)

    def _existing(self, ids: np.ndarray) -> np.ndarray:
        """Lets the first client of the data stand for nobody, -1."""
        return np.where(ids < 0, self.data.ids[0], ids)

    def _planned(self, ids: np.ndarray, mask: np.ndarray, share: Share, num_steps: int) -> Clients:
        """Plans `num_steps` batches, S, for each of this process's share of the clients ``[C]``."""
        ids = self._existing(ids)
        resident = self.placement == "resident" or (self.placement == "auto" and _fits_device(self.data, share))
        if resident:
            ids = share.of(ids)
            pool, first = self.data.pool, self.data.offsets[self.data.places(ids)]
        else:
            pool, first = _parts(self.data, ids, share)
            ids = share.of(ids)
        mask = share.of(mask)
        sizes = self.data.sizes[self.data.places(ids)]
        batches = Batches(pool, _plan(first, sizes, num_steps, self.batch_size), shared=resident)
        value = Sequence(batches, _num_batches(sizes, self.batch_size).astype(np.int32))
        return Clients(value, mask, np.where(mask, ids, -1).astype(np.int32))


def central(data: ClientData | Mapping[str, ArrayLike], *, batch_size: int) -> Sequence:
    """Plans the batches of all examples as one sequence, for centralised training and evaluation.

    Args:
      data: A federated data set, whose clients follow one another in their order, or features by
        name, each ``[N, ...]``. Nothing is shuffled.
      batch_size: Examples in a batch, B.

    Returns:
      A `Sequence` of `Batches` with index int32 ``[S, B]``, where ``S = ceil(N / B)``.

    >>> central({"x": np.arange(3)}, batch_size=2).elements.index.tolist()
    [[0, 1], [2, -1]]
    """
    data = FederatedData.from_clients([data]) if isinstance(data, Mapping) else data
    num_steps = int(_num_batches(data.num_examples, batch_size))
    index = _plan(np.zeros(1, np.int64), np.array([data.num_examples]), num_steps, batch_size)[0]
    return Sequence(Batches(data.pool, index), np.int32(num_steps))


def _plan(first: np.ndarray, sizes: np.ndarray, num_steps: int, batch_size: int) -> np.ndarray:
    """Returns int32 ``[C, S, B]``: rows ``first, first + 1, ...`` of each client, then -1."""
    position = np.arange(num_steps * batch_size, dtype=np.int32).reshape(num_steps, batch_size)  # [S, B]
    # int32 throughout, since this is the large array; what overflows is past the end and becomes -1.
    rows = first.astype(np.int32)[:, None, None] + position
    return np.where(position < sizes[:, None, None], rows, np.int32(-1))


def _num_batches(sizes, batch_size: int):
    check_integer("[1, inf)", batch_size=batch_size)
    return -(-sizes // batch_size)


def _parts(data: ClientData, ids: np.ndarray, share: Share) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Copies the clients' examples, one part of equal length for each device, one after the other.

    Args:
      data: The clients' examples.
      ids: The clients of all D devices, ``[D * C]``; one that repeats its predecessor is copied once.
      share: Which P of the devices to copy for.

    Returns:
      The features, each ``[P * N, ...]``, and where in its device's part each client begins, ``[P * C]``.
    """
    sizes = data.sizes[data.places(ids)].reshape(share.num_devices, -1)  # [D, C]
    ids = ids.reshape(share.num_devices, -1)  # [D, C]
    new = np.append(np.ones((len(ids), 1), bool), ids[:, 1:] != ids[:, :-1], axis=1)  # [D, C], not its predecessor
    ends = np.where(new, sizes, 0).cumsum(axis=1)  # [D, C], the end of each client's rows in its device's part
    # [D, C], their beginning; who repeats a predecessor has that one's, the largest so far
    first = np.maximum.accumulate(np.where(new, ends - sizes, 0), axis=1)
    row_bytes = data.num_bytes // data.num_examples
    num_rows = part_rows(int(ends[:, -1].max()), bucket(data.largest) * ids.shape[1], row_bytes)
    num_rows += -num_rows % _ALIGNMENT
    ids, new, ends, first = (share.of(x) for x in (ids, new, ends, first))
    pool = {name: _zeros((len(ids) * num_rows, *feature.shape), feature.dtype) for name, feature in data.schema.items()}
    for device, length in enumerate(ends[:, -1]):
        part = slice(device * num_rows, device * num_rows + length)
        data.read(ids[device][new[device]], out={name: column[part] for name, column in pool.items()})
    return {name: _aligned(narrowed(column, f"feature '{name}'")) for name, column in pool.items()}, first.reshape(-1)


def _aligned(column: np.ndarray) -> np.ndarray:
    """Returns a column as it is where it begins as `_zeros`, or a copy that begins so."""
    if column.ctypes.data % _ALIGNMENT == 0:
        return column
    copy = _zeros(column.shape, column.dtype)
    copy[...] = column
    return copy


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Makes an array that begins where a CPU device can use it as it is: placing it copies nothing."""
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _fits_device(data: ClientData, share: Share) -> bool:
    memory = share.memory or device_memory()
    return data.num_bytes <= memory / 4 and data.num_examples < 2**31
