"""Questions by group: each answer is that of the group's records alone, and hidden groups send nothing."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from fedjx.analytics import (
    Question,
    ask,
    by_group,
    count,
    hierarchical_histogram,
    histogram,
    large_groups,
    maximum,
    mean,
    median,
    total,
    variance,
)
from fedjx.data import FederatedData, uniform_sampler

GROUPS = 4


def clients(number: int, seed: int = 0, most: int = 9) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, most, number)
    return [
        {
            "x": rng.normal(50, 20, n).astype(np.float32),
            "g": rng.choice([0, 1, 3, 7, -1], n),
            "k": rng.integers(0, 5, n),
        }
        for n in sizes
    ]


ROWS = clients(60)
DATA = FederatedData.from_clients(ROWS)
QUESTIONS: dict[str, Question] = {
    "mean": mean("x", low=0, high=100),
    "total": total("x", low=0, high=100),
    "variance": variance("x", low=0, high=100),
    "count": count(),
    "clients": count(clients=True),
    "histogram": histogram("k", bins=5),
    "median": median("x", low=0, high=100, num_bins=50),
    "maximum": maximum("x", low=0, high=100, num_bins=101),
    "of_the_key": histogram("g", bins=[-0.5, 0.5, 3.5]),
}


# Of the group's records alone, those that there are: see `of_group`.
COUNTS = {
    name: count("k", where=lambda record: record["k"] >= 0, clients=name == "clients") for name in ("count", "clients")
}


def of_group(group: int) -> FederatedData:
    """Returns the group's records; one of another group, which is in none of the bins, if there are none."""
    rows = [{name: x[row["g"] == group] for name, x in row.items()} for row in ROWS]
    rows.append({"x": np.array([np.nan], np.float32), "g": np.array([-1]), "k": np.array([-1])})
    return FederatedData.from_clients(rows)


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_answer_is_that_of_the_group(name: str):
    answer = ask(by_group(QUESTIONS[name], "g", num_groups=GROUPS), DATA)
    for group in range(GROUPS):
        alone = ask(COUNTS.get(name, QUESTIONS[name]), of_group(group))
        np.testing.assert_allclose(answer.value[group], alone.value, rtol=1e-5)
        if alone.stddev is not None:
            np.testing.assert_array_equal(answer.stddev[group], alone.stddev)
    assert answer.value.shape == (GROUPS, *np.shape(alone.value))


def test_of_a_hierarchy_each_group_has_one():
    question = hierarchical_histogram("k", bins=5)
    value = ask(by_group(question, "g", num_groups=GROUPS, shown=[True, True, True, False]), DATA).value
    assert value[3] is None
    for group in range(3):
        alone = ask(question, of_group(group)).value
        np.testing.assert_allclose(value[group].histogram().value, alone.histogram().value, atol=1e-9)


def test_secure_counts_are_the_same_and_means_near():
    for name, tolerance in (("histogram", 0), ("clients", 0), ("mean", 1e-4)):
        question = by_group(QUESTIONS[name], "g", num_groups=GROUPS)
        secure, plain = ask(question, DATA, trust="secure"), ask(question, DATA)
        np.testing.assert_allclose(secure.value, plain.value, rtol=tolerance)


def test_noise_is_that_of_the_question_over_all():
    how = dict(trust="central_dp", epsilon=1.0, delta=1e-5, max_records=3)
    key = jax.random.key(0)
    whole = ask(QUESTIONS["histogram"], DATA, key=key, **how)
    grouped = by_group(QUESTIONS["histogram"], "g", num_groups=GROUPS)
    answers = [ask(grouped, DATA, key=jax.random.fold_in(key, k), **how) for k in range(150)]
    np.testing.assert_allclose(answers[0].stddev, np.broadcast_to(whole.stddev[0], (GROUPS, 5)))
    values = np.array([answer.value for answer in answers])
    bounded = np.mean([ask(grouped, DATA, key=jax.random.key(k), max_records=3).value for k in range(50)], axis=0)
    scores = (values - bounded) / whole.stddev[0]
    # Which records of a client are drawn adds a little to the noise.
    assert 0.9 < scores.std() < 1.2
    assert np.abs(scores.mean(axis=0)).max() < 4.5 / 150**0.5
    assert np.abs((values - 2 * bounded).mean(axis=0) / whole.stddev[0]).max() > 4.5 / 150**0.5


