"""Sampling the clients of a round by a schedule: epoch after epoch, as they are available, or in given groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_integer, check_number
from fedjx.data.random_words import below, checked_word, digest, hashed, permuted, words
from fedjx.data.sampling import (
    Sampler,
    check_cohort_size,
    check_population,
    described,
    poisson_subset,
    sorted_ids,
)

# Streams of words of one (seed, round).
_BLOCKS, _ORDER, _CANDIDATES, _AVAILABLE, _PHASE = range(5)
_GROUPS = 16  # None of those of `poisson_subset`.

# Most candidates that are looked at together: memory stays small where few clients are available.
_MOST_CANDIDATES = 1 << 16


def cyclic_sampler(num_clients: int, cohort_size: int, *, seed: int, min_separation: int | None = None) -> Sampler:
    """Samples every client once in each epoch of rounds, at least `min_separation` rounds after the last time.

    An epoch is ``E = ceil(num_clients / cohort_size)`` rounds; the clients are spread evenly over them, so a
    cohort has `cohort_size` members, or one to a few less where that does not divide `num_clients`. A random
    order, the same for all epochs, deals the clients to blocks of ``E - min_separation + 1`` successive rounds;
    within its block they are dealt anew in every epoch. With the largest separation, E, a block is one
    round, and an epoch repeats the cohorts of the one before; with 1 it is the epoch, and all is shuffled.

    Guarantees: for any two participations of a client, in rounds ``s < t``, ``t - s >= min_separation``
    exactly, also from epoch to epoch; otherwise as `uniform_sampler`. Epochs are counted from round 0.

    Args:
      num_clients: Size of the population, less than 2^31.
      cohort_size: Most clients in a cohort.
      seed: Integer in ``[0, 2^64)``.
      min_separation: From 1 to E; E by default.

    Returns:
      A `Sampler` of ids in increasing order, int32 ``[C]``. Its description has E as ``rounds_per_epoch``.

    Raises:
      ValueError: If a number is out of range.

    >>> sample = cyclic_sampler(8, 2, seed=0, min_separation=3)
    >>> [sample(round).tolist() for round in range(8)]
    [[5, 6], [2, 7], [0, 3], [1, 4], [2, 5], [6, 7], [0, 1], [3, 4]]
    """
    check_population(num_clients)
    check_cohort_size(cohort_size, num_clients)
    seed, epoch_rounds = checked_word("seed", seed), -(-num_clients // cohort_size)
    separation = epoch_rounds if min_separation is None else min_separation
    check_integer(f"[1, {epoch_rounds}]", "Choose smaller cohorts for a larger separation.", min_separation=separation)
    block_rounds = epoch_rounds - separation + 1

    def first_place(place: int) -> int:
        return min(place, epoch_rounds) * num_clients // epoch_rounds

    def draw(round: int) -> np.ndarray:
        epoch, place = divmod(checked_word("round", round), epoch_rounds)
        block = place // block_rounds
        first, end = first_place(block * block_rounds), first_place((block + 1) * block_rounds)
        places = np.arange(first_place(place), first_place(place + 1)) - first
        places = first + permuted(places, end - first, seed, epoch, _ORDER, block)
        return sorted_ids(permuted(places, num_clients, seed, 0, _BLOCKS))

    others = {"cohort_size": cohort_size, "rounds_per_epoch": epoch_rounds}
    promises = {"replacement": False, "min_separation": separation}
    return Sampler(draw, described("cyclic", num_clients, seed=seed, **others, **promises))


def cyclic_poisson_sampler(num_clients: int, *, probability: float, num_groups: int, seed: int) -> Sampler:
    """Deals clients to groups that take turns, and samples each of a group by itself with a probability.

    Choquette-Choo et al., "(Amplified) Banded Matrix Factorization" (arXiv 2306.08153, section 4): a client is back
    after ``num_groups`` rounds at the earliest, so that noise may be correlated over so many, and is there by chance.

    Guarantees: those of `poisson_sampler`; the group of a client is a function of the seed. Groups differ by one client
    at most. The expected size of a cohort is ``probability * num_clients / num_groups``.

    Args:
      num_clients: Size of the population, less than 2^31.
      probability: In (0, 1], with which a client of the group whose turn it is takes part.
      num_groups: From 1, which is `poisson_sampler` of renamed clients, to ``num_clients``.
      seed: Integer in ``[0, 2^64)``.

    Returns:
      A `Sampler` of ids in increasing order, int32 ``[C]``.

    Raises:
      ValueError: If a number is out of range.

    >>> sample = cyclic_poisson_sampler(8, probability=0.75, num_groups=2, seed=0)
    >>> [sample(round).tolist() for round in range(4)]
    [[1, 2, 3], [6, 7], [1, 2, 3, 5], [0, 4, 6, 7]]
    """
    check_population(num_clients)
    check_number("(0, 1]", probability=probability)
    check_integer(f"[1, {num_clients}]", num_groups=num_groups)
    seed, ends = checked_word("seed", seed), [g * num_clients // num_groups for g in range(num_groups + 1)]
    subsets = {size: poisson_subset(size, probability) for size in set(np.diff(ends).tolist())}

    def draw(round: int) -> np.ndarray:
        group = checked_word("round", round) % num_groups
        places = ends[group] + subsets[ends[group + 1] - ends[group]](seed, round)
        return sorted_ids(permuted(places, num_clients, seed, 0, _GROUPS))

    promises = {"replacement": False, "min_separation": num_groups}
    return Sampler(draw, described("cyclic_poisson", num_clients, seed=seed, probability=probability, **promises))


def availability_sampler(
    num_clients: int, cohort_size: int, availability: Callable[[int, np.ndarray], ArrayLike], *, seed: int
) -> Sampler:
    """Samples uniformly, without replacement, of the clients that are available.

    In each round every client is available by itself with its probability, by a hash of seed, round and id.
    Candidates are looked at in a random order until the cohort is full, or everybody has been looked at:
    it is smaller where fewer are available, and may be empty (see `poisson_sampler`).

    Guarantees: as `uniform_sampler`; the time is O(cohort / probability), and memory O(cohort).

    Args:
      num_clients: Size of the population, less than 2^31.
      cohort_size: Most clients in a cohort.
      availability: From the round and ids, int32 ``[n]``, to probabilities, ``[n]``, for example `Diurnal`. Its
        ``description`` if it has one, else its name, is part of the sampler's.
      seed: Integer in ``[0, 2^64)``.

    Returns:
      A `Sampler` of ids in increasing order, int32 ``[C]``. It raises a ValueError for what are no probabilities.

    Raises:
      ValueError: If a number is out of range.

    >>> sample = availability_sampler(10_000_000, 3, Diurnal(period=24, least=0.01, most=0.3), seed=0)
    >>> sample(7)
    array([5170285, 9641184, 9740746], dtype=int32)
    """
    check_population(num_clients)
    check_cohort_size(cohort_size, num_clients)
    seed = checked_word("seed", seed)

    def available(round: int, ids: np.ndarray) -> np.ndarray:
        probability = np.asarray(availability(round, ids.astype(np.int32)), np.float64)
        if probability.shape != ids.shape or not ((probability >= 0) & (probability <= 1)).all():
            raise ValueError(
                f"availability needs to give each of {len(ids)} ids a probability in [0, 1]; got float64"
                f"{list(probability.shape)} from {probability.min()} to {probability.max()} in {round=}. Clip it."
            )
        return ids[below(hashed(ids, words(2, seed, round, _AVAILABLE)), probability)]

    def draw(round: int) -> np.ndarray:
        ids, start, count = np.empty(0, np.int64), 0, cohort_size
        while len(ids) < cohort_size and start < num_clients:
            places = np.arange(start, min(start + count, num_clients))
            ids = np.append(ids, available(round, permuted(places, num_clients, seed, round, _CANDIDATES)))
            start, count = start + count, max(count, min(2 * count, _MOST_CANDIDATES))
        return sorted_ids(ids[:cohort_size])

    about = getattr(availability, "description", getattr(availability, "__qualname__", type(availability).__qualname__))
    others = {"cohort_size": cohort_size, "availability": about, "replacement": False, "min_separation": 1}
    return Sampler(draw, described("availability", num_clients, seed=seed, **others))


class Diurnal(NamedTuple):
    """Clients that come and go by the time of day, each in a time zone of its own.

    The probability rises and falls evenly between `least` and `most`, once in `period` rounds; a client's
    phase is a hash of its id, uniform over the day.

    Attributes:
      period: Rounds in a day.
      least: Probability of being available at the worst time of the day.
      most: At the best time.
      seed: Of the phases, integer in ``[0, 2^64)``.

    >>> Diurnal(period=4, most=0.5)(0, np.arange(3)).round(3)
    array([0.37 , 0.303, 0.06 ])
    """

    period: int
    least: float = 0.0
    most: float = 1.0
    seed: int = 0

    def __call__(self, round: int, ids: np.ndarray) -> np.ndarray:
        """Returns the probabilities of some clients, float64 ``[n]``."""
        phase = (hashed(ids, words(2, self.seed, 0, _PHASE)) >> np.uint64(11)) * 2.0**-53
        # No cosine: libraries differ in its last bits.
        return self.least + (self.most - self.least) * abs(2 * ((round % self.period / self.period + phase) % 1) - 1)

    @property
    def description(self) -> dict[str, object]:
        """What makes two availabilities the same."""
        return {"kind": "diurnal", **self._asdict()}


def fixed_sampler(num_clients: int, groups: Sequence[ArrayLike]) -> Sampler:
    """Takes given groups of clients in turn: round r has group ``r % len(groups)``.

    With one group, that is all rounds' cohort; rows of ``np.arange(num_clients).reshape(-1, cohort_size)``
    are a round robin.

    Args:
      num_clients: Size of the population, less than 2^31.
      groups: For each cohort the ids, integers ``[C]``.

    Returns:
      A `Sampler` of ids in increasing order, int32 ``[C]``. Its description has the SHA-256 of the groups,
      and the separation that they have.

    Raises:
      ValueError: If there is no group or an id does not exist.

    >>> sample = fixed_sampler(6, [[0, 1], [5, 2, 4]])
    >>> sample(0), sample(7), sample.description["min_separation"]
    (array([0, 1], dtype=int32), array([2, 4, 5], dtype=int32), 2)
    """
    check_population(num_clients)
    cohorts = [np.sort(np.asarray(ids)) for ids in groups]
    for k, ids in enumerate(cohorts):
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids) or not 0 <= ids[0] <= ids[-1] < num_clients:
            raise ValueError(
                f"groups need ids from 0 to {num_clients - 1}; got {ids[:5]} in group {k}. Give integers [C]."
            )
    if not cohorts:
        raise ValueError("a sampler needs at least one group; got groups=[]. Give a list of ids each.")
    cohorts = [ids.astype(np.int32) for ids in cohorts]
    separation = _separation(cohorts)
    others = {
        "cohort_size": max(map(len, cohorts)),
        "groups": digest(np.concatenate([np.append(len(ids), ids) for ids in cohorts])),
        "replacement": separation == 0,
        "min_separation": separation,
    }

    def draw(round: int) -> np.ndarray:
        return cohorts[checked_word("round", round) % len(cohorts)].copy()

    return Sampler(draw, described("fixed", num_clients, seed=None, **others))


def _separation(cohorts: list[np.ndarray]) -> int:
    """Returns the least number of rounds between two participations of a client."""
    ids = np.concatenate(cohorts)
    rounds = np.repeat(np.arange(len(cohorts)), [len(cohort) for cohort in cohorts])
    # Two turns, so that the step from the last group to the first is among them.
    ids, rounds = np.append(ids, ids), np.append(rounds, rounds + len(cohorts))
    order = np.lexsort((rounds, ids))
    is_same = np.diff(ids[order]) == 0
    return int(np.diff(rounds[order])[is_same].min())
