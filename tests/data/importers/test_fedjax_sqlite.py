"""Tests of the importer of FedJAX's SQLite databases, on files in the published format."""

import importlib
import os
import sqlite3
import zlib

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from fedjx import ArrayType
from fedjx.data import write_store
from fedjx.data.importers import fedjax_sqlite
from tests.data.damage import check_damage
from tests.data.importers.damaged_trees import swap_pages

MODULE = importlib.import_module("fedjx.data.importers.fedjax_sqlite")  # the package has its function by this name
# In the order of the rows, which is not that of the ids.
HOSTILE = [b"10", b"2", b"o'brien", b"../x", b"", b"x" * 10_000, b"\xff\xfe\0", b"f3821_37"]
FEATURES = {"pixels": ArrayType((2, 3), np.float32), "label": ArrayType((), np.int32)}


def array(values):
    return msgpack.ExtType(1, msgpack.packb((values.shape, values.dtype.name, values.tobytes())))


def text(values):
    return msgpack.ExtType(4, msgpack.packb(((len(values),), values)))


def packed(columns):
    return zlib.compress(msgpack.packb(columns))


def examples(k, n):
    random = np.random.default_rng(k)
    return {"pixels": random.random((n, 2, 3), np.float32), "label": random.integers(62, size=n, dtype=np.int32)}


def database(
    path, rows, table="client_id BLOB NOT NULL PRIMARY KEY, data BLOB NOT NULL, num_examples INTEGER NOT NULL"
):
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE federated_data ({table})")
        connection.executemany("INSERT INTO federated_data VALUES (?, ?, ?)", rows)
    connection.close()
    return path


def row(client_id, columns, num_examples=None):
    size = len(next(iter(columns.values()))) if num_examples is None else num_examples
    return client_id, packed({name: array(column) for name, column in columns.items()}), size


def test_clients_are_read_exactly_in_the_order_of_rows(tmp_path):
    clients = {name: examples(k, k + 1) for k, name in enumerate(HOSTILE)}
    path = database(tmp_path / "x.sqlite", [row(name, columns) for name, columns in clients.items()])
    source = fedjax_sqlite(path)
    assert source.num_clients == len(HOSTILE)
    store = write_store(tmp_path / "store", source, progress=False)
    assert store.client_ids(np.arange(len(HOSTILE))) == HOSTILE
    assert store.schema == FEATURES
    connection = sqlite3.connect(path)
    for k, (data,) in enumerate(connection.execute("SELECT data FROM federated_data ORDER BY rowid")):
        for name, (code, column) in msgpack.unpackb(zlib.decompress(data)).items():
            shape, dtype, values = msgpack.unpackb(column)
            assert code == 1
            np.testing.assert_array_equal(store.client(k)[name], np.frombuffer(values, dtype).reshape(shape))
    connection.close()
    assert store.manifest["provenance"] == {
        "importer": "fedjax_sqlite",
        "files": {"x.sqlite": path.stat().st_size},
        "options": {"features": None},
    }
    assert [client.id for client in source.clients()] == HOSTILE  # Anew.


def test_all_types_of_arrays(tmp_path):
    columns = {
        "bfloat16": np.arange(3).astype(jnp.bfloat16),
        "bool": np.array([True, False, True]),
        "uint64": np.array([0, 1, 2**64 - 1], np.uint64),
        "float16": np.arange(6, dtype=np.float16).reshape(3, 2),
        "complex64": np.arange(3) * np.complex64(1j),
        "wide": np.zeros((3, 0, 4), np.int8),
    }
    words = [b"", b"\xff\0", b"word"]
    both = {**{name: array(column) for name, column in columns.items()}, "text": text(words)}
    path = database(tmp_path / "x.sqlite", [(b"a", packed(both), 3)])
    (client,) = fedjax_sqlite(path).clients()
    assert client.examples["text"].dtype == object
    assert client.examples["text"].tolist() == words
    for name, column in columns.items():
        assert client.examples[name].dtype == column.dtype
        np.testing.assert_array_equal(client.examples[name], column)
    asked = {"uint64": ArrayType((), np.uint64), "bool": ArrayType((), np.uint8)}
    (client,) = fedjax_sqlite(path, features=asked).clients()
    assert {name: column.dtype for name, column in client.examples.items()} == {"uint64": np.uint64, "bool": np.uint8}


def deep(levels):
    return b"\x91" * levels + b"\xc0"


