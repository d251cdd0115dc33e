"""The examples of a data set as the device has them: in its dtypes, exactly, in one of few shapes."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.meshes import no_mesh
from fedjx.core.language.narrow import narrowed
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
    with no_mesh(), jax.ensure_compile_time_eval():
        columns = {name: narrowed(column, f"feature '{name}'") for name, column in examples.items()}
        num_rows = pool_rows(num_rows, sum(column.nbytes for column in columns.values()) // num_rows)
        return {name: _placed(column, num_rows) for name, column in columns.items()}


def _placed(column: np.ndarray, num_rows: int) -> jax.Array:
    rows = np.zeros((num_rows, *column.shape[1:]), column.dtype)
    rows[: len(column)] = column
    # On CPU a placed array may alias the host's, here one that nobody else has.
    return jnp.asarray(rows)
