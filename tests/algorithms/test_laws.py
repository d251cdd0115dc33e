"""The laws of every algorithm: one result however it runs, one compilation, bitwise resume."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from fedjx.algorithms import fed_avg
from fedjx.core.execution.process import Algorithm
from fedjx.core.language.types import type_of
from fedjx.core.language.values import Batches, Clients, Sequence
from fedjx.data import Cohort, FederatedData
from tests.algorithms.problems import (
    BATCH_SIZE,
    assert_trees_close,
    assert_trees_equal,
    dropout_model,
    federated_data,
    materialised,
)

NUM_ROUNDS = 3
COHORT = (9, 0, 4, 5, 1, 7, 3)


class Case(NamedTuple):
    """An algorithm under the laws. New algorithms are one line in `CASES`."""

    name: str
    algorithm: Algorithm


CASES = [
    Case(
        "fed_avg",
        fed_avg(
            dropout_model(),
            client_optimizer=optax.adam(0.05),
            server_optimizer=optax.sgd(0.7, momentum=0.9),
            num_epochs=2,
        ),
    ),
]

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def run(algorithm: Algorithm, step: Callable[..., Any], data: Any, num_rounds: int = NUM_ROUNDS) -> tuple[Any, Any]:
    state = algorithm.init(jax.random.key(1))
    metrics = None
    for _ in range(num_rounds):
        state, metrics = step(state, data)
    return state, metrics


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return federated_data()


_references: dict[str, Any] = {}


@pytest.fixture
def reference(case: Case, data: FederatedData) -> tuple[Any, Any]:
    """Three rounds of the whole cohort in one program on one device."""
    if case.name not in _references:
        clients = Cohort(data, COHORT, batch_size=BATCH_SIZE).whole()
        _references[case.name] = run(case.algorithm, case.algorithm.next, clients)
    return _references[case.name]


def mesh(num_devices: int) -> Any:
    return jax.make_mesh((num_devices,), ("clients",), devices=jax.devices()[:num_devices])


@cases
@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("lanes", [1, 3, 8, None])
def test_in_graph_does_not_depend_on_chunks_and_devices(case, data, reference, lanes, num_devices):
    step = jax.jit(case.algorithm.next.in_graph(mesh=mesh(num_devices), lanes=lanes))
    assert_trees_close(run(case.algorithm, step, Cohort(data, COHORT, batch_size=BATCH_SIZE).whole()), reference)


@cases
@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("lanes", [1, 3, 8, len(COHORT)])
def test_streaming_does_not_depend_on_chunks_and_devices(case, data, reference, lanes, num_devices):
    step = case.algorithm.next.streamed(mesh=mesh(num_devices))
    chunks = Cohort(data, COHORT, batch_size=BATCH_SIZE, lanes=lanes)
    assert_trees_close(run(case.algorithm, step, chunks), reference)


@cases
def test_padding_changes_nothing(case, data, reference):
    wide = Cohort(data, COHORT, batch_size=BATCH_SIZE).whole(num_steps=11, num_places=10)
    assert_trees_close(run(case.algorithm, case.algorithm.next, wide), reference)


@cases
@pytest.mark.parametrize("garbage", [np.nan, 1e30])
def test_what_padding_holds_changes_nothing(case, data, reference, garbage):
    clients = materialised(data, COHORT, num_steps=5, num_clients=9, garbage=garbage)
    assert_trees_close(run(case.algorithm, case.algorithm.next, clients), reference)
    assert_trees_close(run(case.algorithm, case.algorithm.next.streamed(mesh=mesh(1), lanes=2), clients), reference)


@cases
def test_the_order_of_clients_changes_nothing(case, data, reference):
    clients = Cohort(data, COHORT[::-1], batch_size=BATCH_SIZE).whole()
    assert_trees_close(run(case.algorithm, case.algorithm.next, clients), reference)


@cases
def test_other_clients_or_another_key_change_the_result(case, data, reference):
    """The negative control of all laws above."""
    clients = Cohort(data, COHORT, batch_size=BATCH_SIZE).whole()
    renamed = Clients(clients.value, clients.mask, clients.id + 100)
    for changed in (Cohort(data, COHORT[1:], batch_size=BATCH_SIZE).whole(), renamed):
        state, _ = run(case.algorithm, case.algorithm.next, changed)
        with pytest.raises(AssertionError):
            assert_trees_close(state.params, reference[0].params)


@cases
def test_a_client_without_examples_changes_nothing(case, data, reference):
    clients = Cohort(data, COHORT, batch_size=BATCH_SIZE).whole()
    sequence = clients.value
    assert isinstance(sequence.elements, Batches)
    index, length = np.asarray(sequence.elements.index), np.asarray(sequence.length)
    empty = Batches(sequence.elements.pool, np.concatenate([index, np.full_like(index[:1], -1)]))
    ids = np.append(clients.id, 77).astype(np.int32)
    extended = Clients.of(Sequence(empty, np.append(length, 0).astype(np.int32)), ids=ids)
    assert_trees_close(run(case.algorithm, case.algorithm.next, extended), reference)


@cases
def test_the_state_keeps_its_type(case, data):
    state = case.algorithm.init(jax.random.key(1))
    clients = Cohort(data, COHORT, batch_size=BATCH_SIZE).whole()
    signature = case.algorithm.next.type_signature(state, clients)
    assert signature.result[0] == signature.parameter["state"] == type_of(state)
    after, _ = case.algorithm.next(state, clients)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(after)] == [(x.shape, x.dtype) for x in jax.tree.leaves(state)]


@cases
@pytest.mark.parametrize("how", ["call", "in_graph", "streamed"])
def test_rounds_do_not_recompile(case, data, how):
    step = case.algorithm.next if how == "call" else getattr(case.algorithm.next, how)(mesh=mesh(4))
    cohorts = [Cohort(data, ids, batch_size=BATCH_SIZE).whole(num_steps=3) for ids in ((9, 4, 5, 0), (1, 7, 3, 5))]
    with Compilations() as first:
        state, _ = step(case.algorithm.init(jax.random.key(1)), cohorts[0])
    with Compilations() as later:
        for clients in (cohorts[1], cohorts[0]):
            state, _ = step(state, clients)
    assert first.number > 0
    assert later.number == 0


class Compilations:
    """Counts what XLA compiles while it is entered."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> Compilations:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        del duration
        self.number += event == "/jax/core/compile/backend_compile_duration"


