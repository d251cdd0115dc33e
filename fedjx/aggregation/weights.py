"""How a client is weighted, by its number of examples."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjx.core.language.checks import check_number


def by_examples(num_examples: jax.Array) -> jax.Array:
    """Weights a client by its number of examples, so that every example has equal influence."""
    return num_examples.astype(jnp.float32)


def uniform(num_examples: jax.Array) -> jax.Array:
    """Weights every client that has examples alike."""
    return (num_examples > 0).astype(jnp.float32)


def clip_weights(*, max_weight: float) -> Callable[[jax.Array], jax.Array]:
    """Weights a client by its number of examples, up to a largest weight.

    Raises:
      ValueError: If the largest weight is not positive.

    >>> clip_weights(max_weight=100)(jnp.array([7, 1000]))
    Array([  7., 100.], dtype=float32)
    """
    check_number("(0, inf]", max_weight=max_weight)
    return lambda num_examples: jnp.minimum(by_examples(num_examples), jnp.float32(max_weight))
