"""SCAFFOLD, FedDyn, FedLin and Mime against loops written from the papers, and their identities."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.aggregation import uniform
from fedjx.algorithms import fed_avg
from fedjx.algorithms.ditto import ditto
from fedjx.algorithms.fed_dyn import fed_dyn
from fedjx.algorithms.fed_lin import fed_lin
from fedjx.algorithms.mime import mime
from fedjx.algorithms.scaffold import scaffold
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.values import Clients
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model
from fedjx.training import local_train
from tests.algorithms.problems import assert_trees_close, assert_trees_equal

# In float64, so that what is left of a difference to a loop in NumPy is a few last digits; `tests/worlds` compares with
# float32 ones.
pytestmark = pytest.mark.usefixtures("x64")
SIZES = (3, 5, 2, 4, 6)
NUM_CLIENTS = len(SIZES)
BATCH_SIZE = 2
RATE = 0.1
COHORTS = ((0, 3, 4), (1, 3, 2))
SERVER_RATE = 0.7


@pytest.fixture(scope="module")
def data() -> FederatedData:
    random = np.random.default_rng(0)
    return FederatedData.from_clients(
        [
            {
                "x": random.normal(size=(size, 2)).astype(np.float32) + np.float32(k % 2),
                "y": random.normal(size=size).astype(np.float32),
            }
            for k, size in enumerate(SIZES)
        ]
    )


def least_squares() -> Model:
    """Half the squared error of a linear model, starting at (1, -1)."""

    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        return 0.5 * (batch["x"] @ params - batch["y"]) ** 2

    return Model(lambda key: jnp.array([1.0, -1.0]), loss, lambda params, batch: {"loss": loss(params, batch, None)})


START = np.array([1.0, -1.0])
TWICE = {"num_epochs": 2, "shuffle": False}


def gradient(w: Any, client: Any, rows: Any = slice(None)) -> Any:
    x, y = client["x"][rows].astype(np.float64), client["y"][rows].astype(np.float64)
    return x.T @ (x @ w - y) / len(y)


def batches(client: Any, num_epochs: int = 2) -> list[slice]:
    return [slice(s, s + BATCH_SIZE) for s in range(0, len(client["y"]), BATCH_SIZE)] * num_epochs


def descent(start: Any, client: Any, direction: Any) -> Any:
    """Local steps from a start; ``direction(y, rows)`` is what the rate multiplies."""
    y = np.array(start)
    for rows in batches(client):
        y = y - RATE * direction(y, rows)
    return y


def chosen(data: FederatedData, ids: Any) -> Clients:
    return Cohort(data, ids, batch_size=BATCH_SIZE).whole(num_steps=3)


class Run(NamedTuple):
    """What an algorithm does, round by round: its states and those of all clients."""

    step: Any
    servers: list[Any]
    owns: list[Any]


def with_control(state: Any, control: Any) -> Any:
    """Sets what SCAFFOLD's server keeps."""
    return state._replace(optimizer=state.optimizer._replace(control=control))


def with_gradient(state: Any, gradient: Any) -> Any:
    """Sets what FedDyn's server keeps."""
    first, *rest = state.optimizer
    return state._replace(optimizer=(first._replace(gradient=gradient), *rest))


def run(algorithm: Any, data: FederatedData, own: Any = None, start: Any = None) -> Run:
    """Runs a round for each cohort, in one compiled program, with the clients' states in an array."""
    step, state = jax.jit(algorithm.next), algorithm.init(jax.random.key(0)) if start is None else start
    servers, owns = [state], [own]
    for ids in COHORTS:
        if own is None:
            state, _ = step(state, chosen(data, ids))
        else:
            state, _, new = step(state, chosen(data, ids), Clients.of(own[list(ids)], ids=ids))
            own = own.copy()
            own[list(ids)] = np.asarray(new.value)
        servers.append(state)
        owns.append(own)
    return Run(step, servers, owns)


def some_controls() -> Any:
    return np.random.default_rng(1).normal(size=(NUM_CLIENTS, 2))


