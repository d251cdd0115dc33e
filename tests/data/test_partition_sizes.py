"""Tests of the sizes of clients: exact rules, and moments of those that are drawn."""

import numpy as np
import pytest

from fedjx.data.partitions.sizes import (
    dirichlet_sizes,
    exponential_sizes,
    linear_sizes,
    lognormal_sizes,
    power_law_sizes,
    size_partition,
    square_sizes,
    zipf_sizes,
)


def test_growing_sizes_are_exact():
    assert linear_sizes(55, 10).tolist() == list(range(1, 11))
    assert square_sizes(385, 10).tolist() == [k * k for k in range(1, 11)]
    for num_examples in range(55, 300):
        sizes = linear_sizes(num_examples, 10)
        assert sizes[:9].tolist() == [num_examples * k // 55 for k in range(1, 10)]
        assert sizes.sum() == num_examples
    weights = np.exp(np.arange(1.0, 9.0))
    np.testing.assert_array_equal(exponential_sizes(10**6, 8)[:7], np.floor(10**6 * weights / weights.sum())[:7])


@pytest.mark.parametrize(
    ("sizes_fn", "num_clients", "largest"),
    [(linear_sizes, 50, 44), (square_sizes, 20, 13), (exponential_sizes, 800, 7)],
)
def test_too_many_clients_name_the_largest_number(sizes_fn, num_clients, largest):
    with pytest.raises(ValueError, match=f"Use at most {largest} clients"):
        sizes_fn(1000, num_clients)
    assert sizes_fn(1000, largest).min() >= 1
    with pytest.raises(ValueError, match="leave none for the first"):
        sizes_fn(1000, largest + 1)


@pytest.mark.parametrize(
    ("sizes_fn", "options", "mean", "variance"),
    [
        # Of the logarithm of a weight, up to a constant: its distribution is what is named.
        (lognormal_sizes, {"sigma": 1.5}, None, 2.25),
        (power_law_sizes, {"exponent": 1.25}, None, 0.64),
    ],
)
def test_logarithms_of_sizes(sizes_fn, options, mean, variance):
    logs = np.log(sizes_fn(10**9, 4000, seed=0, **options))
    np.testing.assert_allclose(logs.var(), variance, rtol=0.1)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(logs.var(), 1.3 * variance, rtol=0.1)


def test_the_tail_of_the_power_law():
    sizes = power_law_sizes(10**9, 4000, exponent=2.0, seed=0)
    w = sizes / sizes.min()
    for threshold in (2.0, 5.0):
        p = threshold**-2.0
        assert abs((w > threshold).mean() - p) < 4 * np.sqrt(p * (1 - p) / 4000) + 0.005


def test_dirichlet_sizes_have_its_moments():
    shares = np.stack([dirichlet_sizes(10**6, 10, alpha=0.5, seed=seed) for seed in range(600)]) / 10**6
    expected = 9 / (100 * 6)
    np.testing.assert_allclose(shares.mean(0), 0.1, atol=4 * np.sqrt(expected / 600))
    np.testing.assert_allclose(((shares - 0.1) ** 2).mean(), expected, rtol=0.1)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(((shares - 0.1) ** 2).mean(), 9 / (100 * 11), rtol=0.1)


def test_zipf_sizes_fall_with_the_rank():
    sizes = zipf_sizes(10**7, 100, exponent=1.2, seed=0)
    np.testing.assert_allclose(sizes / sizes[0], np.arange(1, 101) ** -1.2, rtol=0.15)


def test_golden_sizes():
    """These may change with NumPy; if they do, say so to users."""
    assert lognormal_sizes(100, 5, sigma=1.0, seed=1).tolist() == [22, 5, 15, 10, 48]
    assert dirichlet_sizes(100, 5, alpha=0.5, seed=1).tolist() == [3, 1, 10, 25, 61]
    assert power_law_sizes(100, 5, exponent=1.0, seed=1).tolist() == [13, 16, 13, 38, 20]
    assert zipf_sizes(100, 5, seed=1).tolist() == [44, 13, 21, 14, 8]


@pytest.mark.parametrize(
    ("sizes_fn", "options"),
    [
        (lognormal_sizes, {"sigma": 1000.0}),
        (dirichlet_sizes, {"alpha": 1e-9}),
        (power_law_sizes, {"exponent": 1e-6}),
        (zipf_sizes, {"exponent": 1e6}),
    ],
)
def test_the_minimum_holds_at_any_skew(sizes_fn, options):
    sizes = sizes_fn(1000, 100, seed=0, min_examples=3, **options)
    assert (sizes.min(), sizes.sum()) == (3, 1000)
    assert sizes.max() == 703
    assert sizes_fn(300, 100, seed=0, min_examples=3, **options).tolist() == [3] * 100
    with pytest.raises(ValueError, match="Use at most 99 clients"):
        sizes_fn(299, 100, seed=0, min_examples=3, **options)


def test_given_sizes():
    parts = size_partition(1000, [5, 900, 95], seed=0)
    assert [len(rows) for rows in parts] == [5, 900, 95]
    assert abs(parts[2].mean() - 500) < 4 * 289 / np.sqrt(95)  # In blocks it would be 952.
    with pytest.warns(UserWarning, match="10 of 1000 examples are in no client") as caught:
        size_partition(1000, [990], seed=0)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("sizes_fn", "message"),
    [
        (lambda: size_partition(10, [5, 6], seed=0), "got 11 and num_examples=10. Use at most the first 1 clients"),
        (lambda: size_partition(10, [5, 0], seed=0), "at least one example"),
        (lambda: size_partition(10, [5, 5], seed=-1), "seed=-1"),
        (lambda: lognormal_sizes(10, 2, sigma=-1.0, seed=0), "sigma=-1.0"),
        (lambda: dirichlet_sizes(10, 2, alpha=0.0, seed=0), "alpha=0.0"),
        (lambda: power_law_sizes(10, 2, exponent=0.0, seed=0), "exponent=0.0"),
        (lambda: zipf_sizes(10, 2, exponent=np.nan, seed=0), "exponent=nan"),
        (lambda: zipf_sizes(10, 2, seed=0, min_examples=0), "min_examples=0"),
        (lambda: zipf_sizes(10, 0, seed=0), "num_clients=0"),
        (lambda: dirichlet_sizes(10, 0, alpha=1.0, seed=0), "num_clients=0"),
    ],
)
def test_errors(sizes_fn, message):
    with pytest.raises(ValueError, match=message):
        sizes_fn()
