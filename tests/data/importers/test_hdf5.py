"""Tests of the importers of HDF5 files, on files in the published formats."""

import functools
import json
import os
import sys

import h5py
import numpy as np
import pytest

from fedjx import ArrayType
from fedjx.data import write_store
from fedjx.data.importers import pfl_hdf5, tff_hdf5
from tests.data.damage import check_damage

HOSTILE = ["10", "2", "o'brien", "..x", "x" * 10_000, "ünï", 'a"b', "f3821_37"]
FEATURES = {"pixels": ArrayType((2, 3), np.float32), "label": ArrayType((), np.uint8)}


def examples(k, n):
    random = np.random.default_rng(k)
    return {"pixels": random.random((n, 2, 3), np.float32), "label": random.integers(62, size=n, dtype=np.int32)}


def tff(path, clients):
    with h5py.File(path, "w") as file:
        for name, columns in clients.items():
            for feature, column in columns.items():
                file[f"examples/{name}/{feature}"] = column
    return path


def test_clients_of_tff_are_read_exactly(tmp_path):
    path = tff(tmp_path / "x.h5", {name: examples(k, k + 1) for k, name in enumerate(HOSTILE)})
    source = tff_hdf5(path, features=FEATURES)
    assert source.num_clients == len(HOSTILE)
    store = write_store(tmp_path / "store", source, progress=False)
    assert store.client_ids(np.arange(len(HOSTILE))) == sorted(HOSTILE)
    assert store.schema == FEATURES
    with h5py.File(path) as file:
        for k, name in enumerate(sorted(HOSTILE)):
            for feature in FEATURES:
                np.testing.assert_array_equal(store.client(k)[feature], file[f"/examples/{name}/{feature}"][()])
    assert store.manifest["provenance"] == {
        "importer": "tff_hdf5",
        "files": {"x.h5": path.stat().st_size},
        "options": {"features": "<label=uint8,pixels=float32[2,3]>"},
    }
    assert [client.id for client in source.clients()] == sorted(HOSTILE)  # Anew.


def test_other_types(tmp_path):
    words = [b"word", "ü".encode(), b""]
    columns = {
        "text": np.array(words, object),
        "fixed": np.array([b"a", b"bcd", b""], "S3"),
        "bool": np.array([True, False, True]),
        "big": np.arange(3, dtype=">i4"),
        "none": np.zeros((3, 0), np.int16),
    }
    path = tff(tmp_path / "x.h5", {"a": columns})
    with h5py.File(path, "a") as file:
        file["examples/a"].create_dataset("packed", data=np.arange(300).reshape(3, 100), compression="gzip")
    (client,) = tff_hdf5(path).clients()
    assert list(client.examples) == sorted([*columns, "packed"])
    assert client.examples["text"].tolist() == words
    assert client.examples["fixed"].tolist() == [b"a", b"bcd", b""]
    assert {name: client.examples[name].dtype for name in ("text", "fixed", "bool", "big")} == {
        "text": object,
        "fixed": object,
        "bool": bool,
        "big": np.int32,
    }
    np.testing.assert_array_equal(client.examples["big"], [0, 1, 2])
    np.testing.assert_array_equal(client.examples["packed"], np.arange(300).reshape(3, 100))


def linked(file):
    file["examples/a/x"] = h5py.ExternalLink("other.h5", "/x")


def virtual(file):
    layout = h5py.VirtualLayout((2,), np.int64)
    layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
    file.create_virtual_dataset("examples/a/x", layout)


def unwritten(file):
    file.create_dataset("examples/a/x", (1000,), np.int64)


def partly_written(file):
    file.create_dataset("examples/a/x", (1000,), np.int64, chunks=(100,))[:200] = 1


def too_large(file):
    file.create_dataset("examples/a/x", (2**40,), np.int64, chunks=(100,))


def scalar(file):
    file["examples/a/x"] = 1


def group(file):
    file["examples/a/x/y"] = [1]


def ragged(file):
    file.create_dataset("examples/a/x", (2,), h5py.vlen_dtype(np.int64))


def compound(file):
    file["examples/a/x"] = np.zeros(2, [("a", int)])


def no_group(file):
    file["examples/a"] = [1]


def another_layout(file):
    file["train/a/x"] = [1]


def another_feature(file):
    file["examples/a/y"] = [1]


def of_another_size(file):
    file["examples/a/x"] = [1]
    file["examples/b/x"] = [1]
    file["examples/b/y"] = [1, 2]


