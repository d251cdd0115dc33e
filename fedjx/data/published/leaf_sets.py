"""LEAF's data sets: opens them as stores, or imports them from the JSON files that LEAF's scripts make."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedjx.core.language.checks import check_integer
from fedjx.data.importers import leaf
from fedjx.data.preprocess import Columns, Step, preprocess
from fedjx.data.published.images import as_bytes, narrowed
from fedjx.data.published.stores import Container, opened
from fedjx.data.published.text import SHAKESPEARE_VOCABULARY, token_ids
from fedjx.data.source import Source, with_metadata
from fedjx.data.store import Store

SPLITS = ("train", "test")


def leaf_femnist(directory: str | Path, *, progress: bool = True) -> dict[str, Store]:
    """Opens LEAF's FEMNIST, 62 characters of some 3,500 writers; another selection than TFF's `emnist`.

    Features: ``pixels`` uint8 ``[n, 28, 28]``, the background is 255, and ``label`` uint8 ``[n]``.

    Args:
      directory: With LEAF's JSON files in `train` and `test` at the first call, which makes the stores there.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split, train and test, of which LEAF's scripts decide what is in them.

    Raises:
      FileNotFoundError: If neither stores nor files are there.
      ValueError: If a file is malformed, or pixels are not bytes / 255.
    """

    def fn(columns: Columns) -> Columns:
        return narrowed(label="uint8")({**as_bytes("pixels")({"pixels": columns["x"]}), "label": columns["y"]})

    return _opened(directory, "femnist", Step("femnist", fn), progress)


def leaf_shakespeare(directory: str | Path, *, progress: bool = True) -> dict[str, Store]:
    """Opens LEAF's Shakespeare, roles in plays, 80 characters and the next one for each example.

    Feature: ``tokens`` uint8 ``[n, 81]``, numbered as by TFF's convention, see `token_ids`; `next_token` makes
    batches of them, whose last target is LEAF's.

    Args:
      directory: With LEAF's JSON files in `train` and `test` at the first call, which makes the stores there.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split, train and test, of which LEAF's scripts decide what is in them.

    Raises:
      FileNotFoundError: If neither stores nor files are there.
      ValueError: If a file is malformed, or an example has not 80 characters and one.
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

    return _opened(directory, "shakespeare", Step("characters", fn, {"convention": "tff"}), progress)


def leaf_sent140(directory: str | Path, *, length: int = 280, progress: bool = True) -> dict[str, Store]:
    """Opens LEAF's Sent140, the mood of tweets of some 660,000 users.

    Features: ``text`` uint8 ``[n, length]``, the bytes of the tweet, cut or padded with zeros, and ``label`` uint8
    ``[n]``, 1 if it is positive.

    Args:
      directory: With LEAF's JSON files in `train` and `test` at the first call, which makes the stores there.
      length: Bytes that are kept of a tweet.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split, train and test, of which LEAF's scripts decide what is in them.

    Raises:
      FileNotFoundError: If neither stores nor files are there.
      ValueError: If a file is malformed, or a label is another.
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

    return _opened(directory, "sent140", Step("bytes", fn, {"length": length}), progress, f"-{length}")


def leaf_celeba(directory: str | Path, *, images: str | Path | None = None, progress: bool = True) -> dict[str, Store]:
    """Opens LEAF's CelebA, portraits of 9,343 celebrities, who smile or do not.

    Features: ``image`` uint8 ``[n, 84, 84, 3]`` and ``label`` uint8 ``[n]``.

    Args:
      directory: With LEAF's JSON files in `train` and `test` at the first call, which makes the stores there.
      images: Where the images are; by default `raw/img_align_celeba` in the directory.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split, train and test, of which LEAF's scripts decide what is in them.

    Raises:
      FileNotFoundError: If neither stores nor files are there, or an image is missing.
      ValueError: If a file is malformed, or an image is corrupt.
      ImportError: If Pillow is not installed.
    """
    from fedjx.data.importers.pictures import decoded

    folder = Path(directory) / "raw" / "img_align_celeba" if images is None else Path(images)

    def fn(columns: Columns) -> Columns:
        pictures = []
        for name in columns["x"]:
            if Path(name).name != name:
                raise ValueError(f"images need plain file names; got {name[:50]!r}. Mend them.")
            pictures.append(decoded((folder / name).read_bytes(), (84, 84, 3), str(folder / name)))
        return narrowed(label="uint8")({"image": np.stack(pictures), "label": columns["y"]})

    return _opened(directory, "celeba", Step("decoded", fn, {"image_shape": [84, 84, 3]}), progress)


def _opened(directory: str | Path, name: str, transform: Step, progress: bool, suffix: str = "") -> dict[str, Store]:
    directory = Path(directory)

    def read(path: Path, split: str) -> Source:
        del split
        return preprocess(with_metadata(leaf(path.parent), lambda client: {}), transform)

    # One file of each split stands for all: LEAF names and counts them by its arguments.
    files = {split: f"{split}/{_first(directory / split)}" for split in SPLITS}
    return opened(
        directory,
        f"leaf_{name}{suffix}",
        [Container(files, read)],
        published=f"leaf_{name}",
        check_files=False,
        progress=progress,
    )


def _first(directory: Path) -> str:
    return min((path.name for path in directory.glob("*.json")), default="*.json")
