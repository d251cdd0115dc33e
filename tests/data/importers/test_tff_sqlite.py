"""Tests of the importer of TFF's SQLite databases, on files in the published format."""

import lzma
import os
import sqlite3
import tracemalloc

import numpy as np
import pytest

from fedjx import ArrayType
from fedjx.data import write_store
from fedjx.data.importers import tff_sqlite
from tests.data.damage import check_damage
from tests.data.importers.damaged_trees import swap_pages
from tests.data.importers.protos import parsed, serialised

# The text order of the ids is not that of their numbers, nor that of the rows.
HOSTILE = ["10", "2", "o'brien", "../x", "", "x" * 10_000, 'a"b; DROP TABLE examples', "nul\0byte", "ünï", "f3821_37"]
FEATURES = {"pixels": ArrayType((2, 3), np.float32), "label": ArrayType((), np.uint8)}


def examples(client, n):
    random = np.random.default_rng(client)
    return [serialised(pixels=random.random(6), label=random.integers(62)) for _ in range(n)]


def database(path, splits, *, indices=True, id_type="TEXT"):
    """Writes the rows of the clients by split in turns, a list of serialised examples each."""
    with sqlite3.connect(path) as connection:
        connection.execute(
            f"CREATE TABLE examples (split_name TEXT, client_id {id_type}, serialized_example_proto BLOB)"
        )
        connection.execute("CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)")
        for split, clients in splits.items():
            for client_id, rows in clients.items():
                connection.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", (client_id, split, len(rows)))
            for k in range(max(map(len, clients.values()), default=0)):
                for client_id, rows in clients.items():
                    if k < len(rows):
                        connection.execute("INSERT INTO examples VALUES (?, ?, ?)", (split, client_id, rows[k]))
        if indices:
            connection.execute("CREATE INDEX idx_examples_client_id ON examples (client_id)")
            connection.execute("CREATE INDEX idx_examples_client_id_split ON examples (split_name, client_id)")
            connection.execute("CREATE INDEX idx_metadata_client_id ON client_metadata (client_id)")
    connection.close()
    return path


def changed(path, *statements):
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    return path


def by_hand(path, split):
    """Reads a split with sqlite3 and protobuf alone."""
    connection = sqlite3.connect(path)
    clients = {}
    for client_id, example in connection.execute(
        "SELECT client_id, serialized_example_proto FROM examples WHERE split_name = ? ORDER BY rowid", (split,)
    ):
        clients.setdefault(client_id, []).append(parsed(example))
    connection.close()
    return clients


def read(source):
    return {client.id: client.examples for client in source.clients()}


@pytest.fixture
def path(tmp_path):
    train = {name: examples(k, k + 1) for k, name in enumerate(HOSTILE)}
    test = {name: examples(100 + k, 2) for k, name in enumerate(HOSTILE[:3])}
    return database(tmp_path / "data.sqlite", {"all_train": train, "all_test": test})


@pytest.mark.parametrize("indices", [True, False])
@pytest.mark.parametrize("split", ["all_train", "all_test"])
def test_a_split_is_read_exactly(tmp_path, path, split, indices):
    if not indices:
        changed(path, "DROP INDEX idx_examples_client_id", "DROP INDEX idx_examples_client_id_split")
    expected = by_hand(path, split)
    source = tff_sqlite(path, split=split, features=FEATURES)
    assert source.num_clients == len(expected)
    store = write_store(tmp_path / "store", source, progress=False)
    assert store.client_ids(np.arange(store.num_clients)) == sorted(expected, key=str.encode)
    assert set(store.metadata("split")) == {split}
    assert store.schema == FEATURES
    for name, rows in expected.items():
        client = store.client(store.find([name])[0])
        pixels = np.array([row["pixels"][1] for row in rows], np.float32).reshape(-1, 2, 3)
        np.testing.assert_array_equal(client["pixels"], pixels)
        assert client["label"].tolist() == [row["label"][1][0] for row in rows]
    provenance = store.manifest["provenance"]
    assert provenance == {
        "importer": "tff_sqlite",
        "files": {"data.sqlite": path.stat().st_size},
        "options": {"features": "<label=uint8,pixels=float32[2,3]>", "split": split},
    }


