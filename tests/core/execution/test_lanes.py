"""How many clients run at once: tried while rounds run, and what must not change by it."""

import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjx
from fedjx.core.execution import lanes
from fedjx.core.execution.engine import PassStream
from fedjx.data import Cohort, FederatedData

SIZES = np.random.default_rng(0).integers(1, 60, 40)
DATA = FederatedData({"x": np.arange(SIZES.sum(), dtype=np.float32)}, np.cumsum([0, *SIZES]))
IDS = np.random.default_rng(1).permutation(40)
FASTER = {1: 1.0, 4: 0.5, 16: 0.3}  # seconds per client
SLOWER = {1: 1.0, 4: 0.5, 16: 0.49}


def one_device():
    return jax.make_mesh((1,), ("clients",), devices=jax.devices()[:1])


def summed(total, batch):
    return total + jnp.sum(jnp.where(batch["mask"], batch["x"], 0))


def of_two_passes():
    """A computation whose second pass needs what came of the first."""

    @fedjx.federated_computation
    def run(data):
        total = fedjx.federated_map(lambda d: fedjx.sequence_reduce(summed, 0.0, d), data)
        mean = fedjx.federated_broadcast(fedjx.federated_mean(total))
        distance = fedjx.federated_map(lambda d, mean: fedjx.sequence_reduce(summed, 0.0, d) - mean, data, mean)
        return fedjx.federated_sum(fedjx.federated_map(jnp.abs, distance))

    return run.streamed(mesh=one_device())


TOTALS = np.add.reduceat(np.arange(SIZES.sum(), dtype=np.float64), np.cumsum([0, *SIZES[:-1]]))


def expected(ids):
    return np.abs(TOTALS[ids] - TOTALS[ids].mean()).sum()


def clients(seed=0, **options):
    """A cohort of as many clients every time: all shapes are those of the first."""
    return Cohort(DATA, np.random.default_rng(seed).permutation(IDS)[:23], batch_size=4, **options)


@pytest.fixture
def measured(monkeypatch):
    """Lets lanes take the seconds of a table; shows which were asked for, and on how many clients."""

    def patch(table):
        tried = []

        def seconds(self, server, chunk, lanes):
            tried.append(lanes)
            return float(table[lanes] * np.sum(chunk.mask))

        monkeypatch.setattr(PassStream, "seconds", seconds)
        return tried

    return patch


