"""Tests of the databases that are written for other projects, read by hand and by the importers."""

import os
import sqlite3
import zlib

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from fedjx.data import Client, Source, preprocess, write_store
from fedjx.data.exporters import serialised_examples, to_fedjax_sqlite, to_tff_sqlite
from fedjx.data.importers import fedjax_sqlite, tff_sqlite
from tests.data.importers.protos import parsed
from tests.data.stores import CLIENTS, MEMORY, assert_equal, written

IDS = ["10", "2", "o'brien", "../x", "ünï", "x" * 10_000, 'a"b', "", "f3821_37", "nul\0"]


def test_tff_databases_are_in_the_published_format(tmp_path):
    path = tmp_path / "x.sqlite"
    to_tff_sqlite(written(tmp_path / "store", ids=IDS), path, "train")
    connection = sqlite3.connect(path)
    for name, examples in zip(IDS, CLIENTS, strict=True):
        rows = connection.execute(
            "SELECT split_name, serialized_example_proto FROM examples WHERE client_id = ? ORDER BY rowid", (name,)
        ).fetchall()
        assert len(rows) == len(examples["y"])
        for k, (split, data) in enumerate(rows):
            assert split == "train"
            assert parsed(data) == {
                "x": ("float_list", examples["x"][k].ravel().tolist()),
                "y": ("int64_list", [examples["y"][k]]),
                "flag": ("int64_list", [examples["flag"][k]]),
            }
    counts = connection.execute("SELECT client_id, num_examples, split_name FROM client_metadata").fetchall()
    assert counts == [(name, len(examples["y"]), "train") for name, examples in zip(IDS, CLIENTS, strict=True)]
    indices = connection.execute("SELECT tbl_name, COUNT(*) FROM sqlite_master WHERE type = 'index' GROUP BY 1")
    assert dict(indices) == {"examples": 2, "client_metadata": 1}
    plan = "EXPLAIN QUERY PLAN SELECT * FROM examples WHERE split_name = 'train' ORDER BY client_id, rowid"
    assert "TEMP B-TREE" not in str(connection.execute(plan).fetchall())
    connection.close()


def test_round_trips(tmp_path):
    store = written(tmp_path / "store", ids=IDS)
    to_tff_sqlite(store, tmp_path / "tff.sqlite", "train")
    to_fedjax_sqlite(store, tmp_path / "fedjax.sqlite")
    tff = write_store(tmp_path / "tff", tff_sqlite(tmp_path / "tff.sqlite", features=store.schema), progress=False)
    fedjax = write_store(tmp_path / "fedjax", fedjax_sqlite(tmp_path / "fedjax.sqlite"), progress=False)
    assert fedjax.client_ids(np.arange(10)) == [name.encode() for name in IDS]
    for k, name in enumerate(IDS):
        assert_equal(tff.client(tff.find([name])[0]), CLIENTS[k])
        assert_equal(fedjax.client(k), CLIENTS[k])


def test_fedjax_databases_are_in_the_published_format(tmp_path):
    to_fedjax_sqlite(MEMORY, tmp_path / "x.sqlite")
    connection = sqlite3.connect(tmp_path / "x.sqlite")
    rows = connection.execute("SELECT client_id, data, num_examples FROM federated_data ORDER BY rowid").fetchall()
    connection.close()
    assert [client_id for client_id, _, _ in rows] == [b"%d" % k for k in range(10)]
    for (_, data, size), examples in zip(rows, CLIENTS, strict=True):
        assert size == len(examples["y"])
        columns = {}
        for name, (code, values) in msgpack.unpackb(zlib.decompress(data)).items():
            assert code == 1
            shape, dtype, octets = msgpack.unpackb(values)
            columns[name] = np.frombuffer(octets, dtype).reshape(shape)
        assert_equal(columns, examples)


def test_sources_with_text(tmp_path):
    text = np.array([[b"a", b"\xff"], [b"", b"word"]], object)
    source = Source(lambda: iter([Client(b"a", {"t": text, "b": np.arange(2).astype(jnp.bfloat16)})]))
    to_tff_sqlite(source, tmp_path / "tff.sqlite", "train")
    to_fedjax_sqlite(source, tmp_path / "fedjax.sqlite")
    for read in (tff_sqlite(tmp_path / "tff.sqlite"), fedjax_sqlite(tmp_path / "fedjax.sqlite")):
        (client,) = read.clients()
        assert client.examples["t"].tolist() == text.tolist()
        assert client.examples["b"].astype(np.float32).tolist() == [0, 1]


def test_integers_of_all_lengths():
    bounds = [n for k in range(1, 10) for n in (2 ** (7 * k) - 1, 2 ** (7 * k))][:-1]
    values = np.array([0, 1, *bounds, 2**63 - 1, -1, -(2**63)])
    (row,) = serialised_examples({"x": values[None]})
    assert parsed(row) == {"x": ("int64_list", values.tolist())}
    assert [parsed(row)["x"][1] for row in serialised_examples({"x": values})] == [[value] for value in values]
    assert [parsed(row)["x"][1] for row in serialised_examples({"x": np.zeros((2, 0), int)})] == [[], []]
    assert serialised_examples({"x": np.zeros((0, 3))}) == []
    large = np.random.default_rng(0).random((2, 5000), np.float32)
    assert [parsed(row)["x"][1] for row in serialised_examples({"x": large})] == large.tolist()


def failing():
    yield Client("a", {"x": np.arange(2)})
    raise OSError("the disk is gone")


def of(*clients):
    return Source(lambda: iter(clients))


X = {"x": np.arange(2)}


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (Source(failing), OSError, "the disk is gone"),
        (of(Client("a", X), Client("a", X)), ValueError, "client ids need to be different; got b?'a' twice"),
        (
            of(Client("a", {"x": np.array(["text"], object)})),
            ValueError,
            "text needs to be bytes .*; got others in 'x'",
        ),
        (of(Client("a", {"x": np.arange(2), "y": np.arange(3)})), ValueError, "features need the same number of exam"),
    ],
)
@pytest.mark.parametrize("export", [lambda source, path: to_tff_sqlite(source, path, "train"), to_fedjax_sqlite])
def test_what_fails_leaves_nothing(tmp_path, export, source, error, message):
    with pytest.raises(error, match=message):
        export(source, tmp_path / "x.sqlite")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.array([0.1]), "floats need to be exact in float32; got others in 'x'"),
        (np.array([2**63], np.uint64), "fit in int64 or float32; got uint64 in 'x'"),
        (np.array([1j]), "fit in int64 or float32; got complex128 in 'x'"),
    ],
)
def test_what_an_example_cannot_hold(tmp_path, column, message):
    with pytest.raises(ValueError, match=message):
        to_tff_sqlite(of(Client("a", {"x": column})), tmp_path / "x.sqlite", "train")
    with pytest.raises(ValueError, match=r"client ids need to be UTF-8; got b'.xff'"):
        to_tff_sqlite(of(Client(b"\xff", X)), tmp_path / "x.sqlite", "train")
    assert not os.listdir(tmp_path)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "x.sqlite").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="needs a path that is free"):
        to_fedjax_sqlite(MEMORY, tmp_path / "x.sqlite")
    assert (tmp_path / "x.sqlite").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["x.sqlite"]


def test_preprocessed_clients_keep_their_ids(tmp_path):
    store = written(tmp_path / "store", ids=IDS)
    to_tff_sqlite(preprocess(store, lambda columns: {"y": columns["y"]}), tmp_path / "x.sqlite", "train")
    assert [client.id for client in tff_sqlite(tmp_path / "x.sqlite").clients()] == sorted(IDS, key=str.encode)
