"""Imports the HDF5 files of TensorFlow Federated and of pfl-research: a group is a client."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjx.data.importers.features import (
    Features,
    check_names,
    checked_text,
    existing,
    located,
    provenance,
    selected,
    shown,
)
from fedjx.data.source import Client, Source


def tff_hdf5(path: str | Path, *, features: Features | None = None, max_client_bytes: int = 1 << 30) -> Source:
    """Reads an HDF5 file of TensorFlow Federated: ``/examples/<client>/<feature>``, each an array ``[n, ...]``.

    Clients come in the order of their names, as TFF sorts them. Text is of dtype object, of bytes. HDF5 has no
    checksums unless asked to: compare the file with the publisher's.

    Args:
      path: The file.
      features: The type of one example by name of the feature, of dtype object for bytes; others are left out. By
        default all, as they are.
      max_client_bytes: Most bytes of a client's feature; a corrupt or hostile file may state any size.

    Returns:
      A source, which knows the number of clients. Reading it raises ValueError or OSError if the file is corrupt or a
      client is not as asked.

    Raises:
      FileNotFoundError: If there is no file.
      ValueError: If it is not such a file.
      ImportError: If h5py is not installed.
    """
    path = existing(path)
    with _opened(path) as file:
        num_clients = len(_group(file, "examples"))

    def clients() -> Iterator[Client]:
        with _opened(path) as file:
            examples = _group(file, "examples")
            for client_id in sorted(map(checked_text, examples)):
                with located(shown(client_id)), _clear_errors():
                    client = _group(examples, client_id)
                    check_names(client, features or {})
                    columns = {name: _read(client, name, max_client_bytes) for name in _asked(client, features)}
                    yield Client(client_id, selected(columns, features))

    return Source(clients, num_clients, provenance("tff_hdf5", [path], features))


def pfl_hdf5(
    path: str | Path, *, split: str, features: Features | None = None, max_client_bytes: int = 1 << 30
) -> Source:
    """Reads an HDF5 file of pfl-research's benchmarks: ``/<split>/<user>/<feature>``, each an array ``[n, ...]``.

    Users come in the order of their names, with the metadata `split` and, where the file tells it, `num_tokens`.
    FLAIR's labels, which are in the file as pairs of ``labels_row`` (which image) and ``labels_col`` (which label),
    become ``labels``, bool ``[n, num_labels]``; so do ``fine_grained_labels``. Its ``image_ids`` are bytes: ask for
    the other features to write a store.

    Args:
      path: The file.
      split: Its name in the file: ``train``, ``val`` or ``test``.
      features: The type of one example by name of the feature, of dtype object for bytes; others are left out. By
        default all, as they are.
      max_client_bytes: Most bytes of a user's feature; a corrupt or hostile file may state any size.

    Returns:
      A source, which knows the number of clients. Reading it raises ValueError or OSError if the file is corrupt or a
      client is not as asked.

    Raises:
      FileNotFoundError: If there is no file.
      ValueError: If it is not such a file, or has no such split.
      ImportError: If h5py is not installed.
    """
    path = existing(path)
    with _opened(path) as file:
        num_clients = len(_group(file, split))

    def clients() -> Iterator[Client]:
        with _opened(path) as file:
            users, num_tokens, num_labels = _group(file, split), _text(file, f"num_tokens/{split}"), _num_labels(file)
            for client_id in sorted(map(checked_text, users)):
                with located(f"split {split!r}, {shown(client_id)}"), _clear_errors():
                    user = _group(users, client_id)
                    columns = _paired(user, features, num_labels, max_client_bytes)
                    metadata: dict[str, Any] = {"split": split}
                    if num_tokens is not None:
                        metadata["num_tokens"] = _count(num_tokens, client_id)
                    yield Client(client_id, selected(columns, features), metadata)

    return Source(clients, num_clients, provenance("pfl_hdf5", [path], features, split=split))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HDF5 files are read with h5py; it is not installed. Run `pip install h5py`.") from error
    with located(str(path)), _clear_errors():
        try:
            file = h5py.File(path, "r", locking=False)
        except OSError as error:
            raise ValueError(f"the file needs to be in HDF5; got {error}. Fetch it again.") from error
        with file:
            yield file


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Makes one kind of what h5py raises for a corrupt file."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
        raise ValueError(f"an HDF5 file needs to be intact; got {error!r}. Fetch it again.") from error


def _group(parent: Any, name: str) -> Any:
    """Returns a group that is in the file itself, and not linked to from it."""
    import h5py

    group = _linked(parent, name)
    if not isinstance(group, h5py.Group):
        some = sorted(parent)[:10]
        raise ValueError(
            f"{parent.name} needs a group {name!r}; got none among {some}. Use the importer of the format."
        )
    return group


def _linked(parent: Any, name: str) -> Any:
    import h5py

    if name not in parent or not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        return None
    return parent[name]


def _asked(client: Any, features: Features | None) -> list[str]:
    """Returns the features to read, of those that there are."""
    return [name for name in client if features is None or name in features]


def _read(client: Any, name: str, max_bytes: int) -> np.ndarray:
    """Reads a feature, if all of it is in the file."""
    import h5py

    dataset = _linked(client, name)
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external or not dataset.ndim:
        raise ValueError(f"feature {name!r} needs to be an array in the file; got another thing. Copy it there.")
    text = h5py.check_string_dtype(dataset.dtype)
    if dataset.dtype.kind not in "biuf" and text is None:
        raise ValueError(f"feature {name!r} needs to hold numbers or text; got {dataset.dtype}. Convert it first.")
    row_bytes = dataset.id.get_type().get_size()
    num_bytes = max(dataset.size or 0, math.prod(dataset.chunks or (0,))) * row_bytes
    if num_bytes > max_bytes:
        raise ValueError(
            f"feature {name!r} needs to have at most max_client_bytes={max_bytes}; got {num_bytes}. Ask for more, if "
            "the file is not corrupt."
        )
    _check_stored(dataset, name, (dataset.size or 0) * row_bytes)
    column: Any = dataset[()]
    if text is not None:
        return column.astype(object)
    return column.astype(column.dtype.newbyteorder("="), copy=False)


def _check_stored(dataset: Any, name: str, num_bytes: int) -> None:
    """Raises ValueError where HDF5 would make up values that are not in the file."""
    if not num_bytes:
        return
    if dataset.chunks is None:
        is_stored = dataset.id.get_storage_size() >= num_bytes  # References to text take more in the file.
    else:
        num_chunks = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        is_stored = dataset.id.get_num_chunks() == num_chunks
    if not is_stored:
        raise ValueError(
            f"feature {name!r} needs to be in the file as a whole; got a part of it. Fetch the file again."
        )


def _paired(
    user: Any, features: Features | None, num_labels: Mapping[str, int], max_bytes: int
) -> dict[str, np.ndarray]:
    """Reads the features of a user, with pairs of row and column as bool ``[n, num_labels]``."""
    pairs = {name: [f"{name}_row", f"{name}_col"] for name in num_labels if f"{name}_row" in user}
    parts = {part for pair in pairs.values() for part in pair}
    check_names({*user, *pairs} - parts, features or {})
    columns = {name: _read(user, name, max_bytes) for name in _asked(user, features) if name not in parts}
    for name, pair in pairs.items():
        if features is None or name in features:
            sizes = [user[other].shape[0] for other in user if other not in parts]
            places = tuple(_read(user, part, max_bytes) for part in pair)
            columns[name] = _multi_hot(name, places, (min(sizes, default=0), num_labels[name]))
    return columns


def _multi_hot(name: str, places: tuple[np.ndarray, ...], shape: tuple[int, int]) -> np.ndarray:
    """Returns a matrix that is true at some places."""
    column = np.zeros(shape, bool)
    for place, size in zip(places, shape, strict=True):
        is_right = place.dtype.kind in "iu" and place.shape == places[0].shape and place.ndim == 1
        if not is_right or (place.size and not 0 <= place.min() <= place.max() < size):
            raise ValueError(f"pairs of {name!r} need to be in {list(shape)}; got others. Fetch the file again.")
    column[places] = True
    return column


def _num_labels(file: Any) -> dict[str, int]:
    mappings = {name: _text(file, f"{name[:-1]}_mapping") for name in ("labels", "fine_grained_labels")}
    return {name: len(mapping) for name, mapping in mappings.items() if mapping is not None}


def _text(file: Any, name: str) -> dict[str, Any] | None:
    """Reads a map in JSON from the metadata, or returns None where there is none."""
    if f"metadata/{name}" not in file:
        return None
    value = file[f"metadata/{name}"][()]
    values = json.loads(value) if isinstance(value, bytes | str) else None
    if not isinstance(values, dict):
        raise ValueError(
            f"/metadata/{name} needs to be a map in JSON; got {type(value).__name__}. Fetch the file again."
        )
    return values


def _count(num_tokens: Mapping[str, Any], client_id: str) -> int:
    count = num_tokens.get(client_id)
    if type(count) is not int:
        raise ValueError(f"/metadata/num_tokens needs an integer for every user; got {count!r}. Fetch the file again.")
    return count
