"""Tests of stores that are not as they were written: an error that names the file, and never wrong data."""

import json
import os

import numpy as np
import pytest

from fedjx.data import Store, StoreWriter, columns
from fedjx.data.manifest import checked_text
from tests.data.stores import CLIENTS, MEMORY, SPLITS, assert_equal, written

# What readers refuse.


def test_no_store(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"a store is a directory with a manifest.json; got .*/s, no such directory"
    ):
        Store(tmp_path / "s")
    (tmp_path / "s").mkdir()
    with pytest.raises(FileNotFoundError, match=r"got .*/s, no manifest.json in it"):
        Store(tmp_path / "s")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="a store is a directory"):
        Store(tmp_path / "file")


def test_an_interrupted_write_is_named(tmp_path):
    with StoreWriter(tmp_path / "s") as writer:
        writer.add(0, CLIENTS[0])
        with pytest.raises(FileNotFoundError, match=r"got none at .*/s, but \.s\.partial-[0-9a-f]{8} beside it"):
            Store(tmp_path / "s")
    Store(tmp_path / "s")


def replace(path, old, new):
    text = path.read_bytes()
    assert text.count(old) == 1
    path.write_bytes(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"version": 1', b'"version": 2', "a store needs to be of version 1; got version 2 in .*manifest.json"),
        (b'"format": "fedjx store"', b'"format": "fedjx xtore"', "a manifest needs to be that of a store"),
        (b'"num_clients": 10', b'"num_clients": 11', "a manifest needs its own checksum; .*manifest.json is corrupt"),
        (b'"num_clients": 10', b'"num_clients": 1O', "manifest.json is not, or it is corrupt"),
        (b'"num_clients": 10', b'"num_clients":  10', "a manifest needs its own checksum"),
    ],
)
def test_manifests_that_are_refused(tmp_path, old, new, message):
    store = written(tmp_path / "s")
    replace(store.path / "manifest.json", old, new)
    with pytest.raises(ValueError, match=message):
        Store(tmp_path / "s")


def test_files_of_another_size_are_refused(tmp_path):
    written(tmp_path / "s")
    path = tmp_path / "s" / "y-00000.npy"
    whole = path.read_bytes()
    for text, message in (
        (whole[:-1], r"y-00000.npy is truncated: got 197 bytes, expected 198"),
        (whole + b"x", r"y-00000.npy is too long: got 199 bytes, expected 198"),
        (b"", r"y-00000.npy is truncated: got 0 bytes, expected 198"),
    ):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=message):
            Store(tmp_path / "s")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"y-00000\.npy is missing"):
        Store(tmp_path / "s")


def test_files_that_shrink_or_vanish_after_opening(tmp_path):
    store = written(tmp_path / "s")
    os.truncate(store.path / "x-00000.npy", 500)
    assert store.client(0)["y"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"x-00000.npy is truncated: got 500 bytes, expected 968"):
        store.read([9])
    with pytest.raises(ValueError, match="truncated"):
        store.verify()
    (store.path / "x-00000.npy").unlink()
    for read in (lambda: store.client(0), store.verify):
        with pytest.raises(FileNotFoundError, match=r"x-00000\.npy is (gone|missing)"):
            read()


@pytest.mark.parametrize("offset", [0, 2, 2**40, -(2**62), 35, 14])
def test_offsets_that_contradict_the_manifest(tmp_path, offset):
    store = written(tmp_path / "s")  # client 1 has the row 3, and 2 the rows 4 to 10
    with open(store.path / "offsets.npy", "r+b") as file:
        file.seek(128 + 8 * 2)
        file.write(offset.to_bytes(8, "little", signed=True))
    for read in (lambda: store.read([1]), lambda: store.sizes[:3]):
        with pytest.raises(ValueError, match=r"offsets need to increase; those in .*/s are corrupt"):
            read()


def test_verify_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "BLOCK", 100)
    store = written(tmp_path / "s")
    store.verify()
    path = store.path / "x-00000.npy"
    flipped = bytearray(path.read_bytes())
    flipped[128 + 350] ^= 4
    flipped[20] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"x-00000.npy: the header is not that of float32\[35, 2, 3\]") as error:
        store.verify()
    assert "x-00000.npy: corrupt between bytes 428 and 528 (rows 12 to 16) (2 faults in all)" in str(error.value)
    assert_equal(store.read([0, 1]), MEMORY.read([0, 1]))


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 250, 300])
@pytest.mark.parametrize("pieces", [1, 30, 100, 10_000])
def test_checksums_do_not_depend_on_the_pieces(tmp_path, monkeypatch, length, pieces):
    monkeypatch.setattr(columns, "BLOCK", 100)
    data = np.random.default_rng(0).bytes(length)
    writer = columns.ColumnWriter(tmp_path / "c.npy", "uint8")
    for start in range(0, length, pieces):
        writer.append(data[start : start + pieces])
    column = writer.finish(length)
    assert len(column.checksums) == -(-length // 100)
    assert not list(column.problems())
    assert np.load(tmp_path / "c.npy").tobytes() == column.rows(range(length)).tobytes() == data


def rehashed(path, change):
    """Changes the manifest of a store, which is then consistent with itself."""
    body = json.loads((path / "manifest.json").read_bytes())
    del body["sha256"]
    change(body)
    (path / "manifest.json").write_bytes(checked_text(body))


def renamed(name):
    def change(body):
        body["files"][name] = body["files"].pop("y-00000.npy")
        body["features"]["y"]["file"] = name.removesuffix("-00000.npy")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("../secret-00000.npy"), "the file '../secret-00000.npy' has no plain name"),
        (renamed("/etc/secret-00000.npy"), "the file '/etc/secret-00000.npy' has no plain name"),
        (
            lambda body: body["files"].update({"../y.npy": body["files"]["offsets.npy"]}),
            "files needs .*, and is .*'../y.npy'",
        ),
        (lambda body: body.pop("shards"), "it has no 'shards'"),
        (lambda body: body["features"]["x"].pop("shape"), r"it\['features'\]\['x'\] has no 'shape'"),
        (lambda body: body.update(num_clients="10"), r"it\['num_clients'\] is '10', not an int in \[0, 2\^63\)"),
        (lambda body: body.update(num_clients=11), r"the file offsets.npy is int64\[11\], not int64\[12\]"),
        (lambda body: body["files"]["y-00000.npy"].update(dtype="object"), "'object' is no dtype of numbers"),
        (lambda body: body["files"]["y-00000.npy"].update(dtype="i4,i4"), "'i4,i4' is no dtype of numbers"),
        (
            lambda body: body["files"]["y-00000.npy"].update(dtype="uint16"),
            r"the file y-00000.npy is uint16\[35\], not int16",
        ),
    ],
)
def test_hostile_manifests_are_refused(tmp_path, change, message):
    path = written(tmp_path / "s").path
    rehashed(path, change)
    with pytest.raises(ValueError, match=rf"manifest.json: {message}"):
        Store(path)


