"""Shakespeare, Stack Overflow and Reddit: opens them as stores of tokens, or imports them from the published files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fedjx.core.language.types import ArrayType
from fedjx.data.importers import pfl_hdf5
from fedjx.data.preprocess import Columns, Step, preprocess
from fedjx.data.published.counts import tag_counts, word_counts
from fedjx.data.published.stores import PUBLISHED_EXAMPLES, Container, opened, tff_containers
from fedjx.data.published.text import (
    Convention,
    next_word,
    shakespeare_tokens,
    stack_overflow_domain,
    tag_prediction,
    token_ids,
)
from fedjx.data.source import Source, with_metadata
from fedjx.data.store import Store

_TEXT = ArrayType((), np.dtype(object))
_SPLITS = {"train": "train", "heldout": "heldout", "test": "test"}
_WORDS = "stackoverflow.word_count.tar.bz2"
_TAGS = "stackoverflow.tag_count.tar.bz2"


def shakespeare(
    directory: str | Path,
    *,
    convention: Literal["tff", "fedjax"] = "tff",
    sequence_length: int = 80,
    check_files: bool = True,
    progress: bool = True,
) -> dict[str, Store]:
    """Opens Shakespeare, 715 roles in plays, as characters; see `shakespeare_tokens` and `next_token`.

    Feature: ``tokens`` uint8 ``[n, sequence_length + 1]``. Splits: train, test, both with all roles.

    Args:
      directory: With TFF's `shakespeare.sqlite.lzma`, unpacked or not, its retired HDF5 files or FedJAX's
        databases, at the first call, which makes the stores there.
      convention: How snippets are cut and characters numbered.
      sequence_length: Length of an input.
      check_files: Whether sizes and checksums are compared with the published ones before an import.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split. Counts that are not as published are warnings.

    Raises:
      FileNotFoundError: If neither stores nor files are there; names the file, its checksum and its place.
      ValueError: If a file is not the published one, or is malformed, or an argument is out of range.
    """
    transform = shakespeare_tokens(convention=convention, sequence_length=sequence_length)

    def prepare(source: Source) -> Source:
        counted = with_metadata(source, lambda client: {PUBLISHED_EXAMPLES: len(client.examples["snippets"])})
        return preprocess(counted, transform)

    splits = {"train": "train", "test": "test"}
    containers = tff_containers("shakespeare", splits, {"snippets": _TEXT}, hdf5="shakespeare", fedjax="shakespeare")
    return opened(
        directory,
        f"shakespeare-{convention}-{sequence_length}",
        containers,
        published="shakespeare",
        check_files=check_files,
        progress=progress,
        prepare=prepare,
    )


def stack_overflow(
    directory: str | Path,
    *,
    convention: Convention = "tff",
    vocabulary_size: int = 10_000,
    sequence_length: int = 20,
    check_files: bool = True,
    progress: bool = True,
) -> dict[str, Store]:
    """Opens Stack Overflow, 342,477 users, for predicting the next word; see `next_word` and `next_token`.

    Features: ``tokens`` uint16 ``[n, sequence_length + 1]`` and ``domain_id`` uint8 ``[n]``, 1 for answers.
    Splits: train; heldout, with other users; test, later sentences of users of both.

    Args:
      directory: With TFF's `stackoverflow.sqlite.lzma`, unpacked or not, its retired HDF5 files or FedJAX's
        databases, and with `stackoverflow.word_count.tar.bz2`, at the first call, which makes the stores there.
      convention: How words are numbered.
      vocabulary_size: Number of words that have an id.
      sequence_length: Length of an input.
      check_files: Whether sizes and checksums are compared with the published ones before an import.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split. Counts that are not as published are warnings.

    Raises:
      FileNotFoundError: If neither stores nor files are there; names the file, its checksum and its place.
      ValueError: If a file is not the published one, or is malformed, or an argument is out of range.
    """
    token_ids(vocabulary_size, convention)

    def prepare(source: Source) -> Source:
        words = next_word(
            word_counts(Path(directory) / _WORDS, vocabulary_size),
            convention=convention,
            sequence_length=sequence_length,
        )

        def fn(columns: Columns) -> dict[str, np.ndarray]:
            return {**words(columns), "domain_id": stack_overflow_domain(columns)}

        return preprocess(_without_metadata(source), Step(words.name, fn, words.parameters))

    features = {"tokens": _TEXT, "type": _TEXT}
    return opened(
        directory,
        f"stack_overflow-{convention}-{vocabulary_size}-{sequence_length}",
        tff_containers("stackoverflow", _SPLITS, features, hdf5="stackoverflow", fedjax="stackoverflow"),
        published="stack_overflow",
        check_files=check_files,
        progress=progress,
        prepare=prepare,
        others=[_WORDS],
    )


def stack_overflow_tags(
    directory: str | Path,
    *,
    vocabulary_size: int = 10_000,
    num_tags: int = 500,
    max_words: int = 64,
    check_files: bool = True,
    progress: bool = True,
) -> dict[str, Store]:
    """Opens Stack Overflow, 342,477 users, for predicting tags; see `tag_prediction` and `bag_of_words`.

    Features: ``words`` uint16 ``[n, max_words]``, ``num_words`` uint16 ``[n]``, ``tags`` uint16 ``[n, 5]``. Splits:
    train; heldout, with other users; test, later posts of users of both.

    Args:
      directory: As for `stack_overflow`, and `stackoverflow.tag_count.tar.bz2`.
      vocabulary_size: Number of words that are known.
      num_tags: Number of tags that are predicted.
      max_words: Known words that are kept of a post.
      check_files: Whether sizes and checksums are compared with the published ones before an import.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split. Counts that are not as published are warnings.

    Raises:
      FileNotFoundError: If neither stores nor files are there; names the file, its checksum and its place.
      ValueError: If a file is not the published one, or is malformed, or an argument is out of range.
    """

    def prepare(source: Source) -> Source:
        words = word_counts(Path(directory) / _WORDS, vocabulary_size)
        tags = tag_counts(Path(directory) / _TAGS, num_tags)
        return preprocess(_without_metadata(source), tag_prediction(words, tags, max_words=max_words))

    features = {"tokens": _TEXT, "title": _TEXT, "tags": _TEXT}
    return opened(
        directory,
        f"stack_overflow-tags-{vocabulary_size}-{num_tags}-{max_words}",
        tff_containers("stackoverflow", _SPLITS, features, hdf5="stackoverflow", fedjax="stackoverflow"),
        published="stack_overflow",
        check_files=check_files,
        progress=progress,
        prepare=prepare,
        others=[_WORDS, _TAGS],
    )


def reddit(
    directory: str | Path,
    *,
    splits: tuple[str, ...] = ("train", "val", "test"),
    check_files: bool = True,
    progress: bool = True,
) -> dict[str, Store]:
    """Opens LEAF's Reddit as pfl-research prepares it, for predicting the next word; see `next_token`.

    Features: ``tokens`` uint16 ``[n, 11]``, inputs and targets in one. Metadata: ``num_tokens`` where the file has it.

    Args:
      directory: With `reddit.hdf5` at the first call, which makes the stores there.
      splits: Those that the file has.
      check_files: Whether sizes and checksums are compared with the published ones, where there are some.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split.

    Raises:
      FileNotFoundError: If neither stores nor the file are there; names the file and its place.
      ValueError: If the file is malformed, or its targets are not the inputs one later.
    """

    def prepare(source: Source) -> Source:
        def metadata_fn(client):
            return {name: value for name, value in client.metadata.items() if name != "split"}

        return preprocess(with_metadata(source, metadata_fn), joined_targets())

    container = Container(dict.fromkeys(splits, "reddit.hdf5"), lambda path, split: pfl_hdf5(path, split=split))
    return opened(
        directory,
        "reddit",
        [container],
        published="reddit",
        check_files=check_files,
        progress=progress,
        prepare=prepare,
    )


def joined_targets() -> Step:
    """Makes ``tokens``, uint16 ``[n, length + 1]``, of ``inputs`` and ``targets``, which are views of them.

    Raises:
      ValueError: When applied, if they are not, or a token does not fit in 16 bits.

    >>> columns = {"inputs": np.array([[4, 1, 2]]), "targets": np.array([[1, 2, 5]])}
    >>> joined_targets()(columns)["tokens"]
    array([[4, 1, 2, 5]], dtype=uint16)
    """

    def fn(columns: Columns) -> dict[str, np.ndarray]:
        inputs, targets = columns["inputs"], columns["targets"]
        tokens = np.concatenate([inputs, targets[:, -1:]], axis=1)
        if not np.array_equal(tokens[:, 1:], targets) or (
            tokens.size and not 0 <= tokens.min() <= tokens.max() < 2**16
        ):
            raise ValueError(
                "targets need to be the inputs one later, of at most 65,536 words; got others. Import the file with "
                "pfl_hdf5 and write_store as it is."
            )
        return {"tokens": tokens.astype(np.uint16)}

    return Step("joined_targets", fn)


def _without_metadata(source: Source) -> Source:
    return with_metadata(source, lambda client: {})
