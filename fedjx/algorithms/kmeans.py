"""K-means: the points of all clients, each to its nearest centre.

A round is a step of Lloyd, "Least Squares Quantization in PCM" (1982), or of mini-batch k-means, Sculley, "Web-Scale
K-Means Clustering" (2010, algorithm 1), whose batch are the points of the clients that take part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjx.algorithms.sufficient_statistics import StatisticsArguments, sufficient_statistics
from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_number
from fedjx.core.language.trees import as_float
from fedjx.training.method import ServerState


class Clusters(NamedTuple):
    """Centres and how many points each is the mean of; or sums of points and how many.

    Attributes:
      centers: float32 ``[K, d]``.
      weights: float32 ``[K]``.
    """

    centers: jax.Array
    weights: jax.Array


def kmeans(
    *,
    init: Callable[[jax.Array], jax.Array],
    memory: float = 1.0,
    initial_weight: float = 1.0,
    **options: Unpack[StatisticsArguments],
) -> Algorithm[ServerState]:
    """Builds federated k-means.

    Args:
      init: ``(key) -> centers``, float32 ``[K, d]``; see `kmeans_start`.
      memory: Which part of its weight a centre keeps. With 1 it is the running mean of all its points so far; with 0
        that of this round's, a step of Lloyd's algorithm when all clients take part.
      initial_weight: How many points a first centre counts for.
      **options: ``aggregator``, ``broadcaster``, ``inputs`` and ``metrics_sum`` of `sufficient_statistics`.

    Returns:
      An `Algorithm`; ``state.params`` are `Clusters`. Its metric ``loss`` is the mean squared distance of the points
      to the nearest centre before the round.

    Guarantees: A centre c of weight w with n points becomes ``(m w c + their sum) / (m w + n)``, of weight ``m w + n``
    where m is the memory. One without points stays.

    Raises:
      ValueError: If the memory is not in [0, 1], or the initial weight negative; at `init`, if there is no centre.

    >>> algorithm = kmeans(init=lambda key: jnp.float32([[0], [10]]))
    >>> data = fedjx.data.FederatedData.from_clients([{"x": np.float32([2, 11])}, {"x": np.float32([4])}])
    >>> state, _ = algorithm.next(algorithm.init(jax.random.key(0)), fedjx.data.Cohort(data, [0, 1], batch_size=2))
    >>> state.params.centers.tolist(), state.params.weights.tolist()
    ([[2.0], [10.5]], [3.0, 2.0])
    """
    check_number("[0, 1]", "Take 1 to remember all, 0 to forget.", memory=memory)
    check_number("[0, inf]", initial_weight=initial_weight)

    def first(key: jax.Array) -> Clusters:
        centers = as_float(init(key))
        if not len(centers):
            raise ValueError(f"k-means has a centre; got {centers.shape=}. Return at least 1.")
        return Clusters(centers, jnp.full(len(centers), initial_weight, centers.dtype))

    def statistics(clusters: Clusters, x: jax.Array, mask: jax.Array) -> tuple[Clusters, dict[str, jax.Array]]:
        distances = squared_distances(x, clusters.centers)
        nearest = jax.nn.one_hot(jnp.argmin(distances, axis=1), len(clusters.centers), dtype=x.dtype) * mask[:, None]
        sums = jnp.matmul(nearest.T, x, precision="highest")
        return Clusters(sums, nearest.sum(axis=0)), {"loss": distances.min(axis=1)}

    def estimate(clusters: Clusters, seen: Clusters) -> Clusters:
        weights = memory * clusters.weights + seen.weights
        rate = 1 / jnp.where(weights > 0, weights, 1)
        towards = seen.centers - seen.weights[:, None] * clusters.centers
        return Clusters(clusters.centers + rate[:, None] * towards, weights)

    return sufficient_statistics(statistics, estimate, init=first, **options)


def squared_distances(x: jax.Array, centers: jax.Array) -> jax.Array:
    """Returns the squared distances ``[B, K]`` of points ``[B, d]`` to centres ``[K, d]``."""
    return jnp.sum((x[:, None] - centers[None]) ** 2, axis=-1)
