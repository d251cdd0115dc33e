"""Strings as bytes, and hashes that are the same on a device and on the host, and look random."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.analytics import from_bytes, to_bytes
from fedjx.analytics.text import fitted, hash_bytes, hash_coefficients


@pytest.mark.parametrize("length", range(1, 12))
def test_cuts_strings_between_characters(length: int):
    strings = ["", "a", "plain text", "naïve", "日本語の", "😀😀", "ab😀"]
    rows = to_bytes(strings, length)
    assert rows.shape == (len(strings), length)
    for string, found in zip(strings, from_bytes(rows), strict=True):
        assert found == string.encode()[:length].decode(errors="ignore")


def test_refuses_the_character_that_pads():
    with pytest.raises(ValueError, match="number 0"):
        to_bytes(["a\0b"], 4)
    assert to_bytes([], 4).shape == (0, 4)


def test_reads_bytes_that_are_no_text():
    assert from_bytes(np.array([[0x61, 0xC3, 0, 0]], np.uint8)) == ["a\\xc3"]


def test_hashes_are_those_of_python_on_device_and_host():
    rows, coefficients = np.random.default_rng(0).integers(0, 256, (50, 7), np.uint8), hash_coefficients(3, 7, seed=5)

    def one(row: list[int], factors: list[int]) -> int:
        h = (factors[0] + sum(x * a for x, a in zip(row, factors[1:], strict=True))) % 2**32
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        return h ^ h >> 16

    expected = [[one(row, factors) for factors in coefficients.tolist()] for row in rows.tolist()]
    np.testing.assert_array_equal(hash_bytes(rows, coefficients), expected)
    on_device = jax.jit(jax.vmap(lambda row: hash_bytes(row, coefficients)))(jnp.asarray(rows))
    np.testing.assert_array_equal(on_device, expected)


def test_hashes_ignore_padding_and_differ_by_seed():
    rows, coefficients = to_bytes(["tea", "coffee"], 6), hash_coefficients(2, 9, seed=1)
    padded = fitted(rows, 9)
    np.testing.assert_array_equal(hash_bytes(rows, coefficients), hash_bytes(padded, coefficients))
    assert (hash_bytes(padded, hash_coefficients(2, 9, seed=2)) != hash_bytes(padded, coefficients)).all()
    assert fitted(jnp.asarray(rows), 3).shape == (2, 3)
    with pytest.raises(TypeError, match="uint8"):
        fitted(np.zeros(3, np.int32), 3)


def test_hashes_spread_similar_strings_as_random_ones_are():
    rows = to_bytes([f"word{k}" for k in range(20_000)], 10)
    hashes = hash_bytes(rows, hash_coefficients(4, 10, seed=0))
    for of_function in hashes.T:
        assert len(np.unique(of_function)) >= len(rows) - 2
        for part in (of_function % 1024, of_function >> 22):
            counts = np.bincount(part, minlength=1024)
            chi_square = ((counts - len(rows) / 1024) ** 2).sum() / (len(rows) / 1024)
            assert abs(chi_square - 1023) < 5 * (2 * 1023) ** 0.5
    # Control: that is a test which the last bytes alone do not pass.
    counts = np.bincount(rows[:, 7].astype(int) * 4, minlength=1024)
    assert ((counts - len(rows) / 1024) ** 2).sum() / (len(rows) / 1024) > 10_000
