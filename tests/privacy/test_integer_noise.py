"""Discrete Gaussian and Skellam noise: exact moments, sums that are such again, the same bits in every program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjx.privacy import discrete_gaussian, skellam
from fedjx.privacy.integer_noise import _gaussian_table, _skellam_table

KEY = jax.random.key(4)


def probabilities(table):
    """How likely each integer is, by the words that stand for it, and the integers."""
    ends = np.concatenate([[0], table.ends.astype(np.float64), [2.0**32]])
    return np.diff(ends) / 2.0**32, table.least + np.arange(len(table.ends) + 1)


def moments(table):
    likelihood, x = probabilities(table)
    mean = likelihood @ x
    variance = likelihood @ (x - mean) ** 2
    return mean, variance, likelihood @ (x - mean) ** 4 / variance**2 - 3


@pytest.mark.parametrize(("stddev", "variance", "at_zero"), [(0.5, 0.215013, 0.786571), (1.0, 1.0, 0.398942)])
def test_the_discrete_gaussian_has_its_exact_moments(stddev, variance, at_zero):
    table = _gaussian_table(stddev)
    likelihood, x = probabilities(table)
    assert moments(table)[0] == pytest.approx(0, abs=1e-8)
    assert moments(table)[1] == pytest.approx(variance, abs=1e-6)
    assert likelihood[x == 0] == pytest.approx(at_zero, abs=1e-6)


@pytest.mark.parametrize("variance", [0.25, 25.0, 1e6, 2.0**34])
def test_skellam_has_its_exact_moments(variance):
    mean, found, kurtosis = moments(_skellam_table(variance))
    assert mean == pytest.approx(0, abs=1e-6 * variance**0.5)
    assert found == pytest.approx(variance, rel=1e-6)
    assert kurtosis == pytest.approx(1 / variance, rel=1e-4, abs=2e-6)


def test_it_is_the_distribution_that_scipy_knows():
    likelihood, x = probabilities(_skellam_table(9.0))
    np.testing.assert_allclose(likelihood, stats.skellam.pmf(x, 4.5, 4.5), atol=1e-9)
    assert np.abs(likelihood - stats.skellam.pmf(x, 8.0, 8.0)).max() > 0.01  # the control


def test_large_ones_are_alike_to_a_word():
    """Where one table takes the place of the other."""
    skellam, gaussian = _skellam_table(2.0**28), _gaussian_table(2.0**14)
    least = max(skellam.least, gaussian.least)
    ends = (table.ends[least - table.least :][: -2 * least].astype(np.int64) for table in (skellam, gaussian))
    assert np.abs(np.subtract(*ends)).max() <= 1


@pytest.mark.parametrize(("draw", "size"), [(skellam, 20.25), (discrete_gaussian, 4.5)])
def test_what_is_drawn_is_that(draw, size):
    x = np.asarray(jax.jit(lambda key: draw(key, size, (200_000,)))(KEY))
    assert x.dtype == np.int32
    assert abs(x.mean()) < 4 * 4.5 / 200_000**0.5
    assert x.var() == pytest.approx(20.25, rel=0.015)
    assert np.bincount(x % 2) / len(x) == pytest.approx([0.5, 0.5], abs=0.005)
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 0.01
    with pytest.raises(AssertionError):  # the control: another variance is seen
        assert draw(KEY, size * 1.1, (200_000,)).var() == pytest.approx(20.25, rel=0.015)


def test_sums_of_skellam_are_skellam_again():
    total = np.asarray(jnp.sum(skellam(KEY, 0.25, (8, 100_000)), axis=0))
    likelihood, x = probabilities(_skellam_table(2.0))
    found = np.array([np.mean(total == k) for k in x])
    assert np.abs(found - likelihood).max() < 0.006
    alone = np.asarray(discrete_gaussian(KEY, 0.5, (8, 100_000))).sum(axis=0)  # the control
    assert np.abs(np.array([np.mean(alone == k) for k in x]) - likelihood).max() > 0.01


@pytest.mark.parametrize("draw", [skellam, discrete_gaussian])
def test_a_draw_is_the_same_bits_in_every_program(draw):
    keys = jax.random.split(KEY, 3)
    whole = jax.jit(jax.vmap(lambda key: draw(key, 1e4, (50,))))(keys)
    np.testing.assert_array_equal(whole, jnp.stack([draw(key, 1e4, (50,)) for key in keys]))


@pytest.mark.parametrize(("draw", "size"), [(skellam, 2.0**33), (skellam, -1.0), (discrete_gaussian, 2.0**17)])
def test_what_could_not_be_drawn_is_refused(draw, size):
    with pytest.raises(ValueError, match="Take coarser steps"):
        draw(KEY, size, (3,))
