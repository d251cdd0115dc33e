"""Tests of writing what importers return."""

import os

import numpy as np
import pytest

from fedjx.data import Client, Source, write_store
from tests.data.damage import check_damage, contents


def source(*clients):
    return Source(lambda: iter(clients), len(clients), {"from": "here"})


def test_clients_arrive_in_their_order_with_their_metadata(tmp_path):
    clients = [
        Client("b", {"x": np.array([1, 2])}, {"split": "train"}),
        Client("a", {"x": np.array([3])}, {"split": "t"}),
    ]
    store = write_store(tmp_path / "s", source(*clients), progress=False)
    assert store.client_ids([0, 1]) == ["b", "a"]
    assert store.metadata("split").tolist() == ["train", "t"]
    assert store.client(0)["x"].tolist() == [1, 2]
    assert store.manifest["provenance"] == {"from": "here"}


def test_clients_without_examples_keep_their_place(tmp_path):
    none = np.empty(0, np.int64)
    store = write_store(
        tmp_path / "s",
        source(Client(0, {"x": none}), Client(1, {"x": none + 1}), Client(2, {"x": np.arange(2)})),
        progress=False,
    )
    assert store.client_ids([0, 1, 2]) == [0, 1, 2]
    assert store.sizes[:].tolist() == [0, 0, 2]
    assert store.manifest["provenance"] == {"from": "here"}
    with pytest.raises(ValueError, match="all features of client 7 need the same number of examples"):
        write_store(tmp_path / "t", source(Client(7, {"x": none, "y": np.arange(2)})), progress=False)


def test_what_fails_leaves_nothing(tmp_path):
    def clients():
        yield Client(0, {"x": np.arange(2)})
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_store(tmp_path / "s", Source(clients), progress=False)
    with pytest.raises(ValueError, match=r"client ids .* different"):
        write_store(tmp_path / "s", source(*[Client(0, {"x": np.arange(2)})] * 2), progress=False)
    assert not os.listdir(tmp_path)


def test_a_bar_shows_the_progress(tmp_path, capsys):
    write_store(tmp_path / "s", source(Client(0, {"x": np.arange(2)})))
    assert "1/1" in capsys.readouterr().err


def test_the_check_for_damage_finds_an_importer_that_lets_it_through(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.arange(64, dtype=np.uint8).tobytes())

    def careless():
        return source(Client(0, {"x": np.frombuffer(path.read_bytes(), np.uint8)}))

    with pytest.raises(AssertionError):
        check_damage(path, careless, is_checked=True)
    assert contents(write_store(tmp_path / "s", careless(), progress=False))[0] == [0]


def test_nothing_to_write_is_an_error_that_says_what_was_read(tmp_path):
    source = Source(lambda: iter([Client("ada", {"x": np.empty((0, 2))})]), None, {"importer": "table"})
    with pytest.raises(
        ValueError, match=r"a store needs at least one example; got none, and 1 clients without, of .*'table'"
    ):
        write_store(tmp_path / "s", source, progress=False)
    assert os.listdir(tmp_path) == []
