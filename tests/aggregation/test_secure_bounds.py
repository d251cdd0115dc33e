"""Clips, zeroing and estimated bounds around secure sums: the server sees totals only, the same as in the open."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.aggregation.clipping import clip_adaptively, clip_by_norm, clip_by_value
from fedjx.aggregation.mean import mean
from fedjx.aggregation.secure import secure_mean, secure_total
from fedjx.aggregation.secure_preset import secure_mean_of_estimated_bound, zeroed_and_clipped_secure_mean
from fedjx.aggregation.zeroing import zero_above, zero_outliers, zeroed_and_clipped_mean
from fedjx.algorithms import fed_avg, fed_exp
from fedjx.core.language.secure import check_secure
from fedjx.core.language.values import Clients
from fedjx.data import Cohort
from tests.algorithms.problems import assert_trees_close
from tests.algorithms.test_every_combination import DATA, toy

KEY = jax.random.key(0)
WRAPPERS = {
    "clip_by_norm": lambda inner: clip_by_norm(max_norm=1.0, inner=inner),
    "clip_by_value": lambda inner: clip_by_value(max_value=0.5, inner=inner),
    "clip_adaptively": lambda inner: clip_adaptively(initial=1.0, inner=inner),
    "zero_above": lambda inner: zero_above(threshold=2.0, inner=inner),
    "zero_outliers and clip": lambda inner: zero_outliers(initial=1.0, inner=clip_adaptively(inner=inner)),
}


def members() -> tuple[Clients, Clients]:
    value = np.random.default_rng(0).normal(size=(7, 5)) * np.array([0.1, 0.5, 1, 2, 4, 0.2, np.nan])[:, None]
    return Clients.of(value.astype(np.float32)), Clients.of(np.float32([1, 2, 3, 0, 1, 2, 1]))


def open_or_secure(wrap, inner):
    aggregator = wrap(inner)
    arguments = KEY, aggregator.init(jnp.zeros(5)), *members()
    return aggregator, arguments, aggregator.next(*arguments)


@pytest.mark.parametrize("name", WRAPPERS)
def test_around_a_secure_mean_all_goes_through_secure_sums(name):
    secure, arguments, (state, result, measured) = open_or_secure(
        WRAPPERS[name], secure_mean(bound=5.0, max_weight=4.0, max_clients=8)
    )
    check_secure(secure.next, *arguments)
    assert all(m.secure for m in secure.next.communication(*arguments) if m.direction == "up")
    plain, arguments, (state_of_plain, expected, measured_of_plain) = open_or_secure(WRAPPERS[name], mean())
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert_trees_close(state, state_of_plain)  # the estimates are the same
    assert_trees_close({k: measured[k] for k in measured_of_plain}, measured_of_plain)
    with pytest.raises(ValueError, match="only secure sums may touch client values"):
        check_secure(plain.next, *arguments)


@pytest.mark.parametrize("method", [fed_avg, fed_exp])
def test_a_method_with_the_preset_shows_totals_only(method):
    algorithm = method(
        toy(),
        client_optimizer=optax.sgd(0.1),
        aggregator=zeroed_and_clipped_secure_mean(max_clients=3, max_weight=4),
        metrics_sum=secure_total(bound=1e3, max_clients=3),
    )
    check_secure(algorithm.next, algorithm.init(KEY), Cohort(DATA, range(3), batch_size=2))


def test_the_estimated_bound_follows_the_constants_of_the_preset():
    """All norms are 1: the estimate falls by exp(-0.05) a round from 50 on; the mean is right to the grid."""
    aggregator = secure_mean_of_estimated_bound(max_clients=4)
    x = np.float32([[1, 0.5], [-0.25, 1]])
    value, weight = Clients.of(x), Clients.of(np.float32([2**20 - 1, 2**19]))
    state, step = aggregator.init(x[0]), aggregator.next.in_graph()
    for number in range(12):
        bound = 2 * 50 * np.exp(-0.05 * number)
        state, result, measured = step(KEY, state, value, weight)
        assert float(measured["bound"]) == pytest.approx(bound, rel=1e-5)
        np.testing.assert_allclose(result, np.average(x, axis=0, weights=[2, 1]), atol=3 * bound / 2**24 + 1e-6)
    state = state._replace(estimate=jnp.float32(0.2))
    state, result, measured = step(KEY, state, value, weight)  # elements are bounded by 0.4, and it grows
    np.testing.assert_allclose(result, [(2 * 0.4 - 0.25) / 3, 0.4], atol=1e-5)
    assert float(measured["bounded_fraction"]) == 1
    assert float(state.estimate) == pytest.approx(0.2 * np.exp(0.95), rel=1e-5)


def test_the_preset_is_the_one_in_the_open_but_for_the_grid():
    for_all = zeroed_and_clipped_secure_mean(max_clients=8, max_weight=4), zeroed_and_clipped_mean()
    found, expected = (a.next(KEY, a.init(jnp.zeros(5)), *members()) for a in for_all)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
    for now, then in ((found[0], expected[0]), (found[0].inner, expected[0].inner)):
        np.testing.assert_allclose(now.estimate, then.estimate, rtol=1e-6)
    assert int(found[2]["num_zeroed"]) == int(expected[2]["num_zeroed"]) == 1
