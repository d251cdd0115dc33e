"""Tests of importing WebDataset tars, against tarfile."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from fedjx.data import write_store
from fedjx.data.importers import webdataset
from tests.data.damage import check_damage


def picture(k, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(k).integers(256, size=(4, 5, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def sample(k):
    user = {"user": f"u{k * 5 % 3}", "age": k, "size": k / 2, "ok": k % 2 == 0, "tags": ["a", str(k)], "box": [k, 1, 2]}
    return {
        "png": picture(k),
        "cls": b"%d\n" % k,
        "json": json.dumps(user).encode(),
        "emb.npy": npy(np.full((2, 2), k, np.float32)),
        "txt": f"wörd {k}".encode(),
        "bin": bytes([k, 0]),
    }


def tar(path, members, mode="w", **options):
    with tarfile.open(path, mode, **options) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def members(numbers):
    return [(f"train/{k:04d}.{extension}", data) for k in numbers for extension, data in sample(k).items()]


def by_hand(paths):
    clients = {}
    for path in paths:
        with tarfile.open(path) as file:
            contents = {info.name: file.extractfile(info).read() for info in file.getmembers()}
        for stem in sorted({name.partition(".")[0] for name in contents}):
            fields = json.loads(contents[f"{stem}.json"])
            example = {"png": np.asarray(Image.open(io.BytesIO(contents[f"{stem}.png"]))).tolist()}
            example |= {
                "cls": int(contents[f"{stem}.cls"]),
                "emb.npy": np.load(io.BytesIO(contents[f"{stem}.emb.npy"])).tolist(),
            }
            example |= {"txt": contents[f"{stem}.txt"].decode(), "bin": contents[f"{stem}.bin"]}
            example |= {name: fields[name] for name in ("age", "size", "ok", "tags", "box")}
            clients.setdefault(fields["user"], []).append(example)
    return {
        user: {name: [example[name] for example in examples] for name in sorted(examples[0])}
        for user, examples in sorted(clients.items())
    }


def found(source):
    return {c.id: {name: c.examples[name].tolist() for name in sorted(c.examples)} for c in source.clients()}


@pytest.mark.parametrize(("kind", "options"), [("w", {}), ("w:gz", {}), ("w", {"format": tarfile.PAX_FORMAT})])
def test_samples_are_grouped_by_client(tmp_path, kind, options):
    name = "tar.gz" if kind == "w:gz" else "tar"
    paths = [tar(tmp_path / f"{k}.{name}", members(range(4 * k, 4 * k + 4)), kind, **options) for k in range(2)]
    source = webdataset(tmp_path / f"*.{name}", client="user")
    assert found(source) == by_hand(paths)
    assert found(source) == by_hand(paths)
    assert [*found(source)] == ["u0", "u1", "u2"]
    (first, *_) = source.clients()
    dtypes = {name: column.dtype.name for name, column in first.examples.items()}
    assert dtypes["png"] == "uint8"
    assert dtypes["emb.npy"] == "float32"
    assert (dtypes["cls"], dtypes["size"], dtypes["ok"]) == ("int64", "float64", "bool")
    assert source.provenance["files"] == {path.name: path.stat().st_size for path in paths}


def test_clients_by_extension_and_by_function(tmp_path):
    path = tar(tmp_path / "a.tar", members(range(4)))
    by_class = {client.id: client.examples for client in webdataset(path, client="cls").clients()}
    assert by_class.keys() == {0, 1, 2, 3}
    assert "cls" not in by_class[0]
    assert by_class[2]["user"].tolist() == ["u1"]
    assert [client.id for client in webdataset(path, client="txt").clients()] == [f"wörd {k}" for k in range(4)]
    by_function = webdataset(path, client=lambda key, files: f"{key[-1]}/{files['bin'][0] // 2}", image_shape=(2, 2, 1))
    assert [client.id for client in by_function.clients()] == ["0/0", "1/0", "2/1", "3/1"]
    assert next(by_function.clients()).examples["png"].shape == (1, 2, 2, 1)


def long_name(path):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        for extension, data in (("cls", b"1"), ("id.cls", b"2")):
            info = tarfile.TarInfo(f"{'d' * 150}/x.{extension}")
            info.size = 1
            file.addfile(info, io.BytesIO(data))


def test_directories_and_long_names_are_read(tmp_path):
    long_name(tmp_path / "a.tar")
    (client,) = webdataset(tmp_path / "a.tar", client="id.cls").clients()
    assert (client.id, client.examples["cls"].tolist()) == (2, [1])
    with tarfile.open(tmp_path / "b.tar", "w") as file:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        info = tarfile.TarInfo("d/x.cls")
        info.size = 1
        file.addfile(info, io.BytesIO(b"1"))
    (client,) = webdataset(tmp_path / "b.tar", client=lambda key, files: key).clients()
    assert (client.id, client.examples["cls"].tolist()) == ("d/x", [1])


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../a.cls", tarfile.REGTYPE, "leads out of it"),
        ("/a.cls", tarfile.REGTYPE, "leads out of it"),
        ("a\\b.cls", tarfile.REGTYPE, "leads out of it"),
        ("a.cls", tarfile.SYMTYPE, "not a plain file"),
        ("a.cls", tarfile.LNKTYPE, "not a plain file"),
        ("a.cls", tarfile.FIFOTYPE, "not a plain file"),
        ("a.cls", tarfile.CHRTYPE, "not a plain file"),
        ("README", tarfile.REGTYPE, r"called name\.extension"),
        (".hidden", tarfile.REGTYPE, r"called name\.extension"),
    ],
)
def test_members_that_are_no_files_of_a_sample_are_refused(tmp_path, name, kind, message):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(ValueError, match=message) as error:
        list(webdataset(tmp_path / "a.tar", client="cls").clients())
    assert "a.tar" in str(error.value)


def test_huge_members_are_refused_before_they_are_read(tmp_path):
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:  # 200 kB that unpack to 200 MB.
        info = tarfile.TarInfo("a.bin")
        info.size = 200 << 20
        file.write(info.tobuf())
        for _ in range(20):
            file.write(bytes(10 << 20))
    with pytest.raises(ValueError, match="more than max_member_bytes=1048576"):
        list(webdataset(tmp_path / "a.tar.gz", client="bin", max_member_bytes=1 << 20).clients())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"cls": b"one"}, "'cls' of sample"),
        ({"json": b"[1]"}, "fields by name"),
        ({"json": b"{"}, "'json' of sample"),
        ({"json": b'{"a": null}'}, "numbers, booleans, text"),
        ({"json": b'{"a": {"b": 1}}'}, "numbers, booleans, text"),
        ({"json": b'{"a": [1, "b"]}'}, "numbers, booleans, text"),
        ({"json": b'{"a": [[1], [1, 2]]}'}, "'json' of sample"),
        ({"json": b'{"cls": 1}', "cls": b"1"}, "different names"),
        ({"npy": b"\x93NUMPY"}, "'npy' of sample"),
        ({"npy": npy(np.array([{}], object))}, "'npy' of sample"),
        ({"txt": b"\xff"}, "'txt' of sample"),
        ({"jpg": b"no image"}, "image 0 of 'jpg'"),
        ({"user": b"a"}, "no.*user|client is a feature"),
    ],
)
def test_files_that_cannot_be_decoded_are_refused(tmp_path, files, message):
    path = tar(tmp_path / "a.tar", [(f"s.{name}", data) for name, data in files.items()])
    with pytest.raises(ValueError, match=message):
        list(webdataset(path, client=(lambda key, _: key) if "user" not in files else "id").clients())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"cls": b"1"}, {"bin": b"1"}),
        ({"json": b'{"a": 1}'}, {"json": b'{"a": 1.5}'}),
        ({"png": picture(0)}, {"jpg": picture(0)}),
    ],
)
def test_samples_need_to_be_alike(tmp_path, first, second):
    path = tar(
        tmp_path / "a.tar", [(f"{k}.{name}", data) for k, x in enumerate((first, second)) for name, data in x.items()]
    )
    with pytest.raises(ValueError, match=r"same features.*sample '1'"):
        list(webdataset(path, client=lambda key, _: key).clients())
    tar(path, [("a.cls", b"1"), ("a.cls", b"2")])
    with pytest.raises(ValueError, match="each extension once"):
        list(webdataset(path, client=lambda key, _: key).clients())


def test_a_tar_without_its_end_or_with_something_after_it_is_refused(tmp_path):
    whole = tar(tmp_path / "a.tar", [(f"{k}.cls", b"1") for k in range(3)]).read_bytes()
    assert len(list(webdataset(tmp_path / "a.tar", client=lambda key, _: key).clients())) == 3
    header = bytearray(whole)
    header[1024] ^= 1
    # Python's module reads one or two files out of these and says nothing.
    for damaged in (whole[:2048], whole[:1024], whole[:3072], bytes(header), whole + whole, b"", whole[:100]):
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.tar is not"):
            list(webdataset(tmp_path / "a.tar", client=lambda key, _: key).clients())


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_damaged_tar_is_refused_or_whole(tmp_path, kind):
    data = [("cls", b"%d"), ("id.cls", b"%d")]
    files = [(f"{k}.{name}", text % k) for k in range(4) for name, text in data]
    path = tar(tmp_path / f"a.{kind}", files, "w:gz" if kind == "tar.gz" else "w")
    refused = check_damage(path, lambda: webdataset(path, client="id.cls"), number=100, is_checked=kind == "tar.gz")
    assert refused > 45
    path = tar(
        path, [(f"{k}.{n}", d) for k in range(2) for n, d in (("png", picture(k)), ("id.cls", b"%d" % k))], "w:gz"
    )
    check_damage(path, lambda: webdataset(path, client="id.cls"), number=40, is_checked=True)
    assert write_store(tmp_path / "s", webdataset(path, client="id.cls"), progress=False).num_clients == 2
