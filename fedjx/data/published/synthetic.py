"""Made-up clients: their sizes and examples as pure functions of a seed, many clients at once.

Everything is a hash of (seed, client, example, position), so that neither the other clients nor how many
are made at once have an influence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Block(NamedTuple):
    """Some clients whose examples are made at once.

    Attributes:
      clients: A key for each client, uint64 ``[C]``.
      owner: Whose each example is, int64 ``[n]``.
      examples: A key for each example, uint64 ``[n]``.
    """

    clients: np.ndarray
    owner: np.ndarray
    examples: np.ndarray


Content = Callable[[Block], dict[str, np.ndarray]]
Spread = Callable[[np.ndarray], np.ndarray]


def keys(*words: np.ndarray | int) -> np.ndarray:
    """Hashes integers, or arrays of them, one after the other to uint64; the order counts."""
    result = np.zeros(1, np.uint64)
    for word in words:
        result = _mixed((result ^ np.asarray(word).astype(np.uint64)) + _GOLDEN)
    return result


def uniform(key: np.ndarray, stream: int) -> np.ndarray:
    """Draws numbers in (0, 1), float64, one for each key and stream."""
    return ((keys(key, stream) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(key: np.ndarray, stream: int) -> np.ndarray:
    """Draws standard normal numbers, float64, by Box and Muller."""
    radius = np.sqrt(-2 * np.log(uniform(key, stream)))
    return radius * np.cos(2 * np.pi * uniform(keys(key, stream), 1))


def random_bytes(key: np.ndarray, num_bytes: int) -> np.ndarray:
    """Draws bytes, uint8 ``[n, num_bytes]``, for keys ``[n]``."""
    words = np.arange(-(-num_bytes // 8), dtype=np.uint64) * _GOLDEN
    return _mixed(key[:, None] + words).view(np.uint8)[:, :num_bytes]


# Sizes of clients, relative to their mean.


def same(key: np.ndarray) -> np.ndarray:
    """All clients have as many."""
    return np.ones(len(key))


def log_normal(sigma: float) -> Spread:
    """A few clients have many: a log-normal law with mean 1 and this deviation of the logarithm."""
    return lambda key: np.exp(sigma * normal(key, 1) - sigma**2 / 2)


def bell(deviation: float) -> Spread:
    """A normal law with mean 1, between 0 and 2."""
    return lambda key: np.clip(1 + deviation * normal(key, 1), 0, 2)


def two_bells(key: np.ndarray) -> np.ndarray:
    """EMNIST's writers, some 140 and some 284 examples each: mean 197.5, deviation 76.7, at most 418."""
    z, is_small = normal(key, 1), uniform(key, 2) < 0.6
    return np.clip(np.where(is_small, 139 + 26 * z, 283 + 36 * z), 0, 417) / 196.6


# Examples.


def labels(block: Block, num_classes: int, concentration: float, stream: int = 0) -> np.ndarray:
    """Draws the class of each example from its client's own Dirichlet distribution over the classes.

    The client's distribution is Dirichlet(concentration / num_classes), drawn as a Dirichlet process: a stick is
    broken at ``exp(-arrivals / concentration)`` of a Poisson process, and the class of each piece is uniform. Pieces
    beyond the first some tens share less than a hundredth of a client; their classes are drawn one by one.

    Args:
      block: The clients.
      num_classes: Number of classes.
      concentration: The sum of the parameters; the smaller, the fewer classes has a client.
      stream: Other classes of the same examples are of another stream.

    Returns:
      int64 ``[n]``.
    """
    num_pieces = int(5 * concentration) + 10
    pieces = np.arange(num_pieces, dtype=np.uint64)
    client = keys(block.clients, 100 + stream)
    arrivals = np.cumsum(-np.log(uniform(keys(client[:, None], pieces), 1)), axis=1)
    time = -concentration * np.log(uniform(block.examples, 100 + stream))
    # One search for all clients: each has its own range of numbers.
    width = max(arrivals.max(), time.max(initial=0.0)) + 1
    ends = (arrivals + width * np.arange(len(client))[:, None]).reshape(-1)
    piece = np.searchsorted(ends, time + width * block.owner) - num_pieces * block.owner
    is_beyond = piece >= num_pieces
    source = np.where(is_beyond, keys(block.examples, 101 + stream), keys(client[block.owner], piece.astype(np.uint64)))
    return (keys(source, 2) % np.uint64(num_classes)).astype(np.int64)


