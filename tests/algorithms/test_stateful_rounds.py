"""Rounds with client states on disk: the loop of three lines, killed and resumed."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fedjx import federated_computation
from fedjx.algorithms.ema import ema
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.data import Cohort, Store, uniform_sampler
from fedjx.training.stateful_rounds import stateful_rounds
from tests.data.stateful import ZERO, next_round, write
from tests.data.states import INITIAL, NUM_CLIENTS, contents, opened


@federated_computation
def with_metrics(server, data, states):
    after, new = next_round(server, data, states)
    return after, after.round, new


ALGORITHM = StatefulAlgorithm(lambda key: ZERO, lambda state: INITIAL, with_metrics)
NUM_ROUNDS = 7


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store"
    write(path)
    return Store(path)


def trained(store, step, state, num_rounds=NUM_ROUNDS):
    sample = uniform_sampler(NUM_CLIENTS, 12, seed=3)
    for number in range(int(state.round) + 1, num_rounds + 1):
        state, _ = step(state, Cohort(store, sample(number), batch_size=2, lanes=1))
    return jax.device_get(state)


def test_an_average_beside_runs_with_states_on_disk(store, tmp_path):
    """The wrapped algorithm's rounds are those of the algorithm, whose count the states follow."""
    wrapped = ema(ALGORITHM, 0.5)
    average, params = np.zeros(3), []
    with opened(tmp_path / "plain") as states, opened(tmp_path / "averaged") as others:
        for number in (1, 2):
            params.append(trained(store, stateful_rounds(ALGORITHM, states), ZERO, number).params)
        state = trained(store, stateful_rounds(wrapped, others), wrapped.init(jax.random.key(0)), 2)
        assert (int(state.round), others.round) == (2, 2)
        assert contents(others) == contents(states)
    for found in params:
        average = 0.5 * average + 0.5 * found
    np.testing.assert_allclose(state.params, average, rtol=1e-6)
    np.testing.assert_array_equal(state.inner.params, params[-1])


def bits(state):
    return [np.asarray(x).tobytes() for x in state]


def test_a_run_resumes_wherever_it_was_interrupted(store, tmp_path):
    with opened(tmp_path / "whole") as states:
        step = stateful_rounds(ALGORITHM, states)
        expected = trained(store, step, ZERO)
        expected_states = contents(states)
        # The states are rounds ahead of the checkpoint, in the same process.
        middle = trained(store, step, ZERO, 4)
        assert states.round == 4
        assert bits(trained(store, step, middle)) == bits(expected)
        assert contents(states) == expected_states
        with pytest.raises(ValueError, match=r"got round 9, and .* ends with 7"):
            step(middle._replace(round=np.int32(9)), Cohort(store, [0], batch_size=2, lanes=1))

    states = opened(tmp_path / "killed")
    step = stateful_rounds(ALGORITHM, states, durable=False)
    checkpoint = trained(store, step, ZERO, 3)
    states.sync()
    trained(store, step, checkpoint, 5)
    states._close()  # As when the process is killed: rounds 4 and 5 were not waited for.
    with opened(tmp_path / "killed") as states:
        assert states.round == 3
        step = stateful_rounds(ALGORITHM, states, durable=False)
        assert bits(trained(store, step, checkpoint)) == bits(expected)
        assert contents(states) == expected_states
