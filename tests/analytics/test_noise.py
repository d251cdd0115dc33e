"""Private answers and samples are unbiased, and off by what they say: over many repetitions in one program."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from fedjx.analytics.ask import _asked, _for_all, ask
from fedjx.analytics.count import count
from fedjx.analytics.histogram import histogram
from fedjx.analytics.mean import mean
from fedjx.analytics.question import Question, Total
from fedjx.analytics.sums import Shown
from fedjx.analytics.total import total
from fedjx.analytics.trust import prepared
from fedjx.data import FederatedData
from fedjx.data.sampling import poisson_sampler, uniform_sampler

RANDOM = np.random.default_rng(2)
AGES = RANDOM.integers(30, 70, 60).astype(np.int32)
ONE_EACH = FederatedData({"age": AGES}, np.arange(61))
TWO_EACH = FederatedData({"age": AGES}, np.arange(0, 61, 2))
EDGES = [0, 10, 20, 45, 100]  # nobody is in the first two

MEAN = mean("age", low=0, high=100)
HISTOGRAM = histogram("age", bins=EDGES)
TRUE_MEAN = np.array([[(AGES - 50.0).sum(), 60]])
TRUE_HISTOGRAM = np.histogram(AGES, EDGES)[0][:, None].astype(float)

CENTRAL = {"trust": "central_dp", "epsilon": 1.0, "max_records": 2}
CASES: dict[str, tuple[dict[str, Any], FederatedData, int]] = {
    "gauss": ({**CENTRAL, "delta": 1e-3}, TWO_EACH, 1000),
    "laplace": (CENTRAL, TWO_EACH, 1000),
    "replaced": ({**CENTRAL, "relation": "replace_one"}, TWO_EACH, 1000),
    "shares": ({**CENTRAL, "trust": "distributed_dp", "delta": 1e-3}, TWO_EACH, 300),
    "local": ({"trust": "local_dp", "epsilon": 1.0}, ONE_EACH, 1000),
    "shuffled": ({"trust": "shuffled_dp", "epsilon": 1.0, "delta": 1e-3}, ONE_EACH, 1000),
}


def repeated(
    question: Question, how: dict[str, Any], data: FederatedData, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tables of so many answers, in one program, and the variance that they state."""
    asked = _asked(question, data, {**how, "key": jax.random.key(0)})  # type: ignore[typeddict-item]
    way = prepared(question, asked.terms)
    once, clients = way.computation.in_graph(), asked.records.whole()
    keys = jax.random.split(jax.random.key(7), number)
    shown = jax.jit(lambda keys: jax.lax.map(lambda key: once(key, question.told, *way.extra, clients), keys))(keys)
    scale = np.array([*question.bounds, *[1.0] * question.counts])
    parts = [np.asarray(x, np.float64).reshape(number, question.num_bins, -1) for x in shown.sums if x is not None]
    counts = parts[-1].mean(axis=0)[:, 0] if question.counts else None
    of_values, of_counts = (np.reshape(x, (-1, 1)) for x in way.noise(asked.terms.num_clients, counts))
    columns = [*[of_values] * len(question.bounds), *[of_counts] * question.counts]
    variance = np.concatenate([np.broadcast_to(x, (question.num_bins, 1)) for x in columns], axis=1)
    return np.concatenate(parts, axis=2) * scale, variance * scale**2


def is_as_stated(found: np.ndarray, truth: np.ndarray, variance: np.ndarray, slack: float) -> bool:
    """Tells whether numbers are around the truth, and of a variance up to a part of it; of exact ones to the bit."""
    number, exact = len(found), variance == 0
    is_near = np.abs(found.mean(axis=0) - truth) <= 5 * np.sqrt(variance / number) + 1e-6 * np.abs(truth)
    ratio = found.var(axis=0)[~exact] / variance[~exact]
    return bool(is_near.all() and (np.abs(ratio - 1) <= slack).all())


def shrunk(found: np.ndarray) -> np.ndarray:
    middle = found.mean(axis=0)
    return middle + 0.8 * (found - middle)


@pytest.mark.parametrize("name", CASES)
def test_noise_is_unbiased_and_of_the_stated_variance(name):
    how, data, number = CASES[name]
    slack = 5 * np.sqrt((5 if how["trust"] == "central_dp" and "delta" not in how else 2) / number)
    slack = min(slack, 0.33)  # less than what less noise makes
    found, variance = repeated(MEAN, how, data, number)
    assert is_as_stated(found, TRUE_MEAN, variance, slack)
    assert not is_as_stated(shrunk(found), TRUE_MEAN, variance, slack)
    assert not is_as_stated(found + 5 * np.sqrt(variance), TRUE_MEAN, variance, slack)

    # What the mean says of itself is what means differ by.
    answers = [MEAN.estimate(Total(table, variance)) for table in found]
    if np.sqrt(variance[0, -1]) < TRUE_MEAN[0, 1] / 8:  # to first order
        values, stated = np.array(answers).T
        assert np.abs(values.std() / np.median(stated) - 1) < 0.2

    found, variance = repeated(HISTOGRAM, how, data, number)
    assert is_as_stated(found, TRUE_HISTOGRAM, variance, slack)
    assert not is_as_stated(shrunk(found), TRUE_HISTOGRAM, variance, slack)


