"""What single clients report of a round, and weights that depend on who a client is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.algorithms import fed_sgd
from fedjx.data import Cohort, FederatedData
from fedjx.models import linear
from fedjx.training import Method, client_reports, compose, local_update, sum_and_report, with_update_norm

MODEL = linear(3, input_shape=(4,))
SIZES = [3, 7, 0, 5]
IDS = [3, 0, 2, 1]
TRUST = jnp.array([0.5, 2.0, 1.0, 0.0])


def data(bad=()):
    random = np.random.default_rng(0)
    clients = [
        {"x": random.normal(size=(n, 4)).astype("f4") * (np.nan if k in bad else 1), "y": np.arange(n) % 3}
        for k, n in enumerate(SIZES)
    ]
    return FederatedData.from_clients(clients)


def by_trust(num_examples, id):
    return TRUST[id] * num_examples


@pytest.fixture(scope="module")
def algorithm():
    method = Method(MODEL.init, with_update_norm(local_update(MODEL)))
    return compose(
        method,
        client_optimizer=optax.sgd(0.1),
        shuffle=False,
        metrics_sum=sum_and_report,
        client_weight=lambda num_examples, id: by_trust(num_examples, id) + (id == 3),
    )


def test_each_client_reports_what_it_is_alone(algorithm):
    state = algorithm.init(jax.random.key(0))
    alone = [algorithm.next(state, Cohort(data(), [k], batch_size=2, lanes=1)) for k in range(4)]
    for run in (algorithm.next, algorithm.next.in_graph()):
        _, metrics = run(state, Cohort(data(), IDS, batch_size=2, lanes=1))
        ids, own = client_reports(metrics)
        assert ids.tolist() == [0, 1, 2, 3]
        assert own["num_examples"].tolist() == SIZES
        for name in ("loss", "update_norm"):
            np.testing.assert_allclose(own[name], [measured[name] for _, measured in alone], rtol=1e-5, err_msg=name)
        assert np.isnan(own["loss"][2])
        norms = [optax.tree.norm(jax.tree.map(jnp.subtract, state.params, new.params)) for new, _ in alone]
        np.testing.assert_allclose(own["update_norm"], norms, rtol=1e-4)


def test_a_client_that_is_left_out_reports_no_loss(algorithm):
    state = algorithm.init(jax.random.key(0))
    _, metrics = algorithm.next(state, Cohort(data(bad=[1]), IDS, batch_size=2, lanes=1))
    _, own = client_reports(metrics)
    assert np.isnan(own["loss"]).tolist() == [False, True, True, False]
    assert own["num_non_finite_clients"].tolist() == [0, 1, 0, 0]


def test_reports_that_nobody_asked_for_are_refused():
    with pytest.raises(ValueError, match="clients report where metrics_sum=sum_and_report; got metrics of"):
        client_reports({"loss": 1.0})


def test_weights_may_depend_on_who_a_client_is(algorithm):
    """In a method of local training and in one that is told its weight; each as the mean that NumPy takes."""
    for fn, weights in (
        (algorithm, [1.5, 14, 0, 1]),
        (fed_sgd(MODEL, learning_rate=1.0, client_weight=by_trust), [1.5, 14, 0, 0]),
    ):
        state = fn.init(jax.random.key(0))
        new, _ = fn.next(state, Cohort(data(), IDS, batch_size=2, lanes=1))
        alone = [fn.next(state, Cohort(data(), [k], batch_size=2, lanes=1))[0].params for k in range(3)]
        alone.append(algorithm.next(state, Cohort(data(), [3], batch_size=2, lanes=1))[0].params)
        expected = jax.tree.map(lambda *xs, w=weights: np.average(xs, axis=0, weights=w), *alone)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new.params, expected)
