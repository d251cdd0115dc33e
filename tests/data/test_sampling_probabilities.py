"""Every sampler's law: whole cohorts of few clients by chi-square, pairs of many, each with a negative control."""

import collections
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fedjx.data import FederatedData, sampling_weighted, uniform_sampler
from fedjx.data.random_words import binomial_table
from fedjx.data.sampling import poisson_sampler
from fedjx.data.sampling_schedules import Diurnal, availability_sampler, cyclic_poisson_sampler, cyclic_sampler
from fedjx.data.sampling_weighted import size_weighted_sampler, weighted_sampler
from tests.data.samplers import samplers
from tests.data.stores import MEMORY, written

WEIGHTS = (8, 1, 0, 2, 1)


def p_value(sample, law, num_rounds=1500):
    """Compares how often each cohort is drawn with its probability; a cohort that cannot be has p-value 0."""
    drawn = collections.Counter(tuple(np.asarray(sample(round)).tolist()) for round in range(num_rounds))
    if drawn.keys() - law.keys():
        return 0.0
    assert math.isclose(sum(law.values()), 1)
    return stats.chisquare([drawn[ids] for ids in law], [num_rounds * p for p in law.values()]).pvalue


def replacement_law(weights, size):
    law = collections.Counter()
    for draws in itertools.product(np.flatnonzero(weights).tolist(), repeat=size):
        law[tuple(sorted(draws))] += math.prod(weights[k] / sum(weights) for k in draws)
    return law


def successive_law(weights, size):
    law = collections.Counter()
    for draws in itertools.permutations(np.flatnonzero(weights).tolist(), size):
        p, left = 1.0, sum(weights)
        for k in draws:
            p, left = p * weights[k] / left, left - weights[k]
        law[tuple(sorted(draws))] += p
    return law


def subsets(n):
    return [ids for size in range(n + 1) for ids in itertools.combinations(range(n), size)]


def poisson_law(probabilities):
    return {
        ids: math.prod(p if k in ids else 1 - p for k, p in enumerate(probabilities))
        for ids in subsets(len(probabilities))
        if all(probabilities[k] for k in ids)
    }


def availability_law(probabilities, size):
    law = collections.Counter()
    for available, p in poisson_law(probabilities).items():
        full = list(itertools.combinations(available, size)) or [available]
        for ids in full:
            law[ids] += p / len(full)
    return law


def truncated_law(probability, size):
    """Of more than so many of five, each subset is as likely."""
    law = collections.Counter()
    for drawn, p in poisson_law([probability] * 5).items():
        kept = list(itertools.combinations(drawn, size)) or [drawn]
        for ids in kept:
            law[ids] += p / len(kept)
    return law


def grouped_law(probability):
    """Two of four are in the group whose turn it is, any two as likely."""
    law = collections.Counter()
    for group in itertools.combinations(range(4), 2):
        for places, p in poisson_law([probability] * 2).items():
            law[tuple(group[k] for k in places)] += p / 6
    return law


def given(probabilities):
    return lambda round, ids: np.array(probabilities)[ids]


# --- whole cohorts ------------------------------------------------------------------------------