def images(
    shape: tuple[int, ...],
    num_classes: int,
    concentration: float,
    *,
    image: str = "image",
    dtype: str = "uint8",
    coarse: int | None = None,
) -> Content:
    """Makes images of classes that can be learnt: half of a pixel is its class's, half is noise.

    Args:
      shape: Of an image, uint8.
      num_classes: Number of classes.
      concentration: Of the classes, see `labels`.
      image: Name of the feature; the class is ``label``.
      dtype: Of the class.
      coarse: How many classes make a ``coarse_label``, where there is one.
    """

    def content(block: Block) -> dict[str, np.ndarray]:
        label = labels(block, num_classes, concentration)
        columns = {image: _pictures(block, label, shape), "label": label.astype(dtype)}
        return columns | ({"coarse_label": (label // coarse).astype(dtype)} if coarse else {})

    return content


def portraits(shape: tuple[int, ...], num_attributes: int) -> Content:
    """Makes images with attributes, of which a client has nine tenths in all its images."""

    def content(block: Block) -> dict[str, np.ndarray]:
        own = random_bytes(keys(block.clients, 3), num_attributes) < 128
        attributes = own[block.owner] ^ (random_bytes(keys(block.examples, 3), num_attributes) < 26)
        return {"image": _pictures(block, attributes[:, 0].astype(np.int64), shape), "attributes": attributes}

    return content


def albums(shape: tuple[int, ...], num_labels: int, num_fine: int, width: int) -> Content:
    """Makes images with one to three labels, bool ``[num_labels]``, and as many fine ones, padded with `num_fine`."""

    def content(block: Block) -> dict[str, np.ndarray]:
        found = np.stack([labels(block, num_labels, 4.0, stream) for stream in (0, 10, 20)], axis=1)
        rows = np.arange(len(found))
        has = np.zeros((len(found), num_labels), bool)
        fine = np.full((len(found), width), num_fine, np.uint16)
        for place in range(3):
            chosen = uniform(block.examples, 30 + place) < 1 / (1 + place)
            has[rows[chosen], found[chosen, place]] = True
            fine[chosen, place] = found[chosen, place] * (num_fine // num_labels)
        return {"image": _pictures(block, found[:, 0], shape), "labels": has, "fine_labels": np.sort(fine, axis=1)}

    return content


def sentences(
    table: np.ndarray, *, sequence_length: int, bos: int, eos: int, mean_words: float, longest: int, topic: int = 0
) -> Content:
    """Makes sequences of tokens: ``bos``, words, ``eos``, zeros.

    Args:
      table: The words, ``[65536]``, each as often as it is frequent; its dtype is that of the tokens.
      sequence_length: ``tokens`` are ``[n, sequence_length + 1]``.
      bos: Before the first word.
      eos: After the last, where there is room.
      mean_words: How many words there are, about, log-normal.
      longest: Most words.
      topic: If positive, an eighth of a client's words are of this many that it prefers.
    """
    # Their deviation is two thirds of the mean; a byte less than 1 is enough.
    quantiles = np.sort(normal(np.arange(65536, dtype=np.uint64), 9))
    num_words_of = np.clip(np.rint(mean_words * np.exp(0.6 * quantiles - 0.18)), 1, longest).astype(np.uint8)

    def content(block: Block) -> dict[str, np.ndarray]:
        draws = random_bytes(block.examples, 2 * sequence_length + 2).view(np.uint16)
        words = table[draws[:, 1:]]
        if topic:
            start = (keys(block.clients, 4) % np.uint64(len(table) - topic)).astype(np.int64)[block.owner]
            row, column = np.nonzero((draws[:, 1:] & 7) == 0)
            # The words that a client prefers are somewhere in the table, so frequent ones are often among them.
            words[row, column] = table[start[row] + draws[:, 1:][row, column] % topic]
        num_words = num_words_of[draws[:, 0]][:, None]
        place = np.arange(1, sequence_length + 1, dtype=np.uint8)[None]
        tokens = np.empty((len(draws), sequence_length + 1), table.dtype)
        tokens[:, 0] = bos
        np.multiply(words, place <= num_words, out=tokens[:, 1:])
        np.copyto(tokens[:, 1:], table.dtype.type(eos), where=place == num_words + 1)
        return {"tokens": tokens}

    return content


def zipf(num_words: int, *, first: int, oov: int, share: float = 0.05) -> np.ndarray:
    """Returns a table of words, uint16 ``[65536]``, whose frequency falls as one over the rank; a share is unknown."""
    known = round(65536 * (1 - share))
    weights = np.cumsum(1 / (np.arange(num_words) + 2.7))
    ranks = np.searchsorted(weights, (np.arange(known) + 0.5) / known * weights[-1])
    return np.append(first + ranks, np.full(65536 - known, oov)).astype(np.uint16)


def tweets(length: int) -> Content:
    """Makes ``text``, letters as uint8 ``[n, length]`` padded with zeros, and its mood ``label``, 0 or 1."""
    letters = np.frombuffer(b"  eettaaooiinnsshhrrddllccuummwwffggyyppbbvvkk etaoinshr", np.uint8)

    def content(block: Block) -> dict[str, np.ndarray]:
        label = labels(block, 2, 2.0)
        text = letters[random_bytes(block.examples, length) % len(letters)]
        num_letters = 10 + (uniform(block.examples, 5) * (length - 10)).astype(np.int64)
        text *= np.arange(length) < num_letters[:, None]
        text[:, 0] = np.where(label == 1, ord("+"), ord("-"))
        return {"text": text, "label": label.astype(np.uint8)}

    return content


def tiny(block: Block) -> dict[str, np.ndarray]:
    """Makes ``x`` uint8 ``[4]`` and ``label`` uint8, whether the first is large."""
    x = random_bytes(block.examples, 4)
    return {"x": np.ascontiguousarray(x), "label": (x[:, 0] >= 128).astype(np.uint8)}


def _pictures(block: Block, label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    num_bytes = int(np.prod(shape))
    pixels = random_bytes(block.examples, num_bytes) >> np.uint8(1)
    # Of thousands of classes each is a pair of patterns.
    pixels += (_patterns(0, num_bytes)[label % 64] ^ _patterns(1, num_bytes)[label // 64]) >> np.uint8(1)
    return pixels.reshape(-1, *shape)


@functools.lru_cache(maxsize=4)
def _patterns(number: int, num_bytes: int) -> np.ndarray:
    return random_bytes(keys(np.arange(64), 77 + number), num_bytes)


def _mixed(words: np.ndarray) -> np.ndarray:
    """Hashes uint64, in place: the finaliser of SplitMix64."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words
