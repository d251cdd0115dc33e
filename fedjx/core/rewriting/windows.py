"""Sliding windows over leading axes as strided slices, and their transpose: what convolutions and pooling share.

Everything is unrolled into slices, sums and stacks of whole arrays. Leading axes keep each slice
made of long contiguous rows, and what remains are ordinary operations, which `vmap` maps well.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Ints = Sequence[int]
# An array per element of a window, by its index along every axis.
Grid = Mapping[tuple[int, ...], jax.Array]


def num_positions(shape: Ints, window: Ints, strides: Ints, dilation: Ints) -> list[int]:
    """Counts the positions of a window along each leading axis.

    >>> num_positions((6, 7), (3, 3), (1, 2), (1, 1))
    [4, 3]
    """
    axes = zip(shape, window, strides, dilation, strict=False)
    return [max((size - (w - 1) * d - 1) // s + 1, 0) for size, w, s, d in axes]


def slices(
    x: jax.Array, window: Ints, outputs: Ints, strides: Ints, dilation: Ints
) -> dict[tuple[int, ...], jax.Array]:
    """Returns, for each element of a window in row-major order, what it sees at all positions.

    Args:
      x: ``[*spatial, ...]``.
      window: The window's size along each leading axis.
      outputs: How many positions it takes along each.
      strides: Steps between positions.
      dilation: Steps between the window's elements.

    >>> {i: s.tolist() for i, s in slices(jnp.arange(5), [2], [2], [2], [1]).items()}
    {(0,): [0, 2], (1,): [1, 3]}
    """
    rest = x.shape[len(outputs) :]

    def cut(element: Ints) -> jax.Array:
        low = [i * d for i, d in zip(element, dilation, strict=True)]
        high = [a + (n - 1) * s + 1 for a, n, s in zip(low, outputs, strides, strict=True)]
        return lax.slice(x, [*low, *[0] * len(rest)], [*high, *rest], [*strides, *[1] * len(rest)])

    return {element: cut(element) for element in itertools.product(*map(range, window))}


def overlap_add(grid: Grid, strides: Ints) -> jax.Array:
    """Adds element ``i`` of a window at the places ``i + stride * t``: the transpose of `slices`.

    Args:
      grid: ``[*positions, ...]`` per element of the window.
      strides: Steps between positions along each leading axis.

    Returns:
      ``[*size, ...]`` with ``size = stride * (positions + (window - 1) // stride)``.

    >>> overlap_add({(0,): jnp.array([1, 2]), (1,): jnp.array([10, 20]), (2,): jnp.array([100, 200])}, [2]).tolist()
    [1, 10, 102, 20, 200, 0]
    """
    for axis, stride in enumerate(strides):
        lines: dict[tuple[int, ...], list[jax.Array]] = {}
        for index, part in sorted(grid.items()):
            lines.setdefault(index[:axis] + index[axis + 1 :], []).append(part)
        grid = {
            (*rest[:axis], phase, *rest[axis:]): x
            for rest, parts in lines.items()
            for phase, x in enumerate(phases(parts, axis, stride))
        }
    return interleave(grid, len(strides))


def phases(parts: Sequence[jax.Array], axis: int, stride: int) -> list[jax.Array]:
    """Adds parts that lie a stride apart, one step shifted along an axis; returns ``stride`` arrays."""
    extra = (len(parts) - 1) // stride

    def shifted(part: jax.Array, by: int) -> jax.Array:
        widths = [(0, 0, 0)] * part.ndim
        widths[axis] = (by, extra - by, 0)
        return lax.pad(part, jnp.zeros((), part.dtype), widths) if extra else part

    def phase(first: int) -> jax.Array:
        terms = [shifted(part, by) for by, part in enumerate(parts[first::stride])]
        return functools.reduce(lax.add, terms) if terms else shifted(jnp.zeros_like(parts[0]), 0)

    return [phase(first) for first in range(stride)]


def interleave(grid: Grid, num_axes: int) -> jax.Array:
    """Puts element ``i`` of n at the places ``i + n * t`` of each leading axis.

    >>> interleave({(0,): jnp.array([1, 2]), (1,): jnp.array([3, 4])}, 1).tolist()
    [1, 3, 2, 4]
    """
    size = [max(index[axis] for index in grid) + 1 for axis in range(num_axes)]
    first = next(iter(grid.values()))
    shape = [n * count for n, count in zip(size, first.shape, strict=False)] + list(first.shape[num_axes:])
    for axis in reversed(range(num_axes)):
        outer = itertools.product(*map(range, size[:axis]))
        grid = {index: jnp.stack([grid[(*index, i)] for i in range(size[axis])], axis + 1) for index in outer}
    return lax.reshape(grid[()], shape)


def fitted(x: jax.Array, shape: Ints) -> jax.Array:
    """Crops the leading axes to a shape, or pads them with zeros, at the end."""
    widths = [(0, n - size, 0) for n, size in zip(shape, x.shape, strict=False)]
    return padded(x, widths)


def padded(x: jax.Array, widths: Sequence[tuple[int, int, int]], value: float = 0) -> jax.Array:
    """Pads the leading axes by (low, high, interior), as `lax.pad` does; the others not at all."""
    if not any(map(any, widths)):
        return x
    return lax.pad(x, jnp.asarray(value, x.dtype), [*widths, *[(0, 0, 0)] * (x.ndim - len(widths))])
