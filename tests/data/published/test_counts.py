"""Tests of reading the words and tags out of archives, harmless ones and others."""

import io
import json
import tarfile

import pytest

from fedjx.data.published import tag_counts, word_counts


def archive(path, *members):
    with tarfile.open(path, "w:bz2") as file:
        for member, content in members:
            member = tarfile.TarInfo(member) if isinstance(member, str) else member
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def test_words_by_rank(tmp_path):
    path = archive(tmp_path / "w.tar.bz2", ("../../word_count", b". 9\nthe 8\n\xff\xfe 7\n 6\na b 5\n"))
    assert word_counts(path, 4) == [b".", b"the", b"\xff\xfe", b""]
    assert word_counts(path, 5)[4] == b"a b"
    assert [x.name for x in tmp_path.iterdir()] == ["w.tar.bz2"]  # Nothing is unpacked.
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    assert word_counts(archive(tmp_path / "f.tar.bz2", (folder, b""), ("folder/w", b"the 8\n")), 1) == [b"the"]
    with pytest.raises(ValueError, match="needs num_words=6; got 5"):
        word_counts(path, 6)


def test_tags_by_count_and_then_in_the_order_of_the_file(tmp_path):
    counts = {"b": 5, "c": 9, "a": 5, "d": 1}
    path = archive(tmp_path / "t.tar.bz2", ("tags", json.dumps(counts).encode()))
    assert tag_counts(path, 4) == [b"c", b"b", b"a", b"d"]
    assert tag_counts(path, 2) == [b"c", b"b"]
    with pytest.raises(ValueError, match="needs num_tags=5; got 4"):
        tag_counts(path, 5)


@pytest.mark.parametrize("content", [b"the\n", b"the x\n", b"the 5", b"a" * 100_000 + b" 5\n", b"the -5\n"])
def test_lines_that_are_no_words(tmp_path, content):
    path = archive(tmp_path / "w.tar.bz2", ("w", content))
    with pytest.raises(ValueError, match="need to be a word and a count"):
        word_counts(path, 1)


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": "b"}', b'{"a": 1.5}', b'{"a"', b"[" * 100_000])
def test_json_that_is_no_tags(tmp_path, content):
    with pytest.raises(ValueError, match="counts of tags as JSON"):
        tag_counts(archive(tmp_path / "t.tar.bz2", ("t", content)), 1)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    member = tarfile.TarInfo("word_count")
    member.type, member.linkname = kind, "/etc/passwd"
    path = archive(tmp_path / "w.tar.bz2", (member, b""), ("w", b"the 5\n"))
    for read in (word_counts, tag_counts):
        with pytest.raises(ValueError, match="needs to hold one regular file; got 'word_count', a link"):
            read(path, 1)


def test_files_that_are_no_archives(tmp_path):
    whole = archive(tmp_path / "w.tar.bz2", ("w", b"".join(b"word%d 5\n" % k for k in range(10_000)))).read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "text": b"the 5\n", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"needs to (be a whole .tar.bz2|hold one regular file)"):
            word_counts(tmp_path / name, 10_000)
    with pytest.raises(ValueError, match="got an empty archive"):
        word_counts(archive(tmp_path / "none.tar.bz2"), 1)
    with pytest.raises(FileNotFoundError):
        word_counts(tmp_path / "absent")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("fedjx.data.published.counts._MOST_BYTES", 1000)
    path = archive(tmp_path / "t.tar.bz2", ("t", b" " * 10_000_000 + b"{}"))
    with pytest.raises(ValueError, match="counts of tags as JSON"):
        tag_counts(path, 0)
