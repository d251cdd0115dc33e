"""Tests of the device forms: cohorts, sequences and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx import Batches, Clients, Sequence
from fedjx.core.language.values import gathered, per_client, stack


def test_clients_of_counts_from_zero():
    clients = Clients.of({"x": np.zeros((3, 2)), "y": np.zeros(3)})
    assert clients.num_clients == 3
    assert clients.mask.tolist() == [True] * 3
    assert clients.id.tolist() == [0, 1, 2]
    assert (clients.mask.dtype, clients.id.dtype) == (bool, jnp.int32)


def test_clients_of_takes_ids_and_mask():
    clients = Clients.of(np.zeros((3, 2)), ids=[7, -1, 5], mask=[1, 0, 1])
    assert clients.id.tolist() == [7, -1, 5]
    assert clients.mask.tolist() == [True, False, True]


def test_members_are_what_real_clients_hold():
    clients = Clients.of({"x": jnp.arange(6.0).reshape(3, 2)}, ids=[7, -1, 5], mask=[True, False, True])
    members = clients.members()
    assert members.keys() == {7, 5}
    np.testing.assert_array_equal(members[7]["x"], [0, 1])
    np.testing.assert_array_equal(members[5]["x"], [4, 5])
    assert isinstance(members[5]["x"], np.ndarray)


def test_the_pools_of_clients_have_no_clients_axis():
    batches = Batches({"x": np.zeros(10)}, np.zeros((3, 2, 4), np.int32))
    assert Clients.of(Sequence(batches, np.zeros(3, np.int32))).num_clients == 3


@pytest.mark.parametrize(
    ("value", "options", "sizes"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros(2)}, {}, r"\['2', '3'\]"),
        ({"x": np.zeros((3, 2)), "y": 1.0}, {}, r"\['3', 'None'\]"),
        (np.zeros(3), {"ids": [0, 1]}, r"\['2', '3'\]"),
        (np.zeros(3), {"mask": [True] * 4}, r"\['3', '4'\]"),
        ((), {}, r"\[\]"),
    ],
)
def test_clients_need_one_leading_axis(value, options, sizes):
    message = rf"leaf of a CLIENTS value needs the number of clients as its leading axis; got sizes {sizes}\. Stack one"
    with pytest.raises(ValueError, match=message):
        Clients.of(value, **options)


@pytest.mark.parametrize("make", [lambda: Clients.of(np.zeros((0, 2))), lambda: stack([])])
def test_no_client_is_no_cohort(make):
    with pytest.raises(
        ValueError, match=r"a cohort needs at least one client; got 0\. Sample again, or skip the round\."
    ):
        make()


def test_sequence_of_is_full():
    sequence = Sequence.of({"x": np.zeros((4, 2)), "y": np.zeros(4)})
    assert sequence.length == 4
    assert sequence.length.dtype == jnp.int32
    assert Sequence.of(np.zeros((0, 2))).length == 0


@pytest.mark.parametrize(
    ("elements", "sizes"),
    [((np.zeros(3), np.zeros(2)), r"\['2', '3'\]"), (1.0, r"\['None'\]"), ((), r"\[\]")],
)
def test_sequences_need_one_leading_axis(elements, sizes):
    message = (
        rf"the leaves of a sequence need one common leading axis; got sizes {sizes}\. Stack the elements along axis 0"
    )
    with pytest.raises(ValueError, match=message):
        Sequence.of(elements)


def test_gather_pads_with_a_real_example():
    pool = {"x": np.array([[5, 6], [7, 8], [9, 10]], np.uint8), "y": np.array([1.5, 2.5, 3.5], np.float32)}
    batch = Batches(pool, np.array([[2, 1], [-1, 0]], np.int32)).gather()
    assert batch["x"].tolist() == [[[9, 10], [7, 8]], [[5, 6], [5, 6]]]
    assert batch["y"].tolist() == [[3.5, 2.5], [1.5, 1.5]]
    assert batch["mask"].tolist() == [[True, True], [False, True]]
    assert (batch["x"].dtype, batch["y"].dtype, batch["mask"].dtype) == (jnp.uint8, jnp.float32, bool)


def test_gather_shows_the_row_that_padding_names():
    pool = {"x": np.array([5, 7, 9], np.uint8), "b": np.array([True, True, True])}
    batch = Batches(pool, np.array([1, ~2, ~1, ~3], np.int32)).gather()
    assert batch["x"].tolist() == [7, 9, 7, 0]
    assert batch["b"].tolist() == [True, True, True, False]
    assert batch["mask"].tolist() == [True, False, False, False]


def test_gradients_of_a_padded_example_are_finite():
    def loss(w, batch):
        return jnp.sum(jnp.where(batch["mask"], w * jnp.linalg.norm(w * batch["x"], axis=-1), 0))

    batch = Batches({"x": np.array([[3.0, 4.0]], np.float32)}, np.array([0, -1], np.int32)).gather()
    np.testing.assert_allclose(jax.grad(loss)(2.0, batch), 20.0)


def test_gathered_replaces_every_batches():
    batches = Batches({"x": np.arange(3)}, np.array([1], np.int32))
    result = gathered({"a": batches, "b": (batches, 5)})
    assert result["b"][1] == 5
    for batch in (result["a"], result["b"][0]):
        assert (batch["x"].tolist(), batch["mask"].tolist()) == ([1], [True])


def test_per_client_and_join_are_the_identity():
    pool = {"x": np.arange(10.0)}
    value = {
        "data": Sequence(Batches(pool, np.ones((3, 2, 4), np.int32)), np.array([1, 2, 0])),
        "state": (np.zeros((3, 2)), None),
    }
    own, pools, join = per_client(value)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(own)} == {3}
    assert [leaf.shape for leaf in jax.tree.leaves(pools)] == [(10,)]
    joined = join(own, pools)
    assert jax.tree.structure(joined) == jax.tree.structure(value)
    assert all(a is b for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(value), strict=True))
    row = join(jax.tree.map(lambda x: x[1], own), pools)
    assert row["data"].elements.index.shape == (2, 4)
    assert row["data"].elements.pool["x"].shape == (10,)


def test_stack_stacks_leaf_by_leaf():
    stacked = stack([{"a": np.float32(c), "b": np.full(2, c, np.int8)} for c in range(3)])
    assert stacked["a"].tolist() == [0, 1, 2]
    assert stacked["b"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert stacked["b"].dtype == np.int8


def test_stack_stacks_typed_keys():
    keys = [jax.random.key(seed) for seed in (1, 2)]
    stacked = stack(keys)
    assert stacked.shape == (2,)
    assert bool((jax.random.key_data(stacked[1]) == jax.random.key_data(keys[1])).all())


def test_stack_pads_sequences_with_copies_of_a_real_element():
    members = [Sequence.of(np.arange(c, c + n, dtype=np.float32)) for c, n in ((10, 2), (20, 3), (30, 0))]
    stacked = stack(members)
    assert stacked.length.tolist() == [2, 3, 0]
    assert stacked.length.dtype == np.int32
    assert stacked.elements.tolist() == [[10, 11, 10], [20, 21, 22], [10, 10, 10]]


def test_stack_of_empty_sequences():
    stacked = stack([Sequence.of(np.zeros((0, 2))), Sequence.of(np.zeros((0, 2)))])
    assert stacked.elements.shape == (2, 0, 2)
    assert stacked.length.tolist() == [0, 0]


def test_a_list_is_one_member_per_client():
    clients = Clients.of([{"a": np.zeros(3)}, {"a": np.ones(3)}])
    assert clients.num_clients == 2
    np.testing.assert_array_equal(clients.value["a"], [[0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("size", [0, 2])
def test_sequences_of_other_widths_are_no_one_cohort(size):
    with pytest.raises(ValueError, match=r"need the same shapes; got \[4\] for member 1 and \[3\] for member 0"):
        stack([Sequence.of(np.zeros((size, 3))), Sequence.of(np.zeros((2, 4)))])


def test_integers_that_would_wrap_around_are_refused():
    with pytest.raises(
        ValueError, match="a value must be exact in int32, as the device stores it; got int64 109951162"
    ):
        Clients.of(np.array([2**40, 5]))
    assert Clients.of(np.array([2**31 - 1, -(2**31)])).num_clients == 2


def test_a_sequence_tells_which_positions_are_real():
    np.testing.assert_array_equal(Sequence(np.zeros((4, 2)), np.int32(3)).mask, [True, True, True, False])