@cases
@pytest.mark.parametrize("ids", [COHORT, COHORT[:4]], ids=["padded", "even"])
def test_one_all_reduce_per_pass(case, data, ids):
    state, clients = case.algorithm.init(jax.random.key(1)), Cohort(data, ids, batch_size=BATCH_SIZE).whole()
    num_passes = len({message.round_trip for message in case.algorithm.next.communication(state, clients)})
    step = jax.jit(case.algorithm.next.in_graph(mesh=mesh(4), lanes=2))
    text = step.lower(state, clients).compile().as_text()
    collectives = re.findall(
        r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text
    )
    assert collectives == ["all-reduce"] * num_passes


@cases
def test_resuming_after_any_round_is_bitwise_equal(case, data, tmp_path):
    chunks = [Cohort(data, ids, batch_size=BATCH_SIZE, lanes=2) for ids in (COHORT[:4], COHORT[3:], COHORT[1:5])]
    state = case.algorithm.init(jax.random.key(1))
    with ocp.CheckpointManager(tmp_path) as checkpoints:
        for number, chunk in enumerate(chunks):
            checkpoints.save(number, args=ocp.args.StandardSave(state))
            state, _ = case.algorithm.next(state, chunk)
        checkpoints.wait_until_finished()
        for number in range(len(chunks)):
            fresh = case.algorithm.init(jax.random.key(2))  # only its structure matters
            resumed = checkpoints.restore(number, args=ocp.args.StandardRestore(fresh))
            for chunk in chunks[number:]:
                resumed, _ = case.algorithm.next(resumed, chunk)
            assert_trees_equal(resumed, state)
