"""What DrJAX's own tests ask of map, broadcast, sum and mean, asked of fedjx.

Values and both derivatives, in a program and under `jit`, without a mesh and with ones of either kind of axes, given
and entered; where results lie; what is refused. Where fedjx differs by choice, `DIFFERENT` holds its behaviour;
`docs/design.md` says why.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fedjx
from fedjx import Clients, federated_broadcast, federated_computation, federated_map, federated_mean, federated_sum
from tests.algorithms.problems import assert_trees_close

N = 6


def mesh_of(*types: AxisType) -> Any:
    return jax.make_mesh((2, 2), ("clients", "data"), axis_types=types)


AUTO, EXPLICIT = mesh_of(AxisType.Auto, AxisType.Auto), mesh_of(AxisType.Explicit, AxisType.Explicit)
MIXED = mesh_of(AxisType.Explicit, AxisType.Auto)
CONTEXTS = {
    "no_context": contextlib.nullcontext,
    "auto_context": functools.partial(jax.set_mesh, AUTO),
    "explicit_context": functools.partial(jax.set_mesh, EXPLICIT),
}
RUNS = {
    "in_a_program": lambda computation: computation,
    "on_auto_axes": lambda computation: computation.in_graph(mesh=AUTO),
    "on_explicit_axes": lambda computation: computation.in_graph(mesh=EXPLICIT),
}
in_each_context = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)


@federated_computation
def broadcast(x, clients):
    return federated_broadcast(x)


@federated_computation
def total(clients):
    return federated_sum(clients)


@federated_computation
def mean(clients):
    return federated_mean(clients)


@federated_computation
def weighted_mean(clients, weight):
    return federated_mean(clients, weight)


@federated_computation
def there_and_back(x, clients):
    at_clients = federated_map(lambda x, _: x, federated_broadcast(x), clients)
    return federated_sum(at_clients), federated_mean(at_clients)


@federated_computation
def part_above(threshold, values):
    def is_above(threshold, value):
        return jax.lax.cond(value > threshold, lambda: jnp.ones_like(value), lambda: jnp.zeros_like(value))

    return federated_mean(federated_map(is_above, federated_broadcast(threshold), values))


@federated_computation
def gradient(model, data):
    def of_one(model, x):
        return jax.value_and_grad(lambda m: jnp.sum(m["w"] * jnp.square(x)))(model)[1]

    return federated_mean(federated_map(of_one, federated_broadcast(model), data))


# --- values and derivatives -----------------------------------------------------------------------

ONES = np.ones((N, 1), np.float32)
EXPECTED = {
    "broadcast": np.ones(N),
    "broadcast_forward": np.ones(N),
    "broadcast_reverse": np.ones(N),
    "sum": np.full(1, N),
    "sum_forward": np.ones((1, N, 1)),
    "sum_reverse": np.ones((1, N, 1)),
    "mean": np.ones(1),
    "mean_forward": np.full((1, N, 1), 1 / N),
    "mean_reverse": np.full((1, N, 1), 1 / N),
    "there_and_back": (np.full(1, N), np.ones(1)),
    "there_and_back_forward": (np.full((1, 1), N), np.ones((1, 1))),
    "there_and_back_reverse": (np.full((1, 1), N), np.ones((1, 1))),
    "weighted_mean": np.float32(55 / 15),
    "weighted_mean_of_a_structure": {"a": np.ones(2), "b": np.float32(55 / 15)},
    "of_two_results_one_unused": (np.ones(N), np.ones((1, N, 1)), np.full((1, N, 1), 1 / N)),
    "part_above_24_of_100": np.float32(0.75),
    "part_above_3_of_20": np.float32(0.8),
    "gradient": {"w": np.full(2, 1.0)},
    "scalar_zero": np.zeros(N),
}


def found(run: Any) -> dict[str, Any]:
    def of(fn):
        return lambda value: fn(Clients.of(value))

    def twice(fn):
        """The derivative of the second result is a symbolic zero."""
        both = jax.jit(lambda x: (fn(x), fn(x)))
        return jax.jacrev(jax.jit(lambda x: both(x)[0]))

    sent, summed, averaged = run(broadcast), of(run(total)), of(run(mean))
    ones, one = Clients.of(ONES), jnp.float32(1)
    to_clients, back = lambda x: sent(x, ones).value, lambda x: run(there_and_back)(x, ones)
    numbers, above = np.arange(N, dtype=np.float32), run(part_above)
    structure = {"a": np.ones((N, 2), np.float32), "b": numbers}
    result = {
        name + suffix: transform(fn)(x)
        for name, fn, x in (
            ("broadcast", to_clients, one),
            ("sum", summed, ONES),
            ("mean", averaged, ONES),
            ("there_and_back", back, np.ones(1, np.float32)),
        )
        for suffix, transform in (("", lambda fn: fn), ("_forward", jax.jacfwd), ("_reverse", jax.jacrev))
    }
    return result | {
        "weighted_mean": run(weighted_mean)(Clients.of(numbers), Clients.of(np.arange(N))),
        "weighted_mean_of_a_structure": run(weighted_mean)(Clients.of(structure), Clients.of(np.arange(N))),
        "of_two_results_one_unused": (twice(to_clients)(one), twice(summed)(ONES), twice(averaged)(ONES)),
        "part_above_24_of_100": above(24.0, Clients.of(np.arange(100, dtype=np.float32))),
        "part_above_3_of_20": above(3.0, Clients.of(np.arange(20, dtype=np.float32))),
        "gradient": run(gradient)({"w": np.zeros(2, np.float32)}, Clients.of(np.ones(N, np.float32))),
        "scalar_zero": sent(0.0, ones).value,
    }


WAYS = [
    *(("in_a_program", context) for context in CONTEXTS),
    *(("on_auto_axes", context) for context in CONTEXTS),
    ("on_explicit_axes", "explicit_context"),
]


@pytest.mark.parametrize(("run", "context"), WAYS)
def test_values_and_derivatives_under_jit(run, context):
    with CONTEXTS[context]():
        result = jax.jit(lambda: found(RUNS[run]))()
    assert_trees_close(result, EXPECTED)


def test_values_and_derivatives_without_jit():
    assert_trees_close(found(RUNS["on_auto_axes"]), EXPECTED)


@in_each_context
def test_a_stream_computes_the_same(context):
    ones = Clients.of(ONES)
    with context():
        back = there_and_back.streamed(mesh=AUTO)(np.ones(1, np.float32), ones)
        sent = broadcast.streamed(mesh=EXPLICIT)(jnp.float32(1), ones).value
        above = part_above.streamed()
        # One program serves both numbers of clients, and the first again.
        parts = [above(t, Clients.of(np.arange(n, dtype=np.float32))) for t, n in ((24, 100), (3, 20), (24, 100))]
    assert_trees_close((back, sent), (EXPECTED["there_and_back"], EXPECTED["broadcast"]))
    assert [float(part) for part in parts] == [0.75, np.float32(0.8), 0.75]


def test_the_derivative_of_a_broadcast_is_a_sum_and_that_of_a_sum_a_broadcast():
    """Reverse mode moves between the devices what the transposed operator does: one all-reduce, or nothing."""
    back, clients = total.in_graph(mesh=AUTO), Clients.of(np.ones((4, 8), np.float32))

    def loss(x):
        return jnp.sum(broadcast.in_graph(mesh=AUTO)(x, clients).value ** 2)

    def num_collectives(fn, x):
        text = jax.jit(fn).lower(x).compile().as_text()
        return text.count(" all-reduce("), text.count(" all-gather(")

    def of_clients(value):
        return jax.vjp(lambda v: back(Clients(v, clients.mask, clients.id)), value)[1](jnp.ones(8))[0]

    divided = jax.device_put(clients.value, NamedSharding(AUTO, PartitionSpec("clients")))
    assert num_collectives(jax.grad(loss), jnp.ones(8)) == (1, 0)
    assert num_collectives(of_clients, divided) == (0, 0)


# --- where results lie ----------------------------------------------------------------------------

BY_DATA = NamedSharding(AUTO, PartitionSpec("data"))


def constrained(x):
    return jax.lax.with_sharding_constraint(x, BY_DATA)


def mapped(fn):
    return federated_computation(lambda clients: federated_map(fn, clients))


def lies(result):
    return result.value.sharding.spec, result.value.sharding.shard_shape(result.value.shape)


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "jit"])
def test_results_at_clients_are_divided_among_the_devices(is_compiled):
    spec = PartitionSpec
    jit = jax.jit if is_compiled else lambda fn: fn
    whole, by_data = jnp.zeros(10), jax.device_put(jnp.zeros(10), BY_DATA)
    four = Clients.of(np.zeros((4, 10), np.float32))
    of_data = Clients.of(jax.device_put(jnp.zeros((4, 10)), NamedSharding(AUTO, spec(None, "data"))))
    for mesh in (AUTO, EXPLICIT, MIXED):
        sent = jit(broadcast.in_graph(mesh=mesh))
        assert lies(sent(whole, four)) == (spec("clients"), (2, 10))
    assert lies(jit(broadcast.in_graph(mesh=AUTO))(by_data, four)) == (spec("clients", "data"), (2, 5))
    added = mapped(lambda x: x + x).in_graph(mesh=AUTO)
    assert lies(jit(added)(four)) == (spec("clients"), (2, 10))
    if is_compiled:  # an eager call places a cohort, which is divided among the clients alone
        assert lies(jit(added)(of_data)) == (spec("clients", "data"), (2, 5))
    assert lies(jit(mapped(constrained).in_graph(mesh=AUTO))(four)) == (spec("clients", "data"), (2, 5))
    assert lies(jit(mapped(jnp.zeros_like).in_graph(mesh=AUTO))(four))[1] == (2, 10)


def test_one_device_holds_everything():
    mesh = jax.make_mesh((1, 1), ("clients", "data"), axis_types=(AxisType.Auto,) * 2)
    result = broadcast.in_graph(mesh=mesh)(jnp.zeros(10), Clients.of(ONES))
    assert result.value.shape == (N, 10)
    assert result.value.sharding.is_fully_replicated


def test_without_an_axis_of_clients_what_is_entered_decides():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.zeros(8), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        result = broadcast(x, Clients.of(ONES))
    assert lies(result) == (PartitionSpec(None, "data"), (N, 2))


# --- what is refused, and where fedjx differs -------------------------------------------------------


def refused(x):
    raise ValueError("this is the mapped function's own")


FOUR = Clients.of(np.zeros(4, np.float32))
REFUSED = {
    "outside_of_a_computation": (lambda: federated_broadcast(jnp.float32(0.5)), TypeError, "placed values"),
    "outside_again": (lambda: federated_sum(jnp.ones(4)), TypeError, "placed values"),
    "broadcast_of_two": (lambda: federated_broadcast(1.0, 2.0), TypeError, "takes 1 positional argument"),
    "map_of_two": (lambda: federated_computation(lambda x: federated_map(lambda x: x, x, x))(FOUR), TypeError, "2"),
    "sum_of_two": (lambda: federated_computation(lambda x: federated_sum(x, x))(FOUR), TypeError, "1 positional"),
    "mean_of_three": (lambda: federated_computation(lambda x: federated_mean(x, x, x))(FOUR), TypeError, "3 were"),
    "an_error_of_the_function": (lambda: mapped(refused)(FOUR), ValueError, "mapped function's own"),
}
DIFFERENT = {
    "the_mean_of_integers": (lambda: mean(Clients.of(np.arange(4))), TypeError, r"{int32}@CLIENTS"),
    "values_of_other_clients": (lambda: weighted_mean(FOUR, Clients.of(np.ones(5))), ValueError, r"\[4, 5\]"),
    "the_sum_of_what_is_not_at_clients": (lambda: total(jnp.ones(4)), TypeError, "CLIENTS"),
    "a_broadcast_of_a_broadcast": (
        lambda: federated_computation(lambda x: federated_broadcast(federated_broadcast(x)))(1.0),
        TypeError,
        "at the clients already",
    ),
    "no_cohort_to_broadcast_to": (
        lambda: federated_computation(lambda x: federated_broadcast(x))(1.0),
        ValueError,
        "at least one client",
    ),
    "a_weight_for_each_leaf": (
        lambda: weighted_mean(Clients.of({"a": ONES}), Clients.of({"a": ONES})),
        TypeError,
        "one real number per client",
    ),
    "a_mesh_without_clients": (
        lambda: total.in_graph(mesh=jax.make_mesh((4,), ("data",)))(FOUR),
        ValueError,
        "axis named 'clients'",
    ),
}


@pytest.mark.parametrize("case", [*REFUSED.values(), *DIFFERENT.values()], ids=[*REFUSED, *DIFFERENT])
def test_is_refused(case):
    call, error, message = case
    with pytest.raises(error, match=message):
        call()


def test_differs_by_choice():
    """Weights that are all zero give 0, clients need not divide among the devices, closures outlive the program."""
    assert float(weighted_mean(FOUR, FOUR)) == 0
    for num_clients in (1, 5):
        ones = Clients.of(np.ones((num_clients, 3), np.float32))
        summed, averaged = there_and_back.in_graph(mesh=AUTO)(np.ones(3, np.float32), ones)
        np.testing.assert_allclose((summed, averaged), (np.full(3, num_clients), np.ones(3)))
    made: list[Any] = []

    @federated_computation
    def program(x, clients):
        made.append(lambda y: federated_computation(lambda y: federated_sum(y))(y))
        return federated_sum(federated_map(lambda x, _: x, federated_broadcast(x), clients))

    assert float(program(2.0, FOUR)) == 8
    assert float(made[0](Clients.of(np.ones(3, np.float32)))) == 3
    assert isinstance(program, fedjx.Computation)
