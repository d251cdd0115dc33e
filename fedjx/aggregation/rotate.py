"""Random rotations, which spread a vector's energy evenly before it is quantised.

Suresh et al., "Distributed Mean Estimation with Limited Communication" (arXiv 1611.00429, section 3):
random signs, then the Walsh-Hadamard transform; or random phases, then the Fourier transform, which
needs no padding to a power of two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjx.aggregation.compress import Compressor

_RADIX = 64


class Rotation(NamedTuple):
    """A random orthogonal map.

    Attributes:
      forward: ``(key, float32 [n]) -> float32 [m]``; keeps the norm.
      inverse: ``(key, float32 [m], n) -> float32 [n]``; its transpose, and inverse.
      size: ``n -> m``, at least n.
    """

    forward: Callable[[jax.Array, jax.Array], jax.Array]
    inverse: Callable[[jax.Array, jax.Array, int], jax.Array]
    size: Callable[[int], int]


class Rotated(NamedTuple):
    """The code of a rotated vector, and the seed of its rotation, uint32 ``[]``."""

    code: Any
    seed: jax.Array


def rotated(compressor: Compressor, rotation: Rotation | None = None) -> Compressor:
    """Compresses the vector after a random rotation of its own, of which 32 bits of seed travel along.

    Args:
      compressor: Of the rotated vector.
      rotation: `hadamard` if not given.
    """
    rotation = hadamard() if rotation is None else rotation

    def encode(key: jax.Array, x: jax.Array) -> Rotated:
        key_seed, key_encode = jax.random.split(key)
        seed = jax.random.bits(key_seed, (), jnp.uint32)
        return Rotated(compressor.encode(key_encode, rotation.forward(jax.random.key(seed), x)), seed)

    def decode(code: Rotated, size: int) -> jax.Array:
        y = compressor.decode(code.code, rotation.size(size))
        return rotation.inverse(jax.random.key(code.seed), y, size)

    return Compressor(encode, decode)


def hadamard() -> Rotation:
    """Random signs, then the orthonormal Walsh-Hadamard transform, padded to a power of two."""

    def size(n: int) -> int:
        return 1 << (n - 1).bit_length()

    def forward(key: jax.Array, x: jax.Array) -> jax.Array:
        return hadamard_transform(jnp.pad(x, (0, size(x.size) - x.size)) * random_signs(key, size(x.size)))

    def inverse(key: jax.Array, y: jax.Array, n: int) -> jax.Array:
        return (hadamard_transform(y) * random_signs(key, y.size))[:n]

    return Rotation(forward, inverse, size)


def hadamard_transform(x: jax.Array) -> jax.Array:
    """Transforms ``[2**k]`` by the orthonormal Hadamard matrix in natural order; its own inverse.

    >>> hadamard_transform(jnp.array([1.0, 0.0, 0.0, 0.0]))
    Array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """
    num_left, size = 1, x.size
    if size & (size - 1) or not size:
        raise ValueError(f"the transform needs a power of two; got a vector of {size}. Pad it with zeros.")
    # As products with small Hadamard matrices: a processor multiplies matrices faster than it shuffles.
    while num_left < size:
        radix = min(_RADIX, size // num_left)
        matrix = jnp.asarray(_matrix(radix))
        blocks = x.reshape(num_left, radix, -1)
        x = jnp.einsum("ij,ajb->aib", matrix, blocks, precision=lax.Precision.HIGHEST)
        num_left *= radix
    return x.reshape(size)


def _matrix(size: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(np.float32(size))


def random_signs(key: jax.Array, size: int) -> jax.Array:
    """Draws -1 and 1, float32 ``[size]``, one bit each."""
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    bits = (words[None] >> jnp.arange(32, dtype=jnp.uint32)[:, None]) & 1
    return 1 - 2 * bits.reshape(-1)[:size].astype(jnp.float32)


def fourier() -> Rotation:
    """Pairs of elements as complex numbers, turned by random phases, then the unitary Fourier transform."""

    def size(n: int) -> int:
        return n + n % 2

    def phases(key: jax.Array, n: int) -> jax.Array:
        angle = jax.random.uniform(key, (n,), maxval=2 * np.pi)
        return lax.complex(jnp.cos(angle), jnp.sin(angle))

    def forward(key: jax.Array, x: jax.Array) -> jax.Array:
        pairs = jnp.pad(x, (0, size(x.size) - x.size)).reshape(2, -1)
        turned = jnp.fft.fft(lax.complex(pairs[0], pairs[1]) * phases(key, pairs.shape[1]), norm="ortho")
        return jnp.concatenate([turned.real, turned.imag])

    def inverse(key: jax.Array, y: jax.Array, n: int) -> jax.Array:
        pairs = y.reshape(2, -1)
        turned = jnp.fft.ifft(lax.complex(pairs[0], pairs[1]), norm="ortho") * phases(key, pairs.shape[1]).conj()
        return jnp.concatenate([turned.real, turned.imag])[:n]

    return Rotation(forward, inverse, size)
