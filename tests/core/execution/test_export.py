"""Tests of computations as files: another process, without the code, gives the same results."""

import json
import pickle
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from fedjx import Batches, Clients, Sequence, federated_computation, parse_type

# What the other process knows: the artefact, pickled NumPy arguments, and fedjx; not the model below.
READER = """
import collections, pickle, sys
import jax, numpy as np
import fedjx

State = collections.namedtuple("State", "params key")
artefact, calls = pickle.load(sys.stdin.buffer)
computation = fedjx.load(artefact)

def argument(kind, value):
    if kind == "state":
        return State(value["params"], jax.random.wrap_key_data(value["key"]))
    mask, ids, length, data = value
    data = fedjx.Batches(*data) if isinstance(data, tuple) else data
    return fedjx.Clients(fedjx.Sequence(data, length), mask, ids)

results = []
for call in calls:
    outputs = computation(*[argument(kind, value) for kind, value in call])
    results.append([np.asarray(leaf) for leaf in jax.tree.leaves(outputs)])
sys.stdout.buffer.write(pickle.dumps((str(computation.type_signature), results)))
"""


class State(NamedTuple):
    params: Any
    key: Any


def client_update(params, key, data):
    """SGD with momentum from a client's own start: a missing mask or key shows."""

    def step(state, batch):
        w, velocity = state
        error = jnp.where(batch["mask"], batch["x"].astype(jnp.float32) @ w["w"] + w["b"] - batch["y"], 0)
        gradient = {"w": error @ batch["x"].astype(jnp.float32), "b": error.sum()}
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        return jax.tree.map(lambda p, v: p - 1e-5 * v, w, velocity), velocity

    start = jax.tree.map(lambda p: p + 0.01 * jax.random.normal(key), params)
    after, _ = fedjx.sequence_reduce(step, (start, jax.tree.map(jnp.zeros_like, params)), data)
    weight = fedjx.sequence_sum(fedjx.sequence_map(lambda batch: batch["mask"].sum(), data))
    return jax.tree.map(jnp.subtract, after, params), weight


@federated_computation
def fed_avg(state, data):
    params, key = state.params, state.key
    update = fedjx.federated_map(client_update, fedjx.federated_broadcast(params), fedjx.federated_keys(key), data)
    mean = fedjx.federated_mean(update[0], update[1])
    return fedjx.federated_map(lambda p, m: jax.tree.map(jnp.add, p, m), params, mean), (
        fedjx.federated_sum(update[1]),
        update[1],
    )


