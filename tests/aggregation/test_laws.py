"""The laws of every aggregator: one result however it runs, one compilation, and no client of zero weight.

Every case runs over few compiled programs: cohorts of 8 places on four devices serve most of the laws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.algorithms import fed_avg
from fedjx.core.language.types import SERVER, FederatedType, type_of
from fedjx.core.language.values import Clients
from fedjx.data import Cohort
from fedjx.models import linear
from tests.aggregation.case import Case, law_cases
from tests.algorithms.problems import NUM_CLASSES, NUM_FEATURES, assert_trees_close, federated_data
from tests.algorithms.test_laws import Compilations, mesh

CASES = law_cases()

cases = pytest.mark.parametrize("name", CASES)

IDS = np.array([9, 2, 4, 5, 1, 7, 3])
NUM_ROUNDS = 2


class Members:
    """Seven clients as rows of NumPy arrays, to be rearranged by the laws."""

    def __init__(self, seed: int = 0):
        random = np.random.default_rng(seed)
        sizes = random.lognormal(size=7)  # norms on both sides of every threshold
        # A direction in common, as real updates have: rules that trust nobody give zero, which proves nothing.
        value = {"w": random.normal(0.5, size=(7, 3, 5)), "b": random.normal(0.5, size=7)}
        self.value = {k: (v * sizes.reshape(-1, *[1] * (v.ndim - 1))).astype(np.float32) for k, v in value.items()}
        self.weight = np.array([1.0, 3.0, 2.0, 1.0, 4.0, 2.0, 1.0], np.float32)
        self.ids = IDS
        self.mask = np.ones(7, bool)

    def placed(self) -> tuple[Clients, Clients]:
        return tuple(Clients.of(x, ids=self.ids, mask=self.mask) for x in (self.value, self.weight))

    def reordered(self, order: Any) -> Members:
        other = Members()
        other.value = {k: v[order] for k, v in self.value.items()}
        other.weight, other.ids, other.mask = self.weight[order], self.ids[order], self.mask[order]
        return other

    def with_place(self, *, value: float, weight: float, real: bool) -> Members:
        """One more place, of any value: a client or padding."""
        other = Members()
        other.value = {k: np.concatenate([v, np.full_like(v[:1], value)]) for k, v in self.value.items()}
        other.weight = np.append(self.weight, np.float32(weight))
        other.ids, other.mask = np.append(self.ids, 77), np.append(self.mask, real)
        return other


def padded(clients: Members, garbage: float = np.nan) -> Members:
    return clients.with_place(value=garbage, weight=garbage, real=False)


def initial(case: Case) -> Any:
    return case.aggregator.init({"w": jnp.zeros((3, 5)), "b": jnp.zeros(())})


def run(case: Case, step: Callable[..., Any], clients: Members) -> list[Any]:
    """Two rounds; returns state, result and measurements of both."""
    state, rounds = initial(case), []
    for number in range(NUM_ROUNDS):
        rounds.append(step(jax.random.fold_in(jax.random.key(5), number), state, *clients.placed()))
        state = rounds[-1][0]
    return rounds


_kept: dict[Any, Any] = {}


def once(name: str, what: str, make: Callable[[], Any]) -> Any:
    if (name, what) not in _kept:
        _kept[name, what] = make()
    return _kept[name, what]


def reference(name: str) -> list[Any]:
    """The whole cohort in one program on one device."""
    return once(name, "reference", lambda: run(CASES[name], CASES[name].aggregator.next, Members()))


def on_four(name: str) -> Callable[..., Any]:
    """One program on four devices, each with one client at a time; for cohorts of eight places."""
    return compiled_on_four(name)[0]


def compiled_on_four(name: str) -> tuple[Callable[..., Any], int]:
    """That program after its first round, and how often that round compiled."""

    def make() -> tuple[Callable[..., Any], int]:
        step = CASES[name].aggregator.next.in_graph(mesh=mesh(4), lanes=1)
        with Compilations() as first:
            step(jax.random.key(0), initial(CASES[name]), *padded(Members()).placed())
        return step, first.number

    return once(name, "on_four", make)


def assert_same(name: str, got: list[Any], expected: list[Any] | None = None) -> None:
    expected = reference(name) if expected is None else expected
    assert_trees_close(got, expected, rtol=CASES[name].rtol, atol=CASES[name].rtol / 10)


@cases
@pytest.mark.parametrize("garbage", [np.nan, 1e30])
def test_chunks_padding_and_devices_in_one_program(name, garbage):
    assert_same(name, run(CASES[name], on_four(name), padded(Members(), garbage)))


@cases
def test_streamed_is_in_graph(name):
    """In chunks of three on one device: with four, and one in a lane, in one program, it is the other way round."""
    step = CASES[name].aggregator.next.streamed(mesh=mesh(1), lanes=3)
    assert_same(name, run(CASES[name], step, padded(Members())))


@cases
def test_the_order_of_clients_changes_nothing(name):
    assert_same(name, run(CASES[name], on_four(name), padded(Members()).reordered([7, 3, 0, 6, 2, 1, 5, 4])))


@cases
@pytest.mark.parametrize("value", [0.5, 1e6, np.nan])
def test_a_client_of_zero_weight_changes_nothing(name, value):
    clients = Members().with_place(value=value, weight=0.0, real=True)
    assert_same(name, run(CASES[name], on_four(name), clients))


@cases
def test_other_values_change_the_result(name):
    """The negative control of the laws above."""
    other = run(CASES[name], on_four(name), padded(Members(seed=1)))
    with pytest.raises(AssertionError):
        assert_same(name, [r[1] for r in other], [r[1] for r in reference(name)])


@cases
def test_no_client_and_no_weight_are_finite(name):
    nobody = padded(Members())
    nobody.mask = np.zeros(8, bool)
    weightless = Members().with_place(value=1.0, weight=0.0, real=True)
    weightless.weight = np.zeros(8, np.float32)
    for clients in (nobody, weightless):
        for leaf in jax.tree.leaves(run(CASES[name], on_four(name), clients)):
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                assert np.all(np.isfinite(leaf))


@cases
def test_the_state_keeps_its_type_and_the_result_that_of_a_member(name):
    case, state = CASES[name], initial(CASES[name])
    signature = case.aggregator.next.type_signature(jax.random.key(0), state, *Members().placed())
    after, result, measurements = signature.result
    assert after == type_of(state)
    assert result == FederatedType({"w": jnp.zeros((3, 5)), "b": jnp.zeros(())}, SERVER)
    assert measurements.placement == SERVER


@cases
def test_only_those_that_say_so_materialise_all_members(name):
    types = map(type_of, (jax.random.key(0), initial(CASES[name]), *Members().placed()))
    program = CASES[name].aggregator.next.trace(tuple(types))
    collected = [
        program._nodes[i].type.member.elements for k in range(program.num_passes) for i in program.collections(k)
    ]
    # A distance and a weight of each, for their median, are no member.
    large = [sum(leaf.size for leaf in jax.tree.leaves(one)) > 2 for one in collected]
    assert any(large) == CASES[name].materialises


@cases
def test_rounds_do_not_recompile(name):
    step, num_first = compiled_on_four(name)
    clients, state = padded(Members()).placed(), initial(CASES[name])
    keys = [jax.random.fold_in(jax.random.key(5), number) for number in range(3)]
    with Compilations() as later:
        for key in keys:
            state, _, _ = step(key, state, *clients)
    assert num_first > 0
    assert later.number == 0


@cases
def test_it_works_inside_federated_averaging(name):
    algorithm = fed_avg(
        linear(NUM_CLASSES, input_shape=(NUM_FEATURES,)),
        client_optimizer=optax.sgd(0.1),
        aggregator=CASES[name].aggregator,
        shuffle=False,
    )
    state = start = algorithm.init(jax.random.key(1))
    clients = Cohort(federated_data(), IDS, batch_size=12).whole()
    for _ in range(2):
        state, metrics = algorithm.next(state, clients)
        assert metrics["num_clients"] == 7
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, start.params)
    assert 0 < max(jax.tree.leaves(moved)) < np.inf
