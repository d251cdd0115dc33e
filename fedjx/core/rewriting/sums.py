"""Sums over leading axes and the last one, as normalisation in groups takes them, in two steps.

XLA sums over axes that are not neighbours element by element. Over the leading ones alone it is a sum of long rows, in
the layout that convolutions leave, and what remains is small.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.jaxprs import Equation

# Below this many terms of a sum there is nothing to gain.
_MANY = 64


def is_split(eqn: Equation) -> bool:
    """Tells whether `split_sum` computes an equation."""
    if jaxprs.name_of(eqn) != "reduce_sum" or not jaxprs.is_sized(eqn.invars[0]):
        return False
    params = jaxprs.parameters(eqn)
    if params is None:
        return False
    x, axes = eqn.invars[0].aval, sorted(params["axes"])
    last = len(x.shape) - 1
    is_apart = last in axes and axes != list(range(last + 1 - len(axes), last + 1))
    return is_apart and jnp.issubdtype(x.dtype, jnp.floating) and math.prod(x.shape[a] for a in axes[:-1]) >= _MANY


def split_sum(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sums over axes of which one is the last, that one in the end.

    >>> split_sum(jnp.ones((2, 3, 4, 5)), (1, 3)).tolist()
    [[15.0, 15.0, 15.0, 15.0], [15.0, 15.0, 15.0, 15.0]]
    """
    *leading, _ = sorted(axes)
    others = [a for a in range(x.ndim) if a not in leading]
    rows = lax.transpose(x, (*leading, *others))
    # Without the barrier XLA makes one sum of both again.
    return jnp.sum(lax.optimization_barrier(jnp.sum(rows, axis=tuple(range(len(leading))))), axis=-1)
