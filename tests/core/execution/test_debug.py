"""Debug mode: the same numbers, one client at a time, and who it was where they stop being finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from fedjx.algorithms import mime, scaffold
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model
from fedjx.training import Failures

SIZES = (3, 0, 5, 1)


def federated_data(**changed):
    random = np.random.default_rng(0)
    examples = {"x": random.normal(size=(sum(SIZES), 2)).astype(np.float32), "y": np.arange(9, dtype=np.float32)}
    for name, (row, value) in changed.items():
        examples[name][row] = value
    return FederatedData.from_clients(
        [{k: x[s : s + n] for k, x in examples.items()} for s, n in zip(np.cumsum((0, *SIZES)), SIZES, strict=False)]
    )


def loss(params, batch, key=None):
    del key
    return 0.5 * (batch["x"] @ params["w"] - batch["y"]) ** 2


MODEL = Model(lambda key: {"w": jnp.ones(2)}, loss, lambda params, batch: {"loss": loss(params, batch)})
AVERAGING = fedjx.fed_avg(MODEL, client_optimizer=optax.sgd(0.1, momentum=0.9), num_epochs=2)


def cohort(data, ids=(2, 0, 1, 3)):
    return Cohort(data, ids, batch_size=2)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_debug_mode_computes_what_a_stream_does():
    clients, key = cohort(federated_data()), jax.random.key(0)
    for algorithm in (AVERAGING, mime(MODEL, base_optimizer=optax.sgd(0.1), failures=Failures(0.3, 0.3))):
        state = algorithm.init(key)
        (ours, metrics), (other, expected) = (
            algorithm.next.streamed(debug=debug)(state, clients) for debug in (True, False)
        )
        assert_close((ours.params, metrics), (other.params, expected))
    control = scaffold(MODEL, num_clients=4, client_optimizer=optax.sgd(0.1))
    state = control.init(key)
    own = fedjx.Clients.of([control.init_client(state)] * 4, ids=[2, 0, 1, 3])
    ours, other = (control.next.streamed(debug=debug)(state, clients, own) for debug in (True, False))
    assert_close((ours[0].params, ours[2].members()), (other[0].params, other[2].members()))


@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_client_step_batch_and_leaf_are_named(placement):
    data = federated_data(x=(6, np.inf))  # the fourth example of client 2, which has the fourth to eighth
    clients = Cohort(data, [0, 2, 3], batch_size=2, placement=placement)
    algorithm = fedjx.fed_avg(MODEL, client_optimizer=optax.sgd(0.1), shuffle=False, num_epochs=1)
    with pytest.raises(
        fedjx.NonFiniteError, match=r"\.params\['w'\] .*client 2, in step 1 of 3, .*2 not finite"
    ) as caught:
        algorithm.next.streamed(debug=True)(algorithm.init(jax.random.key(0)), clients)
    error = caught.value
    assert (error.client, error.step, error.leaf) == (2, 1, ".params['w']")
    np.testing.assert_array_equal(error.batch["y"], [5, 6])
    _, metrics = algorithm.next(algorithm.init(jax.random.key(0)), clients)
    assert int(metrics["num_non_finite_clients"]) == 1  # without debug mode it is left out


def test_what_is_sent_and_what_is_added_up_are_looked_at():
    @fedjx.federated_computation
    def total(x):
        return fedjx.federated_sum(fedjx.federated_map(jnp.sqrt, x))

    roots = fedjx.Clients.of(jnp.float32([4, -1, 1]), ids=[7, 8, 9])
    with pytest.raises(fedjx.NonFiniteError, match=r"1 of 1 elements of it that are not, of client 8, in what it adds"):
        total.streamed(debug=True)(roots)

    @fedjx.federated_computation
    def sum_of(x):
        return fedjx.federated_sum(x)

    with pytest.raises(fedjx.NonFiniteError, match="client 2, in what it adds to a sum"):  # each is finite by itself
        sum_of.streamed(debug=True)(fedjx.Clients.of(jnp.full(3, 1.5e38)))
    assert sum_of.streamed(debug=True)(fedjx.Clients.of(jnp.full(2, 1.5e38))) == jnp.float32(3e38)


def test_an_exception_of_a_client_gets_its_name():
    def look(x):
        if x > 6:
            raise RuntimeError("a label too large")

    def looking(params, batch, key):
        jax.debug.callback(look, jnp.max(batch["y"]))
        return loss(params, batch, key)

    algorithm = fedjx.fed_avg(MODEL._replace(loss=looking), client_optimizer=optax.sgd(0.1), shuffle=False)
    with pytest.raises(RuntimeError, match="a label too large") as caught:
        algorithm.next.streamed(debug=True)(algorithm.init(jax.random.key(0)), cohort(federated_data()))
    notes = " ".join(caught.value.__notes__)
    assert "step 2 of 3, given 1 real examples of 2" in notes
    assert "client 2" in notes


def test_steps_are_taken_one_by_one_and_none_for_padding():
    seen = []

    def showing(params, batch, key):
        jax.debug.callback(seen.append, params["w"][0])
        return loss(params, batch, key)

    algorithm = fedjx.fed_avg(MODEL._replace(loss=showing), client_optimizer=optax.sgd(0.1))
    step, state = algorithm.next.streamed(debug=True), algorithm.init(jax.random.key(0))
    for clients in step.ahead([cohort(federated_data()), cohort(federated_data(), [0])]):
        state, _ = step(state, clients)
    assert len(seen) == 2 + 3 + 0 + 1 + 2
    assert int(state.round) == 2


def test_a_sink_gets_the_results_at_clients():
    @fedjx.federated_computation
    def doubled(x):
        return fedjx.federated_map(lambda v: 2 * v, x), fedjx.federated_max(x)

    got = []
    result = doubled.streamed(debug=True, sink=got.append)(fedjx.Clients.of(jnp.arange(3.0), ids=[5, 3, 4]))
    assert result == (None, 2.0)
    np.testing.assert_array_equal(got[0].value[0], [0, 2, 4])
    np.testing.assert_array_equal(got[0].id, [5, 3, 4])
