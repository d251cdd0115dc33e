"""The directory of a run: whose it is, who writes to it now, and what of it may be deleted."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from fedjx.core.language.checks import check_choice
from fedjx.data.manifest import checked_text, replace_file
from fedjx.data.state_journal import delete

MARKER, LOCK, CHECKPOINTS, EVENTS = "run.json", "run.lock", "checkpoints", "events.out.tfevents.*"
ROWS, TABLE, STATES, ENDED = "metrics.jsonl", "metrics.csv", "client_states", "ended.json"
_FORMAT, _VERSION = "fedjx run", 1

Start = Literal["new", "resume", "auto", "overwrite"]


class RunError(ValueError):
    """A run cannot begin, or not go on, in a directory; the message says why, and what to do."""


class Run(NamedTuple):
    """A directory that is this run's while it is open.

    Attributes:
      path: The directory.
      identity: The SHA-256 of what determines the run.
      token: Random text in the names of what the run writes beside others, by which it knows them again.
    """

    path: Path
    identity: str
    token: str


@contextlib.contextmanager
def open_run(
    path: str | Path, about: Mapping[str, Any], *, start: Start = "new", of_versions: Sequence[str] = ()
) -> Iterator[Run]:
    """Opens the directory of a run, for as long as the context lasts and for nobody else.

    A new run takes a directory that is empty or not there, or whose run failed before its first round. It leaves a
    marker, `run.json`, that says what determines the run; only a run of which all of that is the same goes on in it.
    Nothing that the run has not written is ever deleted or written over. Of several processes the first one alone looks
    at the directory.

    The lock is the operating system's: it ends with the process that holds it, however that ends.

    Args:
      path: The directory.
      about: What determines the run, as JSON holds it: its arguments, the data's fingerprint, the sampler's
        description. Leave out what may change when it goes on, such as the number of rounds.
      start: "new": the directory has no run yet; "resume": go on with the one that it has; "auto": resume if there is
        one, else begin; "overwrite": delete the run that it has, with its checkpoints, metrics and events, and begin
        anew.
      of_versions: Names in `about` of what other versions of fedjx or JAX say in another way, such as a program's
        fingerprint: compared where the versions are those that the run began with.

    Raises:
      RunError: If there is nothing to resume; if there is something, and neither to resume nor to overwrite is said;
        if it is another run, is in use, or no run at all; or if a full disk ends it.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/run"
    >>> with open_run(path, {"seed": 0}):
    ...     pass
    >>> with open_run(path, {"seed": 1}, start="resume"):
    ...     pass
    Traceback (most recent call last):
    fedjx.experiment.run_directory.RunError: a resumed run needs what it began with; got {'seed': 1}, was ...
    """
    check_choice(("new", "resume", "auto", "overwrite"), start=start)
    about = _as_json(about)
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if jax.process_index() != 0:
        yield Run(path, "", "")
        return
    if start == "resume" and not (path / MARKER).is_file():
        raise RunError(f"a run that resumes needs one to go on with; got no {MARKER} in {path}. Check the path.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"a run needs a directory; got {path}: {error.strerror}. Choose another.") from None
    with locked(path), _room_needed(path):
        found = _marker(path)
        if found is not None and start in ("new", "auto") and not _has_begun(path, found["token"]):
            start = "overwrite"
        if found is not None and start in ("resume", "auto"):
            left_out = of_versions if found.get("versions") != versions() else ()
            check_same(path, _without(about, left_out), _without(found["about"], left_out))
        else:
            _check_free(path, found, start == "overwrite")
            found = _begin(path, about, found)
        identity = hashlib.sha256(json.dumps(found["about"], sort_keys=True).encode()).hexdigest()
        with _ending(run := Run(path, identity, found["token"])):
            yield run


@contextlib.contextmanager
def _ending(run: Run) -> Iterator[None]:
    """Says how a run has ended; of one that was killed, or goes on, nothing does."""
    (run.path / ENDED).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        say_end(run, error=f"{type(error).__name__}: {error}".removesuffix(": "))
        raise
    if not (run.path / ENDED).exists():
        say_end(run)


def say_end(run: Run | None, reason: str = "", error: str = "") -> None:
    """Writes in its directory why a run has ended, for reports; of several processes the first does."""
    if run is None or not run.token:
        return
    with contextlib.suppress(OSError):  # no room: what has come of the run is worth more
        replace_file(run.path / ENDED, json.dumps({"reason": reason, "error": error}).encode())


def versions() -> dict[str, str]:
    """Returns what computes a run's rounds, for who compares their bits."""
    return {"fedjx": version("fedjx"), "jax": jax.__version__, "jaxlib": version("jaxlib")}


