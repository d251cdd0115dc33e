"""The laws of every algorithm, over few compiled programs: cases are the lines of the `cases_*.py` beside.

`test_laws.py` runs federated averaging through the same laws one by one, in every combination.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.types import type_of
from fedjx.core.language.values import Clients
from fedjx.data import ClientStates, Cohort
from tests.algorithms.case import Case
from tests.algorithms.problems import BATCH_SIZE, assert_trees_close, assert_trees_equal, federated_data, materialised
from tests.algorithms.test_laws import Compilations, mesh

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
CASES: dict[str, Case] = {
    f"{module.removeprefix('cases_')}-{name}": case
    for module in MODULES
    for name, case in importlib.import_module(f"tests.algorithms.{module}").CASES.items()
}

COHORTS = ((9, 0, 4, 2, 1), (9, 0, 4, 2, 1), (4, 0, 9, 1, 3))
EMPTY = 77  # The id of a client without examples.
NUM_IDS = 100
COLLECTIVE = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


class InOneProgram:
    """Rounds in one program on four devices: two clients at a time, garbage as padding, an empty client among them."""

    def __init__(self, case: Case):
        self.algorithm: Any = case.algorithm
        self.data = case.data or federated_data()
        self.step: Any = None
        self.state = self.algorithm.init(jax.random.key(1))
        self.first = initial_clients(case)
        self.rows = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], NUM_IDS, 0), self.first)
        longest = max(-(-int(self.data.sizes[k]) // BATCH_SIZE) for ids in COHORTS for k in ids)
        # New states of a cohort that does not divide are gathered to take the padding off: not what is counted below.
        num_clients = 8 if self.stateful else 7
        self.shape: dict[str, Any] = {"num_steps": longest + 1, "num_clients": num_clients, "garbage": np.nan}

    def round(self, ids: tuple[int, ...]) -> Any:
        """Runs a round of some clients, in reverse order; returns its metrics."""
        clients = materialised(self.data, [EMPTY, *reversed(ids)], **self.shape)
        arguments: list[Any] = [self.state, clients]
        if self.stateful:
            states = jax.tree.map(lambda x: x[np.maximum(clients.id, 0)], self.rows)
            arguments.append(Clients.of(states, ids=clients.id, mask=clients.mask))
        if self.step is None:
            self.step = jax.jit(self.algorithm.next.in_graph(mesh=mesh(4), lanes=2)).lower(*arguments).compile()
        self.state, metrics, *new = self.step(*arguments)
        if self.stateful:
            for held, found in zip(jax.tree.leaves(self.rows), jax.tree.leaves(new[0].value), strict=True):
                held[clients.id[clients.mask]] = np.asarray(found)[clients.mask]
        return metrics

    @property
    def stateful(self) -> bool:
        return isinstance(self.algorithm, StatefulAlgorithm)


class Streamed:
    """Rounds in chunks of two, a client for each of two devices; client states on disk."""

    def __init__(self, case: Case, path: Path):
        self.algorithm: Any = case.algorithm
        self.data = case.data or federated_data()
        self.state = self.algorithm.init(jax.random.key(1))
        self.states = None
        if isinstance(case.algorithm, StatefulAlgorithm):
            self.states = ClientStates(path, initial_clients(case), num_clients=NUM_IDS)
        self.step = self.algorithm.next.streamed(mesh=mesh(2), **({"sink": self.states.sink} if self.states else {}))

    def round(self, ids: tuple[int, ...], number: int) -> Any:
        """Runs and commits a round; returns its metrics."""
        clients = Cohort(self.data, ids, batch_size=BATCH_SIZE, lanes=1)
        if self.states is None:
            self.state, metrics = self.step(self.state, clients)
        else:
            self.state, metrics, *_ = self.step(self.state, clients, self.states.cohort(ids))
            self.states.commit(number)
        return metrics

    def rows(self) -> Any:
        return self.states.take(np.arange(NUM_IDS)) if self.states else None


def initial_clients(case: Case) -> Any:
    """The state of a client that was never here, or nothing."""
    if not isinstance(case.algorithm, StatefulAlgorithm):
        return None
    return jax.device_get(case.algorithm.init_client(case.algorithm.init(jax.random.key(1))))


@pytest.mark.parametrize("name", CASES)
def test_laws(name, tmp_path):
    case = CASES[name]
    one, streamed = InOneProgram(case), Streamed(case, tmp_path / "states")
    kept = []
    with ocp.CheckpointManager(tmp_path / "checkpoints") as checkpoints:
        for number, ids in enumerate(COHORTS, 1):
            with Compilations() as compilations:
                metrics = streamed.round(ids, number)
            assert (compilations.number > 0) == (number == 1), f"round {number} compiles {compilations.number} times"
            assert_trees_close(one.round(ids), metrics, rtol=case.rtol, atol=case.rtol / 10)
            checkpoints.save(number, args=ocp.args.StandardSave(streamed.state))
            kept.append((streamed.state, streamed.rows()))
        checkpoints.wait_until_finished()

        assert_trees_close((one.state, one.rows), kept[-1], rtol=case.rtol, atol=case.rtol / 10)
        keeps_its_type(case, streamed.state)
        an_empty_client_keeps_its_state(one)
        the_collectives_of_a_pass(case, one)

        fresh = case.algorithm.init(jax.random.key(2))  # Only its structure matters.
        streamed.state = checkpoints.restore(1, args=ocp.args.StandardRestore(fresh))
    if streamed.states:
        streamed.states.rollback(1)
    for number, ids in enumerate(COHORTS[1:], 2):
        streamed.round(ids, number)
    assert_trees_equal((streamed.state, streamed.rows()), kept[-1])

    # The negative control: other clients are another result, of each of several algorithms.
    streamed.round(COHORTS[2], 4)
    other = streamed.state
    streamed.state = kept[-1][0]
    if streamed.states:
        streamed.states.rollback(3)
    streamed.round((5, 6, 7, 3, 8), 4)
    for name in other if isinstance(other, dict) else [None]:
        a, b = (other, streamed.state) if name is None else (other[name], streamed.state[name])
        with pytest.raises(AssertionError):
            assert_trees_close(a, b, rtol=case.rtol, atol=case.rtol / 10)


def keeps_its_type(case: Case, after: Any) -> None:
    before = case.algorithm.init(jax.random.key(1))
    assert type_of(after) == type_of(before)
    assert jax.tree.structure(after) == jax.tree.structure(before)


def an_empty_client_keeps_its_state(one: InOneProgram) -> None:
    assert_trees_equal(jax.tree.map(lambda x: x[EMPTY], one.rows), jax.tree.map(np.asarray, one.first))


def the_collectives_of_a_pass(case: Case, one: InOneProgram) -> None:
    clients = materialised(one.data, COHORTS[0], **one.shape)
    states = Clients.of(jax.tree.map(lambda x: x[: len(clients.id)], one.rows), ids=clients.id, mask=clients.mask)
    bill = one.algorithm.next.communication(one.state, clients, *([states] if one.stateful else []))
    num_passes = len({message.round_trip for message in bill})
    assert sorted(re.findall(COLLECTIVE, one.step.as_text())) == sorted(case.collectives * num_passes)
