import functools
import threading
import time

import jax
import numpy as np
import optax
import pytest

import fedjx
from fedjx import federated_computation
from fedjx.core.execution.ahead import Room
from fedjx.core.execution.devices import Placer
from fedjx.core.language.shares import Share
from fedjx.data import Cohort
from tests.algorithms.problems import BATCH_SIZE, dropout_model, federated_data

ALGORITHM = fedjx.fed_avg(dropout_model(), client_optimizer=optax.adam(0.1))
DATA = federated_data()
ROUNDS = [np.random.default_rng(r).permutation(10)[:6] for r in range(4)]


@functools.cache
def streamed(num_devices=4):
    """What all tests share, to compile it once."""
    return ALGORITHM.next.streamed(
        mesh=jax.make_mesh((num_devices,), ("clients",), devices=jax.devices()[:num_devices])
    )


@functools.cache
def start():
    return ALGORITHM.init(jax.random.key(0))


def trained(step, cohorts):
    state = start()
    for cohort in cohorts:
        state, _ = step(state, cohort)
    return state.params


def cohorts(placement):
    return [Cohort(DATA, ids, batch_size=BATCH_SIZE, lanes=2, placement=placement) for ids in ROUNDS]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_reading_ahead_and_the_placement_of_pools_change_no_bit(placement, num_devices):
    step = streamed(num_devices)
    expected = trained(step, cohorts("resident"))
    assert_equal(trained(step, cohorts(placement)), expected)
    assert_equal(trained(step, step.ahead(iter(cohorts(placement)), num_chunks=1)), expected)
    others = [Cohort(DATA, range(6), batch_size=BATCH_SIZE, lanes=2)] * 4
    with pytest.raises(AssertionError):
        assert_equal(trained(step, others), expected)


def test_chunks_are_made_in_another_thread_before_they_are_read(monkeypatch):
    made_by = []
    plan = Cohort.members

    def members(self, ids, mask, share):
        if len(ids) > 1:
            made_by.append(threading.current_thread().name)
        return plan(self, ids, mask, share)

    monkeypatch.setattr(Cohort, "members", members)
    step = streamed()
    trained(step, step.ahead(cohorts("streamed")))
    assert made_by == ["MainThread"] + ["fedjx-ahead"] * 3


def test_only_what_others_may_write_to_is_copied(monkeypatch):
    placed, chunk = [], Placer.chunk

    def recorded(self, clients, **options):
        placed.append((clients, chunk(self, clients, **options)))
        return placed[-1][1]

    monkeypatch.setattr(Placer, "chunk", recorded)
    step = streamed(1)
    trained(step, step.ahead(cohorts("streamed")[:2]))
    num_made = len(placed)
    trained(step, [list(cohorts("streamed")[0])])
    copied = [any(a is not b for a, b in zip(*map(jax.tree.leaves, pair), strict=True)) for pair in placed]
    assert copied == [False] * num_made + [True] * (len(placed) - num_made)
    assert 0 < num_made < len(placed)


