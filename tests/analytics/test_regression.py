"""Linear regression by sums, against least squares over the records."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from fedjx.analytics import Regression, Total, ask, linear_regression
from fedjx.data import FederatedData

BOUNDS = {"a": (-5.0, 5.0), "b": (0.0, 4.0), "y": (-20.0, 30.0)}
SLOPES = np.array([2.0, -3.0])


def records(number: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.normal(1, 1, number).clip(-5, 5)
    b = (0.3 * a + rng.uniform(0.5, 2.5, number)).clip(0, 4)
    y = 4 + SLOPES @ [a, b] + rng.normal(0, 1.5, number)
    return {name: x.astype(np.float32) for name, x in {"a": a, "b": b, "y": y}.items()}


def split(pooled: dict[str, np.ndarray], sizes: list[int]) -> FederatedData:
    ends = np.cumsum([0, *sizes])
    return FederatedData.from_clients(
        [{name: x[i:j] for name, x in pooled.items()} for i, j in itertools.pairwise(ends)]
    )


POOLED = records(800)
DATA = split(POOLED, [0, 1, 9, 90, 700])
X, Y = np.stack([POOLED["a"], POOLED["b"]], axis=1).astype(float), POOLED["y"].astype(float)


def line(**arguments: Any) -> Regression:
    return ask(linear_regression(["a", "b"], "y", bounds=BOUNDS, **arguments), DATA).value


def test_is_that_of_least_squares():
    design = np.column_stack([X, np.ones(len(X))])
    expected, residual, _, _ = np.linalg.lstsq(design, Y)
    found = line()
    np.testing.assert_allclose([*found.coefficients, found.intercept], expected, rtol=1e-4)
    variance = residual[0] / (len(X) - 3)
    np.testing.assert_allclose(found.residual_variance, variance, rtol=1e-4)
    errors = np.sqrt(variance * np.diagonal(np.linalg.inv(design.T @ design)))[:2]
    np.testing.assert_allclose(found.standard_errors, errors, rtol=1e-4)
    secure = ask(linear_regression(["a", "b"], "y", bounds=BOUNDS), DATA, trust="secure")
    np.testing.assert_allclose(secure.value.coefficients, expected[:2], rtol=1e-3)
    assert 0 < secure.stddev.coefficients.max() < 1e-3
    without = ask(linear_regression(["a", "b"], "y"), DATA).value
    np.testing.assert_allclose([*without.coefficients, without.intercept], expected, rtol=1e-3)


def test_through_the_origin():
    expected, residual, _, _ = np.linalg.lstsq(X, Y)
    found = line(intercept=False)
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-4)
    np.testing.assert_allclose(found.residual_variance, residual[0] / (len(X) - 2), rtol=1e-4)
    assert found.intercept == 0


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1.0, 300.0])
def test_a_ridge_is_that_of_scikit_learn(ridge: float, intercept: bool):
    expected = Ridge(alpha=ridge, fit_intercept=intercept).fit(X, Y)
    found = line(ridge=ridge, intercept=intercept)
    np.testing.assert_allclose(found.coefficients, expected.coef_, rtol=1e-4)
    np.testing.assert_allclose(found.intercept, expected.intercept_, rtol=1e-4)


def test_of_collinear_features_is_the_shortest_line():
    pooled = {"a": POOLED["a"], "twin": POOLED["a"], "still": np.full(800, 2.5, np.float32), "y": POOLED["y"]}
    data = split(pooled, [300, 500])
    bounds = {**BOUNDS, "twin": (-5.0, 5.0), "still": (0.0, 4.0)}
    found = ask(linear_regression(["a", "twin", "still"], "y", bounds=bounds), data).value
    slope, intercept = np.polyfit(X[:, 0], Y, 1)
    np.testing.assert_allclose(found.coefficients, [slope / 2, slope / 2, 0], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.intercept, intercept, rtol=1e-3)


def test_of_nothing_is_no_number():
    found = ask(
        linear_regression(["a"], "y", bounds=BOUNDS), split({"a": np.array([np.nan]), "y": np.array([1.0])}, [1])
    ).value
    assert np.isnan([*found.coefficients, found.intercept, found.residual_variance]).all()


@pytest.mark.parametrize("arguments", [{}, {"intercept": False}, {"ridge": 200.0}])
def test_noise_is_stated(arguments: dict[str, Any]):
    question = linear_regression(["a", "b"], "y", bounds=BOUNDS, **arguments)
    entry = jax.vmap(lambda record: question.entry(record, ()))(POOLED)
    exact = np.append(np.asarray(entry.values, np.float64).sum(axis=0), len(X))
    scale = 0.3 * np.array([*question.bounds, 1.0])
    rng, found = np.random.default_rng(0), []
    for _ in range(1000):
        noisy = exact + scale * rng.normal(size=exact.shape)
        found.append(question.estimate(Total(noisy[None], np.square(scale)[None])))
    truth = question.estimate(Total(exact[None], np.zeros((1, len(exact)))))[0]
    for name in ("coefficients", "intercept")[: 1 if "intercept" in arguments else 2]:
        values = np.array([getattr(value, name) for value, _ in found])
        stated = np.array([getattr(stddev, name) for _, stddev in found]).mean(axis=0)
        np.testing.assert_allclose(values.std(axis=0), stated, rtol=0.1)
        assert np.all(np.abs(values.mean(axis=0) - getattr(truth, name)) < 0.2 * stated)
    # The control: of half the noise another one is stated.
    halved = question.estimate(Total(exact[None], np.square(scale / 2)[None]))[1].coefficients
    assert np.all(halved < 0.6 * found[0][1].coefficients)


@pytest.mark.parametrize("arguments", [{}, {"intercept": False}, {"ridge": 200.0}])
def test_errors_have_the_slopes_of_the_answer(arguments: dict[str, Any]):
    question = linear_regression(["a", "b"], "y", bounds=BOUNDS, **arguments)
    entry = jax.vmap(lambda record: question.entry(record, ()))(POOLED)
    exact = np.append(np.asarray(entry.values, np.float64).sum(axis=0), len(X))
    for place, step in enumerate(1e-5 * np.abs(exact)):
        unit = np.eye(len(exact))[place] * step
        higher, lower = (
            question.estimate(Total((exact + x)[None], np.zeros_like(exact)[None]))[0] for x in (unit, -unit)
        )
        stddev = question.estimate(Total(exact[None], np.square(unit)[None]))[1]
        for name in ("coefficients", "intercept"):
            slope = np.abs(np.asarray(getattr(higher, name)) - getattr(lower, name)) / 2
            np.testing.assert_allclose(getattr(stddev, name), slope, rtol=1e-4, atol=1e-12)


def test_a_private_line_is_near():
    data = split(records(4000, seed=1), [1] * 4000)
    question = linear_regression(["a", "b"], "y", bounds=BOUNDS)
    how = dict(trust="central_dp", epsilon=4.0, delta=1e-6, max_records=1, key=jax.random.key(1))
    answer, exact = ask(question, data, **how), ask(question, data)
    scores = (answer.value.coefficients - exact.value.coefficients) / answer.stddev.coefficients
    assert np.all(np.abs(scores) < 3.5)
    assert np.all(answer.stddev.coefficients < 1)
    assert answer.epsilon(1e-6) <= 4


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="a line needs a feature"):
        linear_regression([], "y")
    with pytest.raises(ValueError, match="columns are some, each once"):
        linear_regression(["y"], "y")
    with pytest.raises(ValueError, match="ridge must be"):
        linear_regression(["a"], "y", ridge=-1.0)
