"""Frequent strings in one pass: against a count of all words, and nothing where there is none."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import fedjx
from fedjx.analytics import ask, heavy_hitters, to_bytes
from fedjx.analytics.heavy_hitters import _Sketch
from fedjx.analytics.question import Total
from fedjx.analytics.records import Records
from fedjx.analytics.sums import asking, entries, plain, secure
from fedjx.analytics.text import hash_bytes
from fedjx.core.language.values import Sequence
from fedjx.data.sampling import uniform_sampler
from tests.analytics.strings import (
    NUM_BYTES,
    clients,
    most_common,
    precision_and_recall,
    python_words,
    random_words,
    zipf_words,
)

SMALL = {"num_bytes": NUM_BYTES, "max_hitters": 400, "width": 1 << 13}


def test_of_few_strings_are_exact_and_the_same_in_secure_sums():
    data, counts = zipf_words(2000)
    question = heavy_hitters("word", min_count=2, **SMALL)
    shown = ask(question, data)
    assert shown.value == most_common(counts, 2)
    assert set(shown.stddev.values()) == {0.0}
    hidden = ask(question, data, trust="secure")
    assert hidden.value == shown.value
    assert hidden.bits >= 32 * question.num_bins
    asked = asking(question, None, divides=True)
    arguments = jax.random.key(0), (), Records(data, ["word"])
    fedjx.check_secure(secure(asked, None), *arguments)
    with pytest.raises(ValueError, match=r"federated_sum"):
        fedjx.check_secure(plain(asked, False), *arguments)


def test_count_clients_once_and_cut_strings():
    data = clients([["tea", "tea", "teapot", "milk", ""], ["tea", "milk", "milk"], ["tea"]])
    by_record = heavy_hitters("word", num_bytes=3, min_count=2, max_hitters=8, width=64)
    assert ask(by_record, data).value == {"tea": 5, "mil": 3}
    assert ask(heavy_hitters("word", num_bytes=1, min_count=2, max_hitters=8, width=64), data).value == {"t": 5, "m": 3}
    by_client = heavy_hitters("word", num_bytes=3, min_count=2, max_hitters=8, width=64, distinct=True)
    assert ask(by_client, data).value == {"tea": 3, "mil": 2}


def simulated(sketch: _Sketch, strings: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the table of strings with such counts, by NumPy."""
    table = np.zeros((sketch.num_rows, sketch.width))
    bins = hash_bytes(strings, sketch.coefficients()) % np.uint32(sketch.width)
    np.add.at(table, (np.arange(sketch.num_rows)[None], bins), counts[:, None])
    return table


@pytest.mark.parametrize("noise", [0.0, 30.0])
def test_errors_are_of_the_stated_size(noise: float):
    words = [f"{k * 7919 % 30011}w" for k in range(10_000)]
    strings, counts = to_bytes(words, NUM_BYTES), np.floor(50_000 / np.arange(1, 10_001))
    scores, found, rng = [], [], np.random.default_rng(0)
    for seed in range(8):
        question = heavy_hitters("word", num_bytes=NUM_BYTES, max_hitters=300, width=1 << 12, seed=seed)
        table = simulated(question.entry, strings, counts)  # type: ignore[arg-type]
        table = (table + noise * rng.normal(size=table.shape)).reshape(-1, 1)
        value, stddev = question.estimate(Total(table, np.full(table.shape, noise**2)))
        true = dict(zip(words, counts, strict=True))
        scores += [(value[word] - true.get(word, 0)) / stddev[word] for word in value]
        found.append(precision_and_recall(value, words[:100]))
    assert 0.85 < np.std(scores) < 1.15
    assert abs(np.mean(scores)) < 0.1
    _, recall = np.mean(found, axis=0)
    assert recall > 0.99  # of the 100 that are frequent; it shows more of them


def test_of_words_of_python_finds_those_that_are_frequent():
    data, counts = python_words()
    question = heavy_hitters("word", distinct=True, min_count=200, num_bytes=NUM_BYTES, max_hitters=400, width=1 << 15)
    how = {"trust": "central_dp", "epsilon": 4.0, "delta": 1e-3, "max_records": 256, "key": jax.random.key(0)}
    for private, least in (({}, 0.95), (how, 0.8)):
        precision, recall = precision_and_recall(ask(question, data, **private).value, most_common(counts, 200))
        assert precision > least
        assert recall > least


