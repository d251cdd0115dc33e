"""Quantiles: from a histogram, by bisection, and followed round by round; beside `numpy.quantile`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.aggregation.norms import follow_quantile
from fedjx.analytics import Dialogue, Question, Total, ask, median, quantile, quantile_by_bisection, quantile_online
from fedjx.data import FederatedData
from fedjx.data.sampling import poisson_sampler, uniform_sampler

Q = np.array([0, 0.003, 0.1, 0.25, 0.5, 0.77, 0.9, 1])


def clients(values: np.ndarray, seed: int = 0) -> FederatedData:
    """Returns clients of up to seven values each, some of none."""
    sizes = np.random.default_rng(seed).integers(0, 8, len(values))
    ends = np.minimum(sizes.cumsum(), len(values))[: np.searchsorted(sizes.cumsum(), len(values)) + 1]
    return FederatedData.from_clients([{"x": x} for x in np.split(values, ends[:-1])])


def skewed(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 12.0, number).astype(np.float32)


# --- in one pass ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_bins", "arity"), [(1, None), (37, 4), (1024, None)])
def test_is_within_a_bin_of_numpy(num_bins: int, arity: int | None):
    for number in (1, 2, 40, 3001):
        x = skewed(number)
        answer = ask(quantile("x", Q, low=-10, high=130, num_bins=num_bins, arity=arity), clients(x))
        assert np.abs(answer.value - np.quantile(x.clip(-10, 130), Q)).max() <= 140 / num_bins
        np.testing.assert_array_equal(answer.stddev, 0)


def test_of_a_gap_is_as_far_between_its_ends_as_numpy_is():
    x = np.array([1.0, 2.0, 90.0, 91.0])
    found = ask(quantile("x", [0.4, 0.5, 0.55], low=0, high=100, num_bins=1000), clients(x)).value
    np.testing.assert_allclose(found, np.quantile(x, [0.4, 0.5, 0.55]), atol=0.1)


@pytest.mark.parametrize(
    ("dtype", "low"), [(np.int32, -40), (np.uint8, 3), (np.int16, 0), (np.float32, -7), (np.int32, 2**30)]
)
def test_of_whole_numbers_is_numpy_exactly(dtype: type, low: int):
    x = (np.random.default_rng(0).choice([0, 1, 2, 7, 50, 51, 90], 301) + low).astype(dtype)
    data, exact = clients(x), x.astype(np.float64)
    secure = ask(quantile("x", Q, low=low, high=low + 90, num_bins=None, arity=3), data, trust="secure")
    np.testing.assert_allclose(secure.value, np.quantile(exact, Q), rtol=1e-14)
    inside = ask(quantile("x", Q, low=low + 2, high=low + 60, num_bins=None), data)
    np.testing.assert_allclose(inside.value, np.quantile(exact.clip(low + 2, low + 60), Q), rtol=1e-14)


def test_leaves_out_what_is_no_number_and_clips_what_is_infinite():
    x = np.array([np.nan, 3, np.nan, -np.inf, 5, np.inf, 6], np.float32)
    kept = [0, 3, 5, 6, 10]
    for num_bins in (None, 10_000):
        found = ask(quantile("x", Q, low=0, high=10, num_bins=num_bins), clients(x)).value
        np.testing.assert_allclose(found, np.quantile(kept, Q), atol=0.001)
    nothing = ask(quantile("x", 0.5, low=0, high=10), clients(np.array([np.nan], np.float32)))
    assert np.isnan(nothing.value)
    assert np.isnan(nothing.stddev)


def test_has_the_shape_that_is_asked_for():
    data = clients(skewed(50))
    several = ask(quantile("x", [[0.1, 0.5], [0.5, 0.9]], low=0, high=100), data)
    assert several.value.shape == several.stddev.shape == (2, 2)
    one = ask(median("x", low=0, high=100), data)
    assert one.value == several.value[0, 1] == several.value[1, 0]
    assert np.ndim(one.stddev) == 0


def noisy(question: Question, counts: np.ndarray, variance: float, rng: np.random.Generator) -> Total:
    """Returns the sums that a question with a tree over such bins would be answered with."""
    levels = [counts]
    while sum(map(len, levels)) < question.num_bins:
        levels.append(np.add.reduceat(levels[-1], np.arange(0, len(levels[-1]), 4)))
    nodes = np.concatenate(levels)
    table = nodes + rng.normal(0, variance**0.5, len(nodes))
    return Total(table[:, None], np.full((len(nodes), 1), variance))


def test_with_noise_it_is_as_far_off_as_it_says():
    x, edges, rng = skewed(100_000), np.linspace(0, 128, 1025), np.random.default_rng(0)
    counts = np.histogram(x, edges)[0].astype(np.float64)
    shares = np.array([0.05, 0.5, 0.95])
    sizes = {}
    for arity in (None, 4):
        question = quantile("x", shares, low=0, high=128, arity=arity)
        variance = (40 * question.sensitivity(1, False).l2) ** 2
        exact = question.estimate(noisy(question, counts, 0, rng))[0]
        found = np.array([question.estimate(noisy(question, counts, variance, rng)) for _ in range(500)])
        off, stddev = found[:, 0] - exact, found[:, 1]
        assert (np.abs(off.mean(0)) < 0.2 * stddev.mean(0)).all()  # growing curves are not quite without bias
        np.testing.assert_allclose(off.std(0), stddev.mean(0), rtol=0.15)
        coverage = np.mean(np.abs(off) < 2 * stddev, axis=0)
        assert (coverage > 0.91).all()
        assert (coverage < 0.985).all()
        assert (np.mean(np.abs(off) < stddev, axis=0) < 0.8).all()  # the control: half of the width is too little
        sizes[arity] = stddev.mean(0)
    assert (sizes[None] > np.array([1.5, 3.5, 5]) * sizes[4]).all()  # at the same price, more in the middle


def test_noise_as_large_as_the_bins_leans_to_no_side():
    rng, counts = np.random.default_rng(0), np.full(1024, 10.0)
    question = quantile("x", [0.3, 0.5, 0.7], low=0, high=100, arity=4)
    found = np.array([question.estimate(noisy(question, counts, 400.0, rng)) for _ in range(500)])
    off, stddev = found[:, 0] - [30, 50, 70], found[:, 1]
    assert (np.abs(off.mean(0)) < 0.15 * off.std(0)).all()
    np.testing.assert_allclose(off.std(0), stddev.mean(0), rtol=0.2)


@pytest.mark.parametrize("trust", ["central_dp", "distributed_dp"])
def test_is_asked_with_noise(trust):
    x = skewed(3000, seed=1)
    data = FederatedData.from_clients([{"x": x[k : k + 1]} for k in range(len(x))])
    question = quantile("x", [0.25, 0.5], low=0, high=128, num_bins=64, arity=4)
    how = {"trust": trust, "epsilon": 2.0, "delta": 1e-5, "max_records": 1, "key": jax.random.key(0)}
    answer = ask(question, data, **how)
    assert (0 < answer.stddev).all()
    assert (answer.stddev < 2).all()
    assert (np.abs(answer.value - np.quantile(x, [0.25, 0.5])) < 4 * answer.stddev + 2).all()


def test_of_a_sample_says_how_far_it_is_off():
    data = clients(skewed(3000, seed=2))
    question = quantile("x", [0.3, 0.8], low=0, high=128)
    truth, sampler = ask(question, data).value, poisson_sampler(data.num_clients, probability=0.3, seed=0)
    found = [ask(question, data, sampler=sampler, round=round) for round in range(30)]
    values, stddevs = np.array([(one.value, one.stddev) for one in found]).transpose(1, 0, 2)
    assert (np.abs(values.mean(0) - truth) < 4 * values.std(0) / np.sqrt(30)).all()
    ratio = stddevs.mean(0) / values.std(0)
    assert (0.7 < ratio).all()
    assert (ratio < 3.5).all()


@pytest.mark.parametrize("trust", ["local_dp", "shuffled_dp"])
def test_local_reports_are_on_bins_alone(trust):
    x = skewed(20_000)
    data = FederatedData.from_clients([{"x": x[k : k + 1]} for k in range(len(x))])
    how = {"trust": trust, "epsilon": 2.0, "delta": 1e-6, "key": jax.random.key(0)}
    answer = ask(median("x", low=0, high=64, num_bins=16), data, **how)
    assert 0 < answer.stddev < 4
    assert abs(answer.value - np.median(x)) < 4 * answer.stddev + 1
    with pytest.raises(ValueError, match="one on each level"):
        ask(median("x", low=0, high=64, num_bins=16, arity=4), data, **how)


# --- by bisection ---------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", ["plain", "secure"])
def test_bisection_comes_to_the_quantile(trust):
    x = skewed(2000)
    shares = np.array([0.9, 0.021, 0.5, 0.5])
    answer = ask(quantile_by_bisection("x", shares, low=-20, high=108, num_rounds=14), clients(x), trust=trust)
    assert np.abs(answer.value - np.quantile(x, shares, method="inverted_cdf")).max() <= 128 / 2**15 + 1e-5
    np.testing.assert_array_equal(answer.stddev, 0)


def test_bisection_of_no_numbers_is_nan():
    answer = ask(quantile_by_bisection("x", 0.5, low=0, high=1, num_rounds=2), clients(np.array([np.nan], np.float32)))
    assert np.isnan(answer.value)
    assert np.isnan(answer.stddev)


def conversed(dialogue: Dialogue, x: np.ndarray, stddev: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Holds a dialogue about numbers, whose counts have noise."""
    state, ordered = dialogue.first, np.sort(x)
    for round in range(dialogue.num_rounds):
        told = np.sort(dialogue.question(state, round).told)
        below = np.searchsorted(ordered, told, side="right")
        counts = np.diff(below, prepend=0, append=len(x)) + rng.normal(0, stddev, len(told) + 1)
        total = Total(counts[:, None], np.full((len(counts), 1), stddev**2))
        state = dialogue.update(state, round, total)
    return dialogue.estimate(state)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_noisy_bisection_is_about_as_far_off_as_it_says(share: float):
    x, rng = skewed(100_000), np.random.default_rng(0)
    dialogue = quantile_by_bisection("x", share, low=0, high=128, num_rounds=12)
    found = np.array([conversed(dialogue, x, 500.0, rng) for _ in range(400)])
    off, stddev = found[:, 0] - np.quantile(x, share), found[:, 1]
    assert abs(off.mean()) < 0.2 * stddev.mean()
    assert 0.5 < off.std() / stddev.mean() < 1.1
    assert np.mean(np.abs(off) < 2 * stddev) > 0.9
    assert np.mean(np.abs(off) < stddev / 8) < 0.4  # the control: it is not far less off either
    # The share has the deviation of what is below, (1 - q)^2 + q^2 on two counts, which the slope there turns into it.
    slope = np.mean(np.abs(x - np.quantile(x, share)) < 1) / 2
    expected = 500 / len(x) * np.hypot(share, 1 - share) / slope
    np.testing.assert_allclose(np.median(stddev), expected, rtol=0.3)


