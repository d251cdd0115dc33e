"""q-FedAvg and agnostic federated averaging against loops in NumPy written from their papers, and their identities."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from fedjx.aggregation import uniform
from fedjx.algorithms import fed_avg
from fedjx.algorithms.agnostic_fed_avg import agnostic_fed_avg
from fedjx.algorithms.q_fed_avg import q_fed_avg
from fedjx.data import Cohort, FederatedData
from tests.algorithms.problems import BATCH_SIZE, assert_trees_close, federated_data, with_domains
from tests.algorithms.reference import COHORTS, NUM_PARAMS, after_rounds, clients_of, flat, losses, sgd, trained
from tests.algorithms.test_fed_avg import softmax_regression

# In float64, so that what is left of a difference to a loop in NumPy is a few last digits; `tests/worlds` compares with
# float32 ones.
pytestmark = pytest.mark.usefixtures("x64")
RATE = 0.2
Q = 2.0
WEIGHTS = (0.2, 0.3, 0.5)


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return with_domains(federated_data())


@pytest.fixture(scope="module")
def rounds(data):
    """Two rounds of everything here, in one program."""
    model, local = softmax_regression(), {"client_optimizer": optax.sgd(RATE, momentum=0.5), "shuffle": False}
    domains = {"domain_weights": WEIGHTS, "domain_learning_rate": 0.8}
    algorithms = {
        "q_fed_avg": q_fed_avg(model, q=Q, lipschitz=1 / RATE, **local),
        "q_fed_avg_0": q_fed_avg(model, q=0, lipschitz=1 / RATE, **local),
        "fed_avg": fed_avg(model, client_weight=uniform, **local),
        "agnostic": agnostic_fed_avg(model, **domains, **local),
        "agnostic_window": agnostic_fed_avg(model, window=2, **domains, **local),
        "agnostic_schedule": agnostic_fed_avg(
            model,
            domain_weights=[1.0, 0.0, 0.0],
            domain_learning_rate=0.0,
            server_optimizer=optax.sgd(0.5),
            client_optimizer=lambda round: optax.sgd(RATE / (1 + round), momentum=0.5),
            shuffle=False,
        ),
    }
    return after_rounds(algorithms, data)


def test_q_fed_avg_is_the_loop_of_the_paper(data, rounds):
    w, lipschitz = np.zeros(NUM_PARAMS), 1 / RATE
    for ids, (state, metrics) in zip(COHORTS, rounds["q_fed_avg"], strict=True):
        numerator, h = 0, 0
        for client in clients_of(data, ids):
            f = losses(w, client).mean()
            change = lipschitz * (w - trained(w, client, sgd(RATE, 0.5)))
            numerator = numerator + f**Q * change
            h += Q * f ** (Q - 1) * np.sum(change**2) + lipschitz * f**Q
        w = w - numerator / h
        np.testing.assert_allclose(flat(state.params), w, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(metrics["curvature"], h / len(ids), rtol=1e-9)  # the loss has 1e-10 added


def test_q_fed_avg_without_q_is_fed_avg(rounds):
    for (fair, _), (average, _) in zip(rounds["q_fed_avg_0"], rounds["fed_avg"], strict=True):
        assert_trees_close(fair.params, average.params, rtol=2e-5)
    with pytest.raises(AssertionError):
        assert_trees_close(rounds["q_fed_avg"][0][0].params, rounds["fed_avg"][0][0].params)


def agnostic_in_numpy(data, rate, weights, *, domain_rate=0.8, window=1, server=1.0):
    """Ro et al., algorithm 1; the parameters and the domains' weights after every round."""
    w, weights, seen = np.zeros(NUM_PARAMS), np.array(weights), [np.ones(3)] * window
    for number, ids in enumerate(COHORTS):
        alpha = weights / np.mean(seen, axis=0)
        total, total_beta, loss, count = 0, 0, np.zeros(3), np.zeros(3)
        for client in clients_of(data, ids):
            own = np.bincount(client["domain"], minlength=3)
            loss += np.bincount(client["domain"], losses(w, client), minlength=3)
            count += own
            beta = alpha @ own
            if beta > 0:
                after = trained(w, client, sgd(rate(number), 0.5), weights=alpha[client["domain"]] / beta)
                total, total_beta = total + beta * (w - after), total_beta + beta
        w = w - server * total / total_beta
        grown = weights * np.exp(domain_rate * loss / np.maximum(count, 1))
        weights = grown / grown.sum()
        seen = [*seen[1:], count]
        yield w, weights, count, loss


