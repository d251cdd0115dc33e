"""What questions are in each other's company: by group, in secure sums, in dialogues, in samples."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.analytics.ask import ask
from fedjx.analytics.by_group import by_group
from fedjx.analytics.count import count
from fedjx.analytics.heavy_hitters import heavy_hitters
from fedjx.analytics.hierarchy import hierarchical_histogram
from fedjx.analytics.histogram import histogram
from fedjx.analytics.ledger import Ledger
from fedjx.analytics.lookup_table import lookup_table
from fedjx.analytics.mean import mean
from fedjx.analytics.prefix_tree import prefix_tree
from fedjx.analytics.quantile import quantile_by_bisection, quantile_online
from fedjx.analytics.question import Question
from fedjx.analytics.sums import asking, entries
from fedjx.analytics.text import to_bytes
from fedjx.analytics.top_k import top_k
from fedjx.analytics.total import total
from fedjx.core.language.values import Sequence
from fedjx.data import FederatedData, uniform_sampler

KEY = jax.random.key(7)
NOISE: dict[str, Any] = {"trust": "central_dp", "epsilon": 1.0, "max_records": 1}


def tea_in_two_groups(question: Question) -> Any:
    clients = [{"word": to_bytes(["tea", "tea", "tea"], 4), "group": [0, 1, 1]} for _ in range(20)]
    return ask(by_group(question, "group", num_groups=2), FederatedData.from_clients(clients)).value


def test_by_group_a_client_has_distinct_leaves_in_each():
    leaves = {"x": jnp.array([0, 1] * 5), "g": jnp.arange(10) // 2}
    for max_records in (1, 3, 10):
        tree = by_group(hierarchical_histogram("x", bins=2, distinct=True), "g", num_groups=5)
        told = jax.tree.map(jnp.asarray, tree.told)
        made = entries(asking(tree, max_records, divides=True), told, KEY, Sequence(leaves, jnp.int32(10)))
        table = np.asarray(made.table(tree.num_bins).counts)
        assert tuple(tree.sensitivity(max_records, True)) == (table.sum(), np.sqrt(max_records))
        assert tree.sensitivity(max_records, True).l2 == np.linalg.norm(table)


@pytest.mark.parametrize("max_records", [None, 4])
def test_of_distinct_leaves_a_node_is_the_sum(max_records):
    data = FederatedData.from_clients([{"x": [0, 1, 2, 2]}] * 10)
    question = hierarchical_histogram("x", bins=8, distinct=True)
    levels = ask(question, data, trust="secure", max_records=max_records).value.levels
    for below, above in itertools.pairwise(levels):
        np.testing.assert_array_equal(below.reshape(-1, 2).sum(1), above)
    assert levels[-1].tolist() == [30, 0]


def test_by_group_strings_are_counted_in_each():
    sketch: dict[str, Any] = {"num_bytes": 4, "max_hitters": 10, "width": 64}
    for question in (heavy_hitters("word", **sketch), top_k("word", 1, **sketch)):
        assert tea_in_two_groups(question) == ({"tea": 20.0}, {"tea": 40.0})
        assert tea_in_two_groups(question._replace(distinct=True)) == ({"tea": 20.0}, {"tea": 20.0})
    found = tea_in_two_groups(lookup_table("word", num_bytes=4, capacity=10, distinct=True))
    assert [one.counts for one in found] == [{"tea": 20.0}, {"tea": 20.0}]


def test_a_table_of_distinct_strings_has_all_and_records_are_drawn():
    words = [f"w{k}" for k in range(60)]
    data = FederatedData.from_clients([{"word": to_bytes(words, 4)}] * 10)
    question = lookup_table("word", num_bytes=4, capacity=60, distinct=True, min_count=1)
    assert ask(question, data, trust="secure").value.counts == dict.fromkeys(sorted(words), 10.0)
    drawn = ask(question, data, trust="secure", max_records=1).value.counts
    assert sum(drawn.values()) == 10
    assert len(drawn) > 3


@pytest.mark.parametrize(("num_clients", "size"), [(1, 3), (3, 7), (100, 30)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_secure_sums_of_bins_do_not_wrap_around(num_clients, size, sign):
    data = FederatedData.from_clients([{"x": [float(sign)] * size, "g": [1] * size}] * num_clients)
    question = by_group(total("x", low=-1, high=1), "g", num_groups=2)
    for seed in range(5):
        found = ask(question, data, trust="secure", min_clients=1, key=jax.random.key(seed)).value
        np.testing.assert_allclose(found, [0, sign * num_clients * size], rtol=1e-6)


def test_of_a_sample_of_local_reports_nothing_depends_on_how_many_records_one_has():
    how: dict[str, Any] = {"trust": "local_dp", "epsilon": 4.0, "sampler": uniform_sampler(200, 100, seed=0)}
    for question in (histogram("x", bins=3), mean("x", low=0, high=2)):
        few, many = (
            ask(question, FederatedData.from_clients([*[{"x": [k % 3]} for k in range(199)], last]), key=KEY, **how)
            for last in ({"x": [0]}, {"x": [0] * 50})
        )
        np.testing.assert_allclose(few.stddev, many.stddev, rtol=1e-3)


def test_no_question_has_the_noise_of_a_dialogue_by_its_key():
    data, ledger = FederatedData.from_clients([{"x": [k % 2]} for k in range(200)]), Ledger(epsilon=9, delta=1e-5)
    seen = []

    def remembered(state: Any, round: int, found: Any) -> Any:
        seen.append(found.table[:, 0])
        return state

    dialogue = quantile_by_bisection("x", 0.5, low=0, high=1, num_rounds=1)._replace(update=remembered)
    ask(dialogue, data, key=KEY, ledger=ledger, **NOISE)
    for number in range(20):
        key = jax.random.fold_in(KEY, number)
        seen.append(ask(histogram("x", bins=2), data, key=key, **NOISE).value)
    noise = np.array(seen) - 100
    assert len(np.unique(noise[:, 0].round(4))) == len(seen)


OTHERS = {
    "share": [quantile_by_bisection("x", q, low=0, high=2, num_rounds=2) for q in (0.1, 0.9)],
    "rate": [quantile_online("x", 0.5, initial=1, num_rounds=2, learning_rate=rate) for rate in (0.1, 0.2)],
    "least": [prefix_tree("word", num_bytes=2, max_candidates=4, min_count=least) for least in (1, 2)],
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_dialogue_does_not_go_on(name, tmp_path):
    clients = [{"x": [float(k % 3)], "word": to_bytes(["ab"], 2)} for k in range(30)]
    one, other = OTHERS[name]
    data = FederatedData.from_clients(clients)
    value = ask(one, data, path=tmp_path / "dialogue.npz").value
    assert ask(one, data, path=tmp_path / "dialogue.npz").value == value
    with pytest.raises(ValueError, match="goes on as it began"):
        ask(other, data, path=tmp_path / "dialogue.npz")


def test_what_is_no_argument_is_refused():
    with pytest.raises(TypeError, match="got 'min_client'"):
        ask(count(), FederatedData.from_clients([{"x": [1]}]), trust="secure", min_client=5)  # type: ignore[call-arg]
