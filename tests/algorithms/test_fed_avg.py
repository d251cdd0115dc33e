"""FedAvg against a per-client loop written from the paper, its identities, and its bad inputs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from fedjx.aggregation import uniform
from fedjx.algorithms import fed_avg
from fedjx.core.execution.process import Aggregator
from fedjx.data import Cohort, FederatedData, central
from fedjx.models import Model, linear
from fedjx.training import ClientUpdate, drop_non_finite, local_train
from tests.algorithms.problems import (
    BATCH_SIZE,
    NUM_CLASSES,
    NUM_FEATURES,
    assert_trees_close,
    assert_trees_equal,
    federated_data,
    plain_model,
)

COHORT = (0, 2, 5, 7, 9)


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return federated_data()


def softmax_regression() -> Model:
    """Multinomial logistic regression, starting at zero."""
    shapes = {"kernel": (NUM_FEATURES, NUM_CLASSES), "bias": (1, NUM_CLASSES)}

    def init(key: Any) -> Any:
        del key
        return {name: jnp.zeros(shape) for name, shape in shapes.items()}

    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        logits = batch["x"] @ params["kernel"] + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    return Model(init, loss, lambda params, batch: {"loss": loss(params, batch, None)})


# --- parity with a loop in NumPy ----------------------------------------------------------------


def gradient(params: Any, x: Any, y: Any) -> Any:
    """The gradient of the mean cross entropy, by hand, in float64."""
    logits = x.astype(np.float64) @ params["kernel"] + params["bias"]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return {"kernel": x.T.astype(np.float64) @ p / len(y), "bias": p.mean(axis=0, keepdims=True)}


def client_in_numpy(params: Any, client: Any, rate: float, momentum: float, orders: Any) -> Any:
    """SGD with momentum over the given orders of the examples, the last batch of each short."""
    w, velocity = dict(params), {k: np.zeros_like(v) for k, v in params.items()}
    for order in orders:
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            grads = gradient(w, client["x"][rows], client["y"][rows])
            for k in w:
                velocity[k] = momentum * velocity[k] + grads[k]
                w[k] = w[k] - rate * velocity[k]
    return w


def rounds_in_numpy(
    data: FederatedData, cohorts: Any, *, rate: float, momentum: float, server: Any, orders: Any
) -> Any:
    """McMahan et al., algorithm 1, with a server optimizer on the mean change (Reddi et al.)."""
    params: Any = {"kernel": np.zeros((NUM_FEATURES, NUM_CLASSES)), "bias": np.zeros((1, NUM_CLASSES))}
    server_state = server.init(params)
    for number, ids in enumerate(cohorts):
        clients = [data.client(k) for k in ids]
        total = sum(len(c["y"]) for c in clients)
        trained = [
            client_in_numpy(params, c, rate, momentum, orders(number, k, len(c["y"])))
            for k, c in zip(ids, clients, strict=True)
        ]
        mean = {n: sum(len(c["y"]) * w[n] for c, w in zip(clients, trained, strict=True)) / total for n in params}
        delta = {n: params[n] - mean[n] for n in params}
        updates, server_state = server.update(delta, server_state, params)
        params = {n: params[n] + np.asarray(updates[n], np.float64) for n in params}
    return params


COHORTS = [(0, 2, 5, 7, 9), (1, 2, 3, 8)]


@pytest.mark.parametrize("server", ["replace", "momentum", "adam"])
def test_two_rounds_equal_the_loop_in_numpy(data, server):
    optimizer = {
        "replace": optax.sgd(1.0),
        "momentum": optax.sgd(0.5, momentum=0.9),
        "adam": optax.adam(0.1, b1=0.9, b2=0.99, eps=1e-2),
    }[server]
    algorithm = fed_avg(
        softmax_regression(),
        client_optimizer=optax.sgd(0.1, momentum=0.5),
        server_optimizer=optimizer,
        num_epochs=2,
        shuffle=False,
    )
    state = algorithm.init(jax.random.key(0))
    for ids in COHORTS:
        state, _ = algorithm.next(state, Cohort(data, ids, batch_size=BATCH_SIZE).whole())
    in_order = rounds_in_numpy(
        data, COHORTS, rate=0.1, momentum=0.5, server=optimizer, orders=lambda r, k, n: [np.arange(n)] * 2
    )
    for name, expected in in_order.items():
        np.testing.assert_allclose(state.params[name], expected, rtol=1e-5, atol=1e-7)


def test_shuffled_rounds_equal_the_loop_in_numpy(data):
    """The orders are those of the documented keys: round, purpose, client, epoch, and one draw per position."""
    algorithm = fed_avg(softmax_regression(), client_optimizer=optax.sgd(0.1, momentum=0.5), num_epochs=3)
    state = algorithm.init(jax.random.key(5))

    def orders(number: int, k: int, n: int) -> Any:
        key_clients = jax.random.split(jax.random.fold_in(state.key, number), 3)[1]
        client_key = jax.random.fold_in(key_clients, k)
        key_order = jax.random.split(client_key)[0]
        return [np.argsort(jax.random.bits(jax.random.fold_in(key_order, e), (n,)) >> 1) for e in range(3)]

    expected = rounds_in_numpy(data, COHORTS, rate=0.1, momentum=0.5, server=optax.sgd(1.0), orders=orders)
    trained = state
    for ids in COHORTS:
        trained, _ = algorithm.next(trained, Cohort(data, ids, batch_size=BATCH_SIZE).whole())
    for name, value in expected.items():
        np.testing.assert_allclose(trained.params[name], value, rtol=1e-5, atol=1e-7)


# --- identities -----------------------------------------------------------------------------------


def test_one_client_and_one_step_is_sgd(data):
    model = plain_model()
    algorithm = fed_avg(model, client_optimizer=optax.sgd(0.3), num_steps=1, shuffle=False)
    state = algorithm.init(jax.random.key(0))
    after, _ = algorithm.next(state, Cohort(data, [1], batch_size=8).whole())
    batch = {**data.client(1), "mask": np.ones(3, bool)}
    grads = jax.grad(lambda p: model.loss(p, batch, jax.random.key(0)).mean())(state.params)
    chex.assert_trees_all_close(
        after.params, optax.apply_updates(state.params, jax.tree.map(lambda g: -0.3 * g, grads)), rtol=1e-5
    )


def test_fed_sgd_with_all_clients_is_a_centralised_gradient_step(data):
    model = plain_model()
    algorithm = fed_avg(model, client_optimizer=optax.sgd(1.0), server_optimizer=optax.sgd(0.2), num_steps=1)
    state = algorithm.init(jax.random.key(0))
    after, metrics = algorithm.next(state, Cohort(data, range(data.num_clients), batch_size=16).whole())
    batch = {**data.examples, "mask": np.ones(data.num_examples, bool)}
    losses, vjp = jax.vjp(lambda p: model.loss(p, batch, jax.random.key(0)).mean(), state.params)
    (grads,) = vjp(jnp.ones(()))
    expected = jax.tree.map(lambda p, g: p - 0.2 * g, state.params, grads)
    assert_trees_close(after.params, expected)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)


def test_weights_by_examples_and_uniform(data):
    """Anchors, row 70: deltas +1 and -1 of clients with 10 and 100 examples."""

    def mean_of(client_weight: Any) -> Any:
        def loss(params: Any, batch: Any, key: Any) -> Any:
            del key
            return -params * batch["y"]  # the gradient is minus the label, so one step of rate 1 adds it

        model = Model(lambda key: jnp.zeros(()), loss, lambda params, batch: {"loss": loss(params, batch, None)})
        clients = FederatedData.from_clients(
            [{"y": np.full(10, 1.0, np.float32)}, {"y": np.full(100, -1.0, np.float32)}]
        )
        algorithm = fed_avg(model, client_optimizer=optax.sgd(1.0), client_weight=client_weight, num_epochs=1)
        state, _ = algorithm.next(algorithm.init(jax.random.key(0)), Cohort(clients, [0, 1], batch_size=100).whole())
        return float(state.params)

    np.testing.assert_allclose(mean_of(lambda n: n.astype(jnp.float32)), -0.81818, atol=1e-5)
    np.testing.assert_allclose(mean_of(uniform), 0, atol=1e-6)


def test_any_aggregator(data):
    """An aggregator of the test's own: the sum, with a count as its state and a measurement."""

    @fedjx.federated_computation
    def sum_next(key: Any, state: Any, value: Any, weight: Any) -> Any:
        del key, weight
        total = fedjx.federated_sum(value)
        return (
            state + 1,
            total,
            fedjx.federated_map(lambda t, s: {"norm": optax.tree.norm(t), "calls": s}, total, state),
        )

    aggregator = Aggregator(lambda member: jnp.int32(0), sum_next)
    model = softmax_regression()
    summed = fed_avg(model, client_optimizer=optax.sgd(0.1), aggregator=aggregator)
    mean = fed_avg(model, client_optimizer=optax.sgd(0.1), client_weight=uniform)
    clients = Cohort(data, COHORT, batch_size=BATCH_SIZE).whole()
    start = summed.init(jax.random.key(0))
    after, metrics = summed.next(start, clients)
    expected, _ = mean.next(mean.init(jax.random.key(0)), clients)
    assert_trees_close(after.params, jax.tree.map(lambda p: p * len(COHORT), expected.params))
    assert int(after.aggregator) == 1
    assert int(metrics["aggregation"]["calls"]) == 0
    np.testing.assert_allclose(metrics["aggregation"]["norm"], optax.tree.norm(after.params), rtol=1e-5)