# --- SCAFFOLD -------------------------------------------------------------------------------------


def scaffold_in_numpy(data: FederatedData, option: str, controls: Any) -> Any:
    """Karimireddy et al., algorithm 1."""
    x, controls = START, controls.astype(np.float64)
    c = controls.mean(axis=0)
    for ids in COHORTS:
        moved, changed = [], []
        for k in ids:
            client = data.client(k)
            y = descent(x, client, lambda y, rows, k=k, client=client, c=c: gradient(y, client, rows) - controls[k] + c)
            if option == "I":
                new = gradient(x, client)
            else:
                new = controls[k] - c + (x - y) / (len(batches(client)) * RATE)
            moved.append(y - x)
            changed.append(new - controls[k])
            controls[k] = new
        x = x + SERVER_RATE * np.mean(moved, axis=0)
        c = c + len(ids) / NUM_CLIENTS * np.mean(changed, axis=0)
    return x, c, controls


def scaffold_of(option: Any) -> Any:
    return scaffold(
        least_squares(),
        num_clients=NUM_CLIENTS,
        option=option,
        client_optimizer=optax.sgd(RATE),
        server_optimizer=optax.sgd(SERVER_RATE),
        **TWICE,
    )


@pytest.fixture(scope="module")
def scaffolds(data) -> dict[str, Run]:
    controls = some_controls()
    found = {}
    for option in ("I", "II"):
        algorithm = scaffold_of(option)
        start = with_control(algorithm.init(jax.random.key(0)), controls.mean(axis=0))
        found[option] = run(algorithm, data, controls, start)
    return found


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_equals_the_loop_in_numpy(data, scaffolds, option):
    x, c, controls = scaffold_in_numpy(data, option, some_controls())
    found = scaffolds[option]
    np.testing.assert_allclose(found.servers[-1].params, x, rtol=1e-10)
    np.testing.assert_allclose(found.servers[-1].optimizer.control, c, rtol=1e-10)
    np.testing.assert_allclose(found.owns[-1], controls, rtol=1e-10)


