"""Compressors against their published errors, with biased ones as the negative control of unbiasedness."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from fedjx.aggregation.compress import Compressor, identity
from fedjx.aggregation.eden import drive, eden, lloyd_quantizer, normal_levels
from fedjx.aggregation.quantize import qsgd, round_stochastically, scaled_sign, terngrad, uniform_quantizer
from fedjx.aggregation.rotate import fourier, hadamard, hadamard_transform, random_signs, rotated
from fedjx.aggregation.sparsify import random_k, top_k

NUM_KEYS = 30
VECTOR = np.random.default_rng(1).lognormal(0, 1, 2**14).astype(np.float32)


def decoded(compressor: Compressor, vector: np.ndarray, num_keys: int = NUM_KEYS) -> np.ndarray:
    def once(key, x):
        return compressor.decode(compressor.encode(key, x), x.size)

    keys = jax.random.split(jax.random.key(0), num_keys)
    return np.asarray(jax.jit(jax.vmap(once, in_axes=(0, None)))(keys, jnp.asarray(vector)), np.float64)


def error(got: np.ndarray, vector: np.ndarray) -> float:
    """The mean normalised squared error over the keys."""
    return np.mean(np.sum((got - vector) ** 2, axis=1)) / np.sum(vector.astype(np.float64) ** 2)


def bias(got: np.ndarray, vector: np.ndarray) -> float:
    """The squared error of the mean, in units of what independent errors without bias would leave: 1, or more."""
    return len(got) * error(got.mean(0, keepdims=True), vector) / error(got, vector)


# Exact errors of VECTOR, and bounds of the papers for any vector of 2^14 elements.
UNBIASED = {
    "qsgd1": (qsgd(1), 75.533515, 128),
    "qsgd16": (qsgd(16), 3.857028, 8),
    "qsgd256": (qsgd(256), 0.044342, 0.25),
    "terngrad": (terngrad(), 10.194078, np.inf),
    "uniform1": (uniform_quantizer(1), 10.051020, 8192),
    "uniform4": (uniform_quantizer(4), 0.249507, 36.41),
    "uniform8": (uniform_quantizer(8), 8.9756e-4, 0.126),
    "uniform8of28": (uniform_quantizer(8, word_bits=28), 8.9756e-4, 0.126),
    "uniform16": (uniform_quantizer(16), 1.3617e-8, 1.91e-6),
    "hadamard8": (rotated(uniform_quantizer(8)), 1.089e-4, 2.440e-4),
    "fourier8": (rotated(uniform_quantizer(8), fourier()), 1.577e-4, 3.292e-4),
    "drive": (drive(), np.pi / 2 - 1, np.inf),
    "eden2": (eden(2), 0.133121, np.inf),
    "eden4": (eden(4), 0.009592, np.inf),
    "random_k": (random_k(fraction=0.1), 9.0024, 9.0024 * 1.2),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_compressors_have_their_published_error(name):
    compressor, expected, bound = UNBIASED[name]
    got = decoded(compressor, VECTOR)
    assert error(got, VECTOR) == pytest.approx(expected, rel=0.05)
    assert error(got, VECTOR) <= bound
    assert bias(got, VECTOR) == pytest.approx(1, abs=0.1)


def test_random_rounding_is_unbiased_where_floats_are_coarse():
    x = jnp.full(2**14, 40_000.0)
    np.testing.assert_array_equal(round_stochastically(jax.random.key(0), x), x)
    rounded = np.asarray(round_stochastically(jax.random.key(0), x + 0.25)) - 40_000
    assert abs(rounded.mean() - 0.25) < 5 * np.sqrt(0.1875 / rounded.size)
    assert set(rounded) == {0, 1}


def test_codes_of_rotated_sparse_vectors_are_biased():
    """The negative control of the errors above: two elements, which Hadamard's rotation mixes in two ways only."""
    sparse = np.zeros(64, np.float32)
    sparse[:2] = 1, 0.5
    got = decoded(drive(), sparse, 200)
    np.testing.assert_allclose(got.mean(0)[:3], [1.25, 0, 0], atol=1e-5)
    assert bias(got, sparse) == pytest.approx(200)
    assert bias(decoded(drive(rotation=fourier()), sparse, 200), sparse) < 50


BIASED = {
    "sign": (scaled_sign(), 0.642494),
    "drive": (drive(unbiased=False), 1 - 2 / np.pi),
    "top1": (top_k(fraction=163 / 2**14), 0.603212),
    "top10": (top_k(fraction=1638 / 2**14), 0.228253),
    "random_k": (random_k(fraction=0.25, unbiased=False), 0.75),
}


@pytest.mark.parametrize("name", BIASED)
def test_biased_compressors_have_their_published_error_and_are_seen_to_be_biased(name):
    compressor, expected = BIASED[name]
    got = decoded(compressor, VECTOR)
    assert error(got, VECTOR) == pytest.approx(expected, rel=0.02)
    assert bias(got, VECTOR) > 3


def test_nearest_and_random_rounding_of_normal_elements():
    vector = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    for bits, nearest, stochastic in ((8, 1.09629e-4, 2.18652e-4), (4, 0.0315320, 0.0630264), (2, 0.902644, 1.693338)):
        got = decoded(uniform_quantizer(bits, stochastic=False), vector, 1)
        assert error(got, vector) == pytest.approx(nearest, rel=1e-3)
        assert error(decoded(uniform_quantizer(bits), vector, 2), vector) == pytest.approx(stochastic, rel=0.02)


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 13, 16])
def test_uniform_rounding_is_within_a_step_and_exact_at_the_ends(bits):
    vector = np.random.default_rng(bits).normal(size=777).astype(np.float32)
    step = np.ptp(vector) / (2**bits - 1)
    for stochastic, limit in ((True, step), (False, step / 2)):
        got = decoded(uniform_quantizer(bits, stochastic=stochastic), vector, 2)
        assert np.abs(got - vector).max() <= limit + 2e-6
        for end in (vector.argmin(), vector.argmax()):
            np.testing.assert_allclose(got[:, end], vector[end], atol=2e-6)


