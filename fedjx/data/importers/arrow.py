"""Imports tables: data frames, Parquet, Arrow IPC and Hugging Face data sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjx.data.importers.arrays import arrays
from fedjx.data.importers.files import Paths, files, provenance, reading
from fedjx.data.importers.grouping import Block, grouped
from fedjx.data.importers.pictures import check_image_shape, stacked
from fedjx.data.source import Client, Source

ImageShape = tuple[int, int, int]
# Columns to read -> batches of rows with, for errors, where they are from.
_Types = list[tuple[str, Any]]
_BatchesFn = Callable[[list[str]], Iterator[tuple[str, Any]]]

_BATCH_BYTES, _MAX_ROWS = 1 << 24, 1 << 16
# Says that a stream has come to its end; a file without it has been cut.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def table(
    table: Any, *, client: str, features: Sequence[str] | None = None, image_shape: ImageShape | None = None
) -> Source:
    """Groups the rows of a table in memory by client.

    Numbers and booleans become columns of their type, text and bytes object arrays, lists that all have the
    same length, nested ones too, ``[n, k]``, and images, as structs of ``bytes`` and ``path``, are decoded.

    Args:
      table: A data frame of pandas or polars, a table of pyarrow or anything else with the Arrow PyCapsule interface,
        or a dict of columns.
      client: Name of the column that says whose a row is, of integers, text or bytes.
      features: Names of the columns to import; by default all others.
      image_shape: Height, width and channels that images get, see `fedjx.data.importers.image_folder`.

    Returns:
      The clients in increasing order of their ids; the rows of each keep their order.

    Raises:
      TypeError: If the table is none of these, or can be read only once.
      ValueError: If a column does not exist or is there twice, has nulls, or has values that are no feature.
      ImportError: If pyarrow is not installed, which reads all but dicts.

    >>> import pyarrow as pa
    >>> rows = pa.table({"user": ["b", "a", "b"], "x": [1, 2, 3]})
    >>> [(client.id, client.examples["x"].tolist()) for client in table(rows, client="user").clients()]
    [('a', [2]), ('b', [1, 3])]
    """
    described = {"importer": "table", "files": {}, "options": {"client": client}}
    if isinstance(table, Mapping):
        chosen = _chosen(list(table), client, features, "the table")
        return arrays({name: table[name] for name in chosen}, table[client])._replace(provenance=described)
    pa = _pyarrow()
    if not hasattr(table, "__arrow_c_stream__") or isinstance(table, pa.RecordBatchReader):
        raise TypeError(
            "a table is a data frame, an Arrow table or a dict of columns, which can be read again; got "
            f"{type(table).__name__}. Convert it."
        )

    def stream() -> Any:
        with reading("the table", "a table"):
            return pa.RecordBatchReader.from_stream(table)

    def batches(names: list[str]) -> Iterator[tuple[str, Any]]:
        for batch in _guarded(stream(), "the table", "a table"):
            yield "the table", batch.select(names)

    return _source(batches, stream().schema.names, "the table", client, features, image_shape, described)


def parquet(
    paths: Paths, *, client: str, features: Sequence[str] | None = None, image_shape: ImageShape | None = None
) -> Source:
    """Groups the rows of Parquet files by client.

    The files are read twice, the first time the column of the clients alone: rows that are sorted by client are then
    streamed, others go through a temporary file, see `grouped`. Where pages have checksums these are compared.

    Args:
      paths: A file, several, or a pattern with ``*``; all have the same columns.
      client: Name of the column that says whose a row is; what the others become stands with `table`.
      features: Names of the columns to import; by default all others.
      image_shape: Height, width and channels that images get.

    Raises:
      ValueError: If a file is corrupt or has other columns or types than the first; and as `table`.
      FileNotFoundError: If there is no such file.
      ImportError: If pyarrow is not installed.
    """
    _pyarrow()
    import pyarrow.parquet as pq

    found = files(paths)

    def opened(path: Path) -> Any:
        with reading(path, "a Parquet file"):
            return pq.ParquetFile(path, page_checksum_verification=True, buffer_size=1 << 16)

    def batches(names: list[str]) -> Iterator[tuple[str, Any]]:
        for path in found:
            with opened(path) as file:
                for group in range(file.num_row_groups):
                    with reading(path, "a Parquet file"):
                        metadata = file.metadata.row_group(group)
                        rows = _BATCH_BYTES * max(metadata.num_rows, 1) // max(metadata.total_byte_size, 1)
                        # A group at a time: one reader of all of them keeps what it has read.
                        parts = file.iter_batches(min(max(rows, 1), _MAX_ROWS), [group], names)
                    for batch in _guarded(parts, path, "a Parquet file"):
                        yield str(path), batch

    def schema(path: Path) -> _Types:
        with opened(path) as file, reading(path, "a Parquet file"):
            return _types(file.schema_arrow)

    described = provenance("parquet", found, client=client)
    names = _common_names(found, schema, client, features)
    return _source(batches, names, str(found[0]), client, features, image_shape, described)


def arrow_ipc(
    paths: Paths, *, client: str, features: Sequence[str] | None = None, image_shape: ImageShape | None = None
) -> Source:
    """Groups the rows of Arrow IPC files by client, in the file or the stream format.

    The latter is what ``save_to_disk`` of Hugging Face's datasets writes, as ``data-*.arrow``. A stream has to
    come to its end marker. The files are read twice, and never memory-mapped.

    Args:
      paths: A file, several, or a pattern with ``*``; all have the same columns.
      client: Name of the column that says whose a row is; what the others become stands with `table`.
      features: Names of the columns to import; by default all others.
      image_shape: Height, width and channels that images get.

    Raises:
      ValueError: If a file is corrupt or has other columns or types than the first; and as `table`.
      FileNotFoundError: If there is no such file.
      ImportError: If pyarrow is not installed.
    """
    _pyarrow()
    found = files(paths)

    def batches(names: list[str]) -> Iterator[tuple[str, Any]]:
        for path in found:
            for batch in _guarded(_ipc_batches(path), path, "an Arrow file"):
                yield str(path), batch.select(names)

    def schema(path: Path) -> _Types:
        with reading(path, "an Arrow file"), _ipc_reader(path) as (reader, _):
            return _types(reader.schema)

    described = provenance("arrow_ipc", found, client=client)
    names = _common_names(found, schema, client, features)
    return _source(batches, names, str(found[0]), client, features, image_shape, described)


def hugging_face(
    dataset: Any, *, client: str, features: Sequence[str] | None = None, image_shape: ImageShape | None = None
) -> Source:
    """Groups the rows of a `datasets.Dataset` by client.

    Args:
      dataset: One split, in memory or on disk, also after `select`, `filter` or `shuffle`.
      client: Name of the column that says whose a row is; what the others become stands with `table`.
      features: Names of the columns to import; by default all others.
      image_shape: Height, width and channels that images get.

    Raises:
      TypeError: If it is not a `datasets.Dataset`, such as all splits in a dict.
      ValueError: As `table`.
    """
    if not (hasattr(dataset, "with_format") and hasattr(dataset, "column_names") and hasattr(dataset, "num_rows")):
        raise TypeError(
            f"a data set is a datasets.Dataset; got {type(dataset).__name__}. Choose a split, and do not stream it."
        )
    if not isinstance(dataset.column_names, list):
        raise TypeError(f"a data set is one split; got {sorted(dataset.column_names)}. Choose one of them.")
    where = "the data set"

    def batches(names: list[str]) -> Iterator[tuple[str, Any]]:
        with reading(where, "a Hugging Face data set"):
            parts = dataset.select_columns(names).with_format("arrow").iter(batch_size=1000)
        for part in _guarded(parts, where, "a Hugging Face data set"):
            for batch in part.to_batches():
                yield where, batch

    described = {
        "importer": "hugging_face",
        "files": {},
        "options": {"client": client, "fingerprint": getattr(dataset, "_fingerprint", None)},
    }
    return _source(batches, dataset.column_names, where, client, features, image_shape, described)


def _source(
    batches: _BatchesFn,
    names: list[str],
    where: str,
    client: str,
    features: Sequence[str] | None,
    image_shape: ImageShape | None,
    described: dict[str, Any],
) -> Source:
    check_image_shape(image_shape)
    chosen = _chosen(names, client, features, where)
    images: set[str] = set()

    def keys() -> Iterator[np.ndarray]:
        for place, batch in batches([client]):
            if batch.num_rows:
                yield _array(batch.column(0), f"{client!r} of {place}")[0]

    def blocks() -> Iterator[Block]:
        for place, batch in batches([client, *chosen]):
            if batch.num_rows:
                columns = {name: _array(batch.column(name), f"{name!r} of {place}") for name in (client, *chosen)}
                images.update(name for name, (_, is_image) in columns.items() if is_image)
                yield columns[client][0], {name: columns[name][0] for name in chosen}

    def read() -> Iterator[Client]:
        for name, examples in ((found.id, found.examples) for found in grouped(blocks, keys_fn=keys)):
            pictures = {
                key: stacked(examples[key], image_shape, f"{key!r} of client {name!r}")
                for key in chosen
                if key in images
            }
            yield Client(name, {**examples, **pictures})

    options = {**described["options"], "features": chosen, "image_shape": image_shape and list(image_shape)}
    return Source(read, None, {**described, "options": options})


def _chosen(names: list[str], client: str, features: Sequence[str] | None, where: str) -> list[str]:
    """Returns the columns to import as features."""
    if isinstance(features, str):
        raise TypeError(f"features is a list of names; got {features=}. Put it into one.")
    if features is None:
        # pandas keeps an index in such columns.
        features = [name for name in names if name != client and not name.startswith("__index_level_")]
    for name in (client, *features):
        if names.count(name) != 1:
            raise ValueError(
                f"a table needs every column once; got {names.count(name)} times {name!r} in {where}. "
                f"It has {sorted(set(names))[:50]}."
            )
    if not features or client in features:
        raise ValueError(
            f"a table needs features beside the column of clients; got {features=} and {client=}. Name others."
        )
    return list(features)


def _common_names(
    paths: list[Path], schema: Callable[[Path], _Types], client: str, features: Sequence[str] | None
) -> list[str]:
    """Returns the columns of files, which need to have the same types in all."""
    first = schema(paths[0])
    names = [name for name, _ in first]
    chosen = [client, *_chosen(names, client, features, str(paths[0]))]
    for path in paths[1:]:
        other = schema(path)
        _chosen([name for name, _ in other], client, chosen[1:], str(path))
        for name in chosen:
            found, expected = dict(other)[name], dict(first)[name]
            if found != expected:
                raise ValueError(
                    f"all files need columns of the same types; got {name!r} as {found} in {path} and as {expected} in "
                    f"{paths[0]}. Convert them first."
                )
    return names


def _types(schema: Any) -> _Types:
    """Returns the columns' names, which a damaged file may have so that they are no text, and types."""
    return [(field.name, field.type) for field in schema]


