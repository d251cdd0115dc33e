"""Matrices that are found by optimisation: their published numbers, and less noise than a tree makes."""

import builtins

import numpy as np
import pytest

from fedjx.privacy import Strategy, banded_strategy, buffered_strategy, sensitivity, strategies
from fedjx.privacy.account import tree_sensitivity_squared
from fedjx.privacy.loss import _imported


def error(strategy, rounds, separation, most):
    """The mean over the rounds of the variance of the noise on the sum so far, for a noise multiplier of 1."""
    column = strategy.column(rounds)
    whole = sum(np.diag(np.full(rounds - k, c), -k) for k, c in enumerate(column))
    sums = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(whole)
    norm = sensitivity(strategy, rounds, min_separation=separation, max_participations=most)
    return float(norm**2 * np.mean(np.sum(sums**2, axis=1)))


SQUARE_ROOT = Strategy(tuple(np.cumprod([1, *((2 * k - 1) / (2 * k) for k in range(1, 64))])))


def test_the_table_of_prefix_errors():
    """One participation in 64 rounds: noise of its own in each, a tree, and the best Toeplitz matrix."""
    assert error(Strategy((1.0,)), 64, 64, 1) == pytest.approx(32.5)
    plain = np.mean([bin(t).count("1") for t in range(1, 65)]) * tree_sensitivity_squared(64, min_separation=64)
    assert plain == pytest.approx(21.11, abs=5e-3)
    assert error(SQUARE_ROOT, 64, 64, 1) == pytest.approx(4.971, abs=5e-3)


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
