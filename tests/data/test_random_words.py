"""Tests of keyed words: known answers, permutations against all orders, the exact binomial table."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fedjx.data import random_words
from fedjx.data.random_words import below, binomial_table, hashed, permuted, scaled, words


def test_hash_is_splitmix64():
    step = 0x9E3779B97F4A7C15
    states = np.arange(1, 4, dtype=np.uint64) * np.uint64(step)
    out = hashed(states, np.zeros(1, np.uint64))  # Known answers of SplitMix64 with seed 0.
    assert [hex(x) for x in out.tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_streams_share_no_word():
    streams = [(), (1,), (2,), (0, 1), (1, 1)]
    drawn = [words(100, seed, round, *stream) for seed in (0, 1) for round in (0, 1) for stream in streams]
    assert len(np.unique(np.concatenate(drawn))) == 2000
    assert (words(4, 5, 6) == words(4, 5, 6, 0, 0)).all()


def test_scaled_is_exact():
    top = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert scaled(top, 2**63 - 1).tolist() == [0, 0, 2**62 - 1, 2**63 - 2]
    assert scaled(top, 3).tolist() == [0, 0, 1, 2]


def test_below_is_never_below_zero_and_always_below_one():
    assert not below(np.array([0], np.uint64), 0.0)
    assert below(np.array([2**64 - 1], np.uint64), 1.0)
    assert below(np.array([2**63 - 1, 2**63], np.uint64), 0.5).tolist() == [True, False]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, 16, 17, 1000, 65_537])
def test_permutations_have_everybody_once(size):
    for key in range(3):
        assert np.array_equal(np.sort(permuted(np.arange(size), size, 1, key)), np.arange(size))


def test_permutations_of_a_huge_range_stay_inside_and_apart():
    size = 2**31 - 1
    out = permuted(np.concatenate([np.arange(10_000), size - 1 - np.arange(10_000)]), size, 0, 0)
    assert len(np.unique(out)) == 20_000
    assert 0 <= out.min() < 10**6 < size - 10**6 < out.max() < size


def orders(size, num_keys):
    """Returns the p-value of the orders that come of so many keys, by chi-square."""
    number = {order: k for k, order in enumerate(itertools.permutations(range(size)))}
    drawn = [number[tuple(permuted(np.arange(size), size, 5, key).tolist())] for key in range(num_keys)]
    counts = np.bincount(drawn, minlength=math.factorial(size))
    return stats.chisquare(counts).pvalue


@pytest.mark.parametrize(("size", "num_keys"), [(3, 500), (4, 700), (5, 900)])
def test_all_orders_are_equally_likely(size, num_keys):
    assert orders(size, num_keys) > 1e-3


def test_fewer_rounds_would_show(monkeypatch):
    monkeypatch.setattr(random_words, "_FEISTEL_ROUNDS", 4)
    assert orders(5, 900) < 1e-9


def test_both_parities_come_up():
    """With 3 x 3 elements and rotations of odd length alone, all orders would be even."""
    size, odd = 9, 0
    for key in range(400):
        order = permuted(np.arange(size), size, 2, key)
        odd += sum(order[i] > order[j] for i in range(size) for j in range(i + 1, size)) % 2
    assert abs(odd - 200) < 4 * 10


@pytest.mark.parametrize(("n", "q"), [(1, 0.5), (5, 0.3), (100, 0.01), (1000, 0.999), (10**7, 1e-4), (2**31 - 1, 5e-7)])
def test_the_binomial_table_is_the_binomial_distribution(n, q):
    least, ends = binomial_table(n, q)
    numbers = np.arange(least, least + len(ends) + 1)
    got = np.diff(np.append(0.0, np.append(ends / 2**64, 1.0)))
    expected = stats.binom.pmf(numbers, n, q)
    # As near as floats get: SciPy's own error is larger than the table's.
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-15)
    assert stats.binom.cdf(least - 1, n, q) < 1e-30
    assert stats.binom.sf(numbers[-1], n, q) < 1e-30


def test_the_binomial_table_is_exact_where_fractions_are():
    least, ends = binomial_table(4, 0.25)
    wanted = [sum(math.comb(4, j) * 3 ** (4 - j) for j in range(k + 1)) for k in range(4)]
    assert least == 0
    assert ends.tolist() == [count * 2**64 // 256 for count in wanted]
    assert binomial_table(7, 1.0)[0] == 7
    assert binomial_table(7, 1.0)[1].tolist() == []