def _array(array: Any, where: str) -> tuple[np.ndarray, bool]:
    """Converts an Arrow array ``[n]`` to NumPy ``[n, ...]``, and says whether it holds undecoded images."""
    pa = _pyarrow()
    with reading(where, "a column"):
        array = array.storage if isinstance(array, pa.ExtensionArray) else array
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
    if array.null_count:
        raise ValueError(f"a column needs a value in every row; got {array.null_count} nulls in {where}. Fill them.")
    kind = array.type
    if pa.types.is_struct(kind) and {"bytes", "path"} == {field.name for field in kind}:
        if array.field("bytes").null_count:
            raise ValueError(f"images need to be embedded; got a path alone in {where}. Embed them in the file.")
        return _array(array.field("bytes"), where)[0], True
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _nested(array, where), False
    if not (_is_number(kind) or _is_text(kind)):
        raise ValueError(f"a feature is numbers, text, bytes, images or lists; got {kind} in {where}. Convert it.")
    with reading(where, "a column"):
        return array.to_numpy(zero_copy_only=False), False


def _is_number(kind: Any) -> bool:
    types = _pyarrow().types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _is_text(kind: Any) -> bool:
    types = _pyarrow().types
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")
    return any(getattr(types, f"is_{name}")(kind) for name in names)


