"""Tests of ``python -m fedjx.data``."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from fedjx.data import Store, published
from fedjx.data.__main__ import IMPORTERS, PARTITIONS, main
from fedjx.data.exporters import to_fedjax_sqlite, to_tff_sqlite
from tests.data.stores import CLIENTS, MEMORY, ROOT, SPLITS, assert_equal, written


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


def test_describe_command(tmp_path, capsys):
    store = written(tmp_path / "s", split=SPLITS)
    picture = tmp_path / "s.png"
    assert main(["describe", str(store.path), "--columns", "flag", "x", "--plot", str(picture)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out == (
        "clients   10\n"
        "examples  35; the largest 1% of clients have 25.7% of them, the largest 10% 25.7%\n"
        "size      875 B\n\n"
        "of a client                      least  5%     25%    50%    75%    95%     most\n"
        "examples                         1      1      1.25   2.5    4.75   8.1     9\n"
        "different flag                   1      1      1.25   2      2      2       2\n"
        "share of its most frequent flag  50.0%  50.0%  51.4%  58.6%  91.7%  100.0%  100.0%\n\n"
        "feature  dtype    shape   mean     deviation  least  5%     25%     50%     75%     95%     most    zeros  "
        "not finite\n"
        "flag     bool     []      0.48571  0.4998     0      0      0       0       1       1       1       51.4%  0\n"
        "x        float32  [2, 3]  45,160   26,873     1      11.45  20,029  50,016  60,014  90,020  90,030  0.0%   0\n"
        "\n"
        "labels  different  examples by value\n"
        "flag    2          0: 18, 1: 17\n\n"
        "metadata  clients by value\n"
        "split     train: 8, test: 2\n\n"
        "All numbers are exact.\n"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "z", "y"], "features need to be some of ['flag', 'x', 'y']; got ['z']. Choose among these."),
        (["--plot", "s.txt"], "a picture needs a file name of type "),
        (["--plot", "none/s.png"], "in a folder that is there; got none/s.png."),
    ],
)
def test_errors_of_describe(tmp_path, capsys, arguments, message):
    store = written(tmp_path / "s")
    assert main(["describe", str(store.path), *arguments]) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert main(["describe", str(tmp_path / "none")]) == 1
    assert "a store is a directory with a manifest.json" in capsys.readouterr().err


def test_verify_command(tmp_path, capsys):
    store = written(tmp_path / "s")
    assert main(["verify", str(store.path)]) == 0
    assert re.fullmatch(r".*/s: 8 files, 2\.\d kB, as written \(\d+\.\d s\)\n", capsys.readouterr().out)
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


def test_import_makes_a_store(tmp_path, capsys):
    to_fedjax_sqlite(MEMORY, tmp_path / "data.sqlite")
    assert main(["import", "fedjax_sqlite", str(tmp_path / "data.sqlite"), "--output", str(tmp_path / "s")]) == 0
    shown = capsys.readouterr()
    assert "clients      10, with ids of type" in shown.out
    assert "10/10" in shown.err  # The bar.
    store = Store(tmp_path / "s")
    assert_equal(store.read(range(10)), MEMORY.examples)
    assert store.manifest["provenance"]["importer"] == "fedjax_sqlite"
    assert main(["import", "fedjax_sqlite", str(tmp_path / "data.sqlite"), "--output", str(tmp_path / "s")]) == 1
    assert "a store needs a path that is free" in capsys.readouterr().err


def test_import_takes_types_as_they_are_printed(tmp_path):
    to_tff_sqlite(MEMORY, tmp_path / "data.sqlite", "train")
    arguments = ["import", "tff_sqlite", str(tmp_path / "data.sqlite"), "--split", "train"]
    assert main([*arguments, "--output", str(tmp_path / "s"), "--features", "x=float32[2,3],y=int16,flag=bool"]) == 0
    assert_equal(dict(Store(tmp_path / "s").read(range(10))), MEMORY.examples)


def test_import_of_several_files_and_of_a_json_directory(tmp_path):
    for number, users in enumerate((["ada"], ["bob", "eve"])):
        data = {user: {"x": [[1.0, 2.0]] * 2, "y": [len(user), number]} for user in users}
        body = {"users": users, "num_samples": [2] * len(users), "user_data": data}
        (tmp_path / f"{number}.json").write_text(json.dumps(body))
    (tmp_path / "split").mkdir()
    for number in range(2):
        (tmp_path / f"{number}.json").rename(tmp_path / "split" / f"{number}.json")
    assert main(["import", "leaf", str(tmp_path / "split"), "--output", str(tmp_path / "s")]) == 0
    assert Store(tmp_path / "s").client_ids(range(3)) == ["ada", "bob", "eve"]


@pytest.mark.parametrize(
    ("scheme", "options", "expected"),
    [
        ("iid", ["5", "--seed", "1"], [6, 6, 6, 6, 6]),
        ("size", ["1", "2", "27", "--seed", "1"], [1, 2, 27]),
        ("dirichlet_by_client", ["3", "--alpha", "1", "--seed", "0", "--labels", "y"], [10, 10, 10]),
        ("natural", ["--keys", "y"], [10, 12, 8]),
    ],
)
@pytest.mark.parametrize("form", ["store", "npz"])
def test_partition_makes_a_store_of_the_same_examples(tmp_path, scheme, options, expected, form):
    examples = {"x": np.arange(60.0).reshape(30, 2), "y": np.repeat([0, 1, 2], [10, 12, 8])}
    if form == "npz":
        source = str(tmp_path / "all.npz")
        np.savez(source, **examples)
    else:
        source = str(written(tmp_path / "all", [examples], ids=["all"]).path)
    assert main(["partition", scheme, source, *options, "--output", str(tmp_path / "s")]) == 0
    store = Store(tmp_path / "s")
    assert np.asarray(store.sizes).tolist() == expected
    order = np.argsort(store.load().examples["x"][:, 0])
    assert_equal({name: column[order] for name, column in store.load().examples.items()}, examples)
    said = store.manifest["provenance"]["partition"]
    assert said["name"] == f"{scheme}_partition"
    assert said["of"] == ({"file": "all.npz"} if form == "npz" else Store(source).provenance)


def test_errors_of_partitions(tmp_path, capsys):
    source = str(written(tmp_path / "all").path)
    tail = ["--alpha", "1", "--seed", "0", "--output", str(tmp_path / "s")]
    assert main(["partition", "dirichlet", source, "--labels", "digit", *tail, "5"]) == 1
    assert "labels need to be a feature of" in capsys.readouterr().err
    assert main(["partition", "dirichlet", source, "--labels", "y", *tail, "500"]) == 1
    assert "every client needs min_examples" in capsys.readouterr().err
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    assert (
        main(["partition", "iid", str(tmp_path / "cut.npz"), "5", "--seed", "0", "--output", str(tmp_path / "s")]) == 1
    )
    assert "an .npz file needs to be whole" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("command", "function"),
    [("import", f) for f in IMPORTERS]
    + [("partition", f) for f in PARTITIONS]
    + [("published", f) for f in published.DATA_SETS.values()],
)
def test_every_kind_explains_itself(command, function, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, function.__name__.removesuffix("_partition"), "--help"])
    shown = capsys.readouterr().out
    assert ("DIRECTORY" if command == "published" else "OUTPUT") in shown
    assert "`" not in shown
    assert "\n\n" in shown


def test_types_that_do_not_parse(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["import", "tff_sqlite", "a", "--output", "b", "--features", "x=foo"])
    assert "argument --features: types are NAME=TYPE, such as x=float32[28,28],y=int32" in capsys.readouterr().err


def test_columns_of_several_lengths_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=np.arange(6), y=np.arange(5) % 2)
    command = ["partition", "natural", str(tmp_path / "x.npz"), "--keys", "y", "--output", str(tmp_path / "s")]
    assert main(command) == 1
    assert "x.npz" in (shown := capsys.readouterr().err)
    assert "got 'x' with 6 and 'y' with 5" in shown
    assert not (tmp_path / "s").exists()


def test_an_interrupted_command_says_so_in_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedjx.data.__main__.Store", interrupted)
    assert main(["verify", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "python -m fedjx.data: interrupted\n"


def test_twins_and_published_sets_are_made(tmp_path, capsys):
    twin = ["twin", "emnist", str(tmp_path), "--num-clients", "4", "--mean-examples", "3", "--seed", "1"]
    assert main(twin) == 0
    expected = published.synthetic_twin("emnist", tmp_path, seed=1, num_clients=4, mean_examples=3, progress=False)
    shown = capsys.readouterr().out
    assert shown.count("clients      4, with ids of type str") == 2
    assert f"train: {expected['train'].path}" in shown
    assert main(["published", "shakespeare", str(tmp_path)]) == 1
    assert "shakespeare.sqlite.lzma (1329828 bytes" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["published", "stack_overflow", "--help"])
    shown = capsys.readouterr().out
    for option in ("--vocabulary-size", "--no-check-files", "--no-progress"):
        assert option in shown
