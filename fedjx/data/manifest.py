"""The manifest of a store: what it holds, in which files, of which size and with which checksums."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjx.data.columns import Column

MANIFEST = "manifest.json"
FORMAT = "fedjx store"
VERSION = 1

# What a manifest holds: a type, a list of one form, or a dict; `str` stands for any key. An int is in [0, 2^63).
_FORM = {
    "num_clients": int,
    "num_examples": int,
    "largest": int,
    "client_ids": str,
    "salt": int,
    "features": {str: {"dtype": str, "shape": [int], "file": str}},
    "metadata": {str: (list, type(None))},
    "shards": [{"first_client": int, "first_example": int}],
    "files": {str: {"dtype": str, "shape": [int], "bytes": int, "crc32": [int]}},
}


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
    except IsADirectoryError:
        raise ValueError(f"a manifest needs to be a file; {path} is a directory. Import it again.") from None
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
    try:
        check(body, _FORM, "it")
        columns = {
            name: Column(directory / name, _dtype(file["dtype"]), tuple(file["shape"]), tuple(file["crc32"]))
            for name, file in body["files"].items()
        }
        _check_files(body, columns)
    except ValueError as error:
        raise ValueError(f"a manifest needs to be that of a store; {path}: {error}. Import it again.") from error
    return body, columns


def check(value: Any, form: Any, name: str) -> None:
    """Compares a value that was read from JSON with a form of types, lists and dicts.

    Raises:
      ValueError: If it is another, saying where.

    >>> check({"x": [1, 2]}, {"x": [int]}, "it")
    >>> check({"x": [1, "2"]}, {"x": [int]}, "it")
    Traceback (most recent call last):
    ValueError: it['x'][1] is '2', not an int in [0, 2^63)
    """
    kind = type(form) if isinstance(form, (dict, list)) else form
    if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or not 0 <= value < 2**63)):
        expected = "an int in [0, 2^63)" if kind is int else getattr(kind, "__name__", "a list or null")
        raise ValueError(f"{name} is {str(value)[:50]!r}, not {expected}")
    if isinstance(form, list):
        for place, item in enumerate(value):
            check(item, form[0], f"{name}[{place}]")
    elif isinstance(form, dict):
        for key, inner in form.items():
            for found in value if key is str else [key]:
                if found not in value:
                    raise ValueError(f"{name} has no {key!r}")
                check(value[found], inner, f"{name}[{found!r}]")


def _dtype(name: str) -> np.dtype:
    """Returns the type of this name, if it is one of numbers: an array of objects would be read as addresses."""
    with contextlib.suppress(TypeError, ValueError):
        dtype = np.dtype(name)
        if dtype.name == name and (jnp.issubdtype(dtype, np.number) or dtype == np.bool_):
            return dtype
    raise ValueError(f"{name[:50]!r} is no dtype of numbers")


def _check_files(body: Mapping[str, Any], columns: Mapping[str, Column]) -> None:
    """Compares the files that a manifest lists with what it says of clients, features and metadata."""
    if body["client_ids"] not in ("str", "bytes", "int"):
        raise ValueError("client_ids is none of 'str', 'bytes' and 'int'")
    if not all(isinstance(value, str) for values in body["metadata"].values() for value in values or ()):
        raise ValueError("metadata are numbered that are no text")
    if not body["features"] or not body["shards"] or not body["num_clients"]:
        raise ValueError("there are no features, shards or clients")
    expected = _expected_files(body)
    if expected.keys() != columns.keys():
        raise ValueError(f"files needs {sorted(expected)[:20]}, and is {sorted(columns)[:20]}")
    for name, (dtype, shape) in expected.items():
        column = columns[name]
        if not re.fullmatch(r"[A-Za-z0-9_-]+\.npy", name):
            raise ValueError(f"the file {name[:50]!r} has no plain name")
        has_shape = len(shape) == len(column.shape) and all(
            size in (None, found) for size, found in zip(shape, column.shape, strict=True)
        )
        if column.dtype.name not in dtype.split() or not has_shape:
            raise ValueError(f"the file {name} is {column.dtype}{list(column.shape)}, not {dtype}{shape}")


def _expected_files(body: Mapping[str, Any]) -> dict[str, tuple[str, list[int | None]]]:
    """Returns dtype, or some of them, and shape of each file of a store; None stands for any size."""
    num_clients, is_int = body["num_clients"], body["client_ids"] == "int"
    files: dict[str, tuple[str, list[int | None]]] = {
        "offsets": ("int64", [num_clients + 1]),
        "client_ids": ("int64", [num_clients]) if is_int else ("uint8", [None]),
        "index_hashes": ("uint64", [num_clients]),
        "index_rows": ("int64", [num_clients]),
    }
    if not is_int:
        files["client_id_offsets"] = ("int64", [num_clients + 1])
    for name, values in body["metadata"].items():
        files[f"metadata_{name}"] = ("bool int64 float64" if values is None else "int32", [num_clients])
    files = {client_file(name): file for name, file in files.items()}
    starts = [*(shard["first_example"] for shard in body["shards"]), body["num_examples"]]
    for feature in body["features"].values():
        for shard, (start, end) in enumerate(itertools.pairwise(starts)):
            files[shard_file(feature["file"], shard)] = (feature["dtype"], [end - start, *feature["shape"]])
    return files


def replace_file(path: Path, text: bytes) -> None:
    """Writes a file whole or not at all, and waits until it is on disk."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)


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
