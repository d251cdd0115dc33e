"""Norms of updates, and the quantile of norms that an adaptive bound follows.

Andrew et al., "Differentially Private Learning with Adaptive Clipping" (arXiv 1905.03871),
section 2, the geometric update.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.checks import check_choice
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import as_float, number_dtype


def joint_norm(value: PyTree, order: float = 2) -> jax.Array:
    """Returns the norm of all leaves taken as one vector, ``[]``, float32 or that of the widest leaf.

    Args:
      value: A pytree of numbers; leaves of any shape, 0-d included.
      order: 1, 2 or ``np.inf``.

    Raises:
      ValueError: If the order is another.

    >>> joint_norm({"w": jnp.array([3.0, 0.0]), "b": jnp.array(-4.0)})
    Array(5., dtype=float32)
    """
    check_order(order)
    arrays = [jnp.asarray(leaf) for leaf in jax.tree.leaves(value)]
    # Widened before the magnitude: -128 has none in int8.
    dtype = number_dtype(arrays)
    leaves = [jnp.abs(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(dtype) for x in arrays]
    if order == np.inf:
        # Not the built-in max: it would lose a NaN, which compares false.
        return jnp.stack([jnp.max(leaf, initial=0.0) for leaf in leaves]).max() if leaves else jnp.zeros((), dtype)
    if order == 1:
        return sum((leaf.sum() for leaf in leaves), jnp.zeros((), dtype))
    return jnp.sqrt(sum((jnp.square(leaf).sum() for leaf in leaves), jnp.zeros((), dtype)))


def euclidean_norm(value: PyTree) -> jax.Array:
    """Returns the Euclidean norm of all leaves, ``[]``, wide, right for all finite numbers, huge and tiny.

    >>> euclidean_norm([jnp.float32([3e30, 0]), jnp.float32(4e30)]), euclidean_norm(jnp.float32([3e-30, 4e-30]))
    (Array(5.e+30, dtype=float32), Array(5.e-30, dtype=float32))
    """
    zero, leaves = jnp.zeros((), number_dtype(value)), [jnp.abs(as_float(x)) for x in jax.tree.leaves(value)]
    of_largest = unit(leaves)
    return of_largest * jnp.sqrt(sum((jnp.square(x / of_largest).sum() for x in leaves), zero))


def within_norm(
    value: PyTree, bound: float | jax.Array, norm: Callable[[PyTree], jax.Array] = euclidean_norm
) -> tuple[PyTree, jax.Array]:
    """Scales a value down to a norm, in float32 or wider; one whose norm is not finite becomes zeros.

    Args:
      value: Floats.
      bound: The most that the norm may be; infinity changes nothing.
      norm: Which.

    Returns:
      The value, and the norm that it had, ``[]``.

    Raises:
      TypeError: If a leaf is not floating-point.

    >>> within_norm({"w": jnp.float32([6.0, 0.0]), "b": jnp.float32(8.0)}, 5.0)[0]
    {'b': Array(4., dtype=float32), 'w': Array([3., 0.], dtype=float32)}
    """
    for leaf in jax.tree.leaves(value):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"what is clipped must be floating-point; got {leaf.dtype}. Leave such leaves out.")
    size = norm(value)
    scale = jnp.where(size > bound, bound / jnp.maximum(size, bound), 1.0)
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(size), as_float(x) * scale, 0), value), size


def unit(value: PyTree) -> jax.Array:
    """Returns the power of two, ``[]``, that is nearest below the largest magnitude of a pytree.

    In parts of it numbers have squares, which those of 1e20 and 1e-20 have not, and dividing by it rounds nothing. It
    is 1 if all are 0, or one is not finite.

    >>> unit({"w": jnp.float32([0.3, -5.0]), "b": jnp.float32(1)})
    Array(4., dtype=float32)
    """
    largest = joint_norm(value, np.inf)
    limits = jnp.finfo(largest.dtype)
    exponent = jnp.clip(jnp.frexp(largest)[1] - 1, limits.minexp, limits.maxexp - 1)
    one = jnp.ones((), largest.dtype)
    return jnp.where(jnp.isfinite(largest) & (largest > 0), jnp.ldexp(one, exponent), one)


def check_order(order: float) -> None:
    """Refuses a norm of another order."""
    check_choice((1, 2, np.inf), order=order)


def follow_quantile(estimate: jax.Array, fraction: jax.Array, *, quantile: float, learning_rate: float) -> jax.Array:
    """Moves an estimate of a quantile by ``exp(-rate * (fraction - quantile))``.

    Args:
      estimate: float32 ``[]``; positive.
      fraction: float32 ``[]``; of the values, how many are at most the estimate; with noise, if it
        is to be private.
      quantile: The fraction to arrive at.
      learning_rate: How fast.

    Returns:
      The next estimate, larger if too few values are below it; positive and finite in float32.

    >>> print(f"{follow_quantile(jnp.float32(0.1), jnp.float32(0.0), quantile=0.5, learning_rate=0.2):.5f}")
    0.11052
    """
    limits = jnp.finfo(jnp.float32)  # also of a float64 one: it is reported beside float32 numbers
    # At 0 it would stay forever.
    return jnp.clip(estimate * jnp.exp(-learning_rate * (fraction - quantile)), limits.tiny, limits.max)