PROBABILITIES = (0.9, 0.2, 0.5, 0.3)
LAWS = {
    "replacement": (uniform_sampler(4, 3, seed=0, replacement=True), replacement_law([1] * 4, 3)),
    "poisson": (poisson_sampler(5, probability=0.3, seed=0), poisson_law([0.3] * 5)),
    "poisson, unequal": (poisson_sampler(4, probability=PROBABILITIES, seed=0), poisson_law(PROBABILITIES)),
    "poisson, truncated": (
        poisson_sampler(5, probability=0.5, max_cohort_size=2, seed=0),
        truncated_law(0.5, 2),
    ),
    "cyclic poisson": (
        lambda seed: cyclic_poisson_sampler(4, probability=0.6, num_groups=2, seed=seed)(1),
        grouped_law(0.6),
    ),
    "weighted, replacement": (
        weighted_sampler(WEIGHTS, 2, seed=0, replacement=True),
        replacement_law(WEIGHTS, 2),
    ),
    "weighted": (weighted_sampler(WEIGHTS, 2, seed=0), successive_law(WEIGHTS, 2)),
    "weighted by floats": (weighted_sampler(np.array(WEIGHTS) * 1e-300, 3, seed=1), successive_law(WEIGHTS, 3)),
    "size": (
        size_weighted_sampler(FederatedData({"x": np.arange(8)}, [0, 4, 5, 6, 8]), 2, seed=0),
        successive_law([4, 1, 1, 2], 2),
    ),
    "availability": (
        availability_sampler(4, 2, given(PROBABILITIES), seed=0),
        availability_law(PROBABILITIES, 2),
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_every_cohort_has_its_probability(name):
    assert p_value(*LAWS[name]) > 1e-3


def whole_again(round):
    """Rejects cohorts with a repetition as a whole: another law than drawing one client after another."""
    for attempt in itertools.count():
        ids = weighted_sampler(WEIGHTS, 2, seed=0, replacement=True)(1000 * round + attempt)
        if ids[0] != ids[1]:
            return ids
    raise AssertionError


def in_order(round):
    """Looks at candidates in the order of their ids."""
    return np.flatnonzero(np.random.Philox(key=round).random_raw(4) / 2**64 < PROBABILITIES)[:2]


def rounded(round):
    """Takes the expected number of clients in every round."""
    return uniform_sampler(5, 2 if round % 2 else 1, seed=0)(round)


def capped(round):
    """Leaves out who does not fit."""
    return poisson_sampler(5, probability=0.3, seed=0)(round)[:3]


CONTROLS = {
    "replacement": uniform_sampler(4, 3, seed=0),
    "poisson": rounded,
    "poisson, capped": capped,
    "poisson, unequal": poisson_sampler(4, probability=np.mean(PROBABILITIES), seed=0),
    "poisson, truncated": lambda round: poisson_sampler(5, probability=0.5, seed=0)(round)[:2],
    "cyclic poisson": poisson_sampler(4, probability=0.3, seed=0),
    "weighted, replacement": weighted_sampler(WEIGHTS, 2, seed=0),
    "weighted": whole_again,
    "weighted by floats": uniform_sampler(4, 3, seed=0),
    "size": uniform_sampler(4, 2, seed=0),
    "availability": in_order,
}


@pytest.mark.parametrize("name", CONTROLS)
def test_another_law_would_show(name):
    assert p_value(CONTROLS[name], LAWS[name.removesuffix(", capped")][1]) < 1e-6


def test_heavy_clients_do_not_hold_up_the_others():
    """One client has almost all the weight, and is drawn first; the rest of the cohort is uniform."""
    sample = weighted_sampler([10**15, 1, 1, 1, 1], 3, seed=0)
    law = {(0, *ids): 1 / 6 for ids in itertools.combinations(range(1, 5), 2)}
    assert p_value(sample, law, 1000) > 1e-3
    assert weighted_sampler(2.0 ** -np.arange(0, 1000, 20), 50, seed=0)(0).tolist() == list(range(50))


# --- first order and pairs ----------------------------------------------------------------------


def largest_scores(sample, first, pair, n=30, num_rounds=900):
    """Returns the largest z scores of how often clients, and pairs of clients, are in a cohort."""
    member = np.zeros((num_rounds, n))
    for round in range(num_rounds):
        member[round, sample(round)] = 1
    together = member.T @ member / num_rounds
    single = np.abs(np.diag(together) - first) / np.sqrt(first * (1 - first) / num_rounds)
    pairs = np.abs(together - pair)[np.triu_indices(n, 1)] / np.sqrt(pair * (1 - pair) / num_rounds)
    return single.max(), pairs.max()


def always_half(round, ids):
    return np.full(len(ids), 0.5)


WITHOUT_REPLACEMENT = (6 / 30, 6 * 5 / 30 / 29)
PAIRS = {
    "uniform": (uniform_sampler(30, 6, seed=0), *WITHOUT_REPLACEMENT),
    "poisson": (poisson_sampler(30, probability=0.2, seed=0), 0.2, 0.04),
    "availability": (availability_sampler(30, 6, always_half, seed=0), *WITHOUT_REPLACEMENT),
    "shuffled": (lambda epoch: cyclic_sampler(30, 6, seed=0, min_separation=1)(5 * epoch + 4), *WITHOUT_REPLACEMENT),
    "cyclic": (lambda seed: cyclic_sampler(30, 6, seed=seed)(3), *WITHOUT_REPLACEMENT),
    "separated": (lambda seed: cyclic_sampler(30, 6, seed=seed, min_separation=4)(7), *WITHOUT_REPLACEMENT),
}


@pytest.mark.parametrize("name", PAIRS)
def test_clients_and_pairs_are_as_often_in_a_cohort_as_they_should(name):
    single, pairs = largest_scores(*PAIRS[name])
    assert single < 4.2  # Of 30 scores one is larger with probability 0.001,
    assert pairs < 4.8  # and of 435.


def neighbours(round):
    """Takes every fifth client: all are equally often in a cohort, but always with the same others."""
    return np.arange(int(np.random.Philox(key=round).random_raw()) % 5, 30, 5)


def test_wrong_pairs_and_wrong_clients_would_show():
    single, pairs = largest_scores(neighbours, *WITHOUT_REPLACEMENT)
    assert single < 4.2
    assert pairs > 30
    modulo = uniform_sampler(32, 6, seed=0)
    single, _ = largest_scores(lambda round: np.unique(modulo(round) % 30), *WITHOUT_REPLACEMENT)
    assert single > 8


def test_sizes_of_poisson_cohorts_have_the_quantiles_of_a_binomial():
    """How far to pad 100 of 3,400 clients on average."""
    least, ends = binomial_table(3400, 100 / 3400)
    sizes = [least + int(np.searchsorted(ends, np.uint64((1 - p) * 2**64), side="right")) for p in (1e-2, 1e-4, 1e-6)]
    assert sizes == [124, 139, 150]


def test_sizes_of_poisson_cohorts_have_the_binomial_mean_and_variance():
    num_rounds, n, q = 2000, 10**7, 2e-6
    sample = poisson_sampler(n, probability=q, seed=0)
    sizes = np.array([len(sample(round)) for round in range(num_rounds)])
    mean, variance = n * q, n * q * (1 - q)
    assert abs(sizes.mean() - mean) < 4 * np.sqrt(variance / num_rounds)
    assert abs(sizes.var() - variance) < 4 * variance * np.sqrt((2 + 1 / variance) / num_rounds)
    assert abs(np.corrcoef(sizes[:-1], sizes[1:])[0, 1]) < 4 / np.sqrt(num_rounds)


def test_repetitions_are_as_many_as_expected():
    sample = uniform_sampler(100, 50, seed=0, replacement=True)
    different = [len(np.unique(sample(round))) for round in range(1000)]
    expected = 100 * (1 - 0.99**50)
    assert abs(np.mean(different) - expected) < 4 * 2.6 / np.sqrt(1000)  # Their standard deviation is 2.54.


@pytest.mark.parametrize("name", ["weighted, replacement", "size, replacement"])
def test_weights_are_frequencies_among_many(name):
    weights = 1 / np.arange(1, 1001) if "weighted" in name else np.resize([1, 2, 3], 1000)
    sample = samplers(6)[name]
    draws = np.concatenate([sample(round) for round in range(500)])
    counts = np.bincount(draws, minlength=1000)
    assert stats.chisquare(counts, len(draws) * weights / weights.sum()).pvalue > 1e-3
    assert stats.chisquare(counts).pvalue < 1e-6


@pytest.mark.parametrize("step", [1, 3, 512])
def test_every_example_is_found_on_disk_as_in_memory(tmp_path, monkeypatch, step):
    monkeypatch.setattr(sampling_weighted, "_STEP", step)
    points = np.arange(MEMORY.num_examples)
    owners = np.repeat(np.arange(MEMORY.num_clients), MEMORY.sizes)
    store = written(tmp_path / "store")
    assert np.array_equal(sampling_weighted._find_fn(store.offsets)(points), owners)
    assert np.array_equal(sampling_weighted._find_fn(MEMORY.offsets)(points), owners)
    for part in (store, store.select_clients(range(4, 9)), store.select_clients([1, 3, 8])):
        on_disk, in_memory = (size_weighted_sampler(data, 3, seed=0) for data in (part, part.load()))
        assert [on_disk(k).tolist() for k in range(9)] == [in_memory(k).tolist() for k in range(9)]
        assert on_disk.description == in_memory.description


# --- schedules ----------------------------------------------------------------------------------


def closest(sample, num_clients, num_rounds):
    """Returns the fewest rounds between two participations, and in how many rounds each client was."""
    last, fewest, times = {}, math.inf, np.zeros(num_clients, int)
    for round in range(num_rounds):
        for k in sample(round).tolist():
            fewest = min(fewest, round - last.get(k, -math.inf))
            last[k] = round
            times[k] += 1
    return fewest, times


@pytest.mark.parametrize(("num_clients", "cohort_size"), [(12, 2), (13, 2), (17, 3), (7, 7), (9, 1), (10, 6)])
def test_the_separation_is_exact_also_across_epochs(num_clients, cohort_size):
    epoch = -(-num_clients // cohort_size)
    for separation in range(1, epoch + 1):
        sample = cyclic_sampler(num_clients, cohort_size, seed=separation, min_separation=separation)
        fewest, times = closest(sample, num_clients, 10 * epoch)
        assert fewest == separation  # No less, and it is not larger than asked for either.
        assert (times == 10).all()
        assert {len(sample(round)) for round in range(epoch)} <= {num_clients // epoch, -(-num_clients // epoch)}
        assert max(len(sample(round)) for round in range(epoch)) <= cohort_size


def test_a_shuffle_of_each_epoch_alone_does_not_separate():
    """The control of the test above."""
    fewest, _ = closest(cyclic_sampler(12, 2, seed=0, min_separation=1), 12, 150)
    assert fewest == 1
    fewest, _ = closest(uniform_sampler(12, 2, seed=0), 12, 150)
    assert fewest == 1


def places(epochs):
    """Returns the p-value of clients being equally often at each place of an epoch, ``[epochs, places, size]``."""
    counts = np.stack([np.bincount(epochs[:, place].ravel(), minlength=12) for place in range(epochs.shape[1])])
    # Row and column sums are fixed, hence the degrees of freedom.
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2).sum() / expected * 11 / 12
    return stats.chi2.sf(statistic, 11 * (epochs.shape[1] - 1))


def buffered(epoch, size=4):
    """A shuffle through a buffer of the last few, as tf.data and others do it."""
    word, order, buffer = iter(np.random.Philox(key=epoch).random_raw(12).tolist()), [], list(range(size))
    for k in range(size, 12):
        pick = next(word) % size
        order.append(buffer[pick])
        buffer[pick] = k
    return np.array(order + buffer)


def test_every_client_is_at_every_place_of_an_epoch_equally_often():
    sample = cyclic_sampler(12, 2, seed=0, min_separation=1)
    epochs = np.array([[sample(6 * epoch + place) for place in range(6)] for epoch in range(150)])
    assert places(epochs) > 1e-3
    assert places(np.array([buffered(epoch).reshape(6, 2) for epoch in range(150)])) < 1e-9


def test_blocks_are_shuffled_anew_and_stay():
    sample = cyclic_sampler(8, 2, seed=0, min_separation=3)  # Two blocks of two rounds and four clients each.
    first = np.union1d(sample(0), sample(1))
    pairs = collections.Counter()
    for epoch in range(200):
        assert np.array_equal(np.union1d(sample(4 * epoch), sample(4 * epoch + 1)), first)
        pairs[tuple(sample(4 * epoch).tolist())] += 1
    assert len(pairs) == 6
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-3
    assert len({tuple(cyclic_sampler(8, 2, seed=seed, min_separation=3)(0).tolist()) for seed in range(200)}) == 28


def test_clients_come_at_their_time_of_day():
    diurnal = Diurnal(period=24, least=0.1, most=0.9, seed=3)
    ids = np.arange(5000, dtype=np.int32)
    days = np.stack([diurnal(round, ids) for round in range(48)])
    assert np.array_equal(days[:24], days[24:])
    assert 0.1 <= days.min() < 0.11
    assert 0.89 < days.max() <= 0.9
    np.testing.assert_allclose(days.mean(axis=0), 0.5, atol=0.01)  # Nobody's day is longer,
    np.testing.assert_allclose(days.mean(axis=1), 0.5, atol=0.02)  # and every hour is somebody's noon.
    assert np.abs(np.diff(days, axis=0)).max() < 0.8 / 12 + 1e-9
    sample = availability_sampler(5000, 100, diurnal, seed=0)
    drawn = [diurnal(round, sample(round)).mean() for round in range(100)]
    # Whoever is in a cohort is so in proportion to its probability: E p^2 / E p.
    expected = (days[0] ** 2).mean() / days[0].mean()
    assert abs(np.mean(drawn) - expected) < 4 * days[0].std() / np.sqrt(100 * 100)


def test_cohorts_are_smaller_where_fewer_are_available():
    sample = availability_sampler(1000, 20, lambda round, ids: (ids < 3 * round).astype(float), seed=0)
    assert [len(sample(round)) for round in (0, 1, 4, 7, 300)] == [0, 3, 12, 20, 20]
    assert sample(4).tolist() == list(range(12))
    assert sample(0).dtype == np.int32
