"""What leaves a client, looked at by somebody who wants to know more than the guarantee allows."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.analytics.answer import Answer
from fedjx.analytics.ask import TooFewAnswers, ask
from fedjx.analytics.count import count
from fedjx.analytics.dialogue import Dialogue
from fedjx.analytics.histogram import histogram, histogram_2d
from fedjx.analytics.mean import mean
from fedjx.analytics.question import Entry, Question, of_values, once
from fedjx.analytics.sums import asking, entries
from fedjx.analytics.total import total
from fedjx.analytics.trust import TRUSTS
from fedjx.core.language.values import Sequence
from fedjx.data import FederatedData
from fedjx.data.sampling import poisson_sampler, uniform_sampler

front = importlib.import_module("fedjx.analytics.ask")  # the function has the name of the module
KEY = jax.random.key(0)
FLOATS = np.array([-1.0, 0.5, 1.0, np.nan, np.inf, -3e38, 1e30], np.float32)
INTEGERS = np.array([0, 1, 2, 3, -5, 2**31 - 1, -(2**31)], np.int32)


def careless(record: Any, told: Any) -> Entry:
    """An entry that keeps to no bound and to no bin."""
    return Entry(record["k"], record["x"][None])


QUESTIONS = {
    "count": count("x", where=lambda record: record["x"] > 0),
    "clients": count("x", where=lambda record: record["x"] > 0, clients=True),
    "histogram": histogram("k", bins=3),
    "edges": histogram("x", bins=[-1, 0, 1]),
    "distinct": histogram("k", bins=3, distinct=True),
    "table": histogram_2d(("k", "x"), bins=(3, [-1, 0, 1]), distinct=True),
    "mean": mean("x", low=-1, high=1),
    "total": total("x", low=-0.5, high=1),
    "far": mean("k", low=2**31 - 3, high=2**31 - 1),
    "careless": Question(("x", "k"), careless, 3, lambda total: (0, 0), of_values(1, counts=True), (1.0,)),
}


def every_client(most: int) -> dict[str, Any]:
    """Returns all clients of so many records or fewer, past whose ends is garbage."""
    records = list(itertools.chain(*(itertools.product(range(len(FLOATS)), repeat=n) for n in range(most + 1))))
    places = np.array([[*one, *[0] * (most - len(one))] for one in records])
    shifted = (places + np.arange(most)) % len(INTEGERS)
    return {"x": FLOATS[places], "k": INTEGERS[shifted], "length": np.array([len(one) for one in records], np.int32)}


def tables(question: Question, max_records: int, key: jax.Array) -> np.ndarray:
    """Returns what each of these clients adds, in bounds, ``[clients, elements]``."""
    asked = asking(question, max_records, divides=True)

    def table(x: jax.Array, k: jax.Array, length: jax.Array) -> jax.Array:
        made = entries(asked, question.told, key, Sequence({"x": x, "k": k}, length)).table(question.num_bins)
        parts = [] if made.values is None else [made.values.ravel()]
        return jnp.concatenate([*parts, *([made.counts.astype(jnp.float32)] if question.counts else [])])

    clients = every_client(3)
    return np.asarray(jax.jit(jax.vmap(table))(clients["x"], clients["k"], clients["length"]), np.float64)


@pytest.mark.parametrize("max_records", [1, 2])
@pytest.mark.parametrize("name", QUESTIONS)
def test_no_client_changes_the_table_by_more_than_the_sensitivity(name, max_records):
    question = QUESTIONS[name]
    claimed = question.sensitivity(max_records, question.distinct)
    made = tables(question, max_records, jax.random.key(max_records))
    assert np.isfinite(made).all()
    for order, claim in ((1, claimed.l1), (2, claimed.l2)):
        most = np.linalg.norm(made, order, axis=1).max()
        assert most <= claim * (1 + 1e-6)
        # Who is replaced changes it by up to twice as much, for which a mechanism of that relation has noise.
        between = np.linalg.norm(made[:, None] - made[None, ::7], order, axis=2).max()
        assert between <= 2 * claim * (1 + 1e-6)
        if name not in ("clients", "careless"):
            assert most > 0.99 * claim  # no more noise than is needed, and a claim of less would be caught
    if name in ("mean", "total"):
        assert between > 1.4 * claim


def test_distinct_bins_have_the_sensitivity_of_the_root():
    assert once(4, True) == (4.0, 2.0)
    assert once(4, False) == (4.0, 4.0)


def people(values: list[list[float]], dtype: Any = np.float32) -> FederatedData:
    return FederatedData.from_clients([{"x": np.array(v, dtype)} for v in values])


CROWD = [[float(k % 5)] for k in range(30)]
NOISE: dict[str, Any] = {"trust": "central_dp", "epsilon": 1.0, "delta": 1e-3, "max_records": 1, "key": KEY}


def besides(answer: Answer) -> Any:
    return answer._replace(value=0, stddev=0)


@pytest.mark.parametrize("question", [count(), mean("x", low=0, high=5), histogram("x", bins=[0, 2, 5])])
def test_a_noisy_answer_says_nothing_exact_besides(question):
    one, other = (ask(question, people([[], *CROWD, last]), **NOISE) for last in ([], [3.0]))
    assert besides(one) == besides(other)
    assert one.num_answered is None
    with_noise = np.asarray(one.value) - np.asarray(other.value)
    assert np.abs(with_noise).max() < 3  # the control: the key is the same, and so is the noise


def test_a_sample_is_hidden_by_noise_even_if_it_is_of_nobody():
    data, sampler = people(CROWD), poisson_sampler(30, probability=0.05, seed=0)
    sizes = [len(sampler(k)) for k in range(40)]
    assert 0 in sizes
    assert 3 in sizes
    answers = [ask(count(), data, sampler=sampler, round=sizes.index(size), **NOISE) for size in (0, 3)]
    assert besides(answers[0]) == besides(answers[1])
    assert answers[0].num_clients is None
    assert answers[0].value != 0
    np.testing.assert_allclose(answers[1].value - answers[0].value, 3 / 0.05, rtol=1e-5)  # the same noise
    # Without a guarantee the size is known, and nobody is nobody.
    plain = ask(count(), data, sampler=sampler, round=sizes.index(0))
    assert (plain.value, plain.num_clients, plain.num_answered) == (0, 0, 0)
    with pytest.raises(TooFewAnswers, match="got 0 that have a record"):
        ask(count(), data, sampler=sampler, round=sizes.index(0), trust="secure")


@pytest.mark.parametrize(
    ("question", "hidden"),
    [
        (histogram("x", bins=[0, 2, 5]), [99.0]),
        (count("x", where=lambda record: record["x"] > 4), [0.0]),
        (mean("x", low=0, high=5), [float("nan")]),
    ],
)
def test_who_reports_does_not_depend_on_what_a_record_holds(question, hidden):
    how: Any = {"trust": "local_dp", "epsilon": 1.0, "key": KEY}
    one, other = (ask(question, people([*CROWD, last]), **how) for last in (hidden, [4.5]))
    assert besides(one) == besides(other)
    assert one.num_answered == 31


@pytest.mark.parametrize("trust", TRUSTS)
def test_no_answer_costs_more_than_was_allowed(trust):
    if trust in ("plain", "secure"):
        assert ask(count(), people(CROWD), trust=trust).epsilon(1e-3) == float("inf")
        return
    for epsilon, delta in ((0.3, 1e-3), (1.0, 1e-6), (1 / 3, 0.0)):
        if delta == 0 and trust in ("distributed_dp", "shuffled_dp"):
            continue
        how: Any = {"max_records": 1} if trust in ("central_dp", "distributed_dp") else {}
        answer = ask(count(), people(CROWD), trust=trust, epsilon=epsilon, delta=delta, key=KEY, **how)
        assert 0.95 * epsilon < answer.epsilon(delta or 1e-9) <= epsilon * (1 + 1e-9)


def test_shuffled_reports_hide_among_the_fewest_that_are_shown():
    data = people([*CROWD, []])
    how: Any = {"trust": "shuffled_dp", "epsilon": 1.0, "delta": 1e-3, "key": KEY}
    numbers = mean("x", low=0, high=1)  # of which nobody without a record reports
    with pytest.raises(TooFewAnswers, match="at least min_clients=31 clients; got 30"):
        ask(numbers, data, **how)
    assert ask(count(), data, **how).num_answered == 31  # of bins there is one for what is in none
    for sampler, fewest in ((None, 30), (None, 7), (uniform_sampler(31, 20, seed=0), 7)):
        answer = ask(numbers, data, sampler=sampler, min_clients=fewest, **how)
        assert answer.account is not None
        assert answer.account.loss[1:] == (fewest,)


# --- dialogues ------------------------------------------------------------------------------------


class Below(tuple):
    def __call__(self, record: Any, told: Any) -> Entry:
        return Entry(jnp.where(record["x"] <= told, 0, 1).astype(jnp.int32))


def dialogue(num_rounds: int) -> Dialogue:
    def question(state: Any, round: int) -> Question:
        return Question(("x",), Below(), 2, lambda total: (0, 0), once, told=jnp.float32(state["at"]))

    def update(state: Any, round: int, total: Any) -> Any:
        return {"at": np.float32(state["at"] / 2), "seen": np.append(state["seen"], total.table.sum())}

    first = {"at": np.float32(4), "seen": np.zeros(0)}
    return Dialogue(num_rounds, first, question, update, lambda state: (state["seen"], None))


@pytest.mark.parametrize("trust", ["local_dp", "shuffled_dp"])
def test_in_a_dialogue_each_client_reports_once(trust, monkeypatch):
    asked: list[Any] = []
    whole = front._total

    def total_of(question: Any, way: Any, of: Any) -> Any:
        asked.append((of, way))
        return whole(question, way, of)

    monkeypatch.setattr(front, "_total", total_of)
    how: Any = {"epsilon": 1.0, "key": KEY, **({"delta": 1e-3} if trust == "shuffled_dp" else {})}
    answer = ask(dialogue(4), people(CROWD), trust=trust, **how)
    groups = [of.records.ids for of, _ in asked]
    assert sorted(map(len, groups)) == [7, 7, 8, 8]
    np.testing.assert_array_equal(np.sort(np.concatenate(groups)), np.arange(30))
    assert (answer.num_clients, answer.num_answered, answer.num_rounds) == (30, 30, 1)
    assert len({id(way) for _, way in asked}) == 1
    assert answer.account is not None
    if trust == "shuffled_dp":
        assert answer.account.loss[1:] == (7,)
        assert {of.terms.min_clients for of, _ in asked} == {7}
    assert len({jax.random.key_data(of.key).tobytes() for of, _ in asked}) == 4
    with pytest.raises(ValueError, match="each client makes one, in a round that is drawn at random; got a sampler"):
        ask(dialogue(4), people(CROWD), trust=trust, sampler=uniform_sampler(30, 20, seed=0), **how)
    with pytest.raises(ValueError, match="got 3 clients for 4"):
        ask(dialogue(4), people(CROWD), trust=trust, clients=[1, 2, 3], **how)


def test_noise_is_for_all_rounds_together():
    answer = ask(dialogue(4), people(CROWD), **NOISE)
    assert answer.num_rounds == 4
    assert 0.95 < answer.epsilon(1e-3) <= 1
    once_only = ask(count(), people(CROWD), **NOISE)
    assert answer.account is not None
    assert once_only.account is not None
    assert answer.account.event.noise_multiplier == pytest.approx(
        2 * once_only.account.event.noise_multiplier, rel=0.02
    )
    noise = answer.value - 30
    assert len(set(noise.tolist())) == 4  # of each round another


def test_a_dialogue_goes_on_with_the_same_clients(tmp_path):
    data = people(CROWD)
    ask(dialogue(2), data, path=tmp_path / "a", clients=[1, 2, 3, 4], **NOISE)
    others: Any
    for others in ({"clients": [1, 2, 3, 5]}, {}, {"clients": [1, 2, 3, 4], "round": 1}):
        with pytest.raises(ValueError, match="a dialogue goes on as it began"):
            ask(dialogue(2), data, path=tmp_path / "a", **NOISE, **others)
    again = ask(dialogue(2), data, path=tmp_path / "a", clients=[4, 3, 2, 1], **NOISE)
    assert again.num_clients == 4
