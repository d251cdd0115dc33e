"""LEAF's data sets, from the JSON files that LEAF's scripts make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedjx.core.language.checks import check_integer
from fedjx.data.importers import leaf
from fedjx.data.preprocess import Columns, Step, preprocess
from fedjx.data.published.images import as_bytes, narrowed
from fedjx.data.published.stores import Container, DataSet, without_metadata
from fedjx.data.published.text import SHAKESPEARE_VOCABULARY, token_ids
from fedjx.data.source import Source


def leaf_femnist() -> DataSet:
    """Returns LEAF's FEMNIST, 62 characters of some 3,500 writers; another selection than TFF's `emnist`.

    Features: ``pixels`` uint8 ``[n, 28, 28]``, the background is 255, and ``label`` uint8 ``[n]``.

    Its files are LEAF's JSON files in `train` and `test`.
    """

    def fn(columns: Columns) -> Columns:
        return narrowed(label="uint8")({**as_bytes("pixels")({"pixels": columns["x"]}), "label": columns["y"]})

    return _data_set("femnist", lambda directory: Step("femnist", fn))


def leaf_shakespeare() -> DataSet:
    """Returns LEAF's Shakespeare, roles in plays, 80 characters and the next one for each example.

    Feature: ``tokens`` uint8 ``[n, 81]``, numbered as by TFF's convention, see `token_ids`; `next_token` makes
    batches of them, whose last target is LEAF's.

    Its files are LEAF's JSON files in `train` and `test`.
    """
    ids = token_ids(len(SHAKESPEARE_VOCABULARY))
    table = np.full(256, ids.oov, np.uint8)
    table[np.frombuffer(SHAKESPEARE_VOCABULARY, np.uint8)] = np.arange(len(SHAKESPEARE_VOCABULARY)) + ids.first

    def fn(columns: Columns) -> Columns:
        text = [(x + y).encode("latin1", "replace") for x, y in zip(columns["x"], columns["y"], strict=True)]
        if set(map(len, text)) - {81}:
            raise ValueError(
                f"examples need 80 characters and one; got {sorted(set(map(len, text)))} in all. Mend them."
            )
        return {"tokens": table[np.frombuffer(b"".join(text), np.uint8).reshape(-1, 81)]}

    return _data_set("shakespeare", lambda directory: Step("characters", fn, {"convention": "tff"}))


def leaf_sent140(*, length: int = 280) -> DataSet:
    """Returns LEAF's Sent140, the mood of tweets of some 660,000 users.

    Features: ``text`` uint8 ``[n, length]``, the bytes of the tweet, cut or padded with zeros, and ``label`` uint8
    ``[n]``, 1 if it is positive.

    Its files are LEAF's JSON files in `train` and `test`.

    Args:
      length: Bytes that are kept of a tweet.
    """
    check_integer("[1, inf)", length=length)

    def fn(columns: Columns) -> Columns:
        # The text is the last of id, date, query, user and text.
        text = np.zeros((len(columns["x"]), length), np.uint8)
        for row, tweet in zip(text, columns["x"][:, -1], strict=True):
            letters = np.frombuffer(tweet.encode()[:length], np.uint8)
            row[: len(letters)] = letters
        mood = np.array([int(label) for label in columns["y"]])
        if not set(mood.tolist()) <= {0, 1, 4}:
            raise ValueError(f"a mood needs to be 0, or 1 or 4; got {sorted(set(mood.tolist()))}. Mend it.")
        return {"text": text, "label": (mood > 0).astype(np.uint8)}

    return _data_set("sent140", lambda directory: Step("bytes", fn, {"length": length}), f"-{length}")


def leaf_celeba(*, images: str | Path | None = None) -> DataSet:
    """Returns LEAF's CelebA, portraits of 9,343 celebrities, who smile or do not.

    Features: ``image`` uint8 ``[n, 84, 84, 3]`` and ``label`` uint8 ``[n]``.

    Its files are LEAF's JSON files in `train` and `test`.

    Args:
      images: Where the images are; by default `raw/img_align_celeba` in the directory.
    """
    from fedjx.data.importers.pictures import decoded

    def step(directory: Path) -> Step:
        folder = directory / "raw" / "img_align_celeba" if images is None else Path(images)

        def fn(columns: Columns) -> Columns:
            pictures = []
            for name in columns["x"]:
                if Path(name).name != name:
                    raise ValueError(f"images need plain file names; got {name[:50]!r}. Mend them.")
                pictures.append(decoded((folder / name).read_bytes(), (84, 84, 3), str(folder / name)))
            return narrowed(label="uint8")({"image": np.stack(pictures), "label": columns["y"]})

        return Step("decoded", fn, {"image_shape": [84, 84, 3]})

    return _data_set("celeba", step)


def _data_set(name: str, step: Callable[[Path], Step], suffix: str = "") -> DataSet:
    def prepare(source: Source, directory: Path) -> Source:
        return preprocess(without_metadata(source), step(directory))

    # LEAF names and counts the files of a split by its arguments.
    files = {split: f"{split}/*.json" for split in ("train", "test")}
    container = Container(files, lambda path, split: leaf(path.parent))
    return DataSet(f"leaf_{name}", f"leaf_{name}{suffix}", [container], prepare)