def with_column(column, size=2):
    return packed({"x": column}), size


GOOD = np.arange(2)


@pytest.mark.parametrize(
    ("data", "num_examples", "message"),
    [
        (*with_column(array(GOOD), 3), "arrays of num_examples rows; got num_examples=3 and 2 rows of 'x'"),
        (*with_column(array(GOOD), "2"), "got num_examples='2' and 2 rows"),
        (*with_column(array(GOOD), None), "got num_examples=None and 2 rows"),
        (*with_column([1, 2]), "and None rows of 'x'"),
        (*with_column(msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))), "and None rows of 'x'"),
        (*with_column(msgpack.ExtType(3, msgpack.packb(((), "int64", bytes(8))))), "and None rows of 'x'"),
        (*with_column(msgpack.ExtType(5, b"")), "got the extension type 5"),
        (*with_column(msgpack.ExtType(1, b"")), "a map of arrays in msgpack in zlib; got"),
        (*with_column(msgpack.ExtType(1, msgpack.packb(((2,), "int64", bytes(15))))), r"got 15 bytes for int64\[2\]"),
        (*with_column(msgpack.ExtType(1, msgpack.packb(((2**62, 4), "int64", bytes(16))))), "got 16 bytes for int64"),
        (*with_column(msgpack.ExtType(1, msgpack.packb(((-2,), "int64", bytes(16))))), r"an array of shape \[-2\]"),
        (*with_column(msgpack.ExtType(1, msgpack.packb(((2,), "object", bytes(16))))), "an array of dtype object"),
        (*with_column(msgpack.ExtType(1, msgpack.packb(((2,), "int63", bytes(16))))), "got data type 'int63'"),
        (*with_column(msgpack.ExtType(1, msgpack.packb(((0, 2**62), "int8", b"")))), "num_examples=2 and 0 rows"),
        (
            *with_column(msgpack.ExtType(1, msgpack.packb(((2, 2**62, 0, 2**62), "int8", b"")))),
            "in msgpack in zlib; got",
        ),
        (*with_column(msgpack.ExtType(4, msgpack.packb(((3,), [b"a", b"b"])))), r"shape \[3\] without its bytes"),
        (*with_column(msgpack.ExtType(4, msgpack.packb(((2,), [b"a", 1])))), r"shape \[2\] without its bytes"),
        (zlib.compress(msgpack.packb([1])), 2, "a map of arrays; got list"),
        (zlib.compress(msgpack.packb({b"x": array(GOOD)})), 2, "rows of b'x'"),
        (zlib.compress(deep(100_000)), 2, "a map of arrays in msgpack in zlib"),
        (zlib.compress(b""), 2, "a map of arrays in msgpack in zlib"),
        (b"", 2, "data that do not end where zlib's do"),
        (b"no zlib", 2, "incorrect header check"),
        (packed({"x": array(GOOD)})[:-1], 2, "data that do not end where zlib's do"),
        (packed({"x": array(GOOD)}) + b"x", 2, "data that do not end where zlib's do"),
        (zlib.compress(bytes(10_000_000)), 2, "more than max_client_bytes=1000000"),
        ("text", 2, "need to be a BLOB; got str"),
        (None, 2, "need to be a BLOB; got NoneType"),
    ],
)
def test_wrong_clients(tmp_path, data, num_examples, message):
    rows = [row(b"good", {"x": GOOD}), (b"bad", data, num_examples)]
    path = database(tmp_path / "x.sqlite", rows, "client_id, data, num_examples")
    with pytest.raises(ValueError, match=message) as error:
        write_store(tmp_path / "store", fedjax_sqlite(path, max_client_bytes=1_000_000), progress=False)
    assert f"{path}, client b'bad': " in str(error.value)
    assert os.listdir(tmp_path) == ["x.sqlite"]


@pytest.mark.parametrize("max_client_bytes", [1 << 20, 1 << 27])
def test_a_bomb_takes_no_memory_beyond_what_is_allowed(tmp_path, monkeypatch, max_client_bytes):
    import tracemalloc

    # Where much is allowed, a bomb is counted before as much is taken.
    monkeypatch.setattr(MODULE, "_MANY_BYTES", 1 << 20)
    bomb = zlib.compress(bytes(1 << 28))
    path = database(tmp_path / "x.sqlite", [(b"a", bomb, 1)])
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than max_client_bytes"):
        list(fedjax_sqlite(path, max_client_bytes=max_client_bytes).clients())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23


