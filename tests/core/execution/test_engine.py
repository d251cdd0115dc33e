"""Tests of the executors: one meaning for any chunks, padding, order, devices, in one program or streamed."""

import contextlib
import functools
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fedjx import (
    Batches,
    Clients,
    Sequence,
    federated_aggregate,
    federated_broadcast,
    federated_collect,
    federated_computation,
    federated_keys,
    federated_map,
    federated_max,
    federated_mean,
    federated_min,
    federated_sum,
    sequence_reduce,
)
from fedjx.core.execution.engine import PassStream, map_reduce
from fedjx.core.language.passes import Pass
from fedjx.core.language.reductions import MIN, SUM, mean_of
from fedjx.core.language.types import type_of
from fedjx.core.language.values import gathered

NUM_CLIENTS, NUM_STEPS = 10, 4


def make_mesh():
    return jax.make_mesh((4,), ("clients",))


def one_device():
    return jax.make_mesh((1,), ("clients",), devices=jax.devices()[:1])


def plain_mesh():
    return Mesh(np.array(jax.devices()), ("clients",))


def model_mesh():
    return jax.make_mesh((2, 2), ("clients", "model"))


def explicit_mesh():
    return jax.make_mesh((2, 2), ("model", "clients"), axis_types=(AxisType.Auto, AxisType.Explicit))


# --- one computation with everything in it, and NumPy's word for it -------------------------------


class Data(NamedTuple):
    x: Any
    weight: Any
    n: Any
    u: Any
    steps: Sequence


class Results(NamedTuple):
    mean: Any
    variance: Any
    total: Any
    unsigned: Any
    smallest: Any
    largest: Any
    product: Any
    folded: Any
    collected: Any


@federated_computation
def statistics(server, data):
    mean = federated_mean(data.x, data.weight)
    centred = data.x - federated_broadcast(mean)
    variance = federated_mean(centred * centred, data.weight)
    folded = federated_map(
        lambda start, steps: sequence_reduce(lambda t, e: 0.5 * t + e / jnp.linalg.norm(e), start, steps),
        federated_broadcast(server["start"]),
        data.steps,
    )
    product = federated_aggregate(
        data.weight, jnp.float32(1), lambda a, w: a * (1 + w), lambda a, b: a * b, lambda a: jnp.log(a)
    )
    offset = data.x - federated_broadcast(mean * server["scale"])
    results = Results(
        mean,
        variance,
        federated_sum(data.n),
        federated_sum(data.u),
        federated_min((data.x, data.n)),
        federated_max((data.x, data.n)),
        product,
        federated_sum(folded),
        federated_collect(data.n),
    )
    return results, (offset, folded)


def clients():
    rng = np.random.default_rng(0)
    steps = Sequence(
        rng.normal(size=(NUM_CLIENTS, NUM_STEPS, 2)).astype(np.float32),
        rng.integers(0, NUM_STEPS + 1, NUM_CLIENTS).astype(np.int32),
    )
    data = Data(
        x=rng.normal(size=(NUM_CLIENTS, 3)).astype(np.float32),
        weight=rng.uniform(0.1, 2, NUM_CLIENTS).astype(np.float32),
        n=rng.integers(-(2**28), 2**28, NUM_CLIENTS).astype(np.int32),
        u=rng.integers(0, 2**28, NUM_CLIENTS).astype(np.uint32) * 2 + 1,
        steps=steps,
    )
    return Clients(data, np.ones(NUM_CLIENTS, bool), 100 + np.arange(NUM_CLIENTS, dtype=np.int32))


def with_garbage(cohort):
    """The same cohort with padding clients between the real ones and longer sequences, all garbage."""
    value = cohort.value
    nans = np.full((NUM_CLIENTS, 3, 2), np.nan, np.float32)
    value = value._replace(steps=Sequence(np.concatenate([value.steps.elements, nans], axis=1), value.steps.length))
    where = [0, 0, 1, 2, 5, 5, 10]

    def insert(leaf):
        garbage = np.nan if np.issubdtype(leaf.dtype, np.floating) else 77
        return np.insert(leaf, where, garbage, axis=0)

    mask = np.insert(cohort.mask, where, False)
    return Clients(jax.tree.map(insert, value), mask, np.insert(cohort.id, where, -1))


def permuted(cohort, order):
    return jax.tree.map(lambda leaf: leaf[order], cohort)