# --- through JAX's transformations ----------------------------------------------------------------


def trained(rate: Any, data: FederatedData, **amount: int) -> Any:
    server_optimizer = optax.sgd(0.5, momentum=0.9)
    algorithm = fed_avg(plain_model(), client_optimizer=optax.sgd(rate), server_optimizer=server_optimizer, **amount)
    state = algorithm.init(jax.random.key(0))
    for ids in COHORTS:
        state, _ = algorithm.next(state, Cohort(data, ids, batch_size=BATCH_SIZE).whole())
    return state.params


def test_vmap_over_client_learning_rates_equals_separate_runs(data):
    rates = jnp.array([0.01, 0.05, 0.1, 0.5])
    one = jax.jit(lambda rate: trained(rate, data))
    together = jax.jit(jax.vmap(one))(rates)
    for i, rate in enumerate(rates):
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], together), one(rate))


@pytest.mark.parametrize("amount", [{"num_epochs": 1}, {"num_steps": 3}])
def test_grad_through_rounds_equals_finite_differences(data, amount):
    def objective(rate: Any) -> Any:
        return optax.tree.norm(trained(rate, data, **amount)) ** 2

    rate, step = jnp.float32(0.1), 3e-3
    slope = jax.jit(jax.grad(objective))(rate)
    value = jax.jit(objective)
    np.testing.assert_allclose(slope, (value(rate + step) - value(rate - step)) / (2 * step), rtol=1e-2)


