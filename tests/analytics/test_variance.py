"""Variances, covariances and correlations against NumPy, and their errors against repetitions."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from fedjx.analytics import Question, Total, ask, correlation, covariance, variance
from fedjx.data import FederatedData

BOUNDS = {"x": (-4.0, 10.0), "y": (-3.0, 5.0), "z": (0.0, 100.0)}


def columns(number: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 1.5, number)
    y = 0.5 * x + rng.normal(0, 0.7, number)
    z = rng.integers(0, 101, number)
    return {"x": x.astype(np.float32), "y": y.astype(np.float32), "z": z}


def split(pooled: dict[str, np.ndarray], sizes: list[int]) -> FederatedData:
    ends = np.cumsum([0, *sizes])
    return FederatedData.from_clients(
        [{name: x[a:b] for name, x in pooled.items()} for a, b in itertools.pairwise(ends)]
    )


POOLED = columns(900)
DATA = split(POOLED, [1, 3, 0, 5, 20, 200, 71, 600])
CLIPPED = {name: np.clip(x.astype(np.float64), *BOUNDS[name]) for name, x in POOLED.items()}


@pytest.mark.parametrize("ddof", [0, 1, 2.5])
@pytest.mark.parametrize("name", ["x", "z"])
def test_variance_is_that_of_numpy(name: str, ddof: float):
    low, high = BOUNDS[name]
    answer = ask(variance(name, low=low, high=high, ddof=ddof), DATA)
    np.testing.assert_allclose(answer.value, np.var(CLIPPED[name], ddof=ddof), rtol=1e-5)
    assert answer.stddev == 0
    assert answer.num_answered == 7


def test_variance_without_bounds_and_of_clipped_numbers():
    np.testing.assert_allclose(ask(variance("x"), DATA).value, np.var(POOLED["x"].astype(float)), rtol=1e-5)
    narrow = ask(variance("x", low=2, high=3), DATA).value
    np.testing.assert_allclose(narrow, np.clip(POOLED["x"], 2, 3).var(dtype=float), rtol=1e-5)


def test_variance_of_large_integers_near_their_bounds_is_exact():
    years = 2_000_000_000 + np.arange(50) % 7
    data = split({"t": years}, [20, 30])
    value = ask(variance("t", low=2_000_000_000, high=2_000_000_010), data).value
    np.testing.assert_allclose(value, years.var(), rtol=1e-6)


def test_variance_of_nothing_is_no_number():
    data = FederatedData.from_clients(
        [{"x": np.array([np.nan, 2.0], np.float32)}, {"x": np.array([np.inf], np.float32)}]
    )
    assert ask(variance("x", low=0, high=9), data).value == 0
    assert np.isnan(ask(variance("x", low=0, high=9, ddof=1), data).value)


@pytest.mark.parametrize("ddof", [0, 1])
def test_covariances_are_those_of_numpy(ddof: int):
    value = ask(covariance(list(BOUNDS), bounds=BOUNDS, ddof=ddof), DATA).value
    np.testing.assert_allclose(value, np.cov(list(CLIPPED.values()), ddof=ddof), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("trust", ["plain", "secure"])
def test_correlations_are_those_of_numpy(trust):
    answer = ask(correlation(list(BOUNDS), bounds=BOUNDS), DATA, trust=trust)
    np.testing.assert_allclose(
        answer.value, np.corrcoef(list(CLIPPED.values())), atol=1e-5 if trust == "plain" else 1e-4
    )
    np.testing.assert_array_equal(answer.value, answer.value.T)
    np.testing.assert_array_equal(np.diagonal(answer.value), 1)
    without = ask(correlation(["y", "x"]), DATA).value
    np.testing.assert_allclose(without[0, 1], np.corrcoef(POOLED["y"], POOLED["x"])[0, 1], atol=1e-5)


def test_records_that_lack_a_number_are_left_out_of_all():
    pooled = {name: np.append(x.astype(np.float32), [x[0], np.nan][name == "y"]) for name, x in POOLED.items()}
    spoilt = split(pooled, [301, 600])
    bounds = {"x": BOUNDS["x"], "y": BOUNDS["y"]}
    value = ask(correlation(["x", "y"], bounds=bounds), spoilt).value
    np.testing.assert_allclose(value, np.corrcoef(CLIPPED["x"], CLIPPED["y"]), atol=1e-5)


def test_a_constant_column_has_no_correlation():
    data = split({"x": POOLED["x"], "c": np.full(900, 0.3, np.float32)}, [300, 600])
    value = ask(correlation(["x", "c"], bounds={"x": (-4, 10), "c": (0, 1)}), data).value
    np.testing.assert_array_equal(np.isnan(value), [[False, True], [True, True]])


def table(names: list[str], pooled: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the exact sums, in the order of the question's table, from its definition."""
    middles = {name: (low + high) / 2 for name, (low, high) in BOUNDS.items()}
    halves = {name: (high - low) / 2 for name, (low, high) in BOUNDS.items()}
    z = [pooled[name] - middles[name] for name in names]
    products = [
        (z[i] * z[j]).sum() - (i == j) * len(z[i]) * halves[names[i]] ** 2 / 2
        for i in range(len(names))
        for j in range(i, len(names))
    ]
    return np.array([*(x.sum() for x in z), *products, len(z[0])])


