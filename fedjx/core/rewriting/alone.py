"""What pays on a CPU for one client at a time, and not for several that are mapped together."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax
from jax.custom_batching import custom_vmap


def alone_on_cpu(way: Callable[..., jax.Array], plain: Callable[..., jax.Array], *args: jax.Array | float) -> jax.Array:
    """Evaluates ``way(*args)`` on a CPU where nothing is mapped, else ``plain(*args)``; no derivative in reverse.

    >>> import jax.numpy as jnp
    >>> jax.vmap(lambda x: alone_on_cpu(jnp.sin, jnp.cos, x))(jnp.zeros(2)).tolist()
    [1.0, 1.0]
    """

    @custom_vmap
    def chosen(*args: jax.Array) -> jax.Array:
        # Chosen when the program is lowered, so an exported one is right for all of its platforms.
        return lax.platform_dependent(*args, cpu=way, default=plain)

    @chosen.def_vmap
    def _(_: int, is_mapped: list[bool], *args: jax.Array) -> tuple[jax.Array, bool]:
        return jax.vmap(plain, in_axes=[0 if mapped else None for mapped in is_mapped])(*args), True

    return chosen(*args)
