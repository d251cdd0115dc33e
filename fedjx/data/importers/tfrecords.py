"""Imports TFRecord files: a file per client, or a record per client as dataset_grouper writes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fedjx.data.importers.features import Features, checked_text, existing, located, provenance, shown
from fedjx.data.importers.files import Paths, files
from fedjx.data.importers.tf_example import example_reader, parse_sequence
from fedjx.data.source import Client, Source


def tfrecord_records(path: str | Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, whose checksums are right; it is not compressed.

    The format does not tell the number of records: a file that was cut between two of them is a shorter file.

    Raises:
      FileNotFoundError: If there is no file.
      ValueError: If it ends within a record, or a checksum is wrong, saying where; or if there is no record at all,
        as in a file of which nothing arrived.
      ImportError: If google-crc32c is not installed.
    """
    path, checksum = existing(path), _checksum_fn()
    with open(path, "rb") as file:
        offset, size = 0, os.fstat(file.fileno()).st_size
        while offset < size or not offset:
            head = file.read(12)
            if len(head) < 12 or masked(checksum(head[:8])) != head[8:]:
                raise ValueError(_broken(path, "a length with its checksum", offset))
            length = int.from_bytes(head[:8], "little")
            # The length may be anything: it is compared before memory is asked for.
            if length > size - offset - 16:
                raise ValueError(_broken(path, f"{length} bytes, where {size - offset - 12} are left", offset))
            data = file.read(length)
            if masked(checksum(data)) != file.read(4):
                raise ValueError(_broken(path, "a record with its checksum", offset))
            yield data
            offset += length + 16


def tfrecord_clients(directory: str | Path, *, suffix: str = "", features: Features | None = None) -> Source:
    """Reads a directory with a TFRecord file of `tf.train.Example` for each client.

    Landmarks, iNaturalist and FLAIR are kept so. Clients come in the order of their ids, which are the files' names
    without the suffix.

    Args:
      directory: With the files; what does not end in the suffix, begins with a dot or is no file, is not read.
      suffix: Of the files' names.
      features: The type of one example by name of the feature, see `example_reader`.

    Returns:
      A source, which knows the number of clients. Reading it raises ValueError if a file is corrupt or empty, or an
      example is not as asked.

    Raises:
      FileNotFoundError: If there is no such directory or file.
    """
    directory = Path(directory)
    names = []
    if directory.is_dir():
        with os.scandir(directory) as entries:
            names = [x.name for x in entries if x.name.endswith(suffix) and x.name[:1] != "." and x.is_file()]
    if not names:
        raise FileNotFoundError(
            f"an importer needs files; got {directory} without files whose names end in {suffix=}. Check the path."
        )
    ids = sorted(name.removesuffix(suffix) for name in names)

    def clients() -> Iterator[Client]:
        read = example_reader(features)
        for client_id in ids:
            with located(shown(client_id)):
                checked_text(client_id)
                yield Client(client_id, read(list(tfrecord_records(directory / (client_id + suffix)))))

    described = provenance("tfrecord_clients", [], features, suffix=suffix)
    num_bytes = sum((directory / name).stat().st_size for name in names)
    return Source(clients, len(ids), {**described, "files": {directory.name: num_bytes}})


def dataset_grouper(
    paths: Paths, *, features: Features | None = None, feature_list: str = "serialized_bytes"
) -> Source:
    """Reads TFRecord files of dataset_grouper, in which a record is a client.

    A record is a `tf.train.SequenceExample`, whose feature list has a serialised `tf.train.Example` in each step. The
    key that the clients were grouped by is not in the files: clients are called 0, 1, 2, ... in the order of the files
    as given and of the records.

    Args:
      paths: A file, several, or a pattern with ``*``, which gives them in sorted order.
      features: The type of one example by name of the feature, see `example_reader`.
      feature_list: Name of the list.

    Returns:
      A source. Reading it raises ValueError if a file is corrupt or has no record, a record has no such list, or an
      example is not as asked.

    Raises:
      FileNotFoundError: If there is no such file.
    """
    found = files(paths)

    def clients() -> Iterator[Client]:
        read, number = example_reader(features), 0
        for path in found:
            for record in tfrecord_records(path):
                with located(str(path), shown(number)):
                    yield Client(number, read(_steps(record, feature_list)))
                number += 1

    return Source(clients, None, provenance("dataset_grouper", found, features, feature_list=feature_list))


def _checksum_fn() -> Callable[[bytes], int]:
    """Returns the checksum of TFRecord files, CRC-32C; zlib has another polynomial."""
    try:
        import google_crc32c  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "TFRecord files are checked with google-crc32c; it is not installed. Run `pip install google-crc32c`."
        ) from error
    return google_crc32c.value


def masked(code: int) -> bytes:
    """Returns a checksum as it is in a TFRecord file: rotated, shifted and little-endian."""
    rotated = (code >> 15 | code << 17) & 0xFFFFFFFF
    return (rotated + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def _steps(record: bytes, name: str) -> list[bytes]:
    """Returns the serialised examples of a client."""
    steps = parse_sequence(record, name)
    if steps is None:
        raise ValueError(f"a record needs the feature list {name!r}; got another record. Pass its feature_list.")
    for step in steps:
        if len(step) != 1 or not step.dtype.hasobject:
            raise ValueError(f"a step of {name!r} needs one serialised example; got {len(step)} values. Mend the file.")
    return [step[0] for step in steps]


def _broken(path: Path, what: str, offset: int) -> str:
    return (
        f"a record needs {what}; got none such at byte {offset} of {path}. Fetch the file again, it is corrupt or cut."
    )
