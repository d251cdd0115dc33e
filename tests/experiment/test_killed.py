"""A run that is killed at some moment, and started again, ends with the bits of one that was not.

`python -m tests.experiment.test_killed 30` kills thirty times.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from fedjx.experiment import read_rows
from fedjx.experiment.run_directory import checkpoints

NUM_ROUNDS = 60
COMMAND = [sys.executable, "-m", "tests.experiment.killed_worker"]


def ended(path: Path) -> dict[str, object]:
    """What a run has left: hashes of the newest state and of the clients' states, and the rows without clocks."""
    newest = checkpoints(path)[-1]
    about = json.loads((newest / "about.json").read_text())
    return {
        "round": about["round"],
        "state": hashlib.sha256(b"".join(x.tobytes() for x in arrays_of(newest))).hexdigest(),
        "client_states": about["client_states"],
        "rows": [{name: repr(x) for name, x in row.items() if name != "total/seconds"} for row in read_rows(path)],
        "table": len((path / "metrics.csv").read_text().splitlines()),
    }


def arrays_of(checkpoint: Path) -> list[np.ndarray]:
    named = ocp.PyTreeCheckpointer().restore(checkpoint / "state")
    return [np.asarray(named[name]) for name in sorted(named)]


def whole(path: Path, num_rounds: int) -> dict[str, object]:
    subprocess.run([*COMMAND, str(path), str(num_rounds)], check=True, capture_output=True)
    return ended(path)


def kill_and_go_on(
    path: Path, num_rounds: int, kills: int, random: np.random.Generator, *, within: float | None = None
) -> list[int]:
    """Kills a run so often; returns at which checkpoint it was then.

    Each time some moments after a checkpoint of its own; with `within` every other time so many seconds after its
    start at most, when it may be importing, compiling, restoring, or without a checkpoint.
    """
    seen = []
    for k in range(kills):
        before = [found.name for found in checkpoints(path)]
        process = subprocess.Popen([*COMMAND, str(path), str(num_rounds)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 250
        if within is not None and k % 2 == 0:
            time.sleep(random.uniform(0, within))
        else:
            while [found.name for found in checkpoints(path)] == before and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.wait()
        seen.append(int(checkpoints(path)[-1].name) if checkpoints(path) else 0)
    return seen


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    random = np.random.default_rng(0)
    expected = whole(tmp_path / "whole", NUM_ROUNDS)
    assert expected["round"] == NUM_ROUNDS
    seen = kill_and_go_on(tmp_path / "killed", NUM_ROUNDS, 2, random)
    assert 0 < seen[0] < seen[1] < NUM_ROUNDS  # or nothing was interrupted
    assert whole(tmp_path / "killed", NUM_ROUNDS) == expected
    assert whole(tmp_path / "whole", NUM_ROUNDS) == expected  # what is finished stays


if __name__ == "__main__":
    kills, random = int(sys.argv[1]), np.random.default_rng()
    with tempfile.TemporaryDirectory() as folder:
        expected = whole(Path(folder) / "whole", 30 * kills)
        started = time.monotonic()
        whole(Path(folder) / "short", 3)
        within = time.monotonic() - started
        seen = kill_and_go_on(Path(folder) / "killed", 30 * kills, kills, random, within=within)
        print(f"killed {kills} times, at checkpoints {seen}")
        assert whole(Path(folder) / "killed", 30 * kills) == expected
        print(f"and it ended with the same {len(expected['rows'])} rows, state and client states")
