"""Numbers and pytrees: wide while one computes, and of the tree's own dtypes in the end.

A float32 scalar, such as a rate that a server keeps, makes float32 of a bfloat16 leaf that it multiplies, and takes
half of its digits from a float64 one that it was made of. So numbers about a tree are as wide as its widest leaf, and
at least float32, and what is made of a tree's leaves goes back to their dtypes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from fedjx.core.language.names import DType, PyTree


def wide_dtype(dtype: DType) -> DType:
    """Returns the dtype in which values of a dtype are accumulated."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.promote_types(dtype, jnp.float32)
    signed = jnp.issubdtype(dtype, jnp.signedinteger) or dtype == jnp.bool_
    return jnp.promote_types(dtype, jnp.int32 if signed else jnp.uint32)


def number_dtype(tree: PyTree) -> DType:
    """Returns the dtype of numbers about a tree, such as its norm: float32, or float64 if a leaf has it.

    >>> number_dtype({"w": jnp.zeros(3, jnp.bfloat16), "n": jnp.int32(0)})
    dtype('float32')
    """
    dtypes = [jnp.result_type(x) for x in jax.tree.leaves(tree)]
    floats = [jnp.finfo(dtype).dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    return jnp.dtype(jnp.result_type(jnp.float32, *floats))


def as_float(x: ArrayLike) -> jax.Array:
    """Returns a number, a count or a flag among others, as a float of at least 32 bits."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def map_keeping(fn: Callable[..., ArrayLike], tree: PyTree, *others: PyTree) -> PyTree:
    """Maps over the leaves of trees; the results have the dtypes of the first tree's.

    >>> map_keeping(lambda x: jnp.float32(0.5) * x, jnp.ones(2, jnp.bfloat16))
    Array([0.5, 0.5], dtype=bfloat16)
    """
    return jax.tree.map(lambda x, *rest: jnp.asarray(fn(x, *rest)).astype(jnp.result_type(x)), tree, *others)


def cast_like(tree: PyTree, value: PyTree) -> PyTree:
    """Returns a value in the dtypes of a tree of its structure."""
    return map_keeping(lambda _, x: x, tree, value)


def all_finite(tree: PyTree, *, before: PyTree = (), after: PyTree = ()) -> jax.Array:
    """Tells whether all numbers of a tree are finite, bool ``[]``.

    Args:
      tree: The tree.
      before: Another one.
      after: What has become of that, of its structure; what was finite has to be so still.

    >>> all_finite({"w": jnp.ones(2)}, before=jnp.array([1.0, jnp.inf]), after=jnp.array([2.0, jnp.nan])).tolist()
    True
    """
    changed = zip(_inexact(before), _inexact(after), strict=True)
    flags = [jnp.isfinite(x) for x in _inexact(tree)]
    flags += [jnp.isfinite(new) | ~jnp.isfinite(old) for old, new in changed]
    by_shape: dict[tuple[int, ...], jax.Array] = {}
    for x in flags:  # XLA compiles several loops for each reduction: leaves of one shape share it
        by_shape[x.shape] = by_shape[x.shape] & x if x.shape in by_shape else x
    # Without the barrier XLA would compute the flag of its parts wherever it is used: for every leaf of a state.
    return lax.optimization_barrier(jnp.all(jnp.stack([jnp.array(True), *map(_all, by_shape.values())])))


def _inexact(tree: PyTree) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


def _all(flags: jax.Array) -> jax.Array:
    """Tells whether all flags are set. XLA makes one loop of two arrays in one reduction, and three of one alone."""
    none, axes = (np.True_, np.True_), tuple(range(flags.ndim))
    return jnp.logical_and(*lax.reduce((flags, flags), none, lambda a, b: (a[0] & b[0], a[1] & b[1]), axes))


def squared_norm(tree: PyTree) -> jax.Array:
    """Returns the sum of the squares of all elements, of the tree's `number_dtype`; has a derivative at 0 too."""
    wide = [jnp.asarray(x).astype(wide_dtype(jnp.result_type(x))) for x in jax.tree.leaves(tree)]
    return sum((jnp.sum(jnp.square(jnp.abs(x))) for x in wide), jnp.zeros((), number_dtype(tree)))