def test_clients_that_are_counted_first_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "_MANY_BYTES", 100)
    monkeypatch.setattr(MODULE, "_PIECE", 7)
    column = np.arange(1000) % 7
    data = packed({"x": array(column)})
    path, size = database(tmp_path / "x.sqlite", [(b"a", data, 1000)]), len(zlib.decompress(data))
    (client,) = fedjax_sqlite(path, max_client_bytes=size).clients()
    np.testing.assert_array_equal(client.examples["x"], column)
    with pytest.raises(ValueError, match="more than max_client_bytes"):
        list(fedjax_sqlite(path, max_client_bytes=size - 1).clients())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(b"a", {"x": GOOD}), row(b"a", {"x": GOOD})], "client ids need to be different; got b'a'"),
        ([row("a", {"x": GOOD})], "client 'a': client ids need to be of type BLOB; got str"),
        ([row(1, {"x": GOOD})], "client 1: client ids need to be of type BLOB; got int"),
        ([row(b"a", {"x": GOOD}), row(b"b", {"y": GOOD})], "all clients need the same features"),
        ([row(b"a", {"x": GOOD}), row(b"b", {"x": GOOD * 1.0})], "all clients need the same features, dtypes"),
        ([], "a store needs at least one example"),
        ([row(b"a", {"x": np.empty(0)})], "a store needs at least one example"),
    ],
)
def test_wrong_rows(tmp_path, rows, message):
    path = database(tmp_path / "x.sqlite", rows, "client_id, data, num_examples")
    with pytest.raises(ValueError, match=message):
        write_store(tmp_path / "store", fedjax_sqlite(path), progress=False)
    assert os.listdir(tmp_path) == ["x.sqlite"]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"y": ArrayType((), np.int64)}, r"client b'a': features need to be .*\['y'\], and it has \['x'\]"),
        ({"x": ArrayType((2,), np.int64)}, r"feature 'x' needs to be of shape \[2\]; got \[\]"),
        ({"x": ArrayType((), bool)}, "feature 'x' needs values from 0 to 1 to be bool; got 5 to 6"),
    ],
)
def test_wrong_features(tmp_path, features, message):
    path = database(tmp_path / "x.sqlite", [row(b"a", {"x": GOOD + 5})])
    with pytest.raises(ValueError, match=message):
        list(fedjax_sqlite(path, features=features).clients())


def test_no_such_database(tmp_path):
    with sqlite3.connect(tmp_path / "x.sqlite") as connection:
        connection.execute("CREATE TABLE examples (x)")
    connection.close()
    with pytest.raises(ValueError, match=r"needs a table 'federated_data'; got .* with \['examples'\]"):
        fedjax_sqlite(tmp_path / "x.sqlite")
    path = database(tmp_path / "y.sqlite", [], "client_id, data, size")
    with pytest.raises(ValueError, match=r"needs columns .*; got .* with \['client_id', 'data', 'size'\]"):
        fedjax_sqlite(path)


def test_a_tree_in_disorder_is_refused(tmp_path):
    path = database(tmp_path / "x.sqlite", [row(b"%d" % k, examples(k, 20)) for k in range(40)])
    swap_pages(path, "federated_data")
    connection = sqlite3.connect(path)  # A reader that does not check notices nothing.
    ids = [client_id for (client_id,) in connection.execute("SELECT client_id FROM federated_data ORDER BY rowid")]
    connection.close()
    assert sorted(ids, key=int) == [b"%d" % k for k in range(40)] != ids
    with pytest.raises(ValueError, match=r"a database needs to be intact; got .*x\.sqlite: .*out of order"):
        next(fedjax_sqlite(path).clients())


def test_damaged_databases(tmp_path):
    """The checksums of zlib guard the examples, not the ids."""
    rows = [row(b"client %d" % k, examples(k, 1 + k % 5)) for k in range(40)]
    path = database(tmp_path / "x.sqlite", rows)
    assert check_damage(path, lambda: fedjax_sqlite(path), number=200) > 150
    data, seen = path.read_bytes(), {str(columns) for k in range(40) for columns in [examples(k, 1 + k % 5)]}
    for place in np.random.default_rng(0).integers(len(data), size=100):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            clients = list(fedjax_sqlite(path).clients())
        except ValueError:
            continue
        assert {str(client.examples) for client in clients} == seen
