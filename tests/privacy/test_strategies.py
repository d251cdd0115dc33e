"""Matrices that are found by optimisation: their published numbers, and less noise than a tree makes."""

import builtins

import numpy as np
import pytest
from scipy.linalg import solve_triangular, toeplitz

from fedjx.privacy import Strategy, banded_strategy, buffered_strategy, sensitivity, strategies
from fedjx.privacy.account import tree_sensitivity_squared
from fedjx.privacy.loss import _imported


def error(strategy, rounds, separation, most):
    """The mean over the rounds of the variance of the noise on the sum so far, for a noise multiplier of 1."""
    column = strategy.column(rounds)
    # Of C^-1 times the sums of the first rounds, a Toeplitz matrix too: its first column.
    first = solve_triangular(toeplitz(column, np.zeros(rounds)), np.ones(rounds), lower=True)
    norm = sensitivity(strategy, rounds, min_separation=separation, max_participations=most)
    return float(norm**2 * np.mean(np.cumsum(first**2)))


def square_root(rounds):
    """The best Toeplitz matrix for one participation, by the largest error."""
    return Strategy(tuple(np.cumprod([1, *((2 * k - 1) / (2 * k) for k in range(1, rounds))])))


def tree_error(rounds, squared, *, efficient):
    """The same of a tree, of the variances in the papers, and the largest."""
    digits = [[d for d in range(rounds.bit_length()) if t >> d & 1] for t in range(1, rounds + 1)]
    errors = [sum(2**d / (2 ** (d + 1) - 1) if efficient else 1 for d in ones) for ones in digits]
    return squared * np.mean(errors), squared * max(errors)


@pytest.mark.parametrize(
    ("rounds", "alone", "plain", "efficient", "largest", "best"),
    [
        (64, 32.5, 21.11, 13.34, 26.57, 4.971),
        (1024, 512.5, 55.01, 31.92, 63.83, 9.671),
        (2048, 1024.5, 66.01, 37.82, 75.64, 11.092),
    ],
)
def test_the_table_of_prefix_errors(rounds, alone, plain, efficient, largest, best):
    """One participation: noise of its own in each round, trees, and the best Toeplitz matrix."""
    assert error(Strategy((1.0,)), rounds, rounds, 1) == pytest.approx(alone)
    squared = tree_sensitivity_squared(rounds, min_separation=rounds)
    assert tree_error(rounds, squared, efficient=False)[0] == pytest.approx(plain, abs=5e-3)
    assert tree_error(rounds, squared, efficient=True) == pytest.approx((efficient, largest), abs=6e-3)
    assert error(square_root(rounds), rounds, rounds, 1) == pytest.approx(best, abs=1e-3)


def test_prefix_errors_with_eight_participations():
    assert error(Strategy((1.0,)), 256, 32, 8) == pytest.approx(1028)
    squared = tree_sensitivity_squared(256, min_separation=32, max_participations=8)
    assert squared == 160
    assert tree_error(256, squared, efficient=True)[0] == pytest.approx(384.42, abs=5e-3)
    assert error(banded_strategy(256, 32), 256, 32, 8) == pytest.approx(76.23, abs=0.05)


def test_bands_are_those_that_are_published():
    found = banded_strategy(64, 8)
    expected = [0.676678, 0.397713, 0.323760, 0.283046, 0.254409, 0.231377, 0.210888, 0.190427]
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-4)
    assert sensitivity(found, 64, min_separation=8, max_participations=8) ** 2 == pytest.approx(8, rel=1e-4)
    assert error(found, 64, 64, 1) == pytest.approx(7.0968, abs=2e-3)


def test_buffers_make_less_noise_than_independent_rounds():
    found = buffered_strategy(16, min_separation=4, max_participations=2, max_buffers=1)
    assert len(found.decays) == len(found.scales) == 1
    assert error(found, 16, 4, 2) < 0.8 * error(Strategy((1.0,)), 16, 4, 2)


def test_buffers_that_are_published_are_the_best_near_them():
    """What jax-privacy finds in a minute for 64 rounds, 16 apart, four participations, and up to three buffers."""
    scales, decays = np.array([0.0440746, 0.435982]), np.array([0.99999999, 0.857133])

    def largest_error(scales, decays):
        strategy = Strategy((1.0,), tuple(scales), tuple(decays))
        first = solve_triangular(toeplitz(strategy.column(64), np.zeros(64)), np.ones(64), lower=True)
        return np.sum(first**2) * sensitivity(strategy, 64, min_separation=16, max_participations=4) ** 2

    best = largest_error(scales, decays)
    for change in (0.9, 1.1):
        assert all(largest_error(scales * factors, decays) > best for factors in ((change, 1), (1, change)))
        assert largest_error(scales, decays * (1, change)) > best
    assert largest_error(scales, decays * (0.97, 1)) > best


@pytest.mark.parametrize("call", [lambda: banded_strategy(8, 2), lambda: strategies._quietly("toeplitz", print)])
def test_without_the_library_it_says_what_to_install(monkeypatch, call):
    real = strategies.importlib.import_module

    def missing(name, *rest):
        if name.startswith("jax_privacy"):
            raise ImportError("No module named 'jax_privacy'")
        return real(name, *rest)

    monkeypatch.setattr(strategies.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'fedjx\[privacy\]'"):
        call()


def test_without_an_accountant_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **named):
        if name.startswith("dp_accounting"):
            raise ImportError("No module named 'dp_accounting'")
        return real(name, *rest, **named)

    _imported.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"Install it: pip install 'fedjx\[privacy\]'"):
        _imported()