def state():
    return State({"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.float32(0.25)}, jax.random.key(7))


def pooled(num_clients, num_steps, seed):
    rng = np.random.default_rng(seed)
    pool = {"x": rng.integers(0, 255, (40, 3)).astype(np.uint8), "y": rng.normal(size=40).astype(np.float32)}
    index = rng.integers(-1, 40, (num_clients, num_steps, 4)).astype(np.int32)
    length = rng.integers(0, num_steps + 1, num_clients).astype(np.int32)
    mask = np.arange(num_clients) != 1
    ids = np.arange(num_clients, dtype=np.int32) + 5
    return Clients(Sequence(Batches(pool, index), length), mask, ids)


def materialised(clients):
    value = clients.value
    return Clients(Sequence(jax.tree.map(np.asarray, value.elements.gather()), value.length), clients.mask, clients.id)


def plain(clients):
    elements = clients.value.elements
    data = (elements.pool, elements.index) if isinstance(elements, Batches) else elements
    return "clients", (clients.mask, clients.id, clients.value.length, data)


@pytest.fixture(scope="module")
def artefact():
    return fedjx.export(fed_avg, state(), pooled(2, 3, seed=0))


def test_another_process_gives_the_same_results(artefact):
    start = state()
    cohorts = [pooled(3, 2, seed=1), pooled(5, 4, seed=2)]
    cohorts.append(materialised(cohorts[1]))
    sent = (
        "state",
        {"params": jax.tree.map(np.asarray, start.params), "key": np.asarray(jax.random.key_data(start.key))},
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READER],
        input=pickle.dumps((artefact, [[sent, plain(c)] for c in cohorts])),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    signature, results = pickle.loads(done.stdout)
    assert signature == str(fed_avg.type_signature(start, cohorts[0]))
    for cohort, got in zip(cohorts, results, strict=True):
        expected = jax.tree.leaves(fed_avg(start, cohort))
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
            assert a.dtype == b.dtype
    for a, b in zip(results[1], results[2], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(results[0][0], results[1][0])


def test_a_loaded_computation_knows_its_type(artefact):
    loaded = fedjx.load(artefact)
    assert str(loaded.type_signature) == (
        "(<state=<params=<b=float32,w=float32[3]>,key=key<fry>>@SERVER,"
        "data={<mask=bool[4],x=uint8[4,3],y=float32[4]>*}@CLIENTS>"
        " -> <<b=float32,w=float32[3]>@SERVER,<int32@SERVER,{int32}@CLIENTS>>)"
    )
    params, (num_examples, per_client) = loaded(state(), pooled(3, 2, seed=1))
    assert params.w.shape == (3,)
    assert params["b"].shape == ()
    assert int(num_examples) == sum(per_client.members().values())


def test_optax_states_are_exported():
    optimizer = optax.adam(0.1)

    @federated_computation
    def serve(state, delta):
        def server_update(state, gradient):
            updates, optimizer_state = optimizer.update(gradient, state.key)
            return State(optax.apply_updates(state.params, updates), optimizer_state)

        return fedjx.federated_map(
            server_update, fedjx.federated_zip(State(state.params, state.key)), fedjx.federated_mean(delta)
        )

    params = {"w": jnp.ones(3)}
    args = State(params, optimizer.init(params)), Clients.of({"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
    loaded = fedjx.load(fedjx.export(serve, *args))
    for got, expected in zip(jax.tree.leaves(loaded(*args)), jax.tree.leaves(serve(*args)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@federated_computation("{float32[2]}@CLIENTS")
def total(x):
    return fedjx.federated_sum(x)


def test_export_from_types_alone():
    loaded = fedjx.load(fedjx.export(total, total.type_signature.parameter))
    for num_clients in (1, 2, 7):
        values = np.arange(2.0 * num_clients, dtype=np.float32).reshape(num_clients, 2)
        np.testing.assert_allclose(loaded(Clients.of(values)), values.sum(axis=0))


def test_a_computation_without_arguments_is_exported():
    hello = federated_computation(lambda: fedjx.federated_value(np.arange(3, dtype=np.int8), fedjx.SERVER))
    assert fedjx.load(fedjx.export(hello))().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "corrupted",
    [
        lambda a: b"",
        lambda a: a[5:],
        lambda a: b"not json\n" + a,
        lambda a: b"[1, 2]\n" + a,
        lambda a: json.dumps({"format": "fedjx computation 1", "jax": "0.10.2"}).encode() + b"\n",
        lambda a: a.replace(b"computation 2", b"computation 9", 1),
    ],
    ids=["empty", "beheaded", "text", "list", "older", "future"],
)
def test_a_corrupted_header(artefact, corrupted):
    with pytest.raises(ValueError, match=r"an artefact begins with 'fedjx computation 2'; got b['\"].*Use export, of"):
        fedjx.load(corrupted(artefact))


def test_every_damage_is_refused_before_anything_is_parsed(artefact, monkeypatch):
    """Each bit of the header and of the type, a thousand of the program, and cuts at every kind of place."""

    def parsed(*_):
        raise AssertionError("a damaged artefact was parsed")

    monkeypatch.setattr(jax.export, "deserialize", parsed)
    monkeypatch.setattr(json, "loads", parsed)
    random = np.random.default_rng(0)
    program = artefact.index(b"\n", artefact.index(b"\n") + 1)
    bits = [
        *range(8 * 150),
        *random.integers(8 * 150, 8 * program, 300),
        *random.integers(8 * program, 8 * len(artefact), 300),
    ]
    damaged = []
    for bit in map(int, bits):
        flipped = bytearray(artefact)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    damaged += [
        artefact[:length] for length in (*range(0, 200, 7), program, *random.integers(len(artefact), size=50), -1)
    ]
    damaged += [artefact + b"\0", artefact + artefact, artefact.replace(b" bytes", b"  bytes", 1)]
    for copy in damaged:
        with pytest.raises(
            ValueError, match=r"an artefact (begins with|needs the length and SHA-256).*got .*\. (Use|It is)"
        ):
            fedjx.load(copy)


def test_what_is_no_bytes(tmp_path):
    with pytest.raises(TypeError, match=r"an artefact is bytes; got PosixPath\. Read the file"):
        fedjx.load(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            Clients.of(np.zeros((3, 4))),
            r"declares '0' as {float32\[2\]}@CLIENTS; got {float32\[4\]}@CLIENTS\. Pass a value",
        ),
        (Clients.of(np.zeros((3, 2), np.int32)), r"declares '0' as {float32\[2\]}@CLIENTS; got {int32\[2\]}@CLIENTS\."),
        (2.0, r"declares '0' as {float32\[2\]}@CLIENTS; got 2\.0\. Pass one member per client\."),
    ],
)
def test_an_argument_of_another_type(value, message):
    loaded = fedjx.load(fedjx.export(total, parse_type("{float32[2]}@CLIENTS")))
    with pytest.raises(TypeError, match=message):
        loaded(value)


def test_another_number_of_arguments():
    loaded = fedjx.load(fedjx.export(total, parse_type("{float32[2]}@CLIENTS")))
    with pytest.raises(TypeError, match=r"this computation takes 1 arguments; got 2\."):
        loaded(1.0, 2.0)


def test_a_cohort_is_exported_and_a_loaded_computation_takes_one():
    data = fedjx.data.FederatedData({"x": np.arange(6, dtype=np.float32)}, np.array([0, 1, 3, 6]))

    @fedjx.federated_computation
    def total(clients, weights):
        def of_one(batches, weight):
            return weight * fedjx.sequence_reduce(lambda t, b: t + jnp.sum(b["x"] * b["mask"]), jnp.float32(0), batches)

        return fedjx.federated_sum(fedjx.federated_map(of_one, clients, weights))

    clients = fedjx.data.Cohort(data, [2, 0], batch_size=2)
    weights = fedjx.Clients.of(np.array([1.0, 10.0], np.float32), ids=[2, 0])
    loaded = fedjx.load(fedjx.export(total, clients, weights))
    assert float(loaded(clients, weights)) == float(total(clients, weights)) == 12.0
    with pytest.raises(ValueError, match="the same clients in the same order"):
        loaded(clients, fedjx.Clients.of(weights.value, ids=[0, 2]))
