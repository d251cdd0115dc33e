"""Tests of ``python -m fedjx.data``."""

import re
import subprocess
import sys

import pytest

from fedjx.data.__main__ import main
from tests.data.stores import CLIENTS, ROOT, SPLITS, written


def test_inspect(tmp_path, capsys):
    store = written(tmp_path / "s", shard_bytes=200, split=SPLITS, group=list(range(10)))
    written(tmp_path / "t", CLIENTS[:1])
    assert main(["inspect", str(tmp_path / "s")]) == 0
    shown = capsys.readouterr().out
    assert shown == (
        "clients      10, with ids of type str\n"
        "examples     35; a client has 1 to 9, the median 2\n"
        f"size         945 B in {len(store.manifest['shards'])} shards\n"
        'provenance   {"made": "here"}\n'
        f"fingerprint  {store.fingerprint}\n\n"
        "feature  dtype    shape   size\n"
        "x        float32  [2, 3]  840 B\n"
        "y        int16    []      70 B\n"
        "flag     bool     []      35 B\n\n"
        "metadata  clients by value\n"
        "split     train: 8, test: 2\n"
        "group     0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1\n"
    )
    assert main(["inspect", str(tmp_path / "t")]) == 0
    assert "metadata" not in capsys.readouterr().out


def test_verify_command(tmp_path, capsys):
    store = written(tmp_path / "s")
    assert main(["verify", str(store.path)]) == 0
    assert re.fullmatch(r".*/s: 8 files, 2\.\d kB, as written \(0\.\d s\)\n", capsys.readouterr().out)
    path = store.path / "x-00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["verify", str(store.path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "x-00000.npy: corrupt between bytes 128 and 968 (rows 0 to 34) (1 faults in all)" in shown.err
    path.unlink()
    for command in ("verify", "inspect"):
        assert main([command, str(store.path)]) == 1
        assert "x-00000.npy is missing" in capsys.readouterr().err


def test_the_command_is_a_module(tmp_path):
    command = [sys.executable, "-m", "fedjx.data", "verify", str(tmp_path / "none")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "a store is a directory with a manifest.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_commands_that_do_not_exist(capsys):
    for arguments in ([], ["destroy", "x"], ["verify"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "usage: python -m fedjx.data" in capsys.readouterr().err
