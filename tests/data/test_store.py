"""Tests of what is read from stores: what was written, in any order, by anyone."""

import concurrent.futures
import hashlib
import os
import pickle
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, FederatedData, client_ids, write_store
from fedjx.models import linear
from tests.data.stores import CLIENTS, MEMORY, ROOT, SIZES, SPLITS, assert_equal, client, written


@pytest.fixture(name="store", params=[1, 200, 1 << 29], ids=["shard per client", "some shards", "one shard"])
def _store(request, tmp_path):
    return written(tmp_path / "store", shard_bytes=request.param, split=SPLITS, group=list(range(10)))


# What is read.


def test_round_trip(store):
    assert (store.num_clients, store.num_examples, store.largest) == (10, 35, 9)
    assert store.num_bytes == MEMORY.num_bytes == 35 * (24 + 2 + 1)
    assert store.schema == MEMORY.schema
    assert repr(store) == repr(MEMORY).replace("FederatedData", "Store")
    np.testing.assert_array_equal(store.sizes, SIZES)
    np.testing.assert_array_equal(store.offsets, MEMORY.offsets)
    for k, examples in enumerate(CLIENTS):
        assert_equal(store.client(k), examples)
    loaded = store.load()
    assert_equal(loaded.examples, MEMORY.examples)
    assert loaded.offsets.tolist() == MEMORY.offsets.tolist()
    store.verify()


def test_shards_hold_whole_clients(tmp_path):
    store = written(tmp_path / "store", shard_bytes=200)
    first = [shard["first_client"] for shard in store.manifest["shards"]]
    assert 3 < len(first) < 10
    for k, (a, b) in enumerate(zip(first, [*first[1:], 10], strict=True)):
        x = np.load(store.path / f"x-{k:05d}.npy")
        np.testing.assert_array_equal(x, np.concatenate([CLIENTS[c]["x"] for c in range(a, b)]))
        assert b - a == 1 or 27 * len(x) <= 200


@pytest.mark.parametrize("ids", [[0], [9, 0], [2, 2, 5, 2], range(10), [9, 8, 7, 3, 4, 5], [0, 2, 4, 6]])
def test_read_gives_the_clients_in_the_order_asked(store, ids):
    expected = {name: np.concatenate([CLIENTS[k][name] for k in ids]) for name in CLIENTS[0]}
    assert_equal(store.read(ids), expected)
    assert_equal(MEMORY.read(ids), expected)
    for data in (store, MEMORY):
        out = {name: np.full((2 + len(x), *x.shape[1:]), 77, x.dtype) for name, x in expected.items()}
        data.read(ids, out={name: x[1:-1] for name, x in out.items()})
        assert_equal({name: x[1:-1] for name, x in out.items()}, expected)
        assert all((x[[0, -1]] == np.array(77).astype(x.dtype)).all() for x in out.values())


def test_random_reads_of_many_clients(tmp_path):
    random = np.random.default_rng(0)
    clients = [client(k, n) for k, n in enumerate(random.geometric(0.2, 500))]
    # Gaps between clients are read over or jumped over, and a call takes only so many buffers.
    store, memory = written(tmp_path / "s", clients, shard_bytes=1 << 14), FederatedData.from_clients(clients)
    assert len(store.manifest["shards"]) > 3
    for size in (1, 10, 100, 499):
        for ids in (random.permutation(500)[:size], np.sort(random.integers(0, 500, size))):
            assert_equal(store.read(ids), memory.read(ids))
            np.testing.assert_array_equal(store.sizes[ids], memory.sizes[ids])
            np.testing.assert_array_equal(store.offsets[ids], memory.offsets[ids])


def test_few_calls_where_clients_are_neighbours(tmp_path, monkeypatch):
    store = written(tmp_path / "s", [client(k, 5) for k in range(3000)])
    calls, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: calls.append(args) or preadv(*args))
    store.read(range(3000))
    assert len(calls) == 1 + 3  # the offsets and three features
    calls.clear()
    store.read(range(0, 3000, 2))  # gaps of one client; 1,000 buffers a call
    assert 1 + 3 < len(calls) <= 3 * 5
    calls.clear()
    store.read(np.random.default_rng(0).permutation(3000))
    assert len(calls) <= 1 + 3 * 5


