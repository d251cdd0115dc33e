"""One round: what goes wrong in it is said where it was done, and what goes right is the same for every method."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from fedjx import Aggregator
from fedjx import aggregation as agg
from fedjx.aggregation import compress, error_feedback, mean, top_k, uniform_quantizer
from fedjx.algorithms import fed_avg, fed_exp, ifca
from fedjx.core.language.values import Clients
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model
from fedjx.training import ClientUpdate, Failures, Method, averaging, compose
from tests.algorithms.problems import assert_trees_close, federated_data, plain_model
from tests.algorithms.test_every_combination import METHODS

SGD = optax.sgd(0.1)
THREE = Clients.of(np.float32([1, 2, 4]), ids=[1, 3, 4])


def numbers() -> Any:
    return jnp.float32(0)


def sends(params: Any, data: Any, key: Any) -> ClientUpdate:
    del key
    return ClientUpdate(params - data, jnp.float32(1), {})


def one_round(client_update: Any, states: Any = None, method: Any = (), **run: Any) -> Any:
    algorithm = compose(Method(lambda key: numbers(), client_update, **dict(method)), **run)
    state = algorithm.init(jax.random.key(0))
    return algorithm.next(state, THREE) if states is None else algorithm.next(state, THREE, states)


@pytest.mark.parametrize("method", METHODS)
def test_a_misspelt_argument_is_refused_when_the_algorithm_is_built(method):
    for name in ("num_epoch", "agregator"):
        with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{name}'"):
            METHODS[method](**{name: 1})


@pytest.mark.parametrize(
    ("argument", "given", "message"),
    [
        (
            "client_optimizer",
            0.1,
            r"client_optimizer must be a value of GradientTransformation.*; got 0\.1\. Pass optax",
        ),
        ("client_optimizer", optax.sgd, r"client_optimizer is an optimizer, or a function of the round; got .*sgd"),
        ("server_optimizer", lambda round: SGD, r"server_optimizer must be a value of GradientTransformation"),
        ("aggregator", mean, r"aggregator must be a value of Aggregator or StatefulAggregator; got <function mean"),
        (
            "aggregator",
            uniform_quantizer(8),
            r"aggregator must be a value of Aggregator or StatefulAggregator; got Compr",
        ),
        ("broadcaster", mean(), r"broadcaster must be a value of Broadcaster; got Aggregator"),
        ("failures", 0.1, r"failures must be a value of Failures; got 0\.1\. Pass fedjx\.training\.Failures"),
        ("client_weight", 1.0, r"client_weight is a function of a client's number of examples; got 1\.0"),
    ],
)
def test_an_argument_of_another_kind_is_refused_when_the_algorithm_is_built(argument, given, message):
    with pytest.raises(TypeError, match=message):
        fed_avg(plain_model(), **{"client_optimizer": SGD, argument: given})


def test_what_a_function_of_one_client_takes_and_returns_is_checked():
    def takes_a_state(params: Any, data: Any, key: Any, *, own: Any) -> Any:
        return ClientUpdate(params, own, {}), own

    def takes_what_nobody_gives(params: Any, data: Any, key: Any, *, state: Any) -> Any:
        raise AssertionError

    keeps = {"init_client": lambda state: jnp.int32(0)}
    with pytest.raises(TypeError, match=r"takes by name \['id', 'local', 'weight'\]; got \['own'\] in takes_a_state"):
        one_round(takes_a_state)
    with pytest.raises(TypeError, match=r"got \['state'\] in takes_what_nobody_gives"):
        one_round(takes_what_nobody_gives)
    with pytest.raises(TypeError, match=r"returns ClientUpdate\(delta, weight, metrics\); got \(\) of <lambda>"):
        one_round(lambda params, data, key: params)
    with pytest.raises(TypeError, match=r"returns \(ClientUpdate, own\), as its Method has init_client; got"):
        one_round(sends, Clients.of(np.int32([0, 0, 0]), ids=[1, 3, 4]), keeps)
    with pytest.raises(TypeError, match=r"this method does not train as the arguments say; got \['num_epochs'\]"):
        one_round(sends, num_epochs=2)

    def drifts(params: Any, data: Any, key: Any, *, own: Any) -> Any:
        return sends(params, data, key), own + 1.0

    with pytest.raises(
        TypeError, match=r"a client keeps the type of its state; got \{float32\}@CLIENTS from \{int32\}"
    ):
        one_round(drifts, Clients.of(np.int32([0, 0, 0]), ids=[1, 3, 4]), keeps)


def test_what_is_bound_stays_bound():
    def weighted(params: Any, data: Any, key: Any, *, id: Any) -> ClientUpdate:
        return ClientUpdate(params - data, jnp.float32(1), {"id": jnp.int32(id)})

    _, metrics = one_round(weighted)
    assert int(metrics["id"]) == 1 + 3 + 4
    _, metrics = one_round(functools.partial(weighted, id=100))
    assert int(metrics["id"]) == 300


def test_a_number_of_python_is_a_weight():
    state, _ = one_round(lambda params, data, key: ClientUpdate(params - data, 1.0, {}))
    assert float(state.params) == pytest.approx(7 / 3)


def test_a_pass_before_may_send_what_is_no_delta():
    """Through an aggregator with a memory, whose states are then of two types; and it need not be checked."""

    def update(params: Any, data: Any, key: Any, *, first: Any) -> ClientUpdate:
        return ClientUpdate({"w": params["w"] - data * (first.update.delta > first.result)}, jnp.float32(1), {})

    method = Method(
        lambda key: {"w": jnp.zeros(2)},
        update,
        first=lambda params, data, key: ClientUpdate(data, jnp.float32(1), {}),
        first_delta=lambda params: jnp.float32(0),
    )
    algorithm = compose(method, aggregator=error_feedback(top_k(fraction=0.5), where=lambda leaf: leaf.size > 1))
    state = algorithm.init(jax.random.key(0))
    states = Clients.of([algorithm.init_client(state)] * 3, ids=[1, 3, 4])
    state, metrics, states = algorithm.next(state, THREE, states)
    np.testing.assert_allclose(np.max(np.abs(state.params["w"])), 4 / 3, rtol=1e-6)  # the one above the mean of 7/3
    assert set(metrics["first_aggregation"]) == {"num_non_finite"}


@pytest.mark.parametrize("run", [{"failures": Failures(partial=1.0)}, {"drop_remainder": True}], ids=str)
def test_one_cluster_is_federated_averaging(run):
    data, model = federated_data(), plain_model()
    clients = Cohort(data, range(6), batch_size=4).whole()
    whole = fed_avg(model, client_optimizer=SGD, num_epochs=2, **run)
    clustered = ifca(model, 1, client_optimizer=SGD, num_epochs=2, **run)
    start = whole.init(jax.random.key(0))
    first = clustered.init(jax.random.key(0))
    first = first._replace(params=jax.tree.map(lambda x: x[None], start.params), key=start.key)
    (after, metrics), (others, measured) = whole.next(start, clients), clustered.next(first, clients)
    assert_trees_close(jax.tree.map(lambda x: x[0], others.params), after.params)
    for name in ("num_examples", "num_clients", "loss"):
        np.testing.assert_allclose(measured[name], metrics[name], rtol=1e-6)
    assert int(metrics["num_examples"]) < int(data.sizes[:6].sum())


def test_a_factor_of_the_server_keeps_narrow_parameters_narrow():
    def loss(params: Any, batch: Any, key: Any = None) -> Any:
        del key
        return (batch["x"] @ params).astype(jnp.float32) ** 2

    model = Model(lambda key: jnp.ones(5, jnp.bfloat16), loss, lambda params, batch: {"loss": loss(params, batch)})
    algorithm = fed_exp(model, client_optimizer=SGD, server_optimizer=optax.sgd(1.0, momentum=0.9))
    state, _ = algorithm.next(
        algorithm.init(jax.random.key(0)), Cohort(federated_data(), range(3), batch_size=4).whole()
    )
    assert state.params.dtype == jnp.bfloat16


def test_a_server_optimizer_may_ask_for_the_loss():
    data = FederatedData.from_clients([{"x": np.float32([[1, 2, 3, 4, 5]]), "y": np.int32([1])}])
    plateau = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(patience=1))
    algorithm = fed_avg(plain_model(), client_optimizer=SGD, server_optimizer=plateau)
    state = algorithm.init(jax.random.key(0))
    state, metrics = algorithm.next(state, fedjx.data.Cohort(data, [0], batch_size=1).whole())
    assert float(state.optimizer[1].best_value) == pytest.approx(float(metrics["loss"]))


def test_compression_is_told_apart_from_its_compressor():
    assert fed_avg(plain_model(), client_optimizer=SGD, aggregator=compress(uniform_quantizer(8)))


MODEL = plain_model()
TRAINED = fedjx.fed_avg(MODEL, client_optimizer=optax.sgd(0.1))
TWO = Aggregator(lambda member: (), lambda key, state, value, weight: (state, fedjx.federated_mean(value, weight)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compose(MODEL), "compose takes a Method; got Model"),
        (lambda: fedjx.fed_avg(plain_model, client_optimizer=optax.sgd(0.1)), "a model is a Model; got <function"),
        (lambda: agg.clip_by_norm(max_norm=1.0, inner=agg.mean), "inner must be an Aggregator.* got function"),
        (
            lambda: agg.clip_by_norm(max_norm=1.0, inner=agg.error_feedback(agg.top_k(fraction=0.5))),
            "inner must be an Aggregator.* got StatefulAggregator.*outermost",
        ),
        (lambda: agg.compress(agg.quantize(8)), "compress takes a Compressor.* got Aggregator"),
        (lambda: agg.error_feedback(agg.quantize(8)), "error_feedback takes a Compressor.* got Aggregator"),
        (lambda: agg.ef21(agg.quantize(8), num_clients=2), "ef21 takes a Compressor.* got Aggregator"),
        (lambda: TRAINED.init(0), "init takes a random key; got int32. Pass jax.random.key"),
        (lambda: a_round_of(compose(averaging(MODEL))), "got no client_optimizer. Pass one"),
        (lambda: a_round_of(TRAINED, lambda state: state.params), "takes the server's state, then the cohort; got <"),
        (lambda: a_round_of(TRAINED, lambda state: (state, {})), "takes the server's state, then the cohort; got <<"),
        (lambda: one_round(sends_a_pair), r"instead of float32. Say what it is like"),
        (
            lambda: a_round_of(fedjx.fed_avg(MODEL, client_optimizer=optax.sgd(0.1), aggregator=TWO)),
            r"next returns \(state, result, measurements\); got 2 values",
        ),
    ],
)
def test_what_is_no_part_of_a_round_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def sends_a_pair(params, data, key):
    del data, key
    return ClientUpdate((params, params), jnp.float32(1), {})


def a_round_of(algorithm, first=lambda state: state):
    clients = Cohort(federated_data(), range(3), batch_size=4)
    return algorithm.next(first(algorithm.init(jax.random.key(0))), clients)


def test_a_key_of_the_old_kind_is_a_key():
    params = [TRAINED.init(key).params for key in (jax.random.PRNGKey(0), jax.random.key(0))]
    jax.tree.map(np.testing.assert_array_equal, *params)
