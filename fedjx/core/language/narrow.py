"""Arrays of 64 bits on a device that has 32: exact, or refused in one sentence wherever they come from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def narrowed(array: np.ndarray, what: str, *, may_round: bool = False) -> np.ndarray:
    """Returns an array in the dtype that JAX gives it: without jax_enable_x64 one of at most 32 bits a number.

    Args:
      array: On the host.
      what: It, for the error.
      may_round: Whether reals may lose precision, as everywhere in JAX, though not become infinite.

    Raises:
      ValueError: If a value would change.

    >>> narrowed(np.arange(3), "a count").dtype
    dtype('int32')
    """
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = array.astype(dtype)
    if may_round and array.dtype.kind in "fc":
        changed = np.isinf(narrow) & ~np.isinf(array)
    else:
        changed = (narrow.astype(array.dtype) != array) & (array == array)  # NaN stays NaN
    if changed.any():
        raise ValueError(
            f"{what} must be exact in {dtype}, as the device stores it; got {array.dtype} {array[changed][0]}, which "
            f"would be {narrow[changed][0]}. Round or renumber it first, as by x.astype(np.float32), or enable "
            "jax_enable_x64."
        )
    return narrow


def is_numeric(dtype: np.dtype) -> bool:
    """Tells whether JAX has numbers of a dtype: no text, dates or times, and no floats of more than 64 bits."""
    if dtype.kind == "m" or dtype.itemsize > {"f": 8, "c": 16}.get(dtype.kind, 8):
        return False
    return bool(jnp.issubdtype(dtype, np.number) or dtype.kind == "b")
