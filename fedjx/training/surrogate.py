"""Losses with a gradient of choice: a client rule whose step is no gradient of its loss, as a model."""

from __future__ import annotations

import jax
import optax
from jax import lax

from fedjx.core.language.names import PyTree


def with_gradient(losses: jax.Array, params: PyTree, gradient: PyTree, counts: jax.Array | int = 1) -> jax.Array:
    """Returns the losses ``[B]``, each with the given gradient of the parameters, times how much it counts.

    So the mean over any of them has it too, and local training takes the step that a method asks for.

    >>> loss = lambda w: with_gradient(jnp.array([3.0, 5.0]), w, jnp.float32(-2)).mean()
    >>> jax.tree.map(float, jax.value_and_grad(loss)(jnp.float32(7)))
    (4.0, -2.0)
    """
    zero = jax.tree.map(lambda w: w - lax.stop_gradient(w), params)
    return lax.stop_gradient(losses) + counts * optax.tree.vdot(lax.stop_gradient(gradient), zero)
