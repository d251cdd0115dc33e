"""Rényi divergences of sums with integer noise, of which each client has made a share.

Kairouz, Liu & Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation"
(arXiv 2102.06387), and Agarwal, Kairouz & Liu, "The Skellam Mechanism for Differentially Private Federated Learning"
(arXiv 2110.04995). All lengths are in steps of the grid on which clients round.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjx.privacy.events import Mechanism, Shared

ORDERS = (*range(2, 129), 256)  # whole numbers, as the theorem on sampling has it
Known = Literal["add_or_remove_one", "zero_out_one"]
# Rounding is repeated until its error is at most that of this quantile, e^(-1/2) (arXiv 2102.06387, section 5).
LOG_INVERSE_BETA = 0.5


class Norms(NamedTuple):
    """The most that a client's integers can be.

    Attributes:
      l1: Sum of magnitudes.
      l2: Euclidean norm.
    """

    l1: float
    l2: float


def norms_after_rounding(clip: float, size: int, *, log_inverse_beta: float = LOG_INVERSE_BETA) -> Norms:
    """Bounds the norms of a vector that is rounded at random, again and again until they hold (proposition 22).

    Args:
      clip: Its Euclidean norm before, in steps.
      size: Its number of elements.
      log_inverse_beta: ``ln(1/beta)``; rounding fails with probability beta at most. Infinity never fails.

    >>> round(norms_after_rounding(100, 2**20).l2, 6)
    522.260471
    """
    root = math.sqrt(size)
    slack = math.sqrt(2 * log_inverse_beta) * (clip + root / 2) if math.isfinite(log_inverse_beta) else math.inf
    l2 = min(clip + root, math.sqrt(clip**2 + size / 4 + slack))
    return Norms(l2 * min(root, l2), l2)


class IntegerSum(NamedTuple):
    """A sum of integers with the noise of many shares.

    Attributes:
      noise_multiplier: Standard deviation of all noise, in clips: 0 is none.
      mechanism: Of which each share is.
      share_stddev: Standard deviation of one, in steps; for a discrete Gaussian its parameter.
      least_shares: The fewest shares in the noise.
      most_shares: The most.
      norms: Of what one client adds.
      size: Elements of the sum.
      probability: With which each client takes part by itself; 1 if who does is known.
      deciding: With which one client makes a cohort too small or too large for anything to be shown.
    """

    noise_multiplier: float
    mechanism: Mechanism
    share_stddev: float
    least_shares: int
    most_shares: int
    norms: Norms
    size: int
    probability: float = 1.0
    deciding: float = 0.0


def of_cohorts(
    shared: Shared, noise_multiplier: float, sampler: Mapping[str, Any], relation: Known | str | None
) -> tuple[IntegerSum, Known]:
    """Returns the loss of a round, and the relation that it is about.

    Cohorts that are drawn by chance, each client by itself, hide who took part from those who see results alone: in
    these are ``max_clients`` shares. The server sees who takes part, and a sum with ``min_clients`` shares or more.

    Raises:
      ValueError: If nothing is known for such cohorts, or for the relation.
    """
    _check_covered(sampler, relation)
    separation = max(1, sampler["min_separation"])
    norms = norms_after_rounding(shared.clip, shared.size, log_inverse_beta=shared.log_inverse_beta)
    least, most, probability = shared.min_clients, shared.max_clients, sampler.get("probability", 1.0)
    loss = IntegerSum(noise_multiplier, shared.mechanism, shared.stddev, least, most, norms, shared.size)
    if probability < 1:
        # Groups that take turns differ by one client at most.
        sizes = (sampler["num_clients"] + k for k in (0, separation - 1))
        deciding = max(_deciding(shared, size // separation - 1, probability) for size in sizes)
        known = "zero_out_one" if relation == "zero_out_one" else "add_or_remove_one"
        return loss._replace(least_shares=most, probability=probability, deciding=deciding), known
    _check_sizes(shared, sampler)
    if relation == "add_or_remove_one":
        raise ValueError(
            f"the server sees how many clients take part, whom no noise hides; got {relation=} and cohorts of kind "
            f"{sampler['kind']!r}. Ask for zero_out_one: of a client that sends noise alone."
        )
    return loss, "zero_out_one"


def _check_covered(sampler: Mapping[str, Any], relation: str | None) -> None:
    if relation == "replace_one":
        raise ValueError(
            f"shares of noise are accounted for by a client more, or one that sends noise alone; got {relation=}. "
            "Leave it out."
        )
    if sampler.get("probabilities") is not None:
        raise ValueError(
            "how likely a cohort is too small or too large must be known; got a sampler with a probability for each "
            "client. Use one for all."
        )
    if sampler.get("max_cohort_size") is not None:
        raise ValueError(
            "shares of noise are not accounted for in cohorts that are cut off; got a sampler with max_cohort_size="
            f"{sampler['max_cohort_size']}. Leave it out: distributed_dp_mean shows nothing of more than max_clients."
        )
    if sampler["kind"] == "uniform" and sampler["cohort_size"] < sampler["num_clients"]:
        raise ValueError(
            "what draws of a fixed size do to shares of noise is not derived; got a uniform_sampler. Use "
            "poisson_sampler, which hides who takes part, or cyclic_sampler, which does not."
        )


def _check_sizes(shared: Shared, sampler: Mapping[str, Any]) -> None:
    """Refuses schedules of which nothing would ever be shown."""
    rounds = sampler.get("rounds_per_epoch", 1)
    if sampler["kind"] not in ("cyclic", "uniform"):
        return
    least, most = sampler["num_clients"] // rounds, -(-sampler["num_clients"] // rounds)
    if least < shared.min_clients or most > shared.max_clients:
        raise ValueError(
            f"sums are shown of {shared.min_clients} to {shared.max_clients} clients; got cohorts of {least} to "
            f"{most}. Choose min_clients and max_clients around them."
        )


def _deciding(shared: Shared, num_others: int, probability: float) -> float:
    """Returns how likely so many others are drawn that one client more makes enough of them, or too many."""

    def likelihood(k: int) -> float:
        if not 0 <= k <= num_others:
            return 0.0
        ways = math.lgamma(num_others + 1) - math.lgamma(k + 1) - math.lgamma(num_others - k + 1)
        return math.exp(ways + k * math.log(probability) + (num_others - k) * math.log1p(-probability))

    return likelihood(shared.min_clients - 1) + likelihood(shared.max_clients)


@functools.lru_cache(maxsize=64)
def renyi(loss: IntegerSum) -> np.ndarray:
    """Returns the Rényi divergence of one sum from its neighbour's, of each of the `ORDERS`."""
    orders = np.arange(2, ORDERS[-1] + 1)
    variance = loss.least_shares * loss.share_stddev**2
    if loss.mechanism == "skellam":
        every = skellam_renyi(orders, variance, loss.norms)
    else:
        # More shares hide more, but are less near to one discrete Gaussian: each as bad as it may be.
        gap = discrete_gaussian_gap(loss.share_stddev, loss.most_shares)
        every = discrete_gaussian_renyi(orders, variance, gap, loss.norms, loss.size)
    if loss.probability < 1:
        every = np.minimum(every, poisson_sampled_renyi(every, loss.probability))
    return every[np.array(ORDERS) - 2]


