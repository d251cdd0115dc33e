"""A budget over questions: what was paid is never lost, never paid twice, and never more than there is."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fedjx.analytics.ask import TooFewAnswers, ask
from fedjx.analytics.count import count
from fedjx.analytics.ledger import Ledger
from fedjx.analytics.mean import mean
from fedjx.analytics.quantile import quantile_by_bisection
from fedjx.data import FederatedData, fixed_sampler
from fedjx.privacy import BudgetSpent, Event, Laplacian, account, together
from tests.analytics.test_attacks import dialogue

front = importlib.import_module("fedjx.analytics.ask")
DATA = FederatedData.from_clients([{"x": np.array([k % 5], np.float32)} for k in range(30)])
EVERYBODY = fixed_sampler(30, [range(30)])
TERMS: dict[str, Any] = {"trust": "central_dp", "epsilon": 0.4, "max_records": 1}


def terms(epsilon: float) -> Any:
    return {**TERMS, "epsilon": epsilon}


def key(number: int) -> jax.Array:
    return jax.random.key(number)


def costs(epsilon: float, relation: Any = "zero_out_one") -> Any:
    return account(Event(1 / epsilon, Laplacian(), 1.0), EVERYBODY, relation=relation)


def test_a_budget_is_spent_to_the_last_bit_and_no_further():
    for parts in (1, 3, 7):
        ledger = Ledger(epsilon=1.0, delta=1e-9)
        for number in range(parts):
            ask(count(), DATA, key=key(number), ledger=ledger, **terms(1 / parts))
        assert ledger.spent() == pytest.approx(1, abs=1e-3)
        with pytest.raises(BudgetSpent, match=f"budget of epsilon 1 at delta 1e-09 has paid .* for {parts} questions"):
            ask(count(), DATA, key=key(99), ledger=ledger, **terms(0.01))
        assert len(ledger.payments) == parts


def test_many_noisy_questions_cost_what_they_do_together():
    ledger, gauss = Ledger(epsilon=5, delta=1e-5), account(Event(8.0), EVERYBODY)
    for number in range(5):
        ledger.pay(f"question {number}", gauss, 2)
    ledger.pay("another", costs(0.5), 1)
    assert ledger.spent() == pytest.approx(together([(gauss, 10), (costs(0.5), 1)], 1e-5))
    assert ledger.spent() < 5 * gauss.epsilon(2, 1e-5)


def test_relations_do_not_mix_and_a_refusal_leaves_nothing():
    ledger = Ledger(epsilon=1, delta=1e-5)
    with pytest.raises(BudgetSpent):
        ledger.pay("too much", costs(2.0, "replace_one"), 1)
    assert (ledger.relation, ledger.payments, ledger.spent()) == (None, [], 0)
    ledger.pay("first", costs(0.5), 1)
    with pytest.raises(ValueError, match=r"the same two data sets, 'zero_out_one'; got 'replace_one' for second"):
        ledger.pay("second", costs(0.1, "replace_one"), 1)
    local: Any = {"trust": "local_dp", "epsilon": 0.1, "key": key(0)}
    with pytest.raises(ValueError, match="a local report is as private for any two values"):
        ask(count(), DATA, ledger=ledger, **local)
    other = Ledger(epsilon=1, delta=1e-5, relation="replace_one")
    ask(count(), DATA, ledger=other, **local)
    ask(count(), DATA, ledger=other, key=key(1), **TERMS)  # noise at the server, for the ledger's relation
    assert other.spent() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("trust", ["plain", "secure"])
def test_no_budget_pays_for_an_answer_without_noise(trust):
    with pytest.raises(ValueError, match=f"without noise; got a ledger and trust='{trust}'. Leave the ledger out, or"):
        ask(count(), DATA, trust=trust, ledger=Ledger(epsilon=1, delta=1e-5))


def test_noise_is_not_paid_for_twice():
    ledger = Ledger(epsilon=5, delta=1e-5)
    one = ask(count(), DATA, key=key(0), ledger=ledger, **TERMS)
    large = count("x", where=lambda record: record["x"] > 2)
    with pytest.raises(ValueError, match="noise is drawn anew for each question; got a key for a question about x"):
        ask(large, DATA, key=key(0), ledger=ledger, **TERMS)
    # For the difference would be exact.
    assert one.value - ask(large, DATA, key=key(0), **TERMS).value == pytest.approx(18, abs=1e-4)
    assert one.value - ask(large, DATA, key=key(1), ledger=ledger, **TERMS).value != pytest.approx(18, abs=1e-4)


def test_what_was_paid_is_on_disk_before_anybody_is_asked(tmp_path, monkeypatch):
    path, there = tmp_path / "ledger.json", []

    def crash(*_: Any) -> Any:
        there.append(path.read_text())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(front, "_total", crash)
        with pytest.raises(KeyboardInterrupt):
            ask(count(), DATA, key=key(0), ledger=Ledger(epsilon=1, delta=1e-5, path=path), **TERMS)
    assert '"question": "a question about clients"' in there[0]
    again = Ledger(epsilon=1, delta=1e-5, path=path)
    assert (len(again.payments), again.relation, round(again.spent(), 3)) == (1, "zero_out_one", 0.4)
    how: Any = {"trust": "local_dp", "epsilon": 0.1}
    empty, other = FederatedData({"x": np.zeros(1, np.float32)}, np.array([0, 1, 1])), Ledger(epsilon=1, delta=1e-5)
    with pytest.raises(TooFewAnswers):  # nor is it given back if there is no answer
        ask(mean("x", low=0, high=1), empty, key=key(5), ledger=other, min_clients=2, **how)
    assert len(other.payments) == 1


@pytest.mark.parametrize("trust", ["central_dp", "distributed_dp", "local_dp", "shuffled_dp"])
def test_a_ledger_that_is_opened_again_is_the_same(tmp_path, trust):
    path, how = tmp_path / "ledger.json", {"trust": trust, "epsilon": 0.4, "delta": 1e-5}
    how |= {"max_records": 1} if trust in ("central_dp", "distributed_dp") else {}
    ledger = Ledger(epsilon=1, delta=1e-4, path=path)
    ask(count(), DATA, key=key(0), ledger=ledger, **how)  # type: ignore[arg-type]
    again = Ledger(epsilon=1, delta=1e-4, path=path)
    assert again.payments == ledger.payments
    assert again.spent() == ledger.spent() > 0
    ask(count(), DATA, key=key(1), ledger=again, **how)  # type: ignore[arg-type]
    assert len({(type(one.loss), one.loss) for one in again.payments}) == 1  # which compose as one
    for others in ({"epsilon": 2.0}, {"delta": 1e-6}, {"relation": "add_or_remove_one"}):
        with pytest.raises(ValueError, match="a ledger goes on with the budget that it began with"):
            Ledger(**{"epsilon": 1.0, "delta": 1e-4, "path": path, **others})  # type: ignore[arg-type]


def test_two_that_are_open_see_each_others_payments(tmp_path):
    one, other = (Ledger(epsilon=1, delta=1e-5, path=tmp_path / "ledger.json") for _ in range(2))
    one.pay("first", costs(0.6), 1)
    with pytest.raises(BudgetSpent, match=r"has paid 0\.\d+ for 1 questions; second would make it 1\.19"):
        other.pay("second", costs(0.6), 1)
    other.pay("third", costs(0.3), 1)
    one.pay("fourth", costs(0.1), 1)
    assert [p.question for p in Ledger(epsilon=1, delta=1e-5, path=tmp_path / "ledger.json").payments] == [
        "first",
        "third",
        "fourth",
    ]


def pay_ten(path: Path, ledger: Ledger | None = None) -> None:
    for number in range(10):
        with contextlib.suppress(BudgetSpent):
            (ledger or Ledger(epsilon=1, delta=1e-5, path=path)).pay(f"{number}", costs(0.1), 1)


def test_who_pays_at_the_same_time_does_not_overspend(tmp_path):
    path, alone = tmp_path / "ledger.json", Ledger(epsilon=1, delta=1e-5)
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=pay_ten, args=(path,)) for _ in range(2)]
    threads = [threading.Thread(target=pay_ten, args=(path, alone)) for _ in range(3)]
    for one in (*both, *threads):
        one.start()
    for one in (*both, *threads):
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    for ledger in (alone, Ledger(epsilon=1, delta=1e-5, path=path)):
        assert len(ledger.payments) == 10
        assert 0.95 < ledger.spent() <= 1


def test_a_dialogue_pays_once_whatever_happens(tmp_path, monkeypatch):
    path, ledger = tmp_path / "dialogue.npz", Ledger(epsilon=1, delta=1e-5, path=tmp_path / "ledger.json")
    how: Any = {**terms(0.8), "key": key(0), "ledger": ledger, "path": path}
    other: Any = {**how, "path": tmp_path / "other.npz", "key": key(1)}
    whole, calls = front._total, []

    def total(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(front, "_total", total)
        with pytest.raises(KeyboardInterrupt):
            ask(dialogue(3), DATA, **how)
        assert (len(calls), len(ledger.payments), ledger.payments[0].times) == (2, 1, 3)
        ledger = how["ledger"] = other["ledger"] = Ledger(epsilon=1, delta=1e-5, path=tmp_path / "ledger.json")
        found = ask(dialogue(3), DATA, **how)
        assert len(calls) == 4  # the first round's answer was there
        again = ask(dialogue(3), DATA, **how)
        assert len(calls) == 4
    how |= {"ledger": None, "path": None}
    alone = ask(dialogue(3), DATA, **how)
    np.testing.assert_array_equal(found.value, alone.value)
    np.testing.assert_array_equal(again.value, alone.value)
    assert len(ledger.payments) == 1
    with pytest.raises(BudgetSpent):
        ask(dialogue(3), DATA, **other)
    # What could not be paid is not paid by trying again.
    with pytest.raises(BudgetSpent):
        ask(dialogue(3), DATA, **other)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive and finite; got epsilon=0"),
        ({"delta": 0.0}, r"delta must be in \(0, 1\).*less than one over the number of clients"),
        ({"relation": "alike"}, "relation must be one of"),
    ],
)
def test_mistakes_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Ledger(**{"epsilon": 1.0, "delta": 1e-5, **arguments})


def test_a_ledger_says_how_much_is_left():
    ledger = Ledger(epsilon=1, delta=1e-5)
    ask(count(), DATA, key=key(0), ledger=ledger, **TERMS)
    assert repr(ledger) == "Ledger(0.4 of epsilon 1 at delta 1e-05 are spent, by 1 questions, zero_out_one)"


def test_a_question_that_cannot_be_asked_is_not_paid():
    ledger = Ledger(epsilon=1, delta=1e-5)
    wrong = count("x", where=lambda record: record["y"] > 0)
    with pytest.raises(ValueError, match=r"names all columns that it reads, \['x'\]; got 'y'"):
        ask(wrong, DATA, key=key(0), ledger=ledger, **TERMS)
    assert ledger.payments == []
    ask(count(), DATA, key=key(0), ledger=ledger, **TERMS)  # nor has the key been used
    assert len(ledger.payments) == 1


def test_the_file_of_a_dialogue_does_not_tell_the_key(tmp_path):
    how: Any = {**TERMS, "path": tmp_path / "median.npz"}
    question = quantile_by_bisection("x", 0.5, low=0, high=4, num_rounds=2)
    ask(question, DATA, key=jax.random.key(123_456_789), **how)
    head = np.load(tmp_path / "median.npz")["dialogue"].item()
    assert "identity" in head
    assert "123456789" not in head