def test_clients_are_read_anew(path):
    source = tff_sqlite(path, split="all_test")
    first = source.clients()
    assert next(first).id == next(source.clients()).id == "10"
    assert [client.id for client in first] == ["2", "o'brien"]
    assert {name: (x.dtype, x.shape) for name, x in read(source)["2"].items()} == {
        "pixels": (np.float32, (2, 6)),
        "label": (np.int64, (2,)),
    }


def test_the_one_split_of_a_file_need_not_be_named(tmp_path):
    clients = {"b": examples(0, 2), "a": examples(1, 1)}
    path = database(tmp_path / "x.sqlite", {"default_split": clients}, indices=False)
    source = tff_sqlite(path)
    assert source.num_clients == 2
    assert [(client.id, client.metadata) for client in source.clients()] == [
        ("a", {"split": "default_split"}),
        ("b", {"split": "default_split"}),
    ]


def test_splits_of_different_clients_are_read_together(tmp_path, path):
    clients = {"train": {"1": examples(0, 2), "3": examples(1, 1)}, "test": {"2": examples(2, 3)}}
    source = tff_sqlite(database(tmp_path / "x.sqlite", clients))
    assert source.num_clients == 3
    assert [(client.id, client.metadata["split"]) for client in source.clients()] == [
        ("2", "test"),
        ("1", "train"),
        ("3", "train"),
    ]
    with pytest.raises(ValueError, match=r"different clients to be read together; got client .* several of \['all_te"):
        tff_sqlite(path)