@contextlib.contextmanager
def _room_needed(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise RunError(f"a run needs room; got {error} in {path}. Make some, and resume.") from error


def is_full(error: BaseException | None) -> bool:
    """Tells whether an error is of a full disk, or of one's share of it."""
    # TensorStore says the number in its text alone.
    numbers = (errno.ENOSPC, errno.EDQUOT)
    said = {f"os_error_code='{number}'" for number in numbers}
    return isinstance(error, OSError) and (error.errno in numbers or any(text in str(error) for text in said))


def _without(about: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name not in names}


def _as_json(about: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(about, default=_plain_number))
    except TypeError as error:
        raise TypeError(f"what a run is about must be JSON; got {error}. Give text and numbers.") from None


def _plain_number(value: object) -> object:
    if isinstance(value, np.generic) or (isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0):
        return value.item()
    raise TypeError(f"{type(value).__name__}, {value!r:.60}")


# --- the marker ---------------------------------------------------------------------------------


def _marker(path: Path) -> dict[str, Any] | None:
    """Returns what the marker says, if there is one."""
    try:
        text = (path / MARKER).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"the marker of a run needs to be a file; got {path / MARKER}: {error.strerror}.") from None
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    body = body if isinstance(body, dict) else {}
    is_known = (body.get("format"), body.get("version")) == (_FORMAT, _VERSION)
    if is_known and checked_text({name: value for name, value in body.items() if name != "sha256"}) == text:
        return body
    raise RunError(
        f"the marker of a run needs to be as it was written; {path / MARKER} is damaged, or no marker of this release. "
        "Choose another directory, or put the marker back."
    )


_PROGRAM = " What differs in the algorithm is its program, as by a rate or the model: name such in `about` to be told."


def check_same(path: Path, about: Mapping[str, Any], was: Mapping[str, Any]) -> None:
    """Refuses to go on with another run."""
    now, before = dict(_flat(about)), dict(_flat(was))
    differ = [name for name in {**before, **now} if _shown(now, name) != _shown(before, name)]
    if differ:
        got, had = ({name: found[name] for name in differ if name in found} for found in (now, before))
        raise RunError(
            f"a resumed run needs what it began with; got {got}, was {had} in {path}. Repeat it, or choose another "
            f"directory.{_PROGRAM if 'algorithm' in differ else ''}"
        )


def _shown(found: Mapping[str, Any], name: str) -> str | None:
    return json.dumps(found[name]) if name in found else None  # False is not 0


def _flat(about: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in about.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check_free(path: Path, found: dict[str, Any] | None, overwrite: bool) -> None:
    """Refuses a directory that holds a run which nobody has given up, or that is somebody else's."""
    if found is not None and not overwrite:
        raise RunError(f"a new run needs a directory of its own; {path} holds a run. Resume it, or overwrite it.")
    own = {LOCK, f"{MARKER}.partial"}
    if (path / CHECKPOINTS).is_dir() and not any((path / CHECKPOINTS).iterdir()):
        own.add(CHECKPOINTS)  # perhaps a link to a larger disk
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in own)
    if found is None and others:
        raise RunError(
            f"a new run needs an empty directory; {path} holds {', '.join(others[:5])} ({len(others)} in all), and no "
            f"{MARKER}, so it is no run's. Choose another."
        )


