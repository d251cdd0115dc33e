"""Products of a few rows with a large matrix, in the form that XLA's CPU compiler runs fastest.

A client's batch is a few rows, so its dense layers are bound by reading the matrix, and not every form of the same
product reads it well. XLA has two libraries for products and chooses by form: rows that are given as columns go to
Eigen, which is faster for ``rows @ matrix``; the matrix as the left operand of ``rows @ matrix.T`` stays with YNNPACK,
whose kernels are then 16 rows wide, and needs no more than that the rows are filled up.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.alone import alone_on_cpu
from fedjx.core.rewriting.jaxprs import Equation

# Between these another form is faster, as measured; everything else stays as it is.
_MOST_ROWS, _LEAST_ELEMENTS = 32, 2**17


def is_turned(eqn: Equation) -> bool:
    """Tells whether `turned_product` computes an equation, and faster."""
    params = jaxprs.parameters(eqn) if jaxprs.name_of(eqn) == "dot_general" else None
    if params is None or params.get("out_sharding") is not None:
        return False
    (rows_axes, matrix_axes), batch = params["dimension_numbers"]
    rows, matrix = (v.aval for v in eqn.invars)
    is_plain = (
        (not batch[0] and len(matrix.shape) == 2 and tuple(rows_axes) == (len(rows.shape) - 1,))
        and rows.dtype == matrix.dtype == eqn.outvars[0].aval.dtype == jnp.float32
        and params["precision"] in (None, (lax.Precision.DEFAULT,) * 2)
        and all(map(jaxprs.is_sized, eqn.invars))
    )
    return is_plain and _is_faster(math.prod(rows.shape[:-1]), *matrix.shape, is_transposed=tuple(matrix_axes) == (1,))


def _is_faster(num_rows: int, num_inner: int, num_columns: int, *, is_transposed: bool) -> bool:
    """Tells whether the form below is faster, for a matrix ``[inner, columns]`` that is transposed or not."""
    if num_rows == 1:
        return is_transposed
    if num_rows > _MOST_ROWS or num_inner * num_columns < _LEAST_ELEMENTS:
        return False
    # Turning the rows is not free, so the matrix's own rows need to be long enough to gain from it.
    return num_columns >= 256 if is_transposed else num_rows >= 8 and num_columns >= 768


def turned_product(rows: jax.Array, matrix: jax.Array, **params: Any) -> jax.Array:
    """Computes the `lax.dot_general` of ``[..., K]`` with a matrix ``[K, N]`` or ``[N, K]``; no derivative in reverse.

    Mapped over clients it is an ordinary product again: of many matrices, or of the rows of all.

    >>> numbers = (((1,), (1,)), ((), ()))
    >>> options = {"precision": None, "preferred_element_type": None}
    >>> turned_product(jnp.ones((2, 3)), jnp.ones((4, 3)), dimension_numbers=numbers, **options).shape
    (2, 4)
    """
    turned = functools.partial(_turned, is_transposed=params["dimension_numbers"][0][1] == (1,))
    return alone_on_cpu(turned, functools.partial(lax.dot_general, **params), rows, matrix)


def _turned(rows: jax.Array, matrix: jax.Array, *, is_transposed: bool) -> jax.Array:
    flat = rows.reshape(-1, rows.shape[-1])
    if is_transposed:
        filled = jnp.pad(flat, ((0, -len(flat) % _width(len(flat))), (0, 0)))
        result = lax.optimization_barrier(lax.dot_general(matrix, filled, (((1,), (1,)), ((), ())))).T[: len(flat)]
    else:
        columns = lax.optimization_barrier(flat.T)  # without it XLA would turn them back
        result = lax.dot_general(columns, matrix, (((0,), (0,)), ((), ())))
    return result.reshape(*rows.shape[:-1], -1)


def _width(num_rows: int) -> int:
    """Returns the multiple that some rows are filled up to."""
    return num_rows if num_rows == 1 else 8 if num_rows <= 8 else 16