def test_the_sum_of_many_shares_is_not_too_small():
    """Rounding again what is too long makes every client's integers a little smaller: of many the sum shows it."""
    data = FederatedData({"age": np.ones(10_000, np.int32)}, np.arange(0, 10_001, 2))
    how = {**CENTRAL, "trust": "distributed_dp", "delta": 1e-5, "num_bits": 20}
    found, variance = repeated(count(), how, data, 40)
    assert abs(found.mean() - 10_000) < 4 * np.sqrt(variance[0, 0] / 40)  # it was off by 80 before
    assert np.sqrt(variance[0, 0]) < 12


# --- samples --------------------------------------------------------------------------------------

SIZES = RANDOM.integers(0, 4, 200)
CROWD = FederatedData(
    {"age": RANDOM.integers(0, 100, SIZES.sum()).astype(np.int32)}, np.concatenate([[0], np.cumsum(SIZES)])
)
SAMPLERS = {
    "uniform": uniform_sampler(200, 60, seed=0),
    "poisson": poisson_sampler(200, probability=0.3, seed=0),
}
QUESTIONS = {
    "mean": (MEAN, CROWD.examples["age"].mean()),
    "count": (count("age", where=lambda record: record["age"] < 40), (CROWD.examples["age"] < 40).sum()),
    "histogram": (HISTOGRAM, np.histogram(CROWD.examples["age"], EDGES)[0]),
    "total": (total("age", low=-100, high=100), CROWD.examples["age"].sum()),
}


def tables_of_clients(name: str) -> np.ndarray:
    """Returns ``[200, num_bins, d]``, by NumPy."""
    tables = []
    for start, stop in zip(CROWD.offsets, CROWD.offsets[1:], strict=False):
        ages = CROWD.examples["age"][start:stop].astype(float)
        tables.append(
            {
                "mean": np.array([[(ages - 50).sum(), len(ages)]]),
                "count": np.array([[(ages < 40).sum()]]),
                "histogram": np.histogram(ages, EDGES)[0][:, None],
                "total": np.array([[ages.sum()]]),
            }[name]
        )
    return np.array(tables, np.float64)


def sampled(name: str, kind: str, *, moments: bool, rounds: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of the answers of so many samples, and the standard deviations that they state."""
    question, tables = QUESTIONS[name][0], tables_of_clients(name)
    asked = _asked(question, CROWD, {"sampler": SAMPLERS[kind], "max_records": 3})
    found = []
    for number in range(rounds):
        of = tables[SAMPLERS[kind](number)]
        flat = of.reshape(len(of), -1)
        terms = asked.terms._replace(num_clients=len(of))
        shown = Shown(None, None, flat.T @ flat if moments else None)
        table = Total(of.sum(axis=0), np.zeros(question.shape))
        found.append(question.estimate(_for_all(question, asked._replace(terms=terms), shown, table)))
    values, stddevs = (np.array(x, np.float64) for x in zip(*found, strict=True))
    return values, stddevs


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_sample_says_how_far_it_is_off(name, kind):
    values, stddevs = sampled(name, kind, moments=True)
    truth, stated = QUESTIONS[name][1], np.sqrt((stddevs**2).mean(axis=0))
    assert (np.abs(values.mean(axis=0) - truth) <= 5 * stated / np.sqrt(1000)).all()
    empirical = values.std(axis=0)
    real = stated > 0
    np.testing.assert_allclose(empirical[real], stated[real], rtol=0.12)
    np.testing.assert_array_equal(empirical[~real], 0)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(0.8 * empirical[real], stated[real], rtol=0.12)

    # Where second moments are not known, it is at least as far: also of numbers whose sum is about zero.
    _, bounded = sampled(name, kind, moments=False, rounds=50)
    assert (np.sqrt((bounded**2).mean(axis=0))[real] > 0.95 * empirical[real]).all()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_it_is_what_is_asked(kind):
    for name in ("mean", "histogram"):
        answer = ask(QUESTIONS[name][0], CROWD, sampler=SAMPLERS[kind], round=0)
        values, stddevs = sampled(name, kind, moments=True, rounds=1)
        np.testing.assert_allclose(answer.value, values[0], rtol=1e-6)
        np.testing.assert_allclose(answer.stddev, stddevs[0], rtol=1e-5)
        assert answer.num_clients == len(SAMPLERS[kind](0))


def test_what_noise_and_a_sample_do_adds_up():
    how: Any = {"trust": "central_dp", "epsilon": 1.0, "delta": 1e-3, "max_records": 3, "key": jax.random.key(0)}
    alone = ask(HISTOGRAM, CROWD, sampler=SAMPLERS["poisson"], **how)
    counts = np.maximum(alone.value, 0) * 0.3
    spent = alone.account
    assert spent is not None
    noise = (spent.event.noise_multiplier * 3) ** 2
    np.testing.assert_allclose(alone.stddev, np.sqrt(3 * counts * 0.7 + noise) / 0.3, rtol=1e-5)
