"""Tests of the importers of TFRecord files, on files in the published format."""

import os
import struct
import sys

import numpy as np
import pytest

from fedjx import ArrayType
from fedjx.data import write_store
from fedjx.data.importers import dataset_grouper, tfrecord_clients, tfrecords
from tests.data.damage import check_damage
from tests.data.importers.protos import parsed, sequence, serialised

FEATURES = {"x": ArrayType((2, 3), np.float32), "class": ArrayType((), np.uint16)}


def slow_crc32c(data):
    """CRC-32C by its definition, a bit at a time."""
    code = 0xFFFFFFFF
    for octet in data:
        code ^= octet
        for _ in range(8):
            code = (code >> 1) ^ (0x82F63B78 if code & 1 else 0)
    return code ^ 0xFFFFFFFF


def masked(code):
    rotated = code >> 15 | (code << 17) % 2**32
    return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


def framed(record):
    length = struct.pack("<Q", len(record))
    return length + masked(slow_crc32c(length)) + record + masked(slow_crc32c(record))


def examples(k, n):
    random = np.random.default_rng(k)
    return [serialised(**{"x": random.random(6), "class": random.integers(1262)}) for _ in range(n)]


def assert_examples(columns, rows):
    values = [parsed(row) for row in rows]
    expected = np.array([value["x"][1] for value in values], np.float32).reshape(-1, 2, 3)
    np.testing.assert_array_equal(columns["x"], expected)
    assert columns["class"].tolist() == [value["class"][1][0] for value in values]


# Checksums.


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # These three are in RFC 3720.
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_published_checksums(data, code):
    assert slow_crc32c(data) == code


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(framed(b"abc"))
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ImportError, match="Run `pip install google-crc32c`"):
        list(tfrecords.tfrecord_records(tmp_path / "a"))


# Records.


def test_records(tmp_path):
    records = [b"", b"a", bytes(1000), os.urandom(5000)]
    (tmp_path / "x").write_bytes(b"".join(map(framed, records)))
    assert list(tfrecords.tfrecord_records(tmp_path / "x")) == records


def test_golden_record(tmp_path):
    """As TensorFlow writes the record b'abc'."""
    golden = bytes.fromhex("0300000000000000") + masked(slow_crc32c(b"\x03" + bytes(7))) + b"abc"
    (tmp_path / "x").write_bytes(golden + masked(0x364B3FB7))
    assert list(tfrecords.tfrecord_records(tmp_path / "x")) == [b"abc"]


HUGE = struct.pack("<Q", 2**64 - 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"a record needs a length with its checksum; got none such at byte 0 of .*/x"),
        (framed(b"abc") + b"12345678901", "a length with its checksum; got none such at byte 19"),
        (framed(b"abc")[:-1], "needs 3 bytes, where 6 are left; got none such at byte 0"),
        (framed(b"abc") * 2 + framed(b"abc")[:-5], "needs 3 bytes, where 2 are left; got none such at byte 38"),
        (framed(b"abc") + b"x" + framed(b"abc")[1:], "a length with its checksum; got none such at byte 19"),
        (framed(b"abc")[:-1] + b"x", "a record with its checksum; got none such at byte 0"),
        (framed(b"abc").replace(b"b", b"B"), "a record with its checksum; got none such at byte 0"),
        (HUGE + masked(slow_crc32c(HUGE)) + b"abc" * 10, "needs 18446744073709551615 bytes, where 30 are left"),
        (HUGE + bytes(4) + b"abc" * 10, "a length with its checksum; got none such at byte 0"),
        (b"\x1f\x8b" + bytes(100), "a length with its checksum"),
    ],
)
def test_broken_records(tmp_path, data, message):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(tfrecords.tfrecord_records(tmp_path / "x"))


# A file for each client.

HOSTILE = ["10", "2", "o'brien", "..x", "x" * 200, "ünï", 'a"b', "f3821_37"]


def directory(path, clients, suffix=""):
    path.mkdir()
    for name, rows in clients.items():
        (path / f"{name}{suffix}").write_bytes(b"".join(map(framed, rows)))
    return path


@pytest.mark.parametrize("suffix", ["", ".tfrecords"])
def test_clients_in_files_are_read_exactly(tmp_path, suffix):
    clients = {name: examples(k, k + 1) for k, name in enumerate(HOSTILE)}
    if suffix:
        clients[""] = examples(99, 2)  # Without a suffix no file is called so; with one it begins with a dot.
    path = directory(tmp_path / "train", clients, suffix)
    (path / ".hidden.tfrecords").write_bytes(b"")
    (path / "directory.tfrecords").mkdir()
    source = tfrecord_clients(path, suffix=suffix, features=FEATURES)
    expected = sorted(name for name in HOSTILE if name[0] != ".")
    if not suffix:
        assert "..x" not in expected
    assert source.num_clients == len(expected)
    store = write_store(tmp_path / "store", source, progress=False)
    assert store.client_ids(np.arange(len(expected))) == expected
    assert store.schema == FEATURES
    for k, name in enumerate(expected):
        assert_examples(store.client(k), clients[name])
    assert store.manifest["provenance"] == {
        "importer": "tfrecord_clients",
        "files": {"train": sum((path / f"{name}{suffix}").stat().st_size for name in expected)},
        "options": {"features": "<class=uint16,x=float32[2,3]>", "suffix": suffix},
    }
    assert [client.id for client in source.clients()] == expected  # Anew.


