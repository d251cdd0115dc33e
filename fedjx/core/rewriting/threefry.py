"""Random bits of JAX's default generator in one pass over memory.

On a CPU, JAX lowers the hash Threefry-2x32 to a loop that writes its state to memory five times,
which is felt where dropout draws as many numbers as a layer has activations. Here its 20 rounds
are ordinary operations, which XLA fuses into one. The bits are the same.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.jaxprs import Equation

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
# A loop, however short, has its result in memory; else XLA would hash anew wherever the bits are used.
_NUM_PARTS = 2
_LEAST_BITS, _MOST_BITS = 4096, 2**31


def is_unrolled(eqn: Equation) -> bool:
    """Tells whether `random_bits` draws the bits of an equation: many, of JAX's default generator and scheme."""
    if jaxprs.name_of(eqn) != "random_bits" or not jaxprs.draws_threefry(eqn):
        return False
    params = jaxprs.parameters(eqn)
    return (
        params is not None
        and params["bit_width"] <= 32
        and all(isinstance(n, int) for n in params["shape"])  # symbolic sizes cannot be compared
        and _LEAST_BITS <= math.prod(params["shape"]) < _MOST_BITS
        and _are_jaxs()
    )


@functools.cache
def _are_jaxs() -> bool:
    """Draws a few bits both ways, once, since nothing in a program says how its generator works."""
    with jax.ensure_compile_time_eval():
        key = jax.random.key(2024, impl="threefry2x32")
        jaxs, ours = jax.random.bits(key, (5,), jnp.uint32), random_bits(key, bit_width=32, shape=(5,))
        same = bool((jaxs == ours).all())
    if not same:
        jaxprs.leave("random_bits", "it draws other bits")
    return same


def random_bits(keys: jax.Array, *, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """Draws unsigned integers ``[*keys, *shape]``: element ``i`` is the hash of ``(0, i)``."""

    def draw(key: jax.Array) -> jax.Array:
        size = math.prod(shape)
        part = -(-size // _NUM_PARTS)

        def bits(first: jax.Array) -> jax.Array:
            high, low = _threefry2x32(key[0], key[1], jnp.uint32(0), first + jnp.arange(part, dtype=jnp.uint32))
            return (high ^ low).astype(f"uint{bit_width}")

        parts = lax.map(bits, part * jnp.arange(_NUM_PARTS, dtype=jnp.uint32))
        return parts.reshape(-1)[:size].reshape(shape)

    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    return draw(jax.random.key_data(keys))


def _threefry2x32(key_0: jax.Array, key_1: jax.Array, x_0: jax.Array, x_1: jax.Array) -> tuple[jax.Array, jax.Array]:
    keys = (key_0, key_1, key_0 ^ key_1 ^ jnp.uint32(_PARITY))
    x_0, x_1 = x_0 + keys[0], x_1 + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x_0 = x_0 + x_1
            x_1 = x_0 ^ (x_1 << jnp.uint32(rotation) | x_1 >> jnp.uint32(32 - rotation))
        x_0, x_1 = x_0 + keys[(group + 1) % 3], x_1 + (keys[(group + 2) % 3] + jnp.uint32(group + 1))
    return x_0, x_1
