"""The least and the largest number: exact to a point in the clear, and surely reached under noise."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fedjx.analytics import Total, ask, histogram, maximum, minimum
from fedjx.data import FederatedData


def clients(sizes: list[int], seed: int = 0) -> FederatedData:
    rng = np.random.default_rng(seed)
    return FederatedData.from_clients(
        [{"x": rng.normal(size=n).astype(np.float32), "k": rng.integers(-50, 60, n)} for n in sizes]
    )


DATA = clients([3, 0, 1, 40, 9, 17])
X, K = (np.concatenate([DATA.client(i)[name] for i in range(6)]) for name in ("x", "k"))


@pytest.mark.parametrize("trust", ["plain", "secure"])
def test_is_exact_to_a_point(trust):
    points = np.linspace(-4, 4, 33)
    answer = ask(maximum("x", low=-4, high=4, num_bins=33), DATA, trust=trust)
    assert answer.value == points[points <= X.max()].max()
    assert answer.stddev is None
    least = ask(minimum("x", low=-4, high=4, num_bins=33), DATA, trust=trust).value
    assert least == points[points >= X.min()].min()


def test_of_integers_with_a_point_at_each_is_exact_and_clipped():
    assert ask(maximum("k", low=-50, high=60, num_bins=111), DATA).value == K.max()
    assert ask(minimum("k", low=-50, high=60, num_bins=111), DATA).value == K.min()
    assert ask(maximum("k", low=0, high=20, num_bins=21), DATA).value == 20
    assert ask(minimum("k", low=0, high=20, num_bins=21), DATA).value == 0
    assert ask(maximum("k", low=100, high=200, num_bins=101), DATA).value == 100


def test_what_is_not_finite_is_left_out():
    data = FederatedData.from_clients([{"x": np.array([np.nan, 2, np.inf], np.float32)}, {"x": [np.float32(1)]}])
    assert ask(maximum("x", low=0, high=9, num_bins=10), data).value == 2
    empty = FederatedData.from_clients([{"x": np.array([np.nan, -np.inf], np.float32)}])
    assert np.isnan(ask(minimum("x", low=0, high=9, num_bins=10), empty).value)


def test_of_a_client_its_own_extremes_go_in():
    values = np.tile(np.arange(30), (200, 1))
    values[:, 0] = 99
    data = FederatedData.from_clients([{"k": np.random.default_rng(i).permutation(x)} for i, x in enumerate(values)])
    # The control: of random records, few are the largest ones.
    random = ask(histogram("k", bins=100, distinct=True), data, max_records=1).value
    assert 0 < random[99] < 20
    for max_records, found in ((1, [200]), (2, [200, 200])):
        question = maximum("k", low=0, high=99, num_bins=100)
        counts = ask(question._replace(estimate=lambda total: (total.table[:, 0], None)), data, max_records=max_records)
        np.testing.assert_array_equal(counts.value[counts.value > 0], found)
        assert counts.value[99] == 200
    smallest = minimum("k", low=0, high=99, num_bins=100)
    assert ask(smallest, data, max_records=1).value == 1
    private = dict(epsilon=1.0, delta=1e-6, key=jax.random.key(0))
    assert (
        ask(maximum("k", low=0, high=99, num_bins=100), data, trust="central_dp", max_records=1, **private).value == 99
    )
    assert ask(smallest, data, trust="central_dp", max_records=1, **private).value == 1
    private = dict(epsilon=6.0, key=jax.random.key(0))
    assert ask(maximum("k", low=0, high=99, num_bins=100), data, trust="local_dp", **private).value == 99


def exceeded(confidence: float, draw, number: int = 2000) -> float:
    """Returns how often an answer is beyond what any of the clients has, who have points up to 20 of 40."""
    question = maximum("x", low=0, high=39, num_bins=40, confidence=confidence)
    exact = np.where(np.arange(40) <= 20, 3.0, 0.0)
    rng = np.random.default_rng(0)
    tables = exact + 5 * draw(rng, (number, 40))
    values = [question.estimate(Total(table[:, None], np.full((40, 1), 25.0)))[0] for table in tables]
    return float(np.mean(np.array(values) > 20))


@pytest.mark.parametrize(
    "draw", [lambda rng, shape: rng.normal(size=shape), lambda rng, shape: rng.laplace(0, 0.5**0.5, shape)]
)
def test_a_private_answer_is_reached(draw):
    assert exceeded(0.95, draw) < 0.05
    # The control: at a lower threshold it is not.
    assert exceeded(0.5, draw) > exceeded(0.95, draw)
    assert exceeded(0.5, lambda rng, shape: 2 * draw(rng, shape)) > 0.05


def test_a_private_answer_needs_enough_clients():
    question = maximum("x", low=0, high=9, num_bins=10)
    threshold = np.log(10 / (2 * 0.05)) / 2**0.5
    variance = np.full((10, 1), 4.0)
    for number, value in ((threshold * 2 * 3**0.5 - 0.01, 3), (threshold * 2 * 3**0.5 + 0.01, 7)):
        table = np.zeros((10, 1))
        table[3], table[7] = 1000, number
        assert question.estimate(Total(table, variance))[0] == value
    assert np.isnan(question.estimate(Total(np.zeros((10, 1)), variance))[0])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="bounds are in order"):
        maximum("x", low=2, high=1, num_bins=3)
    with pytest.raises(ValueError, match="num_bins must be"):
        minimum("x", low=0, high=1, num_bins=1)
    with pytest.raises(ValueError, match="confidence must be"):
        minimum("x", low=0, high=1, num_bins=2, confidence=1.0)
