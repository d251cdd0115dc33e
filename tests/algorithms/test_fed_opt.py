"""Server optimizers against Reddi et al., algorithm 2; schedules, averages of the server's model, and federated SGD."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from fedjx import federated_sum
from fedjx.algorithms import fed_avg
from fedjx.algorithms.ema import ema
from fedjx.algorithms.fed_opt import (
    fed_adagrad,
    fed_adam,
    fed_avgm,
    fed_yogi,
    server_adagrad,
    server_adam,
    server_yogi,
)
from fedjx.algorithms.fed_sgd import fed_sgd
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model
from tests.algorithms.problems import federated_data
from tests.algorithms.reference import COHORTS, NUM_PARAMS, after_rounds, clients_of, flat, gradient
from tests.algorithms.test_fed_avg import softmax_regression

TAU = 1e-3


def by_the_paper(name, changes, rate=0.1, b1=0.9, b2=0.99):
    """Reddi et al., algorithm 2, on the clients' mean changes; the positions after every round."""
    x, m, v = np.zeros(changes.shape[1]), np.zeros(changes.shape[1]), np.full(changes.shape[1], TAU**2)
    positions = []
    for change in changes:
        m = b1 * m + (1 - b1) * change
        if name == "adagrad":
            v = v + change**2
        elif name == "adam":
            v = b2 * v + (1 - b2) * change**2
        else:
            v = v - (1 - b2) * change**2 * np.sign(v - change**2)
        x = x + rate * m / (np.sqrt(v) + TAU)
        positions.append(x)
    return np.array(positions)


# The third coordinate's changes are below tau, so that Yogi's v falls too.
CHANGES = np.random.default_rng(0).normal(size=(5, 3)) * np.array([1.0, 0.1, 1e-4])


def test_server_optimizers_follow_the_paper():
    optimizers = {
        "adagrad": server_adagrad(0.1, b1=0.9, tau=TAU),
        "adam": server_adam(0.1, tau=TAU),
        "yogi": server_yogi(0.1, tau=TAU),
    }

    @jax.jit
    def positions(deltas):
        def moved(optimizer):
            def step(carry, delta):
                x, state = carry
                updates, state = optimizer.update(delta, state, x)
                return (x + updates, state), x + updates

            return jax.lax.scan(step, (jnp.zeros(3), optimizer.init(jnp.zeros(3))), deltas)[1]

        return {name: moved(optimizer) for name, optimizer in optimizers.items()}

    found = positions(-jnp.float32(CHANGES))  # a delta is minus the change
    for name in optimizers:
        np.testing.assert_allclose(found[name], by_the_paper(name, CHANGES), rtol=2e-5, err_msg=name)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found["yogi"], by_the_paper("adam", CHANGES), rtol=2e-5)


def test_tau_is_positive():
    with pytest.raises(ValueError, match="tau must be positive; got tau=0"):
        server_adam(0.1, tau=0)


def constant_change(start: float = 0.0) -> Model:
    """A model of one number, whose gradient is minus the label: a step of rate 1 adds the label."""

    def loss(params, batch, key):
        del key
        return -params * batch["y"]

    return Model(lambda key: jnp.float32(start), loss, lambda params, batch: {"loss": loss(params, batch, None)})


HALVES = FederatedData.from_clients([{"y": np.full(3, 0.5, np.float32)}])


@pytest.fixture(scope="module")
def constant():
    """Three rounds, in each of which the client adds 0.5 if its rate is 1."""
    unit = optax.sgd(1.0)
    schedule = optax.piecewise_constant_schedule(1.0, {1: 0.5, 2: 0.2})
    model = constant_change()
    algorithms = {
        "adam": fed_adam(model, client_optimizer=unit),
        "yogi": fed_yogi(model, client_optimizer=unit, b1=0.5),
        "adagrad": fed_adagrad(model, client_optimizer=unit),
        "avgm": fed_avgm(model, client_optimizer=unit),
        "server_schedule": fed_avg(model, client_optimizer=unit, server_optimizer=optax.sgd(schedule)),
        "adam_schedule": fed_adam(model, client_optimizer=unit, learning_rate=schedule),
        "client_schedule": fed_avg(model, client_optimizer=lambda round: optax.sgd(schedule(round))),
        "ema": ema(fed_avg(model, client_optimizer=unit), 0.8),
        "last": ema(fed_avg(model, client_optimizer=unit), 0.0),
    }
    rounds = after_rounds(algorithms, HALVES, [[0]] * 3, num_steps=1)
    return {name: np.array([state.params for state, _ in found]) for name, found in rounds.items()}


