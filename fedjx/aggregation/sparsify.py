"""Sparsifiers: a few elements of each vector.

Stich et al., "Sparsified SGD with Memory" (arXiv 1809.07599, definition 2.1); random-k unbiased as in
Wangni et al. (arXiv 1710.09854).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.aggregation.compress import Compressor
from fedjx.aggregation.packing import pack, unpack
from fedjx.core.language.checks import check_number


class Sparse(NamedTuple):
    """The kept elements.

    Attributes:
      values: float32 ``[k]``.
      where: uint32; their packed positions, or the seed that these are drawn from.
    """

    values: jax.Array
    where: jax.Array


def top_k(*, fraction: float) -> Compressor:
    """Keeps the elements of greatest magnitude; biased, with normalised error at most ``1 - k / n``.

    Args:
      fraction: Of the elements that are kept, rounded up to a whole number k of them, 1 or more. A position
        takes ``ceil(log2(n))`` bits.
    """
    _check(fraction)

    def encode(key: jax.Array, x: jax.Array) -> Sparse:
        del key
        index = lax.top_k(jnp.abs(x), _num_kept(fraction, x.size))[1]
        return Sparse(x[index], pack(index, _index_bits(x.size)))

    def decode(code: Sparse, size: int) -> jax.Array:
        index = unpack(code.where, _index_bits(size), len(code.values))
        return jnp.zeros(size, code.values.dtype).at[index].set(code.values)

    return Compressor(encode, decode)


def random_k(*, fraction: float, unbiased: bool = True) -> Compressor:
    """Keeps random elements, and a seed instead of their positions; normalised error ``n / k - 1`` if unbiased.

    Args:
      fraction: Of the elements that are kept, rounded up to a whole number k of them, 1 or more.
      unbiased: Whether they are multiplied by ``n / k``.
    """
    _check(fraction)

    def positions(seed: jax.Array, size: int) -> jax.Array:
        return lax.top_k(jax.random.bits(jax.random.key(seed), (size,), jnp.uint32), _num_kept(fraction, size))[1]

    def encode(key: jax.Array, x: jax.Array) -> Sparse:
        seed = jax.random.bits(key, (), jnp.uint32)
        return Sparse(x[positions(seed, x.size)], seed)

    def decode(code: Sparse, size: int) -> jax.Array:
        scale = size / len(code.values) if unbiased else 1.0
        return jnp.zeros(size, code.values.dtype).at[positions(code.where, size)].set(code.values * scale)

    return Compressor(encode, decode)


def _check(fraction: float) -> None:
    check_number("(0, 1]", "Pass 0.01 for one element in a hundred.", fraction=fraction)


def _num_kept(fraction: float, size: int) -> int:
    return min(size, max(1, math.ceil(fraction * size - 1e-9)))


def _index_bits(size: int) -> int:
    return max(1, (size - 1).bit_length())
