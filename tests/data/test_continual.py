"""Data that change between rounds: what is compiled, and that the shapes they are given change no result."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from benchmarks.measuring import Compilations
from fedjx.core.language.values import Batches, Sequence
from fedjx.data import Cohort, FederatedData
from fedjx.data.buckets import pool_rows
from fedjx.models import linear
from fedjx.training.client import local_train

NUM_CLIENTS = 6
WAYS = ["resident", "streamed", "whole"]


def made(sizes):
    """A data set of clients of these sizes, whose examples are numbers that are all different."""
    x = np.arange(1, 1 + sum(sizes), dtype=np.float32)
    return FederatedData({"x": np.repeat(x[:, None], 250, axis=1)}, np.cumsum([0, *sizes]))


def total(data):
    return fedjx.sequence_reduce(lambda so_far, batch: so_far + jnp.sum(batch["x"][:, 0] * batch["mask"]), 0.0, data)


@fedjx.federated_computation
def totals(data):
    return fedjx.federated_map(total, data)


def programs(way, rounds, num_steps=None):
    """How many programs each round compiles; the results are those of NumPy, so nobody sees what is beyond."""
    step = totals.in_graph() if way == "whole" else totals.streamed(mesh=jax.make_mesh((1,), ("clients",)))
    counts = []
    for sizes in rounds:
        data = made(sizes)
        cohort = Cohort(data, range(NUM_CLIENTS), batch_size=10, lanes=2, placement=way.replace("whole", "resident"))
        with Compilations() as compiled:
            result = step(cohort.whole(num_steps=num_steps) if way == "whole" else cohort)
        counts.append(compiled.number)
        np.testing.assert_array_equal(result.value, [data.client(k)["x"][:, 0].sum() for k in range(NUM_CLIENTS)])
    return counts


def random_sizes(low, high, seed=0):
    return np.random.default_rng(seed).integers(low, high, (10, NUM_CLIENTS)).tolist()


@pytest.mark.parametrize("way", WAYS)
def test_data_of_other_sizes_compile_nothing_after_the_first_rounds(way):
    for rounds in (random_sizes(1, 60), random_sizes(60, 80, seed=1), [[60, k, 1, 1, 1, 1] for k in range(1, 11)]):
        counts = programs(way, rounds, num_steps=8)
        assert counts[0] > 0
        assert sum(counts[3:]) == 0, f"programs compiled in rounds 1 to 10: {counts}"


@pytest.mark.parametrize("way", WAYS)
def test_data_that_grow_compile_once_for_each_bucket(way):
    """From 6 to 3,072 examples and back: a program for each shape, and none for a shape that was there."""
    rounds = [[8**k] * NUM_CLIENTS for k in range(4)]
    counts = programs(way, rounds + rounds)
    assert sum(count > 0 for count in counts[:4]) > 1, "nothing compiles again: this test cannot fail"
    assert counts[4:] == [0] * 4


def test_what_a_bucket_adds_changes_nothing():
    """Training on a pool of just the rows that there are, to the bit, and on just the steps, up to rounding."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(27, 4)).astype(np.float32), random.integers(0, 3, 27).astype(np.int32)
    data = FederatedData({"x": x, "y": y}, np.array([0, 27]))
    assert len(data.pool["x"]) > 27
    model, index = linear(3, input_shape=(4,)), Cohort(data, [0], batch_size=5).whole(num_steps=16).value.elements.index

    @jax.jit
    def trained(pool, index):
        rows = Sequence(Batches(pool, index), 6)
        start = {"head": {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}}
        return local_train(model, start, rows, jax.random.key(1), optimizer=optax.sgd(0.1, momentum=0.9)).params

    exact = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    in_bucket = trained(data.pool, index[0])
    jax.tree.map(np.testing.assert_array_equal, in_bucket, trained(exact, index[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), in_bucket, trained(exact, index[0, :6]))


def test_pools_have_few_shapes_and_take_little_more_memory():
    row_bytes = 3072
    rows = np.unique(np.geomspace(1, 3e6, 4000).astype(int))
    given = np.array([pool_rows(int(n), row_bytes) for n in rows])
    extra = (given - rows) * row_bytes
    assert (extra >= 0).all()
    assert ((extra < 1 << 20) | (given < 2 * rows)).all()
    assert extra.max() < 1 << 28
    assert len(set(given[rows * row_bytes < 1 << 28])) <= 10