def not_utf8(file):
    file.create_group("examples").create_group(b"\xff")["x"] = [1]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (linked, "client 'a': feature 'x' needs to be an array in the file"),
        (virtual, "feature 'x' needs to be an array in the file"),
        (unwritten, "feature 'x' needs to be in the file as a whole"),
        (partly_written, "feature 'x' needs to be in the file as a whole"),
        (too_large, "needs to have at most max_client_bytes=1000000; got 8796093022208"),
        (scalar, "feature 'x' needs to be an array in the file"),
        (group, "feature 'x' needs to be an array in the file"),
        (ragged, "feature 'x' needs to hold numbers or text; got object"),
        (compound, "feature 'x' needs to hold numbers or text; got"),
        (no_group, "client 'a': /examples needs a group 'a'; got none among"),
        (another_layout, r"/ needs a group 'examples'; got none among \['train'\]"),
        (another_feature, r"client 'a': features need to be in the file; got \['x'\], and it has \[.*\]"),
        (not_utf8, r"client ids need to be text; got client b'.xff'"),
    ],
)
def test_wrong_files(tmp_path, write, message):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write(file)
    features = {"x": ArrayType((), np.int64)}
    source_fn = functools.partial(tff_hdf5, tmp_path / "x.h5", features=features, max_client_bytes=1_000_000)
    with pytest.raises(ValueError, match=message) as error:
        write_store(tmp_path / "store", source_fn(), progress=False)
    assert str(error.value).count(str(tmp_path / "x.h5")) == 1
    assert os.listdir(tmp_path) == ["x.h5"]