def test_a_constant_change_where_flower_is_wrong(constant):
    """Anchors, W2: neither bias correction nor Adam's place for the small constant."""
    np.testing.assert_allclose(constant["adam"], [0.0980, 0.2308, 0.3862], atol=5e-5)
    halves = np.full((3, 1), 0.5)
    np.testing.assert_allclose(constant["yogi"], by_the_paper("yogi", halves, b1=0.5)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(constant["adagrad"], by_the_paper("adagrad", halves, b1=0)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(constant["avgm"], np.cumsum([0.5, 0.95, 1.355]), rtol=1e-6)


def test_schedules_count_rounds(constant):
    expected = np.cumsum([0.5, 0.25, 0.05])
    np.testing.assert_allclose(constant["server_schedule"], expected, rtol=1e-6)
    np.testing.assert_allclose(constant["client_schedule"], expected, rtol=1e-6)
    steps = np.diff(by_the_paper("adam", np.full((3, 1), 0.5), rate=1.0)[:, 0], prepend=0)
    np.testing.assert_allclose(constant["adam_schedule"], np.cumsum(steps * [1, 0.5, 0.1]), rtol=1e-5)


def test_the_average_of_the_servers_model(constant):
    np.testing.assert_allclose(constant["last"], [0.5, 1.0, 1.5])
    average, expected = 0.0, []
    for params in (0.5, 1.0, 1.5):
        average = 0.8 * average + 0.2 * params
        expected.append(average)
    np.testing.assert_allclose(constant["ema"], expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\); got decay=1"):
        ema(fed_avg(constant_change(), client_optimizer=optax.sgd(1.0)), 1)


def test_the_average_of_an_algorithm_with_client_states():
    """One that adds its clients' states up, and counts in them."""

    @fedjx.federated_computation
    def next(state, data, states):
        del data
        after = fedjx.federated_map(lambda s, total: s._replace(params=s.params + total), state, federated_sum(states))
        return after, fedjx.federated_value({}, fedjx.SERVER), fedjx.federated_map(lambda x: x + 1, states)

    inner = StatefulAlgorithm(lambda key: Counter(jnp.float32(0)), lambda state: state.params + 3, next)
    wrapped = ema(inner, 0.25)
    assert isinstance(wrapped, StatefulAlgorithm)
    state = wrapped.init(jax.random.key(0))
    first = wrapped.init_client(state)
    clients = fedjx.Clients.of(np.float32([1, 2]))
    state, _, states = wrapped.next(state, clients, fedjx.Clients.of(np.float32([first, first])))
    assert (float(first), float(state.inner.params), float(state.params)) == (3, 6, 4.5)
    np.testing.assert_array_equal(states.value, [4, 4])


class Counter(NamedTuple):
    params: Any


def test_only_a_schedule_over_rounds_sends_the_round():
    bills = []
    for client_optimizer in (optax.sgd(1.0), lambda round: optax.sgd(1.0 / (1 + round))):
        algorithm = fed_avg(constant_change(), client_optimizer=client_optimizer)
        sent = algorithm.next.communication(
            algorithm.init(jax.random.key(0)), Cohort(HALVES, [0], batch_size=4).whole()
        )
        bills.append(
            sorted(str(message.type).removesuffix("@CLIENTS") for message in sent if message.direction == "down")
        )
    assert bills == [["float32", "key<fry>"], ["float32", "int32", "key<fry>"]]


def test_federated_sgd_is_a_centralised_step(data):
    """However the examples are batched, and with several batches a client."""
    sgd = fed_sgd(softmax_regression(), learning_rate=optax.piecewise_constant_schedule(0.2, {1: 0.5}))
    w = np.zeros(NUM_PARAMS)
    for (state, metrics), ids, rate in zip(after_rounds({"sgd": sgd}, data)["sgd"], COHORTS, (0.2, 0.1), strict=True):
        clients = clients_of(data, ids)
        x, y = (np.concatenate([client[name] for client in clients]) for name in ("x", "y"))
        w = w - rate * gradient(w, x, y)
        np.testing.assert_allclose(flat(state.params), w, rtol=1e-5, atol=1e-7)
        assert int(metrics["num_examples"]) == len(y)


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return federated_data()