def _has_begun(path: Path, token: str) -> bool:
    """Tells whether a directory has more than what a run leaves that fails before its first round has ended."""
    if has_rounds(path) or ((path / CHECKPOINTS).exists() and any((path / CHECKPOINTS).iterdir())):
        return True
    own = {
        LOCK,
        CHECKPOINTS,
        STATES,
        *(name for file in (MARKER, ROWS, TABLE, ENDED) for name in (file, f"{file}.partial")),
    }
    own |= {entry.name for entry in path.glob(f"{EVENTS}.{token}")}
    return any(entry.name not in own for entry in path.iterdir())


def has_rounds(path: Path) -> bool:
    """Tells whether a run has written rows besides that of before its first round, damaged or not."""
    try:
        rows = (path / ROWS).read_bytes().splitlines()
    except OSError:
        return False
    return not all(row.startswith(b'{"round": 0,') for row in rows)


def _begin(path: Path, about: dict[str, Any], found: dict[str, Any] | None) -> dict[str, Any]:
    """Deletes the run that was there, if one was, and writes the marker of the new one."""
    if found is not None:
        for checkpoint in checkpoints(path):  # the newest last: as long as there is one, all that it needs is there
            delete_listed(checkpoint)
        for left in checkpoints(path):  # what is damaged, or has what others have put there, is none of the new run's
            set_aside(left, "damaged")
        clear_partial(path, found["token"])
        delete(path / STATES)
        for file in (*path.glob(f"{EVENTS}.{found['token']}"), path / ROWS, path / TABLE):
            file.unlink(missing_ok=True)
    marker = {"format": _FORMAT, "version": _VERSION, "token": secrets.token_hex(4), "about": about}
    marker |= {"versions": versions()}
    replace_file(path / MARKER, checked_text(marker))
    return marker


# --- files --------------------------------------------------------------------------------------

SUMS = "SHA256SUMS"


def checkpoints(path: Path) -> list[Path]:
    """Lists the checkpoints of a run by round, whole or not; what has another name is none."""
    folder = path / CHECKPOINTS
    names = os.listdir(folder) if folder.is_dir() else []
    return [folder / name for name in sorted(names) if len(name) == 8 and name.isdecimal()]


def delete_listed(checkpoint: Path) -> None:
    """Deletes the files of a checkpoint that its list of checksums names, then the list, and folders that are empty."""
    for name in listed(checkpoint) or ():
        (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / SUMS).unlink(missing_ok=True)
    for folder, _, _ in os.walk(checkpoint, topdown=False):
        with contextlib.suppress(OSError):  # what others have put there stays
            os.rmdir(folder)


def set_aside(path: Path, why: str = "before") -> Path:
    """Gives what the run does not go on with another name."""
    return path.rename(path.with_name(f"{path.name}.{why}-{secrets.token_hex(4)}"))


def clear_partial(path: Path, token: str) -> None:
    """Deletes what a crash or a full disk has left of checkpoints that a run was writing."""
    for partial in (path / CHECKPOINTS).glob(f".partial-*.{token}"):
        for folder, _, files in os.walk(partial, topdown=False):
            for name in files:
                os.unlink(os.path.join(folder, name))
            os.rmdir(folder)


def listed(checkpoint: Path) -> dict[str, str] | None:
    """Reads the checksums of a checkpoint by names of files; None if the list is missing or damaged."""
    try:
        first, _, lines = (checkpoint / SUMS).read_text().partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines.splitlines())}
    is_inside = not any(Path(name).is_absolute() or ".." in Path(name).parts for name in sums)
    return sums if is_inside and first == f"# {hashlib.sha256(lines.encode()).hexdigest()}" else None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a directory's lock as long as the context lasts; `RunError` if somebody else does."""
    # A file that is there or not would have to be judged by its writer's number, which another process, container or
    # machine may have too, and stay behind when that is killed. This lock is kept by the kernel, or the server of NFS.
    try:
        file = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunError(f"a run needs to lock its directory; got {path / LOCK}: {error.strerror}.") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            raise RunError(
                f"a run's directory is for one at a time; {path} is in use by {holder}. Wait, or choose another."
            ) from None
        except OSError as error:
            raise RunError(
                f"a run needs to lock its directory; got {path}: {error.strerror}. Choose another."
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(file)
