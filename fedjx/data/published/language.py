"""Shakespeare, Stack Overflow and Reddit, as tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fedjx.core.language.types import ArrayType
from fedjx.data.importers import pfl_hdf5
from fedjx.data.preprocess import Columns, Step, preprocess
from fedjx.data.published.counts import tag_counts, word_counts
from fedjx.data.published.stores import PUBLISHED_EXAMPLES, Container, DataSet, tff_containers, without_metadata
from fedjx.data.published.text import (
    Convention,
    next_word,
    shakespeare_tokens,
    stack_overflow_domain,
    tag_prediction,
    token_ids,
)
from fedjx.data.source import Source, with_metadata

_TEXT = ArrayType((), np.dtype(object))
_SPLITS = {"train": "train", "heldout": "heldout", "test": "test"}
_WORDS = "stackoverflow.word_count.tar.bz2"
_TAGS = "stackoverflow.tag_count.tar.bz2"


def shakespeare(
    *,
    convention: Literal["tff", "fedjax"] = "tff",
    sequence_length: int = 80,
) -> DataSet:
    """Returns Shakespeare, 715 roles in plays, as characters; see `shakespeare_tokens` and `next_token`.

    Feature: ``tokens`` uint8 ``[n, sequence_length + 1]``. Splits: train, test, both with all roles.

    Its files are TFF's `shakespeare.sqlite.lzma`, unpacked or not, its retired HDF5 files or FedJAX's databases.

    Args:
      convention: How snippets are cut and characters numbered.
      sequence_length: Length of an input.
    """
    transform = shakespeare_tokens(convention=convention, sequence_length=sequence_length)

    def prepare(source: Source, directory: Path) -> Source:
        counted = with_metadata(source, lambda client: {PUBLISHED_EXAMPLES: len(client.examples["snippets"])})
        return preprocess(counted, transform)

    splits = {"train": "train", "test": "test"}
    containers = tff_containers("shakespeare", splits, {"snippets": _TEXT}, hdf5="shakespeare", fedjax="shakespeare")
    return DataSet(
        "shakespeare",
        f"shakespeare-{convention}-{sequence_length}",
        containers,
        prepare=prepare,
    )


def stack_overflow(
    *,
    convention: Convention = "tff",
    vocabulary_size: int = 10_000,
    sequence_length: int = 20,
) -> DataSet:
    """Returns Stack Overflow, 342,477 users, for predicting the next word; see `next_word` and `next_token`.

    Features: ``tokens`` uint16 ``[n, sequence_length + 1]`` and ``domain_id`` uint8 ``[n]``, 1 for answers.
    Splits: train; heldout, with other users; test, later sentences of users of both.

    Its files are TFF's `stackoverflow.sqlite.lzma`, unpacked or not, its retired HDF5 files or FedJAX's
    databases, and `stackoverflow.word_count.tar.bz2`.

    Args:
      convention: How words are numbered.
      vocabulary_size: Number of words that have an id.
      sequence_length: Length of an input.
    """
    token_ids(vocabulary_size, convention)

    def prepare(source: Source, directory: Path) -> Source:
        words = next_word(
            word_counts(directory / _WORDS, vocabulary_size),
            convention=convention,
            sequence_length=sequence_length,
        )

        def fn(columns: Columns) -> dict[str, np.ndarray]:
            return {**words(columns), "domain_id": stack_overflow_domain(columns)}

        return preprocess(without_metadata(source), Step(words.name, fn, words.parameters))

    features = {"tokens": _TEXT, "type": _TEXT}
    return DataSet(
        "stack_overflow",
        f"stack_overflow-{convention}-{vocabulary_size}-{sequence_length}",
        tff_containers("stackoverflow", _SPLITS, features, hdf5="stackoverflow", fedjax="stackoverflow"),
        prepare=prepare,
        others=[_WORDS],
    )


def stack_overflow_tags(
    *,
    vocabulary_size: int = 10_000,
    num_tags: int = 500,
    max_words: int = 64,
) -> DataSet:
    """Returns Stack Overflow, 342,477 users, for predicting tags; see `tag_prediction` and `bag_of_words`.

    Features: ``words`` uint16 ``[n, max_words]``, ``num_words`` uint16 ``[n]``, ``tags`` uint16 ``[n, 5]``. Splits:
    train; heldout, with other users; test, later posts of users of both.

    Its files are those of `stack_overflow`, and `stackoverflow.tag_count.tar.bz2`.

    Args:
      vocabulary_size: Number of words that are known.
      num_tags: Number of tags that are predicted.
      max_words: Known words that are kept of a post.
    """

    def prepare(source: Source, directory: Path) -> Source:
        words = word_counts(directory / _WORDS, vocabulary_size)
        tags = tag_counts(directory / _TAGS, num_tags)
        return preprocess(without_metadata(source), tag_prediction(words, tags, max_words=max_words))

    features = {"tokens": _TEXT, "title": _TEXT, "tags": _TEXT}
    return DataSet(
        "stack_overflow",
        f"stack_overflow-tags-{vocabulary_size}-{num_tags}-{max_words}",
        tff_containers("stackoverflow", _SPLITS, features, hdf5="stackoverflow", fedjax="stackoverflow"),
        prepare=prepare,
        others=[_WORDS, _TAGS],
    )


def reddit(
    *,
    splits: tuple[str, ...] = ("train", "val", "test"),
) -> DataSet:
    """Returns LEAF's Reddit as pfl-research prepares it, for predicting the next word; see `next_token`.

    Features: ``tokens`` uint16 ``[n, 11]``, inputs and targets in one. Metadata: ``num_tokens`` where the file has it.

    Its file is `reddit.hdf5`.

    Args:
      splits: Those that the file has.
    """

    def prepare(source: Source, directory: Path) -> Source:
        def metadata_fn(client):
            return {name: value for name, value in client.metadata.items() if name != "split"}

        return preprocess(with_metadata(source, metadata_fn), joined_targets())

    container = Container(dict.fromkeys(splits, "reddit.hdf5"), lambda path, split: pfl_hdf5(path, split=split))
    return DataSet("reddit", "reddit", [container], prepare)


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
