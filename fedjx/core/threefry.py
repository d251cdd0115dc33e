"""Random bits of JAX's default generator in one pass over memory.

On a CPU, JAX lowers the hash Threefry-2x32 to a loop that writes its state to memory five times,
which is felt where dropout draws as many numbers as a layer has activations. Here its 20 rounds
are ordinary operations, which XLA fuses into one. The bits are the same.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.extend.random import threefry_prng_impl

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def is_threefry(eqn: Any) -> bool:
    """Tells whether an equation draws bits with keys of JAX's default generator."""
    return eqn.primitive.name == "random_bits" and str(eqn.invars[0].aval.dtype) == "key<fry>"


def random_bits_program(keys: jax.Array, *, bit_width: int, shape: tuple[int, ...]) -> ClosedJaxpr:
    """Returns JAX's own way from ``random.key_data(keys)`` to bits, a program whose hashes are ``threefry2x32``."""

    def bits(data: jax.Array) -> jax.Array:
        return threefry_prng_impl.random_bits(data, bit_width, shape)

    for _ in range(keys.ndim):
        bits = jax.vmap(bits)
    return jax.make_jaxpr(bits)(jax.random.key_data(keys))


def threefry2x32(key_0: jax.Array, key_1: jax.Array, x_0: jax.Array, x_1: jax.Array) -> list[jax.Array]:
    """Hashes pairs of 32-bit words, as the primitive of this name does."""
    keys = (key_0, key_1, key_0 ^ key_1 ^ _PARITY)
    x_0, x_1 = x_0 + keys[0], x_1 + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x_0 = x_0 + x_1
            x_1 = x_0 ^ ((x_1 << rotation) | lax.shift_right_logical(x_1, jax.numpy.uint32(32 - rotation)))
        x_0, x_1 = x_0 + keys[(group + 1) % 3], x_1 + keys[(group + 2) % 3] + (group + 1)
    return [x_0, x_1]
