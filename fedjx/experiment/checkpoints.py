"""Checkpoints: all that a run needs to go on, whole or not there, and checked before it is believed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from fedjx.core.language.checks import check_choice, check_integer
from fedjx.core.language.names import PyTree
from fedjx.data.manifest import sync_directory
from fedjx.experiment.host_arrays import like as like_arrays
from fedjx.experiment.host_arrays import on_host, plain
from fedjx.experiment.rows import Mode, better
from fedjx.experiment.run_directory import (
    CHECKPOINTS,
    MARKER,
    SUMS,
    Run,
    RunError,
    checkpoints,
    clear_partial,
    delete_listed,
    listed,
    set_aside,
    versions,
)

_ABOUT = "about.json"


class Checkpoint(NamedTuple):
    """What a run goes on from.

    Attributes:
      round: The last round that is in it.
      state: All that determines the rounds to come: the algorithm's state, and what else has one.
      history: What the run has to say of the rounds before, as JSON holds it.
      metrics: Numbers by name, for `Best`.
      client_states: The fingerprint of the clients' states on disk in that round, if clients have some.
    """

    round: int
    state: PyTree
    history: Any = None
    metrics: Mapping[str, Any] = {}
    client_states: str | None = None


class Best(NamedTuple):
    """Which checkpoints stay because they are the best ones.

    Attributes:
      metric: A name in `Checkpoint.metrics`; a checkpoint without it is none of them. Round 0 has no checkpoint.
      number: How many.
      mode: Whether more or less is better; by default as in `fedjx.experiment.rounds_to`.
    """

    metric: str
    number: int = 1
    mode: Mode | None = None


def check_best(best: Best | None) -> None:
    """Refuses what does not say which checkpoints are the best ones."""
    if best is None:
        return
    if not isinstance(best, Best):
        raise TypeError(f"best needs to be a Best; got {best!r}. Say `Best({best!r})`, if that is the metric.")
    check_integer("[1, inf)", number=best.number)
    check_choice(("max", "min", None), mode=best.mode)


def save_checkpoint(run: Run, checkpoint: Checkpoint, *, keep: int = 3, best: Best | None = None) -> None:
    """Writes a checkpoint, and deletes all but the newest and the best ones.

    It appears under its name, `checkpoints/<round>`, when all of it is on disk, with a list of the SHA-256 of its files
    that ``sha256sum -c SHA256SUMS`` reads too; its arrays are in the files of Orbax. A crash leaves the checkpoint
    before. Of several processes the first one writes, what all of them have.

    Args:
      run: The open run.
      checkpoint: What to save. Leaves of the state are arrays, random keys or numbers.
      keep: How many of the newest checkpoints stay.
      best: Which others do.

    Raises:
      RunError: If there is one of this round.
      OSError: If there is no room, say.
    """
    check_integer("[1, inf)", keep=keep)
    check_best(best)
    arrays = [on_host(leaf) for leaf in jax.tree.leaves(checkpoint.state)]
    if jax.process_index() == 0:
        _write(run, checkpoint, _described(checkpoint.state), arrays)
        _retain(run, keep, best)


def last_checkpoint(run: Run, like: PyTree) -> Checkpoint | None:
    """Reads the newest checkpoint that is as it was written; None if the run has not come to its first.

    Every file is compared with its SHA-256 before any is read. A checkpoint that is damaged is passed over with a
    warning, and set aside under another name. One of other versions of fedjx or JAX warns too: the rounds to come are
    then those of that run up to rounding.

    Args:
      run: The open run.
      like: A state of the same structure, shapes and dtypes, such as the one that the run begins with.

    Raises:
      RunError: If all are damaged, or the state in it is of another run or structure.
    """
    found = _newest(run, like) if jax.process_index() == 0 else None
    return found if jax.process_count() == 1 else _from_first(found, like)


def best_checkpoint(path: str | Path, like: PyTree, best: Best) -> Checkpoint:
    """Reads the checkpoint whose metric is the best of those that a run has kept.

    Args:
      path: The run's directory.
      like: As for `last_checkpoint`.
      best: Which metric; the first of those that are equally good.

    Raises:
      RunError: If none is whole and has the metric, or the state in it is of another structure.
    """
    check_best(best)
    path = Path(path).expanduser().absolute()  # as Orbax wants it
    for candidate in _by_metric(checkpoints(path), best):
        if _problem(candidate) is None:
            return _read(candidate, like)
    raise RunError(
        f"a best checkpoint needs to be one with its metric; got none with {best.metric} in {path}, of "
        f"{len(checkpoints(path))} checkpoints. Look for a typo, or save them with `metrics` and keep some with `best`."
    )


def _newest(run: Run, like: PyTree) -> Checkpoint | None:
    candidates = checkpoints(run.path)[::-1]
    problems = list(itertools.takewhile(lambda problem: problem is not None, map(_problem, candidates)))
    if candidates and len(problems) == len(candidates):  # they stay, or the next start would begin anew
        raise RunError(
            f"a run that resumes needs a checkpoint; all {len(candidates)} in {run.path / CHECKPOINTS} are damaged "
            f"({problems[0]}). Begin anew, in another directory or with `overwrite`."
        )
    for candidate, problem in zip(candidates, problems, strict=False):
        aside = set_aside(candidate, "damaged")
        warnings.warn(
            f"a checkpoint needs to be as it was written; {candidate} is not: {problem}. It is set aside as "
            f"{aside.name}; the run goes on from the one before.",
            stacklevel=3,
        )
    return _read(candidates[len(problems)], like, run.identity) if candidates else None


def _read(path: Path, like: PyTree, identity: str | None = None) -> Checkpoint:
    about = json.loads((path / _ABOUT).read_bytes())
    if identity not in (None, about["run"]):
        raise RunError(f"a checkpoint needs to be of its run; {path} is of another. Put it back where it was.")
    expected = _described(like)
    for now, was in zip([*expected, *[None] * len(about["leaves"])], about["leaves"], strict=False):
        if now != was:
            raise RunError(f"a resumed run needs a state like the one that was saved; got {now}, saved was {was}.")
    if len(expected) > len(about["leaves"]):
        raise RunError(f"a resumed run needs a state like the one that was saved; that had no {expected[-1]}.")
    named = _orbax().restore(path / "state") if (path / "state").exists() else {}
    arrays = [named.get(f"{i:05d}", np.zeros(shape, dtype)) for i, (_, dtype, shape) in enumerate(expected)]
    if identity is not None and about["versions"] != versions():
        warnings.warn(
            f"a run is bitwise the same with the versions that it began with; got {versions()}, saved was "
            f"{about['versions']}. It goes on, up to rounding.",
            stacklevel=5,
        )
    return Checkpoint(
        about["round"], like_arrays(arrays, like), about["history"], about["metrics"], about["client_states"]
    )


def _from_first(found: Checkpoint | None, like: PyTree) -> Checkpoint | None:
    """Gives all processes what the first one has read."""
    text = b"null" if found is None else json.dumps([found.round, *found[2:]]).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(length)[:length], np.uint8))
    about = json.loads(np.asarray(text).tobytes())
    if about is None:
        return None
    arrays = [on_host(leaf) for leaf in jax.tree.leaves(like if found is None else found.state)]
    return Checkpoint(about[0], like_arrays(multihost_utils.broadcast_one_to_all(arrays), like), *about[1:])


# --- files --------------------------------------------------------------------------------------


def _write(run: Run, checkpoint: Checkpoint, described: list[list[Any]], arrays: Sequence[np.ndarray]) -> None:
    final = run.path / CHECKPOINTS / f"{checkpoint.round:08d}"
    partial = final.with_name(f".partial-{final.name}.{run.token}")
    if final.exists():
        raise RunError(f"a checkpoint needs a place of its own; {final} is there already. Save each round once.")
    if not (run.path / MARKER).exists():
        raise RunError(f"a run's directory must stay where it is; {run.path} is gone, or is no run's now. Begin anew.")
    clear_partial(run.path, run.token)
    partial.mkdir(parents=True)
    about = {
        "run": run.identity,
        "round": checkpoint.round,
        "leaves": described,
        "history": checkpoint.history,
        "metrics": checkpoint.metrics,
        "client_states": checkpoint.client_states,
        "versions": versions(),
    }
    try:
        (partial / _ABOUT).write_text(json.dumps(about))
        _write_arrays(partial / "state", arrays)
        _write_sums(partial)
    except BaseException:
        with contextlib.suppress(OSError):  # what another thread of Orbax may still write to
            clear_partial(run.path, run.token)  # or it would take the room that there is too little of
        raise
    os.rename(partial, final)
    sync_directory(final.parent)


def _write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> None:
    named = {f"{i:05d}": x for i, x in enumerate(arrays) if x.size}  # Orbax refuses arrays without elements
    try:
        if named:
            _orbax().save(path, named)
    except ValueError as error:
        if "os_error_code" not in str(error):
            raise
        raise OSError(str(error)) from error  # so TensorStore calls what the system refuses


def _retain(run: Run, keep: int, best: Best | None) -> None:
    """Deletes the checkpoints that are neither new nor good."""
    found = [path for path in checkpoints(run.path) if listed(path) is not None]
    staying = set(found[-keep:]) | set(_by_metric(found, best)[: best.number] if best else ())
    for path in found:
        if path not in staying:
            delete_listed(path)


def _by_metric(found: Sequence[Path], best: Best) -> list[Path]:
    """Sorts those checkpoints that have a metric, the best first."""
    sign, measured = (-1 if (best.mode or better(best.metric)) == "max" else 1), {}
    for path in found:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            value = float(json.loads((path / _ABOUT).read_bytes())["metrics"][best.metric])
            if not math.isnan(value):
                measured[path] = sign * value
    return sorted(measured, key=lambda path: measured[path])


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


def _described(state: PyTree) -> list[list[Any]]:
    """Names the leaves of a state, with dtype and shape of what is saved of each."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = [(path, plain(leaf)) for path, leaf in leaves]
    for path, x in arrays:
        if x.dtype.kind not in "biufcV":  # V: of numbers that NumPy has not
            raise TypeError(
                f"a state needs leaves of numbers; got {x.dtype} at {jax.tree_util.keystr(path)}. Leave it out."
            )
    return [[jax.tree_util.keystr(path), x.dtype.name, list(x.shape)] for path, x in arrays]
