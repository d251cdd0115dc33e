"""Personalisation against loops in NumPy written from the papers, and its identities.

The model is a linear regression of three parameters, w = (w_0, w_1, b), whose gradient is written by hand.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.aggregation import uniform
from fedjx.algorithms import fed_avg
from fedjx.algorithms.apfl import apfl, personal_params
from fedjx.algorithms.ditto import ditto
from fedjx.algorithms.fed_per import fed_per
from fedjx.algorithms.fed_rep import fed_rep
from fedjx.algorithms.p_fed_me import p_fed_me
from fedjx.algorithms.per_fed_avg import meta_model, per_fed_avg
from fedjx.algorithms.reconstruction import reconstruction
from fedjx.algorithms.reptile import reptile
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.values import Clients
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model, mean_loss
from fedjx.training import ClientUpdate
from fedjx.training.method import Method
from fedjx.training.parts import combine
from fedjx.training.round import compose
from fedjx.training.splits import no_split

SIZES = (4, 3, 1, 5)
BATCH_SIZE = 3
COHORTS = ((0, 1, 3), (3, 2, 0))
START: Any = {"weight": np.array([0.3, -0.2], np.float32), "bias": np.float32(0.1)}
RATE = 0.05
SGD = optax.sgd(RATE)


def regression() -> Model:
    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        return (batch["x"] @ params["weight"] + params["bias"] - batch["y"]) ** 2

    return Model(
        lambda key: jax.tree.map(jnp.asarray, START), loss, lambda params, batch: {"loss": loss(params, batch, None)}
    )


@pytest.fixture(scope="module")
def data() -> FederatedData:
    random = np.random.default_rng(3)
    clients = [{"x": random.normal(size=(n, 2)), "y": random.normal(size=n) + 1} for n in SIZES]
    return FederatedData.from_clients([{k: v.astype(np.float32) for k, v in c.items()} for c in clients])


def run(algorithm: Any, data: FederatedData, cohorts: Any = COHORTS) -> tuple[Any, Any, Any]:
    """Runs a round for every cohort; returns the parameters, all clients' states and the last metrics."""
    state, metrics = algorithm.init(jax.random.key(0)), None
    stateful = isinstance(algorithm, StatefulAlgorithm)
    first = algorithm.init_client(state) if stateful else ()
    rows = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], len(SIZES), 0), first)
    for ids in cohorts:
        clients = Cohort(data, ids, batch_size=BATCH_SIZE).whole(num_steps=2)
        if not stateful:
            state, metrics = algorithm.next(state, clients)
            continue
        own = Clients.of(jax.tree.map(operator.itemgetter(list(ids)), rows), ids=ids)
        state, metrics, new = algorithm.next(state, clients, own)
        for held, found in zip(jax.tree.leaves(rows), jax.tree.leaves(new.value), strict=True):
            held[list(ids)] = found
    return state.params, rows, metrics


# --- the loops in NumPy -------------------------------------------------------------------------


def gradient(w: Any, batch: Any) -> Any:
    x, y = batch
    return 2 * ((x @ w[:2] + w[2] - y) @ np.c_[x, np.ones(len(y))]) / len(y) if len(y) else np.zeros(3)


def hessian(batch: Any) -> Any:
    x = np.c_[batch[0], np.ones(len(batch[1]))]
    return 2 * x.T @ x / max(len(x), 1)


def batches(data: FederatedData, k: int) -> Any:
    client = data.client(k)
    x, y = client["x"].astype(np.float64), client["y"].astype(np.float64)
    return [(x[i : i + BATCH_SIZE], y[i : i + BATCH_SIZE]) for i in range(0, len(y), BATCH_SIZE)]


def in_numpy(data: FederatedData, client: Any, own: Any = None, *, weight: Any = len, server_rate: float = 1.0) -> Any:
    """Two rounds: the clients' ``(w, own, batches) -> (w_i, own)`` and the server's weighted mean."""
    w = np.array([*START["weight"], START["bias"]], np.float64)
    states = {k: own for k in range(len(SIZES))}
    for ids in COHORTS:
        results = {k: client(w, states[k], batches(data, k)) for k in ids}
        states.update({k: state for k, (_, state) in results.items()})
        weights = np.array([weight(data.client(k)["y"]) for k in ids], np.float64)
        mean = sum(a * results[k][0] for a, k in zip(weights, ids, strict=True)) / weights.sum()
        w = w + server_rate * (mean - w)
    return w, states


