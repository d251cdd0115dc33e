"""Keyed random words, hashes and permutations that need no state and do not depend on NumPy's version.

Everything is 64-bit integer arithmetic on raw words of Philox4x64-10 (Salmon et al. 2011), which NumPy
promises not to change, or exact arithmetic of Python's integers: no floating-point function is involved.
"""

from __future__ import annotations

import hashlib
import math
import operator

import numpy as np

from fedjx.core.language.checks import check_integer

# Few elements are the hardest: of eight, all orders come equally often (by chi-square) from 20 rounds on.
_FEISTEL_ROUNDS = 24


def words(count: int, seed: int, round: int, *stream: int) -> np.ndarray:
    """Draws 64-bit words from the stream of a (seed, round), uint64 ``[count]``.

    Seed and round are the two words of the key and `stream`, at most two numbers, is the upper half of
    the counter, so no two streams share a word: nothing is added or hashed that could collide.

    Raises:
      ValueError: If seed or round is not in ``[0, 2^64)``.
    """
    key = np.array([checked_word("seed", seed), checked_word("round", round)], np.uint64)
    counter = np.array([0, 0, *(*stream, 0, 0)[:2]], np.uint64)
    return np.random.Philox(counter=counter, key=key).random_raw(count)


def checked_word(name: str, value: int) -> int:
    """Returns an integer that fits in an unsigned 64-bit word."""
    value = operator.index(value)
    check_integer("[0, 2^64)", **{name: value})
    return value


def digest(array: np.ndarray) -> str:
    """Returns the SHA-256 of numbers, for the description of what was sampled by them."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def scaled(words: np.ndarray, total: int) -> np.ndarray:
    """Returns ``floor(words * total / 2^64)``, int64: points in ``[0, total)``, exact for any total below 2^63.

    Each interval of points is hit with its share of the total, up to 2^-64.
    """
    return np.array([(word * total) >> 64 for word in words.tolist()], np.int64)


def hashed(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Hashes integers with a key of some words, one after the other; uint64, of the shape of `values`.

    A word is added by exclusive or and then mixed by the finaliser of SplitMix64 (Steele et al. 2014).

    >>> [hex(x) for x in hashed(np.array([0]), np.array([0x9E3779B97F4A7C15], np.uint64))]
    ['0xe220a8397b1dcdaf']
    """
    x = values.astype(np.uint64)
    for key in keys:
        x = x ^ key
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x


def below(words: np.ndarray, probability: np.ndarray | float) -> np.ndarray:
    """Tells of each word whether it is an event of this probability, bool; exact for multiples of 2^-53."""
    return (words >> np.uint64(11)) * 2.0**-53 < probability


def permuted(positions: np.ndarray, size: int, seed: int, round: int, *stream: int) -> np.ndarray:
    """Looks up positions in a random permutation of ``0 .. size - 1``, which is never written down.

    A Feistel network on the pairs of ``Z_a x Z_b``, where ``a * b`` is `size` or little more (FE1 of
    Bellare et al. 2009); what falls outside walks on along its cycle until it is inside.

    Args:
      positions: Integers ``[P]`` in ``[0, size)``.
      size: Number of elements, less than 2^32.
      seed: The key, with what follows, as of `words`.
      round: As of `words`.
      *stream: As of `words`.

    Returns:
      int64 ``[P]``; in O(P) time and memory.

    >>> permuted(np.arange(10), 10, 0, 0).tolist()
    [5, 6, 2, 7, 0, 1, 3, 4, 8, 9]
    """
    keys = words(_FEISTEL_ROUNDS, seed, round, *stream)
    # An even number, since rotations of odd length alone would make even permutations only.
    rows = 2 * ((math.isqrt(size - 1) + 2) // 2)
    columns = -(-size // rows)
    out = _feistel(np.asarray(positions, np.uint64), rows, columns, keys)
    outside = np.flatnonzero(out >= size)
    while len(outside):
        out[outside] = _feistel(out[outside], rows, columns, keys)
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)


def _feistel(positions: np.ndarray, rows: int, columns: int, keys: np.ndarray) -> np.ndarray:
    moving, fixed = np.divmod(positions, np.uint64(columns))
    size, other = np.uint64(rows), np.uint64(columns)
    for k in range(len(keys)):
        # Shifted so that the sum cannot overflow, which would make two positions meet.
        moving = (moving + (hashed(fixed, keys[k : k + 1]) >> np.uint64(1))) % size
        moving, fixed, size, other = fixed, moving, other, size
    return moving * np.uint64(columns) + fixed


def binomial_table(num_trials: int, probability: float) -> tuple[int, np.ndarray]:
    """Tabulates the binomial distribution in exact integers.

    Args:
      num_trials: N, at least 1.
      probability: q in (0, 1].

    Returns:
      The least number in the table, and for each but the last number the end of its part of the words,
      uint64 ``[K]``: a word is the number ``least + searchsorted(ends, word, side="right")``. K is about
      26 standard deviations; what is beyond has probability less than 2^-100, and each number in it
      its own up to 2^-63.

    >>> binomial_table(2, 0.5)[1] / 2**64
    array([0.25, 0.75])
    """
    success, whole = probability.as_integer_ratio()
    failure = whole - success
    mode = min((num_trials + 1) * success // whole, num_trials)
    weights, weight = [1 << 128], 1 << 128
    for k in range(mode, num_trials):
        weight = weight * (num_trials - k) * success // ((k + 1) * failure)
        if not weight:
            break
        weights.append(weight)
    down, weight = [], 1 << 128
    for k in range(mode, 0, -1):
        weight = weight * k * failure // ((num_trials - k + 1) * success)
        if not weight:
            break
        down.append(weight)
    weights = down[::-1] + weights
    total, end, ends = sum(weights), 0, []
    for weight in weights[:-1]:
        end += weight
        ends.append((end << 64) // total)
    return mode - len(down), np.array(ends, np.uint64)
