"""Convolutions by Winograd's minimal filtering: F(4, 3), F(3, 4) and F(4, 5) along each axis.

Four times fewer multiplications than the direct sum for a kernel of 3 x 3, and 6.25 times for 5 x 5: tiles of the
input and the kernel are evaluated at n points per axis (6, or 8 for five taps), multiplied pointwise (n^2 matrix
products over the channels in two dimensions), and read back. With V_k the Vandermonde matrix ``[n, k]`` of the points,
and tiles of ``n + 1 - taps`` outputs, the product of the polynomials of a kernel k and of an output tile y is
``V_n^-1 [(V_taps k) * (V_tile y)]``. Its three transposes are the three uses of a convolution in training:

- forward: ``y = V_tile^T [(V_taps k) * (B x)]`` with ``B = V_n^-T``, on overlapping tiles of the input;
- input gradient: ``dx = B^T [(V_taps k) * (V_tile dy)]``, overlapping tiles added;
- kernel gradient: ``dk = V_taps^T [(B x) * (V_tile dy)]``.

Each factor is used twice in a training step, and XLA computes it once. Arrays are ``[*spatial, N, C]``, so that all
slices consist of long contiguous rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjx.core.rewriting import products
from fedjx.core.rewriting.windows import fitted, interleave, phases

# Magnitudes of the points besides 0 and infinity, by the number of taps along an axis. Float32 errors are near 1e-6 of
# the largest value with four points (0, ±1, ±2 are ten times worse), and 4e-6 with six.
_POINTS = {3: (0.5**0.5, 2**0.5), 4: (0.5**0.5, 2**0.5), 5: (0.55, 1.0, 1.8)}
TAPS = tuple(_POINTS)


class _Axis(NamedTuple):
    """One spatial axis of a convolution: matrices ``[points, k]`` for its kernel, output tiles and input tiles."""

    taps: int
    kernel: np.ndarray
    output: np.ndarray
    input: np.ndarray

    @property
    def tile(self) -> int:
        """Outputs of a tile."""
        return self.output.shape[1]


class _Factor(NamedTuple):
    """How an array is evaluated at the points along an axis: by a matrix, in tiles that are ``stride`` apart."""

    matrix: np.ndarray
    stride: int
    num_tiles: int


def _vandermonde(points: Sequence[float], size: int) -> np.ndarray:
    finite = [[point**power for power in range(size)] for point in points]
    return np.array([*finite, [0.0] * (size - 1) + [1.0]])


@functools.cache
def _axis(taps: int) -> _Axis:
    points = (0.0, *(sign * point for point in _POINTS[taps] for sign in (1, -1)))
    kernel, size = _vandermonde(points, taps), len(points) + 1
    # The magnitudes in a row of the kernel's matrix sum to 1; the input's matrix takes the factors over.
    scale = np.abs(kernel).sum(axis=1, keepdims=True)
    whole = np.linalg.inv(_vandermonde(points, size)).T * scale
    return _Axis(taps, kernel / scale, _vandermonde(points, size - taps + 1), whole)


def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Slides a kernel ``[*taps, C, O]`` over ``[*size, N, C]``; returns ``[*(size - taps + 1), N, O]``."""
    axes = _axes(kernel)
    size = [n - axis.taps + 1 for n, axis in zip(x.shape, axes, strict=False)]
    product = _products(_input_points(x, axes, size), _kernel_points(kernel, axes), 0)
    return fitted(_read(_output_factors(axes, size), product), size)


def input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
    """Adds a kernel ``[*taps, C, O]`` at every place of ``[*size, N, O]``; returns ``[*(size + taps - 1), N, C]``."""
    axes = _axes(kernel)
    size = g.shape[: len(axes)]
    product = _products(_output_points(g, axes), _kernel_points(kernel, axes), 1)
    whole = [n + axis.taps - 1 for n, axis in zip(size, axes, strict=True)]
    return fitted(_read(_input_factors(axes, size), product), whole)


def kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Correlates ``[*(size + taps - 1), N, C]`` with ``[*size, N, O]``; returns ``[*taps, C, O]``."""
    size = g.shape[:-2]
    axes = [_axis(n - outputs + 1) for n, outputs in zip(x.shape, size, strict=False)]
    product = products.summed_over_rows(_input_points(x, axes, size), _output_points(g, axes))
    return fitted(_read(_kernel_factors(axes), product), [axis.taps for axis in axes])


def _axes(kernel: jax.Array) -> list[_Axis]:
    return [_axis(taps) for taps in kernel.shape[:-2]]


def _input_factors(axes: Sequence[_Axis], size: Sequence[int]) -> list[_Factor]:
    return [_Factor(a.input, a.tile, -(-n // a.tile)) for a, n in zip(axes, size, strict=True)]


def _output_factors(axes: Sequence[_Axis], size: Sequence[int]) -> list[_Factor]:
    return [_Factor(a.output, a.tile, -(-n // a.tile)) for a, n in zip(axes, size, strict=True)]


def _kernel_factors(axes: Sequence[_Axis]) -> list[_Factor]:
    return [_Factor(axis.kernel, axis.taps, 1) for axis in axes]


def _input_points(x: jax.Array, axes: Sequence[_Axis], size: Sequence[int]) -> jax.Array:
    return _points(_input_factors(axes, size), x)


def _output_points(g: jax.Array, axes: Sequence[_Axis]) -> jax.Array:
    return _points(_output_factors(axes, g.shape[: len(axes)]), g)


def _kernel_points(kernel: jax.Array, axes: Sequence[_Axis]) -> jax.Array:
    return _points(_kernel_factors(axes), kernel)


def _points(factors: Sequence[_Factor], x: jax.Array) -> jax.Array:
    """Evaluates tiles of ``[*size, A, B]`` at the points, ``[points, tiles * A, B]``, axis by axis."""
    x = fitted(x, [(f.num_tiles - 1) * f.stride + f.matrix.shape[1] for f in factors])
    for i, factor in enumerate(factors):
        x = _points_along(factor, x, 2 * i)  # an axis of points more in front: [6, 6, h, w, A, B] after two
    return x.reshape(math.prod(len(f.matrix) for f in factors), -1, x.shape[-1])


def _points_along(factor: _Factor, x: jax.Array, axis: int) -> jax.Array:
    last = (factor.num_tiles - 1) * factor.stride + 1
    terms = [lax.slice_in_dim(x, i, i + last, factor.stride, axis=axis) for i in range(factor.matrix.shape[1])]
    return jnp.stack(_combine(factor.matrix, terms))


def _read(factors: Sequence[_Factor], x: jax.Array) -> jax.Array:
    """Applies the transpose of `_points` to ``[points, tiles * A, B]``; returns ``[*size, A, B]``, or more."""
    num_axes, tiles = len(factors), [f.num_tiles for f in factors]
    grid = {(): x.reshape(*(len(f.matrix) for f in reversed(factors)), *tiles, -1, x.shape[-1])}
    for axis in reversed(range(num_axes)):  # [6, 6, h, w, A, B] has the points of the last axis first
        matrix, stride = factors[axis].matrix, factors[axis].stride
        grid = {
            (i, *rest): part
            for rest, points in grid.items()
            for i, part in enumerate(phases(_combine(matrix.T, list(points)), 2 * axis, stride))
        }
    return interleave(grid, num_axes)


def _combine(matrix: np.ndarray, terms: Sequence[jax.Array]) -> list[jax.Array]:
    """Multiplies a constant matrix with a vector of arrays, as sums without the terms that are zero."""
    results = []
    for row in matrix:
        products = [_scaled(float(c), x) for c, x in zip(row, terms, strict=True) if abs(c) > 1e-12]
        total = products[0]
        for product in products[1:]:
            total = lax.add(total, product)
        results.append(total)
    return results


def _scaled(factor: float, x: jax.Array) -> jax.Array:
    return x if factor == 1 else lax.mul(x, np.asarray(factor, x.dtype))


def _products(a: jax.Array, b: jax.Array, b_axis: int) -> jax.Array:
    """Multiplies matrices point by point, contracting the last axis of one and one of the other."""
    return lax.dot_general(a, b, (((2,), (b_axis + 1,)), ((0,), (0,))))
