"""Meshes, and which part of one belongs to this process where several processes share it.

Several processes, on one machine or many, run the same program on the same arguments. Each knows
the whole plan, and makes and places only the rows of its own devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any

AXIS = "clients"


def auto_mesh(mesh: Mesh) -> Mesh:
    """Returns the mesh with automatic axis types, the only ones that mix with users' own code.

    Raises:
      ValueError: If the mesh has no axis ``clients``, or not a device of every process.
    """
    if AXIS not in mesh.shape:
        raise ValueError(
            f"a mesh needs an axis named {AXIS!r}; got {tuple(mesh.shape)}. "
            f"Make one with jax.make_mesh((jax.device_count(),), ({AXIS!r},))."
        )
    processes = sorted({device.process_index for device in mesh.devices.flat})
    if len(processes) != jax.process_count():
        raise ValueError(
            f"a mesh needs devices of each of the {jax.process_count()} processes; got those of {processes} in "
            f"process {jax.process_index()}. Make it of jax.devices(), which are all, not jax.local_devices()."
        )
    return Mesh(mesh.devices, mesh.axis_names)


def own_positions(mesh: Mesh) -> np.ndarray:
    """Returns where along the axis ``clients`` the devices of this process are, int64 ``[P]``."""
    by_position = np.moveaxis(mesh.devices, mesh.axis_names.index(AXIS), 0).reshape(mesh.shape[AXIS], -1)
    is_own = [[device.process_index == jax.process_index() for device in row] for row in by_position]
    return np.flatnonzero(np.any(is_own, axis=1))


def is_shared(x: Any) -> bool:
    """Tells whether an array lies on devices of other processes too."""
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def rows_at(positions: np.ndarray, x: Any, num_devices: int) -> Any:
    """Selects the rows of some devices from those of all, ``[D * R, ...]``."""
    if len(positions) == num_devices or is_shared(x):
        return x
    return x.reshape(num_devices, -1, *x.shape[1:])[positions].reshape(-1, *x.shape[1:])


def agreed(number: float) -> float:
    """Returns the number of process 0 in every process, for what each measures differently."""
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.broadcast_one_to_all(np.float32(number)))


def placed_whole(value: PyTree, mesh: Mesh) -> PyTree:
    """Copies a value, which every process has, to the devices of this process, as part of the whole mesh.

    Nothing is sent to other processes, or compared with theirs.
    """
    return jax.tree.map(lambda x: _assembled(x, np.shape(x), NamedSharding(mesh, PartitionSpec()), lambda _: x), value)


def placed_rows(rows: PyTree, mesh: Mesh) -> PyTree:
    """Makes arrays that all processes share, of the rows ``[P * R, ...]`` of the devices of this process."""
    sharding, positions = NamedSharding(mesh, PartitionSpec(AXIS)), own_positions(mesh)

    def place(x: Any) -> jax.Array:
        num_rows = x.shape[0] // len(positions)

        def part(index: tuple[slice, ...]) -> Any:
            start = num_rows * np.searchsorted(positions, (index[0].start or 0) // num_rows)
            return x[start : start + num_rows]

        return _assembled(x, (num_rows * mesh.shape[AXIS], *x.shape[1:]), sharding, part)

    return jax.tree.map(place, rows)


def _assembled(
    x: Any, shape: tuple[int, ...], sharding: NamedSharding, part: Callable[[tuple[slice, ...]], Any]
) -> jax.Array:
    if is_shared(x):  # the processes share it already
        return x if x.sharding == sharding else jax.device_put(x, sharding)
    where = sharding.addressable_devices_indices_map(shape)
    parts = jax.device_put([part(index) for index in where.values()], list(where))
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def own_rows(shared: PyTree) -> PyTree:
    """Returns the rows that the devices of this process hold of arrays ``[C, ...]``, as arrays that are its own."""
    return jax.tree.map(_own_rows, shared)


def _own_rows(x: Any) -> Any:
    if not is_shared(x):
        return x
    by_start = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}  # one of equal copies
    parts = [by_start[start] for start in sorted(by_start)]
    mesh = Mesh(np.array([part.device for part in parts]), (AXIS,))
    shape = (sum(len(part) for part in parts), *x.shape[1:])
    return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, PartitionSpec(AXIS)), parts)
