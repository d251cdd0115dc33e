"""Meshes that users set or name: `jax.set_mesh` around some of the rounds; server values spread over a further axis."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fedjx.algorithms import fed_avg, scaffold
from fedjx.core.language.values import Clients
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model
from tests.algorithms.problems import assert_trees_close, assert_trees_equal, federated_data
from tests.algorithms.test_every_combination import toy
from tests.algorithms.test_laws import Compilations

MOMENTUM = optax.sgd(0.1, momentum=0.9)
ALGORITHM = fed_avg(toy(), client_optimizer=MOMENTUM, server_optimizer=MOMENTUM)
WITH_STATES = scaffold(toy(), num_clients=5, client_optimizer=MOMENTUM, server_optimizer=MOMENTUM)
# What is set in each of the rounds: nothing, explicit axes, or automatic ones.
ORDERS = [(None, "Explicit", None, "Auto", "Explicit", None), ("Explicit", None, "Explicit", "Auto", None, "Auto")]
COHORTS = [(0, 2, 4), (1, 2, 3), (4, 0, 1), (0, 3, 2), (1, 4, 2), (3, 2, 0)]

Rounds = Callable[[Callable[[int], Any], FederatedData], Any]  # of what is set in a round, and data: the last state


def a_mesh(num_devices: int, kind: str = "Auto") -> Any:
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), ("clients",), devices=devices, axis_types=(getattr(AxisType, kind),))


def cohort(data: FederatedData, number: int) -> Cohort:
    return Cohort(data, COHORTS[number], batch_size=4, lanes=1)


def one_by_one(step: Any, *, whole: bool = False, adds: bool = True) -> Rounds:
    """Rounds of one compiled step; the user adds what comes in between, where JAX does not refuse that."""

    def rounds(what: Any, data: Any) -> Any:
        with what(0):
            state = ALGORITHM.init(jax.random.key(0))
        for number in range(len(COHORTS)):
            with what(number):
                clients = cohort(data, number).whole(num_steps=2) if whole else cohort(data, number)
                state, metrics = step(state, clients)
                assert not adds or jnp.all(metrics["loss"] + state.params["head"] > 0)
        return state

    return rounds


def made_ahead(step: Any) -> Rounds:
    def rounds(what: Any, data: Any) -> Any:
        state = ALGORITHM.init(jax.random.key(0))
        for number, clients in enumerate(step.ahead(cohort(data, number) for number in range(len(COHORTS)))):
            with what(number):
                state, _ = step(state, clients)
        return state

    return rounds


def in_pairs(step: Any) -> Rounds:
    def rounds(what: Any, data: Any) -> Any:
        state = ALGORITHM.init(jax.random.key(0))
        for number in range(0, len(COHORTS), 2):
            with what(number):
                state, _ = step(state, [cohort(data, number), cohort(data, number + 1)])
        return state

    return rounds


def with_states(step: Any) -> Rounds:
    def rounds(what: Any, data: Any) -> Any:
        state, kept = WITH_STATES.init(jax.random.key(0)), None
        for number in range(len(COHORTS)):
            with what(number):
                kept = kept or [WITH_STATES.init_client(state)] * 5
                ids = np.sort(COHORTS[number])
                states = Clients.of([kept[k] for k in ids], ids=ids)
                state, _, after = step(state, Cohort(data, ids, batch_size=4, lanes=1), states)
                for k, own in after.members().items():
                    kept[k] = own
        return state, kept

    return rounds


@pytest.mark.parametrize("num_devices", [1, 4])
def test_rounds_are_the_same_whatever_mesh_is_set(num_devices):
    mesh = a_mesh(num_devices)
    ways: dict[str, Rounds] = {
        "plain": one_by_one(ALGORITHM.next),
        "arrays": one_by_one(ALGORITHM.next, whole=True),
        "in graph": one_by_one(ALGORITHM.next.in_graph(mesh=mesh)),
        "streamed": one_by_one(ALGORITHM.next.streamed(mesh=mesh)),
        "jit": one_by_one(jax.jit(ALGORITHM.next.in_graph(mesh=mesh)), whole=True, adds=False),
        "ahead": made_ahead(ALGORITHM.next.streamed(mesh=mesh)),
        "scanned": in_pairs(ALGORITHM.next.scanned(mesh=mesh)),
        "client states": with_states(WITH_STATES.next.streamed(mesh=mesh)),
    }
    for name, rounds in ways.items():
        expected = rounds(lambda number: contextlib.nullcontext(), federated_data((3, 5, 1, 7, 2)))
        for order in ORDERS:
            kinds = {kind: a_mesh(num_devices, kind) for kind in ("Auto", "Explicit")}

            def what(number: int, order: Any = order, kinds: Any = kinds) -> Any:
                kind = order[number]
                return jax.set_mesh(kinds[kind]) if kind else contextlib.nullcontext()

            print(name, order)  # shown where it fails
            assert_trees_equal(rounds(what, federated_data((3, 5, 1, 7, 2))), expected)


# --- server values that are spread over a further axis ------------------------------------------------


def wide() -> Model:
    def loss(params: Any, batch: Any, key: Any = None) -> Any:
        del key
        return jnp.sum((jnp.tanh(batch["x"] @ params["in"]) @ params["out"] - 1) ** 2, axis=1)

    shapes = {"in": (5, 8), "out": (8, 2)}
    return Model(
        lambda key: {name: 0.1 * jax.random.normal(key, shape) for name, shape in shapes.items()},
        loss,
        lambda params, batch: {"loss": loss(params, batch)},
    )


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_server_values_stay_where_the_user_has_spread_them(kind):
    algorithm = fed_avg(wide(), client_optimizer=MOMENTUM, server_optimizer=optax.adam(0.1))
    mesh = jax.make_mesh((2, 2), ("clients", "model"), axis_types=(getattr(AxisType, kind),) * 2)
    over = {"in": PartitionSpec(None, "model"), "out": PartitionSpec("model")}

    def spread(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: (
                jax.device_put(x, NamedSharding(mesh, over[{(5, 8): "in", (8, 2): "out"}[x.shape]]))
                if x.ndim == 2
                else x
            ),
            tree,
        )

    start = algorithm.init(jax.random.key(0))
    expected = start
    for number in range(2):
        expected, _ = algorithm.next(expected, cohort(federated_data((3, 5, 1, 7, 2)), number))
    for step in (algorithm.next.in_graph(mesh=mesh), algorithm.next.streamed(mesh=mesh)):
        state = start._replace(params=spread(start.params), optimizer=spread(start.optimizer))
        compiled = []
        for number in range(3):
            with Compilations() as compilations:
                state, _ = step(state, cohort(federated_data((3, 5, 1, 7, 2)), number))
            compiled.append(compilations.number)
            for x in jax.tree.leaves((state.params, state.optimizer)):
                if x.ndim == 2:
                    assert x.sharding.spec == over[{(5, 8): "in", (8, 2): "out"}[x.shape]], (number, x.shape)
                    assert x.addressable_shards[0].data.size == x.size // 2
            if number == 1:
                assert_trees_close(state, expected)
        assert compiled[2] == 0
