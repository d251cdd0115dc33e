"""Cohorts in device form: a pool of examples and the plan of who trains on which of them when."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.execution.chunks import arranged
from fedjx.core.execution.hosts import device_memory
from fedjx.core.language.shares import Share
from fedjx.core.language.values import Batches, Clients, Sequence
from fedjx.data.federated_data import ClientData, FederatedData, cached

_ALIGNMENT = 64  # bytes; of rows too, so that each device's part begins so


def cohort(
    data: ClientData,
    ids: ArrayLike,
    *,
    batch_size: int,
    num_steps: int | None = None,
    num_clients: int | None = None,
) -> Clients:
    """Plans the batches of some clients, one rectangle for all of them.

    Each client goes once through its examples in their order; its last batch may be short.

    Args:
      data: The clients' examples.
      ids: Integers ``[C]``, the members of the cohort.
      batch_size: Examples in a batch, B.
      num_steps: Capacity S of the clients' sequences; by default the longest client's number of
        batches, rounded up to 1, 2, 3, 4, 6, 8, 12, 16, 24, ... so that few shapes are compiled.
      num_clients: Pads the clients axis to this number with copies of the first client (a real
        client, so that nothing computed on padding is non-finite), with id -1 and mask False.

    Returns:
      `Clients` of a `Sequence` of `Batches` with index int32 ``[C, S, B]`` and length int32 ``[C]``.
      The plan is in NumPy, fresh at every call; the pool is on the device.

    Raises:
      ValueError: If there is no client, an id does not exist, or `batch_size`, `num_steps` or
        `num_clients` is too small.

    >>> data = FederatedData({"x": np.arange(5)}, offsets=np.array([0, 2, 5]))
    >>> clients = cohort(data, [1, 0], batch_size=2)
    >>> clients.value.elements.index.tolist()
    [[[2, 3], [4, -1]], [[0, 1], [-1, -1]]]
    >>> clients.value.length.tolist()
    [2, 1]
    """
    ids, places = np.asarray(ids), data.places(ids)
    lengths = _num_batches(data.sizes[places], batch_size)
    longest = int(lengths.max())
    if num_steps is None:
        num_steps = _bucket(longest)
    if num_steps < longest:
        raise ValueError(
            f"num_steps needs to hold the longest client; got {num_steps=} and {longest} batches for client "
            f"{ids[lengths.argmax()]}. Raise num_steps, or leave it out."
        )
    if num_clients is None:
        num_clients = len(ids)
    if num_clients < len(ids):
        raise ValueError(
            f"num_clients needs to hold the cohort; got {num_clients=} for {len(ids)} ids. Raise it, or use Cohort."
        )
    mask = np.arange(num_clients) < len(ids)
    rows = np.where(mask, np.arange(num_clients), 0)
    index = _plan(data.offsets[places[rows]], data.sizes[places[rows]], num_steps, batch_size)
    return Clients(
        Sequence(Batches(data.pool, index), lengths[rows].astype(np.int32)),
        mask=mask,
        id=np.where(mask, ids[rows], -1).astype(np.int32),
    )


def empty_cohort(data: ClientData, *, batch_size: int) -> list[Clients]:
    """Returns a cohort of nobody, for a round in which `poisson_sampler` drew no client.

    It is one chunk of padding. An algorithm runs the round on it as on any other: sums over the clients are 0,
    and what the server does each round, such as adding noise, is done.

    >>> data = FederatedData({"x": np.arange(3)}, offsets=np.array([0, 1, 3]))
    >>> [chunk] = empty_cohort(data, batch_size=2)
    >>> chunk.mask.tolist(), chunk.id.tolist()
    ([False], [-1])
    """
    nobody = Cohort(data, data.ids[:1], batch_size=batch_size, lanes=1)
    return [nobody.members(nobody.ids, np.zeros(1, bool))]


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
    """A cohort of any size, whose chunks are planned while a streamed computation reads them.

    Clients of similar size run together, longest first. All chunks have the same few shapes,
    whoever is in them; the padding costs next to nothing, since each loop over a client's batches
    ends with the longest of the clients that run together.

    An id that is named again, as by sampling with replacement, is a member again: it counts twice in every
    sum and mean. Its random key is made from its id, so it does the same thing twice.

    Attributes:
      data: The clients' examples: `FederatedData` in memory or a `Store` on disk.
      ids: Integers, the members of the cohort; see `empty_cohort` for none.
      batch_size: Examples in a batch.
      lanes: How many clients each device runs at once. "auto" measures it at the first round and
        keeps it; two runs then agree up to rounding. Give a number for runs that are bitwise equal.
      placement: "resident": every device holds the whole data set, and a chunk brings only its
        plan; "streamed": a chunk brings the examples of its clients too; "auto": resident if the
        data set takes at most a quarter of the device's memory (of the CPU: at most 2 GiB).

    Raises:
      ValueError: If there is no client, an id does not exist, or a number is less than one.

    >>> data = FederatedData({"x": np.arange(6)}, offsets=np.array([0, 1, 4, 6]))
    >>> for chunk in Cohort(data, [0, 1, 2], batch_size=1, lanes=2):
    ...     print(chunk.id.tolist(), chunk.value.length.tolist())
    [1, 2] [3, 2]
    [0, -1] [1, 1]
    """

    data: ClientData
    ids: Any
    _: dataclasses.KW_ONLY
    batch_size: int
    lanes: int | Literal["auto"] = "auto"
    placement: Literal["resident", "streamed", "auto"] = "auto"

    def __post_init__(self):
        self.data.places(self.ids)  # Raises where one is no client of the data.
        object.__setattr__(self, "ids", np.asarray(self.ids, np.int64))
        _check_positive("batch_size", self.batch_size)
        if self.lanes != "auto":
            _check_positive("lanes", self.lanes)
        if self.placement not in ("resident", "streamed", "auto"):
            raise ValueError(
                f"a placement is 'resident', 'streamed' or 'auto'; got {self.placement!r}. Choose one of them."
            )

    @cached
    def sizes(self) -> np.ndarray:
        """Number of batches of each member, int64 ``[C]``."""
        return _num_batches(self.data.sizes[self.data.places(self.ids)], self.batch_size)

    def members(self, ids: np.ndarray, mask: np.ndarray, share: Share = Share()) -> Clients:
        """Plans this process's share of a chunk of the named clients; where the mask is False it is padding."""
        longest = _num_batches(self.data.sizes[self.data.places(ids)].max(), self.batch_size)
        num_steps = _capacity(int(longest), int(_num_batches(self.data.largest, self.batch_size)), least=64)
        resident = self.placement == "resident" or (self.placement == "auto" and _fits_device(self.data, share))
        if resident:
            ids = share.of(ids)
            pool, first = self.data.pool, self.data.offsets[self.data.places(ids)]
        else:
            pool, first = _parts(self.data, ids, share)
            ids = share.of(ids)
        sizes, mask = self.data.sizes[self.data.places(ids)], share.of(mask)
        batches = Batches(pool, _plan(first, sizes, num_steps, self.batch_size), shared=resident)
        value = Sequence(batches, _num_batches(sizes, self.batch_size).astype(np.int32))
        return Clients(value, mask, np.where(mask, ids, -1).astype(np.int32))

    def __iter__(self) -> Iterator[Clients]:
        lanes = 1 if self.lanes == "auto" else self.lanes
        for rows in arranged(self.sizes, lanes, num_devices=1, num_groups=1):
            yield self.members(self.ids[np.where(rows < 0, rows[rows >= 0][-1], rows)], rows >= 0)


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
    position = np.arange(num_steps * batch_size, dtype=np.int32).reshape(num_steps, batch_size)
    # int32 throughout, since this is the large array; what overflows is past the end and becomes -1.
    rows = first.astype(np.int32)[:, None, None] + position
    return np.where(position < sizes[:, None, None], rows, np.int32(-1))


