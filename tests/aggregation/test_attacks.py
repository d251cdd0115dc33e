"""Attacks against their formulas, and the algebra of model replacement."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from fedjx.aggregation.attacks import (
    alie,
    attacked,
    boosted,
    constant,
    gaussian,
    in_turn,
    inner_product_manipulation,
    model_replacement,
    projected,
    scaled_to_norm,
    sign_flip,
)
from fedjx.aggregation.centred_clipping import norm_bounding
from fedjx.aggregation.mean import mean
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.operators import federated_collect
from fedjx.core.language.values import Clients
from tests.aggregation.test_robust import HONEST_MEAN, X


@federated_computation
def _all(key: Any, state: Any, value: Any, weight: Any) -> Any:
    del key, weight
    return state, federated_collect(value), state


SHOWN = Aggregator(lambda member: (), _all)  # what arrives at the server


def sent(attack, x=X, num_malicious=2, weight=None, key=0):
    """Returns what each client sends, ``[n, ...]``."""
    n = len(x)
    weight = np.ones(n, np.float32) if weight is None else np.asarray(weight, np.float32)
    aggregator = attacked(attack, lambda client: client >= n - num_malicious, inner=SHOWN)
    shown = aggregator.next(jax.random.key(key), (), Clients.of(x), Clients.of(weight))[1]
    np.testing.assert_array_equal(shown.elements[: n - num_malicious], x[: n - num_malicious])
    return np.asarray(shown.elements)[n - num_malicious :]


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (sign_flip(), -X[9:]),
        (sign_flip(scale=3.0), -3 * X[9:]),
        (boosted(factor=4.0), 4 * X[9:]),
        (constant(number=np.nan), np.full((2, 4), np.nan)),
        (scaled_to_norm(norm=5.0), X[9:] * [[5 / 20], [5 / 16]]),
        (in_turn(projected(radius=18.0), boosted(factor=2.0)), X[9:] * [[36 / 20], [2]]),
        (inner_product_manipulation(scale=0.1), [[-0.003762, -0.008174, -0.008563, -0.004737]] * 2),
        (alie(), [[-0.032934, -0.038803, -0.039715, -0.033135]] * 2),
        (alie(num_stddevs=1.0), [np.array(HONEST_MEAN) - [0.504993, 0.862799, 0.897165, 0.576230]] * 2),
        (model_replacement(server_rate=0.5), X[9:] * 11),
    ],
)
def test_attacks_follow_their_formulas(attack, expected):
    np.testing.assert_allclose(sent(attack), expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("num_clients", "num_malicious", "z"),
    [(11, 2, 0.139710), (25, 5, 0.253347), (50, 12, 0.336038), (100, 20, 0.285841)],
)
def test_alie_hides_behind_a_majority(num_clients, num_malicious, z):
    supporters = num_clients // 2 + 1 - num_malicious
    honest = num_clients - num_malicious
    assert norm.ppf((honest - supporters) / honest) == pytest.approx(z, abs=1e-6)
    x = np.resize(np.float32([-1, 1]), num_clients)[:, None]
    centre, stddev = x[:honest].mean(), x[:honest].std()
    np.testing.assert_allclose(sent(alie(), x, num_malicious), centre - z * stddev, atol=1e-5)


def test_clients_without_weight_are_not_among_those_an_attack_looks_at():
    x, weight = X.copy(), np.ones(11)
    x[3], weight[3] = 1e6, 0
    expected = X[[0, 1, 2, 4, 5, 6, 7, 8]].mean(axis=0)
    np.testing.assert_allclose(
        sent(inner_product_manipulation(scale=1.0), x, weight=weight), [-expected] * 2, rtol=1e-5
    )


def test_gaussian_noise_has_its_deviation_and_differs_by_client_and_key():
    x = np.zeros((3, 20_000), np.float32)
    first, second = sent(gaussian(stddev=2.0), x)
    assert first.std() == pytest.approx(2.0, rel=0.03)
    assert abs(first.mean()) < 0.06
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    other, _ = sent(gaussian(stddev=2.0), x, key=1)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.03


@pytest.mark.parametrize("server_rate", [1.0, 0.25])
@pytest.mark.parametrize("malicious", [(4,), (1, 3)])
def test_boosting_replaces_the_global_model_exactly(server_rate, malicious):
    """The others' updates are 0: the mean moves the global model to the attacker's, whatever the weights."""
    random = np.random.default_rng(0)
    model, wanted = random.normal(size=(2, 7)).astype(np.float32)
    ids = np.arange(5)
    update = np.where(np.isin(ids, malicious)[:, None], model - wanted, 0).astype(np.float32)
    weight = np.float32([3, 1, 7, 2, 5])
    aggregator = attacked(model_replacement(server_rate=server_rate), lambda k: jnp.isin(k, jnp.array(malicious)))
    delta = aggregator.next(jax.random.key(0), (), Clients.of(update), Clients.of(weight))[1]
    optimizer = optax.sgd(server_rate)
    step, _ = optimizer.update(delta, optimizer.init(model))
    np.testing.assert_allclose(optax.apply_updates(model, step), wanted, atol=1e-6)


def test_norm_bounding_limits_a_replacement_to_its_share():
    x = np.zeros((5, 4), np.float32)
    x[4] = 1
    weight = Clients.of(np.ones(5, np.float32))
    for inner, reached in ((mean(), 2.0), (norm_bounding(bound=0.1), 0.1 / 5)):
        aggregator = attacked(model_replacement(), lambda k: k == 4, inner=inner)
        result = aggregator.next(jax.random.key(0), (), Clients.of(x), weight)[1]
        assert np.linalg.norm(result) == pytest.approx(reached, rel=1e-5)
