"""Tests of opening published data sets, on tiny files in the published containers."""

import contextlib
import hashlib
import io
import json
import lzma
import sqlite3
import tarfile
import warnings

import h5py
import numpy as np
import pytest

from fedjx.data import FederatedData, Source, preprocess, published, write_store
from fedjx.data.exporters import to_fedjax_sqlite, to_tff_sqlite
from fedjx.data.published import files, raw_twin_source, synthetic_twin, twin_vocabulary
from tests.data.damage import check_damage

SCALE = {"num_clients": 12, "mean_examples": 6}
DIFFERENT = "ignore:.*is not as published:UserWarning"


def tff_file(directory, stem, name, splits, *, is_packed):
    """Writes TFF's database of a twin, all splits in one file."""
    path = directory / f"{stem}.sqlite"
    for number, (split, spelled) in enumerate(splits.items()):
        part = directory / f"part{number}" if number else path
        to_tff_sqlite(raw_twin_source(name, split, **SCALE), part, spelled)
        if number:
            with contextlib.closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("ATTACH ? AS part", (str(part),))
                connection.execute("INSERT INTO examples SELECT * FROM part.examples")
                connection.execute("INSERT INTO client_metadata SELECT * FROM part.client_metadata")
            part.unlink()
    if is_packed:
        (directory / f"{stem}.sqlite.lzma").write_bytes(lzma.compress(path.read_bytes(), preset=0))
        path.unlink()


def hdf5_files(directory, stem, name, splits, shapes):
    for split, spelled in splits.items():
        with h5py.File(directory / f"{stem}_{spelled}.h5", "w") as file:
            for client in raw_twin_source(name, split, **SCALE).clients():
                for feature, column in client.examples.items():
                    column = column.reshape(len(column), *shapes.get(feature, ()))
                    text = h5py.special_dtype(vlen=bytes) if column.dtype == object else None
                    file.create_dataset(f"examples/{client.id}/{feature}", data=column, dtype=text)


def words_file(directory, words=None):
    lines = b"".join(b"%s %d\n" % (word, 99_999 - k) for k, word in enumerate(words or twin_vocabulary()))
    with tarfile.open(directory / "stackoverflow.word_count.tar.bz2", "w:bz2") as file:
        member = tarfile.TarInfo("word_count")
        member.size = len(lines)
        file.addfile(member, io.BytesIO(lines))


def assert_twins(stores, name, tmp_path):
    """Checks that what was imported is what the twin has, client by client."""
    twins = synthetic_twin(name, tmp_path / "twin", progress=False, **SCALE)
    assert list(stores) == list(twins)
    for split, twin in twins.items():
        store = stores[split]
        ids = twin.client_ids(np.arange(twin.num_clients))
        if isinstance(store.client_ids([0])[0], bytes):
            ids = [client_id.encode() for client_id in ids]
        assert store.num_clients == twin.num_clients
        assert {key: (x.shape, x.dtype) for key, x in store.schema.items()} == {
            key: (x.shape, x.dtype) for key, x in twin.schema.items()
        }
        for k, row in enumerate(store.find(ids)):
            for feature, column in twin.client(k).items():
                np.testing.assert_array_equal(store.client(row)[feature], column)
        assert store.manifest["metadata"].keys() == twin.manifest["metadata"].keys()
        store.verify()


TRAIN_TEST = {"train": "train", "test": "test"}
SETS = {
    "emnist": (published.emnist, {}, "emnist_all", {"train": "all_train", "test": "all_test"}),
    "emnist_digits": (
        published.emnist,
        {"digits_only": True},
        "emnist_all",
        {"train": "digits_only_train", "test": "digits_only_test"},
    ),
    "cifar100": (published.cifar100, {}, "cifar100", TRAIN_TEST),
    "shakespeare": (published.shakespeare, {}, "shakespeare", TRAIN_TEST),
    "stack_overflow": (
        published.stack_overflow,
        {},
        "stackoverflow",
        {"train": "train", "heldout": "heldout", "test": "test"},
    ),
    "celeba_by_client": (
        published.celeba,
        {},
        "celeba",
        {"train": "split_by_clients_train", "test": "split_by_clients_test"},
    ),
    "celeba_by_example": (
        published.celeba,
        {"by": "example"},
        "celeba",
        {"train": "split_by_examples_train", "test": "split_by_examples_test"},
    ),
}


