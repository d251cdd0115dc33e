"""The weighted mean as an aggregator, and the weights of clients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.aggregation import by_examples, mean, uniform
from fedjx.core.language.values import Clients


@pytest.mark.parametrize("options", [{}, {"lanes": 1}])
def test_the_mean_is_weighted_and_keeps_no_state(options):
    aggregator = mean()
    value = Clients.of({"w": np.array([[1.0, 2.0], [5.0, 6.0], [np.nan, 7.0]], np.float32)})
    weight = Clients.of(np.array([1.0, 3.0, 0.0], np.float32))
    state = aggregator.init({"w": jnp.zeros(2)})
    state, result, measured = aggregator.next.in_graph(**options)(jax.random.key(0), state, value, weight)
    np.testing.assert_allclose(result["w"], [4.0, 5.0], rtol=1e-6)
    assert (state, measured) == ((), {})


def test_no_weight_at_all_gives_zero():
    value, weight = Clients.of(np.ones((2, 3), np.float32)), Clients.of(np.zeros(2, np.float32))
    _, result, _ = mean().next(jax.random.key(0), (), value, weight)
    np.testing.assert_array_equal(result, np.zeros(3))


def test_weights_of_clients():
    sizes = jnp.array([0, 1, 7])
    np.testing.assert_array_equal(by_examples(sizes), [0.0, 1.0, 7.0])
    np.testing.assert_array_equal(uniform(sizes), [0.0, 1.0, 1.0])
    assert by_examples(sizes).dtype == uniform(sizes).dtype == jnp.float32