def test_images_stay_as_they_are(tmp_path):
    path = directory(tmp_path / "train", {"7": [serialised(**{"image/encoded_jpeg": [b"\xff\xd8"], "class": 3})]})
    (client,) = tfrecord_clients(path).clients()
    assert client.examples["image/encoded_jpeg"].tolist() == [b"\xff\xd8"]
    assert client.examples["class"].tolist() == [3]


def test_wrong_directories(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got .*/absent without files whose names end in suffix=''"):
        tfrecord_clients(tmp_path / "absent")
    path = directory(tmp_path / "train", {"a": examples(0, 1), "b": []})
    with pytest.raises(FileNotFoundError, match=r"names end in suffix='\.tfrecords'"):
        tfrecord_clients(path, suffix=".tfrecords")
    with pytest.raises(ValueError, match="client 'b': a record needs a length with its checksum"):
        write_store(tmp_path / "store", tfrecord_clients(path), progress=False)
    (path / "b").write_bytes(framed(b"\x0b"))
    with pytest.raises(ValueError, match="client 'b': example 0: a serialised example needs to be well-formed"):
        write_store(tmp_path / "store", tfrecord_clients(path), progress=False)
    assert os.listdir(tmp_path) == ["train"]
    os.rename(os.fsencode(path / "b"), os.fsencode(path) + b"/\xff")
    with pytest.raises(ValueError, match=r"client ids need to be UTF-8; got client '.udcff'"):
        write_store(tmp_path / "store", tfrecord_clients(path), progress=False)


def test_damaged_files_of_clients(tmp_path):
    path = directory(tmp_path / "train", {"a": examples(0, 2)})
    (tmp_path / "b").write_bytes(framed(examples(1, 1)[0]))
    (path / "b").symlink_to(tmp_path / "b")
    source_fn = lambda: tfrecord_clients(path, features=FEATURES)  # noqa: E731
    assert check_damage(tmp_path / "b", source_fn, number=200, is_checked=True) == 200


def test_a_file_that_is_cut_between_records_is_a_shorter_one(tmp_path):
    """The format has no count: as the documentation says, sizes are to be compared."""
    records = [b"a" * 10, b"b" * 20, b"c" * 30]
    data, accepted = b"".join(map(framed, records)), []
    for length in range(len(data) + 1):
        (tmp_path / "x").write_bytes(data[:length])
        try:
            found = list(tfrecords.tfrecord_records(tmp_path / "x"))
        except ValueError:
            continue
        accepted.append(length)
        assert found == records[: len(found)]
    assert accepted == [26, 62, 108]


# dataset_grouper.


def test_clients_in_records_are_read_exactly(tmp_path):
    clients = [examples(k, k + 1) for k in range(5)]
    paths = [tmp_path / "b-0", tmp_path / "a-1"]
    paths[0].write_bytes(b"".join(framed(sequence(rows)) for rows in clients[:3]))
    paths[1].write_bytes(b"".join(framed(sequence(rows)) for rows in clients[3:]))
    source = dataset_grouper(paths, features=FEATURES)
    assert source.num_clients is None
    store = write_store(tmp_path / "store", source, progress=False)
    assert store.client_ids(np.arange(5)) == [0, 1, 2, 3, 4]
    for k, rows in enumerate(clients):
        assert_examples(store.client(k), rows)
    provenance = store.manifest["provenance"]
    assert provenance["files"] == {path.name: path.stat().st_size for path in paths}
    assert [client.id for client in source.clients()] == [0, 1, 2, 3, 4]  # Anew.


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (sequence(examples(0, 2), "other"), "client 0: a record needs the feature list 'serialized_bytes'"),
        (b"\x0b", "client 0: a serialised example needs to be well-formed"),
        (sequence([b"\x0b"]), "client 0: example 0: a serialised example needs to be well-formed"),
        (sequence([]), "client 0: a record needs the feature list"),
    ],
)
def test_wrong_records(tmp_path, record, message):
    (tmp_path / "x").write_bytes(framed(record))
    with pytest.raises(ValueError, match=message):
        list(dataset_grouper([tmp_path / "x"], features=FEATURES).clients())


def test_steps_of_another_kind(tmp_path):
    from tests.data.importers.protos import SEQUENCE

    for kind, values in [("bytes_list", [b"a", b"b"]), ("int64_list", [1]), ("bytes_list", [])]:
        message = SEQUENCE()
        feature = message.feature_lists.feature_list["serialized_bytes"].feature.add()
        getattr(feature, kind).value.extend(values)
        (tmp_path / "x").write_bytes(framed(message.SerializeToString()))
        with pytest.raises(ValueError, match=f"needs one serialised example; got {len(values)} values"):
            list(dataset_grouper([tmp_path / "x"]).clients())


def test_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got paths=\[\]"):
        dataset_grouper([])
    with pytest.raises(FileNotFoundError, match=r"there is none at .*absent"):
        dataset_grouper([tmp_path / "absent"])


def test_damaged_records_of_clients(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(framed(sequence(examples(0, 20))))
    assert check_damage(path, lambda: dataset_grouper([path], features=FEATURES), is_checked=True) == 200


def test_a_pattern_names_files(tmp_path):
    for k in range(2):
        (tmp_path / f"part-{k}").write_bytes(framed(sequence(examples(k, 1))))
    source = dataset_grouper(str(tmp_path / "part-*"), features=FEATURES)
    assert [client.id for client in source.clients()] == [0, 1]