@pytest.mark.filterwarnings(DIFFERENT)
@pytest.mark.parametrize("name", SETS)
def test_tff_databases_become_the_twins(tmp_path, name):
    load, options, stem, splits = SETS[name]
    words_file(tmp_path)
    tff_file(tmp_path, stem, name, splits, is_packed=name == "shakespeare")
    stores = published.open(load(**options), tmp_path, check_files=False, progress=False)
    assert_twins(stores, name, tmp_path)
    for split, store in stores.items():
        assert store.manifest["provenance"]["split"] == split
        assert store.manifest["provenance"]["dataset"] == name


@pytest.mark.filterwarnings(DIFFERENT)
@pytest.mark.parametrize(
    ("name", "stem"), [("emnist", "fed_emnist"), ("shakespeare", "shakespeare"), ("stack_overflow", "stackoverflow")]
)
def test_hdf5_files_become_the_twins(tmp_path, name, stem):
    words_file(tmp_path)
    splits = {split: "held_out" if split == "heldout" else split for split in SETS[name][3]}
    hdf5_files(tmp_path, stem, name, splits, {"pixels": (28, 28)})
    assert_twins(published.open(SETS[name][0](), tmp_path, check_files=False, progress=False), name, tmp_path)


@pytest.mark.filterwarnings(DIFFERENT)
@pytest.mark.parametrize(("name", "stem"), [("emnist", "federated_emnist"), ("shakespeare", "shakespeare")])
def test_fedjax_databases_become_the_twins(tmp_path, name, stem):
    for split in ("train", "test"):
        to_fedjax_sqlite(raw_twin_source(name, split, **SCALE), tmp_path / f"{stem}_{split}.sqlite")
    assert_twins(published.open(SETS[name][0](), tmp_path, check_files=False, progress=False), name, tmp_path)


@pytest.mark.filterwarnings(DIFFERENT)
def test_conventions_have_stores_of_their_own(tmp_path):
    words_file(tmp_path)
    tff_file(tmp_path, "stackoverflow", "stack_overflow", SETS["stack_overflow"][3], is_packed=False)
    stores = {
        convention: published.open(
            published.stack_overflow(convention=convention, vocabulary_size=100),
            tmp_path,
            check_files=False,
            progress=False,
        )["train"]
        for convention in ("tff", "fedjax")
    }
    tokens = {convention: store.load().examples["tokens"] for convention, store in stores.items()}
    np.testing.assert_array_equal(tokens["fedjax"], published.renumbering(100, "tff", "fedjax")[tokens["tff"]])
    (applied,) = stores["fedjax"].manifest["provenance"]["preprocessed"]
    assert applied["convention"] == "fedjax"
    assert applied["vocabulary_sha256"] == hashlib.sha256(b"\n".join(twin_vocabulary(100))).hexdigest()


@pytest.mark.filterwarnings(DIFFERENT)
def test_tags(tmp_path):
    words_file(tmp_path)
    with tarfile.open(tmp_path / "stackoverflow.tag_count.tar.bz2", "w:bz2") as file:
        text = json.dumps({"python": 100, **{f"tag{k:03d}": 99 - k for k in range(100)}}).encode()
        member = tarfile.TarInfo("tags")
        member.size = len(text)
        file.addfile(member, io.BytesIO(text))
    tff_file(tmp_path, "stackoverflow", "stack_overflow", SETS["stack_overflow"][3], is_packed=False)
    stores = published.open(
        published.stack_overflow_tags(num_tags=50, max_words=12), tmp_path, check_files=False, progress=False
    )
    raw = next(raw_twin_source("stack_overflow", "train", **SCALE).clients())
    columns = stores["train"].client(stores["train"].find([raw.id])[0])
    for k, (tokens, title, tags) in enumerate(
        zip(*(raw.examples[x] for x in ("tokens", "title", "tags")), strict=True)
    ):
        known = [int(word[4:]) for word in (tokens + b" " + title).split() if word.startswith(b"word")]
        assert columns["num_words"][k] == len(known)
        assert columns["words"][k].tolist() == (known + [10_000] * 12)[:12]
        number = int(tags[3:6]) + 1
        assert columns["tags"][k].tolist() == ([0, number] if number < 50 else [0, 50]) + [50] * 3