def _num_batches(sizes, batch_size: int):
    _check_positive("batch_size", batch_size)
    return -(-sizes // batch_size)


def _bucket(num_steps: int) -> int:
    """Rounds up to a power of two or three times one: two shapes per doubling, at most 1.5 times as long."""
    power = 1 << (num_steps - 1).bit_length()
    three_quarters = 3 * power // 4
    return three_quarters if power >= 4 and num_steps <= three_quarters else power


def _capacity(needed: int, most: int, *, least: int) -> int:
    """Returns the size to plan for: the most there can be, or that divided by 4, 16, ... where it is far too large.

    Whoever is in a cohort, there are few sizes, and so few programs.
    """
    while most > max(4 * needed, least):
        most = -(-most // 4)
    return most


def _parts(data: ClientData, ids: np.ndarray, share: Share) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Copies the clients' examples, one part of equal length for each device, one after the other.

    Args:
      data: The clients' examples.
      ids: The clients of all D devices, ``[D * C]``; one that repeats its predecessor is copied once.
      share: Which P of the devices to copy for.

    Returns:
      The features, each ``[P * N, ...]``, and where in its device's part each client begins, ``[P * C]``.
    """
    sizes = data.sizes[data.places(ids)].reshape(share.num_devices, -1)
    ids = ids.reshape(share.num_devices, -1)
    new = np.append(np.ones((len(ids), 1), bool), ids[:, 1:] != ids[:, :-1], axis=1)
    ends = np.where(new, sizes, 0).cumsum(axis=1)
    first = np.maximum.accumulate(np.where(new, ends - sizes, 0), axis=1)
    capacity = _capacity(int(ends[:, -1].max()), data.largest * ids.shape[1], least=1)
    capacity += -capacity % _ALIGNMENT
    ids, new, ends, first = (share.of(x) for x in (ids, new, ends, first))
    pool = {name: _zeros((len(ids) * capacity, *feature.shape), feature.dtype) for name, feature in data.schema.items()}
    for device, length in enumerate(ends[:, -1]):
        part = slice(device * capacity, device * capacity + length)
        data.read(ids[device][new[device]], out={name: column[part] for name, column in pool.items()})
    return pool, first.reshape(-1)


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Makes an array that begins where a CPU device can use it as it is: placing it copies nothing."""
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _fits_device(data: ClientData, share: Share) -> bool:
    memory = share.memory or device_memory()
    return data.num_bytes <= memory / 4 and data.num_examples < 2**31


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} needs to be at least 1; got {name}={value}. Give a positive number.")
