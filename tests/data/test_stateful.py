"""Tests of a stateful algorithm with its states on disk: as in memory, and resumed as if it had not been killed."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from fedjx.core.execution import chunks
from fedjx.data import Cohort, Store, uniform_sampler
from tests.data.stateful import ZERO, next_round, rounds, train, write
from tests.data.states import InMemory, contents, opened
from tests.data.stores import ROOT

NUM_ROUNDS = 9


def bits(server):
    return [np.asarray(x).tobytes() for x in server]


@pytest.fixture(scope="module", autouse=True)
def _several_chunks():
    """A round has three chunks, so that a run can be killed between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_RESULT_BYTES", 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with states in memory, and the store that it reads."""
    path = tmp_path_factory.mktemp("whole")
    write(path / "store")
    states = InMemory()
    *_, server = rounds(Store(path / "store"), states, ZERO, NUM_ROUNDS)
    return path / "store", server, states


def test_states_on_disk_are_as_those_in_memory(whole, tmp_path):
    store, expected, expected_states = whole
    with opened(tmp_path / "states") as states:
        *_, server = rounds(Store(store), states, ZERO, NUM_ROUNDS)
        assert bits(server) == bits(expected)
        assert contents(states) == contents(expected_states)
        taken = states.take(np.arange(30))
        assert taken["visits"].sum() == 12 * NUM_ROUNDS
        assert len(np.unique(taken["control"], axis=0)) == states.num_touched + (states.num_touched < 30)


def test_states_make_a_difference(whole):
    """The negative control: clients that forget train another model."""
    store, expected, _ = whole
    states = InMemory()
    states.take = lambda ids: InMemory().take(ids)
    *_, server = rounds(Store(store), states, ZERO, NUM_ROUNDS)
    assert not np.allclose(server.params, expected.params)


@pytest.mark.parametrize(("killed_in", "resumed_after"), [(1, 0), (8, 6)])
def test_a_killed_run_resumes_as_if_nothing_had_been(whole, tmp_path, killed_in, resumed_after):
    store, expected, expected_states = whole
    os.symlink(store, tmp_path / "store")
    code = f"""
import os, pathlib, signal
from fedjx.core.execution import chunks
from tests.data.stateful import train
chunks._RESULT_BYTES, seen = 1, []
def on_chunk(round):
    seen.append(round)
    if seen.count({killed_in}) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
train(pathlib.Path.cwd(), {NUM_ROUNDS}, on_chunk)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # As many devices as here.
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    with opened(tmp_path / "states") as states:
        assert states.round == killed_in - 1
    started, server, states = train(tmp_path, NUM_ROUNDS)
    assert started == resumed_after
    assert bits(server) == bits(expected)
    expected_states = expected_states.copy()
    expected_states.pin(6)
    assert contents(states) == contents(expected_states)
    states.close()


def test_a_checkpoint_of_another_run_is_refused(whole, tmp_path):
    os.symlink(whole[0], tmp_path / "store")
    *_, states = train(tmp_path, 2)
    states.close()
    os.rename(tmp_path / "states", tmp_path / "gone")
    with opened(tmp_path / "states") as states:
        states.commit(2)
    with pytest.raises(ValueError, match="a run resumes with its own states"):
        train(tmp_path, 4)


def test_states_read_ahead_are_those_of_the_round_before(whole, tmp_path):
    """Chunks of examples are made ahead; states are taken when their chunk runs."""
    store, sample = Store(whole[0]), uniform_sampler(30, 12, seed=3)
    with opened(tmp_path / "states") as states:
        step, server = next_round.streamed(sink=states.sink), ZERO
        cohorts = (Cohort(store, sample(k), batch_size=2, lanes=1) for k in range(1, NUM_ROUNDS + 1))
        for cohort in step.ahead(cohorts):
            server, _ = step(server, cohort, states.cohort(cohort.ids))
            states.commit(states.round + 1)
        assert bits(server) == bits(whole[1])
        assert contents(states) == contents(whole[2])
