"""The manifest of a store: what it holds, in which files, of which size and with which checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjx.data.columns import Column

MANIFEST = "manifest.json"
FORMAT = "fedjx store"
VERSION = 1


def client_file(name: str) -> str:
    """Returns the name of the file of a column with a row per client."""
    return f"{name}.npy"


def shard_file(stem: str, shard: int) -> str:
    """Returns the name of a feature's file in a shard; no file of the clients has such a name."""
    return f"{stem}-{shard:05d}.npy"


def write_manifest(directory: Path, body: Mapping[str, Any], columns: Iterable[Column]) -> None:
    """Writes the manifest of some finished columns, and waits until it and the directory are on disk."""
    files = {
        column.path.name: {
            "dtype": column.dtype.name,
            "shape": column.shape,
            "bytes": column.num_bytes,
            "crc32": column.checksums,
        }
        for column in columns
    }
    with open(directory / MANIFEST, "xb") as file:
        file.write(checked_text({"format": FORMAT, "version": VERSION, **body, "files": files}))
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def read_manifest(directory: Path) -> tuple[dict[str, Any], dict[str, Column]]:
    """Reads a manifest and returns it and the columns of its files by name.

    Raises:
      FileNotFoundError: If there is none.
      ValueError: If it is not one, is of another version, or is corrupt.
    """
    path = directory / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(_missing(directory)) from None
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ValueError(f"a manifest needs to be that of a store; {path} is not, or it is corrupt. Import it again.")
    if body.get("version") != VERSION:
        raise ValueError(
            f"a store needs to be of version {VERSION}; got version {body.get('version')!r} in {path}. "
            "Use another release of fedjx, or import it again."
        )
    # What reads the same is not enough: the fingerprint stands for every byte.
    if checked_text({key: value for key, value in body.items() if key != "sha256"}) != text:
        raise ValueError(f"a manifest needs its own checksum; {path} is corrupt. Import it again.")
    columns = {
        name: Column(directory / name, np.dtype(file["dtype"]), tuple(file["shape"]), tuple(file["crc32"]))
        for name, file in body["files"].items()
    }
    return body, columns


def sync_directory(directory: Path) -> None:
    """Waits until the names in a directory are on disk."""
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def partial_path(path: Path, suffix: str) -> Path:
    """Returns where a store is written before it is renamed: a hidden sibling."""
    return path.parent / f".{path.name}.partial-{suffix}"


def checked_text(body: Mapping[str, Any]) -> bytes:
    """Prints a manifest, one key a line, with the SHA-256 of these lines."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in body.items()]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return ("{\n" + ",\n".join([*lines, f'"sha256": "{digest}"']) + "\n}\n").encode()


def _missing(directory: Path) -> str:
    path = Path(os.path.abspath(directory))
    partial = partial_path(path, "*")
    remains = sorted(x.name for x in path.parent.glob(partial.name)) if path.parent.is_dir() else []
    if remains:
        return (
            f"a store needs to be written to its end; got none at {directory}, but {remains[0]} beside it, of a writer "
            "that is at work or was interrupted. Wait, or delete that and import again."
        )
    what = f"no {MANIFEST} in it" if directory.is_dir() else "no such directory"
    return f"a store is a directory with a {MANIFEST}; got {directory}, {what}. Check the path, or import it first."
