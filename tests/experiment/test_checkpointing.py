"""Checkpoints in a background thread: what is saved is what was given, and clients' states go back with it."""

from __future__ import annotations

import os
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.data import ClientStates
from fedjx.experiment import Best, Checkpoint, Checkpointer, RunError, last_checkpoint, open_run
from fedjx.experiment.run_directory import checkpoints

STATE = {"w": np.zeros(2)}


def test_what_is_saved_is_the_state_as_it_was_given(tmp_path):
    is_changed = threading.Event()
    with open_run(tmp_path, {}) as run, Checkpointer(run) as saved:
        state = {"donated": jnp.arange(3), "changed": np.arange(3)}
        saved.save(Checkpoint(1, state), before=lambda: is_changed.wait(20))
        state["donated"].delete()
        state["changed"][:] = 7
        is_changed.set()
    with open_run(tmp_path, {}, start="resume") as run:
        found = last_checkpoint(run, {"donated": jnp.zeros(3, int), "changed": np.zeros(3, int)})
    assert (found.state["donated"].tolist(), found.state["changed"].tolist()) == ([0, 1, 2], [0, 1, 2])


def test_as_many_stay_as_are_asked_for(tmp_path):
    with open_run(tmp_path, {}) as run, Checkpointer(run, keep=1, best=Best("x", 2, "min")) as saved:
        for number, x in enumerate([3.0, 1.0, 2.0, 4.0, np.nan, 5.0], 1):
            saved.save(Checkpoint(number, STATE, metrics={"x": x}))
    assert [int(found.name) for found in checkpoints(tmp_path)] == [2, 3, 6]


def test_clients_states_go_back_to_each_checkpoint_that_stays(tmp_path):
    best = Best("x")

    def opened(run):
        states = ClientStates(tmp_path / "client_states", {"visits": np.int32(0)}, num_clients=4)
        return states, Checkpointer(run, keep=2, best=best, client_states=states)

    with open_run(tmp_path, {}) as run:
        states, saved = opened(run)
        with states, saved:
            for number in range(1, 7):
                states.put([number % 4], {"visits": np.array([number], np.int32)})
                states.commit(number, durable=False)
                saved.save(Checkpoint(number, STATE, metrics={"x": -number}))
                on_disk = ClientStates(states.path, {"visits": np.int32(0)}, num_clients=4, writable=False)
                assert on_disk.round == number  # before the checkpoint that needs it
            saved.wait()
            assert states.rounds == [4, 5, 6]  # of those that were there when the last one began
    assert [int(found.name) for found in checkpoints(tmp_path)] == [1, 5, 6]

    os.truncate(checkpoints(tmp_path)[-1] / "about.json", 3)
    with open_run(tmp_path, {}, start="resume") as run:
        states, saved = opened(run)
        with states, saved:
            with pytest.warns(UserWarning, match="set aside"):
                found = saved.restore(STATE)
            assert found.round == states.round == 5
            assert states.take([0, 1, 2, 3])["visits"].tolist() == [4, 5, 2, 3]

    os.truncate(checkpoints(tmp_path)[-1] / "about.json", 3)
    with open_run(tmp_path, {}, start="resume") as run:
        states, saved = opened(run)
        message = r"clients' states of its round; got round 1, and .*client_states has \[4, 5\]. Begin anew"
        with states, saved, pytest.warns(UserWarning, match="set aside"), pytest.raises(RunError, match=message):
            saved.restore(STATE)
