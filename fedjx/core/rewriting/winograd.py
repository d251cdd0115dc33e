"""Convolutions of 3 x 3 kernels by Winograd's minimal filtering, F(4 x 4, 3 x 3).

Four times fewer multiplications than the direct sum: tiles of the input and the kernel are
evaluated at six points per axis, multiplied pointwise (36 matrix products over the channels), and
read back. With V_k the Vandermonde matrix ``[6, k]`` of the points, the product of the polynomials
of a kernel k and of an output tile y is ``V_6^-1 [(V_3 k) * (V_4 y)]``. This bilinear form has
three transposes, which are the three uses of a convolution in training:

- forward: ``y = V_4^T [(V_3 k) * (B x)]`` with ``B = V_6^-T``, on overlapping tiles of the input;
- input gradient: ``dx = B^T [(V_3 k) * (V_4 dy)]``, overlapping tiles added;
- kernel gradient: ``dk = V_3^T [(B x) * (V_4 dy)]``.

Each factor is used twice in a training step, and XLA computes it once. Arrays are
``[H, W, N, C]``, so that all slices consist of long contiguous rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjx.core.rewriting.windows import fitted, interleave, phases

_TILE, _TAPS = 4, 3
# These points, and infinity, keep float32 errors near 1e-6 of the largest value; 0, ±1, ±2 are ten times worse.
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5))


def _vandermonde(size: int) -> np.ndarray:
    finite = [[point**power for power in range(size)] for point in _POINTS]
    return np.array([*finite, [0.0] * (size - 1) + [1.0]])


# The magnitudes in a row of the kernel's matrix sum to 1; the input's matrix takes the factors over.
_SCALE = np.abs(_vandermonde(_TAPS)).sum(axis=1, keepdims=True)
_KERNEL = _vandermonde(_TAPS) / _SCALE
_OUTPUT = _vandermonde(_TILE)
_INPUT = np.linalg.inv(_vandermonde(_TILE + _TAPS - 1)).T * _SCALE


def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Slides a kernel ``[3, 3, C, O]`` over ``[H, W, N, C]``; returns ``[H - 2, W - 2, N, O]``."""
    size = [n - _TAPS + 1 for n in x.shape[:2]]
    product = _products(_input_points(x, size), _kernel_points(kernel), 1, 0)
    return fitted(_read(_OUTPUT, product, _tiles(size)), size)


def input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
    """Adds a kernel ``[3, 3, C, O]`` at every place of ``[H, W, N, O]``; returns ``[H + 2, W + 2, N, C]``."""
    product = _products(_output_points(g), _kernel_points(kernel), 1, 1)
    return fitted(_read(_INPUT, product, _tiles(g.shape[:2])), [n + _TAPS - 1 for n in g.shape[:2]])


def kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Correlates ``[H + 2, W + 2, N, C]`` with ``[H, W, N, O]``; returns ``[3, 3, C, O]``."""
    product = _products(_input_points(x, g.shape[:2]), _output_points(g), 0, 0)
    return _read(_KERNEL, product, [1, 1])


def _tiles(size: Sequence[int]) -> list[int]:
    return [-(-n // _TILE) for n in size]


def _input_points(x: jax.Array, size: Sequence[int]) -> jax.Array:
    tiles = _tiles(size)
    return _points(_INPUT, fitted(x, [n * _TILE + _TAPS - 1 for n in tiles]), tiles)


def _output_points(g: jax.Array) -> jax.Array:
    tiles = _tiles(g.shape[:2])
    return _points(_OUTPUT, fitted(g, [n * _TILE for n in tiles]), tiles)


def _kernel_points(kernel: jax.Array) -> jax.Array:
    return _points(_KERNEL, kernel, [1, 1])


def _points(matrix: np.ndarray, x: jax.Array, tiles: Sequence[int]) -> jax.Array:
    """Evaluates tiles of ``[H, W, A, B]`` at the points, ``[36, h * w * A, B]``, in two steps of six large arrays."""
    rows = _points_along(matrix, x, 0, tiles[0])  # [6, h, W, A, B]
    both = _points_along(matrix, rows, 2, tiles[1])  # [6, 6, h, w, A, B]
    return both.reshape(len(matrix) ** 2, -1, x.shape[-1])


def _points_along(matrix: np.ndarray, x: jax.Array, axis: int, num_tiles: int) -> jax.Array:
    last = (num_tiles - 1) * _TILE + 1
    terms = [lax.slice_in_dim(x, i, i + last, _TILE, axis=axis) for i in range(matrix.shape[1])]
    return jnp.stack(_combine(matrix, terms))


def _read(matrix: np.ndarray, x: jax.Array, tiles: Sequence[int]) -> jax.Array:
    """Applies the transpose of `_points` to ``[36, h * w * A, B]``; returns ``[H, W, A, B]``."""
    x = x.reshape(len(matrix), len(matrix), *tiles, -1, x.shape[-1])
    stride = min(_TILE, matrix.shape[1])
    columns = phases(_combine(matrix.T, list(x)), 2, stride)  # of [6, h, w, A, B]
    grid = {
        (i, j): part
        for j, column in enumerate(columns)
        for i, part in enumerate(phases(_combine(matrix.T, list(column)), 0, stride))
    }
    return interleave(grid, 2)


def _combine(matrix: np.ndarray, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """Multiplies a constant matrix with a vector of arrays, as sums without the terms that are zero."""
    results = []
    for row in matrix:
        products = [_scaled(float(c), x) for c, x in zip(row, terms, strict=True) if abs(c) > 1e-12]
        total = products[0]
        for product in products[1:]:
            total = total + product
        results.append(total)
    return results


def _scaled(factor: float, x: jax.Array) -> jax.Array:
    return x if factor == 1 else x * np.asarray(factor, x.dtype)


def _products(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Multiplies matrices point by point, contracting one axis of each."""
    return lax.dot_general(a, b, (((a_axis + 1,), (b_axis + 1,)), ((0,), (0,))))