def sgd(w: Any, data: Any, step: Any = gradient, rate: float = RATE) -> Any:
    for batch in data:
        w = w - rate * step(w, batch)
    return w


def assert_equal(params: Any, expected: Any) -> None:
    got = np.append(params["weight"], params["bias"])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def row(rows: Any, k: int) -> Any:
    return jax.tree.map(lambda x: x[k], rows)


# --- parity ---------------------------------------------------------------------------------------

KEY = jax.random.key(1)
IN_ORDER = {"shuffle": False, "client_optimizer": SGD}


@pytest.fixture(scope="module")
def averaged(data: FederatedData) -> Any:
    return run(fed_avg(regression(), **IN_ORDER), data)


def test_ditto_equals_the_loop_in_numpy(data, averaged):
    params, rows, metrics = run(ditto(regression(), proximal_strength=0.7, **IN_ORDER), data)

    def client(w: Any, own: Any, data: Any) -> Any:
        own = sgd(own, data, lambda v, batch: gradient(v, batch) + 0.7 * (v - w))
        return sgd(w, data), own

    start = np.append(START["weight"], START["bias"])
    expected, states = in_numpy(data, client, start)
    assert_equal(params, expected)
    for k, own in states.items():
        assert_equal(row(rows, k), own)
    jax.tree.map(np.testing.assert_array_equal, params, averaged[0])  # The shared model is that of federated averaging.
    assert int(metrics["num_clients"]) == 3
    assert int(metrics["num_non_finite_states"]) == 0


@pytest.mark.parametrize(("mixing", "mixing_rate"), [(0.6, 0.3), (0.0, 0.0)])
def test_apfl_equals_the_loop_in_numpy(data, averaged, mixing, mixing_rate):
    optimizer = optax.sgd(mixing_rate) if mixing_rate else None
    algorithm = apfl(regression(), mixing=mixing, mixing_optimizer=optimizer, **IN_ORDER)
    params, rows, metrics = run(algorithm, data)

    def client(w: Any, own: Any, data: Any) -> Any:
        v, alpha = own
        for batch in data:
            of_mixture = gradient(alpha * v + (1 - alpha) * w, batch)
            new = v - RATE * alpha * of_mixture, np.clip(alpha - mixing_rate * (v - w) @ of_mixture, 0, 1)
            w = w - RATE * gradient(w, batch)
            v, alpha = new
        return w, (v, alpha)

    start = np.append(START["weight"], START["bias"])
    expected, states = in_numpy(data, client, (start, mixing))
    assert_equal(params, expected)
    for k, (v, alpha) in states.items():
        own = row(rows, k)
        assert_equal(own.params, v)
        np.testing.assert_allclose(own.mixing, alpha, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, averaged[0])
    np.testing.assert_allclose(metrics["loss"], averaged[2]["loss"], rtol=1e-6)  # It is the shared model's.
    if mixing:
        assert 0.01 < np.ptp(rows.mixing)  # The clients learn different shares.
    else:  # With a share of 0 the personal model is the shared one, and stays where it was.
        jax.tree.map(np.testing.assert_array_equal, personal_params(params, row(rows, 3)), params)
        jax.tree.map(np.testing.assert_array_equal, row(rows, 3).params, START)


def is_local(name: str) -> bool:
    return name == "bias"


@pytest.mark.parametrize("method", ["fed_per", "fed_rep"])
def test_partly_local_models_equal_the_loop_in_numpy(data, method):
    algorithm = {
        "fed_per": lambda: fed_per(regression(), is_local=is_local, **IN_ORDER),
        "fed_rep": lambda: fed_rep(
            regression(), is_local=is_local, local_optimizer=optax.sgd(0.1), num_local_epochs=2, **IN_ORDER
        ),
    }[method]()
    params, rows, _ = run(algorithm, data)
    head, body = np.array([0, 0, 1.0]), np.array([1.0, 1, 0])

    def client(w: Any, own: Any, data: Any) -> Any:
        w = w * body + own * head
        if method == "fed_per":
            w = sgd(w, data)
        else:
            w = sgd(w, data * 2, lambda w, batch: head * gradient(w, batch), rate=0.1)
            w = sgd(w, data, lambda w, batch: body * gradient(w, batch))
        return w, w

    expected, states = in_numpy(data, client, np.append(START["weight"], START["bias"]))
    assert params["bias"] is None
    assert_equal(combine(params, row(rows, 3)), body * expected + head * states[3])
    for k, own in states.items():
        np.testing.assert_allclose(rows["bias"][k], own[2], rtol=1e-5)
    # Down go a key and the weight; up the weight's change with a client's weight, and six metrics: never a bias.
    assert [message.bits for message in bill(algorithm, data)] == [64, 64, 64 + 32, 6 * 32]


