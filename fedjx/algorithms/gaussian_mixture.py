"""Gaussian mixtures by federated expectation maximisation.

Dempster, Laird and Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm" (1977), as Bishop writes it
("Pattern Recognition and Machine Learning", 2006, §9.2.2): clients take expectations, whose sums the server maximises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from numpy.typing import ArrayLike

from fedjx.algorithms.sufficient_statistics import StatisticsArguments, sufficient_statistics
from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_number
from fedjx.core.language.trees import as_float
from fedjx.training.method import ServerState


class Mixture(NamedTuple):
    """A mixture of K Gaussians; or its statistics, which have the same shapes.

    Attributes:
      weights: ``[K]``, of sum 1; or the responsibilities' sums.
      means: ``[K, d]``; or the sums of the points less the mean, weighted by responsibility.
      covariances: ``[K, d]``, diagonal, or ``[K, d, d]``; or the sums of the squares of the same.
    """

    weights: jax.Array
    means: jax.Array
    covariances: jax.Array


def gaussian_mixture(
    *, init: Callable[[jax.Array], Mixture], min_variance: float = 1e-6, **options: Unpack[StatisticsArguments]
) -> Algorithm[ServerState]:
    """Builds expectation maximisation; a round is one of its steps over the clients that take part.

    Args:
      init: ``(key) -> Mixture``, the first one; its covariances are diagonal or full. See `mixture_around`.
      min_variance: Added to every variance.
      **options: ``aggregator``, ``broadcaster``, ``inputs`` and ``metrics_sum`` of `sufficient_statistics`; the
        `mean` does as well for a sum.

    Returns:
      An `Algorithm`; ``state.params`` is the `Mixture`. Its metric ``log_likelihood`` is the mean over the points
      before the round.

    Guarantees: With all clients in every round the likelihood never falls, up to rounding and `min_variance`. A
    component without points keeps its mean and covariance.

    Raises:
      ValueError: If `min_variance` is negative.
    """
    check_number("[0, inf]", "Take 0 for none.", min_variance=min_variance)

    def statistics(mixture: Mixture, x: jax.Array, mask: jax.Array) -> tuple[Mixture, dict[str, jax.Array]]:
        log_joint = log_densities(mixture, x) + jnp.log(mixture.weights)[None]
        log_likelihood = jax.nn.logsumexp(log_joint, axis=1)
        responsibility = jnp.where(mask[:, None], jnp.exp(log_joint - log_likelihood[:, None]), 0)
        # About the present mean, or small variances would drown in the rounding of large squares.
        centred = x[:, None] - mixture.means[None]
        squares = "bk,bki,bki->ki" if mixture.covariances.ndim == 2 else "bk,bki,bkj->kij"
        sums = jnp.einsum("bk,bki->ki", responsibility, centred, precision="highest")
        second = jnp.einsum(squares, responsibility, centred, centred, precision="highest")
        return Mixture(responsibility.sum(axis=0), sums, second), {"log_likelihood": log_likelihood}

    def estimate(mixture: Mixture, sums: Mixture) -> Mixture:
        num_points, rank = sums.weights, mixture.covariances.ndim
        share = 1 / jnp.where(num_points > 0, num_points, 1)
        shift = sums.means * share[:, None]
        if rank == 2:
            covariances = sums.covariances * share[:, None] - shift**2 + min_variance
        else:
            outer = shift[:, :, None] * shift[:, None, :]
            covariances = (
                sums.covariances * share[:, None, None]
                - outer
                + min_variance * jnp.eye(shift.shape[1], dtype=shift.dtype)[None]
            )
        seen = (num_points > 0).reshape(-1, *[1] * (rank - 1))
        everything = num_points.sum()
        weights = jnp.where(everything > 0, num_points / jnp.where(everything > 0, everything, 1), mixture.weights)
        return Mixture(weights, mixture.means + shift, jnp.where(seen, covariances, mixture.covariances))

    return sufficient_statistics(statistics, estimate, init=init, **options)


def log_densities(mixture: Mixture, x: jax.Array) -> jax.Array:
    """Returns the log densities ``[B, K]`` of the components at points ``[B, d]``."""
    centred = x[:, None] - mixture.means[None]
    if mixture.covariances.ndim == 2:
        whitened = centred * jax.lax.rsqrt(mixture.covariances)[None]
        log_scale = 0.5 * jnp.log(mixture.covariances).sum(axis=1)
    else:
        root = jnp.linalg.cholesky(mixture.covariances)
        whitened = jax.vmap(lambda r, c: solve_triangular(r, c.T, lower=True).T, in_axes=(0, 1), out_axes=1)(
            root, centred
        )
        log_scale = jnp.log(jnp.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
    squares = jnp.sum(whitened**2, axis=-1)
    return -0.5 * (squares + x.shape[1] * math.log(2 * math.pi)) - log_scale[None]


def mixture_around(centers: ArrayLike, *, variance: float = 1.0, full: bool = False) -> Mixture:
    """Makes a mixture of equal parts around centres ``[K, d]``, such as those of `kmeans`.

    >>> mixture_around(np.zeros((2, 3)), full=True).covariances.shape
    (2, 3, 3)
    """
    centers = as_float(jnp.asarray(centers))
    num_components, num_features = centers.shape
    one = jnp.eye(num_features, dtype=centers.dtype) if full else jnp.ones(num_features, centers.dtype)
    covariances = variance * jnp.tile(one[None], (num_components, *[1] * one.ndim))
    return Mixture(jnp.full(num_components, 1 / num_components, centers.dtype), centers, covariances)
