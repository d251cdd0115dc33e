"""The weighted mean, and how a client is weighted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.operators import federated_mean, federated_value
from fedjx.core.language.types import SERVER


def mean() -> Aggregator:
    """Averages the clients' values by their weights; 0 if no client has weight."""

    def init(member: Any) -> Any:
        del member
        return ()

    @federated_computation
    def next(key: Any, state: Any, value: Any, weight: Any) -> Any:
        del key
        return state, federated_mean(value, weight), federated_value({}, SERVER)

    return Aggregator(init, next)


def by_examples(num_examples: jax.Array) -> jax.Array:
    """Weights a client by its number of examples, so that every example has equal influence."""
    return num_examples.astype(jnp.float32)


def uniform(num_examples: jax.Array) -> jax.Array:
    """Weights every client that has examples alike."""
    return (num_examples > 0).astype(jnp.float32)


def clip_weights(max_weight: float) -> Callable[[jax.Array], jax.Array]:
    """Weights a client by its number of examples, up to a largest weight.

    Raises:
      ValueError: If the largest weight is not positive.

    >>> clip_weights(100)(jnp.array([7, 1000]))
    Array([  7., 100.], dtype=float32)
    """
    if not max_weight > 0:
        raise ValueError(f"a largest weight is positive; got {max_weight=}. Pass one above 0.")
    return lambda num_examples: jnp.minimum(by_examples(num_examples), jnp.float32(max_weight))
