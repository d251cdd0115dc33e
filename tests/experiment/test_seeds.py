"""Seeds as lanes of one program: the same rows, cohorts and directories as one after the other."""

from __future__ import annotations

import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from benchmarks.measuring import Compilations
from fedjx.data import poisson_sampler
from fedjx.experiment import RunError, over_seeds, read_rows, run, run_seeds, seeds, sweep
from fedjx.models import linear

TRAIN = fedjx.data.digits(num_clients=20)[0]
MODEL = linear(10, input_shape=(8, 8, 1), scale=1 / 16)
ALGORITHM = fedjx.algorithms.fed_avg(MODEL, client_optimizer=optax.sgd(0.1, momentum=0.9))
SEEDS = [0, 3]


def sampler(seed):
    return poisson_sampler(20, probability=0.1, seed=seed)


def evaluate(state):
    return {"size": optax.tree.norm(state.params)}


OPTIONS = {
    "batch_size": 20, "num_rounds": 4, "evaluate": {"test": evaluate}, "evaluate_every": 2, "checkpoint_every": 2,
    "lanes": 1, "progress": False,
}  # fmt: skip


def alone(seed, **options):
    return run(ALGORITHM, TRAIN, sampler(seed), key=jax.random.key(seed), **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def expected():
    return {seed: alone(seed) for seed in SEEDS}


def check_same(found, expected):
    assert list(found) == list(expected)
    for seed, result in found.items():
        assert [row.keys() for row in result.rows] == [row.keys() for row in expected[seed].rows]
        for row, other in zip(result.rows, expected[seed].rows, strict=True):
            numbers = [[value for name, value in x.items() if name != "total/seconds"] for x in (row, other)]
            np.testing.assert_allclose(*numbers, rtol=1e-5)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            result.state.params,
            expected[seed].state.params,
        )
        assert result.reason == expected[seed].reason


def test_lanes_find_what_runs_one_after_the_other_do_with_one_program(expected):
    sizes = [len(sampler(seed)(r)) for seed in SEEDS for r in range(1, 5)]
    assert min(sizes) < max(sizes)
    counts = []

    def counted(state):
        counts.append(compiled.number)
        return evaluate(state)

    with Compilations() as compiled:
        found = run_seeds(ALGORITHM, TRAIN, sampler, seeds=SEEDS, **{**OPTIONS, "evaluate": {"test": counted}})
    check_same(found, expected)
    # Of each seed before the first round, after the second and after the fourth.
    assert len(counts) == 6
    assert counts[1] < counts[3] == counts[4]
    # Other seeds are other numbers.
    assert found[0].rows[-1]["train/loss"] != pytest.approx(found[3].rows[-1]["train/loss"], rel=1e-3)


def test_states_begin_with_the_bits_of_each_seed():
    states = over_seeds(ALGORITHM).init(jnp.stack([jax.random.key(seed) for seed in SEEDS]))
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x[1], y), states.params, ALGORITHM.init(jax.random.key(3)).params
    )


def test_directories_are_those_of_runs_and_seeds_at_different_rounds_go_on(expected, tmp_path):
    run_seeds(ALGORITHM, TRAIN, sampler, seeds=SEEDS, path=tmp_path, **{**OPTIONS, "num_rounds": 2})
    assert read_rows(tmp_path / "seed-0")[-1]["round"] == 2
    for seed in SEEDS:
        said = json.loads((tmp_path / f"seed-{seed}" / "ended.json").read_bytes())
        assert said == {"reason": "all 2 rounds are done", "error": ""}
    alone(3, path=tmp_path / "seed-3", start="resume")
    found = run_seeds(ALGORITHM, TRAIN, sampler, seeds=SEEDS, path=tmp_path, **OPTIONS)
    check_same(found, expected)
    with pytest.raises(RunError, match=r"got .*'batch_size': 10.* was .*'batch_size': 20.* in .*seed-0"):
        run_seeds(ALGORITHM, TRAIN, sampler, seeds=SEEDS, path=tmp_path, **{**OPTIONS, "batch_size": 10})


def test_seeds_that_do_not_fit_run_one_after_the_other(expected, tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "device_memory", lambda: 2.0**10)
    with pytest.warns(
        UserWarning, match=r"one after the other: as lanes they take \S+ GiB, and the device has 9.5e-07\."
    ):
        found = run_seeds(ALGORITHM, TRAIN, sampler, seeds=SEEDS[1:], path=tmp_path, **OPTIONS)
    check_same(found, {seed: expected[seed] for seed in SEEDS[1:]})
    monkeypatch.setattr("fedjx.data.cohort.device_memory", lambda: 1.0)
    nothing = {**OPTIONS, "num_rounds": 0, "evaluate": {}}
    with pytest.warns(UserWarning, match="one after the other: the examples are not resident on a device"):
        run_seeds(ALGORITHM, TRAIN, sampler, seeds=SEEDS, **nothing)
    scaffold = fedjx.algorithms.scaffold(MODEL, client_optimizer=optax.sgd(0.1), num_clients=20)
    with pytest.warns(UserWarning, match="one after the other: clients keep states, which are on disk"):
        run_seeds(scaffold, TRAIN, sampler, seeds=SEEDS, **nothing)


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals come to the main thread")
def test_a_sweep_of_lanes_that_is_told_to_end_goes_on_from_its_checkpoint(expected, tmp_path):
    numbers = []

    def told(state):
        numbers.append(int(state.round))
        if len(numbers) == 3:  # the first seed, after the second round
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(state)

    def train(rate, seeds, path):
        options = {**OPTIONS, "evaluate": {"test": told}, "checkpoint_every": 100}
        return run_seeds(ALGORITHM, TRAIN, sampler, seeds=seeds, path=path, **options)

    with pytest.raises(SystemExit, match="told to end"):
        sweep(train, {"rate": [1]}, seeds=SEEDS, path=tmp_path)
    found = sweep(train, {"rate": [1]}, seeds=SEEDS, path=tmp_path)
    assert numbers == [0, 0, 2, 2, 4, 4]
    for outcome in found.outcomes:
        rows = expected[outcome.seed].rows
        assert [row.keys() for row in outcome.rows] == [row.keys() for row in rows]
        np.testing.assert_allclose(outcome.rows[-1]["test/size"], rows[-1]["test/size"], rtol=1e-5)
