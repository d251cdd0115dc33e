"""Tests of stores: what is read is what was written, whatever happened to the writer and to the files."""

import concurrent.futures
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import tracemalloc
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, FederatedData, Store, StoreWriter, client_ids, cohort, columns
from fedjx.data.__main__ import main
from fedjx.models import linear

ROOT = Path(__file__).resolve().parents[2]


def client(k, n):
    """Examples that are all different from one another and from zero."""
    first = 10_000 * k + 1
    x = np.arange(first, first + 6 * n, dtype=np.int32).reshape(n, 2, 3)
    return {"x": x.astype(np.float32), "y": np.arange(n, dtype=np.int16) + k, "flag": np.arange(n) % 2 == k % 2}


SIZES = [3, 1, 7, 2, 2, 9, 4, 1, 1, 5]
CLIENTS = [client(k, n) for k, n in enumerate(SIZES)]
MEMORY = FederatedData.from_clients(CLIENTS)
SPLITS = ["train"] * 5 + ["test"] * 2 + ["train"] * 3


def written(path, clients=CLIENTS, *, ids=None, shard_bytes=1 << 29, **metadata):
    ids = ids or [f"client {k}" for k in range(len(clients))]
    with StoreWriter(path, shard_bytes=shard_bytes, provenance={"made": "here"}) as writer:
        for k, examples in enumerate(clients):
            writer.add(ids[k], examples, **{name: values[k] for name, values in metadata.items()})
    return Store(path)


def assert_equal(columns, expected):
    assert columns.keys() == expected.keys()
    for name, column in expected.items():
        assert columns[name].dtype == column.dtype
        np.testing.assert_array_equal(columns[name], column)


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
    train, test = store.select(split="train"), store.select(split="test")
    assert (train.num_clients, train.num_examples, train.largest) == (8, 22, 7)
    assert (test.num_clients, test.num_examples, test.largest) == (2, 13, 9)
    members = [0, 1, 2, 3, 4, 7, 8, 9]
    for view, rows in (
        (train, members),
        (test, [5, 6]),
        (train.select(group=[3, 9]), [3, 9]),
        (train.select([7, 0]), [0, 9]),
    ):
        expected = FederatedData.from_clients([CLIENTS[k] for k in rows])
        np.testing.assert_array_equal(view.sizes, expected.sizes)
        np.testing.assert_array_equal(view.offsets, expected.offsets)
        assert_equal(view.load().examples, expected.examples)
        ids = range(len(rows))[::-1]
        assert_equal(view.read(ids), expected.read(ids))
        assert view.metadata("group").tolist() == rows
        assert view.client_ids(range(len(rows))) == [f"client {k}" for k in rows]
        assert view.find([f"client {rows[-1]}"]).tolist() == [len(rows) - 1]
        assert view.fingerprint == store.fingerprint
        with pytest.raises(KeyError, match="client ids need to be in the store"):
            view.find([f"client {next(k for k in range(10) if k not in rows)}"])
    assert store.metadata("split").tolist() == SPLITS
    assert store.select(np.array(SPLITS) == "test", group=6).client_ids([0]) == ["client 6"]
    assert store.select(split=["train", "test"]).num_clients == 10


def test_neighbours_are_a_range(store):
    assert isinstance(store.select(split="test")._rows, range)
    assert isinstance(store.select(split="train")._rows, np.ndarray)


@pytest.mark.parametrize(
    ("ids", "metadata", "message"),
    [
        (None, {"split": "dev"}, "at least one client; got none for {'split': 'dev'}"),
        (None, {"splits": "train"}, r"got 'splits'. It has \['group', 'split'\]"),
        ([10], {}, r"clients of the data set, 0 to 9; got \[10\]"),
        ([True] * 9, {}, r"a mask needs to be bool \[10\]; got bool\[9\]"),
        ([False] * 10, {}, "at least one client"),
    ],
)
def test_errors_of_selections(store, ids, metadata, message):
    with pytest.raises(ValueError, match=message):
        store.select(ids, **metadata)


