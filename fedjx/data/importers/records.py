"""Imports TFDS data sets and ArrayRecord files, without TensorFlow."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjx.data.client_ids import ClientId
from fedjx.data.importers.examples import blocks_of, objects, owner_of, value_of
from fedjx.data.importers.files import Paths, files, provenance, reading
from fedjx.data.importers.grouping import grouped
from fedjx.data.importers.pictures import check_image_shape, stacked
from fedjx.data.source import Client, Source

_MAX_ROWS = 1024
_ClientFn = Callable[[Mapping[str, Any]], ClientId]
# Begins a pass over examples: what each is called in errors, and its features.
_ExamplesFn = Callable[[], Iterator[tuple[str, Mapping[str, Any]]]]


def tfds(
    data: Any,
    *,
    client: str | _ClientFn,
    split: str | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Source:
    """Groups the examples of a TensorFlow Datasets data set by client, without TensorFlow.

    The data set has to be prepared with ``file_format="array_record"``. Features in features are called ``a/b``.
    Text is bytes, as the ids of clients that are a text feature.

    Args:
      data: A builder, as from ``tfds.builder(name, file_format="array_record")``, or what its `as_data_source` returns.
      client: Name of the feature that says whose an example is, which is then no feature, or a function of the example.
      split: Of a builder, as ``"train"`` or ``"train[:10%]"``.
      image_shape: Of a builder: height, width and channels that its images get, see
        `fedjx.data.importers.image_folder`; by default they need to have one shape already.

    Returns:
      The clients in increasing order of their ids; the examples of each keep their order. They are read twice.

    Raises:
      ValueError: If a builder comes without a split, has not been prepared or was in another format, a
        file is corrupt, or an example has other features, dtypes or shapes than the first.
      TypeError: If `data` is neither.
    """
    check_image_shape(image_shape)
    images: list[str] = []
    described: dict[str, Any] = {"split": split, "image_shape": image_shape and list(image_shape)}
    if hasattr(data, "as_data_source"):
        if not isinstance(split, str):
            raise ValueError(f"a builder needs a split; got {split=}. Choose one of {sorted(data.info.splits)}.")
        described["data set"] = data.info.full_name
        with reading(data.info.full_name, "a TFDS data set"):
            from tensorflow_datasets import decode, features

            images = [name for name, kind in data.info.features.items() if isinstance(kind, features.Image)]
            data = data.as_data_source(split, decoders={name: decode.SkipDecoding() for name in images})
    elif isinstance(data, str) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise TypeError(f"data is a builder of TFDS or its data source; got {type(data).__name__}. Prepare one.")
    elif image_shape is not None or split is not None:
        raise ValueError(f"{split=} and {image_shape=} are of a builder; got {type(data).__name__}. Leave them out.")
    types = _types(getattr(data, "dataset_info", None))

    def examples() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for start in range(0, len(data), _MAX_ROWS):
            rows = range(start, min(start + _MAX_ROWS, len(data)))
            with reading(described.get("data set", "the data source"), "a TFDS data set"):
                part = data.__getitems__(list(rows)) if hasattr(data, "__getitems__") else [data[k] for k in rows]
            for row, example in zip(rows, part, strict=True):
                # A number comes as Python's, without its dtype.
                flat = _flat(example)
                numbers = {name for name in types.keys() & flat if isinstance(flat[name], (int, float))}
                yield f"example {row}", flat | {name: np.asarray(flat[name], types[name]) for name in numbers}

    provenance = {"importer": "tfds", "files": {}, "options": {**described, "client": _described(client)}}
    return _source(examples, client, images, image_shape, provenance)


def array_record(paths: Paths, *, parse_fn: Callable[[bytes], Mapping[str, Any]], client: str | _ClientFn) -> Source:
    """Groups the records of ArrayRecord files by client.

    Args:
      paths: A file, several, or a pattern with ``*``.
      parse_fn: From a record to its features by name: numbers, arrays, str or bytes.
      client: Name of the feature that says whose a record is, which is then no feature, or a function of the features.

    Returns:
      The clients in increasing order of their ids; the records of each keep their order. They are read twice.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If a file is corrupt, which its checksums tell, or a record has other features, dtypes or shapes than
        the first.
      ImportError: If array_record is not installed.
    """
    found = files(paths)

    def examples() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for path in found:
            for row, record in enumerate(_records(path)):
                yield f"record {row} of {path}", parse_fn(record)

    return _source(examples, client, [], None, provenance("array_record", found, client=_described(client)))


def _source(
    examples: _ExamplesFn,
    client: str | _ClientFn,
    images: list[str],
    image_shape: tuple[int, int, int] | None,
    provenance: dict[str, Any],
) -> Source:
    def keys() -> Iterator[np.ndarray]:
        owners = (_owner(example, client, where) for where, example in examples())
        while part := list(itertools.islice(owners, _MAX_ROWS)):
            yield objects(part)

    def rows() -> Iterator[tuple[str, ClientId, dict[str, Any]]]:
        for where, example in examples():
            features = {
                name: value if isinstance(value, bytes) else value_of(name, value)
                for name, value in example.items()
                if name != client
            }
            yield where, _owner(example, client, where), features

    def read() -> Iterator[Client]:
        for name, columns, _ in grouped(lambda: blocks_of(rows()), keys_fn=keys):
            pictures = {key: stacked(columns[key], image_shape, f"{key!r} of client {name!r}") for key in images}
            yield Client(name, {**columns, **pictures})

    return Source(read, None, provenance)


def _records(path: Path) -> Iterator[bytes]:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise ImportError("ArrayRecord needs array_record; got no such package. pip install array_record.") from error
    with reading(path, "an ArrayRecord file"):
        reader = ArrayRecordReader(os.fspath(path), "readahead_buffer_size:0,max_parallelism:0")
    try:
        with reading(path, "an ArrayRecord file"):
            if not reader.ok():
                raise ValueError("its header or its index is corrupt")
            total = reader.num_records()
        for start in range(0, total, _MAX_ROWS):
            with reading(path, "an ArrayRecord file"):
                part = reader.read(start, min(start + _MAX_ROWS, total))
            yield from part
    finally:
        # What it raises has been raised before.
        with contextlib.suppress(Exception):
            reader.close()


def _owner(example: Mapping[str, Any], client: str | _ClientFn, where: str) -> ClientId:
    return client(example) if callable(client) else owner_of(example, client, where)


def _flat(example: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in example.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _types(info: Any) -> dict[str, np.dtype]:
    """Returns the dtypes of the numeric features of a data source."""
    types = {} if info is None else _flat(info.features.np_dtype)
    return {name: np.dtype(kind) for name, kind in types.items() if np.dtype(kind).kind in "biuf"}


def _described(client: str | _ClientFn) -> str:
    return "a function" if callable(client) else client
