"""Imports WebDataset tars."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fedjx.data.client_ids import ClientId
from fedjx.data.importers.examples import blocks_of, objects, owner_of, value_of
from fedjx.data.importers.files import Paths, files, provenance, reading
from fedjx.data.importers.grouping import grouped
from fedjx.data.importers.pictures import check_image_shape, stacked
from fedjx.data.importers.tars import tar_files
from fedjx.data.source import Client, Source

_IMAGES = {"jpg", "jpeg", "png", "ppm", "webp"}
_MAX_ROWS = 4096


def webdataset(
    paths: Paths,
    *,
    client: str | Callable[[str, Mapping[str, bytes]], ClientId],
    image_shape: tuple[int, int, int] | None = None,
    max_member_bytes: int = 1 << 28,
) -> Source:
    """Groups the samples of WebDataset tars by client.

    The files of a sample follow one another and have the same name up to the first dot; the rest is the extension.
    Each extension becomes a feature of that name: ``jpg``, ``png`` and other images uint8, as `image_folder`
    decodes them; ``cls`` an int64; ``npy`` an array; ``txt`` text; any other bytes. ``json`` becomes a feature for
    each of its fields, of the field's name, which are numbers, booleans, text or lists of these. Where an
    extension has dots, as ``seg.png``, the last part decides.

    The tars are read twice, as streams; nothing is unpacked, and images are decoded in the second pass.

    Args:
      paths: A tar, also compressed with gzip, several, or a pattern with ``*``.
      client: Name of the feature that says whose a sample is, or a function from the sample's name and its files by
        extension.
      image_shape: Height, width and channels; by default images need to have one shape already.
      max_member_bytes: Larger files in a tar are refused.

    Returns:
      The clients in increasing order of their ids; the samples of each keep their order.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If a tar is corrupt or has no end, holds links, devices or names that lead out of it, or a sample
        has other features than the first one or files that cannot be decoded.
    """
    check_image_shape(image_shape)
    found = files(paths)

    def samples() -> Iterator[tuple[str, str, dict[str, bytes]]]:
        for path in found:
            for key, sample in _samples(tar_files(path, max_member_bytes), f"{path}"):
                yield f"sample {key!r} of {path}", key, sample

    def keys() -> Iterator[np.ndarray]:
        owners = (_owner(where, key, sample, client) for where, key, sample in samples())
        while part := list(itertools.islice(owners, _MAX_ROWS)):
            yield objects(part)

    def rows() -> Iterator[tuple[str, ClientId, dict[str, Any]]]:
        for where, key, sample in samples():
            features = _decoded(sample, where)
            owner = _owner(where, key, sample, client)
            yield where, owner, {name: value for name, value in features.items() if name != client}

    def read() -> Iterator[Client]:
        for name, examples, _ in grouped(lambda: blocks_of(rows()), keys_fn=keys):
            pictures = {
                key: stacked(column, image_shape, f"{key!r} of client {name!r}")
                for key, column in examples.items()
                if _kind(key) in _IMAGES and column.dtype == object
            }
            yield Client(name, {**examples, **pictures})

    described = "a function" if callable(client) else client
    options = {"client": described, "image_shape": image_shape and list(image_shape)}
    return Source(read, None, provenance("webdataset", found, **options))


def _kind(extension: str) -> str:
    return extension.rpartition(".")[2].lower()


def _samples(members: Iterable[tuple[str, bytes]], where: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Joins the files of a tar that follow one another to samples."""
    key, sample = None, {}
    for name, data in members:
        folder, slash, file = name.rpartition("/")
        stem, _, extension = file.partition(".")
        if not stem or not extension:
            raise ValueError(f"files of a WebDataset are called name.extension; got {name!r} in {where}. Rename it.")
        if key is not None and key != folder + slash + stem:
            yield key, sample
            sample = {}
        key = folder + slash + stem
        if extension in sample:
            raise ValueError(f"a sample has each extension once; got {name!r} twice in {where}. Rename one.")
        sample[extension] = data
    if key is not None:
        yield key, sample


def _owner(where: str, key: str, sample: Mapping[str, bytes], client: Any) -> Any:
    """Returns whose a sample is."""
    if callable(client):
        return client(key, sample)
    # Only what may name the client, since this is done twice.
    features = _decoded({name: data for name, data in sample.items() if name == client or _kind(name) == "json"}, where)
    return owner_of(features, client, where)


def _decoded(sample: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """Decodes the files of a sample, except for images, to arrays, str and bytes by feature."""
    features: dict[str, Any] = {}
    for extension, data in sample.items():
        with reading(f"{extension!r} of {where}", "a file of a sample"):
            decoded = _file(extension, data)
        if features.keys() & decoded.keys():
            raise ValueError(
                f"features need different names; got {sorted(features.keys() & decoded)} twice for {where}."
            )
        features |= decoded
    return features


def _file(extension: str, data: bytes) -> dict[str, Any]:
    match _kind(extension):
        case "json":
            fields = json.loads(data)
            if not isinstance(fields, dict):
                raise ValueError(f"JSON has fields by name here; got {type(fields).__name__}")
            return {name: value_of(name, value) for name, value in fields.items()}
        case "cls":
            return {extension: np.array(int(data), np.int64)}
        case "npy":
            return {extension: np.load(io.BytesIO(data), allow_pickle=False)}
        case "txt":
            return {extension: data.decode()}
    return {extension: data}
