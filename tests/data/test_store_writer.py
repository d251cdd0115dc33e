"""Tests of writing stores: what is refused, what is left of a writer that failed, and the format."""

import hashlib
import itertools
import json
import os
import shutil
import tracemalloc
import zlib

import numpy as np
import pytest

from fedjx.data import FederatedData, Store, StoreWriter, columns
from tests.data.killing import outcomes
from tests.data.stores import CLIENTS, SIZES, SPLITS, assert_equal, client, written

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


@pytest.mark.parametrize("ids", [[f"klient {'ö' * (k % 3)}{k}" for k in range(10)], [2**63 - 1 - k for k in range(10)]])
@pytest.mark.parametrize("shard_bytes", [1, 60, 200, 1 << 29])
def test_many_clients_at_once_make_the_same_store(tmp_path, ids, shard_bytes):
    rates = [k / 4 for k in range(10)]
    written(tmp_path / "one", ids=ids, shard_bytes=shard_bytes, split=SPLITS, rate=rates)
    examples = {name: np.concatenate([client[name] for client in CLIENTS]) for name in CLIENTS[0]}
    bounds = [0, 4, 4, 5, 10]
    with StoreWriter(tmp_path / "many", shard_bytes=shard_bytes, provenance={"made": "here"}) as writer:
        for start, stop in itertools.pairwise(bounds):
            rows = slice(sum(SIZES[:start]), sum(SIZES[:stop]))
            part = {name: column[rows] for name, column in examples.items()}
            chosen = slice(start, stop)
            writer.add_many(ids[chosen], part, SIZES[chosen], split=SPLITS[chosen], rate=np.array(rates[chosen]))
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "many").iterdir()}
    Store(tmp_path / "many").verify()


EMPTY_TOO = [[0, 0, 3, 0, 2, 0], [0, 9, 0, 0, 1, 4], [2, 0, 0, 9, 0, 0], [0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("sizes", EMPTY_TOO)
@pytest.mark.parametrize("shard_bytes", [1, 60, 1 << 29])
@pytest.mark.parametrize("bounds", [[0, 6], [0, 1, 2, 6], [0, 2, 3, 4, 5, 6]])
def test_clients_without_examples_are_clients(tmp_path, sizes, shard_bytes, bounds):
    clients = [client(k, n) for k, n in enumerate(sizes)]
    store = written(tmp_path / "one", clients, shard_bytes=shard_bytes, group=[5, 6, 7, 8, 9, 10])
    memory = FederatedData.from_clients(clients)
    with StoreWriter(tmp_path / "many", shard_bytes=shard_bytes, provenance={"made": "here"}) as writer:
        for start, stop in itertools.pairwise(bounds):
            part = {name: np.concatenate([c[name] for c in clients[start:stop]]) for name in clients[0]}
            ids = [f"client {k}" for k in range(start, stop)]
            writer.add_many(ids, part, sizes[start:stop], group=np.arange(start, stop) + 5)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "many").iterdir()}
    store.verify()
    assert (store.num_clients, store.sizes[:].tolist()) == (6, sizes)
    assert store.client_ids(range(6)) == [f"client {k}" for k in range(6)]
    assert store.find(["client 5", "client 0"]).tolist() == [5, 0]
    for k, examples in enumerate(clients):
        assert_equal(store.client(k), examples)
    for ids in ([5, 0, 3, 3], [1, 4], range(6)):
        assert_equal(store.read(np.array(ids)), memory.read(np.array(ids)))
    assert_equal(store.load().examples, memory.examples)
    full = store.select_clients(store.sizes[:] > 0)
    assert full.ids[:].tolist() == np.flatnonzero(sizes).tolist()
    empty = store.select_clients(np.array(sizes) == 0)
    assert (empty.num_examples, empty.largest, empty.metadata("group").tolist()) == (
        0,
        0,
        (np.flatnonzero(np.array(sizes) == 0) + 5).tolist(),
    )