def bill(algorithm: Any, data: FederatedData) -> Any:
    state, clients = algorithm.init(jax.random.key(0)), Cohort(data, COHORTS[0], batch_size=BATCH_SIZE).whole()
    states = Clients.of(jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], 3, 0), algorithm.init_client(state)))
    return algorithm.next.communication(state, clients, states)


def test_reconstruction_equals_the_loop_in_numpy(data):
    algorithm = reconstruction(
        regression(),
        is_local=is_local,
        reconstruction_optimizer=optax.sgd(0.1),
        num_reconstruction_epochs=2,
        **IN_ORDER,
    )
    params, _, metrics = run(algorithm, data)
    head, body = np.array([0, 0, 1.0]), np.array([1.0, 1, 0])

    def part(data: Any, first: int) -> Any:
        x, y = (np.concatenate(parts)[first::2] for parts in zip(*data, strict=True))
        return [(x[i : i + BATCH_SIZE], y[i : i + BATCH_SIZE]) for i in range(0, len(y), BATCH_SIZE)]

    def client(w: Any, own: Any, data: Any) -> Any:
        w = w * body + START["bias"] * head
        w = sgd(w, part(data, 0) * 2, lambda w, batch: head * gradient(w, batch), rate=0.1)
        return sgd(w, part(data, 1), lambda w, batch: body * gradient(w, batch)), own

    expected, _ = in_numpy(data, client, weight=lambda y: len(y) // 2)
    np.testing.assert_allclose(params["weight"], expected[:2], rtol=1e-5)
    assert params["bias"] is None  # No local parameter is at the server.
    assert int(metrics["num_examples"]) == 2 + 0 + 2
    assert int(metrics["num_clients"]) == 2  # The client with one example has no query.


def nothing(name: str) -> bool:
    del name
    return False


@pytest.mark.parametrize(
    "algorithm",
    [
        fed_rep(regression(), is_local=nothing, **IN_ORDER),
        reconstruction(regression(), is_local=nothing, reconstruction_optimizer=SGD, split=no_split, **IN_ORDER),
    ],
    ids=["fed_rep", "reconstruction"],
)
def test_with_nothing_local_it_is_federated_averaging(data, averaged, algorithm):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run(algorithm, data)[0], averaged[0])


def test_p_fed_me_equals_the_loop_in_numpy(data):
    algorithm = p_fed_me(
        regression(),
        proximal_strength=3.0,
        inner_optimizer=optax.sgd(0.1),
        num_inner_steps=4,
        client_weight=uniform,
        server_optimizer=optax.sgd(0.5),
        **IN_ORDER,
    )
    params, _, metrics = run(algorithm, data)

    def envelope(w: Any, batch: Any) -> Any:
        theta = w
        for _ in range(4):
            theta = theta - 0.1 * (gradient(theta, batch) + 3 * (theta - w))
        return 3 * (w - theta)

    expected, _ = in_numpy(
        data, lambda w, own, data: (sgd(w, data, envelope), own), weight=lambda y: 1, server_rate=0.5
    )
    assert_equal(params, expected)
    assert float(metrics["loss"]) > 0


def test_p_fed_me_with_one_inner_step_is_federated_averaging(data, averaged):
    """The gradient is then lambda s grad f, s being the inner rate."""
    algorithm = p_fed_me(
        regression(), proximal_strength=4.0, inner_optimizer=optax.sgd(0.25), num_inner_steps=1, **IN_ORDER
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), run(algorithm, data)[0], averaged[0])


