"""Quantisers with unequal levels: Lloyd-Max for a vector's own values, DRIVE and EDEN for rotated ones.

Lloyd, "Least squares quantization in PCM" (1982). DRIVE: Vargaftik et al. (arXiv 2105.08339, algorithm
1). EDEN: Vargaftik et al. (arXiv 2108.08842, algorithm 1): after a random rotation elements are nearly
normal, so the levels of the normal distribution serve all vectors. One scale makes them unbiased for a rotation that is
uniform among all; for those that are fast to compute, nearly so, see `eden`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.aggregation.compress import Compressor
from fedjx.aggregation.norms import unit
from fedjx.aggregation.packing import pack, unpack
from fedjx.aggregation.quantize import Quantized
from fedjx.aggregation.rotate import Rotation, rotated
from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import Array

_MOST_SAMPLED = 2**14


class Levels(NamedTuple):
    """Codes, uint32 ``[words]``, and the levels that they stand for, float32 ``[2**num_bits]``, increasing."""

    words: jax.Array
    levels: jax.Array


def drive(*, unbiased: bool = True, rotation: Rotation | None = None) -> Compressor:
    """Sends one bit an element, signs of the rotated vector, and a scale: it is `eden` of one bit, with its bias."""
    return eden(1, unbiased=unbiased, rotation=rotation)


def eden(num_bits: int, *, unbiased: bool = True, rotation: Rotation | None = None) -> Compressor:
    """Sends a few bits an element, for the nearest normal level of the rotated vector, and a scale.

    Args:
      num_bits: 1 to 8.
      unbiased: Whether the scale makes the expectation right for a uniform rotation; else it makes the error least,
        which suits one client, not the mean of many.
      rotation: `hadamard` if not given.

    With `hadamard` the expectation is nearly right for vectors with many elements that are not near 0, and wrong for
    sparse ones: rotated by it, one of two elements takes but four values, and `drive` makes (1.25, 0, 0, ...) of
    (1, 0.5, 0, ...) whatever the signs. `fourier` turns by angles and has less of this.

    Returns:
      A compressor; for large vectors its normalised error is ``D / (1 - D)`` where D is that of the
      best ``2**num_bits`` levels for the normal distribution: 0.571 for one bit, 0.133 for two.
    """
    levels = normal_levels(num_bits)

    def encode(key: jax.Array, x: jax.Array) -> Quantized:
        del key
        largest = unit(x)
        x = x / largest
        deviation = jnp.sqrt(jnp.mean(x**2))
        codes = nearest(x / jnp.where(deviation > 0, deviation, 1), levels)
        chosen = take(levels, codes)
        product = jnp.vdot(chosen, x)
        scale = jnp.vdot(x, x) / jnp.where(product > 0, product, 1) if unbiased else product / jnp.vdot(chosen, chosen)
        return Quantized(pack(codes, num_bits), largest * scale)

    def decode(code: Quantized, size: int) -> jax.Array:
        return code.range * take(levels, unpack(code.words, num_bits, size))

    def symbols(code: Quantized, size: int) -> tuple[jax.Array, jax.Array]:
        return _centred(code.words, num_bits, size), code.range

    return rotated(Compressor(encode, decode, symbols), rotation)


def lloyd_quantizer(num_bits: int, *, num_iterations: int = 20) -> Compressor:
    """Rounds to the nearest of ``2**num_bits`` levels that are fitted to the vector by Lloyd's algorithm; biased.

    Args:
      num_bits: 1 to 8.
      num_iterations: Of k-means, from equally spaced quantiles, on at most 2^14 evenly spaced elements.
    """
    _check(num_bits)

    def fit(x: jax.Array) -> jax.Array:
        sample = jnp.sort(x[:: -(-x.size // _MOST_SAMPLED)])
        mean = sample.mean()
        sums = jnp.pad(jnp.cumsum(sample - mean), (1, 0))
        start = jnp.quantile(sample, (jnp.arange(2**num_bits, dtype=sample.dtype) + 0.5) / 2**num_bits)

        def step(levels: jax.Array, _: None) -> tuple[jax.Array, None]:
            inner = jnp.searchsorted(sample, _thresholds(levels))
            ends = jnp.concatenate([jnp.zeros(1, inner.dtype), inner, jnp.full(1, sample.size, inner.dtype)])
            counts = jnp.diff(ends)
            means = mean + jnp.diff(sums[ends]) / jnp.maximum(counts, 1)
            return jnp.sort(jnp.where(counts > 0, means, levels)), None

        return jax.lax.scan(step, start, length=num_iterations)[0]

    def encode(key: jax.Array, x: jax.Array) -> Levels:
        del key
        levels = fit(x)
        return Levels(pack(nearest(x, levels), num_bits), levels)

    def decode(code: Levels, size: int) -> jax.Array:
        return take(code.levels, unpack(code.words, num_bits, size))

    def symbols(code: Levels, size: int) -> tuple[jax.Array, jax.Array]:
        return _centred(code.words, num_bits, size), code.levels

    return Compressor(encode, decode, symbols)


def _centred(words: jax.Array, num_bits: int, size: int) -> jax.Array:
    return unpack(words, num_bits, size).astype(jnp.int32) - 2 ** (num_bits - 1)


def nearest(x: jax.Array, levels: Array) -> jax.Array:
    """Returns the index, uint32 ``[n]``, of the level ``[k]`` nearest to each element ``[n]``."""
    return sum((x > t).astype(jnp.uint32) for t in _thresholds(levels))  # type: ignore[return-value]


def take(levels: Array, codes: jax.Array) -> jax.Array:
    """Looks levels up by comparisons, which vectorise, instead of gathering an element at a time."""
    result = jnp.broadcast_to(levels[0], codes.shape)
    for k in range(1, len(levels)):
        result = jnp.where(codes >= k, levels[k], result)
    return result


def _thresholds(levels: Array) -> Array:
    return (levels[1:] + levels[:-1]) / 2


def _check(num_bits: int) -> None:
    check_integer("[1, 8]", "Use uniform_quantizer for more.", num_bits=num_bits)


@functools.cache
def normal_levels(num_bits: int) -> np.ndarray:
    """Returns the ``2**num_bits`` levels of least mean squared error for the standard normal distribution."""
    _check(num_bits)
    from scipy.stats import norm

    levels = np.sqrt(3) * norm.ppf((np.arange(2**num_bits) + 0.5) / 2**num_bits)  # best in the limit of many levels
    for _ in range(2000):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        levels = -np.diff(norm.pdf(edges)) / np.diff(norm.cdf(edges))
    return levels.astype(np.float32)