@pytest.mark.parametrize(("epsilon", "least"), [(1.0, 0.85), (4.0, 0.95), (None, 0.95)])
def test_of_few_words_of_each_client_finds_those_that_are_frequent(epsilon: float | None, least: float):
    data, counts = python_words(32)
    question = heavy_hitters("word", distinct=True, min_count=500, num_bytes=NUM_BYTES, max_hitters=400, width=1 << 15)
    how = {"trust": "central_dp", "epsilon": epsilon, "delta": 1e-6, "max_records": 32, "key": jax.random.key(1)}
    answer = ask(question, data, **(how if epsilon else {}))
    precision, recall = precision_and_recall(answer.value, most_common(counts, 500))
    assert precision > least
    assert recall > least
    assert answer.epsilon(1e-6) <= (epsilon or np.inf)
    scores = [(answer.value[word] - counts[word]) / answer.stddev[word] for word in answer.value]
    assert 0.8 < np.std(scores) < 1.25
    assert abs(np.mean(scores)) < 0.3


@pytest.mark.parametrize("trust", ["central_dp", "distributed_dp"])
def test_of_random_strings_finds_none_unless_there_is_no_threshold(trust):
    data = random_words(300)
    how = {"trust": trust, "epsilon": 4.0, "delta": 1e-4, "max_records": 1, "key": jax.random.key(0)}
    small = {"num_bytes": 3, "max_hitters": 16, "width": 64}
    assert ask(heavy_hitters("word", min_count=0, **small), data, **how).value == {}
    assert len(ask(heavy_hitters("word", min_count=0, num_stddevs=0, **small), data, **how).value) > 0


def test_of_a_sample_estimates_all_clients_within_its_errors():
    data, counts = zipf_words(4000)
    scores = []
    for round in range(6):
        sampler = uniform_sampler(data.num_clients, 1000, seed=round)
        answer = ask(heavy_hitters("word", min_count=100, **SMALL), data, sampler=sampler, max_records=4)
        scores += [(answer.value[word] - counts[word]) / answer.stddev[word] for word in list(answer.value)[:20]]
    assert 0.3 < np.std(scores) < 1.2  # a client's four records may be the same, and seldom are


def change(question: fedjx.analytics.Question, strings: list[str], max_records: int) -> np.ndarray:
    """Returns what a client of four records adds to the table."""
    records = Sequence({"word": to_bytes(strings, NUM_BYTES)}, np.int32(len(strings)))
    found = entries(asking(question, max_records, divides=True), (), jax.random.key(0), records)
    return np.asarray(found.table(question.num_bins).counts, np.float64)


def test_change_the_table_by_no_more_than_the_sensitivity():
    for distinct in (False, True):
        question = heavy_hitters("word", distinct=distinct, **SMALL)
        sensitivity = question.sensitivity(3, distinct)
        for strings in (["same"] * 4, ["samea", "sameb", "samec", "samed"], ["a", "b", "c", "d"]):
            table = change(question, strings, 3)
            assert table.sum() <= sensitivity.l1
            assert np.linalg.norm(table) <= sensitivity.l2 * (1 + 1e-9)
    repeated = change(heavy_hitters("word", **SMALL), ["same"] * 4, 3)
    assert np.linalg.norm(repeated) == pytest.approx(3 * (3 * NUM_BYTES) ** 0.5)
    # Control: without the bound of one in each counter these are more than distinct strings are said to be.
    assert np.linalg.norm(change(heavy_hitters("word", **SMALL), ["samea", "sameb", "samec", "a"], 3)) > sensitivity.l2


def test_refuses():
    data = clients([["tea"], ["tea"]])
    with pytest.raises(ValueError, match="Use prefix_tree"):
        ask(heavy_hitters("word", **SMALL), data, trust="local_dp", epsilon=1.0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="width must be"):
        heavy_hitters("word", num_bytes=3, max_hitters=100, width=128)
