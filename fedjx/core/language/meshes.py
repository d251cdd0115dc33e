"""The mesh that a user has set, which nothing here is to see.

`jax.set_mesh` gives all arrays made within it the type of its mesh, and refuses programs on another one. Computations
run on meshes of their own, with automatic axes, so they run as if none were set. What comes in is brought to automatic
axes, and what goes out to those of the mesh that is set, or nobody could add one to it there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

import jax
import jax.core
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fedjx.core.language.names import PyTree

P = ParamSpec("P")
R = TypeVar("R")

_NO_MESH = Mesh(np.empty((), object), ())


def no_mesh() -> AbstractContextManager[object]:
    """Returns a context in which no mesh is set; within a trace or a transformation one that changes nothing."""
    if jax.sharding.get_abstract_mesh().empty or isinstance(_now(), jax.core.Tracer):
        return contextlib.nullcontext()
    try:
        return jax.set_mesh(_NO_MESH)
    except ValueError:  # `grad` and `vmap` leave no mesh, and cannot be told apart otherwise
        return contextlib.nullcontext()


def outside_meshes(fn: Callable[P, R]) -> Callable[P, R]:
    """Lets a function run as if no mesh were set, within traces too.

    >>> with jax.set_mesh(jax.make_mesh((jax.device_count(),), ("clients",))):
    ...     print(jax.typeof(outside_meshes(jnp.ones)(4)).sharding.mesh.empty)
    True
    """
    call: Callable[..., R] = fn

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves = jax.tree.leaves((args, kwargs), is_leaf=_is_read_once)
        traced = [x for x in [*leaves, _now()] if isinstance(x, jax.core.Tracer)]
        if traced:
            return _traced(lambda values: call(*values[0], **values[1]), traced)((args, kwargs))
        mesh = jax.sharding.get_mesh()
        with no_mesh():
            args, kwargs = _automatic((args, kwargs))
            result = fn(*args, **kwargs)
            return result if mesh.empty else jax.tree.map(functools.partial(_within, mesh), result)

    return run


def _traced(fn: Callable[[PyTree], R], traced: list[jax.core.Tracer]) -> Callable[[PyTree], R]:
    """Lets a function that is traced see automatic axes where those of the trace or of its arguments are others."""
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(x).sharding.mesh for x in traced)]
    others = [mesh for mesh in meshes if not _is_automatic(mesh)]

    def run(values: PyTree) -> R:
        with jax.sharding.use_abstract_mesh(others[0]):
            return jax.sharding.auto_axes(fn, out_sharding=PartitionSpec())(values)  # type: ignore[return-value]

    return run if others else fn


def _now() -> jax.Array:
    return jax.numpy.zeros(())  # traced within a trace


def _is_automatic(mesh: Mesh | jax.sharding.AbstractMesh) -> bool:
    return all(kind == AxisType.Auto for kind in mesh.axis_types)


def _automatic(values: PyTree) -> PyTree:
    """Brings arrays on meshes with other axes to the same places on ones with automatic axes."""

    def one(x: PyTree) -> PyTree:
        where = x.sharding if isinstance(x, jax.Array) else None
        if not isinstance(where, NamedSharding) or _is_automatic(where.mesh):
            return x
        return jax.device_put(x, _likewise(x, where, Mesh(_devices(where.mesh), where.mesh.axis_names)))

    return jax.tree.map(one, values, is_leaf=_is_read_once)


def _is_read_once(x: object) -> bool:
    return isinstance(x, Iterator)  # which is no pytree, and for others to refuse


def _within(mesh: Mesh, x: PyTree) -> PyTree:
    """Brings an array that is on a mesh to the same places on the one that is set, or whole if these are others."""
    where = x.sharding if isinstance(x, jax.Array) else None
    if not isinstance(where, NamedSharding):
        return x
    if where.mesh.axis_names == mesh.axis_names and np.array_equal(_devices(where.mesh), _devices(mesh)):
        return jax.device_put(x, _likewise(x, where, mesh))
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec())) if where.is_fully_replicated else x


def _likewise(x: jax.Array, where: NamedSharding, mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*where.spec[: x.ndim]))  # that of a key may be of its words


def _devices(mesh: Mesh | jax.sharding.AbstractMesh) -> np.ndarray:
    return np.asarray(mesh.devices)
