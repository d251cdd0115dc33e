"""Tests of the flat columns and client offsets."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.data import FederatedData

CLIENTS = [{"x": np.arange(3 * n, dtype=np.uint8).reshape(n, 3) + 10 * n, "y": np.full(n, n)} for n in (2, 1, 4)]


def test_from_clients_keeps_every_client():
    data = FederatedData.from_clients(CLIENTS)
    assert (data.num_clients, data.num_examples) == (3, 7)
    assert data.sizes.tolist() == [2, 1, 4]
    assert data.sizes.dtype == np.int64
    assert data.offsets.tolist() == [0, 2, 3, 7]
    assert data.offsets.dtype == np.int64
    for k, client in enumerate(CLIENTS):
        assert data.client(k).keys() == client.keys()
        for name in client:
            np.testing.assert_array_equal(data.client(k)[name], client[name])
            assert data.client(k)[name].dtype == client[name].dtype


def test_from_partition_takes_the_rows_in_their_order():
    examples = {"x": np.arange(20).reshape(10, 2), "y": np.arange(10)}
    data = FederatedData.from_partition(examples, [np.array([9, 0]), np.array([3, 3, 1])])
    assert data.offsets.tolist() == [0, 2, 5]
    assert data.client(0)["x"].tolist() == [[18, 19], [0, 1]]
    assert data.client(1)["y"].tolist() == [3, 3, 1]


@pytest.mark.parametrize("ids", [[0, 1, 1], [-1, 0, 1], [2, 1, 0], [0, 1]])
def test_ids_increase_from_zero(ids):
    with pytest.raises(ValueError, match="ids need to be a number for each client, from 0 and increasing; got ids="):
        FederatedData({"x": X}, np.array([0, 1, 2, 3]), np.array(ids))


def test_a_name_is_told_where_numbers_are_found():
    with pytest.raises(TypeError, match=r"vector of integers; got <U3\[1\].*Store.find returns the numbers"):
        FederatedData.from_clients(CLIENTS).client("ada")


def test_repr_shows_the_type_of_an_example():
    text = "FederatedData(num_clients=3, num_examples=7, examples=<x=uint8[3],y=int64>)"
    assert repr(FederatedData.from_clients(CLIENTS)) == text


def test_offsets_are_copied():
    offsets = np.array([0, 1, 3])
    data = FederatedData({"x": np.arange(3)}, offsets)
    offsets[1] = 2
    assert data.offsets.tolist() == [0, 1, 3]


def test_pool_is_the_examples_in_their_dtype_placed_once():
    data = FederatedData({"x": np.arange(6, dtype=np.uint8).reshape(3, 2), "b": np.ones(3, bool)}, np.array([0, 3]))
    assert all(isinstance(column, jax.Array) for column in data.pool.values())
    assert data.pool["x"].dtype == jnp.uint8
    assert data.pool["b"].dtype == bool
    assert data.pool["x"][:3].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert data.pool is data.pool


def test_pool_does_not_alias_the_host():
    # Large and aligned: what device_put aliases on CPU.
    buffer = np.zeros(1 << 20 | 64, np.uint8)
    start = -buffer.ctypes.data % 64
    column = buffer[start : start + (1 << 20)].view(np.float32)
    control = jax.device_put(column)
    pool = FederatedData({"x": column}, np.array([0, len(column)])).pool
    column[:] = 7.0
    assert np.asarray(pool["x"]).max() == 0.0
    if jax.default_backend() == "cpu":
        assert np.asarray(control).max() == 7.0, "the control no longer aliases: this test cannot fail"


def test_pool_first_used_inside_a_trace_does_not_leak():
    data = FederatedData({"x": np.arange(3)}, np.array([0, 3]))
    with jax.checking_leaks():
        assert jax.jit(lambda i: data.pool["x"][i])(2) == 2
    assert data.pool["x"][:3].tolist() == [0, 1, 2]


def test_pool_refuses_more_examples_than_int32():
    many = np.broadcast_to(np.uint8(0), (2**31,))
    data = FederatedData({"x": many}, np.array([0, 2**31]))
    with pytest.raises(ValueError, match="indexed with int32; got num_examples=2147483648"):
        data.pool  # noqa: B018


X, Y = np.zeros((3, 2)), np.zeros(3)


@pytest.mark.parametrize(
    ("examples", "offsets", "error", "message"),
    [
        ({}, [0, 3], ValueError, "the examples need at least one feature"),
        ({"x": X, "y": Y[:2]}, [0, 3], ValueError, "same number of examples; got 'x' with 3 and 'y' with 2"),
        ({"x": X, "mask": Y}, [0, 3], ValueError, "'mask' names the padding of a batch"),
        ({"x": np.float32(1)}, [0, 1], ValueError, "need an examples axis; got the scalar 'x'"),
        ({"x": [[1, 2], [3]]}, [0, 2], ValueError, r"the same shape; got rows of different length in 'x'\. Pad them"),
        ([1, 2], [0, 2], TypeError, r"examples are a dict of arrays by name; got list\. Name them"),
        ({"x": np.array(["a", "b"])}, [0, 2], TypeError, "need to be numeric; got 'x' of dtype <U1"),
        ({"x": X}, [0], ValueError, "at least one client; got offsets=array"),
        ({"x": X}, [0, 2], ValueError, "from 0 to the number of examples; .*num_examples=3"),
        ({"x": X}, [1, 3], ValueError, "from 0 to the number of examples"),
        ({"x": X}, [0, 2, 1, 3], ValueError, "offsets need to increase"),
        ({"x": X[:0]}, [0, 0], ValueError, "needs at least one example; got none"),
        ({"x": X}, [0.0, 3.0], TypeError, r"offsets need to be a vector of integers; got float64\[2\]"),
        ({"x": X}, [[0, 3]], TypeError, r"offsets need to be a vector of integers; got int64\[1, 2\]"),
    ],
)
def test_construction_errors(examples, offsets, error, message):
    with pytest.raises(error, match=message):
        FederatedData(examples, np.array(offsets))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"x": X, "y": Y[:1]}, "all features of client 1 need the same number.* 'x' with 3 and 'y' with 1"),
        ({"x": X}, r"got <x=float64\[2\]> for client 1 and <x=float64\[2\],y=float64> for client 0"),
        ({"x": X, "y": Y.astype(np.int32)}, r"got <x=float64\[2\],y=int32> for client 1"),
        ({"x": X[:, :1], "y": Y}, r"got <x=float64\[1\],y=float64> for client 1"),
        ({}, "the examples of client 1 need at least one feature"),
    ],
)
def test_from_clients_errors(second, message):
    with pytest.raises(ValueError, match=message):
        FederatedData.from_clients([{"x": X, "y": Y}, second])


def test_no_clients_at_all():
    with pytest.raises(ValueError, match=r"at least one client; got clients=\[\]"):
        FederatedData.from_clients([])
    with pytest.raises(ValueError, match="at least one client"):
        FederatedData.from_partition({"x": X}, [])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([0, 3], ValueError, r"in \[0, 3\); got 0 to 3 for client 1"),
        ([-1, 2], ValueError, r"got -1 to 2 for client 1"),
        ([True, False, True], TypeError, r"rows of client 1 need to be a vector of integers; got bool\[3\]"),
    ],
)
def test_from_partition_errors(rows, error, message):
    with pytest.raises(error, match=message):
        FederatedData.from_partition({"x": X}, [[1], rows])


@pytest.mark.parametrize("k", [-1, 3])
def test_client_out_of_range(k):
    with pytest.raises(ValueError, match=rf"clients of the data set, 3 from 0 to 2; got \[{k}\]"):
        FederatedData.from_clients(CLIENTS).client(k)


@pytest.mark.parametrize(
    ("client", "error", "message"),
    [
        (
            {"x": [[1, 2], [1]]},
            ValueError,
            r"the same shape; got rows of different length in 'x' of client 1\. Pad them",
        ),
        (([1, 2], [0, 1]), TypeError, r"a client is a dict of arrays by name; got tuple for client 1\. Name them"),
    ],
)
def test_what_is_no_client_is_refused(client, error, message):
    with pytest.raises(error, match=message):
        FederatedData.from_clients([{"x": [[1, 2]]}, client])


def test_clients_by_name_and_frames_are_told_where_to_go():
    with pytest.raises(TypeError, match=r"got a dict. Give `list\(clients.values\(\)\)`; a `Store` has names"):
        FederatedData.from_clients({"ann": {"x": [1]}})
    frame = types.SimpleNamespace(columns=["x"])
    with pytest.raises(
        TypeError, match=r"got SimpleNamespace for client 0\. `fedjx.data.importers.table` reads frames"
    ):
        FederatedData.from_clients([frame])