def test_metadata_keep_their_types(tmp_path):
    store = written(tmp_path / "s", CLIENTS[:2], f=[0.5, 2.0], i=[-(2**63), 7], b=[True, False], s=["ü", "ü"])
    for name, dtype, values in (("f", float, [0.5, 2]), ("i", int, [-(2**63), 7]), ("b", bool, [True, False])):
        assert store.metadata(name).dtype == dtype
        assert store.metadata(name).tolist() == values
    assert store.metadata("s").tolist() == ["ü", "ü"]
    assert store.select(f=2.0).client_ids([0]) == ["client 1"]


# In place of the data in memory.


def test_chunks_equal_those_from_memory(store):
    for placement in ("streamed", "resident", "auto"):
        ids = [8, 2, 5, 0, 4]
        a, b = (Cohort(data, ids, batch_size=2, lanes=2, placement=placement) for data in (store, MEMORY))
        for from_store, from_memory in zip(a, b, strict=True):
            for x, y in zip(jax.tree.leaves(from_store), jax.tree.leaves(from_memory), strict=True):
                np.testing.assert_array_equal(x, y)
    plan, expected = (cohort(data, [2, 0], batch_size=2).value.elements for data in (store, MEMORY))
    np.testing.assert_array_equal(plan.index, expected.index)


@pytest.mark.parametrize("placement", ["streamed", "resident"])
def test_training_equals_training_from_memory_bitwise(tmp_path, placement):
    random = np.random.default_rng(0)
    clients = [
        {"x": random.normal(size=(n, 4)).astype(np.float32), "y": random.integers(0, 3, n).astype(np.int32)}
        for n in random.geometric(0.1, 60)
    ]
    splits = ["train" if k % 3 else "test" for k in range(60)]
    store = written(tmp_path / "s", clients, shard_bytes=2000, split=splits).select(split="train")
    memory = FederatedData.from_clients([c for c, split in zip(clients, splits, strict=True) if split == "train"])
    algorithm = fed_avg(linear(3, input_shape=(4,)), client_optimizer=optax.adam(0.1), num_epochs=2)
    step = algorithm.next.streamed()

    def trained(data, ids):
        state = algorithm.init(jax.random.key(0))
        for _ in range(3):
            state, _ = step(state, Cohort(data, ids, batch_size=4, lanes=2, placement=placement))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]

    from_memory, from_store, other = trained(memory, range(40)), trained(store, range(40)), trained(store, range(39))
    assert all((x == y).all() for x, y in zip(from_memory, from_store, strict=True))
    assert not all((x == y).all() for x, y in zip(from_memory, other, strict=True))