@pytest.mark.parametrize(("suffix", "form"), [(".lzma", lzma.FORMAT_ALONE), (".xz", lzma.FORMAT_XZ)])
def test_packed_files(tmp_path, path, suffix, form, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    packed = tmp_path / f"data.sqlite{suffix}"
    packed.write_bytes(lzma.compress(path.read_bytes(), form))
    source = tff_sqlite(packed, split="all_train", features=FEATURES)
    assert source.num_clients is None
    expected = read(tff_sqlite(path, split="all_train", features=FEATURES))
    for _ in range(2):
        assert repr(read(source)) == repr(expected)
        assert not os.listdir(tmp_path / "temporary")
    clients = source.clients()
    next(clients)
    # The copy has no name, so that it is gone with the process, however that ends.
    assert not os.listdir(tmp_path / "temporary")
    clients.close()
    assert sorted(os.listdir(tmp_path)) == ["data.sqlite", packed.name, "temporary"]


def zeros_behind(data):
    """A database and 8 MB of zeros behind it, which hardly any bytes stand for."""
    return lzma.compress(data + bytes(8_000_000), preset=0)


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (lambda data: lzma.compress(data, lzma.FORMAT_ALONE)[:-30], "ends before the mark of its end"),
        (lambda data: lzma.compress(data)[:-30], "ends before the mark of its end"),
        (lambda data: lzma.compress(data)[:500], "ends before the mark of its end"),
        (lambda data: lzma.compress(data) + b"more", "something follows"),
        (lambda data: lzma.compress(b"no database" * 100), "what is in it is not an SQLite database"),
        (lambda data: lzma.compress(b"no"), "needs to be one that SQLite can read; got .*file is not a database"),
        (zeros_behind, "more than the [0-9]+ bytes that the database says"),
        (lambda data: b"]\0\0\0\x80" + lzma.compress(data, lzma.FORMAT_ALONE)[5:], "Memory usage limit"),
        (lambda data: data, "needs to be whole; got .*[Ff]ormat"),
        (lambda data: b"", "ends before the mark of its end"),
    ],
)
def test_packed_files_that_are_not_whole(tmp_path, path, pack, message):
    packed = tmp_path / "data.sqlite.lzma"
    packed.write_bytes(pack(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        write_store(tmp_path / "store", tff_sqlite(packed, split="all_test", features=FEATURES), progress=False)
    assert str(packed) in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["data.sqlite", "data.sqlite.lzma"]


# What is refused.


def test_no_such_split(path):
    with pytest.raises(ValueError, match=r"got split='train', and it has \['all_test', 'all_train'\]. Choose one."):
        tff_sqlite(path, split="train")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no database at all" * 100, "file is not a database"), (b"", r"needs a table 'examples'; got .* with \[\]")],
)
def test_what_is_no_database(tmp_path, content, message):
    (tmp_path / "x.sqlite").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tff_sqlite(tmp_path / "x.sqlite")
    with pytest.raises(FileNotFoundError, match=r"got .*/absent\.sqlite, where there is none"):
        tff_sqlite(tmp_path / "absent.sqlite")
    with pytest.raises(FileNotFoundError, match="an importer needs a file"):
        tff_sqlite(tmp_path)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["DROP TABLE client_metadata"], r"needs a table 'client_metadata'; got .* with \['examples'\]"),
        (["ALTER TABLE examples RENAME COLUMN client_id TO user"], r"'examples' needs columns .*; got .*'user'"),
        (
            ["ALTER TABLE examples RENAME TO real", "CREATE VIEW examples AS SELECT * FROM real"],
            r"needs a table 'examples'; got .* with \['client_metadata', 'real'\]",
        ),
        (["DELETE FROM examples", "DELETE FROM client_metadata"], r"a split needs to be in the file; .* has \[\]"),
        (["DELETE FROM examples"], "a split needs examples; got none"),
        (["UPDATE client_metadata SET split_name = x'ff'"], "names of splits need to be text; got b'.xff'"),
        (["UPDATE client_metadata SET num_examples = 7 WHERE client_id = '2'"], "2 rows and num_examples=7 for clie"),
        (["UPDATE client_metadata SET num_examples = 'two'"], "got 2 rows and num_examples='two' for client '10'"),
        (["UPDATE client_metadata SET num_examples = NULL"], "got 2 rows and num_examples=None for client '10'"),
        (["DELETE FROM client_metadata WHERE client_id = 'o''brien'"], 'got client "o\'brien" only in the first'),
        (["INSERT INTO client_metadata VALUES ('2', 'all_test', 2)"], "got 0 rows and num_examples=2 for client '2'"),
        (["INSERT INTO client_metadata VALUES ('new', 'all_test', 1)"], "got 0 rows and num_examples=1 for client 'n"),
        (["UPDATE examples SET serialized_example_proto = 3"], "client '10': example 0: a serialised .* got int"),
        (["UPDATE examples SET serialized_example_proto = 'abc'"], "a serialised example is bytes; got str"),
        (["UPDATE examples SET serialized_example_proto = NULL"], "a serialised example is bytes; got NoneType"),
        (
            ["UPDATE examples SET serialized_example_proto = x'0affff' WHERE client_id = '2'"],
            "x.sqlite, split 'all_test': client '2': example 0: a serialised example needs to be well-formed",
        ),
        (
            ["UPDATE examples SET serialized_example_proto = x''"],
            r"features need .*; got \['pixels', 'label'\], and it h",
        ),
        (
            [
                "UPDATE examples SET client_id = x'ff00' WHERE client_id = '2'",
                "UPDATE client_metadata SET client_id = x'ff00' WHERE client_id = '2'",
            ],
            "client ids need to be text; got client b'.xff.x00'",
        ),
        (
            [
                "UPDATE examples SET client_id = CAST(x'ff61' AS TEXT) WHERE client_id = '2'",
                "UPDATE client_metadata SET client_id = CAST(x'ff61' AS TEXT) WHERE client_id = '2'",
            ],
            "client ids need to be UTF-8; got client '.udcffa'",
        ),
    ],
)
def test_wrong_databases(tmp_path, statements, message):
    clients = {name: examples(k, 2) for k, name in enumerate(HOSTILE[:3])}
    path = changed(database(tmp_path / "x.sqlite", {"all_test": clients}), *statements)
    with pytest.raises(ValueError, match=message):
        write_store(tmp_path / "store", tff_sqlite(path, split="all_test", features=FEATURES), progress=False)
    assert os.listdir(tmp_path) == ["x.sqlite"]


