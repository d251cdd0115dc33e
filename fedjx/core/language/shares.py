"""Which part of a cohort belongs to this process, where several processes share the devices of a mesh."""

from __future__ import annotations

from typing import NamedTuple, TypeGuard

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjx.core.language.names import Array, PyTree

AXIS = "clients"


class Share(NamedTuple):
    """The part of a mesh's axis ``clients`` that belongs to this process.

    Attributes:
      num_devices: Length of the axis, D.
      positions: Where on the axis the devices of this process are, increasing; all if None.
      memory: Bytes that a device has, agreed between the processes.
    """

    num_devices: int = 1
    positions: np.ndarray | None = None
    memory: float | None = None

    @property
    def num_own(self) -> int:
        """Returns the number of positions, P."""
        return self.num_devices if self.positions is None else len(self.positions)

    def of(self, x: PyTree) -> PyTree:
        """Selects the rows of this process's devices from those of all devices.

        >>> Share(3, np.array([0, 2])).of(np.arange(6))
        array([0, 1, 4, 5])
        """
        if self.positions is None or is_shared(x):
            return x
        return x.reshape(self.num_devices, -1, *x.shape[1:])[self.positions].reshape(-1, *x.shape[1:])


def is_shared(x: object) -> TypeGuard[jax.Array]:
    """Tells whether an array lies on devices of other processes too."""
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def own_rows(shared: PyTree) -> PyTree:
    """Returns the rows that this process's devices hold of arrays ``[C, ...]``, as arrays that are its own."""
    return jax.tree.map(_own_rows, shared)


def _own_rows(x: Array) -> Array:
    if not is_shared(x):
        return x
    by_start = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}  # one of equal copies
    parts = [by_start[start] for start in sorted(by_start)]
    mesh = Mesh(np.array([part.device for part in parts]), (AXIS,))
    shape = (sum(len(part) for part in parts), *x.shape[1:])
    return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, PartitionSpec(AXIS)), parts)