def test_local_bisection_takes_one_report_of_each_client():
    x = skewed(40_000)
    data = FederatedData.from_clients([{"x": x[k : k + 1]} for k in range(len(x))])
    question = quantile_by_bisection("x", 0.5, low=0, high=128, num_rounds=8)
    answer = ask(question, data, trust="local_dp", epsilon=2.0, key=jax.random.key(1))
    assert answer.bits <= 9
    assert 0 < answer.stddev < 4
    assert abs(answer.value - np.median(x)) < 4 * answer.stddev
    assert answer.epsilon(1e-9) <= 2 + 1e-6


def test_bisection_goes_on_where_it_was(tmp_path):
    data, question = clients(skewed(300)), quantile_by_bisection("x", [0.2, 0.5], low=0, high=128, num_rounds=6)
    calls = []

    def interrupted(state, round: int) -> Question:
        calls.append(round)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return question.question(state, round)

    with pytest.raises(KeyboardInterrupt):
        ask(question._replace(question=interrupted), data, path=tmp_path / "dialogue.npz")
    resumed = ask(question, data, path=tmp_path / "dialogue.npz")
    np.testing.assert_array_equal(resumed.value, ask(question, data).value)


# --- online ---------------------------------------------------------------------------------------


def test_online_is_the_rule_of_clipping_bounds():
    x = skewed(500)
    answer = ask(quantile_online("x", 0.8, initial=1.0, num_rounds=25, learning_rate=0.3), clients(x))
    guess = jnp.float32(1.0)
    for _ in range(25):
        guess = follow_quantile(guess, jnp.float32(np.mean(x <= guess)), quantile=0.8, learning_rate=0.3)
    np.testing.assert_allclose(answer.value, guess, rtol=1e-5)
    assert answer.stddev is None