def test_of_a_sample_errors_are_those_of_the_group():
    sampler = uniform_sampler(60, 20, seed=0)
    answer = ask(by_group(QUESTIONS["mean"], "g", num_groups=2), DATA, sampler=sampler)
    for group in range(2):
        rows = [{name: x[row["g"] == group] for name, x in row.items()} for row in ROWS]
        alone = ask(QUESTIONS["mean"], FederatedData.from_clients(rows), sampler=sampler)
        np.testing.assert_allclose(answer.value[group], alone.value, rtol=1e-5)
        np.testing.assert_allclose(answer.stddev[group], alone.stddev, rtol=1e-3)
        assert alone.stddev > 0


def test_hidden_groups_are_no_numbers_and_send_nothing():
    shown = np.array([True, False, False, True])
    question = by_group(QUESTIONS["histogram"], "g", num_groups=GROUPS, shown=shown)
    answer, whole = ask(question, DATA), ask(by_group(QUESTIONS["histogram"], "g", num_groups=GROUPS), DATA)
    np.testing.assert_array_equal(answer.value[shown], whole.value[shown])
    assert np.isnan(answer.value[~shown]).all()
    assert np.isnan(answer.stddev[~shown]).all()
    sent = ask(question._replace(estimate=lambda sums: (sums.table.reshape(GROUPS, 5), None)), DATA).value
    assert sent[1].sum() == 0
    assert whole.value[1].sum() > 0
    assert answer.num_answered == sum(np.isin(row["g"], [0, 3]).any() for row in ROWS)


def test_large_groups_have_so_many_clients():
    of_each = np.array([sum((row["g"] == group).any() for row in ROWS) for group in range(GROUPS)])
    records = np.array([sum((row["g"] == group).sum() for row in ROWS) for group in range(GROUPS)])
    smallest = int(of_each[of_each > 0].min())
    for trust in ("plain", "secure"):
        for k in (1, smallest, smallest + 1, 60):
            value = ask(large_groups("g", num_groups=GROUPS, min_clients=k), DATA, trust=trust).value
            np.testing.assert_array_equal(value, of_each >= k)
    # The control: by records, all groups that are not empty would have been large enough.
    assert ((records >= smallest + 1) != (of_each >= smallest + 1)).any()


def test_local_reports_say_counts_of_groups():
    rng = np.random.default_rng(0)
    groups, k = rng.choice(2, 3000, p=[0.4, 0.6]), rng.integers(0, 3, 3000)
    data = FederatedData.from_clients([{"g": [g], "k": [c]} for g, c in zip(groups, k, strict=True)])
    question = by_group(histogram("k", bins=3), "g", num_groups=2)
    answers = [ask(question, data, trust="local_dp", epsilon=3.0, key=jax.random.key(key)) for key in range(16)]
    truth = np.array([[np.sum((groups == group) & (k == c)) for c in range(3)] for group in range(2)])
    off = np.mean([answer.value for answer in answers], axis=0) - truth
    assert np.abs(off).max() < 5 * answers[0].stddev.max() / 4
    # The control: another order of groups is told apart.
    assert np.abs(off + truth - truth[::-1]).max() > 2 * answers[0].stddev.max()


def test_mistakes_are_named():
    for trust in ("local_dp", "shuffled_dp"):
        question = by_group(QUESTIONS["mean"], "g", num_groups=2)
        with pytest.raises(ValueError, match="of which group it is, or has a number of it"):
            ask(question, DATA, trust=trust, epsilon=1.0, delta=1e-6, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"shown is a bool for each group, \[2\]; got bool\[3\]"):
        by_group(count(), "g", num_groups=2, shown=np.ones(3, bool))
    with pytest.raises(ValueError, match="num_groups must be"):
        by_group(count(), "g", num_groups=0)
    with pytest.raises(ValueError, match="min_clients must be"):
        large_groups("g", num_groups=2, min_clients=0)


def test_groups_are_integers():
    how: Any = {"trust": "central_dp", "epsilon": 1.0, "max_records": 1, "key": jax.random.key(0)}
    for column, sentence in ((np.zeros((3, 2), np.uint8), "one number a record"), (np.zeros(3), "groups are integers")):
        data = FederatedData({"g": column}, np.arange(4))
        with pytest.raises(ValueError, match=sentence):
            ask(by_group(count(), "g", num_groups=2), data, **how)
