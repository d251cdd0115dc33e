"""What importers share: the types that features are asked for with, how columns become them, and what to say."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjx.core.language.types import ArrayType
from fedjx.data.client_ids import ClientId
from fedjx.data.federated_data import notation
from fedjx.data.importers import files

Features = Mapping[str, ArrayType]
"""The type of one example by name of the feature; of dtype object for bytes, of shape ``(None,)`` for lists of any
length."""


def cast(name: str, column: np.ndarray, dtype: Any) -> np.ndarray:
    """Converts a column without losing anything but a float's precision, which the dtype asks for.

    Args:
      name: Of the feature, for errors.
      column: Any array; bytes are of dtype object.
      dtype: What to make of it.

    Raises:
      ValueError: If a number is out of the dtype's range, an integer is not exact in it, or what the column holds is
        of another kind: floats do not become integers, and bytes become nothing else.

    >>> cast("label", np.array([0, 255]), np.uint8)
    array([  0, 255], dtype=uint8)
    """
    dtype = np.dtype(dtype)
    if column.dtype == dtype:
        return column
    if column.dtype.kind in "iub" and dtype.kind in "iub":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if column.size and not low <= int(column.min()) <= int(column.max()) <= high:
            raise ValueError(
                f"feature {name!r} needs values from {low} to {high} to be {dtype}; got {column.min()} to "
                f"{column.max()}. Ask for a wider dtype."
            )
        return column.astype(dtype)
    if _is_float(dtype) and (_is_float(column.dtype) or column.dtype.kind in "iub"):
        with np.errstate(over="ignore"):
            converted = column.astype(dtype)
        if column.dtype.kind in "iub" and not _is_exact(column, converted):
            raise ValueError(f"feature {name!r} needs integers that are exact in {dtype}; got others. Ask for int64.")
        if _is_float(column.dtype) and (np.isinf(converted) & ~np.isinf(column)).any():
            raise ValueError(
                f"feature {name!r} needs values within the range of {dtype}; got others. Ask for a wider dtype."
            )
        return converted
    raise ValueError(
        f"feature {name!r} needs to hold {_kind(dtype)} to be {dtype}; got {_kind(column.dtype)}. "
        f"Ask for {column.dtype}, and convert later."
    )


def selected(columns: Mapping[str, np.ndarray], features: Features | None) -> dict[str, np.ndarray]:
    """Returns the columns that are asked for, ``[n, ...]`` each, as what they are asked for; by default all as is.

    Raises:
      ValueError: If one is missing, of another shape, or not to be converted, see `cast`.
    """
    if features is None:
        return dict(columns)
    check_names(columns, features)
    for name, target in features.items():
        if columns[name].shape[1:] != tuple(target.shape):
            raise ValueError(
                f"feature {name!r} needs to be of shape {list(target.shape)}; got {list(columns[name].shape[1:])}. "
                "Ask for what the file has."
            )
    return {name: cast(name, columns[name], target.dtype) for name, target in features.items()}


def stacked(name: str, rows: Sequence[np.ndarray], target: ArrayType) -> np.ndarray:
    """Joins the flat values of some examples to a column ``[n, ...]``, or an object array of arrays if of any length.

    Raises:
      ValueError: If one has another number of values, or not to be converted, see `cast`.
    """
    if tuple(target.shape) == (None,):
        column = np.empty(len(rows), object)
        for k, row in enumerate(rows):
            column[k] = cast(name, row, target.dtype) if len(row) else np.empty(0, target.dtype)
        return column
    size = math.prod(target.shape)
    for k, row in enumerate(rows):
        if len(row) != size:
            raise ValueError(
                f"feature {name!r} needs {size} values in every example, for {list(target.shape)}; got {len(row)} in "
                f"example {k}. Ask for another shape, or for (None,) if lengths differ."
            )
    if not rows or not size:
        return np.empty((len(rows), *target.shape), target.dtype)
    kinds = {_kind(row.dtype) for row in rows}
    if len(kinds) > 1:
        raise ValueError(
            f"feature {name!r} needs to hold the same kind in every example; got {sorted(kinds)}. Mend the file."
        )
    return cast(name, np.concatenate(rows), target.dtype).reshape(len(rows), *target.shape)


def check_names(found: Collection[str], wanted: Iterable[str]) -> None:
    """Raises ValueError unless all features that are wanted are found."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"features need to be in the file; got {missing}, and it has {sorted(found)}. Ask for these.")


@contextlib.contextmanager
def located(*where: str) -> Iterator[None]:
    """Says before the message of a ValueError where it was raised."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{', '.join(where)}: {error}") from error


def shown(client_id: ClientId) -> str:
    """Prints a client's id, shortened if it is long."""
    text = repr(client_id)
    return f"client {text if len(text) <= 80 else text[:77] + '...'}"


def checked_text(client_id: Any) -> str:
    """Returns a client's id that is text.

    Raises:
      ValueError: If it is not, or is not UTF-8, which was decoded with surrogates for its bytes.
    """
    if not isinstance(client_id, str):
        raise ValueError(f"client ids need to be text; got {shown(client_id)}. Convert them in the file.")
    try:
        client_id.encode()
    except UnicodeEncodeError:
        raise ValueError(f"client ids need to be UTF-8; got {shown(client_id)}. Rename the client.") from None
    return client_id


def existing(path: str | Path) -> Path:
    """Returns the path of a file.

    Raises:
      FileNotFoundError: If there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"an importer needs a file; got {path}, where there is none. Check the path.")
    return path


def provenance(importer: str, paths: Iterable[Path], features: Features | None, **options: Any) -> dict[str, Any]:
    """Returns what a manifest says of an import, the features that were asked for among its options.

    Raises:
      TypeError: If a feature is not asked for by its type.
    """
    for name, target in (features or {}).items():
        if not isinstance(getattr(target, "shape", None), tuple):
            raise TypeError(f"features are types by name; got {name!r} with {target!r}. Give ArrayType(shape, dtype).")
    asked = None if features is None else notation(features)
    return files.provenance(importer, paths, features=asked, **options)


def _is_float(dtype: np.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))  # NumPy does not count bfloat16 among the floats.


def _is_exact(integers: np.ndarray, floats: np.ndarray) -> bool:
    limit = 2 ** (jnp.finfo(floats.dtype).nmant + 1)
    if not integers.size or -limit <= int(integers.min()) <= int(integers.max()) <= limit:
        return True
    # NumPy would compare both as floats; Python compares them exactly.
    return floats.astype(np.float64).tolist() == integers.tolist()


def _kind(dtype: np.dtype) -> str:
    if dtype.kind in "iub":
        return "integers"
    return "floats" if _is_float(dtype) else "bytes" if dtype.hasobject else str(dtype)