def test_threads_share_a_store(tmp_path):
    store = written(tmp_path / "s", shard_bytes=200)
    orders = [np.random.default_rng(k).permutation(10) for k in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for order, read in zip(orders, pool.map(store.read, orders), strict=True):
            assert_equal(read, MEMORY.read(order))


def test_processes_share_a_store(tmp_path):
    view = written(tmp_path / "s", shard_bytes=200, split=SPLITS).select(split="train")
    assert view.load().pool  # What is cached is not pickled.
    code = """
        import pickle, sys, hashlib
        store = pickle.load(sys.stdin.buffer)
        digests = {hashlib.sha256(store.read([7, 1, 4])["x"].tobytes()).hexdigest() for _ in range(200)}
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


# What writers refuse.


@pytest.mark.parametrize(
    ("client_id", "examples", "metadata", "error", "message"),
    [
        (
            "b",
            {"x": np.zeros((2, 2))},
            {"s": "t"},
            ValueError,
            r"got <x=float64\[2\]> for client 'b' and <x=float64> for",
        ),
        ("b", {"x": np.zeros(2, np.float32)}, {"s": "t"}, ValueError, "got <x=float32> for client 'b' and <x=float64>"),
        (
            "b",
            {"y": np.zeros(2)},
            {"s": "t"},
            ValueError,
            "got <y=float64> for client 'b' and <x=float64> for the first",
        ),
        ("b", {"x": np.zeros(2), "y": np.zeros(3)}, {"s": "t"}, ValueError, "of client 'b' need the same number"),
        ("b", {"x": np.zeros(0)}, {"s": "t"}, ValueError, "at least one example; got none for client 'b'"),
        ("b", {}, {"s": "t"}, ValueError, "examples of client 'b' need at least one feature"),
        ("b", {"x": 1.0}, {"s": "t"}, ValueError, "of client 'b' need an examples axis; got the scalar 'x'"),
        ("b", {"x": ["text"]}, {"s": "t"}, TypeError, "of client 'b' need to be numeric; got 'x'"),
        ("b", {"x": [[1], [1, 2]]}, {"s": "t"}, ValueError, "rows of different length in 'x' of client 'b'"),
        ("b", [1.0], {"s": "t"}, TypeError, "a client is a dict of arrays by name; got list for client 'b'"),
        ("b", {"x": np.zeros(2)}, {}, ValueError, "the same metadata; got {} for client 'b' and {'s': 'str'}"),
        ("b", {"x": np.zeros(2)}, {"s": 1}, ValueError, "got {'s': 'int'} for client 'b' and {'s': 'str'}"),
        ("b", {"x": np.zeros(2)}, {"s": None}, TypeError, "metadata are str, int, float or bool; got s=None"),
        ("b", {"x": np.zeros(2)}, {"s": 2**63}, ValueError, "need to fit in 64 bits; got s=9223372036854775808"),
        ("b", {"x": np.zeros(2)}, {"a b": 1}, ValueError, "metadata need a plain name, .*; got 'a b'"),
        (b"b", {"x": np.zeros(2)}, {"s": "t"}, TypeError, "got b'b' of type bytes after ids of type str"),
        (2**63, {"x": np.zeros(2)}, {"s": "t"}, ValueError, "int needs to fit in 64 bits; got 9223372036854775808"),
        (True, {"x": np.zeros(2)}, {"s": "t"}, TypeError, "a client id is a str, bytes or int; got True of bool"),
        (None, {"x": np.zeros(2)}, {"s": "t"}, TypeError, "a client id is a str, bytes or int; got None"),
    ],
)
def test_what_is_refused_is_not_written(tmp_path, client_id, examples, metadata, error, message):
    with StoreWriter(tmp_path / "s") as writer:
        writer.add("a", {"x": np.array([1.0])}, s="t")
        with pytest.raises(error, match=message):
            writer.add(client_id, examples, **metadata)
        writer.add("c", {"x": np.array([2.0, 3.0])}, s="u")
    store = Store(tmp_path / "s")
    assert store.client_ids([0, 1]) == ["a", "c"]
    assert store.client(1)["x"].tolist() == [2.0, 3.0]
    assert store.metadata("s").tolist() == ["t", "u"]


@pytest.mark.parametrize("ids", [["a", "b", "a"], [5, 7, 7], [b"", b"x", b""]])
def test_duplicate_ids(tmp_path, ids):
    name = repr(ids[2])
    with pytest.raises(ValueError, match=f"client ids need to be different; got {name} for clients . and 2"):
        written(tmp_path / "s", CLIENTS[:3], ids=ids)
    assert not list(tmp_path.iterdir())


def test_too_many_strings(tmp_path, monkeypatch):
    monkeypatch.setattr("fedjx.data.store_writer._MAX_VALUES", 2)
    with StoreWriter(tmp_path / "s") as writer:
        for k in range(4):
            writer.add(k, {"x": [k]}, user=str(k % 2))
        with pytest.raises(ValueError, match="few different strings; got more than 2 for 'user'"):
            writer.add(9, {"x": [9]}, user="2")


def test_nothing_is_left_of_a_store_without_clients_or_with_an_error(tmp_path):
    with pytest.raises(ValueError, match="a store needs at least one client; got none"):
        written(tmp_path / "s", [])
    with pytest.raises(TypeError, match="need to be numeric"):
        written(tmp_path / "s", [{"x": [1]}, {"x": ["text"]}])
    assert not list(tmp_path.iterdir())
    writer = StoreWriter(tmp_path / "s")
    with pytest.raises(ValueError, match="a writer needs to be open"):
        writer.add(1, CLIENTS[1])


def test_a_failed_write_is_not_finished(tmp_path, monkeypatch):
    append, full = columns.ColumnWriter.append, []

    def fail(self, data):
        if full and self.path.name.startswith("y-"):
            raise OSError(28, "No space left on device")
        append(self, data)

    def write():
        with StoreWriter(tmp_path / "s") as writer:
            writer.add(0, CLIENTS[0])
            full.append(True)
            with pytest.raises(OSError, match="No space left"):
                writer.add(1, CLIENTS[1])
            full.clear()
            with pytest.raises(ValueError, match="a writer needs to be open"):
                writer.add(1, CLIENTS[1])

    monkeypatch.setattr(columns.ColumnWriter, "append", fail)
    with pytest.raises(ValueError, match="got an error while one was written"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", ["rename", "fsync"])
def test_an_error_at_the_end_leaves_nothing(tmp_path, monkeypatch, function):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="Input/output"):
        written(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_a_taken_path_is_refused(tmp_path):
    def race():
        with StoreWriter(tmp_path / "t") as writer:
            writer.add(0, CLIENTS[0])
            written(tmp_path / "t")  # Another writer was faster.

    (tmp_path / "s").mkdir()
    with pytest.raises(FileExistsError, match="a store needs a path that is free"):
        written(tmp_path / "s")
    with pytest.raises(FileNotFoundError, match="a store needs a directory to be in"):
        written(tmp_path / "no" / "s")
    with pytest.raises(FileExistsError, match="path that is free"):
        race()
    assert Store(tmp_path / "t").num_clients == 10
    assert sorted(x.name for x in tmp_path.iterdir()) == ["s", "t"]


def test_errors_of_writers(tmp_path):
    with pytest.raises(ValueError, match="a shard needs a positive size; got shard_bytes=0"):
        StoreWriter(tmp_path / "s", shard_bytes=0)
    with pytest.raises(TypeError, match="JSON serializable"):
        StoreWriter(tmp_path / "s", provenance=object())


def test_memory_of_the_writer_does_not_grow(tmp_path):
    def peak(num_clients):
        examples = {"x": np.ones((64, 256), np.float32)}
        tracemalloc.start()
        try:
            with StoreWriter(tmp_path / str(num_clients), shard_bytes=1 << 22) as writer:
                for k in range(num_clients):
                    writer.add(k, examples)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            shutil.rmtree(tmp_path / str(num_clients))

    peak(10)
    few, many = peak(100), peak(1000)  # 7 and 66 MB
    assert many < few + 400_000 < 12_000_000


# What readers refuse.


def test_no_store(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"a store is a directory with a manifest.json; got .*/s, no such directory"
    ):
        Store(tmp_path / "s")
    (tmp_path / "s").mkdir()
    with pytest.raises(FileNotFoundError, match=r"got .*/s, no manifest.json in it"):
        Store(tmp_path / "s")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="a store is a directory"):
        Store(tmp_path / "file")


def test_an_interrupted_write_is_named(tmp_path):
    with StoreWriter(tmp_path / "s") as writer:
        writer.add(0, CLIENTS[0])
        with pytest.raises(FileNotFoundError, match=r"got none at .*/s, but \.s\.partial-[0-9a-f]{8} beside it"):
            Store(tmp_path / "s")
    Store(tmp_path / "s")


def replace(path, old, new):
    text = path.read_bytes()
    assert text.count(old) == 1
    path.write_bytes(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"version": 1', b'"version": 2', "a store needs to be of version 1; got version 2 in .*manifest.json"),
        (b'"format": "fedjx store"', b'"format": "fedjx xtore"', "a manifest needs to be that of a store"),
        (b'"num_clients": 10', b'"num_clients": 11', "a manifest needs its own checksum; .*manifest.json is corrupt"),
        (b'"num_clients": 10', b'"num_clients": 1O', "manifest.json is not, or it is corrupt"),
        (b'"num_clients": 10', b'"num_clients":  10', "a manifest needs its own checksum"),
    ],
)
def test_manifests_that_are_refused(tmp_path, old, new, message):
    store = written(tmp_path / "s")
    replace(store.path / "manifest.json", old, new)
    with pytest.raises(ValueError, match=message):
        Store(tmp_path / "s")


def test_files_of_another_size_are_refused(tmp_path):
    written(tmp_path / "s")
    path = tmp_path / "s" / "y-00000.npy"
    whole = path.read_bytes()
    for text, message in (
        (whole[:-1], r"y-00000.npy is truncated: got 197 bytes, expected 198"),
        (whole + b"x", r"y-00000.npy is too long: got 199 bytes, expected 198"),
        (b"", r"y-00000.npy is truncated: got 0 bytes, expected 198"),
    ):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=message):
            Store(tmp_path / "s")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"y-00000\.npy is missing"):
        Store(tmp_path / "s")


def test_files_that_shrink_or_vanish_after_opening(tmp_path):
    store = written(tmp_path / "s")
    os.truncate(store.path / "x-00000.npy", 500)
    assert store.client(0)["y"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"x-00000.npy is truncated: got 500 bytes, expected 968"):
        store.read([9])
    with pytest.raises(ValueError, match="truncated"):
        store.verify()
    (store.path / "x-00000.npy").unlink()
    for read in (lambda: store.client(0), store.verify):
        with pytest.raises(FileNotFoundError, match=r"x-00000\.npy is (gone|missing)"):
            read()


def test_verify_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "BLOCK", 100)
    store = written(tmp_path / "s")
    store.verify()
    path = store.path / "x-00000.npy"
    flipped = bytearray(path.read_bytes())
    flipped[128 + 350] ^= 4
    flipped[20] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"x-00000.npy: the header is not that of float32\[35, 2, 3\]") as error:
        store.verify()
    assert "x-00000.npy: corrupt between bytes 428 and 528 (rows 12 to 16) (2 faults in all)" in str(error.value)
    assert_equal(store.read([0, 1]), MEMORY.read([0, 1]))


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 250, 300])
@pytest.mark.parametrize("pieces", [1, 30, 100, 10_000])
def test_checksums_do_not_depend_on_the_pieces(tmp_path, monkeypatch, length, pieces):
    monkeypatch.setattr(columns, "BLOCK", 100)
    data = np.random.default_rng(0).bytes(length)
    writer = columns.ColumnWriter(tmp_path / "c.npy", "uint8")
    for start in range(0, length, pieces):
        writer.append(data[start : start + pieces])
    column = writer.finish(length)
    assert len(column.checksums) == -(-length // 100)
    assert not list(column.problems())
    assert np.load(tmp_path / "c.npy").tobytes() == column.rows(range(length)).tobytes() == data


def used(store):
    """Reads all there is in a store."""
    everything = range(store.num_clients)
    found = store.find(store.client_ids(everything)).tolist()
    return store.read(everything), store.metadata("split").tolist(), found


def damaged(text, random):
    """A copy that ends early or in which some bits are flipped."""
    if random.random() < 0.3:
        return text[: random.integers(len(text))]
    array = np.frombuffer(text, np.uint8).copy()
    for _ in range(random.integers(1, 4)):
        array[random.integers(len(text))] ^= 1 << random.integers(8)
    return array.tobytes()


def stage_of_error(path):
    """Opens, uses and verifies a store, and returns where there was an error, if it was a clear one."""
    try:
        store = Store(path)
    except ValueError:
        return "open", None
    try:
        stage = "verify" if used(store) else ""
    except (ValueError, KeyError):
        stage = "use"
    try:
        store.verify()
    except ValueError as error:
        return stage, str(error)
    return "", None


def test_random_damage_gives_an_error_or_the_right_data(tmp_path):
    whole = written(tmp_path / "s", shard_bytes=200, split=SPLITS)
    files, random = sorted(whole.path.iterdir()), np.random.default_rng(0)
    stages = []
    for _ in range(400):
        path = files[random.integers(len(files))]
        original = path.read_bytes()
        text = damaged(original, random)
        path.write_bytes(text)
        stage, message = stage_of_error(whole.path)
        assert bool(stage) == (text != original)
        assert message is None or f"{path}: " in message
        stages.append(stage)
        path.write_bytes(original)
    assert min(stages.count(stage) for stage in ("open", "use", "verify")) > 10
    assert stage_of_error(whole.path) == ("", None)


def test_killed_writers_leave_a_whole_store_or_none(tmp_path):
    # A process of its own, since one with JAX's threads must not fork; it forks the writers that it kills.
    code = """
        import os, random, signal, sys, time
        import numpy as np
        from fedjx.data import Store, StoreWriter

        def write(path):
            with StoreWriter(path, shard_bytes=1 << 16) as writer:
                for k in range(400):
                    writer.add(k, {"x": np.full((1 + k % 7, 16), k)}, split="a")

        start = time.perf_counter()
        write("first")
        duration = time.perf_counter() - start
        random.seed(0)
        for attempt in range(24):
            path = f"store{attempt}"
            child = os.fork()
            if not child:
                write(path)
                os._exit(0)
            time.sleep(random.uniform(0, 1.6 * duration) if attempt else 10 * duration)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if not os.path.exists(path):
                try:
                    Store(path)
                except FileNotFoundError as error:
                    print("none", "partial" in str(error))
                continue
            store = Store(path)
            store.verify()
            assert store.num_clients == 400 and store.client(399)["x"].tolist() == [[399] * 16], store
            print("whole", any(x.startswith(f".{path}.partial") for x in os.listdir()))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    outcomes = result.stdout.split("\n")[:-1]
    assert len(outcomes) == 24
    assert set(outcomes) <= {"none True", "none False", "whole False"}
    assert outcomes.count("whole False") >= 1
    assert outcomes.count("none True") >= 5, outcomes


# The format. A change here needs another version in the manifest, and a reader of the old one.

FILES = {
    "offsets.npy": ("int64", [3], "000000000000000003000000000000000500000000000000"),
    "client_ids.npy": ("uint8", [6], "616461626f62"),
    "client_id_offsets.npy": ("int64", [3], "000000000000000003000000000000000600000000000000"),
    "metadata_split.npy": ("int32", [2], "0000000001000000"),
    "metadata_n.npy": ("int64", [2], "04000000000000000500000000000000"),
    "index_hashes.npy": ("uint64", [2], "15b0da432116052774f32b2bb966a492"),
    "index_rows.npy": ("int64", [2], "00000000000000000100000000000000"),
    "x_y-00000.npy": ("uint8", [3, 2], "000102030405"),
    "z-00000.npy": ("float64", [3], "0000000000000000000000000000f03f0000000000000040"),
    "x_y-00001.npy": ("uint8", [2, 2], "07070707"),
    "z-00001.npy": ("float64", [2], "000000000000f0bf0000000000000440"),
}
MANIFEST = {
    "format": "fedjx store",
    "version": 1,
    "num_clients": 2,
    "num_examples": 5,
    "largest": 3,
    "client_ids": "str",
    "salt": 0,
    "features": {
        "x/y": {"dtype": "uint8", "shape": [2], "file": "x_y"},
        "z": {"dtype": "float64", "shape": [], "file": "z"},
    },
    "metadata": {"split": ["train", "test"], "n": None},
    "shards": [{"first_client": 0, "first_example": 0}, {"first_client": 1, "first_example": 3}],
    "provenance": {"from": "hand", "n": 1},
    "files": {
        name: {
            "dtype": dtype,
            "shape": shape,
            "bytes": 128 + len(data) // 2,
            "crc32": [zlib.crc32(bytes.fromhex(data))],
        }
        for name, (dtype, shape, data) in FILES.items()
    },
}


def test_the_format_does_not_change(tmp_path):
    path = tmp_path / "s"
    with StoreWriter(path, provenance={"from": "hand", "n": 1}, shard_bytes=40) as writer:
        writer.add("ada", {"x/y": np.arange(6, dtype=np.uint8).reshape(3, 2), "z": np.arange(3.0)}, split="train", n=4)
        writer.add("bob", {"x/y": np.full((2, 2), 7, np.uint8), "z": np.array([-1.0, 2.5])}, split="test", n=5)
    lines = (path / "manifest.json").read_text().split("\n")
    keys = [f'"{key}": {json.dumps(value)}' for key, value in MANIFEST.items()]
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    assert lines == ["{", *(f"{line}," for line in keys), f'"sha256": "{digest}"', "}", ""]
    assert digest == Store(path).fingerprint == "414ea1cf57ff16a5f62e7808b887c6a7ebec1b7bd6f5d1c2acb8771626569899"
    header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '|u1', 'fortran_order': False, 'shape': (3, 2), }"
    assert (path / "x_y-00000.npy").read_bytes() == header.ljust(127) + b"\n" + bytes(range(6))
    assert {file.name for file in path.iterdir()} == {"manifest.json", *FILES}
    for name, (dtype, shape, data) in FILES.items():
        column = np.load(path / name)
        assert (column.dtype.name, list(column.shape), column.tobytes().hex()) == (dtype, shape, data)


