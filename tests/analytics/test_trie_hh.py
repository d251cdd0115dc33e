"""TrieHH: its parameters, what it finds, and that rare strings stay where they are."""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import pytest

from fedjx.analytics import Answer, Ledger, trie_hh
from fedjx.analytics.trie_hh import votes
from fedjx.privacy import BudgetSpent
from tests.analytics.strings import clients, most_common, random_words, zipf_words


@pytest.mark.parametrize(
    ("num_clients", "delta", "threshold", "sample"),
    [(100_000, 1 / 3e5, 9, 3663), (342_477, 342_477**-1.1, 10, 11_290)],
)
def test_parameters_are_those_of_the_paper(num_clients: int, delta: float, threshold: int, sample: int):
    assert votes(num_clients=num_clients, num_rounds=10, epsilon=4, delta=delta) == (threshold, sample)


def test_threshold_grows_with_epsilon_too():
    assert votes(num_clients=10_000, num_rounds=1, epsilon=3, delta=1e-3).threshold == 20  # e^3 - 1 = 19.1


def found(trust, key: int = 0, num_clients: int = 6000):
    data, counts = zipf_words(num_clients)
    answer = trie_hh(data, "word", num_bytes=7, epsilon=4, delta=1e-4, key=jax.random.key(key), trust=trust)
    return answer, counts


def test_finds_the_most_frequent_strings_and_costs_what_it_says():
    answer, counts = found("secure")
    assert answer.value == sorted(answer.value)
    assert {"w0x0", "w37x1"} <= set(answer.value) <= set(most_common(counts, 100))
    assert answer.stddev is None
    assert answer.epsilon(1e-4) == pytest.approx(4, abs=1e-6)
    assert found("plain")[0].value == answer.value
    assert set(found("secure", key=1)[0].value) & set(answer.value)


def test_does_not_find_rare_strings():
    answer = trie_hh(random_words(6000), "word", num_bytes=8, epsilon=4, delta=1e-4, key=jax.random.key(0))
    assert answer.value == []


def test_each_prefix_that_stays_has_as_many_votes_as_are_needed():
    # All strings are the same but for one byte, after which they are known by fewer than a threshold each.
    words = [[f"a{k % 400:03}"] for k in range(4000)]
    answer = trie_hh(clients(words), "word", num_bytes=4, epsilon=4, delta=1e-3, key=jax.random.key(0))
    assert answer.value == []
    shorter = trie_hh(clients(words, 1), "word", num_bytes=1, epsilon=1, delta=1e-3, key=jax.random.key(0))
    assert shorter.value == ["a"]


def test_is_paid_and_refused():
    data, _ = zipf_words(3000)
    how = {"num_bytes": 4, "delta": 1e-4, "key": jax.random.key(0)}
    ledger = Ledger(epsilon=5.0, delta=2e-4, relation="zero_out_one")
    trie_hh(data, "word", epsilon=3, ledger=ledger, **how)
    with pytest.raises(BudgetSpent):
        trie_hh(data, "word", epsilon=3, ledger=ledger, **{**how, "key": jax.random.key(1)})
    with pytest.raises(ValueError, match="trust must be"):
        trie_hh(data, "word", epsilon=3, trust="central_dp", **how)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs 7 votes"):
        trie_hh(clients([["a"]] * 20), "word", epsilon=0.1, **{**how, "delta": 1e-3})


def test_of_every_round_others_vote_and_a_threshold_of_votes_is_needed(monkeypatch):
    threshold, sample = votes(num_clients=3000, num_rounds=2, epsilon=4, delta=1e-3)
    voters: list[np.ndarray] = []

    def voted(question: Any, data: Any, **how: Any) -> Any:
        voters.append(how["clients"])
        counts = np.zeros(256 * 300)
        if len(voters) == 1:
            counts[[ord("a"), ord("b"), ord("c")]] = threshold, threshold - 1, threshold + 1
        else:  # of each prefix
            counts[ord("x") :: 256], counts[ord("y") :: 256] = threshold, threshold - 1
        return Answer(counts, None, sample, None, 1, "", "plain")

    monkeypatch.setattr(sys.modules[votes.__module__], "ask", voted)
    data = clients([["aa"]] * 3000, 2)
    answer = trie_hh(data, "word", num_bytes=2, epsilon=4, delta=1e-3, key=jax.random.key(0))
    assert answer.value == ["ax", "cx"]
    assert [len(np.unique(of_round)) for of_round in voters] == [sample, sample]
    assert not np.array_equal(*voters)


def test_of_no_strings_finds_none_and_pays_with_a_key_once():
    ledger, key = Ledger(epsilon=9.0, delta=1e-2), jax.random.key(0)
    how: Any = {"num_bytes": 1, "epsilon": 2, "delta": 1e-3, "key": key, "ledger": ledger}
    assert trie_hh(clients([[""]] * 500, 1), "word", **how).value == []
    with pytest.raises(ValueError, match="key"):
        trie_hh(clients([["a"]] * 500, 1), "word", **how)
