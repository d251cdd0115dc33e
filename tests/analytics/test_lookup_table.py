"""Invertible Bloom lookup tables: all strings exactly up to capacity, and an account of what is not decoded above."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import fedjx
from fedjx.analytics import ask, lookup_table
from fedjx.analytics.lookup_table import _decoded, cells
from fedjx.analytics.records import Records
from fedjx.analytics.sums import asking, plain, secure
from fedjx.analytics.text import from_bytes, to_bytes
from fedjx.data.sampling import uniform_sampler
from tests.analytics.strings import NUM_BYTES, clients, most_common, zipf_words


@pytest.mark.parametrize(("num_hashes", "expected"), [(3, 458), (4, 366), (5, 323), (6, 297)])
def test_has_as_many_cells_as_stated(num_hashes: int, expected: int):
    assert cells(1000, num_hashes) == expected


@pytest.mark.parametrize("num_hashes", [3, 5])
def test_counts_all_strings_exactly_in_secure_sums(num_hashes: int):
    data, counts = zipf_words(1500)
    question = lookup_table("word", num_bytes=NUM_BYTES, capacity=300, min_count=1, num_hashes=num_hashes)
    shown = ask(question, data)
    assert shown.value == (most_common(counts, 1), 0)
    hidden = ask(question, data, trust="secure")
    assert hidden.value == shown.value
    assert hidden.bits >= 32 * question.num_bins * (NUM_BYTES // 2 + 2)
    asked, arguments = asking(question, None, divides=True), (jax.random.key(0), (), Records(data, ["word"]))
    fedjx.check_secure(secure(asked, None), *arguments)
    with pytest.raises(ValueError, match=r"federated_sum"):
        fedjx.check_secure(plain(asked, False), *arguments)


def test_shows_what_enough_have_and_counts_clients_once():
    data = clients([["tea", "tea", "milk", ""], ["tea", "milk", "milk"], ["tea", "rare"]], 7)
    question = lookup_table("word", num_bytes=7, capacity=10, min_count=3)
    assert ask(question, data, trust="secure").value.counts == {"tea": 4, "milk": 3}
    question = lookup_table("word", num_bytes=7, capacity=10, min_count=2, distinct=True)
    assert ask(question, data, trust="secure").value.counts == {"tea": 3, "milk": 2}


def simulated(words: list[str], counts: np.ndarray, capacity: int) -> tuple[fedjx.analytics.Question, np.ndarray]:
    """Returns a question and its table of strings with such counts, by NumPy, modulo 2^32."""
    question = lookup_table("word", num_bytes=9, capacity=capacity, min_count=0)
    strings = to_bytes(words, 9)
    places, checksum = question.entry.hashed(strings)  # type: ignore[attr-defined]
    padded = np.pad(strings, [(0, 0), (0, 1)]).astype(np.uint64)
    values = np.concatenate([padded[:, 0::2] * 256 + padded[:, 1::2], checksum, np.ones((len(words), 1), np.uint64)], 1)
    table = np.zeros((question.num_bins, values.shape[1]), np.uint64)
    np.add.at(table, places.reshape(-1), np.repeat(values * counts[:, None].astype(np.uint64), places.shape[1], axis=0))
    return question, (table % 2**32).astype(np.float64)


def test_is_exact_of_large_and_even_counts():
    words = [f"éword{k}"[:8] for k in range(500)]
    counts = np.random.default_rng(0).integers(1, 1 << 31, 500) >> np.arange(500) % 31
    counts = np.maximum(counts, 1)
    counts[:16] = 1 << np.arange(16)
    question, table = simulated(words, counts, 500)
    table_of = question.entry
    decoded = _decoded(table_of, table, 0)  # type: ignore[arg-type]
    assert decoded.num_undecoded == 0
    assert decoded.counts == dict(zip(from_bytes(to_bytes(words, 9)), counts.tolist(), strict=True))


@pytest.mark.parametrize(("num_strings", "all_decoded"), [(1000, True), (1500, False)])
def test_says_how_much_is_not_decoded(num_strings: int, all_decoded: bool):
    words, counts = [f"{k}" for k in range(num_strings)], np.arange(num_strings) % 5 + 1
    question, table = simulated(words, counts, 1000)
    decoded = _decoded(question.entry, table, 0)  # type: ignore[arg-type]
    assert all(counts[int(word)] == count for word, count in decoded.counts.items())
    assert decoded.num_undecoded == counts.sum() - sum(decoded.counts.values())
    assert (decoded.num_undecoded == 0) == all_decoded


def test_refuses():
    data, _ = zipf_words(40)
    question = lookup_table("word", num_bytes=NUM_BYTES, capacity=300)
    for trust in ("central_dp", "distributed_dp", "local_dp", "shuffled_dp"):
        with pytest.raises(ValueError, match="exact sums"):
            ask(question, data, trust=trust, epsilon=1.0, delta=1e-3, max_records=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="Pass clients="):
        ask(question, data, sampler=uniform_sampler(40, 30, seed=0))
