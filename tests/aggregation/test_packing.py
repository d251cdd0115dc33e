"""Codes come back from packed words, and words are as few as can be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.aggregation.packing import num_words, pack, unpack


@pytest.mark.parametrize("word_bits", [32, 28])
@pytest.mark.parametrize("bits", range(1, 17))
def test_packing_round_trips_for_every_width(bits, word_bits):
    random = np.random.default_rng(bits)
    for size in (1, int(random.integers(100, 300))):
        codes = random.integers(2**bits, size=size)

        @jax.jit
        def packed_and_unpacked(codes):
            words = pack(codes, bits, word_bits=word_bits)
            return words, unpack(words, bits, len(codes), word_bits=word_bits)

        words, found = packed_and_unpacked(codes)
        assert words.dtype == jnp.uint32
        assert len(words) == num_words(size, bits, word_bits=word_bits) == int(np.ceil(bits * size / word_bits))
        assert int(words.max()) < 2**word_bits
        np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("bits", [17, 23, 31, 32])
def test_positions_of_many_bits_round_trip(bits):
    codes = np.random.default_rng(0).integers(2**bits, size=77, dtype=np.uint32)
    np.testing.assert_array_equal(unpack(pack(jnp.asarray(codes), bits), bits, 77), codes)


def test_words_hold_all_bits():
    ones = pack(jnp.full(64, 7), 3)
    np.testing.assert_array_equal(ones, np.full(6, 2**32 - 1, np.uint32))


@pytest.mark.parametrize(("bits", "word_bits"), [(0, 32), (33, 32), (8, 33), (16, 8)])
def test_a_code_must_fit(bits, word_bits):
    with pytest.raises(ValueError, match="fits into a word; got"):
        pack(jnp.zeros(4), bits, word_bits=word_bits)
