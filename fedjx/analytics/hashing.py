"""Hashes of what a column holds, of 64 bits, the same on every machine and whatever the column's width."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjx.core.language.names import Array


def hashed(x: Array, seed: int = 0) -> jax.Array:
    """Hashes an integer, a number, or a string of bytes that zeros follow.

    Threefry-2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) is folded over its words of 32
    bits, four bytes of a string each, and then over their number of bytes.

    Args:
      x: An integer or a real ``[]``, or a string, uint8 ``[L]``.
      seed: In ``[0, 2^32)``, of the hash function.

    Returns:
      uint32 ``[2]``. Equal integers have equal hashes in all integer dtypes, equal reals in those of up to 32 bits, and
      equal strings with whatever number of zeros behind them.

    Raises:
      TypeError: If it is something else.

    >>> hashed(jnp.uint8(7)).tolist() == hashed(jnp.int32(7)).tolist()
    True
    >>> hashed(jnp.array([104, 105, 0], jnp.uint8)).tolist() == hashed(jnp.array([104, 105], jnp.uint8)).tolist()
    True
    """
    state = jax.random.key(seed, impl="threefry2x32")
    if x.ndim == 0:
        return jax.random.key_data(jax.random.fold_in(state, _word(x)))
    if x.ndim != 1 or x.dtype != jnp.uint8:
        raise TypeError(
            f"a hash is of a number, or of bytes, uint8 [L]; got {x.dtype}{list(x.shape)}. Encode it first."
        )
    length = jnp.max(jnp.where(x != 0, jnp.arange(len(x), dtype=jnp.uint32) + 1, 0), initial=0)
    bytes_of = jnp.pad(jnp.asarray(x), (0, -len(x) % 4)).reshape(-1, 4).astype(jnp.uint32)
    words = jnp.sum(bytes_of << jnp.arange(0, 32, 8, dtype=jnp.uint32)[None], axis=1, dtype=jnp.uint32)

    def fold(place: jax.Array, state: jax.Array) -> jax.Array:
        return jnp.where(4 * place < length, jax.random.fold_in(state, words[place]), state)

    return jax.random.key_data(jax.random.fold_in(jax.lax.fori_loop(0, len(words), fold, state), length))


def _word(x: Array) -> jax.Array:
    """Returns the 32 bits of a number."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jnp.where(x == 0, 0, x).astype(jnp.float32)  # of the two zeros one
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.asarray(x).astype(jnp.uint32)
