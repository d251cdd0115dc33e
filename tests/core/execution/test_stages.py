"""Stages of the server: compiled in a thread while what runs before them is."""

from __future__ import annotations

import threading

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fedjx.core.execution.stages import Stage
from tests.core.execution.test_lanes import clients, expected, of_two_passes, one_device


class TwoStages:
    """All that a stage reads of a program."""

    num_passes = 1

    def needed_after(self, level):
        return {0, 2}


def doubled(environment, more=0):
    if np.ndim(more):
        raise ValueError("this cannot be traced")
    return {**environment, 2: 2 * environment[1] + more}


@pytest.fixture
def compiled():
    """The threads in which stages are compiled."""
    found = []

    def listen(event, _, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration" and "added" in str(fun_name):
            found.append(threading.current_thread().name.removesuffix("_0"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_what_ends_a_pass_is_compiled_once_and_in_a_thread(compiled):
    run = of_two_passes()
    for seed in range(3):
        cohort = clients(seed, lanes=1)
        np.testing.assert_allclose(run(cohort), expected(cohort.ids), rtol=1e-5)
    assert sorted(compiled) == ["MainThread", "fedjx-stage", "fedjx-stage"]  # before the first pass, and after both


@pytest.mark.parametrize(("level", "left"), [(0, [0, 2]), (1, [0, 1, 2])])
def test_a_stage_leaves_what_is_needed_with_or_without_a_beginning(level, left, compiled):
    whole = NamedSharding(one_device(), PartitionSpec())
    environment = jax.device_put({0: np.float32(1), 1: np.float32(2)}, whole)
    stage, other = (Stage(TwoStages(), level, doubled, one_device()) for _ in range(2))
    for _ in range(2):
        stage.begin(environment)
    found = stage(environment)
    assert sorted(found) == left
    assert (found[0] is environment[0]) == (level == 0)
    assert float(found[2]) == 4
    assert compiled == ["fedjx-stage"]
    assert float(other(environment)[2]) == float(other(environment)[2]) == 4
    assert compiled == ["fedjx-stage", "MainThread"]
    assert float(stage(environment, 1)[2]) == 5  # what was begun for other arguments does not matter


def test_an_error_while_a_stage_is_traced_is_raised_where_it_begins():
    stage = Stage(TwoStages(), 1, doubled, one_device())
    with pytest.raises(ValueError, match="this cannot be traced"):
        stage.begin({1: np.float32(1)}, np.ones(2, np.float32))
