"""Attacks on training: against NumPy, at their neutral settings, and inside composed algorithms."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from fedjx.aggregation.weights import uniform
from fedjx.algorithms.attacks import constrain_and_scale, constrained, malicious_clients, projected_boosting
from fedjx.core.language.operators import federated_client_ids
from fedjx.core.language.placed import federated_map
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model
from fedjx.training import ClientUpdate, Method, compose, local_training, local_update, told_to
from tests.algorithms.problems import assert_trees_close
from tests.algorithms.test_laws import mesh

RATE, EPOCHS, START = 0.1, 3, np.array([0.5, -1.0, 2.0], np.float32)
X = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)  # [clients, examples, features]
DATA = FederatedData.from_clients([{"x": x, "y": x.sum(axis=1) + 1} for x in X])
EVERYBODY = Cohort(DATA, range(4), batch_size=3).whole()


def losses(params, batch, key=None):
    del key
    return (batch["x"] @ params - batch["y"]) ** 2


MODEL = Model(lambda key: jnp.asarray(START), losses, lambda params, batch: {"loss": losses(params, batch)})
TRAINING = local_update(MODEL)
SGD = optax.sgd(RATE)
RUN = {"client_optimizer": SGD, "client_weight": uniform, "num_epochs": EPOCHS, "shuffle": False}


def is_malicious(client):
    return client >= 2


def updates(client_update: Any):
    """Returns the clients' updates, ``[4, 3]``."""

    local = local_training(SGD, uniform, num_epochs=EPOCHS, shuffle=False)

    def update(data, id):
        told = told_to(client_update, {"local": local, "id": id})
        return client_update(jnp.asarray(START), data, jax.random.key(0), **told)

    result = fedjx.federated_computation(lambda data: federated_map(update, data, federated_client_ids()))(EVERYBODY)
    np.testing.assert_array_equal(result.value.weight, np.ones(4))
    return np.asarray(result.value.delta)


def descended(x, *, alpha=1.0, radius=np.inf):
    """Trains one client in float64; returns what it would send."""
    centre = start = START.astype(float)
    y = x.sum(axis=1) + 1
    for _ in range(EPOCHS):
        for rows in (slice(0, 3), slice(3, 6)):
            error = x[rows] @ centre - y[rows]
            grad = alpha * 2 * error @ x[rows] / 3 + (1 - alpha) * 2 * (centre - start)
            moved = centre - RATE * grad - start
            centre = start + moved * min(1, radius / np.linalg.norm(moved))
    return start - centre


HONEST = np.array([descended(x) for x in X])


def test_constrain_and_scale_follows_its_loss_and_sends_at_its_norm():
    got = updates(constrain_and_scale(TRAINING, is_malicious, alpha=0.6, norm=7.0))
    bad = np.array([descended(x, alpha=0.6) for x in X[2:]])
    np.testing.assert_allclose(got[:2], HONEST[:2], rtol=1e-5)
    np.testing.assert_allclose(got[2:], 7 * bad / np.linalg.norm(bad, axis=1, keepdims=True), rtol=1e-5)
    assert np.abs(bad - HONEST[2:]).min() > 0.01


def test_any_anomaly_may_be_constrained():
    def of_one(params, start):
        return jnp.square(params[0] - start[0])

    attack = constrain_and_scale(TRAINING, is_malicious, alpha=0.0, norm=1.0, anomaly=of_one)
    still = updates(attack)
    np.testing.assert_array_equal(still[2:], 0)  # there is nothing but the anomaly, least where training begins


def test_alpha_of_one_is_boosted_honest_training():
    got = updates(constrain_and_scale(TRAINING, is_malicious, alpha=1.0, norm=4.0))
    np.testing.assert_allclose(got[2:], 4 * HONEST[2:] / np.linalg.norm(HONEST[2:], axis=1, keepdims=True), rtol=1e-5)


def test_an_anomaly_without_a_gradient_does_not_reach_honest_clients():
    optimizer = constrained(SGD, jnp.float32(1), lambda params, start: optax.tree.norm(params - start))
    step, _ = optimizer.update(jnp.ones(3), optimizer.init(jnp.asarray(START)), jnp.asarray(START))
    np.testing.assert_allclose(step, -RATE * np.ones(3), rtol=1e-6)


@pytest.mark.parametrize("radius", [0.2, 100.0])
def test_projected_boosting_stays_within_its_ball(radius):
    got = updates(projected_boosting(TRAINING, is_malicious, radius=radius, boost=5.0))
    bad = np.array([descended(x, radius=radius) for x in X[2:]])
    np.testing.assert_allclose(got[:2], HONEST[:2], rtol=1e-5)
    np.testing.assert_allclose(got[2:], 5 * bad, rtol=1e-5, atol=1e-6)
    size = np.linalg.norm(got[2:], axis=1)
    if radius < 1:
        np.testing.assert_allclose(size, 5 * radius, rtol=1e-5)
        # On the sphere training goes on: it is not honest training, projected in the end.
        late = HONEST[2:] * radius / np.linalg.norm(HONEST[2:], axis=1, keepdims=True)
        assert np.abs(bad - late).max() > 1e-3
    else:
        np.testing.assert_allclose(got[2:], 5 * HONEST[2:], rtol=1e-5)


def boosted(params, data, key, *, local):
    """One attacker of four clients, whose model is to replace the global one."""
    update = TRAINING(params, data, key, local=local)
    return update._replace(delta=4 * update.delta)


def idle(params, data, key, *, local):
    update = TRAINING(params, data, key, local=local)
    return ClientUpdate(jnp.zeros_like(params), update.weight, update.metrics)


def test_a_boosted_client_replaces_the_model_exactly_if_the_others_stay():
    algorithm = compose(Method(MODEL.init, malicious_clients(lambda client: client == 3, boosted, idle)), **RUN)
    state, _ = algorithm.next(algorithm.init(jax.random.key(0)), EVERYBODY)
    np.testing.assert_allclose(state.params, START - HONEST[3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "client_update",
    [
        malicious_clients(is_malicious, boosted, TRAINING),
        projected_boosting(TRAINING, is_malicious, radius=0.2, boost=2.0),
    ],
    ids=["two updates", "one training"],
)
def test_they_run_streamed_as_in_one_program(client_update):
    algorithm = compose(Method(MODEL.init, client_update), **RUN)
    run: Any = algorithm.next
    state = algorithm.init(jax.random.key(0))
    expected = algorithm.next(state, EVERYBODY)
    streamed = run.streamed(mesh=mesh(1))
    assert_trees_close(streamed(state, Cohort(DATA, range(4), batch_size=3, lanes=3)), expected)


@pytest.mark.parametrize(
    "attack",
    [
        functools.partial(constrain_and_scale, alpha=1.5, norm=1.0),
        functools.partial(constrain_and_scale, alpha=0.5, norm=0.0),
        functools.partial(projected_boosting, radius=0.0, boost=2.0),
    ],
)
def test_settings_without_meaning_are_refused(attack):
    with pytest.raises(ValueError, match="must be"):
        attack(TRAINING, is_malicious)
