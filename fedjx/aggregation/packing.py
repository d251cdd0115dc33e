"""Packs integers of a few bits into uint32 words.

Shifts and ors of contiguous blocks only, no gather or scatter: neighbours in a word are far apart in
the array, so that each step acts on long vectors.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def num_words(num_codes: int, num_bits: int, *, word_bits: int = 32) -> int:
    """Returns how many words `pack` needs: ``ceil(num_bits * num_codes / word_bits)``."""
    return -(-num_bits * num_codes // word_bits)


def pack(codes: jax.Array, num_bits: int, *, word_bits: int = 32) -> jax.Array:
    """Packs codes densely.

    Args:
      codes: Integers ``[n]`` in ``[0, 2**num_bits)``.
      num_bits: Of each code, 1 to 32.
      word_bits: How many bits of each word are used. TFF's tensor_encoding used 28 of 32.

    Returns:
      uint32 ``[num_words(n, num_bits)]``.

    >>> pack(jnp.array([1, 2, 3, 4]), 8)
    Array([67305985], dtype=uint32)
    """
    codes = codes.astype(jnp.uint32)
    group, _ = _period(num_bits, word_bits)
    num_groups, rest = divmod(codes.size, group)
    whole = _pack_groups(codes[: group * num_groups].reshape(group, num_groups), num_bits, word_bits).reshape(-1)
    if not rest:
        return whole
    last = jnp.pad(codes[group * num_groups :], (0, group - rest)).reshape(group, 1)
    words = _pack_groups(last, num_bits, word_bits).reshape(-1)[: num_words(rest, num_bits, word_bits=word_bits)]
    return jnp.concatenate([whole, words])


def unpack(words: jax.Array, num_bits: int, num_codes: int, *, word_bits: int = 32) -> jax.Array:
    """Returns the codes, uint32 ``[num_codes]``, that were packed.

    >>> unpack(jnp.array([67305985], jnp.uint32), 8, 3)
    Array([1, 2, 3], dtype=uint32)
    """
    group, words_in_group = _period(num_bits, word_bits)
    num_groups, rest = divmod(num_codes, group)
    split = num_groups * words_in_group
    codes = _unpack_groups(words[:split].reshape(words_in_group, num_groups), num_bits, word_bits).reshape(-1)
    if not rest:
        return codes
    last = jnp.pad(words[split:], (0, words_in_group - (len(words) - split))).reshape(words_in_group, 1)
    return jnp.concatenate([codes, _unpack_groups(last, num_bits, word_bits).reshape(-1)[:rest]])


def _period(num_bits: int, word_bits: int) -> tuple[int, int]:
    """Returns after how many codes, and words, a code begins where a word does."""
    if not 1 <= num_bits <= word_bits <= 32:
        raise ValueError(
            f"a code fits into a word; got {num_bits=}, {word_bits=}. Pass 1 <= num_bits <= word_bits <= 32."
        )
    common = math.lcm(num_bits, word_bits)
    return common // num_bits, common // word_bits


def _pack_groups(codes: jax.Array, num_bits: int, word_bits: int) -> jax.Array:
    """Packs ``[group, n]`` into ``[words, n]``."""
    group, words_in_group = _period(num_bits, word_bits)
    words = [jnp.zeros(codes.shape[1], jnp.uint32)] * words_in_group
    mask = jnp.uint32(2**word_bits - 1)
    for j in range(group):
        word, shift = divmod(j * num_bits, word_bits)
        words[word] |= (codes[j] << shift) & mask
        if shift + num_bits > word_bits:
            words[word + 1] |= codes[j] >> (word_bits - shift)
    return jnp.stack(words)


def _unpack_groups(words: jax.Array, num_bits: int, word_bits: int) -> jax.Array:
    """Unpacks ``[words, n]`` into ``[group, n]``."""
    group, _ = _period(num_bits, word_bits)
    mask = jnp.uint32(2**num_bits - 1)
    # Code by code: XLA would fuse one shift of all with the packing, and encode anew for every code of a word.
    codes = []
    for j in range(group):
        word, shift = divmod(j * num_bits, word_bits)
        code = words[word] >> shift
        if shift + num_bits > word_bits:
            code |= words[word + 1] << (word_bits - shift)
        codes.append(code & mask)
    return jnp.stack(codes)
