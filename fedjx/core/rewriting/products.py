"""Products as the gradients of dense layers are, in the form that XLA's CPU compiler runs well.

The gradient of a dense layer that is applied at every time or place is contracted over examples and places. XLA's CPU
compiler turns its operands around for that, copies of all that goes in; of neighbouring axes it need only see one.

JAX computes it transposed, and turns it. XLA computes it turned at once, which it does slowly where that has more rows
than columns. Of many terms a sum the result is the smallest array there is, so it is turned afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.jaxprs import Equation


def is_replaced(eqn: Equation) -> bool:
    """Tells whether `product` computes an equation."""
    if jaxprs.name_of(eqn) != "dot_general" or (params := jaxprs.parameters(eqn)) is None:
        return False
    numbers = params["dimension_numbers"]
    return params.get("out_sharding") is None and (
        is_merged_over(*numbers) or _is_wide(numbers, *(v.aval.shape for v in eqn.invars))
    )


def product(left: jax.Array, right: jax.Array, **params: Any) -> jax.Array:
    """Computes `lax.dot_general` over neighbouring axes as over one, and a wide gradient as it stands.

    >>> x, g = jax.numpy.ones((2, 3, 4)), jax.numpy.ones((2, 3, 5))
    >>> product(x, g, dimension_numbers=(((0, 1), (0, 1)), ((), ()))).shape
    (4, 5)
    """
    numbers = params["dimension_numbers"]
    result = (merged_product if is_merged_over(*numbers) else lax.dot_general)(left, right, **params)
    # Without the barrier XLA computes the transpose of the result, where that is what is needed.
    return lax.optimization_barrier(result) if _is_wide(numbers, left.shape, right.shape) else result


def summed_over_rows(left: jax.Array, right: jax.Array) -> jax.Array:
    """Computes products ``[B, rows, M]`` and ``[B, rows, N]`` to ``[B, M, N]``, or with M > N turned, which is faster.

    >>> summed_over_rows(jax.numpy.ones((2, 3, 5)), jax.numpy.ones((2, 3, 4))).shape
    (2, 5, 4)
    """
    if left.shape[-1] > right.shape[-1]:
        return lax.transpose(lax.optimization_barrier(summed_over_rows(right, left)), (0, 2, 1))
    return lax.dot_general(left, right, (((1,), (1,)), ((0,), (0,))))


def is_merged_over(contracted: Sequence[Sequence[int]], batch: Sequence[Sequence[int]]) -> bool:
    """Tells whether axes are several, and neighbours in both operands."""
    return not batch[0] and len(contracted[0]) > 1 and all(map(_are_neighbours, contracted))


def merged_product(left: jax.Array, right: jax.Array, **params: Any) -> jax.Array:
    """Computes `lax.dot_general` over neighbouring axes, as many for both operands."""
    (left_axes, right_axes), batch = params.pop("dimension_numbers")
    params.pop("out_sharding", None)
    numbers: Any = (((left_axes[0],), (right_axes[0],)), batch)
    return lax.dot_general(_merged(left, left_axes), _merged(right, right_axes), numbers, **params)


def _is_wide(numbers: Any, left: Sequence[int], right: Sequence[int]) -> bool:
    """Tells whether all axes but the last are contracted, and result in fewer rows than columns and terms of a sum."""
    contracted, batch = numbers
    axes = list(range(len(left) - 1))
    if not axes or batch[0] or [*map(list, contracted)] != [axes, axes] or len(left) != len(right):
        return False
    is_sized = all(isinstance(n, int) for n in (*left, *right))
    return is_sized and left[-1] < min(right[-1], math.prod(left[:-1]))


def _are_neighbours(axes: Sequence[int]) -> bool:
    return list(axes) == list(range(axes[0], axes[0] + len(axes)))


def _merged(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    before, within, after = x.shape[: axes[0]], x.shape[axes[0] : axes[-1] + 1], x.shape[axes[-1] + 1 :]
    return x.reshape(*before, math.prod(within), *after)
