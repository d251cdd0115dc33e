"""Tests of opening published data sets of image folders, LEAF and pfl, on tiny files in the published forms."""

import csv
import hashlib
import json
import warnings

import h5py
import numpy as np
import pytest
from PIL import Image

from fedjx.data import dirichlet_by_client_partition, published
from fedjx.data.published import synthetic_twin

DIFFERENT = "ignore:.*is not as published:UserWarning"


def picture(path, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), color).save(path, quality=100)


def table(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.mark.filterwarnings(DIFFERENT)
def test_landmarks(tmp_path):
    for k, name in enumerate(["abc1", "abd2", "bbc3", "def4"]):
        picture(tmp_path / "images" / name[0] / name[1] / name[2] / f"{name}.jpg", (60 * k, 60 * k, 60 * k))
    rows = [("9", "abc1", 5), ("10", "abd2", 700), ("9", "bbc3", 6)]
    table(tmp_path / "mini_gld_train_split.csv", ("user_id", "image_id", "class"), rows)
    table(tmp_path / "mini_gld_test.csv", ("image_id", "class"), [("def4", 5), ("abc1", 6)])
    with pytest.raises(ValueError, match=r"mini_gld_test.csv needs the published md5 298e9d19"):
        published.open(published.landmarks(), tmp_path)
    stores = published.open(published.landmarks(image_shape=(8, 8, 3)), tmp_path, check_files=False, progress=False)
    train = stores["train"]
    examples = {client_id: train.client(k) for k, client_id in enumerate(train.client_ids(np.arange(2)))}
    assert examples["9"]["label"].tolist() == [5, 6]
    assert examples["10"]["label"].dtype == np.uint16
    np.testing.assert_allclose(examples["9"]["image"][1], 120, atol=2)
    assert stores["test"].client_ids([0]) == ["test_00000"]
    assert stores["test"].client(0)["label"].tolist() == [5, 6]
    np.testing.assert_allclose(stores["test"].client(0)["image"][0], 180, atol=2)


@pytest.mark.filterwarnings(DIFFERENT)
def test_inaturalist(tmp_path):
    for k, name in enumerate(["a1b", "a2b", "a3b"]):
        picture(tmp_path / "images" / "Birds" / f"{name}.jpg", (60 * k, 60 * k, 60 * k))
    columns = ("image_id", "class", "user_120k", "geo_100", "geo_300", "geo_1k", "geo_3k", "geo_10k", "geo_30k")
    rows = [("a1b", 3, "u1", *["c1"] * 6), ("a2b", 4, "NA", *["c2"] * 6)]
    table(tmp_path / "iNaturalist_train.csv", columns, rows)
    table(tmp_path / "iNaturalist_test.csv", ("image_id", "class"), [("a3b", 1202)])
    small, options = {"image_shape": (8, 8, 3)}, {"check_files": False, "progress": False}
    assert published.open(published.inaturalist(**small), tmp_path, **options)["train"].client_ids([0]) == ["u1"]
    by_cell = published.open(published.inaturalist(split="geo_100", **small), tmp_path, **options)
    assert by_cell["train"].num_clients == 2
    assert by_cell["test"].client(0)["label"].tolist() == [1202]
    with pytest.raises(ValueError, match="split is one of user_120k"):
        published.open(published.inaturalist(split="geo_7", **small), tmp_path, **options)


@pytest.mark.parametrize("row", [("../../x", 1), ("abc", "x"), ("abc", -1), ("ab",), ("", "")])
def test_rows_of_a_test_set_are_checked(tmp_path, row):
    table(tmp_path / "mini_gld_train_split.csv", ("user_id", "image_id", "class"), [("9", "abc1", 5)])
    table(tmp_path / "mini_gld_test.csv", ("image_id", "class"), [row])
    picture(tmp_path / "images" / "a" / "b" / "c" / "abc1.jpg", (1, 2, 3))
    with (
        pytest.raises(ValueError, match=r"needs an image_id and a class in each line; got .* in line 2"),
        warnings.catch_warnings(),
    ):
        published.open(published.landmarks(image_shape=(8, 8, 3)), tmp_path, check_files=False, progress=False)
    assert not (tmp_path / "landmarks_gld23k-8x8x3-test").exists()


@pytest.mark.filterwarnings(DIFFERENT)
def test_flair(tmp_path):
    labels = {"1": (["plant"], ["rose", "fern"]), "2": (["animal", "plant"], ["cat"]), "3": (["food"], [])}
    entries = [
        {"user_id": user, "image_id": image, "partition": part}
        | dict(zip(("labels", "fine_grained_labels"), labels[image], strict=True))
        for user, image, part in [("u", "1", "train"), ("u", "2", "train"), ("v", "3", "val"), ("w", "1", "test")]
    ]  # fmt: skip
    (tmp_path / "labels_and_metadata.json").write_text(json.dumps(entries))
    for name in labels:
        picture(tmp_path / "small_images" / f"{name}.jpg", (50, 60, 70))
    stores = published.open(published.flair(image_shape=(8, 8, 3)), tmp_path, progress=False)
    columns = stores["train"].client(0)
    assert columns["labels"].tolist() == [[False, False, True], [True, False, True]]
    assert columns["fine_labels"].tolist() == [[1, 2], [0, 3]]
    assert stores["train"].manifest["provenance"]["fine_labels"] == ["cat", "fern", "rose"]
    assert stores["test"].client(0)["fine_labels"].tolist() == [[1, 2]]
    for wrong in ("{}", "[1]", "{", '[{"user_id": 1}]', json.dumps([{**entries[0], "image_id": "../x"}])):
        directory = tmp_path / hashlib.md5(wrong.encode()).hexdigest()
        (directory / "small_images").mkdir(parents=True)
        (directory / "labels_and_metadata.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"labels_and_metadata.json needs"):
            published.open(published.flair(), directory, progress=False)


def test_cifar10(tmp_path):
    records = {}
    for number, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        rows = np.arange(10_000, dtype=np.uint32)
        records[name] = (rows[:, None] * 37 + number + np.arange(3073, dtype=np.uint32) // 5).astype(np.uint8)
        records[name][:, 0] = rows * (number + 3) // 7 % 10
        records[name].tofile(tmp_path / name)
    stores = published.open(published.cifar10(), tmp_path, progress=False)
    train = stores["train"].load().examples
    assert stores["train"].sizes[:].tolist() == [50] * 1000
    assert stores["test"].sizes[:].tolist() == [1000] * 10
    np.testing.assert_array_equal(stores["test"].load().examples["label"], records["test_batch.bin"][:, 0])
    planes = records["test_batch.bin"][7, 1:].reshape(3, 32, 32)
    np.testing.assert_array_equal(stores["test"].client(0)["image"][7], planes.transpose(1, 2, 0))
    labels = np.concatenate([records[f"data_batch_{k}.bin"][:, 0] for k in range(1, 6)])
    np.testing.assert_array_equal(np.bincount(train["label"]), np.bincount(labels))
    skewed = published.open(published.cifar10(num_clients=20, alpha=0.1), tmp_path, progress=False)["train"]
    assert skewed.num_clients == 20
    assert skewed.manifest["provenance"]["alpha"] == 0.1
    few = np.mean([len(np.unique(skewed.client(k)["label"])) for k in range(20)])
    assert few < 9
    assert skewed.sizes[:].tolist() == [2500] * 20  # As in pfl-research's benchmark.
    partition = dirichlet_by_client_partition(labels, 20, alpha=0.1, seed=0, concentration="per_class")
    np.testing.assert_array_equal(skewed.client(3)["label"], labels[partition[3]])


# LEAF and pfl.


def leaf_file(directory, split, users):
    (directory / split).mkdir()
    content = {
        "users": [*users],
        "num_samples": [len(user["y"]) for user in users.values()],
        "user_data": users,
    }
    (directory / split / "all_data_0.json").write_text(json.dumps(content))


def test_leaf_sets(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (2, 784))
    cases = {
        "femnist": ({"x": (grey / 255).tolist(), "y": [3, 61]}, published.leaf_femnist),
        "shakespeare": ({"x": ["a" * 80, "b" * 79 + "\u20ac"], "y": ["c", "d"]}, published.leaf_shakespeare),
        "sent140": ({"x": [[*"1dqu", "héllo"], [*"2dqu", "x" * 500]], "y": [4, 0]}, published.leaf_sent140),
        "celeba": ({"x": ["1.jpg", "2.jpg"], "y": [1, 0]}, published.leaf_celeba),
    }  # fmt: skip
    found = {}
    for name, (user, load) in cases.items():
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            leaf_file(tmp_path / name, split, {"ada": user})
        for number in (1, 2):
            picture(tmp_path / name / "raw" / "img_align_celeba" / f"{number}.jpg", (90 * number,) * 3)
        found[name] = published.open(load(), tmp_path / name, progress=False)
        twin = synthetic_twin(f"leaf_{name}", tmp_path / name / "twin", num_clients=3, mean_examples=2, progress=False)
        assert found[name]["train"].schema == twin["train"].schema
    columns = {name: stores["train"].client(0) for name, stores in found.items()}
    np.testing.assert_array_equal(columns["femnist"]["pixels"].reshape(2, 784), grey)
    assert columns["femnist"]["label"].tolist() == [3, 61]
    vocabulary = published.text.SHAKESPEARE_VOCABULARY
    assert columns["shakespeare"]["tokens"][0].tolist() == [vocabulary.index(b"a") + 1] * 80 + [
        vocabulary.index(b"c") + 1
    ]
    assert columns["shakespeare"]["tokens"][1, 79] == vocabulary.index(b"?") + 1
    assert bytes(columns["sent140"]["text"][0]).rstrip(b"\0") == "héllo".encode()
    assert bytes(columns["sent140"]["text"][1]) == b"x" * 280
    assert columns["sent140"]["label"].tolist() == [1, 0]
    np.testing.assert_allclose(columns["celeba"]["image"][1], 180, atol=2)


def test_reddit(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 10_004, (6, 11)).astype(np.int32)
    with h5py.File(tmp_path / "reddit.hdf5", "w") as file:
        for split in ("train", "test"):
            for user, rows in (("u1", slice(0, 4)), ("u2", slice(4, 6))):
                file[f"{split}/{user}/inputs"] = tokens[rows, :-1]
                file[f"{split}/{user}/targets"] = tokens[rows, 1:]
    stores = published.open(published.reddit(splits=("train", "test")), tmp_path, progress=False)
    np.testing.assert_array_equal(stores["test"].load().examples["tokens"], tokens)
    twin = synthetic_twin("reddit", tmp_path, num_clients=3, mean_examples=2, progress=False)
    assert stores["train"].schema == twin["train"].schema
    with pytest.raises(ValueError, match="targets need to be the inputs one later"):
        published.language.joined_targets()({"inputs": tokens[:, :-1], "targets": tokens[:, :-1]})
