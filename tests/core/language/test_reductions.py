"""Sums over very many clients keep the digits of floats."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from fedjx import Clients, federated_bin_sum, federated_computation, federated_map, federated_sum
from fedjx.core.language.reductions import SUM, bin_sum

NUMBER = 1 << 17
X = (np.random.default_rng(0).normal(0, 15, (NUMBER, 3)) ** 2 - 1800).astype(np.float32)


def one_after_the_other(x: np.ndarray) -> np.ndarray:
    return np.cumsum(x, axis=0, dtype=np.float32)[-1]


@pytest.mark.parametrize("number", [NUMBER, NUMBER - 512, NUMBER - 1])
def test_sums_of_many_vectors_are_exact_to_float32(number: int):
    mask = np.arange(NUMBER) < number
    x = np.where(mask[:, None], X, np.nan)  # padding is garbage
    exact = X[:number].sum(axis=0, dtype=np.float64)
    found = SUM.update(SUM.zero(x[0]), x, mask)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    # The control: added one after the other they are not.
    assert np.all(np.abs(one_after_the_other(X[:number]) / exact - 1) > 2e-5)


def test_sums_of_numbers_that_are_not_in_blocks_are_right():
    for number in (4095, 4097, 5000):
        found = SUM.update(jnp.zeros(3), X[:number], np.ones(number, bool))
        np.testing.assert_allclose(found, X[:number].sum(axis=0, dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize("num_bins", [2, 50_000])
def test_sums_of_bins_are_exact_to_float32(num_bins: int):
    reduction, bins = bin_sum(num_bins, False), np.where(np.arange(NUMBER) % 4 == 3, -1, 1).astype(np.int32)
    exact = X[bins == 1].sum(axis=0, dtype=np.float64)
    found = reduction.zero((bins[0], X[0]))
    for part in range(0, NUMBER, 8192):
        mask = np.ones(8192, bool)
        found = reduction.update(found, (bins[part : part + 8192], X[part : part + 8192]), mask)
    np.testing.assert_allclose(found[1], exact, rtol=1e-6 if num_bins == 2 else 1e-5)
    np.testing.assert_array_equal(found[0], 0)
    assert np.all(np.abs(one_after_the_other(X[bins == 1]) / exact - 1) > 2e-5)


def test_computations_have_them():
    @federated_computation
    def both(x):
        return federated_sum(x), federated_bin_sum(federated_map(lambda x: jnp.int32(0), x), x, 2)

    total, table = both(Clients.of(X))
    np.testing.assert_allclose(total, X.sum(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(table[0], total, rtol=1e-6)
