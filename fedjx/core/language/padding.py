"""What padding shows: copies of what the same client has, and zeros where it has nothing.

A mask after the fact cures neither a gradient that is not finite nor a number that was read without it. So what
padding holds is replaced before a function of one client sees it, whoever made the padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.core.language.names import Array, PyTree
from fedjx.core.language.values import MASK, Batches, Sequence


def own_padding(value: PyTree) -> PyTree:
    """Lets all padding in one client's value show the first element or example that is real; idempotent.

    Padding are the elements of a `Sequence` past its length, the negative indices of `Batches`, and the examples of a
    sequence of batches, dicts of features ``[S, B, ...]``, where ``mask``, bool ``[S, B]``, is False.

    >>> own_padding(Sequence(jnp.array([3.0, 4.0, jnp.nan]), 2)).elements.tolist()
    [3.0, 4.0, 3.0]
    >>> own_padding(Batches({"x": jnp.arange(10)}, jnp.array([7, 8, -1]))).gather()["x"].tolist()
    [7, 8, 7]
    """
    return jax.tree.map(_own, value, is_leaf=_is_padded)


def filled(x: Array, real: Array) -> jax.Array:
    """Replaces what is not real by the first that is, or by zeros.

    Args:
      x: ``[*R, ...]``.
      real: bool ``[*R]``.
    """
    x, real = jnp.asarray(x), jnp.asarray(real)
    if not real.size:
        return x
    first = x.reshape(-1, *x.shape[real.ndim :])[jnp.argmax(real)]
    first = lax.select(jnp.broadcast_to(jnp.any(real), first.shape), first, lax.full_like(first, 0))
    where = jnp.broadcast_to(real.reshape(*real.shape, *[1] * first.ndim), x.shape)
    return lax.select(where, x, jnp.broadcast_to(first, x.shape))


def _own(x: PyTree) -> PyTree:
    if isinstance(x, Batches):
        return _own_rows(x, jnp.asarray(True))
    return Sequence(_own_elements(x), x.length) if isinstance(x, Sequence) else x


def _own_elements(sequence: Sequence) -> PyTree:
    def exists(x: PyTree) -> jax.Array:
        return jnp.arange(jnp.shape(x)[0], dtype=jnp.int32) < sequence.length

    def own(x: PyTree) -> PyTree:
        if isinstance(x, Sequence):
            return jax.vmap(own_padding)(jax.tree.map(own, x))
        return _own_rows(x, exists(x.index)) if isinstance(x, Batches) else filled(x, exists(x))

    elements = sequence.elements
    if not _are_batches(elements):
        return jax.tree.map(own, elements, is_leaf=_is_padded)
    real = elements[MASK] & exists(elements[MASK])[:, None]
    shown = jax.tree.map(lambda x: filled(x, real), dict(elements))
    return type(elements)({**shown, MASK: real})


def _own_rows(batches: Batches, exists: jax.Array) -> Batches:
    """Lets padding carry the row that it shows, ``~row``: past the pool, where there are zeros, if there is none."""
    index = jnp.asarray(batches.index)
    if not index.size:
        return batches
    real = (index >= 0) & exists.reshape(*exists.shape, *[1] * (index.ndim - exists.ndim))
    num_rows = next(iter(batches.pool.values())).shape[0]
    first = jnp.where(jnp.any(real), index.reshape(-1)[jnp.argmax(real)], num_rows).astype(index.dtype)
    return dataclasses.replace(batches, index=jnp.where(real, index, ~first))


def _is_padded(x: object) -> bool:
    return isinstance(x, (Batches, Sequence))


def _are_batches(elements: PyTree) -> bool:
    """Tells whether the elements of a sequence are batches with a mask, as `Batches` are gathered to."""
    if not isinstance(elements, Mapping) or MASK not in elements:
        return False
    mask, shapes = elements[MASK], [jnp.shape(x) for x in jax.tree.leaves(dict(elements))]
    return jnp.ndim(mask) == 2 and mask.dtype == bool and all(shape[:2] == jnp.shape(mask) for shape in shapes)
