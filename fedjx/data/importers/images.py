"""Imports folders of images whose clients are told by a table."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjx.core.language.checks import check_choice
from fedjx.data.client_ids import ClientId
from fedjx.data.importers.examples import objects
from fedjx.data.importers.files import PathLike
from fedjx.data.importers.grouping import Block, grouped
from fedjx.data.importers.pictures import check_image_shape, decoded, of_one_shape
from fedjx.data.source import Client, Source

_BLOCK = 4096


class ImageRow(NamedTuple):
    """One image of a client.

    Attributes:
      client: Whose it is.
      path: Where it is in the directory, with ``/``; or a file name alone, of a file anywhere in it.
      labels: Features by name, beside ``image``.
    """

    client: ClientId
    path: str
    labels: Mapping[str, Any] = {}


def image_folder(
    directory: PathLike,
    rows: Iterable[ImageRow],
    *,
    image_shape: tuple[int, int, int] | None = None,
    missing: Literal["error", "drop"] = "error",
    min_images: int = 1,
    image: str = "image",
) -> Source:
    """Reads the images of a directory, and decodes them to one shape.

    An image is scaled until it covers height and width and its centre is cut out, bilinearly, by Pillow: other
    decoders give slightly other pixels.

    Args:
      directory: Where the images are.
      rows: Whose each image is: a list, or what `landmarks_rows`, `inaturalist_rows` and `celeba_rows` return; it is
        gone through twice. All rows have labels of the same names and types.
      image_shape: Height, width and channels: 3, or 1 for grey. By default that of the images, which then need to have
        one; grey images have one channel, all others are RGB.
      missing: What to do where an image is missing or corrupt: refuse, or leave it out and warn with the number.
      min_images: Clients with fewer images are left out, as is the custom for CelebA.
      image: Name of the feature, uint8 ``[n, height, width, channels]``.

    Returns:
      The clients in increasing order of their ids; the images of each keep the order of the rows.

    Raises:
      FileNotFoundError: If there is no such directory, or an image is missing.
      ValueError: If an image is corrupt, a path leads out of the directory, or a file name is there twice.
      TypeError: If the rows are an iterator, which cannot be gone through again.
      ImportError: If Pillow is not installed.
    """
    check_image_shape(image_shape)
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"images need a directory; got {directory}. Unpack them there.")
    if iter(rows) is rows:
        raise TypeError(f"rows need to be gone through twice; got {type(rows).__name__}. Make them a list.")
    check_choice(("error", "drop"), missing=missing)

    def read() -> Iterator[Client]:
        folder, dropped = _Folder(directory), 0
        for client in grouped(lambda: _blocks(rows, image)):
            examples = dict(client.examples)
            pictures, kept = [], []
            for k, name in enumerate(examples.pop(image).tolist()):
                path = folder.find(name)
                try:
                    pictures.append(decoded(path.read_bytes(), image_shape, str(path)))
                    kept.append(k)
                except (OSError, ValueError):
                    if missing == "error":
                        _check_there(path)
                        raise
                    dropped += 1
            if len(kept) >= max(min_images, 1):
                labels = {name: column[kept] for name, column in examples.items()}
                yield Client(client.id, {image: of_one_shape(pictures, f"client {client.id!r}"), **labels})
        if dropped:
            warnings.warn(f"{dropped} images that are missing or corrupt in {directory} are left out", stacklevel=2)

    options = {"image_shape": image_shape and list(image_shape), "missing": missing, "min_images": min_images}
    return Source(
        read, None, {"importer": "image_folder", "files": {}, "options": options, **getattr(rows, "provenance", {})}
    )


class _Folder:
    """Reads files by a path below a directory, or by a name that is there once."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._paths: dict[str, str] | None = None
        self._counts: Counter[str] = Counter()

    def find(self, path: str) -> Path:
        """Returns where an image is to be; raises ValueError where that is not in the directory."""
        parts = path.split("/")
        if not path.isprintable() or "\\" in path or os.path.isabs(path) or {"", ".", ".."} & {*parts}:
            raise ValueError(f"a path of an image stays in its directory; got {path!r}. Mend the row.")
        found = self.directory / path
        if len(parts) == 1 and not found.is_file():
            found = self._searched(path)
        if self.directory.resolve() not in found.resolve().parents:
            raise ValueError(f"a path of an image stays in its directory; {found} is a link out of it. Copy the file.")
        return found

    def _searched(self, name: str) -> Path:
        if self._paths is None:
            walk = list(os.walk(self.directory))
            self._paths = {file: os.path.join(folder, file) for folder, _, names in walk for file in names}
            self._counts = Counter(itertools.chain.from_iterable(names for _, _, names in walk))
        if self._counts[name] > 1:
            raise ValueError(
                f"a file name needs to be there once; {name!r} is {self._counts[name]} times in {self.directory}. "
                "Give paths."
            )
        return Path(self._paths.get(name, self.directory / name))


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"every row needs its image; {path} is missing. Fetch it, or pass missing='drop'.")


def _blocks(rows: Iterable[ImageRow], image: str) -> Iterator[Block]:
    """Gathers rows into blocks, with the paths as a feature."""
    names = None
    for part in _batched(rows):
        names = names or list(part[0].labels)
        if any(list(row.labels) != names for row in part) or image in names:
            raise ValueError(f"all rows need the same labels, and none called {image!r}; got {names}. Rename them.")
        if not all(isinstance(row.path, str) for row in part):
            raise ValueError(f"a path of an image is a str; got {part[0].path!r} among others. Convert it.")
        columns = {name: np.array([row.labels[name] for row in part]) for name in names}
        yield objects([row.client for row in part]), {image: objects([row.path for row in part]), **columns}


def _batched(rows: Iterable[ImageRow]) -> Iterator[list[ImageRow]]:
    iterator = itertools.starmap(ImageRow, rows)
    while part := list(itertools.islice(iterator, _BLOCK)):
        yield part
