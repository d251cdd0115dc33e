"""Tests of cohort plans: what is gathered is what the client owns, in few shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjx
from fedjx.core.language.shares import Share
from fedjx.core.language.values import Batches, Clients, Sequence
from fedjx.data import ClientStates, Cohort, FederatedData, central

BUCKETS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96]


def federated(sizes):
    """Examples that are all different from one another and from zero."""
    num_examples = sum(sizes)
    x = 100 + np.arange(2 * num_examples, dtype=np.int32).reshape(num_examples, 2)
    return FederatedData({"x": x, "y": np.arange(num_examples, dtype=np.int32)}, np.cumsum([0, *sizes]))


def heavy_tailed(num_clients=200, seed=0):
    return federated(np.random.default_rng(seed).geometric(0.03, num_clients).tolist())


def gathered(clients, c):
    """The real examples of lane c, in order, by gathering its batches."""
    sequence = clients.value
    batches = Batches(sequence.elements.pool, sequence.elements.index[c]).gather()
    mask = np.asarray(batches["mask"])
    assert not mask[int(sequence.length[c]) :].any(), "an example lies past the length of the sequence"
    return {name: np.asarray(batches[name])[mask] for name in ("x", "y")}


def test_form():
    clients = Cohort(federated([5, 1, 3]), [2, 0], batch_size=2).whole(num_places=4)
    assert isinstance(clients, Clients)
    assert isinstance(clients.value, Sequence)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(clients.value.elements.pool))
    assert isinstance(clients.value.elements.index, np.ndarray)
    assert clients.value.elements.index.shape == (4, 3, 2)
    assert clients.value.elements.index.dtype == jnp.int32
    assert clients.value.length.shape == (4,)
    assert clients.value.length.dtype == jnp.int32
    assert clients.mask.tolist() == [True, True, False, False]
    assert clients.mask.dtype == bool
    assert clients.id.tolist() == [2, 0, -1, -1]
    assert clients.id.dtype == jnp.int32


def test_plan_by_hand():
    clients = Cohort(federated([5, 1, 3]), [2, 0], batch_size=2).whole(num_steps=4)
    assert clients.value.elements.index.tolist() == [
        [[6, 7], [8, -1], [-1, -1], [-1, -1]],
        [[0, 1], [2, 3], [4, -1], [-1, -1]],
    ]
    assert clients.value.length.tolist() == [2, 3]


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_each_example_of_a_client_appears_once_in_order(batch_size):
    data = heavy_tailed()
    ids = np.random.default_rng(1).permutation(data.num_clients)[:50]
    clients = Cohort(data, ids, batch_size=batch_size).whole()
    assert clients.id.tolist() == ids.tolist()
    np.testing.assert_array_equal(clients.value.length, -(-data.sizes[ids] // batch_size))
    for c, k in enumerate(ids):
        own = data.client(k)
        for name, column in gathered(clients, c).items():
            np.testing.assert_array_equal(column, own[name])


def test_only_the_last_batch_is_short():
    mask = np.asarray(Cohort(heavy_tailed(), range(200), batch_size=8).whole().value.elements.index) >= 0
    full = mask.sum(-1)
    for c, length in enumerate(-(-heavy_tailed().sizes // 8)):
        assert (full[c, : length - 1] == 8).all()
        assert 1 <= full[c, length - 1] <= 8
        assert not full[c, length:].any()


def test_padding_clients_are_copies_of_the_first():
    clients = Cohort(federated([5, 1, 3]), [1, 0], batch_size=2).whole(num_places=5)
    for c in (2, 3, 4):
        np.testing.assert_array_equal(clients.value.elements.index[c], clients.value.elements.index[0])
        assert clients.value.length[c] == 1
    assert clients.members().keys() == {0, 1}


def test_the_pool_is_shared_between_cohorts():
    data = federated([2, 3])
    first, second = Cohort(data, [0], batch_size=1).whole(), Cohort(data, [1], batch_size=2).whole()
    assert first.value.elements.pool["x"] is second.value.elements.pool["x"] is data.pool["x"]


@pytest.mark.parametrize(("num_batches", "capacity"), [(b, min(s for s in BUCKETS if s >= b)) for b in range(1, 65)])
def test_capacity_is_the_next_bucket(num_batches, capacity):
    clients = Cohort(federated([num_batches * 3 - 2, 1]), [0, 1], batch_size=3).whole()
    assert clients.value.elements.index.shape == (2, capacity, 3)


def test_random_cohorts_have_few_shapes():
    data, random = heavy_tailed(2000), np.random.default_rng(2)
    cohorts = [Cohort(data, random.choice(2000, 10, replace=False), batch_size=4).whole() for _ in range(100)]
    shapes = {clients.value.elements.index.shape for clients in cohorts}
    longest = {int(clients.value.length.max()) for clients in cohorts}
    assert len(shapes) <= 8 < 20 <= len(longest)
    assert all(capacity in BUCKETS for _, capacity, _ in shapes)


@pytest.mark.parametrize("lanes", [1, 7, 64, 200, 300])
def test_chunks_hold_every_client_once(lanes):
    data = heavy_tailed()
    ids = np.random.default_rng(3).permutation(200)[:150]
    chunks = Cohort(data, ids, batch_size=5, lanes=lanes)
    seen = []
    for chunk in chunks:
        assert chunk.num_clients == lanes
        for c in np.flatnonzero(chunk.mask):
            k = int(chunk.id[c])
            np.testing.assert_array_equal(gathered(chunk, c)["y"], data.client(k)["y"])
            seen.append(k)
    assert sorted(seen) == sorted(ids.tolist())
    assert len(list(chunks)) == -(-150 // lanes)


def test_chunks_are_longest_first_and_little_padded():
    data = heavy_tailed()
    chunks = list(Cohort(data, range(200), batch_size=5, lanes=8))
    sizes = np.concatenate([data.sizes[np.asarray(chunk.id)[np.asarray(chunk.mask)]] for chunk in chunks])
    assert (np.diff(-(-sizes // 5)) <= 0).all()
    assert len(sizes) == 200
    floor = int((-(-data.sizes // 5)).sum())
    executed = sum(8 * int(chunk.value.length.max()) for chunk in chunks)  # a loop ends with its longest client
    assert floor <= executed < 1.15 * floor < 3 * floor < 200 * max(-(-data.sizes // 5))
    assert len({chunk.value.elements.index.shape for chunk in chunks}) <= 3


def test_chunks_can_be_iterated_again():
    chunks = Cohort(heavy_tailed(), range(20), batch_size=5, lanes=8)
    first, second = ([chunk.id.tolist() for chunk in chunks] for _ in range(2))
    assert first == second
    assert len(first) == 3


@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
def test_central_is_all_examples_in_order(batch_size):
    data = federated([5, 1, 3])
    for sequence in (central(data, batch_size=batch_size), central(data.examples, batch_size=batch_size)):
        assert sequence.elements.index.shape == (-(-9 // batch_size), batch_size)
        assert sequence.length == -(-9 // batch_size)
        assert sequence.length.dtype == jnp.int32
        batches = sequence.elements.gather()
        for name, column in data.examples.items():
            np.testing.assert_array_equal(np.asarray(batches[name])[np.asarray(batches["mask"])], column)


DATA = federated([5, 1, 3])


@pytest.mark.parametrize(
    ("ids", "options", "error", "message"),
    [
        ([0, 3, -1], {}, ValueError, r"clients of the data set, 3 from 0 to 2; got \[3, -1\] \(2 in all\)"),
        ([0.0, 1.0], {}, TypeError, r"ids need to be a vector of integers; got float64\[2\]"),
        ([True, False, True], {}, TypeError, r"vector of integers; got bool\[3\]"),
        ([[0, 1]], {}, TypeError, r"vector of integers; got int64\[1, 2\]"),
        ([0], {"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1; got batch_size=0"),
    ],
)
def test_errors_of_cohorts(ids, options, error, message):
    with pytest.raises(error, match=message):
        Cohort(DATA, ids, lanes=2, **{"batch_size": 2, **options})


def test_errors_of_capacities():
    with pytest.raises(ValueError, match="got num_steps=2 and 3 batches for client 0"):
        Cohort(DATA, [1, 0], batch_size=2).whole(num_steps=2)
    with pytest.raises(ValueError, match="got num_places=1 for 2 ids"):
        Cohort(DATA, [1, 0], batch_size=2).whole(num_places=1)
    with pytest.raises(ValueError, match="lanes must be an integer of at least 1; got lanes=0"):
        Cohort(DATA, [0], batch_size=2, lanes=0)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1; got batch_size=-1"):
        central(DATA, batch_size=-1)


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_streamed_pools_are_placed_on_a_cpu_without_a_copy(num_devices):
    data = FederatedData({"x": np.arange(30, dtype=np.int8).reshape(10, 3), "y": np.ones(10)}, np.array([0, 3, 4, 10]))
    cohort = Cohort(data, [0, 1, 2, 1], batch_size=2, placement="streamed")
    pool = cohort.members(np.array([0, 1, 2, 1]), np.ones(4, bool), Share(num_devices)).value.elements.pool
    for column in pool.values():
        for part in np.split(column, num_devices):
            if column.dtype.itemsize < 8:  # Wider ones are made narrower on the way.
                assert jax.device_put(part).unsafe_buffer_pointer() == part.ctypes.data
            assert part.ctypes.data % 64 == 0


def totals(clients):
    """Per client the sum of its examples; traced once for whatever holds them."""
    return fedjx.federated_map(lambda data: fedjx.sequence_reduce(add, jnp.float32(0), data), clients)


def add(total, batch):
    return total + jnp.sum(jnp.where(batch["mask"], batch["x"], 0.0))


@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_the_whole_cohort_is_what_its_chunks_are(placement):
    """In one program, on devices among which it must be divided, and under a transformation of a user's own."""
    data = FederatedData({"x": np.arange(9, dtype=np.float32)}, np.array([0, 5, 6, 9]))
    clients = Cohort(data, [2, 0, 1, 0], batch_size=2, placement=placement, lanes=1)
    total = fedjx.federated_computation(totals)
    mesh = jax.make_mesh((4,), ("clients",))
    for run in (total, total.in_graph(), total.in_graph(mesh=mesh, lanes=1), lambda c: jax.jit(total)(c.whole())):
        assert np.asarray(run(clients).value).tolist() == [21.0, 10.0, 5.0, 10.0]
    padded = total(clients.whole(num_steps=4, num_places=6))
    assert np.asarray(padded.mask).tolist() == [True] * 4 + [False] * 2
    assert np.asarray(padded.value)[:4].tolist() == [21.0, 10.0, 5.0, 10.0]


