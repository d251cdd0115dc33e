"""What cannot be asked is refused in a sentence: what must hold, what came, and what to do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.analytics.answer import Answer
from fedjx.analytics.ask import TooFewAnswers, ask
from fedjx.analytics.count import count
from fedjx.analytics.histogram import histogram, histogram_2d
from fedjx.analytics.mean import mean
from fedjx.analytics.question import Entry, Question, once
from fedjx.analytics.total import total
from fedjx.data import FederatedData, cyclic_sampler
from fedjx.data.sampling import poisson_sampler, uniform_sampler

DATA = FederatedData.from_clients([{"x": np.arange(k % 4, dtype=np.float32)} for k in range(30)])
KEY = jax.random.key(0)
CENTRAL: dict[str, Any] = {"trust": "central_dp", "epsilon": 1.0, "max_records": 1, "key": KEY}
LOCAL: dict[str, Any] = {"trust": "local_dp", "epsilon": 1.0, "key": KEY}
BOUNDED = mean("x", low=0, high=3)


def several(record: Any, told: Any) -> Entry:
    return Entry(jnp.arange(2))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"trust": "blind"}, "trust must be one of .*'plain'.*; got trust='blind'"),
        ({"trust": "secure", "epsilon": 1.0}, r"'secure' promises no epsilon; got 1.0. Leave it out, or trust less"),
        ({**CENTRAL, "epsilon": None}, r"needs to know how much may be spent; got no epsilon. Pass epsilon=1.0"),
        ({**CENTRAL, "epsilon": -1.0}, r"epsilon must be positive and finite; got epsilon=-1.0"),
        ({**CENTRAL, "epsilon": float("inf")}, "epsilon must be positive and finite; got epsilon=inf"),
        ({**CENTRAL, "delta": 1.0}, r"delta must be .*; got delta=1.0. Take less than one over the number of clients"),
        ({**CENTRAL, "trust": "distributed_dp"}, "'distributed_dp' needs a delta; got none. Pass less than one over"),
        ({**LOCAL, "trust": "shuffled_dp"}, "'shuffled_dp' needs a delta; got none"),
        ({**CENTRAL, "max_records": None}, "bounded before noise can hide it; got no max_records. Pass 1"),
        ({**CENTRAL, "max_records": 0}, "max_records must be an integer of at least 1; got max_records=0"),
        ({**CENTRAL, "key": None}, r"noise that nobody may know; got no key. Pass jax.random.key\(seed\)"),
        ({**LOCAL, "max_records": 2}, "a client reports on one record, drawn at random; got max_records=2"),
        (
            {"min_clients": 31},
            "min_clients must be an integer in .*; got min_clients=31.*at most the number",
        ),
        ({"clients": []}, r"a question is to somebody; got clients=\[\]. Name some"),
        ({"clients": [1, 1]}, "each client is asked once; got ids that are there twice"),
        (
            {"clients": [1], "sampler": uniform_sampler(30, 3, seed=0)},
            "clients are named, or drawn by a sampler; got both. Leave one out",
        ),
        (
            {"sampler": uniform_sampler(29, 3, seed=0)},
            "is one of 29 clients; got data of 30. Make it for these",
        ),
        ({"sampler": cyclic_sampler(30, 3, seed=0)}, "known of uniform and Poisson samples; got 'cyclic'"),
        (
            {"sampler": poisson_sampler(30, probability=np.linspace(0, 1, 30), seed=0)},
            r"known of uniform and Poisson samples; got 'poisson' \['probabilities'\]. Use",
        ),
        (
            {"sampler": poisson_sampler(30, probability=0.5, seed=0, max_cohort_size=5)},
            r"got 'poisson' \['max_cohort_size'\]. Use uniform_sampler, or poisson_sampler with one probability",
        ),
        (
            {**CENTRAL, "trust": "distributed_dp", "delta": 1e-3, "sampler": uniform_sampler(30, 9, seed=0)},
            "a number of clients that is known before; got a sampler. Leave it out",
        ),
        (
            {**CENTRAL, "sampler": uniform_sampler(30, 9, seed=0)},
            "Laplace noise is accounted for on schedules, and on Poisson samples",
        ),
        ({**CENTRAL, "relation": "alike"}, "relation must be one of"),
        ({**LOCAL, "epsilon": 13.0}, r"epsilon must be .*; got epsilon=13.0. Chances are drawn in float32"),
    ],
)
def test_terms_are_refused(how, sentence):
    with pytest.raises(ValueError, match=sentence):
        ask(BOUNDED, DATA, **how)


@pytest.mark.parametrize(
    ("question", "how", "sentence"),
    [
        (mean("x"), {"trust": "secure"}, "needs bounds to which numbers are clipped; got none. Pass low= and high="),
        (total("x"), CENTRAL, "needs bounds to which numbers are clipped; got none"),
        (count(), {}, None),
        (histogram("y", bins=3), {}, r"about columns of the data; got 'y'. They have \['x'\]"),
        (
            BOUNDED._replace(refuses={"secure": "the server has to see more"}),
            {"trust": "secure"},
            "this question is not for trust='secure': the server has to see more",
        ),
        (
            Question(("x",), several, 2, lambda total: (0, 0), once),
            LOCAL,
            "a record adds to at most 1 bins, by the question's sensitivity; got 2",
        ),
        (
            Question(("x",), several, 2, lambda total: (0, 0), once, (1.0,)),
            LOCAL,
            "is for numbers or for bins; got both. Ask about one group at a time",
        ),
    ],
)
def test_questions_are_refused(question, how, sentence):
    if sentence is None:
        assert ask(question, DATA, **how).value == DATA.num_examples
        return
    with pytest.raises(ValueError, match=sentence):
        ask(question, DATA, **how)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: mean("x", low=1), "two bounds, or none; got low=1 and high=None. Give both"),
        (lambda: mean("x", low=2, high=1), "bounds are in order; got low=2 and high=1. Let low be less than high"),
        (lambda: total("x", low=0, high=float("inf")), "and finite; got high=inf. Pass numbers"),
        (lambda: histogram("x", bins=0), "categories are 0 to bins - 1; got bins=0. Pass their number"),
        (lambda: histogram("x", bins=2.5), "categories are 0 to bins - 1; got bins=2.5"),
        (lambda: histogram("x", bins=[1, 1]), r"edges of bins increase, and are at least two; got \[1, 1\]"),
        (lambda: histogram("x", bins=[0, np.inf]), "edges of bins increase"),
        (lambda: histogram_2d(("x",), bins=(2, 2)), "by two columns, with bins of each; got .* Give two"),
        (lambda: count(where=lambda record: record["x"] > 0), "a property is one of columns; got none. Name them"),
    ],
)
def test_questions_that_are_none_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_too_few_answers_are_not_shown():
    rare = count("x", where=lambda record: record["x"] >= 2)  # of 7 clients
    assert ask(rare, DATA, trust="secure", min_clients=7).value == 7
    with pytest.raises(TooFewAnswers, match=r"at least min_clients=8 clients; got 7 that have a record for it"):
        ask(rare, DATA, trust="secure", min_clients=8)
    with pytest.raises(TooFewAnswers, match="min_clients=2 clients; got 1"):
        ask(rare, DATA, trust="secure", clients=[3, 4])
    assert ask(rare, DATA, min_clients=8).value == 7  # who sees everything anyway


def test_an_interval_needs_a_standard_deviation():
    answer = ask(BOUNDED, DATA, **CENTRAL)
    low, high = answer.interval(0.95)
    assert high - low == pytest.approx(2 * 1.959964 * answer.stddev, rel=1e-6)
    assert (low + high) / 2 == pytest.approx(answer.value)
    with pytest.raises(ValueError, match="needs a standard deviation; got None"):
        Answer(1.0, None, 1, 1, 1, "", "plain").interval()
    with pytest.raises(ValueError, match="confidence must be"):
        answer.interval(1.0)