def test_a_dtype_that_contradicts_the_file(tmp_path):
    def change(body):
        body["files"]["y-00000.npy"]["dtype"] = body["features"]["y"]["dtype"] = "uint16"

    path = written(tmp_path / "s").path
    rehashed(path, change)
    with pytest.raises(ValueError, match=r"y-00000.npy is not uint16\[35\]"):
        Store(path)


@pytest.mark.parametrize("name", ["manifest.json", "y-00000.npy"])
def test_a_directory_in_place_of_a_file(tmp_path, name):
    store = written(tmp_path / "s")
    (store.path / name).unlink()
    (store.path / name).mkdir()
    with pytest.raises(ValueError, match=f"needs to be a file; .*{name}"):
        Store(store.path)
    if name != "manifest.json":
        with pytest.raises(ValueError, match=f"needs to be a file; .*{name}"):
            store.client(0)


def test_names_that_are_no_text(tmp_path):
    store = written(tmp_path / "s")
    replace(store.path / "client_ids.npy", b"client 0", b"cli\xffnt 0")
    with pytest.raises(ValueError, match=r"need to be UTF-8; .*client_ids.npy is corrupt"):
        store.client_ids([0])


def places(value, path=()):
    """Where in a manifest there is a value, at most a few in each list."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


WRONG = [None, -1, 10**30, 1.5, True, "x", "../x", [], {}, [1], {"x": 1}]


def test_every_wrong_value_in_a_manifest_is_an_error_or_changes_nothing(tmp_path):
    path = written(tmp_path / "s", shard_bytes=200, split=SPLITS).path
    text = (path / "manifest.json").read_bytes()
    expected, refused = used(Store(path)), 0
    for *parents, last in [
        place for place in places(json.loads(text)) if place and place[0] not in ("sha256", "provenance")
    ]:
        for wrong in WRONG:
            if parents[:1] == ["metadata"] and isinstance(wrong, str):
                continue  # Any text may be a value.

            def change(body, parents=parents, last=last, wrong=wrong):
                for key in parents:
                    body = body[key]
                body[last] = wrong

            rehashed(path, change)
            try:
                found = used(Store(path))
            except (ValueError, FileNotFoundError):
                refused += 1
            else:
                assert repr(found) == repr(expected), (parents, last, wrong)
            (path / "manifest.json").write_bytes(text)
    assert refused > 1000


def used(store):
    """Reads all there is in a store."""
    everything = range(store.num_clients)
    found = store.find(store.client_ids(everything)).tolist()
    return store.read(everything), store.metadata("split").tolist(), found


def damaged(text, random):
    """A copy that ends early or in which some bits are flipped."""
    if random.random() < 0.3:
        return text[: random.integers(len(text))]
    array = np.frombuffer(text, np.uint8).copy()
    for _ in range(random.integers(1, 4)):
        array[random.integers(len(text))] ^= 1 << random.integers(8)
    return array.tobytes()


def stage_of_error(path):
    """Opens, uses and verifies a store, and returns where there was an error, if it was a clear one."""
    try:
        store = Store(path)
    except ValueError:
        return "open", None
    try:
        stage = "verify" if used(store) else ""
    except (ValueError, KeyError):
        stage = "use"
    try:
        store.verify()
    except ValueError as error:
        return stage, str(error)
    return "", None


def test_random_damage_gives_an_error_or_the_right_data(tmp_path):
    whole = written(tmp_path / "s", shard_bytes=200, split=SPLITS)
    files, random = sorted(whole.path.iterdir()), np.random.default_rng(0)
    stages = []
    for _ in range(400):
        path = files[random.integers(len(files))]
        original = path.read_bytes()
        text = damaged(original, random)
        path.write_bytes(text)
        stage, message = stage_of_error(whole.path)
        assert bool(stage) == (text != original)
        assert message is None or f"{path}: " in message
        stages.append(stage)
        path.write_bytes(original)
    assert min(stages.count(stage) for stage in ("open", "use", "verify")) > 5
    assert stage_of_error(whole.path) == ("", None)
