"""Landmarks, iNaturalist and FLAIR, as images of one shape."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedjx.core.language.checks import check_choice
from fedjx.data.importers import ImageRow, image_folder, inaturalist_rows, landmarks_rows
from fedjx.data.preprocess import Step, preprocess
from fedjx.data.published.images import narrowed
from fedjx.data.published.stores import CENTRAL, CENTRAL_ID, Container, DataSet, without_metadata
from fedjx.data.source import Source

Shape = tuple[int, int, int]
Missing = Literal["error", "drop"]


@dataclasses.dataclass(frozen=True)
class CentralRows:
    """The rows of a central test set, a CSV file with the columns image_id and class, for `image_folder`.

    Attributes:
      path: The file.
      has_folders: Whether the image ``0123abcd`` is in the folder ``0/1/2``.
    """

    path: Path
    has_folders: bool

    def __iter__(self) -> Iterator[ImageRow]:
        """Reads the file; each loop begins anew."""
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            for number, row in enumerate(table):
                name, label = row.get("image_id") or "", row.get("class") or ""
                if not re.fullmatch(r"[0-9a-zA-Z_-]{3,64}(\.jpg)?", name, re.ASCII) or not re.fullmatch(
                    r"\d{1,9}", label
                ):
                    raise ValueError(
                        f"{self.path} needs an image_id and a class in each line; got {str(row)[:100]} in line "
                        f"{table.line_num}. Fetch it again."
                    )
                name = f"{name.removesuffix('.jpg')}.jpg"
                path = f"{name[0]}/{name[1]}/{name[2]}/{name}" if self.has_folders else name
                yield ImageRow(CENTRAL_ID % (number // CENTRAL), path, {"class": int(label)})


def landmarks(
    *,
    version: Literal["gld23k", "gld160k"] = "gld23k",
    image_shape: Shape = (128, 128, 3),
    missing: Missing = "error",
) -> DataSet:
    """Returns Google Landmarks v2, of 233 photographers (203 landmarks) or of 1,262 (2,028).

    Features: ``image`` uint8 ``[n, *image_shape]`` and ``label`` uint16 ``[n]``. Splits: train; test, the central test
    set in parts of 1,000. `photographs` makes batches of them; its random crops need a larger `image_shape` than
    the crop.

    Its files are the images in `images`, as the archives `images_000.tar` to `images_499.tar` unpack, and
    `mini_gld_train_split.csv` and `mini_gld_test.csv`, or `federated_train.csv` and `test.csv`.

    Args:
      version: Which photographers.
      image_shape: To which images are scaled and cropped.
      missing: What to do where an image is missing or corrupt: refuse, or leave it out and warn.
    """
    tables = {
        "gld23k": {"train": "mini_gld_train_split.csv", "test": "mini_gld_test.csv"},
        "gld160k": {"train": "federated_train.csv", "test": "test.csv"},
    }
    check_choice(tables, version=version)

    def read(path: Path, split: str) -> Source:
        rows = landmarks_rows(path) if split == "train" else CentralRows(path, has_folders=True)
        return _labelled(path.parent / "images", rows, image_shape, missing)

    name = f"landmarks_{version}"
    return DataSet(
        name,
        f"{name}-{_joined(image_shape)}",
        [Container(tables[version], read)],
    )


def inaturalist(
    *,
    split: str = "user_120k",
    image_shape: Shape = (128, 128, 3),
    missing: Missing = "error",
) -> DataSet:
    """Returns iNaturalist 2017, photographs of 1,203 species by users or by places.

    Features: ``image`` uint8 ``[n, *image_shape]`` and ``label`` uint16 ``[n]``. Splits: train; test, the central test
    set in parts of 1,000. `photographs` makes batches of them.

    Its files are the images, as `train_val_images.tar.gz` and `test2017.tar.gz` unpack, anywhere in `images`, and
    `iNaturalist_train.csv` and `iNaturalist_test.csv`.

    Args:
      split: What a client is, a column of the table: ``user_120k``, or ``geo_`` and 100, 300, 1k, 3k, 10k or 30k.
      image_shape: To which images are scaled and cropped.
      missing: What to do where an image is missing or corrupt: refuse, or leave it out and warn.
    """

    def read(path: Path, part: str) -> Source:
        rows = inaturalist_rows(path, split) if part == "train" else CentralRows(path, has_folders=False)
        return _labelled(path.parent / "images", rows, image_shape, missing)

    name = f"inaturalist_{split}"
    return DataSet(
        name,
        f"{name}-{_joined(image_shape)}",
        [Container({"train": "iNaturalist_train.csv", "test": "iNaturalist_test.csv"}, read)],
    )


def flair(
    *,
    image_shape: Shape = (256, 256, 3),
    missing: Missing = "error",
) -> DataSet:
    """Returns FLAIR, photographs of 41,131 users and more with several labels each.

    Features: ``image`` uint8 ``[n, *image_shape]``; ``labels`` bool ``[n, 17]``; ``fine_labels`` uint16 ``[n, m]``,
    the numbers of the fine labels in increasing order, padded with the number of all fine labels. Labels are numbered
    in alphabetical order over all metadata, and listed in the provenance. Splits of different users: train, val, test.

    Its files are `labels_and_metadata.json`, and the images, as the archives `small_images-00.tar.gz` to `-42`
    unpack, anywhere in `small_images`.

    Args:
      image_shape: To which images are scaled and cropped.
      missing: What to do where an image is missing or corrupt: refuse, or leave it out and warn.
    """

    def read(path: Path, split: str) -> Source:
        entries = _entries(path)
        labels, fine = (sorted({name for entry in entries for name in entry[key]}) for key in _LABELS)
        rows = FlairRows([entry for entry in entries if entry["partition"] == split], labels, fine)
        source = image_folder(path.parent / "small_images", rows, image_shape=image_shape, missing=missing)
        names = {"labels": labels, "fine_labels": fine}
        return without_metadata(source._replace(provenance={**source.provenance, **names}))

    return DataSet(
        "flair",
        f"flair-{_joined(image_shape)}",
        [Container(dict.fromkeys(("train", "val", "test"), "labels_and_metadata.json"), read)],
    )


_LABELS = ("labels", "fine_grained_labels")


@dataclasses.dataclass(frozen=True)
class FlairRows:
    """The rows of FLAIR for `image_folder`.

    Attributes:
      entries: Of a split.
      labels: All labels, sorted.
      fine: All fine labels, sorted.
    """

    entries: Sequence[Mapping[str, Any]]
    labels: Sequence[str]
    fine: Sequence[str]

    def __iter__(self) -> Iterator[ImageRow]:
        """Goes through the entries; each loop begins anew."""
        numbers, fine = ({name: k for k, name in enumerate(names)} for names in (self.labels, self.fine))
        width = max((len(set(entry["fine_grained_labels"])) for entry in self.entries), default=0)
        for entry in self.entries:
            has = np.zeros(len(numbers), bool)
            has[[numbers[name] for name in entry["labels"]]] = True
            chosen = sorted({fine[name] for name in entry["fine_grained_labels"]})
            padded = np.array(chosen + [len(fine)] * (width - len(chosen)), np.uint16)
            yield ImageRow(entry["user_id"], f"{entry['image_id']}.jpg", {"labels": has, "fine_labels": padded})


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} needs to be JSON; it is not ({error}). Fetch it again.") from error
    fields = {"user_id": str, "image_id": str, "partition": str, "labels": list, "fine_grained_labels": list}
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in fields.items()):
            raise ValueError(
                f"{path} needs a list of entries with {[*fields]}; got {str(entry)[:100]}. Fetch it again."
            )
        if not re.fullmatch(r"[0-9a-zA-Z_-]{1,64}", entry["image_id"], re.ASCII):
            raise ValueError(f"{path} needs plain image ids; got {entry['image_id'][:50]!r}. Fetch it again.")
        if not all(isinstance(name, str) for key in _LABELS for name in entry[key]):
            raise ValueError(f"{path} needs labels that are text; got {str(entry)[:100]}. Fetch it again.")
    return entries


def _labelled(directory: Path, rows: Any, image_shape: Shape, missing: Missing) -> Source:
    source = image_folder(directory, rows, image_shape=image_shape, missing=missing)
    renamed = Step("renamed", lambda columns: {"image": columns["image"], "label": columns["class"]})
    return preprocess(without_metadata(source), renamed, narrowed(label="uint16"))


def _joined(shape: Shape) -> str:
    return "x".join(map(str, shape))