@pytest.mark.parametrize("option", ["I", "II"])
def test_the_server_control_stays_the_mean_of_all_clients_controls(scaffolds, option):
    for server, own in zip(scaffolds[option].servers, scaffolds[option].owns, strict=True):
        np.testing.assert_allclose(server.optimizer.control, own.mean(axis=0), rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def averaged(data) -> Any:
    """A round of federated averaging with uniform weights: its state and metrics."""
    options: Any = {"server_optimizer": optax.sgd(SERVER_RATE), "client_weight": uniform, **TWICE}
    algorithm = fed_avg(least_squares(), client_optimizer=optax.sgd(RATE), **options)
    return jax.jit(algorithm.next)(algorithm.init(jax.random.key(0)), chosen(data, COHORTS[0]))


def test_the_first_round_with_zero_controls_is_fed_avg(data, scaffolds, averaged):
    clients, (expected, metrics) = chosen(data, COHORTS[0]), averaged
    zero = Clients.of(np.zeros((3, 2)), ids=COHORTS[0])
    for option, found in scaffolds.items():
        state = scaffold_of(option).init(jax.random.key(0))
        after, measured, _ = found.step(state, clients, zero)
        np.testing.assert_allclose(after.params, expected.params, rtol=1e-10)
        assert measured.pop("num_non_finite_states") == 0
        assert_trees_close(measured, metrics)


def test_a_client_that_is_not_finite_keeps_its_control(data, scaffolds):
    """As if it had not been there, in everything but the count."""
    features = np.array(data.examples["x"])
    features[data.offsets[3]] = np.nan
    poisoned = FederatedData({**data.examples, "x": features}, data.offsets)
    own = Clients.of(some_controls()[[0, 3, 4]], ids=(0, 3, 4))
    for found in scaffolds.values():
        after, metrics, new = found.step(found.servers[1], chosen(poisoned, (0, 3, 4)), own)
        assert_trees_equal(new.value[1], own.value[1])
        clients = chosen(data, (0, 3, 4))
        absent = Clients(clients.value, np.array([True, False, True]), clients.id)
        expected, _, others = found.step(found.servers[1], absent, own)
        assert_trees_close(after, expected)
        np.testing.assert_allclose(new.value[0], others.value[0], rtol=1e-10)
        assert int(metrics["num_non_finite_clients"]) == 1


def test_a_client_that_takes_no_step_keeps_its_control(data):
    """It has less than a batch, which is dropped: the round is the one without it."""
    ids, own = (0, 3, 4), some_controls()
    algorithm = scaffold(
        least_squares(), num_clients=NUM_CLIENTS, client_optimizer=optax.sgd(RATE), shuffle=False, drop_remainder=True
    )
    state = with_control(algorithm.init(jax.random.key(0)), own.mean(axis=0))
    clients, controls = Cohort(data, ids, batch_size=4).whole(), Clients.of(own[list(ids)], ids=ids)
    step = jax.jit(algorithm.next)
    after, metrics, new = step(state, clients, controls)
    expected, _, _ = step(state, Clients(clients.value, np.array([False, True, True]), clients.id), controls)
    assert_trees_equal(new.value[0], own[0])
    assert_trees_close(after, expected)
    own[list(ids)] = np.asarray(new.value)
    np.testing.assert_allclose(after.optimizer.control, own.mean(axis=0), rtol=1e-10)
    assert (int(metrics["num_clients"]), int(metrics["num_examples"])) == (2, 8)  # of 4 and 6 examples


def test_scaffold_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="option must be one of 'I', 'II'; got option='III'"):
        scaffold(least_squares(), num_clients=5, option="III", client_optimizer=optax.sgd(0.1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got num_clients=0"):
        scaffold(least_squares(), num_clients=0, client_optimizer=optax.sgd(0.1))


# --- FedDyn ---------------------------------------------------------------------------------------


def fed_dyn_in_numpy(data: FederatedData, alpha: float, own: Any) -> Any:
    """Acar et al., algorithm 1, whose local problems are solved by gradient steps."""
    x, own = START, own.astype(np.float64)
    h = own.mean(axis=0)
    for ids in COHORTS:
        trained = []
        for k in ids:
            client = data.client(k)
            y = descent(
                x,
                client,
                lambda y, rows, k=k, client=client, x=x: gradient(y, client, rows) - own[k] + alpha * (y - x),
            )
            own[k] = own[k] - alpha * (y - x)
            trained.append(y)
        h = h - alpha * sum(y - x for y in trained) / NUM_CLIENTS
        x = np.mean(trained, axis=0) - h / alpha
    return x, h, own


def fed_dyn_of(alpha: float) -> Any:
    return fed_dyn(
        least_squares(),
        num_clients=NUM_CLIENTS,
        proximal_strength=alpha,
        client_optimizer=optax.sgd(RATE),
        **TWICE,
    )


def test_fed_dyn_equals_the_loop_in_numpy(data):
    own = 0.1 * some_controls()
    x, h, expected = fed_dyn_in_numpy(data, 0.5, own)
    algorithm = fed_dyn_of(0.5)
    found = run(algorithm, data, own, with_gradient(algorithm.init(jax.random.key(0)), own.mean(axis=0)))
    np.testing.assert_allclose(found.servers[-1].params, x, rtol=1e-10)
    np.testing.assert_allclose(found.servers[-1].optimizer[0].gradient, h, rtol=1e-10)
    np.testing.assert_allclose(found.owns[-1], expected, rtol=1e-10)
    for server, all_own in zip(found.servers, found.owns, strict=True):
        np.testing.assert_allclose(server.optimizer[0].gradient, all_own.mean(axis=0), rtol=1e-10)


def test_fed_dyn_without_regularisation_adds_earlier_changes_to_those_of_fed_avg(data):
    zero = np.zeros((NUM_CLIENTS, 2))
    found = run(fed_dyn_of(1e-6), data, zero)
    x, earlier = START, np.zeros(2)
    for ids in COHORTS:
        moved = [
            descent(x, client, lambda y, rows, client=client: gradient(y, client, rows)) - x
            for client in map(data.client, ids)
        ]
        earlier = earlier + np.sum(moved, axis=0) / NUM_CLIENTS
        x = x + np.mean(moved, axis=0) + earlier
    np.testing.assert_allclose(found.servers[-1].params, x, rtol=1e-4)


def test_fed_dyn_refuses_no_regularisation():
    with pytest.raises(ValueError, match=r"proximal_strength must be positive; got proximal_strength=0\. Pass"):
        fed_dyn(least_squares(), num_clients=5, proximal_strength=0, client_optimizer=optax.sgd(0.1))


# --- FedLin ---------------------------------------------------------------------------------------


def mean_gradient(data: FederatedData, ids: Any, x: Any) -> Any:
    sizes = data.sizes[list(ids)]
    return sum(n * gradient(x, data.client(k)) for n, k in zip(sizes, ids, strict=True)) / sizes.sum()


def mean_by_examples(data: FederatedData, ids: Any, values: Any) -> Any:
    sizes = data.sizes[list(ids)]
    return sum(n * value for n, value in zip(sizes, values, strict=True)) / sizes.sum()


def test_fed_lin_equals_the_loop_in_numpy(data):
    """Mitra et al., algorithm 1, with the means weighted by examples."""
    x = START
    for ids in COHORTS:
        g = mean_gradient(data, ids, x)
        trained = []
        for client in map(data.client, ids):
            correction = g - gradient(x, client)
            trained.append(
                descent(x, client, lambda y, rows, client=client, shift=correction: gradient(y, client, rows) + shift)
            )
        x = mean_by_examples(data, ids, trained)
    found = run(fed_lin(least_squares(), client_optimizer=optax.sgd(RATE), **TWICE), data)
    np.testing.assert_allclose(found.servers[-1].params, x, rtol=1e-10)


def test_one_local_step_of_fed_lin_is_a_centralised_gradient_step(data):
    algorithm = fed_lin(least_squares(), client_optimizer=optax.sgd(RATE), num_steps=1)
    clients = Cohort(data, COHORTS[0], batch_size=max(SIZES)).whole()
    state, metrics = jax.jit(algorithm.next)(algorithm.init(jax.random.key(0)), clients)
    np.testing.assert_allclose(state.params, START - RATE * mean_gradient(data, COHORTS[0], START), rtol=1e-10)
    assert set(metrics) >= {"loss", "aggregation", "first_aggregation"}


def test_who_is_left_out_of_the_first_pass_is_left_out_of_the_second(data):
    """Its gradient over all examples is not finite, but that of its one step is."""
    features = np.array(data.examples["x"])
    features[data.offsets[4] - 1] = np.nan
    poisoned = chosen(FederatedData({**data.examples, "x": features}, data.offsets), COHORTS[0])
    absent = Clients(poisoned.value, np.array([True, False, True]), poisoned.id)
    once: Any = {"num_steps": 1, "shuffle": False}
    algorithms = [
        fed_lin(least_squares(), client_optimizer=optax.sgd(RATE), **once),
        mime(least_squares(), base_optimizer=optax.sgd(RATE), **once),
    ]
    step = jax.jit(lambda clients: [a.next(a.init(jax.random.key(0)), clients) for a in algorithms])
    for (state, metrics), (expected, without) in zip(step(poisoned), step(absent), strict=True):
        assert_trees_close(state.params, expected.params)
        assert (int(metrics["num_clients"]), int(metrics["num_non_finite_clients"])) == (2, 1)
        assert int(without["num_non_finite_clients"]) == 0


# --- Mime and MimeLite ----------------------------------------------------------------------------


def mime_in_numpy(data: FederatedData, base: Any, start: Any, *, corrected: bool) -> Any:
    """Karimireddy et al., algorithm 1; ``base(g, s)`` is η U(g, s) and V(g, s)."""
    x, s = START, start
    for ids in COHORTS:
        c, trained = mean_gradient(data, ids, x), []
        for client in map(data.client, ids):
            y = x
            for rows in batches(client):
                g = gradient(y, client, rows)
                if corrected:
                    g = g - gradient(x, client, rows) + c
                y = y - base(g, s)[0]
            trained.append(y)
        s = base(c, s)[1]
        x = mean_by_examples(data, ids, trained)
    return x, s


def momentum(g: Any, s: Any) -> Any:
    return RATE * (g + 0.9 * s), g + 0.9 * s


def adam(g: Any, s: Any) -> Any:
    t, m, v = s
    t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    return 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-2), (t, m, v)


def test_mime_with_momentum_equals_the_loop_in_numpy(data):
    found = run(mime(least_squares(), base_optimizer=optax.sgd(RATE, momentum=0.9), **TWICE), data)
    x, s = mime_in_numpy(data, momentum, np.zeros(2), corrected=True)
    np.testing.assert_allclose(found.servers[-1].params, x, rtol=1e-10)
    np.testing.assert_allclose(found.servers[-1].optimizer.statistics[0].trace, s, rtol=1e-10)


def test_mime_lite_with_adam_equals_the_loop_in_numpy(data):
    base = optax.adam(0.05, b1=0.9, b2=0.99, eps=1e-2)
    found = run(mime(least_squares(), base_optimizer=base, corrected=False, **TWICE), data)
    x, (t, m, v) = mime_in_numpy(data, adam, (0, np.zeros(2), np.zeros(2)), corrected=False)
    np.testing.assert_allclose(found.servers[-1].params, x, rtol=1e-10)
    statistics = found.servers[-1].optimizer.statistics[0]
    assert int(statistics.count) == t
    np.testing.assert_allclose(statistics.mu, m, rtol=1e-10)
    np.testing.assert_allclose(statistics.nu, v, rtol=1e-10)


def test_mime_lite_with_plain_sgd_is_fed_avg(data, averaged):
    options: Any = {"server_optimizer": optax.sgd(SERVER_RATE), "client_weight": uniform, **TWICE}
    algorithm = mime(least_squares(), base_optimizer=optax.sgd(RATE), corrected=False, **options)
    state, metrics = jax.jit(algorithm.next)(algorithm.init(jax.random.key(0)), chosen(data, COHORTS[0]))
    np.testing.assert_allclose(state.params, averaged[0].params, rtol=1e-10)
    assert set(metrics.pop("first_aggregation")) == set(metrics["aggregation"])
    assert_trees_close(metrics, averaged[1])


# --- All of them ----------------------------------------------------------------------------------


def test_a_schedule_over_rounds_is_refused_where_there_is_none():
    def schedule(round: Any) -> Any:
        return optax.sgd(RATE / (1 + round))

    for method in (
        lambda optimizer: mime(least_squares(), base_optimizer=optimizer),
        lambda optimizer: ditto(
            least_squares(), proximal_strength=0.1, client_optimizer=optax.sgd(0.1), personal_optimizer=optimizer
        ),
        lambda optimizer: local_train(least_squares(), 0, None, None, optimizer=optimizer),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="only client_optimizer may be a schedule over rounds; got a function"):
            method(schedule)


def test_a_schedule_over_rounds_is_that_of_the_round(data):
    """Of a method with a client state and two passes, as of one without."""

    def schedule(round: Any) -> Any:
        return optax.sgd(jnp.where(round == 0, RATE, 0.0))

    for build in (
        functools.partial(scaffold, least_squares(), num_clients=NUM_CLIENTS),
        functools.partial(fed_lin, least_squares()),
    ):
        algorithm = build(client_optimizer=schedule)
        own = np.zeros((NUM_CLIENTS, 2)) if isinstance(algorithm, StatefulAlgorithm) else None
        _, first, second, *_ = run(algorithm, data, own).servers
        _, as_before, *_ = run(build(client_optimizer=optax.sgd(RATE)), data, own).servers
        np.testing.assert_array_equal(first.params, as_before.params)
        np.testing.assert_array_equal(second.params, first.params)