def repeated(question: Question, exact: np.ndarray, scale: np.ndarray, number: int = 1000) -> tuple:
    """Returns estimates from sums with noise, and the standard deviations that they state."""
    rng, found = np.random.default_rng(3), []
    for _ in range(number):
        noisy = exact + scale * rng.normal(size=exact.shape)
        found.append(question.estimate(Total(noisy[None], np.square(scale)[None])))
    return np.array([value for value, _ in found]), np.array([stddev for _, stddev in found])


@pytest.mark.parametrize(
    ("question", "names", "truth"),
    [
        (variance("x", low=-4, high=10, ddof=1), ["x"], np.var(CLIPPED["x"], ddof=1)),
        (covariance(["x", "y"], bounds=BOUNDS, ddof=1), ["x", "y"], np.cov(CLIPPED["x"], CLIPPED["y"])),
        (correlation(["x", "y", "z"], bounds=BOUNDS), ["x", "y", "z"], np.corrcoef(list(CLIPPED.values()))),
    ],
)
def test_noise_is_stated(question: Question, names: list[str], truth: np.ndarray):
    exact = table(names, CLIPPED)
    np.testing.assert_allclose(question.estimate(Total(exact[None], np.zeros((1, len(exact)))))[0], truth, rtol=1e-9)
    scale = 4 * np.array([*question.bounds, 1.0])
    values, stddevs = repeated(question, exact, scale)
    stated, found = stddevs.mean(axis=0), values.std(axis=0)
    np.testing.assert_allclose(found, stated, rtol=0.1, atol=1e-12)
    assert np.all(np.abs(values.mean(axis=0) - truth) < 0.25 * stated + 1e-12)
    # The control: noise of half as much is told apart.
    _, halved = repeated(question, exact, scale / 2, 20)
    assert np.all((stated == 0) | (halved.mean(axis=0) < 0.6 * stated))


@pytest.mark.parametrize(
    ("question", "names"),
    [
        (variance("x", low=-4, high=10, ddof=300), ["x"]),
        (covariance(["x", "y"], bounds=BOUNDS, ddof=300), ["x", "y"]),
        (correlation(["x", "y"], bounds=BOUNDS), ["x", "y"]),
    ],
)
def test_errors_have_the_slopes_of_the_answer(question: Question, names: list[str]):
    exact = table(names, CLIPPED)
    for place, step in enumerate(1e-5 * np.abs(exact)):
        unit = np.eye(len(exact))[place] * step
        nothing = np.zeros((1, len(exact)))
        higher, lower = (np.asarray(question.estimate(Total((exact + x)[None], nothing))[0]) for x in (unit, -unit))
        stddev = question.estimate(Total(exact[None], np.square(unit)[None]))[1]
        np.testing.assert_allclose(stddev, np.abs(higher - lower) / 2, rtol=1e-4, atol=1e-12)


def test_a_private_variance_is_off_as_far_as_it_says():
    data = split(columns(600, seed=2), [1] * 600)
    truth = np.var(columns(600, seed=2)["x"].clip(-4, 10), dtype=float)
    how = dict(trust="central_dp", epsilon=4.0, delta=1e-5, max_records=1)
    answers = [ask(variance("x", low=-4, high=10), data, key=jax.random.key(k), **how) for k in range(120)]
    scores = np.array([(answer.value - truth) / answer.stddev for answer in answers])
    assert abs(scores.mean()) < 0.35
    assert 0.8 < scores.std() < 1.2


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="two bounds, or none"):
        variance("x", low=1)
    with pytest.raises(ValueError, match="ddof must be"):
        variance("x", low=0, high=1, ddof=-1)
    with pytest.raises(ValueError, match=r"each column has bounds; got none of \['y'\]"):
        covariance(["x", "y"], bounds={"x": (0, 1)})
    with pytest.raises(ValueError, match="columns are some, each once"):
        correlation(["x", "x"])
    with pytest.raises(ValueError, match="needs bounds"):
        ask(correlation(["x", "y"]), DATA, trust="secure")