def test_a_second_call_opens_and_does_not_import(tmp_path):
    tff_file(tmp_path, "shakespeare", "shakespeare", TRAIN_TEST, is_packed=False)
    with pytest.warns(UserWarning, match="is not as published"):
        first = published.open(published.shakespeare(), tmp_path, progress=False)
    (tmp_path / "shakespeare.sqlite").unlink()
    with pytest.warns(UserWarning, match="is not as published") as caught:
        second = published.open(published.shakespeare(), tmp_path, progress=False)
    assert {split: store.fingerprint for split, store in second.items()} == {
        split: store.fingerprint for split, store in first.items()
    }
    text = [str(warning.message) for warning in caught]
    assert len(text) == 2
    raw = [len(client.examples["snippets"]) for client in raw_twin_source("shakespeare", "train", **SCALE).clients()]
    assert text[0] == (
        "shakespeare, train, is not as published: num_clients 12 instead of 715, "
        f"num_examples {sum(raw)} instead of 16068"
    )


def test_published_counts_are_no_warning(tmp_path, monkeypatch):
    tff_file(tmp_path, "shakespeare", "shakespeare", TRAIN_TEST, is_packed=False)
    counts = {}
    for split in TRAIN_TEST:
        sizes = [
            len(client.examples["snippets"]) for client in raw_twin_source("shakespeare", split, **SCALE).clients()
        ]
        counts[split] = files.Count(len(sizes), sum(sizes))
    monkeypatch.setattr(files, "COUNTS", {"shakespeare": counts})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # FedJAX's windows are other examples than snippets, and are not compared with these.
        published.open(published.shakespeare(convention="fedjax"), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (
            published.emnist,
            r"emnist_all.sqlite.lzma \(170507172 bytes, sha256 c3aaf91b4cf4e69d53d81627ad119eccdc878ff906f68e66063f"
            r"f10f67faad48, from TensorFlow Federated's public storage bucket\); got none. "
            r"Put it at .*/emnist_all.sqlite.lzma, "
            r"or give emnist_all.sqlite or fed_emnist_test.h5 with fed_emnist_train.h5 or federated_emnist_test",
        ),
        (published.shakespeare, r"shakespeare.sqlite.lzma \(1329828 bytes, no published checksum"),
        (published.cifar100, "cifar100.sqlite.lzma .* sha256 23d3916c"),
        (published.celeba, r"celeba.sqlite.lzma \(size not published"),
        (published.stack_overflow, "stackoverflow.sqlite.lzma .*, stackoverflow.word_count.tar.bz2 .*sha256 1dc00256"),
        (published.stack_overflow_tags, "stackoverflow.tag_count.tar.bz2 .*sha256 6fe281ce"),
        (published.cifar10, r"data_batch_1.bin \(30730000 bytes"),
        (published.landmarks, "mini_gld_test.csv .*md5 298e9d19.*, mini_gld_train_split.csv .*md5 9fd62cf7"),
        (published.inaturalist, "iNaturalist_test.csv .*md5 bcf08a5a"),
        (published.flair, "labels_and_metadata.json .*Apple"),
        (published.reddit, "reddit.hdf5 .*pfl-research"),
        (published.leaf_femnist, r"needs test/\*.json .*, train/\*.json"),
    ],
)
def test_an_absent_file_is_described(tmp_path, load, expected):
    with pytest.raises(FileNotFoundError, match=expected) as caught:
        published.open(load(), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_the_published_ones(tmp_path, monkeypatch):
    path = tmp_path / "shakespeare.sqlite.lzma"
    path.write_bytes(b"x" * 10)
    with pytest.raises(ValueError, match=r"shakespeare.sqlite.lzma needs 1329828 bytes, as published; got 10"):
        published.open(published.shakespeare(), tmp_path)
    right = hashlib.sha256(b"x" * 10).hexdigest()
    for wrong in ({"sha256": "0" * 64}, {"md5": "0" * 32}):
        monkeypatch.setattr(files, "FILES", {path.name: files.File("here", 10, **wrong)})
        with pytest.raises(ValueError, match=r"needs the published (sha256|md5) 00.*; got .*check_files=False"):
            published.open(published.shakespeare(), tmp_path)
    monkeypatch.setattr(files, "FILES", {path.name: files.File("here", 10, right)})
    with pytest.raises(ValueError, match="lzma"):  # Past the check; it is no database.
        published.open(published.shakespeare(), tmp_path, progress=False)
    assert [x.name for x in tmp_path.iterdir()] == [path.name]


def test_a_crash_in_the_import_leaves_nothing_that_opens(tmp_path, monkeypatch):
    tff_file(tmp_path, "emnist_all", "emnist", SETS["emnist"][3], is_packed=False)

    def crash(client_id, calls=[]):  # noqa: B006
        calls.append(client_id)
        if len(calls) == 15:  # In the second split.
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr("fedjx.data.published.vision.emnist_domain", crash)
    with pytest.raises(KeyboardInterrupt):
        published.open(published.emnist(), tmp_path, check_files=False, progress=False)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["emnist-uint8-train", "emnist_all.sqlite"]
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="is not as published"):
        stores = published.open(published.emnist(), tmp_path, check_files=False, progress=False)
    assert stores["test"].metadata("domain_id").tolist() == [1] * 12