def test_short_reads_are_continued(tmp_path, monkeypatch):
    store, preadv = written(tmp_path / "s", shard_bytes=200), os.preadv
    lengths = iter(np.random.default_rng(0).integers(1, 40, 10_000).tolist())
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: preadv(file, [buffers[0][: next(lengths)]], at))
    assert_equal(store.read([7, 3, 2, 0]), MEMORY.read([7, 3, 2, 0]))


def test_numpy_alone_reads_the_columns(tmp_path):
    written(tmp_path / "s", split=SPLITS)
    code = """
        import json, sys
        import numpy as np
        assert "fedjx" not in sys.modules and "jax" not in sys.modules
        offsets = np.load("offsets.npy")
        x, y, ids, id_offsets = (np.load(f) for f in
            ("x-00000.npy", "y-00000.npy", "client_ids.npy", "client_id_offsets.npy"))
        k = 5
        print(x[offsets[k]].ravel().tolist(), y[offsets[k] : offsets[k + 1]].tolist(),
              ids[id_offsets[k] : id_offsets[k + 1]].tobytes().decode(),
              json.load(open("manifest.json"))["metadata"]["split"][np.load("metadata_split.npy")[k]])
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=tmp_path / "s", capture_output=True, text=True, check=True)
    x = CLIENTS[5]["x"][0].ravel().tolist()
    assert result.stdout.strip() == f"{x} {CLIENTS[5]['y'].tolist()} client 5 test"


def test_dtypes_that_numpy_does_not_know_and_foreign_byte_order(tmp_path):
    examples = {"b": np.asarray(jnp.arange(6, dtype=jnp.bfloat16)).reshape(3, 2), "e": np.arange(3, dtype=">i4")}
    store = written(tmp_path / "s", [examples])
    assert_equal(store.client(0), {"b": examples["b"], "e": examples["e"].astype("<i4")})
    assert np.load(store.path / "b-00000.npy").dtype == np.uint16


def test_features_of_any_name(tmp_path):
    names = ["a/b", "a_b", "A_B", "../x", "offsets", "", "ü", "n" * 300, "x\0"]
    store = written(tmp_path / "s", [{name: np.array([k]) for k, name in enumerate(names)}])
    assert {name: int(x[0]) for name, x in store.client(0).items()} == {name: k for k, name in enumerate(names)}
    files = [file.name for file in store.path.iterdir()]
    assert len({name.lower() for name in files}) == len(files) == len(names) + 6
    assert [x.name for x in tmp_path.iterdir()] == ["s"]


def test_on_disk_vectors_are_indexed_like_arrays(store):
    for column, expected in ((store.sizes, np.array(SIZES)), (store.offsets, MEMORY.offsets)):
        assert len(column) == len(expected)
        everything = slice(None)
        for index in (3, -1, [4, 4, 0], [[1, 2], [3, 0]], slice(2, 5), slice(7, 0, -2), everything, expected > 4):
            np.testing.assert_array_equal(column[index], expected[index])
        for index in (len(expected), -len(expected) - 1, [0, 99]):
            with pytest.raises(IndexError, match="indices need to be less than"):
                column[index]


# Ids and metadata.


@pytest.mark.parametrize(
    "ids",
    [
        [f"ä{k}" for k in range(10)],
        [b"\x00" * k + b"\xff" for k in range(10)],
        [2**63 - 1, -(2**63), 0, -1, 5, 6, 7, 8, 9, 10],
        ["", "a", "a\0", "b" * 10_000, "'; DROP TABLE", "../x", "c", "d", "e", "f"],
    ],
    ids=["str", "bytes", "int", "odd"],
)
def test_ids_to_rows_and_back(tmp_path, ids):
    store = written(tmp_path / "s", ids=ids)
    assert store.client_ids(range(10)) == ids
    assert store.client_ids([7, 2, 2]) == [ids[7], ids[2], ids[2]]
    assert [type(x) for x in store.client_ids([3])] == [type(ids[3])]
    assert store.find(ids).tolist() == list(range(10))
    assert store.find(ids[::-3]).tolist() == list(range(10))[::-3]
    for unknown in ("client 0", b"client 0", 77):
        with pytest.raises(KeyError, match=r"need to be in the store; got .* \(1 in all\)"):
            store.find([ids[0], unknown])


def test_ids_of_other_types_are_others(tmp_path):
    store = written(tmp_path / "s", CLIENTS[:2], ids=[1, 2])
    for same_bytes in (b"\x01" + bytes(7), "\x01" + "\0" * 7):
        with pytest.raises(KeyError, match="need to be in the store"):
            store.find([same_bytes])


def test_index_of_many_clients_in_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(client_ids, "_RANGE", 64)
    store = written(tmp_path / "s", [{"x": np.array([k])} for k in range(1000)], ids=[f"c{k}" for k in range(1000)])
    hashes = np.load(store.path / "index_hashes.npy")
    assert (hashes[1:] > hashes[:-1]).all()
    order = np.random.default_rng(0).permutation(1000)
    assert store.find([f"c{k}" for k in order]).tolist() == order.tolist()


def test_colliding_hashes_are_salted_anew(tmp_path, monkeypatch):
    hashes_of = client_ids.hashes_of
    monkeypatch.setattr(
        client_ids, "hashes_of", lambda names, salt: hashes_of(names, salt) % 3 if salt < 2 else hashes_of(names, salt)
    )
    store = written(tmp_path / "s")
    assert store.manifest["salt"] == 2
    assert store.find(["client 4", "client 0"]).tolist() == [4, 0]
    store.verify()


def test_select_by_metadata(store):
    train, test = store.select_clients(split="train"), store.select_clients(split="test")
    assert (train.num_clients, train.num_examples, train.largest) == (8, 22, 7)
    assert (test.num_clients, test.num_examples, test.largest) == (2, 13, 9)
    members = [0, 1, 2, 3, 4, 7, 8, 9]
    for view, rows in (
        (train, members),
        (test, [5, 6]),
        (train.select_clients(group=[3, 9]), [3, 9]),
        (train.select_clients([9, 0]), [0, 9]),
    ):
        expected = MEMORY.select_clients(rows)
        assert view.ids[:].tolist() == rows
        np.testing.assert_array_equal(view.sizes, expected.sizes)
        np.testing.assert_array_equal(view.offsets, expected.offsets)
        assert_equal(view.load().examples, expected.examples)
        ids = rows[::-1]
        assert_equal(view.read(ids), expected.read(ids))
        assert view.metadata("group").tolist() == rows
        assert view.client_ids(rows) == [f"client {k}" for k in rows]
        assert view.find([f"client {rows[-1]}"]).tolist() == [rows[-1]]
        assert view.fingerprint == store.fingerprint
        with pytest.raises(KeyError, match="client ids need to be in the store"):
            view.find([f"client {next(k for k in range(10) if k not in rows)}"])
    assert store.metadata("split").tolist() == SPLITS
    assert store.select_clients(np.array(SPLITS) == "test", group=6).client_ids([6]) == ["client 6"]
    assert store.select_clients(split=["train", "test"]).num_clients == 10


def test_neighbours_are_a_range(store):
    assert isinstance(store.select_clients(split="test")._rows, range)
    assert isinstance(store.select_clients(split="train")._rows, np.ndarray)


@pytest.mark.parametrize(
    ("ids", "metadata", "message"),
    [
        (None, {"split": "dev"}, "at least one client; got none for {'split': 'dev'}"),
        (None, {"splits": "train"}, r"got 'splits'. It has \['group', 'split'\]"),
        ([10], {}, r"clients of the data set, 10 from 0 to 9; got \[10\]"),
        ([True] * 9, {}, r"a mask needs to be bool \[10\]; got bool\[9\]"),
        ([False] * 10, {}, "at least one client"),
    ],
)
def test_errors_of_selections(store, ids, metadata, message):
    with pytest.raises(ValueError, match=message):
        store.select_clients(ids, **metadata)


def test_metadata_keep_their_types(tmp_path):
    store = written(tmp_path / "s", CLIENTS[:2], f=[0.5, 2.0], offsets=[-(2**63), 7], b=[True, False], s=["ü", "ü"])
    assert store.client(1)["y"].tolist() == [1]
    for name, dtype, values in (("f", float, [0.5, 2]), ("offsets", int, [-(2**63), 7]), ("b", bool, [True, False])):
        assert store.metadata(name).dtype == dtype
        assert store.metadata(name).tolist() == values
    assert store.metadata("s").tolist() == ["ü", "ü"]
    assert store.select_clients(f=2.0).client_ids([1]) == ["client 1"]


def test_sizes_are_like_an_array(store):
    sizes = store.sizes
    assert (sizes.max(), sizes.mean(), sizes.sum(), sizes.tolist()) == (9, 3.5, 35, SIZES)
    assert (sizes > 2).tolist() == [size > 2 for size in SIZES]
    assert (2 * sizes + sizes).tolist() == [3 * size for size in SIZES]
    assert np.sort(sizes).tolist() == sorted(SIZES)
    assert pickle.loads(pickle.dumps(store)).select_clients(sizes == 1).sizes.tolist() == [1, 1, 1]


def test_stores_of_partitions_say_what_they_are_made_of(tmp_path):
    data = FederatedData.from_partition({"x": np.arange(9)}, [[0, 3], [2]])
    told = write_store(tmp_path / "s", data, progress=False).manifest["provenance"]["partition"]
    assert told["num_examples"] == 9
    assert told != FederatedData.from_partition({"x": np.arange(9)}, [[0], [3, 2]]).provenance["partition"]


# In place of the data in memory.


def test_chunks_equal_those_from_memory(store):
    for placement in ("streamed", "resident", "auto"):
        ids = [8, 2, 5, 0, 4]
        a, b = (Cohort(data, ids, batch_size=2, lanes=2, placement=placement) for data in (store, MEMORY))
        for from_store, from_memory in zip(a, b, strict=True):
            for x, y in zip(jax.tree.leaves(from_store), jax.tree.leaves(from_memory), strict=True):
                np.testing.assert_array_equal(x, y)
    plan, expected = (Cohort(data, [2, 0], batch_size=2).whole().value.elements for data in (store, MEMORY))
    np.testing.assert_array_equal(plan.index, expected.index)


@pytest.mark.parametrize("placement", ["streamed", "resident"])
def test_training_equals_training_from_memory_bitwise(tmp_path, placement):
    random = np.random.default_rng(0)
    clients = [
        {"x": random.normal(size=(n, 4)).astype(np.float32), "y": random.integers(0, 3, n).astype(np.int32)}
        for n in random.geometric(0.1, 60)
    ]
    splits = ["train" if k % 3 else "test" for k in range(60)]
    store = written(tmp_path / "s", clients, shard_bytes=2000, split=splits).select_clients(split="train")
    memory = FederatedData.from_clients(clients).select_clients([split == "train" for split in splits])
    algorithm = fed_avg(linear(3, input_shape=(4,)), client_optimizer=optax.adam(0.1), num_epochs=2)
    step = algorithm.next.streamed()

    def trained(data, ids):
        state = algorithm.init(jax.random.key(0))
        for _ in range(3):
            state, _ = step(state, Cohort(data, ids, batch_size=4, lanes=2, placement=placement))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]

    from_memory, from_store, other = (
        trained(data, data.ids[:stop]) for data, stop in ((memory, 40), (store, 40), (store, 39))
    )
    assert all((x == y).all() for x, y in zip(from_memory, from_store, strict=True))
    assert not all((x == y).all() for x, y in zip(from_memory, other, strict=True))


def test_threads_share_a_store(tmp_path):
    store = written(tmp_path / "s", shard_bytes=200)
    orders = [np.random.default_rng(k).permutation(10) for k in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for order, read in zip(orders, pool.map(store.read, orders), strict=True):
            assert_equal(read, MEMORY.read(order))


def test_processes_share_a_store(tmp_path):
    view = written(tmp_path / "s", shard_bytes=200, split=SPLITS).select_clients(split="train")
    assert view.load().pool  # What is cached is not pickled.
    code = """
        import pickle, sys, hashlib
        store = pickle.load(sys.stdin.buffer)
        digests = {hashlib.sha256(store.read([9, 1, 4])["x"].tobytes()).hexdigest() for _ in range(200)}
        print(*digests)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    readers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    expected = hashlib.sha256(np.concatenate([CLIENTS[k]["x"] for k in (9, 1, 4)]).tobytes()).hexdigest()
    assert len(pickle.dumps(view)) < 10_000
    for reader in readers:
        reader.stdin.write(pickle.dumps(view))
        reader.stdin.close()
        reader.stdin = None
    for reader in readers:
        assert reader.communicate(timeout=120)[0].decode().strip() == expected
        assert reader.returncode == 0