# The command.


def test_inspect(tmp_path, capsys):
    store = written(tmp_path / "s", shard_bytes=200, split=SPLITS, group=list(range(10)))
    written(tmp_path / "t", CLIENTS[:1])
    assert main(["inspect", str(tmp_path / "s")]) == 0
    shown = capsys.readouterr().out
    assert shown == (
        "clients      10, with ids of type str\n"
        "examples     35; a client has 1 to 9, the median 2\n"
        f"size         945 B in {len(store.manifest['shards'])} shards\n"
        'provenance   {"made": "here"}\n'
        f"fingerprint  {store.fingerprint}\n\n"
        "feature  dtype    shape   size\n"
        "x        float32  [2, 3]  840 B\n"
        "y        int16    []      70 B\n"
        "flag     bool     []      35 B\n\n"
        "metadata  clients by value\n"
        "split     train: 8, test: 2\n"
        "group     0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1\n"
    )
    assert main(["inspect", str(tmp_path / "t")]) == 0
    assert "metadata" not in capsys.readouterr().out


def test_verify_command(tmp_path, capsys):
    store = written(tmp_path / "s")
    assert main(["verify", str(store.path)]) == 0
    assert re.fullmatch(r".*/s: 8 files, 2\.\d kB, as written \(0\.\d s\)\n", capsys.readouterr().out)
    path = store.path / "x-00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["verify", str(store.path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "x-00000.npy: corrupt between bytes 128 and 968 (rows 0 to 34) (1 faults in all)" in shown.err
    path.unlink()
    for command in ("verify", "inspect"):
        assert main([command, str(store.path)]) == 1
        assert "x-00000.npy is missing" in capsys.readouterr().err


def test_the_command_is_a_module(tmp_path):
    command = [sys.executable, "-m", "fedjx.data", "verify", str(tmp_path / "none")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "a store is a directory with a manifest.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_commands_that_do_not_exist(capsys):
    for arguments in ([], ["destroy", "x"], ["verify"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "usage: python -m fedjx.data" in capsys.readouterr().err
