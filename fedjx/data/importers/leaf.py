"""Imports LEAF's JSON files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fedjx.data.importers.features import cast, located
from fedjx.data.importers.files import PathLike, files, provenance, reading
from fedjx.data.source import Client, Source


def leaf(directory: PathLike, *, dtypes: Mapping[str, DTypeLike] | None = None) -> Source:
    """Reads a split of a LEAF data set, the JSON files of a directory.

    Each file has `users`, `num_samples` and `user_data`, with `x` and `y` of each user. Users come file by file
    (sorted by name), in the order of `users`; one that is in `user_data` alone is left out, as LEAF does. Features are
    ``x`` and ``y``: numbers as int64 or float64 unless `dtypes` says otherwise, text as object arrays, ``[n, ...]``.
    Where a file has `hierarchies`, each user's is the metadata ``hierarchy``. LEAF's Reddit is of another form, with
    objects for ``y``; what pfl-research makes of it is read, see `fedjx.data.published.reddit`.

    Memory: one file, parsed, and the users' names.

    Args:
      directory: As `data/train` of FEMNIST; or one file.
      dtypes: dtype by name of the feature, "x" or "y", to which numbers are converted if nothing is lost but
        precision of reals.

    Returns:
      The users. Where `num_samples` is not the number of rows, the rows count, and a warning says how often.

    Raises:
      FileNotFoundError: If there is no JSON file.
      ValueError: If a file is corrupt, a user is in several files or has no data, rows have several shapes, or a
        number is missing.
    """
    directory = Path(directory)
    found = files(sorted(directory.glob("*.json")) if directory.is_dir() else directory)
    types = {name: np.dtype(dtype) for name, dtype in (dtypes or {}).items()}
    if not types.keys() <= {"x", "y"}:
        raise ValueError(f"dtypes are of 'x' and 'y'; got {dtypes=}. LEAF has no other features.")

    def read() -> Iterator[Client]:
        seen: dict[str, str] = {}
        num_wrong, stated, rows = 0, 0, 0
        for path in found:
            for client, num_samples in _clients(path, types):
                if client.id in seen:
                    raise ValueError(
                        f"every user needs to be in one place; got {client.id!r} in {seen[client.id]} and in "
                        f"{path.name}. Merge them, or read the files apart."
                    )
                seen[str(client.id)] = path.name
                size = len(client.examples["y"])
                if size != num_samples:
                    num_wrong, stated, rows = num_wrong + 1, stated + num_samples, rows + size
                yield client
        if num_wrong:
            warnings.warn(
                f"num_samples is not the number of rows for {num_wrong} of {len(seen)} users of {directory}: it says "
                f"{stated} and there are {rows}; the rows count",
                stacklevel=2,
            )

    options = {"dtypes": {name: dtype.name for name, dtype in types.items()}}
    return Source(read, None, provenance("leaf", found, **options))


def _clients(path: Path, types: Mapping[str, np.dtype]) -> Iterator[tuple[Client, int]]:
    """Yields the users of a file, and how many samples each is said to have."""
    with reading(path, "a LEAF file"), open(path, "rb") as file:
        content = json.load(file, object_pairs_hook=_unique)
    users, sizes, data = (_field(content, name, kind, path) for name, kind in _FIELDS.items())
    hierarchies = content.get("hierarchies")
    if hierarchies is not None:
        hierarchies = _field(content, "hierarchies", list, path)
    for name, values in (("num_samples", sizes), ("hierarchies", users if hierarchies is None else hierarchies)):
        if len(values) != len(users):
            raise ValueError(
                f"a LEAF file needs one of {name} for each user; got {len(values)} for {len(users)} in {path}. Mend it."
            )
    for k, (user, size) in enumerate(zip(users, sizes, strict=True)):
        if not isinstance(user, str) or not isinstance(size, int) or not isinstance(data.get(user), dict):
            raise ValueError(
                f"every user of a LEAF file needs data; got {user!r} with num_samples {size!r} and user_data "
                f"{type(data.get(user)).__name__} in {path}. Leave the user out."
            )
        where = f"of user {user!r} in {path}"
        examples = {name: _column(_field(data[user], name, list, path), name, where, types) for name in ("x", "y")}
        if len(examples["x"]) != len(examples["y"]):
            raise ValueError(
                f"x and y need one row for each example; got {len(examples['x'])} and {len(examples['y'])} {where}."
            )
        metadata = {} if hierarchies is None else {"hierarchy": hierarchies[k]}
        yield Client(_text(user, path), examples, metadata), size


_FIELDS: Mapping[str, type] = {"users": list, "num_samples": list, "user_data": dict}


def _field(content: Any, name: str, kind: type, path: Path) -> Any:
    if not isinstance(content, dict) or not isinstance(content.get(name), kind):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"a LEAF file needs {name!r}, a {kind.__name__}; got {str(found)[:200]} in {path}. Is it of another format?"
        )
    return content[name]


def _text(user: str, path: Path) -> str:
    try:
        user.encode()
    except UnicodeEncodeError:
        raise ValueError(f"users need names that are text; got {user!r} in {path}. Rename it.") from None
    return user


def _column(rows: list[Any], name: str, where: str, types: Mapping[str, np.dtype]) -> np.ndarray:
    """Converts rows to numbers, or to an object array of str."""
    first: Any = rows
    while isinstance(first, list) and first:
        first = first[0]
    is_text = isinstance(first, str)
    try:
        column = np.array(rows, object if is_text else None)
    except ValueError:
        raise ValueError(f"rows need one shape; got several for {name!r} {where}. Pad them.") from None
    if is_text:
        if set(map(type, column.ravel().tolist())) != {str}:
            raise ValueError(f"a feature is all text or all numbers, of one shape; got both for {name!r} {where}.")
        return column
    if column.dtype.kind not in "biuf":
        remedy = (
            "That is as in LEAF's Reddit: see fedjx.data.published.reddit." if isinstance(first, dict) else "Mend it."
        )
        raise ValueError(
            f"a feature is all numbers or all text; got {type(first).__name__} for {name!r} {where}. {remedy}"
        )
    return _converted(column, types[name], name, where) if name in types else column


def _converted(column: np.ndarray, dtype: np.dtype, name: str, where: str) -> np.ndarray:
    if column.dtype.kind == "f" and dtype.kind in "iu" and (np.abs(column) < 2**53).all():
        whole = column.astype(np.int64)  # JSON does not tell 2.0 from 2.
        column = whole if (whole == column).all() else column
    with located(where.removeprefix("of ")):
        return cast(name, column, dtype)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return content
