"""Frequent strings round by round: exact counts of what is frequent, and which words are found privately."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import fedjx
from fedjx.analytics import ask, prefix_tree
from fedjx.analytics.records import Records
from fedjx.analytics.sums import asking, plain, secure
from tests.analytics.strings import (
    NUM_BYTES,
    clients,
    most_common,
    precision_and_recall,
    python_words,
    random_words,
    zipf_words,
)


@pytest.mark.parametrize("bits", [2, 8])
def test_counts_what_is_frequent_exactly(bits: int):
    data, counts = zipf_words(2000)
    question = prefix_tree("word", num_bytes=NUM_BYTES, max_candidates=200, min_count=20, bits=bits)
    shown = ask(question, data)
    assert shown.value == most_common(counts, 20)
    assert list(shown.value.values()) == sorted(shown.value.values(), reverse=True)
    assert set(shown.stddev.values()) == {0.0}
    assert shown.num_rounds == 8 * NUM_BYTES // bits
    assert ask(question, data, trust="secure").value == shown.value


def test_every_round_is_secure():
    data, _ = zipf_words(50)
    dialogue = prefix_tree("word", num_bytes=NUM_BYTES, max_candidates=4)
    question = dialogue.question(dialogue.first, 0)
    asked, arguments = asking(question, None, divides=True), (jax.random.key(0), question.told, Records(data, ["word"]))
    fedjx.check_secure(secure(asked, None), *arguments)
    with pytest.raises(ValueError, match=r"federated_sum"):
        fedjx.check_secure(plain(asked, False), *arguments)


def test_keeps_the_most_frequent_prefixes_counts_clients_once_and_cuts_strings():
    data = clients([["tea", "tea", "teapot", "milk", ""], ["tea", "milk", "milk"], ["tea", "café"]])
    assert ask(prefix_tree("word", num_bytes=3, min_count=1, max_candidates=1), data).value == {"tea": 5}
    both = ask(prefix_tree("word", num_bytes=3, min_count=2, max_candidates=9, distinct=True), data).value
    assert both == {"tea": 3, "mil": 2}
    assert ask(prefix_tree("word", num_bytes=5, min_count=1, max_candidates=9), data).value["café"] == 1


def test_asks_on_when_nothing_is_left():
    data = clients([["a"], ["b"], ["c"]])
    assert ask(prefix_tree("word", num_bytes=3, min_count=2), data, trust="secure").value == {}
    assert ask(prefix_tree("word", num_bytes=3, min_count=1), data, trust="secure").value == {"a": 1, "b": 1, "c": 1}


def test_goes_on_where_it_was_interrupted(tmp_path):
    data, _ = zipf_words(300)
    dialogue = prefix_tree("word", num_bytes=NUM_BYTES, max_candidates=64, min_count=5)
    how = {"trust": "central_dp", "epsilon": 20.0, "delta": 1e-4, "max_records": 2, "key": jax.random.key(3)}

    def interrupted(state, round, total):
        if round == 3:
            raise KeyboardInterrupt
        return dialogue.update(state, round, total)

    with pytest.raises(KeyboardInterrupt):
        ask(dialogue._replace(update=interrupted), data, path=tmp_path / "tree", **how)
    resumed, whole = ask(dialogue, data, path=tmp_path / "tree", **how), ask(dialogue, data, **how)
    assert len(whole.value) > 3
    assert resumed.value == whole.value
    assert resumed.stddev == whole.stddev


@pytest.mark.parametrize(("epsilon", "precision", "recall"), [(1.0, 0.9, 0.85), (4.0, 0.95, 0.93), (None, 1.0, 1.0)])
def test_of_few_words_of_each_client_finds_those_that_are_frequent(epsilon, precision: float, recall: float):
    data, counts = python_words(32)
    question = prefix_tree("word", num_bytes=NUM_BYTES, distinct=True, min_count=500, max_candidates=512)
    private = {"epsilon": epsilon, "delta": 1e-6, "max_records": 32, "trust": "central_dp", "key": jax.random.key(2)}
    answer = ask(question, data, **(private if epsilon else {}))
    found = precision_and_recall(answer.value, most_common(counts, 500))
    assert found[0] >= precision
    assert found[1] >= recall
    if epsilon:
        assert answer.epsilon(1e-6) <= epsilon


def test_of_modules_of_python_finds_frequent_words():
    data, counts = python_words()
    question = prefix_tree("word", num_bytes=NUM_BYTES, distinct=True, min_count=200, max_candidates=512)
    assert ask(question, data).value == most_common(counts, 200)
    how = {"delta": 1e-3, "max_records": 256, "trust": "central_dp", "key": jax.random.key(0)}
    precision, recall = precision_and_recall(ask(question, data, epsilon=4.0, **how).value, most_common(counts, 200))
    assert precision > 0.85
    assert recall > 0.75


def test_of_random_strings_finds_none_unless_there_is_no_threshold():
    data = random_words(300)
    how = {"trust": "central_dp", "epsilon": 4.0, "delta": 1e-4, "max_records": 1, "key": jax.random.key(0)}
    small = {"num_bytes": 3, "max_candidates": 16, "min_count": 0}
    assert ask(prefix_tree("word", **small), data, **how).value == {}
    assert len(ask(prefix_tree("word", num_stddevs=0, **small), data, **how).value) > 3


def test_of_local_reports_estimates_all_clients():
    words = np.repeat(["no", "ja", "oui", "yes"], [8000, 6000, 4000, 2000]).tolist()
    data = clients([[word] for word in words], 2)
    question = prefix_tree("word", num_bytes=2, max_candidates=8, bits=4)
    answer = ask(question, data, trust="local_dp", epsilon=4.0, key=jax.random.key(5))
    assert list(answer.value)[:3] == ["no", "ja", "ou"]
    for word, count in (("no", 8000), ("ja", 6000), ("ou", 4000)):
        assert abs(answer.value[word] - count) < 4 * answer.stddev[word] < count / 3
    assert answer.num_answered == len(words)


def test_refuses():
    with pytest.raises(ValueError, match="bits must be"):
        prefix_tree("word", num_bytes=3, bits=3)
