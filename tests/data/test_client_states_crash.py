"""Tests of client states under crashes, power failures and damage: one committed round, whole, or a clear error."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedjx.data import state_journal
from tests.data.damage import damaged
from tests.data.killing import outcomes
from tests.data.states import InMemory, assert_same, contents, opened, operate

NUM_STEPS = 15


def test_killed_writers_leave_a_committed_round(tmp_path):
    code = """
        import numpy as np, pathlib
        from fedjx.data import state_journal
        from tests.data.states import InMemory, assert_same, contents, operate, opened

        state_journal._WORTH = 0
        os.fsync = lambda file: None  # A kill loses nothing that was written; this is for power failures.
        num_steps = 15
        expected = [InMemory()]
        for step in range(num_steps):
            expected.append(expected[-1].copy())
            operate(expected[-1], step, waits=False)
        # After so many operations, the last ones after which all was on disk.
        durable = np.maximum.accumulate([k * (x.on_disk == x.rounds) for k, x in enumerate(expected)]).tolist()

        def run(path, first=0):
            with open(path + ".done", "a") as done, opened(path) as states:
                for step in range(first, num_steps):
                    operate(states, step, waits=False)
                    done.write(f"{step}\\n")  # From here on it must not be lost, if it is durable.
                    done.flush()
                return states.fingerprint

        def act(step):
            with opened("counted") as states:
                operate(states, step, waits=False)

        fingerprint = run("whole")
        total = lines_of(lambda: run("traced"))
        starts = [lines_of(lambda: opened("counted").close())]
        for step in range(num_steps):
            opening = lines_of(lambda: opened("counted").close())
            starts.append(starts[-1] + lines_of(lambda: act(step)) - opening)
        random.seed(0)
        rare = [step for step in range(num_steps) if step % 5 == 4 or step % 7 == 6]
        # Many of them while a round is pinned or returned to, or while one is not on disk yet.
        waiting = [step for step in range(num_steps) if durable[step] < step]
        kinds = [(range(num_steps), 35), (rare, 35), (waiting, 30)]
        steps = [random.choice(steps) for steps, number in kinds for _ in range(number)]
        for attempt, step in enumerate(steps):
            path = f"states{attempt}"
            status = victim(lambda: run(path), min(random.randint(starts[step], starts[step + 1]), total))
            done = pathlib.Path(path + ".done")
            count = len(done.read_text().split()) if done.exists() else 0
            assert status == -signal.SIGKILL, (status, count)
            if not os.path.exists(path):
                assert count == 0
                print("none")
                continue
            states = opened(path, writable=False)
            states.verify()
            found = contents(states)
            # The operation that ran when the kill came is done, or not begun, or rounds that did not wait are lost.
            possible = [k for k in (durable[count], count, count + 1) if k <= num_steps]
            reached = [k for k in possible if found == contents(expected[k])]
            assert reached, (attempt, step, count)
            assert run(path, reached[-1]) == fingerprint
            with opened(path) as states:
                states.verify()
                assert sorted(os.listdir(path)) == ["head.json", states._journal.head["journal"], "lock", "rows.npy"]
                assert_same(states, expected[-1].copy())
            print("committed", reached[-1], "of", count)
    """
    found = outcomes(code, tmp_path)
    assert len(found) == 100
    assert len(set(found)) > 15
    late = [int(line.split()[1]) - int(line.split()[3]) for line in found if line != "none"]
    assert 0 < sum(x > 0 for x in late) < 50  # In flight.
    assert 0 < sum(x < 0 for x in late) < 50  # Lost, as was agreed.


class Disk:
    """Remembers of a directory what would be there after a power failure: what was synced, and perhaps some more."""

    def __init__(self, directory, random):
        self._directory, self._random = directory, random
        self._files, self._names = {}, {}  # Bytes of files by inode; inodes by name.
        for path in directory.iterdir():
            self.synced(path)
        self.synced(directory)

    def synced(self, path):
        if path.is_dir():
            self._names = {x.name: x.stat().st_ino for x in path.iterdir()}
        else:
            self._files[path.stat().st_ino] = path.read_bytes()

    def fail(self, target):
        """Writes what a power failure leaves: of names and of files either what was synced or what is there now."""
        target.mkdir()
        now = {x.name: x.stat().st_ino for x in self._directory.iterdir()}
        places = {name: (now, self._names)[self._random.integers(2)] for name in sorted({*now, *self._names})}
        names = {name: place[name] for name, place in places.items() if name in place}
        data = {x.stat().st_ino: x.read_bytes() for x in self._directory.iterdir()}
        for name, inode in names.items():
            synced = self._files.get(inode, b"")
            later = data.get(inode, synced)
            kept = [synced, later, synced[: len(later)] + later[len(synced) :]]
            if len(later) > len(synced):
                kept.append(later[: self._random.integers(len(synced), len(later))])
            (target / name).write_bytes(kept[self._random.integers(len(kept))])


def check_power_failures(path, monkeypatch, skipped=None):
    """Lets the power fail three times before and after every sync, and returns the outcomes, by step.

    An outcome is 0 if the step is done, 1 if it is not begun, 2 if the rounds that did not wait are lost as well. What
    is skipped is a file whose syncs do nothing.
    """
    monkeypatch.setattr(state_journal, "_WORTH", 0)
    random = np.random.default_rng(0)
    states, expected = opened(path / "s"), InMemory()
    disk, failures, outcomes = Disk(path / "s", random), [], set()

    def fsync(file):
        name = Path(os.readlink(f"/proc/self/fd/{file}"))
        for is_synced in (False, True):
            if is_synced and not (skipped and name.name.startswith(skipped)):
                disk.synced(name)
            for _ in range(3):
                failures.append(path / f"failed{len(failures)}")
                disk.fail(failures[-1])

    for step in range(NUM_STEPS):
        before = expected.copy()
        with monkeypatch.context() as context:
            context.setattr(os, "fsync", fsync)
            operate(states, step, waits=False)
        operate(expected, step, waits=False)
        possible = [expected.crashed(), before, before.crashed()]
        for failed in failures:
            with opened(failed) as found:
                found.verify()
                agreeing = [k for k, states_then in enumerate(possible) if contents(states_then) == contents(found)]
                assert agreeing
                assert_same(found, possible[agreeing[0]].copy())
            outcomes.add((step, agreeing[0]))
            shutil.rmtree(failed)
        failures.clear()
        disk.fail(path / "after")
        with opened(path / "after", writable=False) as found:
            assert contents(found) == contents(expected.crashed())
        shutil.rmtree(path / "after")
    return outcomes


def test_a_power_failure_leaves_a_committed_round(tmp_path, monkeypatch):
    outcomes = check_power_failures(tmp_path, monkeypatch)
    assert len(outcomes) > NUM_STEPS
    assert {outcome for _, outcome in outcomes} == {0, 1, 2}


@pytest.mark.parametrize("skipped", ["rows.npy", "journal", "head.json.new", "s"])
def test_the_power_failure_finds_a_missing_sync(tmp_path, monkeypatch, skipped):
    with pytest.raises((AssertionError, ValueError, FileNotFoundError)):
        check_power_failures(tmp_path, monkeypatch, skipped)


def verified(states):
    states.verify()


@pytest.mark.parametrize("name", ["head.json", "journal-00000.bin", "rows.npy"])
def test_damage_is_an_error_that_names_the_file_or_changes_nothing(tmp_path, name):
    states = opened(tmp_path / "s")
    expected = InMemory()
    for step in (0, 1, 2, 3, 5, 7, 8):
        operate(states, step)
        operate(expected, step)
    states.discard()
    before = contents(states)
    states.close()
    path, num_found = tmp_path / "s" / name, 0
    data = path.read_bytes()
    for how, copy in damaged(data, 120):
        path.write_bytes(copy)
        problems, taken = [], before
        for act in (verified, contents):
            try:
                with opened(tmp_path / "s", writable=False) as states:
                    taken = act(states) or taken
            except ValueError as error:
                problems.append(str(error))
        assert all(name in problem for problem in problems), (how, problems)
        assert taken == before, how  # Damage that is not noticed does not matter.
        num_found += bool(problems)
        path.write_bytes(data)
    assert num_found >= (110 if name != "rows.npy" else 100)
    opened(tmp_path / "s").verify()
    for gone in ("head.json", "journal-00000.bin", "rows.npy"):
        os.rename(tmp_path / "s" / gone, tmp_path / "gone")
        for writable in (True, False):
            with pytest.raises(FileNotFoundError, match=gone):
                opened(tmp_path / "s", writable=writable)
        os.rename(tmp_path / "gone", tmp_path / "s" / gone)


def test_files_of_different_rounds_are_not_mixed(tmp_path):
    states = opened(tmp_path / "s")
    for step in range(4):
        operate(states, step)
        shutil.copytree(tmp_path / "s", tmp_path / f"copy{step}")
    states.pin(states.round)
    for step in range(5, 6):
        operate(states, step)
    states.close()
    for name in ("rows.npy", "journal-00000.bin", "head.json"):
        shutil.copytree(tmp_path / "s", tmp_path / "mixed")
        shutil.copy(tmp_path / "copy1" / name, tmp_path / "mixed" / name)
        if name == "head.json":
            # An older head leaves out rounds; what it needs must be there, or be missed.
            with pytest.raises(ValueError, match="corrupt"):
                opened(tmp_path / "mixed").verify()
        else:
            with pytest.raises(ValueError, match="truncated"):
                opened(tmp_path / "mixed")
        shutil.rmtree(tmp_path / "mixed")
