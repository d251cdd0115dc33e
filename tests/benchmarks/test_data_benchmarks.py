"""The benchmarks of client data: small runs, and that readers that read something else are found out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import data_scale, input_files, input_pipeline
from benchmarks.workloads import logistic
from fedjx.data import Store
from fedjx.data.importers import fedjax_sqlite, tff_sqlite


@pytest.fixture(scope="module")
def data():
    return input_files.clients_of(12, seed=0)


def test_all_formats_hold_the_same_clients(tmp_path, data):
    input_files.write_all(tmp_path, data, {"training", "uint8", "float32", "fedjax.sqlite", "tff.sqlite"})
    for name, source in (
        ("fedjax.sqlite", fedjax_sqlite(tmp_path / "fedjax.sqlite")),
        ("tff.sqlite", tff_sqlite(tmp_path / "tff.sqlite", split="train")),
    ):
        clients = {
            client.id if isinstance(client.id, str) else client.id.decode(): client for client in source.clients()
        }
        assert len(clients) == 12, name
        for k in range(12):
            pixels = clients[input_files.client_name(k)].examples["pixels"].reshape(-1, 28, 28)
            np.testing.assert_array_equal(np.rint(pixels * 255), data.client(k)["pixels"])
    np.testing.assert_array_equal(Store(tmp_path / "uint8").client(3)["pixels"], data.client(3)["pixels"])
    np.testing.assert_array_equal(Store(tmp_path / "training").client(3)["x"][..., 0], data.client(3)["pixels"])
    ink = np.mean(data.examples["pixels"] != 255)
    assert 0.15 < ink < 0.25


def test_readers_take_turns_and_training_reads_from_disk(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(input_pipeline, "emnist_cnn", logistic)
    flags = ["--folder", str(tmp_path), "--environments", str(tmp_path / "none"), "--population", "12", "--turns", "1"]
    few = ["--clients", "4", "--rounds", "1", "--cold-rounds", "1", "--training-clients", "2", "--devices", "1"]
    report = input_pipeline.main(input_pipeline.parse_flags([*flags, *few, "--readers", "fedjx", "tff_sqlite"]))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    ours, theirs = report["readers"]
    assert (ours["reader"], theirs["reader"], ours["warm_ratio"]) == ("fedjx", "tff_sqlite", 1.0)
    assert theirs["warm_ms"] > 0
    assert 0 <= report["training"]["waiting_share"] < 1


def test_a_reader_that_reads_something_else_is_found_out(data):
    class Worker:
        name = "broken"

        def round(self, ids, limit):
            return {"seconds": 0.1, "loss": 1.0}

    with pytest.raises(SystemExit, match=r"broken read labels that sum to 1.0, not to"):
        input_pipeline.checked_seconds(Worker(), [0, 1], data, 1.0)


def test_very_many_clients(tmp_path):
    def step(name):
        flags = ["--folder", str(tmp_path), "--share", "0.0001", "--clients", "50", "--rounds", "2", "--twins", "tiny"]
        return data_scale.main(data_scale.parse_flags([*flags, "--step", name, "--devices", "1"]))

    written = step("write")
    assert written["disk_bytes"] > 1000 * 20
    used = step("use")
    assert used["num_clients"] == 1000
    assert used["open_ms"] > 0
    assert np.isfinite(used["last_loss"])
