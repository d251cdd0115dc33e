"""The coordinate median and the trimmed mean.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates"
(arXiv 1803.01498, definitions 1 and 2). The weighted forms give a client the influence of that many clients.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.aggregation.column_sort import by_columns, sorted_columns, sorted_with
from fedjx.aggregation.votes import rule_of_members
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.checks import check_number


def coordinate_median(*, weighted: bool = False) -> Aggregator:
    """Takes the median of each coordinate.

    Survives malicious clients that are fewer than half (of the weight, if weighted). Materialises the members.

    Args:
      weighted: Whether to take the weighted median. If not, weights say only who takes part.

    >>> aggregator = coordinate_median()
    >>> value, weight = fedjx.Clients.of(np.float32([1, 9, 2])), fedjx.Clients.of(np.float32([1, 1, 1]))
    >>> aggregator.next(jax.random.key(0), aggregator.init(np.float32(0)), value, weight)[1]
    Array(2., dtype=float32)
    """

    def counted(matrix: jax.Array, weight: jax.Array) -> jax.Array:
        number = jnp.sum(weight > 0)

        def middle(columns: jax.Array) -> jax.Array:
            ordered = sorted_columns(_excluded_last(columns, weight))
            return ordered[(number - 1) // 2] / 2 + ordered[number // 2] / 2

        return by_columns(middle, matrix)

    def weighed(matrix: jax.Array, weight: jax.Array) -> jax.Array:
        def middle(columns: jax.Array) -> jax.Array:
            ordered, _, upto = _ranked(columns, weight)
            half = upto[-1:] / 2
            low = jnp.argmax(upto >= half, axis=0)
            high = jnp.argmax(upto > half, axis=0)  # the next one, where the halves meet between two
            take = lambda rows: jnp.take_along_axis(ordered, rows[None], axis=0)[0]  # noqa: E731
            return take(low) / 2 + take(high) / 2

        return by_columns(middle, matrix)

    return rule_of_members(weighed if weighted else counted, weighted=weighted)


def trimmed_mean(*, fraction: float, weighted: bool = False) -> Aggregator:
    """Takes the mean of each coordinate without its smallest and its largest values.

    Survives malicious clients up to ``fraction`` (of the weight, if weighted). Materialises the members.

    Args:
      fraction: Of the clients that take part, in [0, 0.5), trimmed on each side: their number times this, rounded down,
        but never all of them; of the weight, if weighted, where a client may be trimmed in part.
      weighted: Whether to take the weighted mean of what is left. If not, weights say only who takes part.

    Raises:
      ValueError: If nothing would be left.
    """
    check_number("[0, 0.5)", "It is trimmed on each side; use coordinate_median.", fraction=fraction)

    def counted(matrix: jax.Array, weight: jax.Array) -> jax.Array:
        number = jnp.sum(weight > 0)
        trimmed = jnp.asarray(num_trimmed(fraction, np.arange(len(matrix) + 1)))[number]

        def middle(columns: jax.Array) -> jax.Array:
            ordered = sorted_columns(_excluded_last(columns, weight))
            rank = jnp.arange(len(ordered))[:, None]
            kept = (rank >= trimmed) & (rank < number - trimmed)
            return jnp.sum(jnp.where(kept, ordered, 0.0), axis=0) / (number - 2 * trimmed)

        return by_columns(middle, matrix)

    def weighed(matrix: jax.Array, weight: jax.Array) -> jax.Array:
        def middle(columns: jax.Array) -> jax.Array:
            ordered, below, upto = _ranked(columns, weight)
            low, high = fraction * upto[-1:], (1 - fraction) * upto[-1:]
            kept = jnp.maximum(jnp.minimum(upto, high) - jnp.maximum(below, low), 0.0)
            return jnp.sum(jnp.where(kept > 0, ordered * kept, 0.0), axis=0) / jnp.sum(kept, axis=0)

        return by_columns(middle, matrix)

    return rule_of_members(weighed if weighted else counted, weighted=weighted)


def num_trimmed(fraction: float, num_clients: np.ndarray) -> np.ndarray:
    """Returns how many of so many clients ``[n]`` are trimmed on each side: at least one is left; int32 ``[n]``."""
    # Even in float64 0.29 * 100 is less than 29.
    trimmed = np.floor(fraction * num_clients + 1e-9)
    return np.minimum(trimmed, np.maximum(num_clients - 1, 0) // 2).astype(np.int32)


def _excluded_last(columns: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.where(weight[:, None] > 0, columns, jnp.inf)


def _ranked(columns: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sorts columns; returns with each entry the weight below it, and that up to and with it."""
    weights = jnp.broadcast_to(weight[:, None], columns.shape)
    ordered, carried = sorted_with(_excluded_last(columns, weight), weights)
    upto = jnp.cumsum(carried, axis=0)
    return ordered, upto - carried, upto
