"""FedProx, FedNova, FedExP and Delta-SGD against loops in NumPy written from their papers, and their identities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.aggregation import uniform
from fedjx.algorithms import fed_avg
from fedjx.algorithms.delta_sgd import delta_sgd
from fedjx.algorithms.fed_exp import fed_exp
from fedjx.algorithms.fed_nova import fed_nova
from fedjx.algorithms.fed_prox import fed_prox, following_loss
from fedjx.algorithms.per_fed_avg import per_fed_avg
from fedjx.data import Cohort, FederatedData
from tests.algorithms.problems import BATCH_SIZE, assert_trees_close, federated_data
from tests.algorithms.reference import COHORTS, NUM_PARAMS, after_rounds, clients_of, flat, sgd, trained
from tests.algorithms.test_fed_avg import softmax_regression
from tests.algorithms.test_fed_opt import constant_change

# In float64, so that what is left of a difference to a loop in NumPy is a few last digits; `tests/worlds` compares with
# float32 ones.
pytestmark = pytest.mark.usefixtures("x64")
RATE, MOMENTUM, MU = 0.2, 0.6, 0.7
HEAVY_BALL = optax.sgd(RATE, momentum=MOMENTUM)
CLIPPED = optax.chain(optax.clip_by_global_norm(0.3), HEAVY_BALL)


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return federated_data()


@pytest.fixture(scope="module")
def rounds(data):
    """Two rounds of everything here, in one program."""
    model = softmax_regression()
    local = {"shuffle": False, "num_epochs": 2}
    nesterov = optax.sgd(RATE, momentum=MOMENTUM, nesterov=True)
    algorithms = {
        "fed_avg": fed_avg(model, client_optimizer=HEAVY_BALL, **local),
        "fed_prox": fed_prox(model, proximal_strength=MU, client_optimizer=optax.sgd(RATE), **local),
        "fed_prox_0": fed_prox(model, proximal_strength=0, client_optimizer=HEAVY_BALL, **local),
        "fed_prox_adaptive": fed_prox(
            model, proximal_strength=MU, adaptive=True, client_optimizer=optax.sgd(RATE), **local
        ),
        "fed_nova": fed_nova(model, client_optimizer=HEAVY_BALL, **local),
        "fed_nova_sgd": fed_nova(model, client_optimizer=lambda round: optax.sgd(RATE / (1 + round)), **local),
        "fed_nova_nesterov": fed_nova(model, client_optimizer=nesterov, server_optimizer=optax.sgd(0.5), **local),
        "fed_avg_equal": fed_avg(model, client_optimizer=HEAVY_BALL, num_steps=3),
        "fed_nova_equal": fed_nova(model, client_optimizer=HEAVY_BALL, num_steps=3),
        "fed_avg_clipped": fed_avg(model, client_optimizer=CLIPPED, num_steps=3),
        "fed_nova_clipped": fed_nova(model, client_optimizer=CLIPPED, num_steps=3),
        "fed_exp": fed_exp(model, client_optimizer=HEAVY_BALL, client_weight=uniform, epsilon=1e-4, **local),
        "delta_sgd": fed_avg(model, client_optimizer=delta_sgd(), **local),
    }
    return after_rounds(algorithms, data)


def assert_equal_rounds(found, expected):
    for (state, _), w in zip(found, expected, strict=True):
        np.testing.assert_allclose(flat(state.params), w, rtol=1e-10, atol=1e-12)


def deltas_of(data, ids, w, step, num_epochs=2):
    """Every client's change, and its share of the examples."""
    clients = clients_of(data, ids)
    sizes = np.array([len(client["y"]) for client in clients])
    return np.array([w - trained(w, client, step, num_epochs) for client in clients]), sizes / sizes.sum()


# --- FedProx --------------------------------------------------------------------------------------


def proximal_steps(center, mu):
    return lambda w, found, state: (w - RATE * (found + mu * (w - center)), state)


def test_fed_prox_is_the_loop_of_the_paper(data, rounds):
    w, expected = np.zeros(NUM_PARAMS), []
    for ids in COHORTS:
        deltas, p = deltas_of(data, ids, w, proximal_steps(w, MU))
        w = w - p @ deltas
        expected.append(w)
    assert_equal_rounds(rounds["fed_prox"], expected)


def test_fed_prox_without_strength_is_fed_avg(rounds):
    assert_trees_close([s.params for s, _ in rounds["fed_prox_0"]], [s.params for s, _ in rounds["fed_avg"]])
    with pytest.raises(AssertionError):
        assert_trees_close(rounds["fed_prox"][0][0].params, rounds["fed_prox_0"][0][0].params)


