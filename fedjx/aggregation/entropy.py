"""Lossless coding of integer codes, and how many bits it takes.

Elias, "Universal codeword sets" (1975): the gamma code. Asymmetric numeral systems (Duda, arXiv
1311.2540) by the package constriction, on the host: true payloads for the estimates made in a round.
"""

from __future__ import annotations

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def entropy_bits(codes: jax.Array, num_symbols: int) -> jax.Array:
    """Returns the empirical entropy of integers ``[n]``, in bits of all n together: a bound for coders of one by one.

    Args:
      codes: Of which the greatest is less than ``num_symbols`` above the least.
      num_symbols: At most so many different ones. If the codes range over more, the result is NaN.

    >>> float(entropy_bits(jnp.array([0, 1, 2, 3, 0, 1, 2, 3]), 4))
    16.0
    """
    counts = jnp.bincount(codes - codes.min(), length=num_symbols).astype(jnp.float32)
    shares = counts / codes.size
    bits = -jnp.sum(counts * jnp.log2(jnp.where(counts > 0, shares, 1)))
    return jnp.where(jnp.sum(counts) == codes.size, bits, jnp.nan)


def elias_gamma_bits(codes: jax.Array) -> jax.Array:
    """Returns the length of the gamma code of integers ``[n]``: 0, -1, 1, -2 are 1, 2, 3, 4.

    >>> int(elias_gamma_bits(jnp.array([0, -1, 1, -2])))
    12
    """
    number = jnp.where(codes < 0, -2 * codes, 2 * codes + 1).astype(jnp.uint32)
    return jnp.sum(2 * (31 - lax.clz(number).astype(jnp.int32)) + 1)


def elias_gamma_encode(codes: np.ndarray) -> np.ndarray:
    """Encodes integers ``[n]`` on the host; returns bytes, uint8.

    The number k is written as ``floor(log2 k)`` zeros and then k in binary.
    """
    codes = np.asarray(codes, np.int64)
    number = np.where(codes < 0, -2 * codes, 2 * codes + 1)
    digits = np.frexp(number.astype(np.float64))[1]
    ends = np.cumsum(2 * digits - 1)
    bits = np.zeros(ends[-1] if len(ends) else 0, np.uint8)
    for place in range(int(digits.max(initial=0))):
        has = digits > place
        bits[ends[has] - 1 - place] = (number[has] >> place) & 1
    return np.packbits(bits)


def elias_gamma_decode(payload: np.ndarray, num_codes: int) -> np.ndarray:
    """Returns the codes, int64 ``[num_codes]``, that were encoded."""
    bits = np.unpackbits(payload)
    ones = np.flatnonzero(bits)
    numbers, position = np.empty(num_codes, np.int64), 0
    for i in range(num_codes):
        first = int(ones[np.searchsorted(ones, position)])
        end = 2 * first - position + 1
        numbers[i] = int("".join(map(str, bits[first:end])), 2)
        position = end
    return np.where(numbers % 2, numbers // 2, -(numbers // 2))


def ans_encode(codes: np.ndarray) -> np.ndarray:
    """Encodes codes ``[n]`` from 0 on the host, in about their entropy and a word for each symbol.

    The stream is within two percent of the entropy for long vectors; for short ones the table is most of what is sent:
    of 256 bytes that are all different the entropy is 64 words, and the table has 256.

    Returns:
      uint32 words: n, the number of symbols, how often each occurs, then the stream. All of it would be sent.

    Raises:
      ImportError: If constriction is not installed.
    """
    codes = np.asarray(codes, np.int32)
    counts = np.bincount(codes).astype(np.uint32)
    head = np.array([len(codes), len(counts)], np.uint32)
    coder = _constriction().stream.stack.AnsCoder()
    if np.count_nonzero(counts) > 1:
        coder.encode_reverse(codes, _model(counts))
    return np.concatenate([head, counts, coder.get_compressed()])


def ans_decode(words: np.ndarray) -> np.ndarray:
    """Returns the codes, int32 ``[n]``, that `ans_encode` encoded."""
    num_codes, num_symbols = map(int, words[:2])
    counts, stream = words[2 : 2 + num_symbols], words[2 + num_symbols :]
    if np.count_nonzero(counts) <= 1:
        return np.full(num_codes, max(num_symbols - 1, 0), np.int32)
    return _constriction().stream.stack.AnsCoder(stream).decode(_model(counts), num_codes)


def _model(counts: np.ndarray) -> object:
    shares = counts.astype(np.float64) / counts.sum(dtype=np.float64)
    return _constriction().stream.model.Categorical(shares, perfect=False)


def _constriction() -> ModuleType:
    try:
        import constriction  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("entropy coding needs constriction. Run `pip install fedjx[compress]`.") from error
    return constriction
