"""Sizes of clients that are given, grow by a rule or are drawn, and partitions that have them.

The functions named ``<what>_sizes`` return sizes. Give them to `size_partition` for clients that differ in nothing
else, or to `dirichlet_by_client_partition` and `pachinko_partition` for clients whose labels are skewed too.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_integer, check_number
from fedjx.data.partitions.allocation import check_enough, checked_sizes, generator, warn_dropped


def size_partition(num_examples: int, sizes: ArrayLike, *, seed: int) -> list[np.ndarray]:
    """Distributes examples at random to clients of given sizes.

    Args:
      num_examples: Number of examples, N.
      sizes: Number of examples of each client, integers ``[K]``, at least 1; if they add to less than N,
        the others are in no client and a warning counts them.
      seed: Non-negative integer.

    Returns:
      For each client the rows of its examples, int64 ``[n_k]``; no row is in two clients.

    Raises:
      ValueError: If a size is less than 1, or they add to more than N.

    >>> [len(rows) for rows in size_partition(55, linear_sizes(55, 10), seed=0)]
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    """
    ends = np.cumsum(checked_sizes(num_examples, np.atleast_1d(sizes)))
    parts = np.split(generator(seed).permutation(num_examples), ends)
    warn_dropped(len(parts.pop()), num_examples, "Give sizes that add to the number of examples to use all.")
    return parts


def linear_sizes(num_examples: int, num_clients: int) -> np.ndarray:
    """Returns sizes in proportion to 1, 2, ..., K, rounded down; the last client gets what is left.

    Args:
      num_examples: Number of examples, N.
      num_clients: Number of clients, K.

    Returns:
      Number of examples of each client, int64 ``[K]``, which add to N.

    Raises:
      ValueError: If the first client would get nothing.

    >>> linear_sizes(100, 4)
    array([10, 20, 30, 40])
    """
    return _growing(num_examples, num_clients, lambda ranks: ranks)


def square_sizes(num_examples: int, num_clients: int) -> np.ndarray:
    """Returns sizes in proportion to 1, 4, ..., K²; else as `linear_sizes`.

    >>> square_sizes(300, 4)
    array([ 10,  40,  90, 160])
    """
    return _growing(num_examples, num_clients, lambda ranks: [rank * rank for rank in ranks])


def exponential_sizes(num_examples: int, num_clients: int) -> np.ndarray:
    """Returns sizes in proportion to e, e², ..., e^K; else as `linear_sizes`.

    The first client has about ``1.7 N / e^K`` examples: 60,000 examples are enough for 11 clients.

    >>> exponential_sizes(1000, 5)
    array([ 11,  31,  86, 234, 638])
    """
    return _growing(num_examples, num_clients, lambda ranks: np.exp(np.subtract(ranks, float(len(ranks)))).tolist())


def lognormal_sizes(
    num_examples: int, num_clients: int, *, sigma: float, seed: int, min_examples: int = 1
) -> np.ndarray:
    """Draws sizes with log-normal weights.

    Every client gets `min_examples`; the others go to the clients one by one, with probabilities in
    proportion to weights that are drawn from the distribution.

    Args:
      num_examples: Number of examples, N.
      num_clients: Number of clients, K.
      sigma: Standard deviation of a weight's logarithm, at least 0.
      seed: Non-negative integer.
      min_examples: Least number of examples of a client.

    Returns:
      Number of examples of each client, int64 ``[K]``, which add to N.

    Raises:
      ValueError: If the arguments are out of range, or ``K * min_examples > N``.

    >>> lognormal_sizes(1000, 5, sigma=1.0, seed=0).sum()
    np.int64(1000)
    """
    check_number("[0, inf)", sigma=sigma)
    random = generator(seed)
    return _drawn(random, num_examples, _scaled(sigma * random.standard_normal(num_clients)), min_examples)


def dirichlet_sizes(
    num_examples: int, num_clients: int, *, alpha: float, seed: int, min_examples: int = 1
) -> np.ndarray:
    """Draws sizes with weights from a symmetric Dirichlet distribution; else as `lognormal_sizes`.

    This is the quantity skew of NIID-Bench (Li et al. 2022, arXiv:2102.02079), which cuts at the drawn shares
    and draws again until each client has enough.

    Args:
      num_examples: Number of examples, N.
      num_clients: Number of clients, K.
      alpha: Concentration, more than 0: the smaller, the more unequal.
      seed: Non-negative integer.
      min_examples: Least number of examples of a client.

    >>> dirichlet_sizes(1000, 5, alpha=0.5, seed=0, min_examples=10).min() >= 10
    np.True_
    """
    check_number("(0, inf)", alpha=alpha)
    random = generator(seed)
    return _drawn(random, num_examples, random.dirichlet(np.full(num_clients, float(alpha))), min_examples)


def power_law_sizes(
    num_examples: int, num_clients: int, *, exponent: float, seed: int, min_examples: int = 1
) -> np.ndarray:
    """Draws sizes with Pareto weights; else as `lognormal_sizes`.

    Args:
      num_examples: Number of examples, N.
      num_clients: Number of clients, K.
      exponent: More than 0; the probability that a weight is larger than ``w >= 1`` is ``w^-exponent``.
      seed: Non-negative integer.
      min_examples: Least number of examples of a client.

    >>> power_law_sizes(1000, 5, exponent=1.5, seed=0).sum()
    np.int64(1000)
    """
    check_number("(0, inf)", exponent=exponent)
    random = generator(seed)
    return _drawn(random, num_examples, _scaled(random.standard_exponential(num_clients) / exponent), min_examples)


def zipf_sizes(
    num_examples: int, num_clients: int, *, exponent: float = 1.0, seed: int, min_examples: int = 1
) -> np.ndarray:
    """Draws sizes with the weights ``1, 2^-exponent, ..., K^-exponent``; else as `lognormal_sizes`.

    Args:
      num_examples: Number of examples, N.
      num_clients: Number of clients, K; the first is the largest in expectation.
      exponent: More than 0.
      seed: Non-negative integer.
      min_examples: Least number of examples of a client.

    >>> zipf_sizes(1000, 5, seed=0).sum()
    np.int64(1000)
    """
    check_number("(0, inf)", exponent=exponent)
    weights = _scaled(-exponent * np.log(np.arange(1, num_clients + 1)))
    return _drawn(generator(seed), num_examples, weights, min_examples)


def _growing(num_examples: int, num_clients: int, weights_fn: Callable[[range], Sequence[float]]) -> np.ndarray:
    """Shares the examples in proportion to the weights of the ranks 1, ..., K."""
    check_enough(num_examples, num_clients, 1)

    def floors(count: int) -> list[int]:
        weights = weights_fn(range(1, count + 1))
        total = sum(weights)
        # Integers are exact here: 3 / 55 * 55 is less than 3 in floating point.
        return [int(num_examples * weight // total) for weight in weights]

    sizes = floors(num_clients)
    if sizes[0] < 1:
        largest = bisect.bisect_left(range(1, num_clients), True, key=lambda count: floors(count)[0] < 1)
        raise ValueError(
            f"every client needs an example; got {num_examples=} and {num_clients=}, which leave none for the first. "
            f"Use at most {largest} clients."
        )
    return np.array(sizes, np.int64) + (num_examples - sum(sizes)) * (np.arange(num_clients) == num_clients - 1)


def _drawn(random: np.random.Generator, num_examples: int, weights: np.ndarray, min_examples: int) -> np.ndarray:
    num_clients = len(weights)
    check_integer("[1, inf)", "A client without any is no client.", min_examples=min_examples)
    check_enough(num_examples, num_clients, min_examples)
    return min_examples + random.multinomial(num_examples - num_clients * min_examples, weights / weights.sum())


def _scaled(logarithms: np.ndarray) -> np.ndarray:
    """Returns weights of which the largest is 1, so that none overflows."""
    return np.exp(logarithms - logarithms.max(initial=-np.inf))