def test_levels_of_the_normal_distribution():
    np.testing.assert_allclose(normal_levels(1), [-0.797885, 0.797885], atol=1e-5)
    np.testing.assert_allclose(normal_levels(2)[2:], [0.452780, 1.510418], atol=1e-5)
    np.testing.assert_allclose(normal_levels(3)[4:], [0.245094, 0.756005, 1.343909, 2.151946], atol=1e-5)
    x = np.random.default_rng(0).normal(size=200_000)
    for bits, expected in ((4, 0.009501), (5, 0.002505), (6, 0.000644)):
        levels = normal_levels(bits).astype(np.float64)
        chosen = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]
        assert np.mean((chosen - x) ** 2) == pytest.approx(expected, rel=0.02)


def test_fitted_levels_are_as_good_as_the_best_for_the_distribution():
    vector = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    for bits, expected in ((1, 0.363380), (2, 0.117482), (3, 0.034548)):
        assert error(decoded(lloyd_quantizer(bits, num_iterations=40), vector, 1), vector) == pytest.approx(
            expected, rel=0.03
        )


def test_few_distinct_values_are_exact_under_fitted_levels():
    vector = np.repeat(np.float32([-3, 0, 1, 10]), 25)
    np.testing.assert_allclose(decoded(lloyd_quantizer(2), vector, 1)[0], vector, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 64, 100, 4096, 5000])
def test_rotations_keep_the_norm_and_are_inverted(size):
    x = jnp.asarray(np.random.default_rng(size).normal(size=size).astype(np.float32))
    for rotation in (hadamard(), fourier()):
        y = rotation.forward(jax.random.key(3), x)
        assert y.shape == rotation.shape(size)
        np.testing.assert_allclose(jnp.linalg.norm(y), jnp.linalg.norm(x), rtol=1e-5)
        np.testing.assert_allclose(rotation.inverse(jax.random.key(3), y, size), x, atol=2e-6)
        if size > 2:
            assert np.abs(rotation.inverse(jax.random.key(4), y, size) - x).max() > 0.1


def test_blocks_waste_little_and_every_one_has_the_error_of_the_whole():
    for size in (64, 100, 4097, 12_345, 20_000, 51_200, 1_605_632):
        num_blocks, block = hadamard().shape(size)
        assert 4 * np.sqrt(size) < block <= 8 * np.sqrt(size)
        assert size <= num_blocks * block < size + block
    # One block has nearly all of the energy, which one scale for all would not suit.
    vector = VECTOR * np.where(np.arange(VECTOR.size) < hadamard().shape(VECTOR.size)[1], 100, 1).astype(np.float32)
    assert error(decoded(drive(), vector), vector) == pytest.approx(np.pi / 2 - 1, rel=0.05)


@pytest.mark.parametrize("size", [1, 2, 64, 256, 2048])
def test_the_hadamard_transform_is_that_of_the_matrix(size):
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    expected = scipy.linalg.hadamard(size).astype(np.float32) @ x / np.sqrt(size)
    np.testing.assert_allclose(hadamard_transform(jnp.asarray(x)), expected, atol=1e-5)
    np.testing.assert_allclose(hadamard_transform(hadamard_transform(jnp.asarray(x))), x, atol=5e-6)


def test_the_hadamard_transform_of_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match="needs a power of two; got a vector of 12"):
        hadamard_transform(jnp.ones(12))


def test_signs_are_fair():
    signs = np.asarray(random_signs(jax.random.key(0), 10_001))
    assert set(signs) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 / 100
    assert not np.array_equal(signs, random_signs(jax.random.key(1), 10_001))


COMPRESSORS = {name: case[0] for name, case in {**UNBIASED, **BIASED}.items()} | {"lloyd": lloyd_quantizer(2)}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_zeros_and_one_element_survive(name):
    assert np.all(decoded(COMPRESSORS[name], np.zeros(70, np.float32), 2) == 0)
    assert np.all(np.isfinite(decoded(COMPRESSORS[name], np.float32([-2.5]), 2)))


def test_a_single_large_element_is_found_by_drive():
    one_hot = np.zeros(1024, np.float32)
    one_hot[5] = 3
    np.testing.assert_allclose(decoded(drive(), one_hot, 3), np.tile(one_hot, (3, 1)), atol=1e-5)


def test_identity_is_exact():
    np.testing.assert_array_equal(decoded(identity(), VECTOR, 1)[0], VECTOR)


def test_top_k_keeps_the_largest():
    got = decoded(top_k(fraction=0.3), np.float32([1, -5, 2, 0.5, 3, -0.1, 0, 4, 0.2, 0.3]), 1)[0]
    np.testing.assert_array_equal(got, [0, -5, 0, 0, 3, 0, 0, 4, 0, 0])
    np.testing.assert_array_equal(decoded(top_k(fraction=1e-11), np.float32([1, -5]), 1)[0], [0, -5])
    assert np.count_nonzero(decoded(random_k(fraction=1e-11), np.float32([1, -5]), 1)) == 1


@pytest.mark.parametrize(
    "refused",
    [lambda: top_k(fraction=0), lambda: random_k(fraction=1.5), lambda: uniform_quantizer(17), lambda: eden(9)],
)
def test_what_cannot_be_is_refused(refused):
    with pytest.raises(ValueError, match="; got "):
        refused()
