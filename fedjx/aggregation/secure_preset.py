"""Secure means whose bound is estimated from what clients send, and TensorFlow Federated's preset of them.

Its `secure_aggregator` bounds elements by twice an estimated quantile of 0.95 of the clients' L∞ norms (first estimate
50, learning rate 1), and weights by 2^20 - 1. The quantile is followed as in Andrew et al., "Differentially Private
Learning with Adaptive Clipping" (arXiv 1905.03871, section 2.1), from votes that are summed securely as well.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.aggregation.bounding import Adaptive, Bound, adaptive_bound, fraction
from fedjx.aggregation.clipping import clip_adaptively
from fedjx.aggregation.secure import secure_mean
from fedjx.aggregation.zeroing import zero_outliers
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_broadcast
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import map_keeping


def secure_mean_of_estimated_bound(
    *,
    max_clients: int,
    max_weight: float = 2**20 - 1,
    min_clients: int = 1,
    num_bits: int = 32,
    stochastic: bool = False,
    quantile: float = 0.95,
    initial: float = 50.0,
    learning_rate: float = 1.0,
    multiplier: float = 2.0,
) -> Aggregator:
    """Averages as `secure_mean`, with elements within a bound that follows a quantile of the clients' L∞ norms.

    After every round the estimate becomes ``estimate * exp(-learning_rate * (b - quantile))``, where b is the fraction
    of the clients with an L∞ norm of at most the estimate; the bound is ``multiplier * estimate``. The defaults are
    TensorFlow Federated's.

    Args:
      max_clients: The most clients of one cohort.
      max_weight: Weights are clipped to ``[0, max_weight]``.
      min_clients: As for `secure_mean`, as are the next two.
      num_bits: Of the ring, and of each element on its way.
      stochastic: Whether elements and weights are rounded at random.
      quantile: Which is estimated.
      initial: The first estimate.
      learning_rate: How fast it moves.
      multiplier: Of the estimate.

    Returns:
      An `Aggregator` with a `BoundState`. It measures what `secure_mean` does, ``bound``, that of this round, and
      ``bounded_fraction`` of the clients; of elements, ``num_clipped`` is then 0. Clients whose norm is not finite are
      left out and counted in ``num_non_finite``.

    >>> aggregator = secure_mean_of_estimated_bound(max_clients=10, max_weight=4)
    >>> value, weight = fedjx.Clients.of(np.float32([1, 3])), fedjx.Clients.of(np.float32([1, 3]))
    >>> state, result, measured = aggregator.next(jax.random.key(0), aggregator.init(np.float32(0)), value, weight)
    >>> print(f"{float(result):.3f} {float(measured['bound'])} {float(state.estimate):.2f}")
    2.500 100.0 47.56
    """
    own = {"max_clients": max_clients, "min_clients": min_clients, "num_bits": num_bits, "stochastic": stochastic}
    unit = secure_mean(bound=1.0, max_weight=max_weight, **own)
    scaled = adaptive_bound(Adaptive(initial, quantile, learning_rate, multiplier), unit, np.inf, _in_parts, _report)

    def bound(estimate: jax.Array) -> jax.Array:
        return multiplier * estimate

    def times(value: PyTree, bound: jax.Array) -> PyTree:
        return map_keeping(lambda x: x * bound, value)

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        after, result, measured = scaled.next(key, state, value, weight)
        return after, federated_map(times, result, federated_map(bound, state.estimate)), measured

    def bounded(key: PyTree, state: PyTree, value: PyTree, weight: PyTree) -> tuple[FederatedValue, FederatedValue]:
        assert scaled.bounded is not None
        parts, weight = scaled.bounded(key, state, value, weight)
        return federated_map(times, parts, federated_broadcast(federated_map(bound, state.estimate))), weight

    return Aggregator(scaled.init, next, bounded, secure=True)


def zeroed_and_clipped_secure_mean(*, max_clients: int, max_weight: float = 2**20 - 1) -> Aggregator:
    """Zeroes outliers, clips and averages as `zeroed_and_clipped_mean`, in secure sums: TensorFlow Federated's preset.

    All that the server learns are totals, with an algorithm's ``metrics_sum=secure_total(...)``, of the metrics too.

    Args:
      max_clients: The most clients of one cohort.
      max_weight: Weights are clipped to ``[0, max_weight]``.
    """
    mean = secure_mean_of_estimated_bound(max_clients=max_clients, max_weight=max_weight)
    return zero_outliers(inner=clip_adaptively(inner=mean, quantile=0.8, initial=1.0, learning_rate=0.2))


def _in_parts(value: PyTree, norm: jax.Array, bound: Bound) -> PyTree:
    del norm
    return map_keeping(lambda v: jnp.clip(v / bound, -1, 1), value)


def _report(bound: jax.Array, votes: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {"bound": bound, "bounded_fraction": fraction(votes["above"], votes), "num_non_finite": votes["non_finite"]}
