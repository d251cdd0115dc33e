"""Principal components of the clients' points, by subspace iteration.

Halko, Martinsson and Tropp, "Finding Structure with Randomness" (arXiv 0909.4061, algorithm 4.4), where the clients
multiply a basis by the covariance of their points and the server orthonormalises the sum; with the Rayleigh-Ritz step
of their §5.3 components come in order. Nobody forms a matrix ``[d, d]``.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjx.algorithms.sufficient_statistics import StatisticsArguments, sufficient_statistics
from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_integer
from fedjx.training.method import ServerState


class Components(NamedTuple):
    """The leading components; or their statistics, which have the same shapes.

    Attributes:
      basis: ``[d, r]``, orthonormal, by decreasing variance; or the covariance times it, times the number of points.
      mean: ``[d]``; or the sum of the points less the mean.
      variances: ``[r]``, of the points along the basis of the round before; or the sums of the squares.
      num_points: ``[]``, of the last round.
    """

    basis: jax.Array
    mean: jax.Array
    variances: jax.Array
    num_points: jax.Array


def pca(num_components: int, *, num_features: int, **options: Unpack[StatisticsArguments]) -> Algorithm[ServerState]:
    """Builds federated principal component analysis; a round is one iteration.

    Args:
      num_components: Number r of components. The error falls by the ratio of the first variance left out to the last
        that is wanted in every round: carry some more than are wanted. With all of them, ``r = d``, one round is
        exact, the sum of the second moments; where the mean is large against the deviations, a second one about the
        mean takes away what rounding left.
      num_features: Size d of a point.
      **options: ``aggregator``, ``broadcaster``, ``inputs`` and ``metrics_sum`` of `sufficient_statistics`; the
        `mean` does as well for a sum.

    Returns:
      An `Algorithm`; ``state.params`` are the `Components`. Its metric ``reconstruction_error`` is the mean squared
      distance of the points to the mean plus the span of the basis before the round.

    Raises:
      ValueError: If there are not 1 to d components.
    """
    check_integer(f"[1, {num_features}]", "Ask for fewer.", num_components=num_components)

    def init(key: jax.Array) -> Components:
        mean = jnp.zeros(num_features)
        normal = jax.random.normal(key, (num_features, num_components), jnp.float32).astype(mean.dtype)
        return Components(jnp.linalg.qr(normal)[0], mean, jnp.zeros(num_components), jnp.zeros(()))

    def statistics(components: Components, x: jax.Array, mask: jax.Array) -> tuple[Components, dict[str, jax.Array]]:
        # About the present mean, or small variances would drown in the rounding of large squares.
        centred = jnp.where(mask[:, None], x - components.mean[None], 0)
        along = jnp.matmul(centred, components.basis, precision="highest")
        product = jnp.matmul(centred.T, along, precision="highest")
        error = jnp.sum(centred**2, axis=1) - jnp.sum(along**2, axis=1)
        num_points = jnp.sum(mask, dtype=x.dtype)
        sums = Components(product, centred.sum(axis=0), jnp.sum(along**2, axis=0), num_points)
        return sums, {"reconstruction_error": error}

    def estimate(components: Components, sums: Components) -> Components:
        share = 1 / jnp.where(sums.num_points > 0, sums.num_points, 1)
        shift, basis = sums.mean * share, components.basis
        product = sums.basis * share - shift[:, None] * (shift @ basis)[None]  # the covariance times the basis
        variances, rotation = jnp.linalg.eigh(basis.T @ product)  # ascending
        rotated, _ = jnp.linalg.qr(product @ rotation[:, ::-1])
        largest = jnp.take_along_axis(rotated, jnp.abs(rotated).argmax(axis=0)[None], axis=0)
        after = Components(rotated * jnp.sign(largest), components.mean + shift, variances[::-1], sums.num_points)
        return jax.tree.map(lambda new, old: jnp.where(sums.num_points > 0, new, old), after, components)

    return sufficient_statistics(statistics, estimate, init=init, **options)