@pytest.mark.parametrize("variant", ["first_order", "hessian_free"])
def test_per_fed_avg_equals_the_loop_in_numpy(data, variant):
    algorithm = per_fed_avg(regression(), inner_learning_rate=0.2, variant=variant, difference=0.1, **IN_ORDER)
    params, _, _ = run(algorithm, data)
    parts = 2 if variant == "first_order" else 3

    def meta(w: Any, batch: Any) -> Any:
        outer, inner, curved = (tuple(x[i::parts] for x in batch) for i in range(3))
        product = gradient(w - 0.2 * gradient(w, inner), outer)
        # The loss is quadratic: a difference of gradients is the Hessian's product exactly.
        return product if variant == "first_order" else product - 0.2 * hessian(curved) @ product

    expected, _ = in_numpy(data, lambda w, own, data: (sgd(w, data, meta), own))
    rtol = 1e-4 if variant == "hessian_free" else 1e-5
    np.testing.assert_allclose(np.append(params["weight"], params["bias"]), expected, rtol=rtol)


VARIANTS: Any = ("exact", "hessian_free", "first_order")


def test_the_exact_gradient_of_per_fed_avg_is_that_of_the_difference(data):
    """The loss is quadratic, so that a difference of gradients is the product with the Hessian."""
    batch = {**data.client(3), "mask": np.arange(5) < 4}

    @jax.jit
    def gradients(params: Any) -> Any:
        models = [meta_model(regression(), learning_rate=0.2, variant=v, difference=0.1) for v in VARIANTS]
        return [
            jax.grad(lambda w, model=m: mean_loss(model.loss(w, batch, KEY), batch["mask"]))(params) for m in models
        ]

    exact, approximate, first_order = gradients(START)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), exact, approximate)
    assert np.abs(exact["weight"] - first_order["weight"]).max() > 0.1


def test_reptile_with_one_step_is_a_gradient_step(data):
    """FedSGD: the mean of the clients' gradients, each on its first batch, with the product of the rates."""
    algorithm = reptile(regression(), num_steps=1, server_optimizer=optax.sgd(0.5), **IN_ORDER)
    params, _, _ = run(algorithm, data)
    expected, _ = in_numpy(
        data, lambda w, own, data: (w - RATE * gradient(w, data[0]), own), weight=lambda y: 1, server_rate=0.5
    )
    assert_equal(params, expected)


# --- a client's own state -------------------------------------------------------------------------


def test_a_state_that_is_not_finite_is_not_kept(data):
    """Personal models overflow in the second step, which client 1 does not take; what is shared is fine.

    With a strength of 0 its one step is local training, by the gradient of its own loss alone.
    """
    algorithm = ditto(regression(), proximal_strength=0.0, personal_optimizer=optax.sgd(1e38), **IN_ORDER)
    params, rows, metrics = run(algorithm, data, COHORTS[:1])
    assert np.isfinite(params["weight"]).all()
    assert (int(metrics["num_clients"]), int(metrics["num_non_finite_states"])) == (3, 2)
    jax.tree.map(np.testing.assert_array_equal, row(rows, 3), START)
    start = np.append(START["weight"], START["bias"])
    np.testing.assert_allclose(
        np.append(rows["weight"][1], rows["bias"][1]), sgd(start, batches(data, 1), rate=1e38), rtol=1e-5
    )


def test_a_client_that_weighs_nothing_keeps_its_state(data):
    """Though it has examples; one that weighs something does not."""

    def client_update(center: Any, data: Any, key: Any, *, own: Any) -> Any:
        return ClientUpdate(center - 1.0, own, {}), own + 2

    def zero(_: Any) -> Any:
        return jnp.float32(0)

    algorithm = compose(Method(zero, client_update, init_client=zero))
    clients = Cohort(data, [0, 1], batch_size=BATCH_SIZE).whole()
    *_, states = algorithm.next(algorithm.init(KEY), clients, Clients.of(np.float32([0, 5])))
    assert states.value.tolist() == [0, 7]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ditto(regression(), proximal_strength=-1.0, **IN_ORDER), "proximal_strength must be at least 0"),
        (lambda: apfl(regression(), mixing=1.5, **IN_ORDER), r"mixing must be in \[0, 1\]"),
        (
            lambda: per_fed_avg(regression(), inner_learning_rate=1.0, variant=cast(Any, "x"), **IN_ORDER),
            "variant must be one of",
        ),
        (
            lambda: p_fed_me(regression(), proximal_strength=0.0, inner_optimizer=SGD, **IN_ORDER),
            "proximal_strength must be positive",
        ),
    ],
)
def test_errors_say_what_to_do(build, message):
    with pytest.raises(ValueError, match=f"{message}.*; got .*[.] [A-Z]"):
        build()
