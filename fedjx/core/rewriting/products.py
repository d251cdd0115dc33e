"""Products contracted over several axes, as products over one.

The gradient of a dense layer that is applied at every time or place is contracted over examples and places. XLA's CPU
compiler turns its operands around for that, copies of all that goes in; of neighbouring axes it need only see one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.jaxprs import Equation


def is_merged(eqn: Equation) -> bool:
    """Tells whether `merged_product` computes an equation."""
    if jaxprs.name_of(eqn) != "dot_general" or (params := jaxprs.parameters(eqn)) is None:
        return False
    return params.get("out_sharding") is None and is_merged_over(*params["dimension_numbers"])


def is_merged_over(contracted: Sequence[Sequence[int]], batch: Sequence[Sequence[int]]) -> bool:
    """Tells whether axes are several, and neighbours in both operands."""
    return not batch[0] and len(contracted[0]) > 1 and all(map(_are_neighbours, contracted))


def merged_product(left: jax.Array, right: jax.Array, **params: Any) -> jax.Array:
    """Computes `lax.dot_general` over neighbouring axes, as many for both operands.

    >>> x, g = jax.numpy.ones((2, 3, 4)), jax.numpy.ones((2, 3, 5))
    >>> merged_product(x, g, dimension_numbers=(((0, 1), (0, 1)), ((), ()))).shape
    (4, 5)
    """
    (left_axes, right_axes), batch = params.pop("dimension_numbers")
    params.pop("out_sharding", None)
    numbers: Any = (((left_axes[0],), (right_axes[0],)), batch)
    return lax.dot_general(_merged(left, left_axes), _merged(right, right_axes), numbers, **params)


def _are_neighbours(axes: Sequence[int]) -> bool:
    return list(axes) == list(range(axes[0], axes[0] + len(axes)))


def _merged(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    before, within, after = x.shape[: axes[0]], x.shape[axes[0] : axes[-1] + 1], x.shape[axes[-1] + 1 :]
    return x.reshape(*before, math.prod(within), *after)
