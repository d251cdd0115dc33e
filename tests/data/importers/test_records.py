"""Tests of importing TFDS data sets and ArrayRecord files."""

import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image, ImageOps

from fedjx.data import write_store
from fedjx.data.importers import array_record, tfds
from tests.data.damage import check_damage
from tests.data.stores import ROOT


def records(path, contents, options="group_size:2"):
    writer = ArrayRecordWriter(str(path), options)
    for content in contents:
        writer.write(content)
    writer.close()
    return path


def packed(k):
    return struct.pack("<iqf", k * 7 % 3, k, k / 4)


def parse(record):
    user, number, x = struct.unpack("<iqf", record)
    return {"user": user, "number": np.int64(number), "x": np.float32([x, -x])}


def test_records_are_grouped_by_client(tmp_path):
    paths = [records(tmp_path / f"{k}.array_record", map(packed, range(10 * k, 10 * k + 10))) for k in range(2)]
    clients = {}
    for path in paths:
        for record in ArrayRecordReader(str(path)).read_all():
            user, number, x = struct.unpack("<iqf", record)
            clients.setdefault(user, []).append((number, x))
    for client in ("user", lambda example: example["user"]):
        source = array_record(tmp_path / "*.array_record", parse_fn=parse, client=client)
        for _ in range(2):
            found = {c.id: c.examples for c in source.clients()}
            assert list(found) == sorted(clients) == [0, 1, 2]
            for user, examples in found.items():
                assert examples["number"].tolist() == [number for number, _ in clients[user]]
                assert examples["x"].tolist() == [[x, -x] for _, x in clients[user]]
                assert examples["x"].dtype == np.float32
                assert ("user" in examples) == callable(client)
    assert source.provenance["files"] == {path.name: path.stat().st_size for path in paths}
    text = array_record(paths[0], parse_fn=lambda record: {"raw": record, "id": f"{record[0]}"}, client="id")
    assert next(text.clients()).examples["raw"].tolist() == [packed(k) for k in range(0, 10, 3)]


def test_what_functions_may_not_return_is_refused(tmp_path):
    path = records(tmp_path / "a", map(packed, range(4)))
    wrong = [
        (lambda record: {"x": 1, "user": 1.5}, "client is a feature"),
        (lambda record: {"x": 1}, "client is a feature"),
        (lambda record: {"x": None, "user": 1}, "a feature is numbers"),
        (lambda record: {"x": np.zeros(record[4]), "user": 1}, "same features"),
        (lambda record: {"x": np.float32(1) if record[4] else 1, "user": 1}, "same features"),
        (lambda record: {"user": record[4]}, "same features|feature"),
    ]
    for parse_fn, message in wrong:
        with pytest.raises(ValueError, match=message):
            list(array_record(path, parse_fn=parse_fn, client="user").clients())
    count = iter(range(1000))
    with pytest.raises(ValueError, match="same in every pass"):
        list(array_record(path, parse_fn=parse, client=lambda example: next(count)).clients())
    with pytest.raises(FileNotFoundError):
        array_record(tmp_path / "none", parse_fn=parse, client="user")


def test_a_damaged_array_record_is_refused_or_whole(tmp_path):
    path = records(tmp_path / "a.array_record", map(packed, range(20)))

    def source():
        return array_record(path, parse_fn=parse, client="user")

    assert check_damage(path, source, number=100, is_checked=True) > 50
    for content in (b"", b"text" * 30_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.array_record is not"):
            list(source().clients())


def test_tfds_is_read_without_tensorflow(tmp_path):
    from tensorflow_datasets import decode

    from tests.data.importers import tiny_tfds

    builder = tiny_tfds.prepared(tmp_path)
    rows = {}
    for found in builder.as_data_source("train"):
        number = int(found["number"])
        example = tiny_tfds.example(number)
        assert found["user"].decode() == example["user"]
        rows.setdefault(found["user"], []).append(example)
    with pytest.raises(ValueError, match=r"images need one shape; got .* Give image_shape"):
        list(tfds(builder, client=lambda example: 0, split="train").clients())
    few = tfds(builder, client="number", split="test", image_shape=(4, 5, 3))
    for client in few.clients():
        with Image.open(io.BytesIO(tiny_tfds.picture(client.id))) as image:
            expected = np.asarray(ImageOps.fit(image, (5, 4), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(client.examples["image"], expected[None])
    without = {"image": decode.SkipDecoding()}  # Its images have two shapes.
    for data, options in (
        (builder, {"split": "train", "image_shape": (4, 4, 1)}),
        (builder.as_data_source("train", decoders=without), {}),
    ):
        source = tfds(data, client="user", **options)
        clients = list(source.clients())
        assert [client.id for client in clients] == sorted(rows)
        for client in clients:
            own = rows[client.id]
            assert sorted(client.examples) == ["image", "more/flag", "number", "x", "y"]
            assert client.examples["number"].tolist() == [row["number"] for row in own]
            assert client.examples["more/flag"].tolist() == [row["more"]["flag"] for row in own]
            np.testing.assert_array_equal(client.examples["x"], [row["x"] for row in own])
            assert client.examples["x"].dtype == np.float32
            assert client.examples["number"].dtype == np.int32
        json.dumps(source.provenance)
    assert "tensorflow" not in sys.modules
    by_class = (
        write_store(
            tmp_path / "s", tfds(builder, split="train[:50%]", client=lambda e: int(e["number"]) % 5), progress=False
        )
        if False
        else tfds(builder, split="test", client=lambda example: int(example["number"]) % 2)
    )
    assert [(client.id, len(client.examples["x"])) for client in by_class.clients()] == [(0, 2), (1, 1)]
    with pytest.raises(ValueError, match=r"\['test', 'train'\]"):
        tfds(builder, client="user")
    with pytest.raises(ValueError, match="tiny"):
        tfds(builder, client="user", split="none")
    with pytest.raises(ValueError, match="client is a feature"):
        list(tfds(builder, client="x", split="test").clients())
    with pytest.raises(ValueError, match="of a builder"):
        tfds(builder.as_data_source("train"), client="user", image_shape=(2, 2, 3))
    with pytest.raises(TypeError, match="builder of TFDS"):
        tfds(3, client="user")


def test_importing_the_importers_imports_no_library_of_a_format():
    code = """
import sys, fedjx.data
before = {*sys.modules}
import fedjx.data.importers
names = {name.partition(".")[0] for name in {*sys.modules} - before}
print(names & {"pyarrow", "pandas", "polars", "datasets", "tensorflow", "tensorflow_datasets", "array_record", "PIL"})
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_name_is_no_tfds_data_set():
    with pytest.raises(TypeError, match="data is a builder of TFDS or its data source; got str"):
        tfds("mnist", client="user", split="train")
