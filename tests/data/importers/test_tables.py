"""Tests of importing arrays, data frames, Parquet, Arrow files and Hugging Face data sets."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedjx.data import write_store
from fedjx.data.importers import arrays, arrow_ipc, hugging_face, parquet, table
from tests.data.damage import check_damage

USERS = ["bob", "", "ada", "bob", "../é", "ada", "bob", "ro\0ot"]


def columns(users=USERS):
    k = np.arange(len(users))
    return {
        "user": users,
        "x": pa.array((k / 3).astype(np.float32)),
        "y": pa.array((k * 7).astype(np.uint8)),
        "flag": pa.array(k % 2 == 0),
        "half": pa.array(k.astype(np.float16)),
        "text": [f"t{n}" * (n % 3) for n in k],
        "raw": pa.array([b"\xff" * n for n in k.tolist()]),
        "pair": pa.array([[n, -n] for n in k.tolist()], pa.list_(pa.int32())),
        "grid": pa.array([[[n, 1], [2, 3], [4, 5]] for n in k.tolist()], pa.list_(pa.list_(pa.int16(), 2), 3)),
        "word": pa.array(["abc"[n % 3] for n in k.tolist()]).dictionary_encode(),
    }


TABLE = pa.table(columns())


def expected(rows, client="user", names=None):
    """Reads rows by pyarrow alone, whose older releases give halves as NumPy's."""
    clients = {}
    for row in rows.to_pylist():
        plain = {name: value.item() if isinstance(value, np.float16) else value for name, value in row.items()}
        clients.setdefault(plain.pop(client), []).append(plain)
    return {
        key: {name: [row[name] for row in clients[key]] for name in names or clients[key][0]} for key in sorted(clients)
    }


def found(source):
    return {
        client.id: {name: column.tolist() for name, column in client.examples.items()} for client in source.clients()
    }


def check(source, rows, **options):
    assert repr(found(source)) == repr(expected(rows, **options))
    assert repr(found(source)) == repr(expected(rows, **options))  # Each call begins anew.
    assert list(found(source)) == list(expected(rows, **options))


def encoded(array, kind="PNG", mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, kind)
    return buffer.getvalue()


def test_arrays_are_grouped_by_client():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6, dtype=np.int8)
    clients = np.array([5, -1, 5, 5, 2, -1])
    source = arrays({"x": x, "y": y}, clients)
    assert source.num_clients == 3
    for client in (*source.clients(), *source.clients()):
        np.testing.assert_array_equal(client.examples["x"], x[clients == client.id])
        np.testing.assert_array_equal(client.examples["y"], y[clients == client.id])
        assert client.examples["y"].dtype == np.int8
    assert [client.id for client in source.clients()] == [-1, 2, 5]
    assert found(arrays({"x": ["p", "q"]}, np.array(["v", "u"]))) == {"u": {"x": ["q"]}, "v": {"x": ["p"]}}
    for examples, clients in (({"x": x}, [1, 2]), ({}, [1]), ({"x": []}, []), ({"x": 3}, 3), ({"x": [1]}, [0.5])):
        with pytest.raises(ValueError, match=r"client|needs examples"):
            arrays(examples, clients)


def test_tables_of_any_kind_are_grouped_by_client():
    import pandas as pd
    import polars as pl

    check(table(TABLE, client="user"), TABLE)
    check(table(TABLE.to_batches()[0], client="user"), TABLE)
    check(table(pa.concat_tables([TABLE, TABLE]), client="user"), pa.concat_tables([TABLE, TABLE]))
    few = TABLE.select(["user", "x", "y", "text", "flag"])
    frame = few.to_pandas()
    for like in (frame, frame.set_index(np.arange(8)[::-1]), frame.set_index("user"), pl.DataFrame(frame)):
        assert repr(found(table(like, client="user"))) == repr(expected(few)) or isinstance(like, pl.DataFrame)
        (first, *_) = table(like, client="user").clients()
        assert first.examples["x"].dtype == np.float32
        assert found(table(like, client="user"))["bob"]["y"] == [0, 21, 42]
    assert isinstance(frame, pd.DataFrame)
    check(table({name: few[name].to_numpy() for name in few.column_names}, client="user"), few)
    check(table(TABLE, client="user", features=["y", "x"]), TABLE, names=["y", "x"])
    check(table(TABLE.drop(["raw"]), client="y", features=["x"]), TABLE, client="y", names=["x"])
    source = table(TABLE, client="user")
    assert [(c.examples["x"].dtype, c.examples["half"].dtype, c.examples["grid"].shape) for c in source.clients()][
        -1
    ] == (
        np.float32,
        np.float16,
        (1, 3, 2),
    )


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1, None]), "got 1 nulls in 'x'"),
        (pa.array([[1], [1, 2]]), "lists need one length; got 1 to 2"),
        (pa.array([[1], [None]]), "nulls"),
        (pa.array([[1], None]), "nulls"),
        (pa.array([None, None]), "nulls"),
        (pa.array([1, 2], pa.timestamp("s")), "timestamp"),
        (pa.array([{"a": 1}, {"a": 2}]), "struct"),
        (
            pa.array([{"bytes": None, "path": "a.png"}] * 2, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "embed",
        ),
        (pa.array([{"bytes": b"GIF", "path": "a.png"}] * 2), "image 0 of 'x' of client"),
    ],
)
def test_what_is_no_feature_is_refused(column, message):
    with pytest.raises(ValueError, match=message):
        list(table(pa.table({"user": [1, 2], "x": column}), client="user").clients())