@pytest.mark.parametrize("name", ["agnostic", "agnostic_window", "agnostic_schedule"])
def test_agnostic_fed_avg_is_the_loop_of_the_paper(data, rounds, name):
    loop = {
        "agnostic": agnostic_in_numpy(data, lambda _: RATE, WEIGHTS),
        "agnostic_window": agnostic_in_numpy(data, lambda _: RATE, WEIGHTS, window=2),
        "agnostic_schedule": agnostic_in_numpy(
            data, lambda number: RATE / (1 + number), [1.0, 0, 0], domain_rate=0.0, server=0.5
        ),
    }[name]
    for (state, metrics), (w, weights, count, loss) in zip(rounds[name], loop, strict=True):
        np.testing.assert_allclose(flat(state.params), w, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(state.optimizer.domain_weights, weights, rtol=1e-10)
        np.testing.assert_array_equal(metrics["domain_examples"], count)
        np.testing.assert_allclose(metrics["domain_loss"], loss / count, rtol=1e-10)
        np.testing.assert_allclose(metrics["loss"], loss.sum() / count.sum(), rtol=1e-10)


def test_a_client_with_an_example_of_no_domain_is_left_out_and_counted():
    """Its examples are in no total, so they must not be in the training either."""
    clients = federated_data()
    domain = np.zeros(clients.num_examples, np.int32)
    domain[clients.offsets[1]], domain[clients.offsets[6] - 1] = 3, -1  # of clients 1 and 5
    clients = FederatedData({**clients.examples, "domain": domain}, clients.offsets)
    algorithm = agnostic_fed_avg(
        softmax_regression(), domain_weights=WEIGHTS, domain_learning_rate=0.8, client_optimizer=optax.sgd(RATE)
    )
    start, shape = algorithm.init(jax.random.key(0)), {"num_steps": 3, "num_places": 4}
    found, metrics = algorithm.next(start, Cohort(clients, (0, 1, 2, 5), batch_size=BATCH_SIZE).whole(**shape))
    expected, _ = algorithm.next(start, Cohort(clients, (0, 2), batch_size=BATCH_SIZE).whole(**shape))
    assert_trees_close((found.params, found.optimizer), (expected.params, expected.optimizer))
    assert (int(metrics["num_clients"]), int(metrics["num_non_finite_clients"])) == (2, 2)


def test_what_is_refused():
    model, local = softmax_regression(), {"client_optimizer": optax.sgd(RATE)}
    with pytest.raises(ValueError, match="q must be at least 0; got q=-1"):
        q_fed_avg(model, q=-1, lipschitz=1.0, **local)
    with pytest.raises(ValueError, match="domain weights are non-negative and sum to 1; got"):
        agnostic_fed_avg(model, domain_weights=[0.5, 0.6], domain_learning_rate=0.1, **local)
    with pytest.raises(ValueError, match="window must be an integer of at least 1; got window=0"):
        agnostic_fed_avg(model, domain_weights=[1.0], domain_learning_rate=0.1, window=0, **local)
    with pytest.raises(ValueError, match="domain_learning_rate must be at least 0; got domain_learning_rate=-1"):
        agnostic_fed_avg(model, domain_weights=[1.0], domain_learning_rate=-1, **local)
