"""Padding cannot be wrong: a function of one client sees what that client has, whoever made the padding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx import (
    Batches,
    Clients,
    Sequence,
    federated_broadcast,
    federated_client_ids,
    federated_computation,
    federated_map,
    federated_mean,
    sequence_map,
    sequence_reduce,
)
from fedjx.core.language.padding import filled, own_padding
from fedjx.core.language.values import gathered
from fedjx.data import Cohort, FederatedData
from tests.algorithms.problems import BATCH_SIZE, materialised

SIZES = (3, 1, 5, 11, 2, 7, 4)
IDS = (3, 1, 6, 0, 5)
EMPTY = 77


def mesh(num_devices: int) -> Any:
    return jax.make_mesh((num_devices,), ("clients",), devices=jax.devices()[:num_devices])


def own(k: int) -> np.ndarray:
    """All that client k has: nobody else has any of it, nor zero."""
    return np.float32(100 * (k + 1)) + np.arange(SIZES[k], dtype=np.float32)


DATA = FederatedData.from_clients([{"x": own(k), "y": own(k).astype(np.int32)} for k in range(len(SIZES))])


class Seen:
    """A computation of clients that look at everything without a mask, and of what they were shown."""

    def __init__(self) -> None:
        self.shown: dict[int, set[float]] = {}

        def show(k: Any, *values: Any) -> None:
            found = {float(v) for value in values for v in np.ravel(value)}
            self.shown.setdefault(int(k), set()).update(found)

        def look(data: Any, k: Any) -> Any:
            def step(total: Any, batch: Any) -> Any:
                jax.debug.callback(show, k, batch["x"], batch["y"])
                return total + jnp.max(batch["x"]) + jnp.max(batch["y"])

            whole = gathered(data).elements
            batches = sequence_map(lambda batch: (batch["x"], batch["y"]), data).elements
            every = jnp.concatenate([jnp.ravel(x.astype(jnp.float32)) for x in (whole["x"], whole["y"], *batches)])
            return jnp.min(every), jnp.max(every), sequence_reduce(step, jnp.float32(0), data)

        @federated_computation
        def results(data: Any) -> Any:
            return federated_map(look, data, federated_client_ids())

        self.run = results


def expected(ids: Any) -> dict[int, Any]:
    """What each client finds in its own arrays."""
    found = {k: [own(k)[s : s + BATCH_SIZE] for s in range(0, SIZES[k], BATCH_SIZE)] for k in ids if k != EMPTY}
    folded = {k: (own(k).min(), own(k).max(), sum(2 * batch.max() for batch in x)) for k, x in found.items()}
    return {k: folded.get(k, (0, 0, 0)) for k in ids}


def pooled(garbage: float) -> Clients:
    """Batches of a pool, a client without examples among them; client padding holds indices of anyone's."""
    clients = Cohort(DATA, IDS, batch_size=BATCH_SIZE).whole(num_steps=5, num_places=7)
    index, length = np.array(clients.value.elements.index), np.array(clients.value.length)
    if not np.isnan(garbage):
        index[5:], length[5:] = 11, -3
        index[0, 3:] = 2  # past the length
    index, length = np.append(index, np.full_like(index[:1], -1), axis=0), np.append(length, 0)
    pool = jax.tree.map(np.asarray, DATA.pool)
    ids, mask = np.append(clients.id, EMPTY).astype(np.int32), np.append(clients.mask, True)
    return Clients(Sequence(Batches(pool, index), length.astype(np.int32)), mask, ids)


def rectangles(garbage: float) -> Clients:
    return materialised(DATA, [EMPTY, *IDS], num_steps=5, num_clients=9, garbage=garbage)


EXECUTORS = {
    "one program": lambda run: jax.jit(run.in_graph()),
    "one program, four devices": lambda run: jax.jit(run.in_graph(mesh=mesh(4), lanes=2)),
    "one program, all clients of a device at once": lambda run: jax.jit(run.in_graph(mesh=mesh(4))),
    "while": lambda run: jax.jit(run.in_graph(lanes=3, differentiable=False)),
    "chunks of one": lambda run: run.streamed(mesh=mesh(1), lanes=1),
    "chunks of three": lambda run: run.streamed(mesh=mesh(1), lanes=3),
    "chunks, four devices": lambda run: run.streamed(mesh=mesh(4), lanes=2),
}


@pytest.mark.parametrize("feed", [pooled, rectangles])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_padding_holds_is_never_seen(feed, executor):
    seen = Seen()
    run = EXECUTORS[executor](seen.run)
    for garbage in (np.nan, 1e30, 101.0):  # the last one is an example of client 0
        found = run(feed(garbage)).members()
        assert {k: tuple(map(float, v)) for k, v in found.items()} == expected([*IDS, EMPTY])
    jax.effects_barrier()
    check(seen.shown)


