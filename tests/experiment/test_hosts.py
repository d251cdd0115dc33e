"""A run begins on two processes, goes on in one, and back: up to the rounding of sums over processes one run."""

from __future__ import annotations

import sys

import numpy as np

from fedjx.experiment import read_rows, values
from fedjx.experiment.run_directory import checkpoints
from tests.core.execution.test_hosts import free_port, together
from tests.experiment.hosts_worker import trained
from tests.experiment.test_killed import arrays_of


def in_two_processes(path, *rounds, folder):
    port = free_port()
    commands = [
        ["env", "NUM_PROCESSES=2", f"PROCESS_ID={rank}", f"COORDINATOR=127.0.0.1:{port}", sys.executable, "-m",
         "tests.experiment.hosts_worker", str(path), *map(str, rounds)]
        for rank in range(2)
    ]  # fmt: skip
    folder.mkdir()
    with together(commands, folder):
        pass


def test_a_run_moves_between_one_process_and_two(tmp_path):
    """And back; there it is told to end, and ends in both after the same round."""
    moved, stayed = tmp_path / "moved", tmp_path / "stayed"
    in_two_processes(moved, 4, folder=tmp_path / "logs4")
    assert [row["round"] for row in read_rows(moved)] == [0, 1, 2, 3, 4]
    trained(moved, 8)
    in_two_processes(moved, 1000, 9, folder=tmp_path / "logs")
    said = [(tmp_path / "logs" / f"log{rank}").read_text() for rank in range(2)]
    assert all("it was told to end, by SIGTERM\n" in text for text in said)
    assert "fedjx: the run ends where it is evaluated or saved next, with a checkpoint." in said[0]
    rows = read_rows(moved)
    ended = rows[-1]["round"]
    assert 10 <= ended < 1000
    whole = trained(stayed, ended)
    for a, b in zip(arrays_of(checkpoints(moved)[-1]), arrays_of(checkpoints(stayed)[-1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert [list(row) for row in rows] == [list(row) for row in whole.rows]
    for name in ("round", "total/examples", "total/bits_up", "train/num_clients"):
        assert [row.get(name) for row in rows] == [row.get(name) for row in whole.rows]
    for name in ("train/loss", "test/loss", "clients/accuracy_p50"):
        np.testing.assert_allclose(values(rows, name)[1], values(whole.rows, name)[1], rtol=1e-4)
    assert len(set(values(rows, "train/loss")[1])) == ended