def skellam_renyi(orders: np.ndarray, variance: float, norms: Norms) -> np.ndarray:
    """Bounds the divergences of a sum with Skellam noise (arXiv 2110.04995, theorem 3.5)."""
    l1, l2 = norms
    surplus = np.minimum(((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return orders * l2**2 / (2 * variance) + surplus


def discrete_gaussian_gap(share_stddev: float, num_shares: int) -> float:
    """Bounds how far a sum of discrete Gaussians is from one, tau (arXiv 2102.06387, theorem 1)."""
    k = np.arange(1, num_shares)
    return float(10 * np.exp(-2 * math.pi**2 * share_stddev**2 * k / (k + 1)).sum())


def discrete_gaussian_renyi(orders: np.ndarray, variance: float, gap: float, norms: Norms, size: int) -> np.ndarray:
    """Bounds the divergences of a sum whose noise is that of discrete Gaussians (arXiv 2102.06387, corollary 12)."""
    l1, l2 = norms
    stddev = math.sqrt(variance)
    return np.min(
        [
            orders * l2**2 / (2 * variance) + gap * size,
            orders / 2 * (l2**2 / variance + 2 * l1 * gap / stddev + gap**2 * size),
            orders / 2 * (l2 / stddev + math.sqrt(size) * gap) ** 2,
        ],
        axis=0,
    )


def poisson_sampled_renyi(renyi: np.ndarray, probability: float) -> np.ndarray:
    """Bounds the divergences where each client takes part with a probability, by itself.

    Zhu & Wang, "Poisson Subsampled Rényi Differential Privacy" (ICML 2019, theorem 5). The noise must be the same
    whether the client is there or not.

    Args:
      renyi: Of all orders 2, 3, 4, ..., without sampling.
      probability: In (0, 1).
    """
    q, most = probability, len(renyi) + 1
    log_factorial = np.cumsum(np.log(np.maximum(np.arange(most + 1), 1)))

    def bound(a: int) -> float:
        j = np.arange(2, a + 1)
        terms = log_factorial[a] - log_factorial[j] - log_factorial[a - j] + j * math.log(q)
        terms += (a - j) * math.log1p(-q) + (j - 1) * renyi[: a - 1] + np.where(j > 2, math.log(3), 0)
        none = (a - 1) * math.log1p(-q) + math.log1p((a - 1) * q)
        return float(np.logaddexp.reduce(np.append(terms, none))) / (a - 1)

    return np.array([bound(a) for a in range(2, most + 1)])
