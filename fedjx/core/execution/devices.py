"""Where arguments go: onto the devices of a mesh, cohorts divided among them, and everything else whole."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjx.core.execution.hosts import placed_rows, placed_whole, share_of
from fedjx.core.language.names import Array, PyTree
from fedjx.core.language.shares import AXIS, Share
from fedjx.core.language.values import Clients, map_own, padded, per_client, shares_pool

P = ParamSpec("P")
R = TypeVar("R")


def own_part(clients: Clients, share: Share) -> Clients:
    """Returns the clients of this process's devices of a cohort, which is padded to divide among all devices."""
    clients = padded(clients, share.num_devices)
    clients = map_own(share.of, clients)
    own, pools, join = per_client(clients)
    whole = shares_pool(clients)
    return join(own, [pool if w else jax.tree.map(share.of, pool) for w, pool in zip(whole, pools, strict=True)])


# Of XLA for CPUs. The first saves a copy of all parameters in every local step, which is made where nothing says that
# their new values come after the last use of the old; the second does one operation after the other, which suits a
# device of one core.
_CPU_OPTIONS = {
    "xla_cpu_copy_insertion_use_region_analysis": True,
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
}


# Of a program that runs once: LLVM's later passes take longer than they save.
_ONCE_OPTIONS = {"xla_backend_optimization_level": 1}


@functools.cache
def compiler_options(platform: str, *, once: bool = False) -> dict[str, bool | int] | None:
    """Returns how XLA is to compile for a platform: those options that this version of it knows, or None.

    Args:
      platform: Such as ``cpu``, the only one for which there are any.
      once: Whether for a program that runs once. What ``XLA_FLAGS`` say of the level of optimisation stays.
    """
    options: Mapping[str, bool | int] = _ONCE_OPTIONS if once else _CPU_OPTIONS
    if platform != "cpu" or (once and any(name in os.environ.get("XLA_FLAGS", "") for name in options)):
        return None
    return {name: value for name, value in options.items() if _is_known(name, value)} or None


def compiled_once(fn: Callable[P, R]) -> Callable[P, R]:
    """Compiles a function that is called once, on a CPU in less time. Within a trace it becomes part of that.

    >>> compiled_once(lambda x: x + 1)(1).tolist()
    2
    """
    part = jax.jit(fn)  # JAX refuses options there

    @functools.cache
    def alone() -> Callable[P, R]:  # JAX shall not start before the first call
        return jax.jit(fn, compiler_options=compiler_options(jax.default_backend(), once=True))

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves = [jnp.zeros(()), *jax.tree.leaves((args, kwargs))]
        is_part = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (part if is_part else alone())(*args, **kwargs)

    return run


def _is_known(name: str, value: bool | int) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except Exception:  # whatever a version says of options that it does not have
        return False
    return True


class Placer:
    """Puts arguments on a mesh: cohorts divided, everything else whole.

    Keeps the last pool it has placed, which comes again with every chunk and every round.
    """

    def __init__(self, mesh: Mesh):
        self.split, self.whole = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
        self._mesh, self._share = mesh, share_of(mesh)
        self._pools: tuple[list[Array], list[Array]] = ([], [])

    def server(self, value: PyTree) -> PyTree:
        """Copies a value to every device, unless it is there, or spread over further axes of the mesh by the user."""
        leaves, structure = jax.tree.flatten(value)
        placed = iter(self._whole([x for x in leaves if not self._is_there(x)]))
        return structure.unflatten([x if self._is_there(x) else next(placed) for x in leaves])

    def _is_there(self, x: Array) -> bool:
        where = x.sharding if isinstance(x, jax.Array) else None
        if where == self.whole or not isinstance(where, NamedSharding) or where.mesh != self._mesh:
            return where == self.whole
        axes = jax.tree.leaves(tuple(where.spec))  # of one dimension there may be several
        return bool(axes) and AXIS not in axes

    def clients(self, clients: Clients) -> Clients:
        """Divides a cohort, whole in every process; one that does not divide goes to all devices whole."""
        if clients.num_clients % self._share.num_devices == 0:
            return self.chunk(own_part(clients, self._share))
        own, pools, join = per_client(clients)
        return join(self._whole(own), self._shared_pools(pools))

    def chunk(self, clients: Clients, *, are_fresh: bool = False) -> Clients:
        """Divides the clients of this process's devices among them.

        Args:
          clients: The chunk, on the host or on the devices.
          are_fresh: Whether nobody writes to its arrays any more, so that they need no copy.
        """
        own, pools, join = per_client(clients)
        shared = shares_pool(clients)
        whole = self._shared_pools([pool if s else None for pool, s in zip(pools, shared, strict=True)])
        split = self._divided([None if s else pool for pool, s in zip(pools, shared, strict=True)], are_fresh)
        pools = [w if s else d for w, d, s in zip(whole, split, shared, strict=True)]
        return join(self._divided(own, are_fresh), pools)

    def _shared_pools(self, pools: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(pools)
        if all(isinstance(x, jax.Array) and x.sharding == self.whole for x in leaves):
            return pools
        known, placed = self._pools  # read once: a thread that makes chunks ahead places pools too
        if len(leaves) != len(known) or any(a is not b for a, b in zip(leaves, known, strict=True)):
            placed = self._whole(leaves)
            self._pools = (leaves, placed)
        # One pool may come beside other arguments: a thread that makes chunks ahead sees one of them only.
        return structure.unflatten(placed)

    def _whole(self, value: PyTree) -> PyTree:
        if self._mesh.is_multi_process:
            return placed_whole(value, self._mesh)  # device_put would compare the values of all processes
        return jax.device_put(value, self.whole)

    def _divided(self, arrays: PyTree, are_fresh: bool) -> PyTree:
        if all(isinstance(x, jax.Array) and x.sharding == self.split for x in jax.tree.leaves(arrays)):
            return arrays
        # JAX may read host memory later than the call that is given it, and a loader may use it again.
        if not are_fresh:
            arrays = jax.tree.map(lambda x: np.array(x) if isinstance(x, np.ndarray) else x, arrays)
        if self._mesh.is_multi_process:
            return placed_rows(arrays, self._mesh)
        # For one device, the compiled step takes NumPy arrays nine times faster than device_put does.
        on_host = all(isinstance(x, np.ndarray) for x in jax.tree.leaves(arrays))
        return arrays if on_host and self.split.mesh.size == 1 else jax.device_put(arrays, self.split)