SERVER_VALUE = {"start": np.array([1.0, -1.0], np.float32), "scale": np.float32(3)}


def reference():
    """Everything in float64 NumPy, client by client."""
    data = clients().value
    x, w = data.x.astype(np.float64), data.weight.astype(np.float64)
    mean = np.average(x, axis=0, weights=w)
    folded = []
    for elements, length in zip(data.steps.elements, data.steps.length, strict=True):
        state = SERVER_VALUE["start"].astype(np.float64)
        for element in elements[:length].astype(np.float64):
            state = 0.5 * state + element / np.linalg.norm(element)
        folded.append(state)
    results = Results(
        mean,
        np.average((x - mean) ** 2, axis=0, weights=w),
        data.n.astype(np.int64).sum(),
        data.u.astype(np.int64).sum() % 2**32,
        (x.min(axis=0), data.n.min()),
        (x.max(axis=0), data.n.max()),
        np.log1p(w).sum(),
        np.sum(folded, axis=0),
        sorted(data.n),
    )
    ids = clients().id
    return results, (dict(zip(ids, x - 3 * mean, strict=True)), dict(zip(ids, folded, strict=True)))


EXPECTED, EXPECTED_CLIENTS = reference()


def check(outcome):
    results, of_clients = outcome
    for name in ("mean", "variance", "product", "folded"):
        got, expected = getattr(results, name), getattr(EXPECTED, name)
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6, err_msg=name)
    for name in ("smallest", "largest"):
        floats, integer = getattr(results, name)
        np.testing.assert_array_equal(floats, getattr(EXPECTED, name)[0].astype(np.float32))
        assert int(integer) == getattr(EXPECTED, name)[1]
    assert int(results.total) == EXPECTED.total
    assert results.total.dtype == jnp.int32
    assert int(results.unsigned) == EXPECTED.unsigned
    assert results.unsigned.dtype == jnp.uint32
    collected = results.collected
    assert sorted(collected.elements[: int(collected.length)].tolist()) == EXPECTED.collected
    members = of_clients.members()
    assert members.keys() == EXPECTED_CLIENTS[0].keys()
    for client_id, (offset, folded) in members.items():
        np.testing.assert_allclose(offset, EXPECTED_CLIENTS[0][client_id], rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(folded, EXPECTED_CLIENTS[1][client_id], rtol=2e-6, atol=1e-6)


IN_GRAPH = {
    "whole": {},
    "chunks-1": {"lanes": 1},
    "chunks-3": {"lanes": 3},
    "chunks-8": {"lanes": 8},
    "mesh": {"mesh": make_mesh},
    "mesh-chunks-2": {"mesh": plain_mesh, "lanes": 2},
    "model-mesh": {"mesh": model_mesh, "lanes": 3},
    "explicit-mesh": {"mesh": explicit_mesh},
}
STREAMED = {
    "all-devices": {},
    "chunks-1": {"mesh": one_device, "lanes": 1},
    "chunks-3": {"mesh": one_device, "lanes": 3},
    "mesh-chunks-8": {"mesh": make_mesh, "lanes": 2},
    "explicit-mesh-chunks-4": {"mesh": explicit_mesh, "lanes": 1},
}


@functools.cache
def executor(kind, name):
    """The compiled computation; kept, for compilation is what these tests spend their time on."""
    given = {"in_graph": IN_GRAPH, "streamed": STREAMED}[kind][name]
    options = {key: value() if key == "mesh" else value for key, value in given.items()}
    return statistics.streamed(**options) if kind == "streamed" else jax.jit(statistics.in_graph(**options))


EXECUTORS = [("in_graph", name) for name in IN_GRAPH] + [("streamed", name) for name in STREAMED]


@pytest.mark.parametrize(("kind", "name"), EXECUTORS)
def test_every_executor_computes_the_same(kind, name):
    run, cohort = executor(kind, name), with_garbage(clients())
    results, of_clients = run(SERVER_VALUE, cohort)
    check((results, of_clients))
    collected = results.collected
    assert collected.elements[: int(collected.length)].tolist() == clients().value.n.tolist(), "the cohort's order"
    check(run(SERVER_VALUE, permuted(cohort, slice(None, None, -1))))


def test_streamed_from_chunks_of_different_size_and_padded_length():
    short, longer = clients(), with_garbage(clients())
    chunks = [permuted(short, slice(0, 1)), permuted(short, slice(1, 5)), permuted(longer, np.arange(17) >= 9)]
    assert sum(int(chunk.mask.sum()) for chunk in chunks) == NUM_CLIENTS
    check(statistics.streamed()(SERVER_VALUE, chunks))


def test_streamed_from_chunks_on_a_mesh():
    chunks = [permuted(clients(), slice(start, start + 4)) for start in (0, 4, 8)]
    check(statistics.streamed(mesh=plain_mesh())(SERVER_VALUE, chunks))


def test_the_check_can_fail():
    run, wrong = executor("in_graph", "whole"), with_garbage(clients())
    wrong.value.n[wrong.id == 103] += 1
    with pytest.raises(AssertionError):
        check(run(SERVER_VALUE, wrong))
    wrong = with_garbage(clients())
    wrong.mask[wrong.id == 102] = False
    with pytest.raises(AssertionError):
        check(run(SERVER_VALUE, wrong))


@pytest.mark.parametrize("num_clients", [8, 11])
def test_integer_sums_across_devices_are_exact(num_clients):
    """Also above 2**24, where float32 no longer counts, negative, and modulo 2**32."""
    rng = np.random.default_rng(num_clients)
    values = rng.integers(-(2**31), 2**31, (num_clients, 5)).astype(np.int32)
    values[:, 0] = 2**24 + 1
    total = federated_computation(lambda x: federated_sum(x))
    cohort = Clients.of((values, values.astype(np.uint32)))
    for run in (jax.jit(total.in_graph(mesh=make_mesh())), total.streamed(mesh=make_mesh(), lanes=1)):
        signed, unsigned = run(cohort)
        np.testing.assert_array_equal(signed, values.sum(axis=0, dtype=np.int32))
        np.testing.assert_array_equal(unsigned, values.sum(axis=0, dtype=np.int32).astype(np.uint32))


# --- what is compiled -----------------------------------------------------------------------------


COLLECTIVES = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(-start)?\("


def collectives(compiled):
    return Counter(name for name, _ in re.findall(COLLECTIVES, compiled.as_text()))


@federated_computation
def sums(scale, x, n):
    mean = federated_mean(federated_map(jnp.multiply, x, federated_broadcast(scale)))
    return mean, federated_sum(n), federated_sum(federated_map(lambda v: jnp.uint32(v[0] > 0), x)), federated_sum(x)


@pytest.mark.parametrize("lanes", [None, 2])
@pytest.mark.parametrize("num_clients", [4, 16, 3, 10])
def test_a_pass_has_one_collective(num_clients, lanes):
    run = jax.jit(sums.in_graph(mesh=make_mesh(), lanes=lanes))
    args = jnp.float32(2), Clients.of(np.ones((num_clients, 3), np.float32)), Clients.of(np.ones(num_clients, np.int32))
    assert collectives(run.lower(*args).compile()) == {"all-reduce": 1}


def test_the_count_of_collectives_can_fail():
    both = federated_computation(lambda x: (federated_sum(x), federated_max(x)))
    run = jax.jit(both.in_graph(mesh=make_mesh()))
    assert collectives(run.lower(Clients.of(np.ones(4, np.float32))).compile()) == {"all-reduce": 2}


def streamed_pass():
    mean = mean_of((np.dtype("float32"),))
    run = Pass(lambda server, member, _: ((member * server, jnp.int32(1), member), member), (mean, SUM, MIN))
    stream = PassStream(run, plain_mesh())
    members = Clients.of(np.ones((8, 3), np.float32))
    return stream, stream._start(np.float32(2), members), members


def test_a_streamed_step_has_no_collective():
    stream, accumulators, members = streamed_pass()
    assert not collectives(stream._step.lower(accumulators, np.float32(2), members, 1).compile())


def test_the_end_of_a_streamed_pass_has_one_collective_for_all_sums():
    stream, accumulators, _ = streamed_pass()
    finish = collectives(jax.jit(stream.finish).lower(accumulators).compile())
    assert finish == {"all-reduce": 2}  # the sums, and the minimum


# --- how often things are compiled ----------------------------------------------------------------

COMPILATIONS = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILATIONS.append(event) if event.endswith("backend_compile_duration") else None
)


@pytest.mark.parametrize("how", ["call", "jit", "mesh", "streamed", "streamed-mesh", "chunks"])
def test_rounds_after_the_first_are_neither_traced_nor_compiled(how):
    traced = []

    def client_update(params, x):
        traced.append(1)
        return x - params

    @federated_computation
    def round_(state, data):
        update = federated_map(client_update, federated_broadcast(state["params"]), data)
        params = state["params"] + 0.5 * federated_mean(update)
        return {"params": params, "round": state["round"] + 1}

    run = {
        "call": round_,
        "jit": jax.jit(round_),
        "mesh": jax.jit(round_.in_graph(mesh=make_mesh())),
        "streamed": round_.streamed(mesh=one_device(), lanes=2),
        "streamed-mesh": round_.streamed(lanes=1, mesh=make_mesh()),
        "chunks": lambda state, data: stream(state, [permuted(data, slice(0, 3)), permuted(data, slice(3, 6))]),
    }[how]
    stream = round_.streamed()
    state = {"params": jnp.zeros(2), "round": jnp.int32(0)}
    rng = np.random.default_rng(0)
    expected, counts = np.zeros(2), []
    for num_round in range(4):
        values = rng.normal(size=(6, 2)).astype(np.float32)
        cohort = Clients(values, np.arange(6) != num_round, np.arange(6, dtype=np.int32) + 10 * num_round)
        state = jax.block_until_ready(run(state, cohort))
        expected += 0.5 * (values[cohort.mask].mean(axis=0) - expected)
        counts.append((len(traced), len(COMPILATIONS)))
    np.testing.assert_allclose(state["params"], expected, rtol=1e-5)
    assert int(state["round"]) == 4
    assert counts[0][0] == 2  # for the types of the computation, and for the program of the pass
    first = 1 if how == "mesh" else 0  # under the caller's jit, the first state is not on the mesh yet
    assert len(set(counts[first:])) == 1


# --- streams --------------------------------------------------------------------------------------


class Recorded:
    """A stream that records how many chunks were drawn and not handed over yet."""

    def __init__(self, num_chunks):
        self.num_chunks, self.drawn, self.received, self.ahead = num_chunks, 0, 0, []

    def __iter__(self):
        self.drawn = self.received = 0
        for i in range(self.num_chunks):
            self.drawn += 1
            self.ahead.append(self.drawn - self.received)
            yield Clients.of(np.full((2, 1000), i, np.float32), ids=[2 * i, 2 * i + 1])


@federated_computation
def doubled(x):
    return federated_sum(x), federated_map(lambda v: 2 * v[0], x)


@pytest.mark.parametrize("mesh", [None, make_mesh], ids=["one-device", "four-devices"])
def test_a_sink_receives_every_chunk_and_few_are_in_flight(mesh):
    stream, received = Recorded(20), {}

    def sink(chunk):
        stream.received += 1
        received.update({client_id: value for client_id, (value,) in chunk.members().items()})

    total, of_clients = doubled.streamed(mesh=mesh and mesh(), sink=sink)(stream)
    assert float(total[0]) == 2 * sum(range(20))
    assert of_clients is None
    assert received == {c: 2.0 * (c // 2) for c in range(40)}
    assert max(stream.ahead[:-1]) == 3  # the one that is drawn, and two in flight


def test_results_of_clients_are_gathered_without_a_sink():
    total, of_clients = doubled(Recorded(5))
    assert float(total[0]) == 20
    assert isinstance(of_clients.value, np.ndarray)
    assert of_clients.members() == {c: 2.0 * (c // 2) for c in range(10)}


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_client_may_return_numbers_of_python(lanes):
    @federated_computation
    def numbers(x):
        members = federated_map(lambda v: (v, 1, 2.0, True, np.int8(3)), x)
        return members, federated_sum(members)

    clients = Clients.of(np.ones(3, np.float32))
    for run in (numbers.in_graph(lanes=lanes), numbers.streamed(lanes=lanes)):
        members, total = run(clients)
        assert [float(x) for x in total] == [3, 3, 6, 3, 9]
        assert [x.dtype.name for x in members.value] == ["float32", "int32", "float32", "bool", "int8"]


def test_keys_of_clients_are_gathered():
    drawn = federated_computation(lambda key, x: (federated_keys(key), federated_sum(x)))
    args = jax.random.key(0), Clients.of(np.ones(3, np.float32), ids=[5, 6, 7])
    keys, _ = drawn.streamed(mesh=one_device(), lanes=2)(*args)
    expected = jax.random.key_data(drawn(*args)[0].value)
    np.testing.assert_array_equal(jax.random.key_data(keys.value), expected)


@pytest.mark.parametrize("executor", ["in_graph", "streamed"])
def test_a_data_set_that_is_returned_is_the_data_set(executor):
    index = np.array([[[0, 1], [2, -1]], [[3, 4], [-1, -1]]], np.int32)
    data = Clients.of(Sequence(Batches({"x": np.arange(5.0, dtype=np.float32)}, index), np.array([2, 1], np.int32)))
    identity = federated_computation(lambda d: d)
    result = getattr(identity, executor)()(data)
    assert type_of(result) == type_of(data)
    got = gathered(result.value).elements
    np.testing.assert_array_equal(got["mask"], index >= 0)
    np.testing.assert_array_equal(got["x"], [[[0, 1], [2, 0]], [[3, 4], [3, 3]]])  # padding is the client's own


def test_no_result_depends_on_earlier_calls():
    @federated_computation
    def scaled(x, factor):
        return federated_mean(federated_map(jnp.multiply, x, federated_broadcast(factor)))

    cohort, run = Clients.of(jnp.ones(3, jnp.bfloat16)), scaled.streamed()
    run(cohort, 2.0)
    assert run(cohort, np.float32(2)).dtype == scaled.streamed()(cohort, np.float32(2)).dtype


def test_a_stream_is_read_once_per_pass():
    reads = []

    class Stream:
        def __iter__(self):
            reads.append(1)
            return iter([Clients.of(np.ones(2, np.float32))])

    def two_passes(x):
        return federated_sum(x - federated_broadcast(federated_mean(x)))

    federated_computation(lambda x: federated_sum(x))(Stream())
    once = len(reads)
    federated_computation(two_passes)(Stream())
    assert len(reads) == once + once + 1


def test_the_arguments_survive():
    """The accumulators are donated; the caller's arrays are not."""
    zero = jnp.zeros(3)
    state = jax.tree.map(jnp.asarray, SERVER_VALUE)
    cohort = jax.tree.map(jnp.asarray, clients())
    before = jax.device_get((state, cohort))

    @federated_computation
    def folded(state, data):
        return state, federated_aggregate(data.x, zero, jnp.add, jnp.add)

    for run in (folded, folded.streamed(), folded.streamed(lanes=1, mesh=make_mesh())):
        result = run(state, cohort)
        jax.tree.map(lambda x: x.delete(), result[0])
        jax.tree.map(np.testing.assert_array_equal, jax.device_get((state, cohort)), before)
    assert zero.tolist() == [0, 0, 0]


def test_what_goes_through_a_stage_of_the_server_is_not_copied(monkeypatch):
    """A round would otherwise copy the parameters twice, before its pass and after it."""
    seen, call = [], PassStream.__call__

    def passed(self, server, *arguments, **options):
        seen.append(server)
        return call(self, server, *arguments, **options)

    monkeypatch.setattr(PassStream, "__call__", passed)
    mesh = make_mesh()
    weights = jax.device_put(jnp.arange(3.0), NamedSharding(mesh, PartitionSpec()))

    @federated_computation
    def moved(weights, data):
        sent = federated_broadcast(weights)
        return federated_map(jnp.add, weights, federated_sum(federated_map(lambda w, d: w * d.x.sum(), sent, data)))

    np.testing.assert_allclose(moved.streamed(mesh=mesh)(weights, clients()), moved(weights, clients()), rtol=1e-6)
    places = [{x.addressable_data(0).unsafe_buffer_pointer() for x in jax.tree.leaves(server)} for server in seen]
    assert [weights.addressable_data(0).unsafe_buffer_pointer() in found for found in places] == [True]
    program = moved.program(weights, clients())
    assert len(program.needed_after(program.num_passes)) == 1  # the result alone


def test_constants_made_under_jit_do_not_leak_into_the_stream():
    @federated_computation
    def shifted(x):
        shift = jnp.arange(3, dtype=jnp.float32)  # made while tracing
        return federated_sum(federated_map(lambda v: v + shift, x))

    run = shifted.streamed(mesh=one_device(), lanes=2)
    cohort = Clients.of(np.zeros((4, 3), np.float32))

    with contextlib.suppress(TypeError):  # it may be refused
        jax.jit(lambda y: y + run([cohort]))(1.0)
    assert run([cohort]).tolist() == [0, 4, 8]
    assert jax.jit(lambda y: y + shifted(cohort))(1.0).tolist() == [1, 5, 9]
    assert shifted(cohort).tolist() == [0, 4, 8]


def test_a_buffer_that_changes_after_the_call_changes_no_result():
    """On a CPU, arrays may share the memory of NumPy arrays that they are made of."""

    @federated_computation
    def passed_through(state, data):
        return state, federated_sum(data), federated_map(lambda v: v, data)

    for run in (
        passed_through,
        passed_through.streamed(mesh=one_device(), lanes=16),
        passed_through.streamed(mesh=make_mesh()),
    ):
        state = np.full(4096, 1.0, np.float32)
        values = np.full((64, 512), 2.0, np.float32)
        server, total, members = run(state, Clients.of(values))
        jax.block_until_ready((server, total, members))
        state[:] = values[:] = np.nan
        assert (np.asarray(total) == 128).all()
        assert (np.asarray(members.value) == 2).all()
        assert (np.asarray(server) == 1).all()


# --- transformations ------------------------------------------------------------------------------


@federated_computation
def loss(params, data):
    def client_loss(params, x, weight):
        return weight * jnp.sum((x @ params["w"] + params["b"]) ** 2)

    return federated_mean(federated_map(client_loss, federated_broadcast(params), data["x"], data["weight"]))


def loss_arguments(num_clients=10):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(num_clients, 5, 3)).astype(np.float32)
    params = {"w": rng.normal(size=3).astype(np.float32), "b": np.float32(0.5)}
    return params, Clients.of({"x": x, "weight": rng.uniform(size=num_clients).astype(np.float32)})


@pytest.mark.parametrize("num_clients", [8, 10])
@pytest.mark.parametrize("lanes", [None, 2])
def test_gradients_do_not_depend_on_the_devices(num_clients, lanes):
    """Replication checks made JAX sum such gradients over the devices once more."""
    params, cohort = loss_arguments(num_clients)
    x, weight = cohort.value["x"].astype(np.float64), cohort.value["weight"].astype(np.float64)
    residual = x @ params["w"].astype(np.float64) + 0.5
    expected = {
        "w": 2 * np.einsum("c,cb,cbi->i", weight, residual, x) / num_clients,
        "b": 2 * np.einsum("c,cb->", weight, residual) / num_clients,
    }
    for mesh in (None, make_mesh(), *([model_mesh()] if lanes else [])):
        gradient = jax.jit(jax.grad(loss.in_graph(mesh=mesh, lanes=lanes)))(params, cohort)
        np.testing.assert_allclose(gradient["w"], expected["w"], rtol=1e-5)
        np.testing.assert_allclose(gradient["b"], expected["b"], rtol=1e-5)


def test_gradients_of_a_local_step_stay_with_the_client():
    """A gradient inside a mapped function must not be summed over the devices either."""

    @federated_computation
    def steps(w, x):
        return federated_mean(federated_map(jax.grad(lambda w, x: jnp.sum((w * x) ** 2)), federated_broadcast(w), x))

    x = np.arange(1, 9, dtype=np.float32)
    for mesh in (None, make_mesh()):
        result = jax.jit(steps.in_graph(mesh=mesh))(jnp.float32(3), Clients.of(x))
        np.testing.assert_allclose(result, (6 * x**2).mean(), rtol=1e-6)
    streamed = steps.streamed(mesh=make_mesh())(3.0, Clients.of(x))
    np.testing.assert_allclose(streamed, (6 * x**2).mean(), rtol=1e-6)


def test_gradients_with_respect_to_what_a_mapped_function_holds():
    x = np.arange(1, 9, dtype=np.float32)

    def held(w, mesh):
        program = federated_computation(lambda x: federated_mean(federated_map(lambda v: (w * v) ** 2, x)))
        return program.in_graph(mesh=mesh)(Clients.of(x))

    for mesh in (None, make_mesh()):
        gradient = jax.jit(jax.grad(functools.partial(held, mesh=mesh)))(3.0)
        np.testing.assert_allclose(gradient, (6 * x**2).mean(), rtol=1e-6)


@pytest.mark.parametrize("mesh", [None, make_mesh], ids=["one-device", "four-devices"])
def test_vmap_over_a_server_value(mesh):
    params, cohort = loss_arguments()
    run = loss.in_graph(mesh=mesh and mesh())
    biases = jnp.array([0.0, 0.5, -2.0])
    values = jax.jit(jax.vmap(lambda b: run({**params, "b": b}, cohort)))(biases)
    for bias, value in zip(biases, values, strict=True):
        np.testing.assert_allclose(value, loss({**params, "b": bias}, cohort), rtol=1e-6)
    assert float(values[0]) != float(values[1])


def test_scan_over_rounds():
    @federated_computation
    def descended(w, x):
        return w - 0.1 * federated_mean(w_minus_x(federated_broadcast(w), x))

    def w_minus_x(w, x):
        return w - x

    x = Clients.of(np.array([1.0, 3.0], np.float32))
    final, _ = jax.lax.scan(lambda w, _: (descended(w, x), None), jnp.float32(0), length=5)
    np.testing.assert_allclose(final, 2 * (1 - 0.9**5), rtol=1e-6)


def test_the_lower_layer_alone():
    """A pass needs no graph: a function of one client and reductions."""
    run = Pass(lambda server, member, client_id: ((server * member, client_id), member + 1), (SUM, SUM))
    cohort = Clients.of(np.arange(6, dtype=np.float32), ids=[5, 4, 3, 2, 1, 0], mask=[True] * 5 + [False])
    (total, ids), outputs = map_reduce(run, jnp.float32(2), cohort, lanes=4)
    assert (float(total), int(ids)) == (20.0, 15)
    assert outputs[:5].tolist() == [1, 2, 3, 4, 5]


# --- aggregation in two levels --------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"lanes": 2}, {"lanes": 1, "streamed": True}])
def test_a_mean_in_two_levels_is_the_flat_mean(options):
    """Intermediate aggregators: one sum per region, then the mean of the regions by their clients."""
    num_regions = 3

    @federated_computation
    def means(value, region):
        def add_to_region(sums, member):
            value, region = member
            return sums[0].at[region].add(value), sums[1].at[region].add(1)

        def merge(a, b):
            return jax.tree.map(jnp.add, a, b)

        zero = (jnp.zeros((num_regions, 2)), jnp.zeros(num_regions, jnp.int32))
        regions = federated_aggregate((value, region), zero, add_to_region, merge)
        by_region = federated_map(lambda r: r[0] / r[1][:, None], regions)
        flat = federated_map(lambda m, r: jnp.average(m, axis=0, weights=r[1]), by_region, regions)
        return by_region, flat, federated_mean(value)

    values = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    regions = np.arange(10, dtype=np.int32) % num_regions
    mesh = jax.make_mesh((4,), ("clients",))
    streamed = options.pop("streamed", False)
    run = means.streamed(mesh=mesh, **options) if streamed else means.in_graph(mesh=mesh, **options)
    by_region, two_levels, flat = run(Clients.of(values), Clients.of(regions))
    expected = np.stack([values[regions == r].mean(axis=0) for r in range(num_regions)])
    np.testing.assert_allclose(by_region, expected, rtol=1e-5)
    np.testing.assert_allclose(two_levels, values.mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(flat, two_levels, rtol=1e-5, atol=1e-7)


def test_all_passes_share_one_placed_pool():
    """A second copy of the examples on every device would double the memory of two-pass algorithms."""
    pool = {"x": jnp.arange(8.0)}
    data = Sequence(Batches(pool, np.arange(8, dtype=np.int32).reshape(4, 1, 2)), np.ones(4, np.int32))

    @federated_computation
    def variance(data):
        value = federated_map(lambda d: sequence_reduce(lambda t, b: t + b["x"].sum(), jnp.float32(0), d), data)
        return federated_mean((value - federated_broadcast(federated_mean(value))) * value)

    stream = variance.streamed(mesh=make_mesh())
    np.testing.assert_allclose(stream(Clients.of(data)), np.var([1.0, 5.0, 9.0, 13.0]), rtol=1e-6)
    before = len(jax.live_arrays())
    stream(Clients.of(data))
    (compiled,) = stream._by_type.values()
    assert len({id(run._placer) for run in compiled._passes}) == 1
    assert len(compiled._passes) == 2
    assert len(jax.live_arrays()) <= before + 1
