"""Meshes, and which part of one belongs to this process where several processes share it.

Several processes, on one machine or many, run the same program on the same arguments. Each knows
the whole plan, and makes and places only the rows of its own devices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjx.core.language.names import Array, PyTree
from fedjx.core.language.shares import AXIS, Share, is_shared


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
            f"a mesh needs devices of all {jax.process_count()} processes; process {jax.process_index()} got one "
            f"with those of {processes}. Make it of jax.devices(), not of jax.local_devices()."
        )
    return Mesh(mesh.devices, mesh.axis_names)


def share_of(mesh: Mesh) -> Share:
    """Returns the share that this process has in a mesh."""
    num_devices = mesh.shape[AXIS]
    if not mesh.is_multi_process:
        return Share(num_devices)
    by_position = np.moveaxis(mesh.devices, mesh.axis_names.index(AXIS), 0).reshape(num_devices, -1)
    is_own = [[device.process_index == jax.process_index() for device in row] for row in by_position]
    return Share(num_devices, np.flatnonzero(np.any(is_own, axis=1)))


def device_memory() -> float:
    """Returns the bytes that a device of this process has; 8 GiB where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 2**33)


def agreed(number: float) -> float:
    """Returns the number of process 0 in every process, for what they measure differently."""
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.broadcast_one_to_all(np.float32(number)))


def differences(own: Mapping[str, str]) -> dict[str, list[int]]:
    """Compares named texts of all processes, by one hash unless it differs.

    Returns:
      The names of those that differ, each with the processes that have another text than process 0, or none.
    """
    text = json.dumps(own).encode()
    hashes = _gathered(hashlib.sha256(text).digest())
    if len(set(hashes)) == 1:
        return {}
    length = max(_gathered(len(text).to_bytes(8, "big")))
    found = [json.loads(every) for every in _gathered(text.ljust(int.from_bytes(length, "big")))]
    names = dict.fromkeys(name for every in found for name in every)
    others = {name: [i for i, every in enumerate(found) if every.get(name) != found[0].get(name)] for name in names}
    return {name: ranks for name, ranks in others.items() if ranks}


def _gathered(own: bytes) -> list[bytes]:
    """Returns the bytes of every process, as many in each."""
    numbers = np.frombuffer(own, np.uint8).astype(np.int32)
    return [bytes(row.astype(np.uint8)) for row in multihost_utils.process_allgather(numbers)]


# --- arrays that processes share ----------------------------------------------------------------


def placed_whole(value: PyTree, mesh: Mesh) -> PyTree:
    """Copies a value, which every process has, to all devices; each process serves its own.

    Nothing is sent to other processes, or compared with theirs.
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: _assembled(x, np.shape(x), sharding, lambda _: x), value)


def placed_rows(rows: PyTree, mesh: Mesh) -> PyTree:
    """Makes arrays ``[D * R, ...]`` of the rows ``[P * R, ...]`` that each process has for its devices."""
    sharding, share = NamedSharding(mesh, PartitionSpec(AXIS)), share_of(mesh)
    positions = np.arange(share.num_devices) if share.positions is None else share.positions

    def place(x: Array) -> jax.Array:
        num_rows = x.shape[0] // len(positions)

        def part(index: tuple[slice, ...]) -> Array:
            start = num_rows * np.searchsorted(positions, (index[0].start or 0) // num_rows)
            return x[start : start + num_rows]

        return _assembled(x, (num_rows * share.num_devices, *x.shape[1:]), sharding, part)

    return jax.tree.map(place, rows)


def _assembled(
    x: Array, shape: tuple[int, ...], sharding: NamedSharding, part: Callable[[tuple[slice, ...]], Array]
) -> jax.Array:
    if is_shared(x):
        return x if x.sharding == sharding else jax.device_put(x, sharding)
    where = sharding.addressable_devices_indices_map(shape)
    parts = jax.device_put([part(index or ()) for index in where.values()], list(where))
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)
