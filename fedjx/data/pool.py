"""The examples of a data set as the device has them: in its dtypes, exactly, in one of few shapes."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.data.buckets import pool_rows


def pool_of(examples: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Copies columns ``[N, ...]`` to the device, each in `pool_rows` rows, the last ones of zeros.

    Raises:
      ValueError: If there are 2^31 rows, or as `narrowed`.
    """
    num_rows = max(map(len, examples.values()))
    if num_rows > np.iinfo(np.int32).max:
        raise ValueError(f"a pool is indexed with int32; got num_examples={num_rows}. Split the data set by clients.")
    # At first use a round may be being traced; the pool must outlive that trace.
    with jax.ensure_compile_time_eval():
        columns = {name: narrowed(name, column) for name, column in examples.items()}
        num_rows = pool_rows(num_rows, sum(column.nbytes for column in columns.values()) // num_rows)
        return {name: _placed(column, num_rows) for name, column in columns.items()}


def narrowed(name: str, column: np.ndarray) -> np.ndarray:
    """Returns a column in the dtype that it has on the device: without jax_enable_x64 one of at most 32 bits.

    Raises:
      ValueError: If that would change a value.

    >>> narrowed("x", np.arange(3)).dtype
    dtype('int32')
    """
    dtype = jax.dtypes.canonicalize_dtype(column.dtype)
    if dtype == column.dtype:
        return column
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = column.astype(dtype)
    changed = (narrow.astype(column.dtype) != column) & (column == column)  # NaN stays NaN
    if changed.any():
        raise ValueError(
            f"a feature needs to be exact in {dtype}, which is what the device has; got {column.dtype} '{name}' with "
            f"{column[changed][0]}, which would be {narrow[changed][0]}. Convert it first, as by astype(np.{dtype}), "
            "or enable jax_enable_x64."
        )
    return narrow


def _placed(column: np.ndarray, num_rows: int) -> jax.Array:
    rows = np.zeros((num_rows, *column.shape[1:]), column.dtype)
    rows[: len(column)] = column
    # On CPU a placed array may alias the host's, here one that nobody else has.
    return jnp.asarray(rows)