def test_grad_with_respect_to_the_state_is_the_same_on_four_devices(data):
    algorithm = fed_avg(plain_model(), client_optimizer=optax.sgd(0.1))
    state, clients = algorithm.init(jax.random.key(0)), Cohort(data, COHORT, batch_size=BATCH_SIZE).whole()
    mesh = jax.make_mesh((4,), ("clients",))

    def slope(**options: Any) -> Any:
        def objective(params: Any) -> Any:
            after, metrics = algorithm.next.in_graph(**options)(state._replace(params=params), clients)
            return optax.tree.norm(after.params) ** 2 + metrics["loss"]

        return jax.jit(jax.grad(objective))(state.params)

    assert_trees_close(slope(mesh=mesh, lanes=1), slope())


def test_scan_over_rounds_equals_a_loop(data):
    algorithm = fed_avg(plain_model(), client_optimizer=optax.sgd(0.1))
    clients = Cohort(data, COHORT, batch_size=BATCH_SIZE).whole()
    start = algorithm.init(jax.random.key(0))
    scanned, losses = jax.jit(
        lambda state: jax.lax.scan(
            lambda s, _: (lambda s, m: (s, m["loss"]))(*algorithm.next(s, clients)), state, None, 3
        )
    )(start)
    looped = start
    for i in range(3):
        looped, metrics = algorithm.next(looped, clients)
        np.testing.assert_allclose(losses[i], metrics["loss"], rtol=1e-5)
    assert_trees_close(scanned, looped)


_FRESH = """
import collections, sys
import jax, numpy as np, fedjx
directory = sys.argv[1]
step = fedjx.load(open(f"{directory}/round", "rb").read())
arrays = np.load(f"{directory}/arguments.npz")
State = collections.namedtuple("State", "params optimizer aggregator broadcaster key round")
params = {"bias": arrays["bias"], "kernel": arrays["kernel"]}
state = State(params, ((), ()), (), (), jax.random.wrap_key_data(arrays["key"]), np.int32(0))
for name in ("few", "many"):
    batches = fedjx.Batches({"x": arrays["x"], "y": arrays["y"]}, arrays[name])
    data = fedjx.Clients.of(fedjx.Sequence(batches, arrays[name + "_length"]), ids=arrays[name + "_ids"])
    after, metrics = step(state, data)
    np.savez(f"{directory}/{name}.npz", kernel=after.params.kernel, loss=metrics.loss)
"""