def test_a_streamed_chunk_holds_the_examples_of_its_own_clients_only():
    cohort = Cohort(DATA, range(10), batch_size=BATCH_SIZE, placement="streamed")
    ids = np.array([3, 7, 7, 0])
    chunk = cohort.members(ids, np.array([True, True, False, True]), Share(2))
    pool, index = chunk.value.elements.pool["y"], chunk.value.elements.index
    assert not chunk.value.elements.shared
    parts = pool.reshape(2, -1)
    for c, k in enumerate(ids):
        rows = index[c][index[c] >= 0]
        np.testing.assert_array_equal(parts[c // 2][rows], DATA.client(k)["y"])
    # Past its own clients' rows a part has zeros, and no more than 1 MiB of them.
    for part, own in zip(parts, ids.reshape(2, 2), strict=True):
        num_rows = DATA.sizes[own].sum()
        assert not any(part[num_rows:])
        assert 64 <= len(part) < num_rows + (1 << 20) / (DATA.num_bytes / DATA.num_examples)


@pytest.mark.parametrize("error", [KeyError("lost"), OSError("gone")])
def test_an_error_in_the_thread_reaches_the_reader(error):
    def failing():
        yield from cohorts("streamed")[:2]
        raise error

    step = streamed()
    with pytest.raises(type(error)):
        trained(step, step.ahead(failing()))

    class Broken(Cohort):
        def members(self, ids, mask, share):
            raise error

    with pytest.raises(type(error)):
        trained(step, step.ahead([cohorts("streamed")[0], Broken(DATA, ROUNDS[1], batch_size=BATCH_SIZE, lanes=2)]))


def test_the_thread_ends_with_the_loop():
    step = streamed()
    state = start()
    for number, cohort in enumerate(step.ahead(cohorts("streamed")[0] for _ in range(10**9))):
        if number != 1:  # a cohort that nobody reads holds nothing up
            state, _ = step(state, cohort)
        if number == 5:
            break
    del cohort
    for thread in threading.enumerate():
        if thread.name == "fedjx-ahead":
            thread.join(timeout=10)
            assert not thread.is_alive()
    assert int(state.round) == 5


def waiting_at_most(monkeypatch, placement, expected, **limits):
    """Trains slowly on chunks made ahead; returns the most that waited of them, in number and in bytes."""
    most = [0, 0]
    enter = Room.enter

    def recorded(self):
        is_open = enter(self)
        waiting = [limits.get("num_chunks", 4) - self._free, limits.get("max_bytes", 1 << 30) - self._free_bytes]
        most[:] = [max(pair) for pair in zip(most, waiting, strict=True)]
        return is_open

    monkeypatch.setattr(Room, "enter", recorded)
    step = streamed(1)
    for number, cohort in enumerate(step.ahead(cohorts(placement) * 2, **limits)):
        if number == 1:
            end = time.monotonic() + 60
            while most[0] < expected and time.monotonic() < end:
                time.sleep(0.01)  # The thread fills the room meanwhile.
        step(start(), cohort)
    return most


def test_what_waits_is_bounded_in_number_and_in_bytes(monkeypatch):
    number, num_bytes = waiting_at_most(monkeypatch, "streamed", 3, num_chunks=3)
    assert number == 3
    assert num_bytes > 1000
    # A chunk is begun while there is any room, and counted when it is made.
    number, few_bytes = waiting_at_most(monkeypatch, "streamed", 1, num_chunks=3, max_bytes=1)
    assert (number, few_bytes) == (1, 0)
    # A resident pool is not what waits.
    _, plans = waiting_at_most(monkeypatch, "resident", 3, num_chunks=3)
    assert 0 < plans < num_bytes


def test_many_rounds_in_one_program_equal_the_loop():
    planned = [fedjx.data.Cohort(DATA, ids, batch_size=BATCH_SIZE) for ids in ROUNDS]
    expected, losses = start(), []
    for cohort in planned:
        expected, metrics = ALGORITHM.next(expected, cohort.whole(num_steps=3))
        losses.append(metrics["loss"])
    for mesh, lanes in ((None, None), (None, 2), (jax.make_mesh((4,), ("clients",)), 1)):
        state, metrics = ALGORITHM.next.scanned(mesh=mesh, lanes=lanes)(start(), planned)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.params, expected.params)
        np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
        assert int(state.round) == 4


def test_rounds_in_one_program_need_one_shape_and_one_pool():
    run, state = ALGORITHM.next.scanned(), start()
    first = fedjx.data.Cohort(DATA, [0, 1], batch_size=BATCH_SIZE).whole(num_steps=3)
    with pytest.raises(ValueError, match="need equal shapes"):
        run(state, [first, fedjx.data.Cohort(DATA, [0, 1], batch_size=BATCH_SIZE + 1)])
    with pytest.raises(ValueError, match="need one pool; got several"):
        run(state, [first, fedjx.data.Cohort(federated_data(), [0, 1], batch_size=BATCH_SIZE).whole(num_steps=3)])
    with pytest.raises(ValueError, match="at least one round is run; got no cohort"):
        run(state, [])
    with pytest.raises(TypeError, match=r"take a list of cohorts; got a Cohort alone. Wrap it"):
        run(state, fedjx.data.Cohort(DATA, [0, 1], batch_size=BATCH_SIZE))  # its chunks are no rounds
    with pytest.raises(TypeError, match=r"a round is of a cohort; got list"):
        run(state, [[0, 1]])
    with pytest.raises(TypeError, match=r"got one Cohort. Wrap it"):
        next(ALGORITHM.next.streamed().ahead(fedjx.data.Cohort(DATA, [0, 1], batch_size=BATCH_SIZE)))
    three = federated_computation(lambda state, data, states: (state, data))
    with pytest.raises(TypeError, match=r"are of \(state, data\); .* takes \(state, data, states\)"):
        three.scanned()


def test_chunks_made_for_other_devices_are_not_read():
    step, other = streamed(), streamed(1)
    state = start()
    for number, cohort in enumerate(step.ahead(cohorts("streamed")[:2])):
        if number == 0:
            step(state, cohort)
        else:
            read = other(state, cohort)[0].params
    assert_equal(read, other(state, cohorts("resident")[1])[0].params)
