"""Random rotations, which spread a vector's energy evenly before it is quantised.

Suresh et al., "Distributed Mean Estimation with Limited Communication" (arXiv 1611.00429, section 3):
random signs, then the Walsh-Hadamard transform; or random phases, then the Fourier transform, which
needs no padding to a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjx.aggregation.compress import Compressor
from fedjx.core.language.names import PyTree

_LAST_RADIX, _RADIX = 64, 8


class Rotation(NamedTuple):
    """A random orthogonal map of each of the blocks that a vector is cut into.

    Attributes:
      forward: ``(key, float32 [n]) -> float32 [blocks, block]``; keeps the norm.
      inverse: ``(key, float32 [blocks, block], n) -> float32 [n]``; its transpose, and inverse.
      shape: ``n -> (blocks, block)``, with at least n elements.
    """

    forward: Callable[[jax.Array, jax.Array], jax.Array]
    inverse: Callable[[jax.Array, jax.Array, int], jax.Array]
    shape: Callable[[int], tuple[int, int]]


class Rotated(NamedTuple):
    """The codes of a rotated vector's blocks, and the seed of its rotation, uint32 ``[]``."""

    code: PyTree
    seed: jax.Array


def rotated(compressor: Compressor, rotation: Rotation | None = None) -> Compressor:
    """Compresses the vector after a random rotation of its own, of which 32 bits of seed travel along.

    Args:
      compressor: Of each block of the rotated vector, with a scale of its own. A normalised error that it has in
        every block, the whole vector has.
      rotation: `hadamard` if not given.
    """
    rotation = hadamard() if rotation is None else rotation

    def encode(key: jax.Array, x: jax.Array) -> Rotated:
        key_seed, key_encode = jax.random.split(key)
        seed = jax.random.bits(key_seed, (), jnp.uint32)
        blocks = rotation.forward(jax.random.key(seed), x)
        return Rotated(jax.vmap(compressor.encode)(jax.random.split(key_encode, len(blocks)), blocks), seed)

    def decode(code: Rotated, size: int) -> jax.Array:
        _, block = rotation.shape(size)
        blocks = jax.vmap(lambda code: compressor.decode(code, block))(code.code)
        return rotation.inverse(jax.random.key(code.seed), blocks, size)

    inner = compressor.symbols
    if inner is None:
        return Compressor(encode, decode)

    def symbols(code: Rotated, size: int) -> tuple[jax.Array, PyTree]:
        _, block = rotation.shape(size)
        integers, rest = jax.vmap(lambda code: inner(code, block))(code.code)
        return integers.reshape(-1), (rest, code.seed)

    return Compressor(encode, decode, symbols)


def hadamard() -> Rotation:
    """Multiplies by random signs, then takes the orthonormal Walsh-Hadamard transform of each block.

    It is not uniform among all rotations: what is proven of those holds nearly for vectors with many nonzero elements
    in a block, and not for sparse ones, see `eden`.

    A block has the greatest power of two of elements that is at most ``8 sqrt(n)``, so that the padding of the last
    one, under ``8 / sqrt(n)`` of the vector, costs about as much as the scales of all; under 64 elements are one block.
    """

    def shape(n: int) -> tuple[int, int]:
        block = 1 << (math.isqrt(64 * n).bit_length() - 1 if n >= 64 else (n - 1).bit_length())
        return -(-n // block), block

    def forward(key: jax.Array, x: jax.Array) -> jax.Array:
        size = math.prod(shape(x.size))
        return hadamard_transform((jnp.pad(x, (0, size - x.size)) * random_signs(key, size)).reshape(shape(x.size)))

    def inverse(key: jax.Array, y: jax.Array, n: int) -> jax.Array:
        return (hadamard_transform(y).reshape(-1) * random_signs(key, y.size))[:n]

    return Rotation(forward, inverse, shape)


def hadamard_transform(x: jax.Array) -> jax.Array:
    """Transforms ``[..., 2**k]`` by the orthonormal Hadamard matrix in natural order; its own inverse.

    >>> hadamard_transform(jnp.array([1.0, 0.0, 0.0, 0.0]))
    Array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """
    size = x.shape[-1]
    if size & (size - 1) or not size:
        raise ValueError(f"the transform needs a power of two; got a vector of {size}. Pad it with zeros.")
    # A product along the last axis; sums of long slices along the others, of which each pass takes few.
    radix = min(_LAST_RADIX, size)
    y = jnp.matmul(x.reshape(-1, radix), _matrix(radix) / np.sqrt(np.float32(size)), precision=lax.Precision.HIGHEST)
    while radix < size:
        step = min(_RADIX, size // radix)
        y = _butterflies(y.reshape(-1, step, radix))
        radix *= step
    return y.reshape(x.shape)


def _butterflies(x: jax.Array) -> jax.Array:
    """Transforms ``[n, 2**k, m]`` along the middle axis, without the scale."""
    size = x.shape[1]
    rows, distance = [x[:, i] for i in range(size)], 1
    while distance < size:
        rows = [rows[i ^ distance] - row if i & distance else row + rows[i ^ distance] for i, row in enumerate(rows)]
        distance *= 2
    return jnp.stack(rows, axis=1)


def _matrix(size: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def random_signs(key: jax.Array, size: int) -> jax.Array:
    """Draws -1 and 1, float32 ``[size]``, one bit each."""
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    bits = (words[None] >> jnp.arange(32, dtype=jnp.uint32)[:, None]) & 1
    return 1 - 2 * bits.reshape(-1)[:size].astype(jnp.float32)


def fourier() -> Rotation:
    """Turns pairs of elements, as complex numbers, by random phases, then takes the unitary Fourier transform.

    It is nearer to a uniform rotation than `hadamard` for sparse vectors.
    """

    def shape(n: int) -> tuple[int, int]:
        return 1, n + n % 2

    def phases(key: jax.Array, n: int) -> jax.Array:
        angle = jax.random.uniform(key, (n,), jnp.float32, maxval=2 * np.pi)
        return lax.complex(jnp.cos(angle), jnp.sin(angle))

    def forward(key: jax.Array, x: jax.Array) -> jax.Array:
        pairs = jnp.pad(x, (0, x.size % 2)).reshape(2, -1)
        turned = jnp.fft.fft(lax.complex(pairs[0], pairs[1]) * phases(key, pairs.shape[1]), norm="ortho")
        return jnp.concatenate([turned.real, turned.imag])[None]

    def inverse(key: jax.Array, y: jax.Array, n: int) -> jax.Array:
        pairs = y.reshape(2, -1)
        turned = jnp.fft.ifft(lax.complex(pairs[0], pairs[1]), norm="ortho") * phases(key, pairs.shape[1]).conj()
        return jnp.concatenate([turned.real, turned.imag])[:n]

    return Rotation(forward, inverse, shape)