@pytest.mark.parametrize(
    ("move", "low", "rate"),
    [(lambda guess, step: guess * np.exp(-step), 0, 0.2), (lambda guess, step: guess - step, -30, 8)],
)
def test_online_follows_cohorts(move: Callable[[np.ndarray, np.ndarray], np.ndarray], low: float, rate: float):
    x, shares = skewed(3000) + np.float32(low), np.array([0.6, 0.2])
    data = FederatedData.from_clients([{"x": part} for part in x.reshape(-1, 4)])
    sampler = uniform_sampler(data.num_clients, cohort_size=100, seed=0)
    question = quantile_online("x", shares, initial=50, num_rounds=60, learning_rate=rate, geometric=low == 0)
    answer = ask(question, data, sampler=sampler)
    guess = np.full(2, 50.0)
    for round in range(60):
        records = np.concatenate([data.client(k)["x"] for k in np.asarray(sampler(round))])
        guess = move(guess, rate * (np.mean(records <= guess[:, None].astype(np.float32), axis=1) - shares))
    np.testing.assert_allclose(answer.value, guess, rtol=1e-9)
    assert (np.abs(answer.value - np.quantile(x, shares)) < 4).all()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: quantile("x", 1.5, low=0, high=1), r"q must be in \[0, 1\]; got q=1.5"),
        (lambda: quantile("x", 0.5, low=1, high=1), "bounds are in order"),
        (lambda: quantile("x", 0.5, low=0, high=1, num_bins=0), "num_bins must be an integer"),
        (lambda: quantile("x", 0.5, low=0.5, high=9, num_bins=None), "whole numbers lie between two of them; got"),
        (lambda: quantile("x", 0.5, low=0, high=1, arity=1), "arity must be an integer of at least 2"),
        (lambda: quantile_by_bisection("x", 0.0, low=0, high=1), r"q must be in \(0, 1\)"),
        (lambda: quantile_by_bisection("x", 0.5, low=0, high=1, num_rounds=0), "num_rounds must be"),
        (lambda: quantile_online("x", 0.5, initial=0.0, num_rounds=3), "initial must be positive"),
        (
            lambda: quantile_online("x", 0.5, initial=1.0, num_rounds=3, learning_rate=0.0),
            "learning_rate must be positive",
        ),
    ],
)
def test_refuses(made: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        made()
