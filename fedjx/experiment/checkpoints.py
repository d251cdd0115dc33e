"""Checkpoints: all that a run needs to go on, whole or not there, and checked before it is believed."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from fedjx.core.language.names import Array, PyTree
from fedjx.data.manifest import sync_directory
from fedjx.experiment.run_directory import CHECKPOINTS, SUMS, Run, RunError, checkpoints, delete_listed, listed

_ABOUT = "about.json"


class Checkpoint(NamedTuple):
    """What a run goes on from.

    Attributes:
      round: The last round that is in it.
      state: All that determines the rounds to come: the algorithm's state, and what else has one.
      history: What the run has to say of the rounds before, as JSON holds it.
    """

    round: int
    state: PyTree
    history: Any


def save_checkpoint(run: Run, checkpoint: Checkpoint, *, keep: int = 3) -> None:
    """Writes a checkpoint, and deletes all but the newest ones.

    It appears under its name, `checkpoints/<round>`, when all of it is on disk, with a list of the SHA-256 of its files
    that ``sha256sum -c SHA256SUMS`` reads too; its arrays are in the files of Orbax. A crash leaves the checkpoint
    before. Of several processes the first one writes, what all of them have.

    Args:
      run: The open run.
      checkpoint: What to save. Leaves of the state are arrays, random keys or numbers.
      keep: How many checkpoints stay.

    Raises:
      RunError: If there is one of this round.
    """
    arrays = [_on_host(leaf) for leaf in jax.tree.leaves(checkpoint.state)]
    if jax.process_index() != 0:
        return
    final = run.path / CHECKPOINTS / f"{checkpoint.round:08d}"
    partial = final.with_name(f".partial-{final.name}.{run.token}")
    if final.exists():
        raise RunError(f"a checkpoint needs a place of its own; {final} is there already. Save each round once.")
    _clear(partial)
    partial.mkdir(parents=True)
    about = {
        "run": run.identity,
        "round": checkpoint.round,
        "leaves": _described(checkpoint.state),
        "history": checkpoint.history,
    }
    (partial / _ABOUT).write_text(json.dumps(about))
    named = {f"{i:05d}": x for i, x in enumerate(arrays) if x.size}  # Orbax refuses arrays without elements
    if named:
        _orbax().save(partial / "state", named)
    _write_sums(partial)
    os.rename(partial, final)
    sync_directory(final.parent)
    for old in [found for found in checkpoints(run.path) if listed(found) is not None][:-keep]:
        delete_listed(old)


def last_checkpoint(run: Run, like: PyTree) -> Checkpoint | None:
    """Reads the newest checkpoint that is as it was written; None if the run has not come to its first.

    Every file is compared with its SHA-256 before any is read. A checkpoint that is damaged is passed over with a
    warning, and set aside under another name.

    Args:
      run: The open run.
      like: A state of the same structure, shapes and dtypes, such as the one that the run begins with.

    Raises:
      RunError: If all are damaged, or the state in it is of another run or structure.
    """
    found = _newest(run, like) if jax.process_index() == 0 else None
    return found if jax.process_count() == 1 else _from_first(found, like)


def _newest(run: Run, like: PyTree) -> Checkpoint | None:
    candidates = checkpoints(run.path)[::-1]
    for candidate in candidates:
        problem = _problem(candidate)
        if problem is None:
            return _read(run, candidate, like)
        aside = candidate.with_name(f"{candidate.name}.damaged-{len(os.listdir(candidate.parent))}")
        os.rename(candidate, aside)
        warnings.warn(
            f"a checkpoint needs to be as it was written; {candidate} is not: {problem}. It is set aside as "
            f"{aside.name}; the run goes on from the one before.",
            stacklevel=3,
        )
    if candidates:
        raise RunError(
            f"a run that resumes needs a checkpoint; all {len(candidates)} in {run.path / CHECKPOINTS} are damaged. "
            "Begin anew, in another directory or with `overwrite`."
        )
    return None


def _read(run: Run, path: Path, like: PyTree) -> Checkpoint:
    about = json.loads((path / _ABOUT).read_bytes())
    if about["run"] != run.identity:
        raise RunError(f"a checkpoint needs to be of its run; {path} is of another. Put it back where it was.")
    expected = _described(like)
    for now, was in zip([*expected, *[None] * len(about["leaves"])], about["leaves"], strict=False):
        if now != was:
            raise RunError(f"a resumed run needs a state like the one that was saved; got {now}, saved was {was}.")
    if len(expected) > len(about["leaves"]):
        raise RunError(f"a resumed run needs a state like the one that was saved; that had no {expected[-1]}.")
    named = _orbax().restore(path / "state") if (path / "state").exists() else {}
    arrays = [named.get(f"{i:05d}", np.zeros(shape, dtype)) for i, (_, dtype, shape) in enumerate(expected)]
    return Checkpoint(about["round"], _like(arrays, like), about["history"])


def _from_first(found: Checkpoint | None, like: PyTree) -> Checkpoint | None:
    """Gives all processes what the first one has read."""
    text = b"null" if found is None else json.dumps([found.round, found.history]).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(length)[:length], np.uint8))
    about = json.loads(np.asarray(text).tobytes())
    if about is None:
        return None
    arrays = [_on_host(leaf) for leaf in jax.tree.leaves(like if found is None else found.state)]
    return Checkpoint(about[0], _like(multihost_utils.broadcast_one_to_all(arrays), like), about[1])


# --- files --------------------------------------------------------------------------------------


def _orbax() -> ocp.Checkpointer:
    # One process writes; without this it would wait for the others.
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="fedjx")
    options = alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=options), multiprocessing_options=options
    )


def _write_sums(directory: Path) -> None:
    """Lists the checksums of all files below a directory, which are then on disk."""
    lines = ""
    for path in sorted(found for found in directory.rglob("*") if found.is_file()):
        with open(path, "rb") as file:
            lines += f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(directory)}\n"
            os.fsync(file.fileno())
    with open(directory / SUMS, "xb") as file:
        file.write(f"# {hashlib.sha256(lines.encode()).hexdigest()}\n{lines}".encode())
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def _problem(directory: Path) -> str | None:
    """Says what of a checkpoint is not as it was written."""
    sums = listed(directory)
    if sums is None:
        return f"{SUMS} is missing or damaged"
    for name, digest in sums.items():
        try:
            with open(directory / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != digest:
            return f"{name} is damaged"
    return None


def _clear(partial: Path) -> None:
    """Deletes what a crash has left of a checkpoint that this run was writing."""
    for folder, _, files in os.walk(partial, topdown=False):
        for name in files:
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)


# --- states as arrays ---------------------------------------------------------------------------


def _described(state: PyTree) -> list[list[Any]]:
    """Names the leaves of a state, with dtype and shape of what is saved of each."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = ((path, _data(leaf)) for path, leaf in leaves)
    return [[jax.tree_util.keystr(path), x.dtype.name, list(x.shape)] for path, x in arrays]


def _data(leaf: PyTree) -> Array:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _on_host(leaf: PyTree) -> np.ndarray:
    array = _data(leaf)
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if not array.is_fully_replicated:
        raise RunError(
            f"a checkpoint needs states that each process has whole; got {array.sharding} for {array.shape}. Gather "
            "it first: `jax.experimental.multihost_utils.process_allgather`."
        )
    return np.asarray(array.addressable_data(0))


def _like(arrays: list[np.ndarray], like: PyTree) -> PyTree:
    """Makes a state of arrays, placed as another one."""

    def placed(array: np.ndarray, leaf: PyTree) -> PyTree:
        if not isinstance(leaf, jax.Array):
            return array
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
            return jax.device_put(key, leaf.sharding)
        return jax.device_put(array, leaf.sharding)

    leaves, treedef = jax.tree.flatten(like)
    return treedef.unflatten([placed(array, leaf) for array, leaf in zip(arrays, leaves, strict=True)])