def test_an_adaptive_strength_is_that_of_the_round_before(data, rounds):
    w, mu, last = np.zeros(NUM_PARAMS), MU, np.inf
    for ids, (state, metrics) in zip(COHORTS, rounds["fed_prox_adaptive"], strict=True):
        deltas, p = deltas_of(data, ids, w, proximal_steps(w, mu))
        w = w - p @ deltas
        np.testing.assert_allclose(flat(state.params), w, rtol=1e-10, atol=1e-12)
        loss = float(metrics["loss"])
        mu, last = mu + 0.1 * (loss > last), loss
        np.testing.assert_allclose(state.optimizer.strength, mu, rtol=1e-10)


def test_the_strength_rises_with_the_loss_and_falls_after_five_falls():
    """A rise starts the count again, as does a fall of the strength; an empty round does not count."""
    server = following_loss(optax.sgd(1.0), 0.05)
    # The second 7.0 neither rises nor falls; 0.0 is what a round without examples reports.
    losses = [9.0, 8.0, 7.0, 7.0, 0.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.9, 0.8, 0.7]
    expected = [0.05] * 5 + [0.15] * 5 + [0.05] * 5 + [0.0]

    @jax.jit
    def strengths(losses):
        def step(state, loss):
            metrics = {"loss": loss, "num_examples": (loss > 0).astype(jnp.int32)}
            state = server.update(jnp.float32(0), state, jnp.float32(0), metrics=metrics)[1]
            return state, state.strength

        return jax.lax.scan(step, server.init(jnp.float32(0)), losses)[1]

    np.testing.assert_allclose(strengths(jnp.float32(losses)), expected, atol=1e-6)


def test_a_strength_is_not_negative():
    with pytest.raises(ValueError, match="proximal_strength must be at least 0; got proximal_strength=-1"):
        fed_prox(softmax_regression(), proximal_strength=-1, client_optimizer=HEAVY_BALL)


# --- FedNova --------------------------------------------------------------------------------------


def heavy_ball_norm(num_steps, momentum):
    """||a_i||_1 of momentum SGD, in section 4.1 of the paper."""
    return (num_steps - momentum * (1 - momentum**num_steps) / (1 - momentum)) / (1 - momentum)


def nesterov_norm(num_steps, momentum):
    """How often each gradient counts: in its own step once more, and in the velocity of all later ones."""
    velocities = [(1 - momentum ** (t + 1)) / (1 - momentum) for t in range(num_steps)]
    return sum(1 + momentum * v for v in velocities)


def nesterov_steps(w, found, velocity):
    velocity = found + MOMENTUM * (0 if velocity is None else velocity)
    return w - RATE * (found + MOMENTUM * velocity), velocity


