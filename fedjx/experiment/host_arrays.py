"""Arrays of a state or of metrics, on this machine."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.names import Array, PyTree
from fedjx.experiment.run_directory import RunError


def plain(leaf: PyTree) -> Array:
    """Returns an array of a type that NumPy has: of random keys their data."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(
            f"a state needs to have arrays; got {leaf}. Give one such as `algorithm.init(jax.random.key(0))`."
        )
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def own_copy(leaf: PyTree) -> Array:
    """Returns a copy that nobody else changes, donates or deletes, on its way to this machine; it does not wait."""
    array = plain(leaf)
    if not isinstance(array, jax.Array):
        return np.array(array)
    copy = jnp.copy(array)
    if copy.is_fully_addressable:
        copy.copy_to_host_async()
    return copy


def on_host(leaf: PyTree) -> np.ndarray:
    """Waits for an array, and returns it in NumPy.

    Raises:
      RunError: If other processes have parts of it.
    """
    array = plain(leaf)
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if not array.is_fully_replicated:
        raise RunError(
            f"a run keeps what each process has whole; got {array.sharding} for {array.shape}. Gather it first: "
            "`jax.experimental.multihost_utils.process_allgather`."
        )
    return np.asarray(array.addressable_data(0))


def like(arrays: list[np.ndarray], template: PyTree) -> PyTree:
    """Makes a state of arrays, placed as another one."""

    def placed(array: np.ndarray, leaf: PyTree) -> PyTree:
        if not isinstance(leaf, jax.Array):
            return array
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
            return jax.device_put(key, leaf.sharding)
        return jax.device_put(array, leaf.sharding)

    leaves, treedef = jax.tree.flatten(template)
    return treedef.unflatten([placed(array, leaf) for array, leaf in zip(arrays, leaves, strict=True)])
