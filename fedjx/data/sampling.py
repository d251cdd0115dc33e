"""Sampling the clients of a round."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np


def uniform_sampler(num_clients: int, cohort_size: int, *, seed: int) -> Callable[[int], np.ndarray]:
    """Samples cohorts uniformly without replacement.

    Guarantees: the cohort is a function of (seed, round) and of the two numbers alone, so a run can be
    resumed at any round; it takes O(cohort) time and memory, whatever the population; it does not depend
    on the version of NumPy (only raw Philox words are used).

    Args:
      num_clients: Size of the population, less than 2^31.
      cohort_size: Number of clients in a cohort.
      seed: Integer in ``[0, 2^64)``.

    Returns:
      ``sample(round)``: the ids of the round's cohort in increasing order, int32 ``[cohort_size]``.

    Raises:
      ValueError: If a number is out of range, or the cohort is larger than the population.

    >>> sample = uniform_sampler(1_000_000_000, 4, seed=0)
    >>> sample(7)
    array([360494930, 394775290, 572473439, 971728203], dtype=int32)
    """
    if not 1 <= num_clients < 2**31:
        raise ValueError(f"num_clients needs to be in [1, 2^31); got {num_clients=}. Ids are int32.")
    if not 1 <= cohort_size <= num_clients:
        raise ValueError(
            f"cohort_size needs to be from 1 to num_clients; got {cohort_size=} and {num_clients=}. "
            "Clients are drawn without replacement: choose a smaller cohort."
        )
    seed = _word("seed", seed)
    last = np.arange(num_clients - cohort_size, num_clients, dtype=np.uint64)

    def sample(round: int) -> np.ndarray:
        bits = np.random.Philox(key=np.array([seed, _word("round", round)], np.uint64))
        # The modulo favours small ids by less than 2^31 / 2^64.
        drawn = bits.random_raw(cohort_size) % (last + np.uint64(1))
        # Floyd's algorithm (Bentley & Floyd 1987): every set is equally likely; the order is not, hence sorted.
        chosen: set[int] = set()
        for new, pick in zip(last.tolist(), drawn.tolist(), strict=True):
            chosen.add(new if pick in chosen else pick)
        return np.array(sorted(chosen), np.int32)

    return sample


def _word(name: str, value: int) -> int:
    value = operator.index(value)
    if not 0 <= value < 2**64:
        raise ValueError(f"{name} needs to be in [0, 2^64); got {name}={value}. Choose another.")
    return value