def test_grey_values_between_bytes_are_kept_as_floats(tmp_path):
    def clients():
        for client in raw_twin_source("emnist", "train", **SCALE).clients():
            pixels = np.full_like(client.examples["pixels"], 0.3)
            yield client._replace(examples={**client.examples, "pixels": pixels})

    for split in ("train", "test"):
        to_fedjax_sqlite(Source(clients), tmp_path / f"federated_emnist_{split}.sqlite")
    with pytest.raises(ValueError, match=r"client b'f0000_00': grey values need to be .* dtype='float32'"):
        published.open(published.emnist(), tmp_path, progress=False)
    with pytest.warns(UserWarning, match="not as published"):
        stores = published.open(published.emnist(dtype="float32"), tmp_path, progress=False)
    assert (stores["train"].client(0)["pixels"] == np.float32(0.3)).all()


@pytest.mark.filterwarnings(DIFFERENT)
def test_damaged_files_are_refused(tmp_path):
    """Half a download has a clear error and no store, through the loader's own steps."""
    tff_file(tmp_path, "shakespeare", "shakespeare", TRAIN_TEST, is_packed=True)
    path = tmp_path / "shakespeare.sqlite.lzma"
    transform = published.shakespeare_tokens()

    def source():
        from fedjx.data.importers import tff_sqlite

        return preprocess(tff_sqlite(path, split="train"), transform)

    assert check_damage(path, source, number=30, is_checked=True) > 20


@pytest.mark.filterwarnings(DIFFERENT)
def test_two_processes_at_once(tmp_path, monkeypatch):
    tff_file(tmp_path, "shakespeare", "shakespeare", TRAIN_TEST, is_packed=False)

    def slower(path, source, *, progress):
        write_store(path, source, progress=progress)  # The other one.
        return write_store(path, source, progress=progress)

    monkeypatch.setattr("fedjx.data.published.stores.write_store", slower)
    stores = published.open(published.shakespeare(), tmp_path, progress=False)
    assert isinstance(stores["train"].load(), FederatedData)
