"""Reads the tables that say whose the images of published data sets are."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjx.data.importers.files import PathLike, files, provenance, reading
from fedjx.data.importers.images import ImageRow

_SPLITS = ("user_120k", "geo_100", "geo_300", "geo_1k", "geo_3k", "geo_10k", "geo_30k")


@dataclasses.dataclass(frozen=True)
class ImageRows:
    """Rows for `image_folder`, read from files anew by each loop.

    Attributes:
      read: Begins to read.
      provenance: What is read.
    """

    read: Callable[[], Iterator[ImageRow]]
    provenance: Mapping[str, Any]

    def __iter__(self) -> Iterator[ImageRow]:
        return self.read()


def landmarks_rows(path: PathLike) -> ImageRows:
    """Reads whose the images of Google Landmarks v2 are, out of a `federated_train.csv` or `mini_gld_train_split.csv`.

    The image ``0123abcd....jpg`` is in the folder ``0/1/2``, as in the published archives. The label is ``class``,
    int64.

    Args:
      path: A CSV file with the columns user_id, image_id and class.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If a column is missing, or a row is not as it must be, saying which.
    """
    found = files(path)

    def read() -> Iterator[ImageRow]:
        for line, row in _rows(found[0], ("user_id", "image_id", "class")):
            name = _checked(r"[0-9a-zA-Z_-]{3,64}", row["image_id"], "image_id", found[0], line)
            labels = {"class": _number(row["class"], "class", found[0], line)}
            yield ImageRow(row["user_id"], f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg", labels)

    return ImageRows(read, provenance("landmarks", found))


def inaturalist_rows(path: PathLike, split: str) -> ImageRows:
    """Reads whose the images of iNaturalist 2017 are, out of `iNaturalist_train.csv`.

    Images are found by their names, ``<image_id>.jpg``, wherever they are in the directory. Those that are ``NA`` in
    a split are not in it. The label is ``class``, int64.

    Args:
      path: A CSV file with the columns image_id, class and the split.
      split: user_120k, geo_100, geo_300, geo_1k, geo_3k, geo_10k or geo_30k.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If there is no such split, a column is missing, or a row is not as it must be, saying which.
    """
    if split not in _SPLITS:
        raise ValueError(f"split is one of {', '.join(_SPLITS)}; got {split=}. Choose one.")
    found = files(path)

    def read() -> Iterator[ImageRow]:
        for line, row in _rows(found[0], ("image_id", "class", split)):
            if row[split] == "NA":
                continue
            name = _checked(r"[0-9a-zA-Z_-]+(\.jpg)?", row["image_id"], "image_id", found[0], line)
            labels = {"class": _number(row["class"], "class", found[0], line)}
            yield ImageRow(row[split], f"{name.removesuffix('.jpg')}.jpg", labels)

    described = provenance("inaturalist", found, split=split)
    return ImageRows(read, described)


def celeba_rows(identities: PathLike, attributes: PathLike | None = None) -> ImageRows:
    """Reads whose the images of CelebA are, out of `identity_CelebA.txt`.

    Clients are called by their number, int.

    Args:
      identities: A file of lines such as ``000001.jpg 2880``.
      attributes: Also `list_attr_celeba.txt`: the number of images, the names of the attributes, and a line of +1
        and -1 for each image, in the order of the identities. They become one label, ``attributes``, bool ``[n, 40]``.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If a line is not as it must be or the files name different images, saying where.
    """
    found = files([identities] if attributes is None else [identities, attributes])

    def read() -> Iterator[ImageRow]:
        if attributes is None:
            for name, client in _identities(found[0]):
                yield ImageRow(client, name)
            return
        nothing: Any = ("nothing", np.empty(0, bool))
        for (name, client), (other, values) in itertools.zip_longest(
            _identities(found[0]), _attributes(found[1]), fillvalue=nothing
        ):
            if name != other:
                raise ValueError(
                    f"identities and attributes need the same images in the same order; got {name} in {found[0]} where "
                    f"{found[1]} has {other}. Fetch them again."
                )
            yield ImageRow(client, name, {"attributes": values})

    described = provenance("celeba", found)
    if len(found) > 1:
        described["options"]["attributes"] = _attribute_names(found[1])[1]
    return ImageRows(read, described)


def _identities(path: Path) -> Iterator[tuple[str, Any]]:
    with reading(path, "a file of identities"), open(path, encoding="utf-8") as file:
        for line, text in enumerate(file, 1):
            if not re.fullmatch(r"\w+\.(jpg|png)\s+\d{1,18}\s*", text, re.ASCII):
                raise ValueError(f"line {line} needs an image and a number; got {text[:100]!r}")
            name, client = text.split()
            yield name, int(client)


def _attribute_names(path: Path) -> tuple[int, list[str]]:
    with reading(path, "a file of attributes"), open(path, encoding="utf-8") as file:
        return int(next(file)), next(file).split()


def _attributes(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    num_images, names = _attribute_names(path)
    line = 2
    with reading(path, "a file of attributes"), open(path, encoding="utf-8") as file:
        for line, text in enumerate(itertools.islice(file, 2, None), 3):
            name, *values = text.split() or [""]
            if len(values) != len(names) or not {"1", "-1"} >= {*values}:
                raise ValueError(f"line {line} needs a name and {len(names)} times 1 or -1; got {text[:100]!r}")
            yield name, np.array(values) == "1"
        if line - 2 != num_images:
            raise ValueError(f"it has {line - 2} images and says {num_images}")


def _rows(path: Path, names: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows of a CSV file with the numbers of their lines."""
    with reading(path, "a CSV file"), open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, strict=True)
        missing = [name for name in names if (table.fieldnames or []).count(name) != 1]
        if missing:
            raise ValueError(f"the columns {', '.join(names)} have to be there; it has {table.fieldnames}")
        for row in table:
            if None in row or None in row.values() or not all(row[name] for name in names):
                raise ValueError(f"line {table.line_num} needs a value for each of {table.fieldnames}")
            yield table.line_num, row


def _checked(pattern: str, value: str, name: str, path: Path, line: int) -> str:
    if not re.fullmatch(pattern, value, re.ASCII):
        raise ValueError(f"{name} in line {line} of {path} is malformed; got {value[:100]!r}. Mend it.")
    return value


def _number(value: str, name: str, path: Path, line: int) -> int:
    return int(_checked(r"\d{1,18}", value, name, path, line))
