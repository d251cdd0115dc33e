"""Numbers and pytrees: wide while one computes, and of the tree's own dtypes in the end.

A float32 scalar, such as a rate that a server keeps, makes float32 of a bfloat16 leaf that it multiplies, and takes
half of its digits from a float64 one that it was made of. So numbers about a tree are as wide as its widest leaf, and
at least float32, and what is made of a tree's leaves goes back to their dtypes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
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


def all_finite(tree: PyTree, where: PyTree = None) -> jax.Array:
    """Tells whether all numbers of a tree are finite, bool ``[]``.

    Args:
      tree: The tree.
      where: Another of its structure; if given, what is not finite there need not be.
    """
    leaves = jax.tree.leaves(tree)
    others = [None] * len(leaves) if where is None else jax.tree.leaves(where)
    pairs = [pair for pair in zip(leaves, others, strict=True) if jnp.issubdtype(pair[0].dtype, jnp.inexact)]
    finite = [jnp.isfinite(x) if o is None else jnp.isfinite(x) | ~jnp.isfinite(o) for x, o in pairs]
    return jnp.all(jnp.stack([jnp.array(True), *map(jnp.all, finite)]))


def squared_norm(tree: PyTree) -> jax.Array:
    """Returns the sum of the squares of all elements, of the tree's `number_dtype`; has a derivative at 0 too."""
    wide = [jnp.asarray(x).astype(wide_dtype(jnp.result_type(x))) for x in jax.tree.leaves(tree)]
    return sum((jnp.sum(jnp.square(jnp.abs(x))) for x in wide), jnp.zeros((), number_dtype(tree)))