def _nested(array: Any, where: str) -> np.ndarray:
    """Converts lists, which need to have one length."""
    inner, _ = _array(array.flatten(), where)
    lengths = set(array.value_lengths().to_pylist())
    if len(lengths) > 1:
        raise ValueError(
            f"lists need one length; got {min(lengths)} to {max(lengths)} in {where}. Pad them, or leave it out."
        )
    return inner.reshape(len(array), lengths.pop(), *inner.shape[1:])


def _guarded(parts: Any, where: str | Path, kind: str) -> Iterator[Any]:
    """Yields the batches of a reader, whose errors name the file."""
    iterator = iter(parts)
    while True:
        with reading(where, kind):
            batch = next(iterator, None)
            if batch is not None:
                batch.validate(full=True)
        if batch is None:
            return
        yield batch


class _ipc_reader:
    """Opens an IPC file, and gives its reader and how many batches it has, where it says so."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> tuple[Any, int | None]:
        pa = _pyarrow()
        self.file = pa.OSFile(os.fspath(self.path))
        try:
            if self.file.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(self.file)
                return reader, reader.num_record_batches
            self.file.seek(max(self.file.size() - 8, 0))
            if self.file.read(8) != _END_OF_STREAM:
                raise ValueError("it has no end marker; it has been cut, or is of another format")
            self.file.seek(0)
            return pa.ipc.open_stream(self.file), None
        except BaseException:
            self.file.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _ipc_batches(path: Path) -> Iterator[Any]:
    with _ipc_reader(path) as (reader, num_batches):
        if num_batches is None:
            yield from reader
        else:
            yield from map(reader.get_batch, range(num_batches))


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError("tables are read with pyarrow; got no such package. pip install pyarrow.") from error
    return pyarrow
