"""Synthetic twins in the form of the published files, for tests and demonstrations of what reads these."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fedjx.core.language.checks import check_choice
from fedjx.data.preprocess import Columns, Step, preprocess
from fedjx.data.published.synthetic import keys
from fedjx.data.published.text import SHAKESPEARE_VOCABULARY, token_ids
from fedjx.data.published.twins import twin_source
from fedjx.data.published.vision import CELEBA_ATTRIBUTES
from fedjx.data.source import Source, with_metadata


def raw_twin_source(
    name: str, split: str, *, seed: int = 0, num_clients: int | None = None, mean_examples: float | None = None
) -> Source:
    """Makes the clients of a synthetic twin with the features of TFF's published file, before any preprocessing.

    Exporters write them into the published containers; the loader of that name then makes of these the very examples
    of `synthetic_twin`.

    Args:
      name: emnist, emnist_digits, cifar100, celeba_by_client, celeba_by_example, shakespeare or stack_overflow.
      split: One of its splits.
      seed: As for `synthetic_twin`.
      num_clients: As for `synthetic_twin`.
      mean_examples: As for `synthetic_twin`.

    Returns:
      Clients without metadata.

    Raises:
      ValueError: If there is no such data set or split, or a number is out of range.

    >>> source = raw_twin_source("stack_overflow", "train", num_clients=2, mean_examples=3)
    >>> sorted(next(source.clients()).examples)
    ['creation_date', 'score', 'tags', 'title', 'tokens', 'type']
    """
    check_choice(sorted(_RAW), name=name)
    source = twin_source(name, split, seed=seed, num_clients=num_clients, mean_examples=mean_examples)
    return with_metadata(preprocess(source, Step("raw", _RAW[name])), lambda client: {})


def twin_vocabulary(num_words: int = 10_000) -> list[bytes]:
    """Returns the words of Stack Overflow's raw twin by rank.

    >>> twin_vocabulary(2)
    [b'word00000', b'word00001']
    """
    return [b"word%05d" % rank for rank in range(num_words)]


def _grey(columns: Columns) -> dict[str, np.ndarray]:
    return {**columns, "pixels": columns["pixels"].astype(np.float32) / np.float32(255)}


def _integers(columns: Columns) -> dict[str, np.ndarray]:
    return {name: column.astype(np.int64) for name, column in columns.items()}


def _portraits(columns: Columns) -> dict[str, np.ndarray]:
    parts = dict(zip(CELEBA_ATTRIBUTES, columns["attributes"].T.astype(np.int64), strict=True))
    return {"image": columns["image"].astype(np.int64), **parts}


def _snippets(columns: Columns) -> dict[str, np.ndarray]:
    ids = token_ids(len(SHAKESPEARE_VOCABULARY))
    texts = [
        bytes(SHAKESPEARE_VOCABULARY[token - ids.first] for token in row if 0 < token < ids.oov)
        for row in columns["tokens"].tolist()
    ]
    return {"snippets": _objects(texts)}


def _posts(columns: Columns) -> dict[str, np.ndarray]:
    words = dict(enumerate([b"", *twin_vocabulary(), b"unheard-of"]))
    draws = keys(np.arange(len(columns["tokens"])), 6) % np.uint64(100)
    texts = [b" ".join(words[token] for token in row if token in words and token) for row in columns["tokens"].tolist()]
    return {
        "tokens": _objects(texts),
        "title": _objects([b" ".join(text.split(b" ")[:4]) for text in texts]),
        "type": _objects([b"answer" if is_answer else b"question" for is_answer in columns["domain_id"]]),
        "tags": _objects([b"tag%03d|python" % draw for draw in draws]),
        "creation_date": _objects([b"2017-01-%02d 12:00:00 UTC" % (1 + draw % 28) for draw in draws.tolist()]),
        "score": draws.astype(np.int64) - 20,
    }


def _objects(values: list[bytes]) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column


_RAW: Mapping[str, Callable[[Columns], dict[str, np.ndarray]]] = {
    "emnist": _grey,
    "emnist_digits": _grey,
    "cifar100": _integers,
    "celeba_by_client": _portraits,
    "celeba_by_example": _portraits,
    "shakespeare": _snippets,
    "stack_overflow": _posts,
}
