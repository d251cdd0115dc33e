"""Checkpoints: what is read is what was written, or is refused; the one before serves in the place of a damaged one."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.experiment import Checkpoint, Checkpointer, RunError, last_checkpoint, open_run, save_checkpoint
from fedjx.experiment.run_directory import checkpoints, listed
from tests.experiment.trees import contents

ABOUT = {"seed": 0}


class State(NamedTuple):
    params: dict[str, jax.Array]
    optimizer: optax.OptState
    key: jax.Array
    wide: np.ndarray


def state(number):
    params = {
        "w": jnp.arange(6.0).reshape(2, 3) * number,
        "half": jnp.full(2, number, jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
        "flag": jnp.array(number % 4 == 0),
        "a/b.c['d']": jnp.int32(number),
    }
    wide = np.array([2**40 + number, -number])
    return State(params, optax.adam(0.1).init(params["w"]), jax.random.key(number, impl="rbg"), wide)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.shape(x) == np.shape(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def history(number):
    return [{"round": number, "loss": 0.1 + number, "name": "a\nb"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    with open_run(path, ABOUT) as run:
        assert last_checkpoint(run, state(0)) is None
        for number in (2, 4, 6, 8):
            save_checkpoint(run, Checkpoint(number, state(number), history(number)))
    return path


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def assert_resumes(path, number):
    with open_run(path, ABOUT, start="resume") as run:
        found = last_checkpoint(run, state(0))
    assert found is not None
    assert (found.round, found.history) == (number, history(number))
    assert_same(found.state, state(number))


def test_the_newest_comes_back_and_three_stay(path):
    assert [found.name for found in checkpoints(path)] == ["00000004", "00000006", "00000008"]
    assert_resumes(path, 8)


def test_the_checksums_are_those_of_coreutils(path):
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=checkpoints(path)[-1], check=False, capture_output=True).returncode == 0


def damages(text, random):
    """A flipped bit, a cut and a missing file."""
    bit, flipped = random.integers(8 * len(text)), bytearray(text)
    flipped[bit // 8] ^= 1 << bit % 8
    yield bytes(flipped)
    yield text[: random.integers(len(text))]
    yield None


def test_damage_to_any_file_of_the_newest_falls_back_and_says_so(whole, tmp_path):
    random, number = np.random.default_rng(0), 0
    newest = checkpoints(whole)[-1].relative_to(whole)
    files = list(contents(whole / newest).items())
    assert len(files) > 5
    for name, text in files:
        for damaged in damages(text, random) if text else [b"x", None]:
            number += 1
            path = shutil.copytree(whole, tmp_path / str(number))
            (path / newest / name).unlink()
            if damaged is not None:
                (path / newest / name).write_bytes(damaged)
            with pytest.warns(UserWarning, match=r"needs to be as it was written; .*/00000008 is not: .*set aside as"):
                assert_resumes(path, 6)
    with open_run(path, ABOUT, start="resume") as run:  # it is out of the way, and the round can be saved again
        save_checkpoint(run, Checkpoint(8, state(8), history(8)))
    assert_resumes(path, 8)


def test_strays_are_no_checkpoints(path):
    for name in ("99", ".partial-00000009", "00000010.orbax-checkpoint-tmp", "0000009x"):
        (path / "checkpoints" / name).mkdir()
    (path / "checkpoints" / "thesis.pt").write_text("mine")
    assert_resumes(path, 8)
    (path / "checkpoints" / "00000099").mkdir()
    with pytest.warns(UserWarning, match=r"00000099 is not: SHA256SUMS is missing or damaged"):
        assert_resumes(path, 8)
    with open_run(path, ABOUT, start="resume") as run:
        (path / "checkpoints" / ".partial-00000009" / "left by a crash").write_text("")
        save_checkpoint(run, Checkpoint(9, state(9), history(9)))
    assert_resumes(path, 9)
    assert (path / "checkpoints" / "thesis.pt").read_text() == "mine"


def test_other_versions_are_said(path, monkeypatch):
    monkeypatch.setattr("fedjx.experiment.checkpoints.versions", lambda: {"jax": "another"})
    with pytest.warns(UserWarning, match=r"the same with the versions .*got {'jax': 'another'}, saved was {'fedjx'"):
        assert_resumes(path, 8)


def test_all_damaged_is_refused(path):
    for found in checkpoints(path):
        os.truncate(found / "about.json", 3)
    message = r"needs a checkpoint; all 3 in .*checkpoints are damaged \(about.json is damaged\). Begin anew"
    with open_run(path, ABOUT, start="resume") as run:
        for _ in range(2):  # or it would begin anew when it is started again
            with pytest.raises(RunError, match=message):
                last_checkpoint(run, state(0))


def test_what_is_left_of_a_checkpoint_is_cleared(path, monkeypatch):
    def full(*_):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    def names():
        return sorted(found.name for found in (path / "checkpoints").iterdir())

    before = names()
    with open_run(path, ABOUT, start="resume") as run:
        monkeypatch.setattr("fedjx.experiment.checkpoints.ocp.Checkpointer.save", full)
        with pytest.raises(RunError, match=r"a checkpoint needs room; got .*No space left"), Checkpointer(run) as saved:
            saved.save(Checkpoint(9, state(9)))
        monkeypatch.undo()
        assert names() == before
        (path / "checkpoints" / f".partial-00000057.{run.token}" / "state").mkdir(parents=True)  # by a crash
        save_checkpoint(run, Checkpoint(10, state(10), history(10)))
        assert names() == ["00000006", "00000008", "00000010"]
        for keep in (0, -1):
            with pytest.raises(ValueError, match="keep must be an integer of at least 1"):
                save_checkpoint(run, Checkpoint(11, state(11)), keep=keep)
    assert_resumes(path, 10)


def test_a_full_disk_is_said_of_whatever_is_written(path):
    with (
        pytest.raises(RunError, match=r"a run needs room; got .*No space.* in .*run. Make some, and resume"),
        open_run(path, ABOUT, start="resume"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), open_run(path, ABOUT, start="resume"):
        raise FileNotFoundError(errno.ENOENT, "mine")


def test_old_checkpoints_lose_their_own_files_alone(path):
    oldest = checkpoints(path)[0]
    (oldest / "notes.txt").write_text("mine")
    with open_run(path, ABOUT, start="resume") as run:
        save_checkpoint(run, Checkpoint(10, state(10), history(10)))
        save_checkpoint(run, Checkpoint(12, state(12), history(12)))
    assert contents(oldest) == {"notes.txt": b"mine"}
    with pytest.raises(RunError, match="is there already"), open_run(path, ABOUT, start="resume") as run:
        save_checkpoint(run, Checkpoint(12, state(12), history(12)))
    assert_resumes(path, 12)


def test_a_checkpoint_of_another_run_or_structure(path, tmp_path):
    with open_run(tmp_path / "other", {"seed": 1}) as run:
        pass
    shutil.copytree(path / "checkpoints", tmp_path / "other" / "checkpoints")
    message = r"00000008 is of another. Put it back"
    with open_run(tmp_path / "other", {"seed": 1}, start="resume") as run, pytest.raises(RunError, match=message):
        last_checkpoint(run, state(0))
    good = state(0)
    for like, message in (
        (
            good._replace(wide=np.zeros(3, np.int64)),
            r"got \['.wide', 'int64', \[3\]\], saved was \['.wide', 'int64', \[2\]\]",
        ),
        (good._replace(wide=np.zeros(2, np.int32)), r"got \['.wide', 'int32', \[2\]\], saved was"),
        (good._replace(params={}), r"got \[.*\], saved was \[\"?'?.params"),
        ((*good, np.zeros(2)), r"got \[.*\], saved was"),
        ((good.params,), r"got \[.*\], saved was"),
    ):
        with open_run(path, ABOUT, start="resume") as run, pytest.raises(RunError, match=message):
            last_checkpoint(run, like)
    with open_run(path, ABOUT, start="resume") as run, pytest.raises(TypeError, match="leaves of numbers; got <U4 at"):
        save_checkpoint(run, Checkpoint(9, good._replace(params="text")))
    shapes = jax.eval_shape(lambda: good.params)
    message = r"a state needs to have arrays; got ShapeDtypeStruct.*Give one such as `algorithm.init"
    with open_run(path, ABOUT, start="resume") as run, pytest.raises(TypeError, match=message):
        last_checkpoint(run, good._replace(params=shapes))


@pytest.mark.parametrize("name", ["../../thesis.pt", "/thesis.pt"])
def test_a_list_that_names_files_outside_is_none(path, name):
    lines = f"{'0' * 64}  {name}\n"
    sums = f"# {hashlib.sha256(lines.encode()).hexdigest()}\n{lines}"
    (checkpoints(path)[-1] / "SHA256SUMS").write_text(sums)
    assert listed(checkpoints(path)[-1]) is None
    (checkpoints(path)[-1] / "SHA256SUMS").write_text(sums.replace(name, "thesis.pt"))
    assert listed(checkpoints(path)[-1]) is None  # for its own sum is another