def test_what_is_no_table_is_refused():
    with pytest.raises(TypeError, match="can be read again"):
        table([1, 2], client="user")
    with pytest.raises(TypeError, match="can be read again"):
        table(TABLE.to_reader(), client="user")
    for options, message in (
        ({"client": "users"}, "0 times 'users'"),
        ({"client": "user", "features": ["z"]}, "0 times 'z'"),
        ({"client": "user", "features": []}, "beside"),
        ({"client": "user", "features": ["user"]}, "beside"),
        ({"client": "user", "image_shape": (2, 2)}, "image_shape"),
    ):
        with pytest.raises(ValueError, match=message):
            table(TABLE, **options)
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([1]), pa.array([1])], names=["user", "x", "x"])
    with pytest.raises(ValueError, match="2 times 'x'"):
        table(twice, client="user")
    for key in (pa.array([0.5]), pa.array([None], pa.string()), pa.array([True])):
        with pytest.raises(ValueError, match=r"'user'|client ids"):
            list(table(pa.table({"user": key, "x": [1]}), client="user").clients())


@pytest.mark.parametrize("order", ["none", "sorted"])
def test_parquet_files_are_grouped_by_client(tmp_path, order):
    rows = TABLE.sort_by("user") if order == "sorted" else TABLE
    for k, part in enumerate([rows.slice(0, 3), rows.slice(3, 0), rows.slice(3)]):
        pq.write_table(part, tmp_path / f"train-{k}.parquet", row_group_size=2)
    source = parquet(tmp_path / "train-*.parquet", client="user")
    read = pa.concat_tables([pq.read_table(tmp_path / f"train-{k}.parquet") for k in range(3)])
    check(source, read)
    assert source.provenance["files"] == {
        f"train-{k}.parquet": os.path.getsize(tmp_path / f"train-{k}.parquet") for k in range(3)
    }
    assert str(tmp_path) not in repr(source.provenance)
    reverse = [tmp_path / f"train-{k}.parquet" for k in (2, 0)]
    check(parquet(reverse, client="user", features=["x"]), pa.concat_tables(map(pq.read_table, reverse)), names=["x"])
    store = write_store(tmp_path / "s", parquet(reverse, client="user", features=["x", "grid"]), progress=False)
    assert store.schema["grid"].shape == (3, 2)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_are_grouped_by_client(tmp_path, kind):
    path = tmp_path / "data-0.arrow"
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(path, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=3)
    check(arrow_ipc(path, client="user"), TABLE)
    data = path.read_bytes()
    for damaged in (b"", data[:3], data[:-8], data[: len(data) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data-0\.arrow"):
            list(arrow_ipc(path, client="user").clients())


def test_files_need_the_same_types_and_to_exist(tmp_path):
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(pa.table({"user": [1], "x": [1]}), a)
    pq.write_table(pa.table({"user": [1], "x": [1.5]}), b)
    with pytest.raises(ValueError, match=r"'x' as double in .*b\.parquet and as int64 in .*a\.parquet"):
        parquet([a, b], client="user")
    pq.write_table(pa.table({"user": [1]}), b)
    with pytest.raises(ValueError, match=r"0 times 'x' in .*b\.parquet"):
        parquet([a, b], client="user")
    for missing in (tmp_path / "c.parquet", tmp_path / "*.csv", [], tmp_path):
        with pytest.raises(FileNotFoundError, match="needs files"):
            parquet(missing, client="user")
    b.write_bytes(b"PAR1 is how they begin, and end with PAR1")
    with pytest.raises(ValueError, match=r"b\.parquet is not"):
        parquet(b, client="user")
    pq.write_table(pa.table({"user": pa.array([], pa.int64()), "x": pa.array([], pa.int64())}), b)
    assert list(parquet(b, client="user").clients()) == []


def test_hugging_face_data_sets_are_grouped_by_client(tmp_path):
    import datasets

    random = np.random.default_rng(0)
    pictures = random.integers(256, size=(8, 5, 4, 3), dtype=np.uint8)
    features = datasets.Features(
        {
            "user": datasets.Value("string"),
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "grid": datasets.Array2D((2, 2), "float32"),
        }
    )
    rows = {
        "user": USERS,
        "image": [{"bytes": encoded(picture), "path": None} for picture in pictures],
        "label": [0, 1] * 4,
        "grid": [[[k, 1.0], [2.0, 3.0]] for k in range(8)],
    }
    memory = datasets.Dataset.from_dict(rows, features=features)
    memory.save_to_disk(tmp_path / "saved")
    disk = datasets.load_from_disk(tmp_path / "saved")
    for data in (memory, disk, disk.select([3, 1, 0]), disk.shuffle(seed=0)):
        clients = {}
        for row in data:  # As the library decodes it.
            clients.setdefault(row["user"], []).append(row)
        source = hugging_face(data, client="user")
        for client in (*source.clients(), *source.clients()):
            own = clients[client.id]
            assert client.examples["label"].tolist() == [row["label"] for row in own]
            np.testing.assert_array_equal(client.examples["image"], [np.asarray(row["image"]) for row in own])
            np.testing.assert_array_equal(client.examples["grid"], np.float32([row["grid"] for row in own]))
            assert client.examples["grid"].dtype == np.float32
        assert [client.id for client in source.clients()] == sorted(clients)
    (file,) = (tmp_path / "saved").glob("data-*.arrow")
    by_file = {client.id: client.examples for client in arrow_ipc(file, client="user").clients()}
    np.testing.assert_array_equal(by_file["bob"]["image"], pictures[[0, 3, 6]])
    np.testing.assert_array_equal(by_file["bob"]["grid"][:, 0, 0], [0, 3, 6])
    assert next(hugging_face(disk, client="user", image_shape=(2, 3, 1)).clients()).examples["image"].shape == (
        1,
        2,
        3,
        1,
    )
    with pytest.raises(TypeError, match="one split"):
        hugging_face(datasets.DatasetDict(train=memory), client="user")
    with pytest.raises(TypeError, match=r"datasets\.Dataset"):
        hugging_face([1], client="user")


NUMBERS = ["x", "y", "flag", "half", "pair", "grid"]


def test_a_damaged_parquet_file_is_refused_or_whole(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE.select(["user", *NUMBERS]), path, write_page_checksum=True, compression="snappy")
    refused = check_damage(path, lambda: parquet(path, client="user", features=NUMBERS), number=300, is_checked=True)
    assert refused > 150


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_damaged_arrow_file_is_refused_or_whole(tmp_path, kind):
    path = tmp_path / "a.arrow"
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(path, TABLE.select(["user", *NUMBERS]).schema) as writer:
        writer.write_table(TABLE.select(["user", *NUMBERS]), max_chunksize=3)
    assert check_damage(path, lambda: arrow_ipc(path, client="user", features=NUMBERS), number=300) > 150


def test_lists_of_text_are_kept_to_the_last_byte():
    # NumPy's text of fixed width has lost the zeros at its end.
    source = arrays({"x": [b"p\0", b"q", b""]}, ["a", "a\0", "b"])
    assert [(client.id, client.examples["x"].tolist()) for client in source.clients()] == [
        ("a", [b"p\0"]),
        ("a\0", [b"q"]),
        ("b", [b""]),
    ]


@pytest.mark.parametrize(
    ("examples", "clients", "message"),
    [
        ({"x": [1, 2]}, [1, "1"], "client ids are all str, all bytes or all int"),
        ({"x": [[1], [1, 2]]}, [0, 1], "rows need one shape; got several in 'x'"),
        ({"x": [1, 2]}, [[0], [0, 1]], "rows need one shape; got several in clients"),
    ],
)
def test_lists_that_are_no_columns_are_refused(examples, clients, message):
    with pytest.raises(ValueError, match=message):
        arrays(examples, clients)


def test_one_name_is_no_list_of_names(tmp_path):
    with pytest.raises(TypeError, match=r"features is a list of names; got features='xy'"):
        table(pa.table({"user": [1], "xy": [2]}), client="user", features="xy")


def test_a_directory_is_no_file(tmp_path):
    pq.write_table(pa.table({"user": [1], "x": [2]}), tmp_path / "a.parquet")
    with pytest.raises(FileNotFoundError, match=r"is a directory. Name the files in it, as .*/\*\."):
        parquet(tmp_path, client="user")