@pytest.mark.parametrize("name", ["fed_nova", "fed_nova_sgd", "fed_nova_nesterov"])
def test_fed_nova_is_the_loop_of_the_paper(data, rounds, name):
    w, expected = np.zeros(NUM_PARAMS), []
    for number, ids in enumerate(COHORTS):
        step, norm, rate, server = {
            "fed_nova": (sgd(RATE, MOMENTUM), lambda n: heavy_ball_norm(n, MOMENTUM), RATE, 1.0),
            "fed_nova_sgd": (sgd(RATE / (1 + number)), float, RATE / (1 + number), 1.0),
            "fed_nova_nesterov": (nesterov_steps, lambda n: nesterov_norm(n, MOMENTUM), RATE, 0.5),
        }[name]
        deltas, p = deltas_of(data, ids, w, step)
        norms = np.array([norm(2 * -(-int(data.sizes[k]) // BATCH_SIZE)) for k in ids])
        w = w - server * (p @ norms) * (p / norms) @ deltas
        expected.append(w)
        np.testing.assert_allclose(rounds[name][number][1]["effective_steps"], rate * (p @ norms), rtol=1e-10)
    assert_equal_rounds(rounds[name], expected)


def test_fed_nova_with_equal_steps_is_fed_avg(rounds):
    """Where the optimizer clips the norm of all parameters too, of which the probe is none."""
    for kind in ("equal", "clipped"):
        for (nova, _), (average, _) in zip(rounds[f"fed_nova_{kind}"], rounds[f"fed_avg_{kind}"], strict=True):
            assert_trees_close(nova.params, average.params)
    with pytest.raises(AssertionError):
        assert_trees_close(rounds["fed_avg_clipped"][0][0].params, rounds["fed_avg_equal"][0][0].params)
    with pytest.raises(AssertionError):
        assert_trees_close(rounds["fed_nova"][0][0].params, rounds["fed_avg"][0][0].params)


def test_fed_nova_reports_the_loss_of_the_model(rounds):
    np.testing.assert_allclose(rounds["fed_nova"][0][1]["loss"], rounds["fed_avg"][0][1]["loss"], rtol=1e-10)


# --- FedExP ---------------------------------------------------------------------------------------


def test_fed_exp_is_the_loop_of_the_paper(data, rounds):
    w, expected = np.zeros(NUM_PARAMS), []
    for ids, (state, _) in zip(COHORTS, rounds["fed_exp"], strict=True):
        deltas, _ = deltas_of(data, ids, w, sgd(RATE, MOMENTUM))
        mean = deltas.mean(axis=0)
        step = max(1, np.sum(deltas**2) / (2 * len(deltas) * (np.sum(mean**2) + 1e-4)))
        np.testing.assert_allclose(state.optimizer[0].scale, step, rtol=1e-10)
        w = w - step * mean
        expected.append(w)
    assert_equal_rounds(rounds["fed_exp"], expected)
    assert max(float(state.optimizer[0].scale) for state, _ in rounds["fed_exp"]) > 1


def test_a_client_whose_squared_norm_overflows_is_left_out():
    """Its change is finite, and alone would make the step infinite."""
    clients = FederatedData.from_clients([{"y": np.float32([1])}, {"y": np.float32([1e30])}])
    algorithm = fed_exp(constant_change(), client_optimizer=optax.sgd(1.0))
    state, metrics = algorithm.next(algorithm.init(jax.random.key(0)), Cohort(clients, [0, 1], batch_size=1).whole())
    assert float(state.params) == 1
    assert (int(metrics["num_clients"]), int(metrics["num_non_finite_clients"])) == (1, 1)


# --- Delta-SGD ------------------------------------------------------------------------------------


def delta_sgd_steps(w, found, state, initial=0.2, gamma=2.0, delta=0.1):
    """Kim et al., algorithm 1."""
    if state is None:
        return w - initial * found, (w, found, initial, 1.0)
    last_w, last_found, step, theta = state
    smooth = gamma * np.linalg.norm(w - last_w) / (2 * np.linalg.norm(found - last_found))
    new = min(smooth, np.sqrt(1 + delta * theta) * step)
    return w - new * found, (w, found, new, new / step)


def test_delta_sgd_is_the_loop_of_the_paper(data, rounds):
    w, expected = np.zeros(NUM_PARAMS), []
    for ids in COHORTS:
        deltas, p = deltas_of(data, ids, w, delta_sgd_steps)
        w = w - p @ deltas
        expected.append(w)
    assert_equal_rounds(rounds["delta_sgd"], expected)


@pytest.mark.parametrize("after", [optax.identity(), optax.trace(0.9)], ids=["alone", "before momentum"])
def test_delta_sgd_keeps_its_step_where_there_is_nothing_to_learn(after):
    """On a loss that is flat beyond a hinge, and for a client that is fitted."""
    optimizer = optax.chain(delta_sgd(initial_step=0.5), after)

    @jax.jit
    def steps(slopes):
        def step(carry, slope):
            state, params = carry
            updates, state = optimizer.update(slope, state, params)
            return (state, optax.apply_updates(params, updates)), state[0].step

        start = jnp.float32(1)
        return jax.lax.scan(step, (optimizer.init(start), start), slopes)[1]

    flat = np.asarray(steps(jnp.float32([1.0] + [0.0] * 300 + [0.5])))
    np.testing.assert_array_equal(flat[:301], np.full(301, 0.5))
    assert 0 < flat[301] < 1


def test_delta_sgd_goes_on_where_nothing_changes():
    optimizer = delta_sgd(initial_step=0.5)

    @jax.jit
    def steps(positions):
        def step(state, params):
            updates, state = optimizer.update(jnp.float32(1), state, params)
            return state, updates

        return jax.lax.scan(step, optimizer.init(positions[0]), positions)[1]

    theta = np.sqrt(1.1)
    expected = [-0.5, -0.5, -0.5 * theta, -0.5 * theta * np.sqrt(1 + 0.1 * theta)]  # the first two at one place
    np.testing.assert_allclose(steps(jnp.float32([1, 1, 0, 1])), expected, rtol=1e-6)


# --- What is refused ------------------------------------------------------------------------------


def test_numbers_of_the_wrong_sign_are_refused_and_traced_ones_are_not_looked_at():
    model, local = softmax_regression(), {"client_optimizer": HEAVY_BALL}
    for method, name, value in (
        (lambda **given: fed_exp(model, **local, **given), "epsilon", 0),
        (delta_sgd, "initial_step", 0),
        (delta_sgd, "amplification", -1.0),
        (delta_sgd, "growth", -0.1),
        (lambda **given: per_fed_avg(model, **local, **given), "inner_learning_rate", -0.1),
        (lambda **given: per_fed_avg(model, inner_learning_rate=0.1, **local, **given), "difference", 0.0),
    ):
        with pytest.raises(ValueError, match=f"{name} must be .*; got {name}={value}. Pass"):
            method(**{name: value})
    step = jax.eval_shape(lambda step: delta_sgd(initial_step=step).init(jnp.float32(0)), jnp.float32(0.3)).step
    assert step.shape == ()