def test_a_cohort_within_a_transformation_is_taken_whole():
    @fedjx.federated_computation
    def scaled(scale, clients):
        return fedjx.federated_sum(
            fedjx.federated_map(lambda s, x: s * x, fedjx.federated_broadcast(scale), totals(clients))
        )

    data = FederatedData({"x": np.arange(9, dtype=np.float32)}, np.array([0, 5, 6, 9]))
    clients = Cohort(data, [2, 0], batch_size=2)
    assert float(jax.grad(lambda scale: scaled(scale, clients))(2.0)) == 31.0
    assert jax.vmap(lambda scale: scaled(scale, clients))(jnp.arange(3.0)).tolist() == [0.0, 31.0, 62.0]
    assert float(jax.jit(lambda: scaled(2.0, clients))()) == 62.0
    with pytest.raises(TypeError, match="Use in_graph under jit"):
        jax.grad(lambda scale: scaled(scale, list(clients)))(2.0)


@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_nobody_is_a_chunk_of_padding(placement):
    clients = Cohort(DATA, [], batch_size=2, placement=placement)
    for chunk in (*clients, clients.whole(), clients.whole(num_places=3)):
        assert not np.asarray(chunk.mask).any()
        assert set(np.asarray(chunk.id).tolist()) == {-1}
    count = fedjx.federated_computation(lambda clients: fedjx.federated_sum(fedjx.federated_map(ones, clients)))
    assert [int(run(clients)) for run in (count, count.in_graph(), count.streamed(lanes=2))] == [0, 0, 0]
    assert len(clients.ids) == len(clients.sizes) == 0
    assert int(count(Cohort(DATA, [1, 1], batch_size=2))) == 2, "nobody says how many run at once for good"


