"""Strings as columns: bytes padded with zeros, hashed the same on a device and on the host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import Array
from fedjx.data.random_words import words

_HASHES = 0x7E87  # names the stream of a seed's coefficients


def to_bytes(strings: Iterable[str], max_bytes: int) -> np.ndarray:
    """Writes strings in UTF-8, each padded with zeros or cut, but never within a character.

    Args:
      strings: Without the character of number 0, which is padding.
      max_bytes: Length of a row.

    Returns:
      uint8 ``[n, max_bytes]``.

    Raises:
      ValueError: If a string has a character of number 0, or ``max_bytes`` is not positive.

    >>> to_bytes(["tea", "café"], 4)
    array([[116, 101,  97,   0],
           [ 99,  97, 102,   0]], dtype=uint8)
    """
    check_integer("[1, inf)", max_bytes=max_bytes)
    strings = list(strings)
    others = [string for string in strings if not isinstance(string, str)]
    if others:
        raise TypeError(f'text is strings; got {others[0]!r} ({len(others)} of such). Replace what is missing by "".')
    encoded = [string.encode()[: max_bytes + 1] for string in strings]
    if any(0 in row for row in encoded):
        raise ValueError("strings must not have the character of number 0, which pads them; got one. Replace it.")
    rows = np.array(encoded, f"S{max_bytes + 1}")
    rows = np.frombuffer(rows.tobytes(), np.uint8).reshape(len(encoded), max_bytes + 1).copy()
    goes_on = _goes_on(rows[:, max_bytes])  # a character that the cut would split
    for place in range(max_bytes - 1, -1, -1):
        if not goes_on.any():
            break
        before = _goes_on(rows[:, place])
        rows[goes_on, place] = 0
        goes_on &= before
    return rows[:, :max_bytes].copy()


def _goes_on(byte: np.ndarray) -> np.ndarray:
    """Tells of bytes whether they continue a character of UTF-8."""
    return (byte & 0xC0) == 0x80


def from_bytes(rows: np.ndarray) -> list[str]:
    r"""Reads strings that `to_bytes` wrote; bytes that are no UTF-8, as of a prefix, are written as ``\xff``.

    Args:
      rows: uint8 ``[n, bytes]``.

    >>> from_bytes(to_bytes(["tea", "café"], 5))
    ['tea', 'café']
    """
    return [row.tobytes().rstrip(b"\0").decode(errors="backslashreplace") for row in np.asarray(rows, np.uint8)]


def is_text(x: Array, string: str) -> Array:
    """Tells whether a record's bytes, uint8 ``[L]``, are a string, bool ``[]``: for ``where`` of a count.

    >>> from fedjx.analytics import ask, count, is_text, to_bytes
    >>> notes = fedjx.data.FederatedData.from_clients([{"word": to_bytes(["gout", "tea"], 5)}])
    >>> float(ask(count("word", where=lambda record: is_text(record["word"], "tea")), notes).value)
    1.0
    """
    row = np.frombuffer(string.encode(), np.uint8)
    return jnp.all(fitted(x, max(len(row), x.shape[-1])) == fitted(row, max(len(row), x.shape[-1])))


def hash_coefficients(num_hashes: int, num_bytes: int, seed: int) -> np.ndarray:
    """Draws hash functions of strings of up to so many bytes, for `hash_bytes`: uint32 ``[num_hashes, num_bytes + 1]``.

    The first of a row is added to all strings, the others are the bytes' factors: with 0 for the last ones it hashes a
    prefix.
    """
    drawn = words(num_hashes * (num_bytes + 1), seed, 0, _HASHES)
    return (drawn >> np.uint64(32)).astype(np.uint32).reshape(num_hashes, num_bytes + 1)


def hash_bytes(strings: Array, coefficients: np.ndarray) -> Array:
    """Hashes strings: a sum of the bytes times random factors modulo 2^32, whose bits are then mixed.

    Any two strings, chosen before the factors are, have the same hash with a probability of at most 2^-25. Padding
    changes nothing.

    Args:
      strings: uint8 ``[..., bytes]``, of NumPy or JAX.
      coefficients: uint32 ``[num_hashes, at least bytes + 1]``, of `hash_coefficients`.

    Returns:
      uint32 ``[..., num_hashes]``, of the library of the strings.

    >>> words = to_bytes(["tea", "cafe"], 4)
    >>> coefficients = hash_coefficients(2, 4, seed=0)
    >>> bool((hash_bytes(words, coefficients) == hash_bytes(jnp.asarray(words), coefficients)).all())
    True
    """
    shape = (*strings.shape[:-1], len(coefficients))
    table = coefficients.reshape(*[1] * (len(shape) - 1), *coefficients.shape)
    total = table[..., 0]
    for place in range(strings.shape[-1]):
        total = total + strings[..., place, None].astype(np.uint32) * table[..., place + 1]
    # Steps of the finaliser of MurmurHash3, for which sums that are near are far.
    total = (total ^ (total >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    total = (total ^ (total >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return cast(Array, total ^ (total >> np.uint32(16)))


def fitted(strings: Array, num_bytes: int) -> Array:
    """Returns strings of so many bytes: cut, or padded with zeros; of NumPy or JAX.

    Raises:
      TypeError: If they are not bytes.
    """
    if strings.dtype != np.uint8 or strings.ndim < 1:
        raise TypeError(
            f"strings are bytes, uint8 [length]; got {strings.dtype} {strings.shape}. Write them with to_bytes."
        )
    missing = num_bytes - strings.shape[-1]
    if missing <= 0:
        return strings[..., :num_bytes]
    pad = jnp.pad if isinstance(strings, jax.Array) else np.pad
    return cast(Array, pad(strings, [(0, 0)] * (strings.ndim - 1) + [(0, missing)]))
