"""Clipping each client's value to a norm, fixed or adaptive.

The joint L2 clip is that of McMahan et al., "Learning Differentially Private Recurrent Language
Models" (arXiv 1710.06963, section 2.3); the adaptive one follows a quantile of the norms, Andrew et
al., "Differentially Private Learning with Adaptive Clipping" (arXiv 1905.03871, section 2.1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.aggregation.bounding import Adaptive, Bound, adaptive_bound, fixed_bound, fraction
from fedjx.aggregation.mean import wrapped
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import PyTree


def clip_by_norm(*, max_norm: float, order: float = 2, inner: Aggregator | None = None) -> Aggregator:
    """Scales every client's value to a norm of at most ``max_norm`` before the inner aggregator sees it.

    Args:
      max_norm: The bound on the joint norm of all leaves, computed in float32 and kept up to rounding.
      inner: What aggregates the clipped values, with their weights as they are; `mean` if not given.
      order: Of the norm: 1, 2 or ``np.inf``.

    Returns:
      An `Aggregator` with the inner one's state. A client whose norm is not finite is left out. It
      measures ``clip``, ``clipped_fraction`` of the clients with weight, and ``num_non_finite``.

    Raises:
      ValueError: If the bound is not positive, or the order is another.

    >>> clipped = clip_by_norm(max_norm=1.0)
    >>> value, weight = fedjx.Clients.of(np.array([[3.0, 4.0], [0.0, 0.2]])), fedjx.Clients.of(np.ones(2))
    >>> _, result, measured = clipped.next(jax.random.key(0), (), value, weight)
    >>> result, float(measured["clipped_fraction"])
    (Array([0.3, 0.5], dtype=float32), 0.5)
    """
    check_number("(0, inf]", max_norm=max_norm)
    return fixed_bound(max_norm, wrapped(inner), order, _scaled, _report)


def clip_by_value(*, max_value: float, inner: Aggregator | None = None) -> Aggregator:
    """Brings every element of every client's value into ``[-max_value, max_value]``.

    This is the projection onto the L∞ ball: it changes the direction, which
    ``clip_by_norm(..., order=np.inf)`` keeps.

    Args:
      max_value: The bound on each element's magnitude.
      inner: What aggregates the clipped values; `mean` if not given.

    Returns:
      An `Aggregator` with the inner one's state, measured as by `clip_by_norm`; a client of which
      one element is clipped counts as clipped.

    Raises:
      ValueError: If the bound is not positive.
    """
    check_number("(0, inf]", max_value=max_value)
    return fixed_bound(max_value, wrapped(inner), np.inf, _clamped, _report)


def clip_adaptively(
    *,
    quantile: float = 0.5,
    initial: float = 0.1,
    learning_rate: float = 0.2,
    order: float = 2,
    inner: Aggregator | None = None,
) -> Aggregator:
    """Clips as `clip_by_norm`, to a bound that follows a quantile of the clients' norms.

    After every round the bound C becomes ``C * exp(-rate * (b - quantile))``, where b is the
    fraction of the clients with norm at most C: it grows if too many were clipped.

    Args:
      inner: What aggregates the clipped values; `mean` if not given.
      quantile: The fraction of clients not to be clipped.
      initial: The first bound.
      learning_rate: How fast it moves.
      order: Of the norm: 1, 2 or ``np.inf``.

    Returns:
      An `Aggregator` with a `BoundState`, measured as by `clip_by_norm`: ``clip`` is the bound of
      this round. Clients without weight or without a finite norm have no say in it, and without
      any client it stays.

    Raises:
      ValueError: If ``initial`` or ``rate`` is not positive, or ``quantile`` no fraction.
    """
    adaptive = Adaptive(initial, quantile, learning_rate)
    return adaptive_bound(adaptive, inner, order, _scaled, _report)


def _check_floats(value: PyTree) -> None:
    for leaf in jax.tree.leaves(value):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(f"what is clipped must be floating-point; got {leaf.dtype}. Leave such leaves out.")


def _scaled(value: PyTree, norm: jax.Array, bound: Bound) -> PyTree:
    _check_floats(value)
    scale = jnp.where(norm > bound, bound / jnp.maximum(norm, bound), 1.0)  # a bound of infinity clips nothing
    return jax.tree.map(lambda v: v * scale, value)


def _clamped(value: PyTree, norm: jax.Array, bound: Bound) -> PyTree:
    del norm
    _check_floats(value)
    return jax.tree.map(lambda v: jnp.clip(v, -bound, bound), value)


def _report(bound: jax.Array, votes: dict[str, jax.Array]) -> dict[str, jax.Array]:
    clipped_fraction = fraction(votes["above"], votes)
    return {"clip": bound, "clipped_fraction": clipped_fraction, "num_non_finite": votes["non_finite"]}
