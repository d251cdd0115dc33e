"""Tests of the sampler: golden values, and uniformity over whole cohorts with a negative control."""

import itertools
import tracemalloc

import numpy as np
import pytest

from fedjx.data import uniform_sampler


@pytest.mark.parametrize(
    ("num_clients", "cohort_size", "seed", "round", "ids"),
    [
        (10, 5, 3, 0, [1, 4, 5, 7, 8]),
        (10**9, 4, 0, 7, [360494930, 394775290, 572473439, 971728203]),
        (2**31 - 1, 3, 2**64 - 1, 2**64 - 1, [26838756, 148181358, 340774792]),
    ],
)
def test_golden_values(num_clients, cohort_size, seed, round, ids):
    cohort = uniform_sampler(num_clients, cohort_size, seed=seed)(round)
    assert cohort.dtype == np.int32
    assert cohort.tolist() == ids


def test_philox_words_are_those_of_random123():
    # Known answer of Philox4x64-10 at counter 0 and key 0; NumPy counts up before it draws.
    words = np.random.Philox(counter=2**256 - 1, key=0).random_raw(4)
    assert [hex(word) for word in words.tolist()] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]


@pytest.mark.parametrize(("num_clients", "cohort_size"), [(1, 1), (100, 1), (100, 37), (100, 100), (3400, 1000)])
def test_ids_are_different_sorted_and_in_range(num_clients, cohort_size):
    sample = uniform_sampler(num_clients, cohort_size, seed=5)
    for round in range(20):
        ids = sample(round)
        assert ids.shape == (cohort_size,)
        assert (np.diff(ids) > 0).all()
        assert ids[0] >= 0
        assert ids[-1] < num_clients


def test_rounds_need_no_history():
    one, other = (uniform_sampler(1000, 20, seed=9) for _ in range(2))
    forward = [one(round).tolist() for round in range(10)]
    backward = [other(round).tolist() for round in reversed(range(10))]
    assert forward == backward[::-1]


def test_seeds_and_rounds_give_different_cohorts():
    cohorts = {tuple(uniform_sampler(1000, 20, seed=seed)(round)) for seed in range(30) for round in range(30)}
    assert len(cohorts) == 900


def chi_square(sample, num_rounds=20_000):
    """Statistic of the 20 possible cohorts of 3 of 6 clients; 19 degrees of freedom."""
    sets = {ids: i for i, ids in enumerate(itertools.combinations(range(6), 3))}
    counts = np.bincount([sets[tuple(sample(round))] for round in range(num_rounds)], minlength=20)
    return ((counts - num_rounds / 20) ** 2).sum() / (num_rounds / 20)


def next_free(round):
    """A wrong sampler: an id that is taken already is replaced by the next free one."""
    chosen = set()
    for pick in np.random.Philox(key=round).random_raw(3) % np.uint64(6):
        while int(pick) in chosen:
            pick = (int(pick) + 1) % 6
        chosen.add(int(pick))
    return sorted(chosen)


def test_every_cohort_is_equally_likely():
    threshold = 43.8  # chi-square with 19 degrees of freedom exceeds it with probability 0.001
    assert chi_square(uniform_sampler(6, 3, seed=0)) < threshold
    assert chi_square(next_free) > 10 * threshold


def test_every_client_is_equally_often_included():
    num_clients, cohort_size, num_rounds = 50, 5, 4000
    p = cohort_size / num_clients

    def statistic(sample):
        counts = np.bincount(np.concatenate([sample(round) for round in range(num_rounds)]), minlength=num_clients)
        scale = (num_clients - 1) / num_clients / (num_rounds * p * (1 - p))
        return ((counts - num_rounds * p) ** 2).sum() * scale

    sample = uniform_sampler(num_clients, cohort_size, seed=1)
    threshold = 85.4  # chi-square with 49 degrees of freedom exceeds it with probability 0.001
    assert statistic(sample) < threshold
    # The control: the last client is replaced by the first in one round of two, when it can be.
    biased = [ids if round % 2 or ids[0] == 0 else np.where(ids == 49, 0, ids) for round, ids in _rounds(sample, 4000)]
    assert statistic(biased.__getitem__) > threshold


def _rounds(sample, num_rounds):
    return ((round, sample(round)) for round in range(num_rounds))


def test_successive_rounds_are_independent():
    sample = uniform_sampler(100, 10, seed=2)
    overlap = [len(np.intersect1d(sample(round), sample(round + 1))) for round in range(3000)]
    # Hypergeometric: mean 1, variance 10 * 0.1 * 0.9 * 90 / 99.
    assert abs(np.mean(overlap) - 1) < 4 * np.sqrt(0.818 / 3000)


def test_memory_is_that_of_the_cohort():
    tracemalloc.start()
    uniform_sampler(10**9, 1000, seed=0)(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("num_clients", "cohort_size", "seed", "message"),
    [
        (10, 11, 0, "cohort_size must be at most num_clients; got cohort_size=11 and num_clients=10"),
        (10, 0, 0, "cohort_size must be an integer of at least 1; got cohort_size=0"),
        (0, 1, 0, r"num_clients must be an integer in \[1, 2\^31\); got num_clients=0"),
        (2**31, 1, 0, "got num_clients=2147483648"),
        (10, 5, -1, r"seed must be an integer in \[0, 2\^64\); got seed=-1"),
        (10, 5, 2**64, "got seed=18446744073709551616"),
    ],
)
def test_errors(num_clients, cohort_size, seed, message):
    with pytest.raises(ValueError, match=message):
        uniform_sampler(num_clients, cohort_size, seed=seed)


def test_errors_of_rounds():
    sample = uniform_sampler(10, 5, seed=0)
    with pytest.raises(ValueError, match=r"round must be an integer in \[0, 2\^64\); got round=-1"):
        sample(-1)
    with pytest.raises(TypeError):
        sample(1.5)  # pyright: ignore[reportArgumentType]