@pytest.mark.parametrize(
    ("ids", "examples", "sizes", "metadata", "error", "message"),
    [
        (
            ["b", "c"],
            {"x": np.zeros(3)},
            [3],
            {"s": "tt"},
            ValueError,
            r"an integer for each client; got int64\[1\] for 2",
        ),
        (
            ["b", "c"],
            {"x": np.zeros(3)},
            [1.0, 2.0],
            {"s": "tt"},
            ValueError,
            "an integer for each client; got float64",
        ),
        (["b", "c"], {"x": np.zeros(3)}, [4, -1], {"s": "tt"}, ValueError, "at least 0; got -1 for client 1"),
        (["b", "c"], {"x": np.zeros(3)}, [1, 1], {"s": "tt"}, ValueError, "add up to .* got 2 and num_examples=3"),
        (["b", "c"], {"x": np.zeros(3, int)}, [1, 2], {"s": "tt"}, ValueError, "got <x=int64> for client 'b' and <x=f"),
        (["b", "c"], {"x": np.zeros(3), "y": [1]}, [1, 2], {"s": "tt"}, ValueError, "'x' with 3 and 'y' with 1"),
        (["b", 5], {"x": np.zeros(3)}, [1, 2], {"s": "tt"}, TypeError, "got 5 of type int after ids of type str"),
        (["b", None], {"x": np.zeros(3)}, [1, 2], {"s": "tt"}, TypeError, "a client id is a str, bytes or int"),
        (["b", "c"], {"x": np.zeros(3)}, [1, 2], {"s": "t"}, ValueError, "value for each client; got 1 for 2 clients"),
        (["b", "c"], {"x": np.zeros(3)}, [1, 2], {"s": ["t", 1]}, ValueError, r"got \['int', 'str'\] for 's'"),
        (["b", "c"], {"x": np.zeros(3)}, [1, 2], {"s": [1, 2]}, ValueError, "got {'s': 'int'} for client 'b' and"),
        (["b", "c"], {"x": np.zeros(3)}, [1, 2], {}, ValueError, "got {} for client 'b' and"),
    ],
)
def test_of_many_clients_none_is_written_if_one_is_refused(tmp_path, ids, examples, sizes, metadata, error, message):
    with StoreWriter(tmp_path / "s") as writer:
        for k, name in enumerate(["a", "z"]):
            writer.add_many([name], {"x": [1.0 + k]}, [1], s="t")
            with pytest.raises(error, match=message):
                writer.add_many(ids, examples, sizes, **metadata)
    store = Store(tmp_path / "s")
    assert store.client_ids([0, 1]) == ["a", "z"]
    assert store.read([0, 1])["x"].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="a writer needs to be open"):
        writer.add_many(["b"], {"x": [1.0]}, [1], s="t")


def test_too_many_strings(tmp_path, monkeypatch):
    monkeypatch.setattr("fedjx.data.client_metadata._MAX_VALUES", 2)
    with StoreWriter(tmp_path / "s") as writer:
        for k in range(4):
            writer.add(k, {"x": [k]}, user=str(k % 2))
        with pytest.raises(ValueError, match="few different strings; got more than 2 for 'user'"):
            writer.add(9, {"x": [9]}, user="2")
        with pytest.raises(ValueError, match="few different strings; got more than 2 for 'user'"):
            writer.add_many([8, 9], {"x": [8, 9]}, [1, 1], user="02")


def test_nothing_is_left_of_a_store_without_clients_or_with_an_error(tmp_path):
    with pytest.raises(ValueError, match="a store needs at least one example; got none, and 0 clients without"):
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


def test_a_path_that_is_taken_at_the_last_moment_is_refused(tmp_path, monkeypatch):
    rename = os.rename

    def late(directory, path):
        monkeypatch.setattr(os, "rename", rename)
        written(path)  # Another writer was faster, and this one has already looked.
        rename(directory, path)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(FileExistsError, match="path that is free"), StoreWriter(tmp_path / "t") as writer:
        writer.add(0, CLIENTS[0])
    assert Store(tmp_path / "t").num_clients == 10
    assert [x.name for x in tmp_path.iterdir()] == ["t"]


def test_errors_of_writers(tmp_path):
    with pytest.raises(ValueError, match="shard_bytes must be an integer of at least 1; got shard_bytes=0"):
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


def test_killed_writers_leave_a_whole_store_or_none(tmp_path):
    code = """
        import numpy as np
        from fedjx.data import Store, StoreWriter

        def write(path):
            with StoreWriter(path, shard_bytes=1 << 12) as writer:
                for k in range(20):
                    writer.add(k, {"x": np.full((1 + k % 7, 16), k)}, split="a")

        total = lines_of(lambda: write("first"))
        random.seed(0)
        # Half of them in the last fifth, where the store is finished and named.
        lines = [random.randint(first, total) for first in [1] * 50 + [total * 4 // 5] * 48]
        for attempt, line in enumerate([*lines, total - 1, total, total + 1]):
            path = f"store{attempt}"
            status = victim(lambda: write(path), line)
            assert status == (-signal.SIGKILL if line <= total else 0), (status, line)
            if not os.path.exists(path):
                try:
                    Store(path)
                except FileNotFoundError as error:
                    print("none", "partial" in str(error))
                continue
            store = Store(path)
            store.verify()
            assert store.num_clients == 20 and store.client(19)["x"].tolist() == [[19] * 16] * 6, store
            print("whole", any(x.startswith(f".{path}.partial") for x in os.listdir()))
    """
    found = outcomes(code, tmp_path)
    assert len(found) == 101
    assert set(found) <= {"none True", "none False", "whole False"}
    assert found.count("none True") >= 80
    assert found.count("whole False") >= 3


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