def test_clients_without_examples_keep_their_place(tmp_path):
    clients = {"a": [], "b": examples(0, 2), "c": []}
    source = tff_sqlite(database(tmp_path / "x.sqlite", {"train": clients}))
    assert [(client.id, len(client.examples["label"])) for client in source.clients()] == [("a", 0), ("b", 2), ("c", 0)]
    store = write_store(tmp_path / "store", source, progress=False)
    assert store.client_ids([0, 1, 2]) == ["a", "b", "c"]
    assert store.sizes[:].tolist() == [0, 2, 0]


def test_a_database_in_use_is_refused(tmp_path, path):
    beside = tmp_path / "data.sqlite-wal"
    beside.write_bytes(b"something")
    with pytest.raises(ValueError, match=r"needs to be closed .* data.sqlite-wal beside it"):
        tff_sqlite(path, split="all_test")
    beside.write_bytes(b"")
    assert tff_sqlite(path, split="all_test").num_clients == 3


def test_nothing_is_written_beside_the_file(tmp_path, path):
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    before = path.read_bytes()
    read(tff_sqlite(path, split="all_test"))
    assert os.listdir(tmp_path) == ["data.sqlite"]
    assert path.read_bytes() == before
    tmp_path.chmod(0o700)


def test_memory_is_that_of_a_client(tmp_path):
    def peak(num_clients):
        clients = {f"client {k}": examples(k, 20) for k in range(num_clients)}
        source = tff_sqlite(database(tmp_path / f"{num_clients}.sqlite", {"train": clients}))
        tracemalloc.start()
        for client in source.clients():
            assert len(client.examples["label"]) == 20
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    assert peak(200) < 1.5 * peak(10)


def test_a_tree_in_disorder_is_refused(tmp_path):
    clients = {f"client {k}": examples(k, 20) for k in range(20)}
    path = database(tmp_path / "x.sqlite", {"train": clients})
    swap_pages(path, "examples")
    with pytest.raises(ValueError, match=r"a database needs to be intact; got .*x\.sqlite: .*out of order"):
        next(tff_sqlite(path).clients())


@pytest.mark.parametrize("indices", [True, False])
def test_damaged_databases(tmp_path, indices):
    clients = {f"client {k}": examples(k, 3) for k in range(40)}
    path = database(tmp_path / "x.sqlite", {"train": clients}, indices=indices)
    source_fn = lambda: tff_sqlite(path, split="train", features=FEATURES)  # noqa: E731
    assert check_damage(path, source_fn, number=200) > 100  # All that are cut.


def test_damaged_packed_databases(tmp_path):
    path = database(tmp_path / "x.sqlite", {"train": {f"client {k}": examples(k, 3) for k in range(20)}})
    packed = tmp_path / "x.sqlite.xz"
    packed.write_bytes(lzma.compress(path.read_bytes(), check=lzma.CHECK_CRC64))
    assert check_damage(packed, lambda: tff_sqlite(packed, features=FEATURES), number=100, is_checked=True) == 100
    alone = tmp_path / "x.sqlite.lzma"
    alone.write_bytes(lzma.compress(path.read_bytes(), lzma.FORMAT_ALONE))
    assert check_damage(alone, lambda: tff_sqlite(alone, features=FEATURES), number=100) > 90
