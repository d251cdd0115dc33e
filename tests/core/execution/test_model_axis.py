"""Tests of a mesh with a second axis, over which the user's own code spreads a client's parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fedjx import federated_computation, federated_map, federated_sum, sequence_reduce
from fedjx.algorithms import fed_avg
from fedjx.data import Cohort
from fedjx.models import Model
from tests.algorithms.problems import BATCH_SIZE, NUM_CLASSES, NUM_FEATURES, assert_trees_close, federated_data

WIDTH = 64
DATA = federated_data()
ROUNDS = [np.random.default_rng(r).permutation(10)[:6] for r in range(2)]


def wide_model(spread):
    """A network whose hidden layer is wide; `spread` says where its two kernels lie."""

    def init(key):
        key_in, key_out = jax.random.split(key)
        into = jax.random.normal(key_in, (NUM_FEATURES, WIDTH)) / np.sqrt(NUM_FEATURES)
        return {"in": into, "out": jax.random.normal(key_out, (WIDTH, NUM_CLASSES)) / np.sqrt(WIDTH)}

    def loss(params, batch, key):
        hidden = jax.nn.tanh(batch["x"] @ spread(params["in"], PartitionSpec(None, "model")))
        keep = jax.random.bernoulli(key, 0.8, hidden.shape)
        logits = jnp.where(keep, hidden, 0) @ spread(params["out"], PartitionSpec("model", None))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    return Model(init, loss, lambda params, batch: {"loss": loss(params, batch, jax.random.key(0))})


def algorithm(spread):
    return fed_avg(wide_model(spread), client_optimizer=optax.sgd(0.1, 0.9), server_optimizer=optax.sgd(1.0, 0.9))


def trained(step, cohorts):
    state = algorithm(lambda x, _: x).init(jax.random.key(0))
    for clients in cohorts:
        state, metrics = step(state, clients)
    return state.params, metrics["loss"]


def wholes():
    return [Cohort(DATA, ids, batch_size=BATCH_SIZE).whole(num_steps=3) for ids in ROUNDS]


def spread_over(mesh):
    return lambda x, spec: lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def mesh_of(*axes):
    return jax.make_mesh((2, 2), axes, axis_types=(AxisType.Auto, AxisType.Auto))


def test_a_wide_layer_is_spread_over_the_model_axis():
    mesh = mesh_of("clients", "model")
    plain, spread = algorithm(lambda x, _: x), algorithm(spread_over(mesh))
    expected = trained(plain.next.in_graph(), wholes())

    in_graph = jax.jit(spread.next.in_graph(mesh=mesh, lanes=2))
    assert_trees_close(trained(in_graph, wholes()), expected)
    chunks = [Cohort(DATA, ids, batch_size=BATCH_SIZE, lanes=2) for ids in ROUNDS]
    assert_trees_close(trained(spread.next.streamed(mesh=mesh), chunks), expected)

    state = spread.init(jax.random.key(0))
    assert has_half_layers(in_graph, state)
    assert not has_half_layers(jax.jit(plain.next.in_graph(mesh=mesh, lanes=2)), state)


def has_half_layers(step, state):
    """Tells whether the program of one device holds two lanes of half of the wide layer, and never all of it."""
    text = step.lower(state, wholes()[0]).compile().as_text()
    half, whole = (f"f32[2,{NUM_FEATURES},{width}]" in text for width in (WIDTH // 2, WIDTH))
    assert half != whole
    return half


def test_devices_that_compute_one_client_take_the_same_steps():
    """They talk in every step, and XLA waits for all devices then: if others stopped earlier, it would wait forever."""
    mesh = mesh_of("model", "clients")
    spread = spread_over(mesh)

    def client(data):
        def step(total, batch):
            return spread(jnp.roll(total, 1) + jnp.where(batch["mask"], batch["x"][:, 0], 0), PartitionSpec("model"))

        return sequence_reduce(step, jnp.zeros(BATCH_SIZE), data)

    @federated_computation
    def total(data):
        return federated_sum(federated_map(client, data))

    got = total.streamed(mesh=mesh)(Cohort(DATA, range(7), batch_size=BATCH_SIZE, lanes=1))
    expected = np.zeros(BATCH_SIZE)
    for k in range(7):
        own, x = np.zeros(BATCH_SIZE), DATA.client(k)["x"][:, 0]
        for start in range(0, len(x), BATCH_SIZE):
            batch = x[start : start + BATCH_SIZE]
            own = np.roll(own, 1) + np.append(batch, np.zeros(BATCH_SIZE - len(batch)))
        expected += own
    np.testing.assert_allclose(got, expected, rtol=1e-5)