def ones(data):
    del data
    return jnp.int32(1)


def test_a_cohort_of_nobody_goes_with_states(tmp_path):
    @fedjx.federated_computation
    def totals(clients, states):
        return fedjx.federated_sum(fedjx.federated_map(lambda data, state: state + ones(data), clients, states)), states

    clients = Cohort(DATA, [], batch_size=2)
    with ClientStates(tmp_path / "states", np.float32(7), num_clients=3) as states:
        for run in (totals, totals.in_graph(), totals.streamed(lanes=2)):
            total, rows = run(clients, states.cohort(clients.ids))
            assert float(total) == 0
            assert not np.asarray(rows.mask).any()


def test_a_cohort_keeps_the_ids_that_it_was_given():
    ids = np.array([1, 2])
    clients = Cohort(DATA, ids, batch_size=2)
    ids[0] = 0
    assert clients.ids.tolist() == [1, 2]
    with pytest.raises(TypeError, match=r"got Cohort\(list, FederatedData\). Pass the data, then the ids"):
        Cohort([1], DATA, batch_size=2)


def test_what_is_of_another_client_is_never_paired_where_ids_are_traced():
    @fedjx.federated_computation
    def total(x, y):
        return fedjx.federated_sum(fedjx.federated_map(jnp.multiply, x, y))

    x, y = (Clients.of(np.array([2.0, 3.0]), ids=[4, 7]), Clients.of(np.array([10.0, 100.0]), ids=[7, 4]))
    with pytest.raises(ValueError, match="the same clients in the same order"):
        total(x, y)
    assert float(jax.jit(total)(x, y)) == 0.0
    assert float(jax.jit(total)(x, Clients.of(y.value, ids=x.id))) == 320.0
