"""Quantisers: one code of a few bits for each element.

Uniform: Suresh et al., "Distributed Mean Estimation with Limited Communication" (arXiv 1611.00429,
section 2.2), and the uniform quantisation of TensorFlow Federated's compression tutorial. QSGD:
Alistarh et al. (arXiv 1610.02132, section 3.1). TernGrad: Wen et al. (arXiv 1705.07878, equation 3).
Scaled sign: Karimireddy et al. (arXiv 1901.09847, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.compress import Compressor, Leaf, compress, is_large
from fedjx.aggregation.norms import euclidean_norm
from fedjx.aggregation.packing import pack, unpack
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import PyTree


class Quantized(NamedTuple):
    """A quantised vector.

    Attributes:
      words: uint32 ``[words]``; the packed codes.
      range: float32; what gives the codes their values: least and greatest value, or a scale.
    """

    words: jax.Array
    range: jax.Array


def quantize(
    num_bits: int,
    *,
    inner: Aggregator | None = None,
    stochastic: bool = True,
    where: Callable[[Leaf], bool] = is_large,
    measure: Callable[[jax.Array], PyTree] | None = None,
) -> Aggregator:
    """Aggregates values that are quantised uniformly: `compress` with `uniform_quantizer`."""
    return compress(uniform_quantizer(num_bits, stochastic=stochastic), inner=inner, where=where, measure=measure)


def uniform_quantizer(num_bits: int, *, stochastic: bool = True, word_bits: int = 32) -> Compressor:
    """Rounds to ``2**num_bits`` equally spaced levels between the least and the greatest element.

    Args:
      num_bits: 1 to 16.
      stochastic: Whether to round up or down at random, so that the expectation is the element; else to the nearest.
      word_bits: As for `pack`; 28 gives the message sizes of TensorFlow Federated's tutorial.

    Returns:
      A compressor with an error below one step (half of one, if not stochastic) and, if stochastic, of
      expectation 0 and of at most ``step**2 / 4`` in variance.
    """
    check_integer("[1, 16]", "Send float32 for more.", num_bits=num_bits)
    num_steps = 2**num_bits - 1

    def encode(key: jax.Array, x: jax.Array) -> Quantized:
        low, high = x.min(), x.max()
        steps = (x - low) * (num_steps / jnp.where(high > low, high - low, 1))
        rounded = round_stochastically(key, steps) if stochastic else jnp.round(steps)
        codes = jnp.clip(rounded, 0, num_steps).astype(jnp.uint32)
        return Quantized(pack(codes, num_bits, word_bits=word_bits), jnp.stack([low, high]))

    def decode(code: Quantized, size: int) -> jax.Array:
        low, high = code.range
        codes = unpack(code.words, num_bits, size, word_bits=word_bits)
        return low + codes.astype(jnp.float32) * ((high - low) / num_steps)

    def symbols(code: Quantized, size: int) -> tuple[jax.Array, jax.Array]:
        low, high = code.range
        zero = jnp.clip(jnp.round(-low * (num_steps / jnp.where(high > low, high - low, 1))), 0, num_steps)
        codes = unpack(code.words, num_bits, size, word_bits=word_bits)
        return codes.astype(jnp.int32) - zero.astype(jnp.int32), code.range

    return Compressor(encode, decode, symbols)


def qsgd(num_levels: int) -> Compressor:
    """Rounds magnitudes at random to multiples of ``norm / num_levels``; unbiased.

    The normalised error is at most ``min(n / s**2, sqrt(n) / s)`` for ``s`` levels.
    """
    return _signed_levels(num_levels, euclidean_norm)


def terngrad() -> Compressor:
    """Sends -1, 0 or 1 times the greatest magnitude, at random; unbiased."""
    return _signed_levels(1, lambda x: jnp.abs(x).max())


def _signed_levels(num_levels: int, scale_fn: Callable[[jax.Array], jax.Array]) -> Compressor:
    check_integer("[1, 2^15)", "Send float32 for more.", num_levels=num_levels)
    num_bits = (2 * num_levels).bit_length()

    def encode(key: jax.Array, x: jax.Array) -> Quantized:
        scale = scale_fn(x)
        steps = x * (num_levels / jnp.where(scale > 0, scale, 1))
        codes = jnp.clip(round_stochastically(key, steps), -num_levels, num_levels) + num_levels
        return Quantized(pack(codes.astype(jnp.uint32), num_bits), scale)

    def decode(code: Quantized, size: int) -> jax.Array:
        return symbols(code, size)[0].astype(jnp.float32) * (code.range / num_levels)

    def symbols(code: Quantized, size: int) -> tuple[jax.Array, jax.Array]:
        return unpack(code.words, num_bits, size).astype(jnp.int32) - num_levels, code.range

    return Compressor(encode, decode, symbols)


def scaled_sign() -> Compressor:
    """Sends the signs and the mean magnitude; biased, with error ``1 - norm1**2 / (n * norm2**2)``."""

    def encode(key: jax.Array, x: jax.Array) -> Quantized:
        del key
        return Quantized(pack(x >= 0, 1), jnp.abs(x).mean())

    def decode(code: Quantized, size: int) -> jax.Array:
        return code.range * (2 * unpack(code.words, 1, size).astype(jnp.float32) - 1)

    return Compressor(encode, decode)


def round_stochastically(key: jax.Array, x: jax.Array) -> jax.Array:
    """Rounds ``[n]`` up or down at random such that the expectation is ``x``, to within 2^-17."""
    half = -(-x.size // 2)
    # One hash gives two elements their 16 bits.
    words = jax.random.bits(key, (half,), jnp.uint32)
    bits = (words[None] >> jnp.array([[0], [16]], jnp.uint32)) & 0xFFFF
    uniform = (bits.reshape(-1)[: x.size].astype(jnp.float32) + 0.5) / 2**16
    # The fraction is exact; a random number added to a large float would be rounded.
    whole = jnp.floor(x)
    return whole + (uniform < x - whole)
