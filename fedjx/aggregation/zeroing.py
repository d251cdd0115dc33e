"""Zeroing the values of clients far outside of what others send, and zeroing, clipping and mean in one.

The adaptive threshold and the constants are those of TensorFlow Federated's
`zeroing_factory` and `robust_aggregator`; the quantile is followed as in Andrew et al.,
"Differentially Private Learning with Adaptive Clipping" (arXiv 1905.03871, section 2.1).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.aggregation.bounding import Adaptive, Bound, adaptive_bound, fixed_bound
from fedjx.aggregation.clipping import clip_adaptively
from fedjx.aggregation.mean import mean, wrapped
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import PyTree


def zero_above(*, threshold: float, order: float = np.inf, inner: Aggregator | None = None) -> Aggregator:
    """Replaces every client's value by zero if its norm is above a threshold.

    Args:
      threshold: The largest norm that is let through.
      inner: What aggregates the others and the zeros; `mean` if not given.
      order: Of the joint norm of all leaves: 1, 2 or ``np.inf``.

    Returns:
      An `Aggregator` with the inner one's state. A zeroed client keeps its weight, so the mean moves
      toward 0; one whose norm is not finite loses it. It measures ``zeroing_threshold`` and
      ``num_zeroed``, both kinds together.

    Raises:
      ValueError: If the threshold is not positive, or the order is another.
    """
    check_number("(0, inf]", threshold=threshold)
    return fixed_bound(threshold, wrapped(inner), order, _zeroed, _report)


def zero_outliers(
    *,
    quantile: float = 0.98,
    initial: float = 10.0,
    learning_rate: float = math.log(10.0),
    multiplier: float = 2.0,
    increment: float = 1.0,
    order: float = np.inf,
    inner: Aggregator | None = None,
) -> Aggregator:
    """Zeroes as `zero_above`, at a threshold that follows a high quantile of the clients' norms.

    The threshold is ``multiplier * estimate + increment``, where the estimate of the quantile
    follows the norms of all clients with weight, zeroed ones too. The defaults are TensorFlow
    Federated's.

    Args:
      inner: What aggregates the others and the zeros; `mean` if not given.
      quantile: Which is estimated.
      initial: The first estimate.
      learning_rate: How fast the estimate moves, see `fedjx.aggregation.clip_adaptively`.
      multiplier: Of the estimate.
      increment: Added to it; a threshold of at least this.
      order: Of the joint norm: 1, 2 or ``np.inf``.

    Returns:
      An `Aggregator` with a `BoundState`, measured as by `zero_above`.

    Raises:
      ValueError: If ``initial`` or ``rate`` is not positive, or ``quantile`` no fraction.
    """
    adaptive = Adaptive(initial, quantile, learning_rate, multiplier, increment)
    return adaptive_bound(adaptive, inner, order, _zeroed, _report)


def zeroed_and_clipped_mean() -> Aggregator:
    """Zeroes outliers, then clips, then averages: TensorFlow Federated's robust preset, with its constants.

    Zeroing comes first, by the L∞ norm at twice an estimated quantile of 0.98, plus 1 (initial
    estimate 10, learning_rate ln 10); then an adaptive L2 clip at the quantile 0.8 (initial 1, learning_rate 0.2),
    which sees the zeroed clients as norm 0; then the weighted mean.
    """
    return zero_outliers(inner=clip_adaptively(inner=mean(), quantile=0.8, initial=1.0, learning_rate=0.2))


def _zeroed(value: PyTree, norm: jax.Array, bound: Bound) -> PyTree:
    return jax.tree.map(lambda v: jnp.where(norm > bound, 0, v), value)


def _report(bound: jax.Array, votes: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {"zeroing_threshold": bound, "num_zeroed": votes["above"] + votes["non_finite"]}