@pytest.mark.parametrize("placement", ["resident", "streamed"])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_wherever_the_examples_are(placement, lanes, num_devices):
    seen = Seen()
    run = seen.run.streamed(mesh=mesh(num_devices))
    found = run(Cohort(DATA, IDS, batch_size=BATCH_SIZE, lanes=lanes, placement=placement)).members()
    assert {k: tuple(map(float, v)) for k, v in found.items()} == expected(IDS)
    jax.effects_barrier()
    check(seen.shown)


def check(shown: dict[int, set[float]]) -> None:
    """A client was shown all of its own and nothing else; one without examples zeros; padding what someone has."""
    anyone = {0.0}.union(*(own(k).tolist() for k in IDS))
    for k, values in shown.items():
        if k in (EMPTY, -1):
            assert values <= ({0.0} if k == EMPTY else anyone)
        else:
            assert values == set(own(k).tolist())
    assert set(IDS) <= shown.keys()


def test_what_is_not_the_clients_own_is_found():
    """The negative control: the check above sees one foreign example, and one that is missing."""
    shown = {k: set(own(k).tolist()) for k in IDS}
    check(shown)
    for wrong in ({**shown, 3: shown[3] | {101.0}}, {**shown, 3: shown[3] - {400.0}}, {**shown, EMPTY: {101.0}}):
        with pytest.raises(AssertionError):
            check(wrong)


@pytest.mark.parametrize("options", [{}, {"lanes": 2}, {"mesh": 4}])
def test_padding_does_not_reach_a_derivative(options):
    @federated_computation
    def loss(w, data):
        def client(w, data):
            return sequence_reduce(lambda total, e: total + jnp.linalg.norm(w * e), 0.0, data)

        return federated_mean(federated_map(client, federated_broadcast(w), data))

    random = np.random.default_rng(0)
    x, lengths = random.normal(size=(6, 3, 2)).astype(np.float32), np.array([3, 1, 2, 9, 3, 9], np.int32)
    mask = np.array([True, True, True, False, True, False])
    expected = np.mean([np.linalg.norm(x[c, : lengths[c]], axis=1).sum() for c in np.flatnonzero(mask)])
    x[1, 1:] = x[2, 2:] = x[~mask] = np.nan
    if options:
        options = {name: mesh(2) if name == "mesh" else n for name, n in options.items()}
    slope = jax.grad(lambda w: loss.in_graph(**options)(w, Clients.of(Sequence(x, lengths), mask=mask)))(2.0)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


# --- one value ------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
def test_the_first_that_is_real_fills_the_places_of_others(jit):
    fill = jax.jit(filled) if jit else filled
    x = np.array([[1, 2], [3, 4], [5, 6]], np.int8)
    assert fill(x, np.array([False, True, False])).tolist() == [[3, 4]] * 3
    assert fill(x, np.array([[False, False], [False, True], [True, False]])).tolist() == [[4, 4], [4, 4], [5, 4]]
    assert fill(x, np.zeros(3, bool)).tolist() == [[0, 0]] * 3
    assert fill(x, np.ones(3, bool)).tolist() == x.tolist()
    assert fill(x, np.zeros(3, bool)).dtype == jnp.int8
    assert fill(np.zeros((0, 2)), np.zeros(0, bool)).shape == (0, 2)
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = jax.random.key_data(fill(keys, np.array([False, True, True])))
    np.testing.assert_array_equal(drawn[0], jax.random.key_data(keys)[1])


def test_batches_with_a_hole_in_a_full_element():
    x = np.array([[7, -1], [-1, 9]])
    value = own_padding(Sequence({"x": x, "mask": x > 0}, 2))
    assert value.elements["x"].tolist() == [[7, 7], [7, 9]]
    assert value.elements["mask"].tolist() == [[True, False], [False, True]]
    index = own_padding(Sequence(Batches({"x": np.arange(10)}, x), 2)).elements
    assert (index.gather()["x"].tolist(), index.gather()["mask"].tolist()) == ([[7, 7], [7, 9]], (x > 0).tolist())


def test_what_is_no_batch_keeps_its_mask():
    """A client's state may have a mask that means something else."""
    state = {"w": np.arange(4.0), "mask": np.array([True, False, True, False])}
    sentences = Sequence({"length": np.arange(3), "mask": np.zeros((3, 2), bool)}, 3)
    jax.tree.map(np.testing.assert_array_equal, own_padding((state, sentences)), (state, sentences))


def test_sequences_in_a_sequence():
    inner = Sequence(np.array([[1, 2, 99], [99, 99, 99], [77, 77, 77]]), np.array([2, 0, 3]))
    value = own_padding(Sequence(inner, 2))
    assert value.elements.elements.tolist() == [[1, 2, 1], [0, 0, 0], [1, 2, 1]]
    assert value.elements.length.tolist() == [2, 0, 2]


def test_padding_is_filled_once():
    index = np.array([[-1, 4], [5, -1]])
    for value in (Sequence(Batches({"x": np.arange(9)}, index), 1), Sequence(index, 1), Batches({"x": index}, index)):
        once = own_padding(value)
        jax.tree.map(np.testing.assert_array_equal, own_padding(once), once)