def test_clients_that_differ(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        of_another_size(file)
    with pytest.raises(ValueError, match="all features of client 'b' need the same number of examples"):
        write_store(tmp_path / "store", tff_hdf5(tmp_path / "x.h5"), progress=False)


@pytest.mark.parametrize("content", [b"", b"no HDF5" * 100])
def test_what_is_no_hdf5(tmp_path, content):
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.h5: the file needs to be in HDF5; got "):
        tff_hdf5(tmp_path / "x.h5")
    with pytest.raises(FileNotFoundError, match="an importer needs a file"):
        pfl_hdf5(tmp_path / "y.h5", split="train")


def test_a_file_without_clients(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group("examples")
    with pytest.raises(ValueError, match="a store needs at least one example"):
        write_store(tmp_path / "store", tff_hdf5(tmp_path / "x.h5"), progress=False)


def test_without_h5py(tmp_path, monkeypatch):
    path = tff(tmp_path / "x.h5", {"a": examples(0, 1)})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        tff_hdf5(path)


def test_damaged_files(tmp_path):
    path = tff(tmp_path / "x.h5", {f"client {k}": examples(k, 1 + k % 4) for k in range(20)})
    assert check_damage(path, lambda: tff_hdf5(path, features=FEATURES), number=200) >= 100


# pfl-research.


def stack_overflow(path):
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for split, users in {"train": ["10", "2"], "val": ["2"]}.items():
            for k, user in enumerate(users):
                for name in ("inputs", "targets"):
                    file[f"{split}/{user}/{name}"] = random.integers(10_004, size=(k + 1, 20), dtype=np.int32)
            file[f"metadata/num_tokens/{split}"] = json.dumps({user: 7 + k for k, user in enumerate(users)})
        file["metadata/vocabulary_size"] = 10_004
        file["metadata/unk_symbol"] = 10_001
    return path


def flair(path):
    with h5py.File(path, "w") as file:
        file["train/u/images"] = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
        file["train/u/image_ids"] = np.array(["i0", "i1", "i2"], "S")
        file["train/u/labels_row"] = np.array([0, 0, 2], np.uint16)
        file["train/u/labels_col"] = np.array([1, 3, 0], np.uint8)
        file["train/u/fine_grained_labels_row"] = np.array([], np.uint16)
        file["train/u/fine_grained_labels_col"] = np.array([], np.uint16)
        file["metadata/label_mapping"] = json.dumps(dict(zip("abcd", range(4), strict=True)))
        file["metadata/fine_grained_label_mapping"] = json.dumps({"x": 0, "y": 1})
    return path


def test_users_of_pfl_are_read_exactly(tmp_path):
    path = stack_overflow(tmp_path / "x.hdf5")
    source = pfl_hdf5(path, split="train")
    assert source.num_clients == 2
    store = write_store(tmp_path / "store", source, progress=False)
    assert store.client_ids([0, 1]) == ["10", "2"]
    assert store.metadata("num_tokens").tolist() == [7, 8]
    assert store.metadata("split").tolist() == ["train", "train"]
    with h5py.File(path) as file:
        for k, user in enumerate(["10", "2"]):
            for name in ("inputs", "targets"):
                np.testing.assert_array_equal(store.client(k)[name], file[f"/train/{user}/{name}"][()])
    assert store.manifest["provenance"]["options"] == {"features": None, "split": "train"}
    narrow = {"targets": ArrayType((20,), np.uint16)}
    (client,) = pfl_hdf5(path, split="val", features=narrow).clients()
    assert {name: (x.dtype, x.shape) for name, x in client.examples.items()} == {"targets": (np.uint16, (1, 20))}
    with pytest.raises(ValueError, match=r"/ needs a group 'test'; got none among \['metadata', 'train', 'val'\]"):
        pfl_hdf5(path, split="test")


def test_labels_of_flair(tmp_path):
    path = flair(tmp_path / "x.hdf5")
    (client,) = pfl_hdf5(path, split="train").clients()
    assert client.metadata == {"split": "train"}
    assert client.examples["image_ids"].tolist() == [b"i0", b"i1", b"i2"]
    assert client.examples["labels"].tolist() == [[0, 1, 0, 1], [0] * 4, [1, 0, 0, 0]]
    assert client.examples["labels"].dtype == bool
    assert client.examples["fine_grained_labels"].tolist() == [[False] * 2] * 3
    assert client.examples["images"].shape == (3, 2, 2, 3)
    assert len(client.examples) == 4
    asked = {"labels": ArrayType((4,), np.uint8)}
    (client,) = pfl_hdf5(path, split="train", features=asked).clients()
    assert client.examples["labels"].tolist() == [[0, 1, 0, 1], [0] * 4, [1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train/u/labels_row", np.array([0, 0, 3], np.uint16), r"pairs of 'labels' need to be in \[3, 4\]"),
        ("train/u/labels_col", np.array([0, 4, 0], np.uint16), r"pairs of 'labels' need to be in \[3, 4\]"),
        ("train/u/labels_col", np.array([0, 1], np.uint16), "pairs of 'labels' need to be in"),
        ("train/u/labels_col", np.array([0.0, 1, 2]), "pairs of 'labels' need to be in"),
        ("train/u/labels_col", None, "feature 'labels_col' needs to be an array in the file"),
        ("metadata/label_mapping", "[1, 2]", "/metadata/label_mapping needs to be a map in JSON"),
        ("metadata/label_mapping", np.arange(3), "/metadata/label_mapping needs to be a map in JSON; got ndarray"),
        ("metadata/label_mapping", "{", "Expecting"),
        ("metadata/num_tokens/train", "{}", "num_tokens needs an integer for every user; got None"),
        ("metadata/num_tokens/train", '{"u": "7"}', "num_tokens needs an integer for every user; got '7'"),
    ],
)
def test_wrong_files_of_pfl(tmp_path, name, value, message):
    path = flair(tmp_path / "x.hdf5")
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value
    with pytest.raises(ValueError, match=message):
        list(pfl_hdf5(path, split="train").clients())


def test_damaged_files_of_pfl(tmp_path):
    path = stack_overflow(tmp_path / "x.hdf5")
    assert check_damage(path, lambda: pfl_hdf5(path, split="train"), number=100) >= 50


def test_a_feature_that_is_not_there(tmp_path):
    path = tff(tmp_path / "x.h5", {"ada": examples(0, 1)})
    features = {"image": FEATURES["pixels"]}
    with pytest.raises(ValueError, match=r"got \['image'\], and it has \['label', 'pixels'\]"):
        list(tff_hdf5(path, features=features).clients())
    with h5py.File(tmp_path / "pfl.h5", "w") as file:
        file["train/ada/inputs"] = np.arange(3)
    with pytest.raises(ValueError, match=r"got \['image'\], and it has \['inputs'\]"):
        list(pfl_hdf5(tmp_path / "pfl.h5", split="train", features=features).clients())


def test_features_are_asked_for_by_type(tmp_path):
    path = tff(tmp_path / "x.h5", {"ada": examples(0, 1)})
    with pytest.raises(TypeError, match=r"features are types by name; got 'label' with .*uint8.*ArrayType"):
        tff_hdf5(path, features={"label": np.uint8})