def test_a_round_exported_for_any_cohort_runs_in_a_fresh_process(data, tmp_path):
    algorithm = fed_avg(softmax_regression(), client_optimizer=optax.sgd(0.1))
    state = algorithm.init(jax.random.key(3))
    cohorts = {
        name: Cohort(data, ids, batch_size=BATCH_SIZE).whole()
        for name, ids in {"few": [1, 2], "many": range(10)}.items()
    }
    (tmp_path / "round").write_bytes(fedjx.export(algorithm.next, state, cohorts["few"]))
    arrays: dict[str, Any] = {**state.params, **data.examples, "key": jax.random.key_data(state.key)}
    for name, clients in cohorts.items():
        arrays |= {
            name: clients.value.elements.index,
            f"{name}_length": clients.value.length,
            f"{name}_ids": clients.id,
        }
    np.savez(tmp_path / "arguments.npz", **arrays)
    subprocess.run([sys.executable, "-c", _FRESH, tmp_path], check=True, timeout=240)
    for name, clients in cohorts.items():
        after, metrics = algorithm.next(state, clients)
        with np.load(tmp_path / f"{name}.npz") as loaded:
            np.testing.assert_allclose(loaded["kernel"], after.params["kernel"], rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(loaded["loss"], metrics["loss"], rtol=1e-6)


# --- what goes wrong ------------------------------------------------------------------------------


def with_poison(data: FederatedData, k: int) -> FederatedData:
    x = np.array(data.examples["x"])
    x[data.offsets[k]] = np.nan
    return FederatedData({**data.examples, "x": x}, data.offsets)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_non_finite_client_is_left_out_and_counted(data, streamed):
    algorithm = fed_avg(plain_model(), client_optimizer=optax.sgd(0.1), server_optimizer=optax.adam(0.01))
    state = algorithm.init(jax.random.key(0))
    step = algorithm.next.streamed(lanes=2) if streamed else algorithm.next
    after, metrics = step(state, Cohort(with_poison(data, 5), COHORT, batch_size=BATCH_SIZE).whole())
    others = [k for k in COHORT if k != 5]
    expected, clean = step(state, Cohort(data, others, batch_size=BATCH_SIZE).whole())
    assert_trees_close(after, expected)
    assert int(metrics["num_non_finite_clients"]) == 1
    assert int(clean["num_non_finite_clients"]) == 0
    assert int(metrics["num_clients"]) == len(others)
    assert int(metrics["num_examples"]) == data.sizes[others].sum()
    np.testing.assert_allclose(metrics["loss"], clean["loss"], rtol=1e-5)


def test_a_round_of_only_non_finite_clients_changes_no_parameter(data):
    algorithm = fed_avg(plain_model(), client_optimizer=optax.sgd(0.1))
    state = algorithm.init(jax.random.key(0))
    clients = Cohort(with_poison(data, 5), [5], batch_size=BATCH_SIZE).whole()
    with pytest.warns(RuntimeWarning, match="got 1 of 1 left out"):  # at the latest by the next round
        rounds = [jax.block_until_ready(algorithm.next(state, clients)) for _ in range(2)]
    after, metrics = rounds[0]
    assert_trees_equal(after.params, state.params)
    assert int(metrics["num_clients"]) == 0
    assert np.isnan(metrics["loss"])
    assert int(after.round) == 1


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("where", ["delta", "weight"])
def test_checked_zeroes_everything_of_a_non_finite_update(bad, where):
    update = ClientUpdate({"a": jnp.ones(3), "n": jnp.int32(4)}, jnp.float32(2), {"loss": jnp.float32(7)})
    good = drop_non_finite(update)
    assert float(good.weight) == 2
    assert int(good.metrics["num_clients"]) == 1
    broken = update._replace(
        **{where: {"a": jnp.array([1, bad, 1]), "n": jnp.int32(4)} if where == "delta" else jnp.float32(bad)}
    )
    zeroed = drop_non_finite(broken)
    assert all(not np.any(x) for x in jax.tree.leaves((zeroed.delta, zeroed.weight, zeroed.metrics["loss"])))
    assert (int(zeroed.metrics["num_clients"]), int(zeroed.metrics["num_non_finite_clients"])) == (0, 1)


def test_a_client_whose_loss_is_not_finite_is_left_out_even_if_its_gradient_is(data):
    model = plain_model()

    def loss(params: Any, batch: Any, key: Any) -> Any:
        bad = jnp.where(batch["x"][:, 0] > 1e6, jnp.inf, 0.0)
        return model.loss(params, {**batch, "x": jnp.clip(batch["x"], -10, 10)}, key) + bad

    x = np.array(data.examples["x"])
    x[data.offsets[5]] = 1e7
    algorithm = fed_avg(model._replace(loss=loss), client_optimizer=optax.sgd(0.1))
    state = algorithm.init(jax.random.key(0))
    poisoned = FederatedData({**data.examples, "x": x}, data.offsets)
    after, metrics = algorithm.next(state, Cohort(poisoned, COHORT, batch_size=BATCH_SIZE).whole())
    expected, clean = algorithm.next(state, Cohort(data, [k for k in COHORT if k != 5], batch_size=BATCH_SIZE).whole())
    assert int(metrics["num_non_finite_clients"]) == 1
    assert_trees_close(after, expected)
    np.testing.assert_allclose(metrics["loss"], clean["loss"], rtol=1e-5)


def test_an_aggregator_that_changes_the_type_of_its_state_is_refused(data):
    @fedjx.federated_computation
    def drifting(key: Any, state: Any, value: Any, weight: Any) -> Any:
        del key
        return state + 0.5, fedjx.federated_mean(value, weight), fedjx.federated_value({}, fedjx.SERVER)

    aggregator = Aggregator(lambda member: jnp.int32(0), drifting)
    algorithm = fed_avg(softmax_regression(), client_optimizer=optax.sgd(0.1), aggregator=aggregator)
    with pytest.raises(
        TypeError, match="an aggregator keeps the type of its state; got float32@SERVER from int32@SERVER"
    ):
        algorithm.next(algorithm.init(jax.random.key(0)), Cohort(data, COHORT, batch_size=BATCH_SIZE).whole())


def test_no_cohort_is_refused_in_one_sentence(data):
    algorithm = fed_avg(softmax_regression(), client_optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="a cohort needs at least one client; got"):
        algorithm.next(algorithm.init(jax.random.key(0)), [])


def test_a_loss_that_is_not_per_example_is_refused(data):
    model = softmax_regression()
    averaged = model._replace(loss=lambda params, batch, key: model.loss(params, batch, key).mean())
    algorithm = fed_avg(averaged, client_optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"one number per example.*got loss with value.shape=\(\)") as raised:
        algorithm.next(algorithm.init(jax.random.key(0)), Cohort(data, COHORT, batch_size=BATCH_SIZE).whole())
    assert "fedjx: in federated_map of local_update.<locals>.client_update" in raised.value.__notes__[0]


def test_data_that_is_no_sequence_of_batches_is_refused(data):
    algorithm = fed_avg(softmax_regression(), client_optimizer=optax.sgd(0.1))
    state = algorithm.init(jax.random.key(0))
    flat = fedjx.Clients.of(fedjx.Sequence(np.zeros((2, 3), np.float32), np.ones(2, np.int32)))
    with pytest.raises(TypeError, match=r"a client's data set is a sequence of batches, dicts of features \[B, ...\]"):
        algorithm.next(state, flat)
    with pytest.raises(TypeError, match=r"a round takes data at CLIENTS; got <x=float32\[2,3\]>@SERVER"):
        algorithm.next(state, {"x": np.zeros((2, 3))})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"num_epochs": 1, "num_steps": 1},
            ValueError,
            "a number of epochs or of steps; got num_epochs=1, num_steps=1",
        ),
        ({"num_steps": 0}, ValueError, "num_steps must be an integer of at least 1; got num_steps=0"),
        ({"num_epochs": -1}, ValueError, "num_epochs must be an integer of at least 1; got num_epochs=-1"),
        ({"num_epochs": 1.5}, TypeError, "num_epochs must be an integer of at least 1; got num_epochs=1.5"),
        ({"num_steps": True}, TypeError, "num_steps must be an integer of at least 1; got num_steps=True"),
    ],
)
def test_epochs_or_steps(data, given, error, message):
    with pytest.raises(error, match=message):
        fed_avg(softmax_regression(), client_optimizer=optax.sgd(0.1), **given)
    with pytest.raises(error, match=message):
        local_train(
            softmax_regression(),
            softmax_regression().init(None),
            central(data, batch_size=BATCH_SIZE),
            jax.random.key(0),
            optimizer=optax.sgd(0.1),
            **given,
        )


def test_linear_model_counts():
    params = linear(10, input_shape=(28, 28, 1)).init(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == 7850
