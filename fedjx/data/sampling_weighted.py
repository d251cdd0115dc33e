"""Sampling the clients of a round by weights, such as their numbers of examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedjx.data.federated_data import ClientData
from fedjx.data.random_words import checked_word, digest, scaled, words
from fedjx.data.sampling import Sampler, check_cohort_size, check_population, described, sorted_ids

# Of offsets on disk every so many are kept in memory: 1/64 byte a client, and nine reads for a draw.
_STEP = 512


def weighted_sampler(weights: ArrayLike, cohort_size: int, *, seed: int, replacement: bool = False) -> Sampler:
    """Samples clients in proportion to weights.

    Without replacement, clients are drawn one after another, each in proportion among those not yet
    drawn (successive sampling); the probability of being in the cohort is then *not* proportional to the weight.

    Guarantees: as `uniform_sampler`, but for O(cohort * log(population)) time and for the cumulated weights,
    8 bytes a client, which are made once. Weights that are integers are kept exactly; others are rounded
    by at most ``num_clients * 2^-59`` of the largest one, and a positive one not to zero.

    Args:
      weights: Numbers from 0, ``[num_clients]``.
      cohort_size: Number of clients in a cohort.
      seed: Integer in ``[0, 2^64)``.
      replacement: Whether a client may be in a cohort more than once.

    Returns:
      A `Sampler` of ids in increasing order, int32 ``[cohort_size]``. Its description has the
      ``largest_share``, the probability of the heaviest client to be a cohort's first, and the SHA-256
      of the weights.

    Raises:
      ValueError: If the weights are no vector of finite numbers from 0, or fewer than the cohort are positive.

    >>> sample = weighted_sampler([1, 0, 2, 3], 2, seed=0)
    >>> [sample(round).tolist() for round in range(4)]
    [[0, 2], [0, 3], [2, 3], [2, 3]]
    """
    weights = np.asarray(weights)
    if weights.ndim != 1 or weights.dtype.kind not in "iufb" or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(
            f"weights need to be a vector of finite numbers from 0; got {weights.dtype}{list(weights.shape)}. "
            "Give one for each client."
        )
    check_population(len(weights))
    if not weights.any():
        raise ValueError(f"weights need to have a positive one; got {len(weights)} zeros. Give one for each client.")
    check_cohort_size(cohort_size, None if replacement else int(np.count_nonzero(weights)))
    ends = _cumulated(weights)
    others = {"largest_share": int(np.diff(ends).max()) / int(ends[-1]), "weights": digest(weights)}
    return _sampler("weighted", ends, int(ends[-1]), cohort_size, seed, replacement, others)


def size_weighted_sampler(data: ClientData, cohort_size: int, *, seed: int, replacement: bool = False) -> Sampler:
    """Samples clients in proportion to their numbers of examples: each draw is the owner of a random example.

    The offsets of the data are the distribution function, so no weights are made. Of a store they are
    read where they are needed; in memory is every 512th.

    Args:
      data: `FederatedData` or a `Store`.
      cohort_size: Number of clients in a cohort.
      seed: Integer in ``[0, 2^64)``.
      replacement: Whether a client may be in a cohort more than once; see `weighted_sampler`.

    Returns:
      A `Sampler`, as of `weighted_sampler` with ``data.sizes``.

    Raises:
      ValueError: If a number is out of range.

    >>> data = fedjx.data.FederatedData({"x": np.arange(10)}, offsets=np.array([0, 1, 3, 6, 10]))
    >>> size_weighted_sampler(data, 3, seed=0, replacement=True)(0)
    array([0, 1, 1], dtype=int32)
    """
    check_population(data.num_clients)
    # Only in memory may clients be empty; none is drawn.
    num_candidates = int(np.count_nonzero(data.sizes)) if isinstance(data.sizes, np.ndarray) else data.num_clients
    check_cohort_size(cohort_size, None if replacement else num_candidates)
    others = {"largest_share": data.largest / data.num_examples, "weights": digest(data.offsets[::_STEP])}
    sample = _sampler("size_weighted", data.offsets, data.num_examples, cohort_size, seed, replacement, others)
    return sample._replace(draw=lambda round: sorted_ids(data.ids[sample.draw(round)]))


def _sampler(
    kind: str, ends: Any, total: int, cohort_size: int, seed: int, replacement: bool, others: dict[str, Any]
) -> Sampler:
    """Makes the sampler of cumulated weights, ``ends[k]`` being the sum of those before client k."""
    seed, find_fn = checked_word("seed", seed), _find_fn(ends)

    def draw(round: int) -> np.ndarray:
        if not replacement:
            return sorted_ids(_distinct(ends, find_fn, total, cohort_size, seed, round))
        return sorted_ids(find_fn(np.sort(scaled(words(cohort_size, seed, round), total))))

    promises = {"replacement": replacement, "min_separation": 0 if replacement else 1}
    others = {"cohort_size": cohort_size, **others, **promises}
    return Sampler(draw, described(kind, len(ends) - 1, seed=seed, **others))


def _distinct(ends: Any, find_fn: Callable, total: int, cohort_size: int, seed: int, round: int) -> np.ndarray:
    """Draws clients one after another, each in proportion among the rest; int64 ``[cohort_size]``.

    What is drawn twice is skipped, which leaves the law of the next one as it should be. So that heavy clients
    do not take most of the draws in vain, whoever is in the cohort is cut out before more are drawn.
    """
    chosen = np.empty(0, np.int64)
    for attempt in itertools.count():
        gone = np.sort(chosen)
        start = ends[gone]
        removed = np.append(0, np.cumsum(ends[gone + 1] - start))
        points = scaled(words(cohort_size - len(chosen), seed, round, attempt), total - int(removed[-1]))
        points += removed[np.searchsorted(start - removed[:-1], points, side="right")]
        new = find_fn(points)
        chosen = np.append(chosen, new[np.sort(np.unique(new, return_index=True)[1])])
        if len(chosen) == cohort_size:
            return chosen
    raise AssertionError


def _find_fn(ends: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from points in ``[0, ends[-1])`` to the clients k with ``ends[k] <= point < ends[k+1]``."""
    if isinstance(ends, np.ndarray):
        return lambda points: np.searchsorted(ends, points, side="right") - 1
    coarse = ends[::_STEP]

    def find(points: np.ndarray) -> np.ndarray:
        low = (np.searchsorted(coarse, points, side="right") - 1) * _STEP
        high = np.minimum(low + _STEP, len(ends) - 1)
        while (high - low > 1).any():
            middle = (low + high) // 2
            is_right = ends[middle] <= points
            low, high = np.where(is_right, middle, low), np.where(is_right, high, middle)
        return low

    return find


def _cumulated(weights: np.ndarray) -> np.ndarray:
    """Returns the sums of the weights before each client and of all, as integers below 2^62, int64 ``[K+1]``."""
    if weights.dtype.kind == "f" or int(weights.max()) * len(weights) >= 2**62:
        # By a power of two, which is exact, unlike a sum of floats, whose order is NumPy's affair.
        weights = weights.astype(np.float64)
        shift = 61 - len(weights).bit_length() - int(np.frexp(weights.max())[1])
        weights = np.where(weights > 0, np.maximum(np.ldexp(weights, shift), 1), 0)
    return np.append(0, np.cumsum(weights.astype(np.int64)))