@pytest.fixture
def compiled():
    """Records what is compiled: the step's programs, and in which threads."""
    found = []

    def listen(event, _, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append((threading.current_thread().name, "step" in str(fun_name)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def settled(run, *arguments):
    """The lanes of the rounds until they stay as they are."""
    lanes = []
    while not run.is_settled:
        run(*arguments)
        lanes.append(run.lanes)
    return lanes


@pytest.mark.parametrize(("table", "lanes"), [(FASTER, [1, 4, 16]), (SLOWER, [1, 4]), ({1: 1.0, 4: 0.96}, [1])])
def test_more_lanes_take_over_between_rounds_when_they_are_faster(measured, table, lanes):
    tried, run = measured(table), of_two_passes()
    run(clients())
    assert (run.lanes, run.is_settled, tried) == (1, False, [])  # nothing is measured in the first round
    ran = settled(run, clients())
    run(clients())
    assert sorted({*ran, run.lanes}) == lanes
    assert run.lanes == lanes[-1]
    compared = [pair for pair in zip((1, 4), (4, 16), strict=True) if pair[1] in table and pair[0] in lanes]
    assert tried == [number for pair in compared for number in pair]


def test_the_first_round_compiles_one_number_of_lanes_and_a_thread_the_others(measured, compiled):
    measured(FASTER)
    run = of_two_passes()
    run(clients())
    assert [thread for thread, is_step in compiled if is_step] == ["MainThread"] * 2  # one for each pass
    compiled.clear()
    settled(run, clients())
    assert [thread for thread, is_step in compiled if is_step] == ["fedjx-lanes"] * 4
    compiled.clear()
    for seed in range(50):
        run(clients(seed))
    assert compiled == []


def test_results_do_not_depend_on_when_lanes_change(measured):
    measured(FASTER)
    run = of_two_passes()
    seed, lanes = 0, set()
    while 16 not in lanes:
        cohort = clients(seed % 5)
        np.testing.assert_allclose(run(cohort), expected(cohort.ids), rtol=1e-5)
        seed, lanes = seed + 1, lanes | {run.lanes}
    assert lanes == {1, 4, 16}


def test_what_is_made_ahead_may_be_of_other_lanes(measured):
    measured(FASTER)
    run, number = of_two_passes(), 0
    for cohort in run.ahead(clients(seed, placement="streamed") for seed in range(10_000)):
        np.testing.assert_allclose(run(cohort), expected(clients(number).ids), rtol=1e-5)
        number += 1
        if run.is_settled and run.lanes == 16:
            break
    assert 3 < number < 10_000


@pytest.mark.parametrize("options", [{"lanes": 4}, {"ids": IDS[:3]}], ids=["said", "too few clients"])
def test_nothing_is_tried_where_there_is_nothing_to_choose(measured, options):
    tried, run = measured(FASTER), of_two_passes()
    cohort = Cohort(DATA, **{"ids": IDS, "batch_size": 4, **options})
    for _ in range(4):
        run(cohort)
    assert run.is_settled
    assert (run.lanes, tried) == (options.get("lanes", 1), [])
    assert "fedjx-lanes" not in [thread.name for thread in threading.enumerate()]


def test_lanes_that_are_said_hold_where_others_were_chosen(measured):
    measured(FASTER)
    run = of_two_passes()
    run(clients())
    settled(run, clients())
    run(clients(lanes=2))
    assert (run.lanes, run.is_settled) == (2, True)
    run(clients())
    assert run.lanes == 16


def test_of_a_cohort_without_a_client_there_is_nothing_to_learn():
    run = fedjx.federated_computation(
        lambda data: fedjx.federated_sum(fedjx.federated_map(lambda d: fedjx.sequence_reduce(summed, 0.0, d), data))
    ).streamed(mesh=one_device())
    for _ in range(3):
        assert run(Cohort(DATA, [], batch_size=4)) == 0
        assert not run.is_settled
    np.testing.assert_allclose(run(clients()), TOTALS[clients().ids].sum(), rtol=1e-6)
    assert not run.is_settled


def test_lanes_that_cannot_run_are_left_out_with_a_warning(measured, monkeypatch):
    measured({1: 1.0})
    run = of_two_passes()
    lower = PassStream.lowered

    class TooLarge:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(PassStream, "lowered", lambda *arguments: lower(*arguments) and TooLarge())
    run(clients())
    with pytest.warns(RuntimeWarning, match="4 clients at once cannot run, so 1 will: RESOURCE_EXHAUSTED"):
        settled(run, clients())
    assert run.lanes == 1
    np.testing.assert_allclose(run(clients()), expected(clients().ids), rtol=1e-5)


def test_another_error_in_the_thread_is_raised(measured, monkeypatch):
    measured({1: 1.0})
    run = of_two_passes()

    class Broken:
        def compile(self):
            raise KeyError("a mistake of ours")

    monkeypatch.setattr(PassStream, "lowered", lambda *_: Broken())
    run(clients())
    with pytest.raises(KeyError, match="a mistake of ours"):
        settled(run, clients())


def test_a_real_measurement_runs_the_programs_that_the_rounds_run():
    run = of_two_passes()
    settled(run, clients())
    run(clients())
    (kept,) = run._by_type.values()
    sizes = kept._passes[0]._step._cache_size()
    for seed in range(5):
        run(clients(seed))
    assert kept._passes[0]._step._cache_size() == sizes <= 3


SCRIPT = """
import logging, threading, jax, optax, fedjx
logging.getLogger("fedjx").setLevel(logging.ERROR)
train, _ = fedjx.data.digits(num_clients=40)
algorithm = fedjx.fed_avg(fedjx.models.mlp(10, input_shape=(8, 8, 1)), client_optimizer=optax.sgd(0.01))
state, step = algorithm.init(jax.random.key(0)), algorithm.next.streamed()
while "fedjx-lanes" not in [thread.name for thread in threading.enumerate()]:
    state, metrics = step(state, fedjx.data.Cohort(train, range(40), batch_size=20))
print(step.is_settled)
"""


def test_a_script_may_end_while_the_thread_compiles():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_a_script_of_few_rounds_compiles_no_lanes_for_later(measured, compiled, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lanes.time, "monotonic", lambda: now[0])
    measured(FASTER)
    run = of_two_passes()

    def round_of(seconds):
        now[0] += seconds
        run(clients())

    round_of(0)
    lanes_of = run._search
    lanes_of._first_end = 10.0  # as if it had taken ten seconds to compile
    now[0] = 10.0
    for _ in range(9):
        round_of(1)
    assert "fedjx-lanes" not in {thread for thread, _ in compiled}
    assert lanes_of._trial is None
    round_of(1)
    assert lanes_of._trial is not None
    lanes_of._trial.thread.join()
    assert {thread for thread, is_step in compiled if is_step} == {"MainThread", "fedjx-lanes"}
