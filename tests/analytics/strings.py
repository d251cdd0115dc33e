"""Clients with strings for the tests of what is frequent: the words of Python's standard library, and made-up ones."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from fedjx.analytics import to_bytes
from fedjx.data import FederatedData
from fedjx.data.python_source import python_modules

NUM_BYTES = 8


def clients(words: Iterable[Sequence[str]], num_bytes: int = NUM_BYTES) -> FederatedData:
    """Returns clients with such words."""
    return FederatedData.from_clients([{"word": to_bytes(of_client, num_bytes)} for of_client in words])


@functools.cache
def python_words(words_each: int | None = None) -> tuple[FederatedData, Counter[str]]:
    """Returns the first 256 different words of each module, or those of each so many words in a row, and their counts.

    Clients with less than a quarter of the most words are left out, so that there are few shapes.
    """
    each, most = [], words_each or 256
    for text in python_modules().values():
        words = [word[:NUM_BYTES] for word in re.findall(r"[A-Za-z_]+", text.decode(errors="replace"))]
        parts = [words[start : start + most] for start in range(0, len(words), most)] if words_each else [words]
        each += [list(dict.fromkeys(part))[:most] for part in parts]
    each = [words for words in each if len(words) > most // 4]
    return clients(each), Counter(word for words in each for word in words)


def zipf_words(num_clients: int, seed: int = 0) -> tuple[FederatedData, Counter[str]]:
    """Returns clients with one to four of 300 words, of very different frequency, and how many records have each."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"w{k * 37 % 301}x{k % 7}" for k in range(300)])
    shares = 1 / np.arange(1, 301) ** 1.2
    each = [
        vocabulary[rng.choice(300, size=n, p=shares / shares.sum())].tolist() for n in rng.integers(1, 5, num_clients)
    ]
    return clients(each), Counter(word for words in each for word in words)


def random_words(num_clients: int, seed: int = 0) -> FederatedData:
    """Returns clients with a word each that nobody else has, all but surely: a control."""
    letters = np.random.default_rng(seed).integers(97, 123, (num_clients, NUM_BYTES))
    return clients([[bytes(row.tolist()).decode()] for row in letters])


def most_common(counts: Counter[str], least: float) -> dict[str, float]:
    """Returns what is at least so frequent, the most frequent first, in the order of bytes if equally so."""
    kept = {word: float(count) for word, count in counts.items() if count >= least}
    return dict(sorted(kept.items(), key=lambda item: (-item[1], item[0])))


def precision_and_recall(found: Collection[str], true: Collection[str]) -> tuple[float, float]:
    """Returns the share of what was found that is true, and of what is true that was found."""
    both = len(set(found) & set(true))
    return both / max(len(found), 1), both / len(true)
