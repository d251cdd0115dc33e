"""Shakespeare and Stack Overflow as tokens, by the conventions under which results were published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.checks import check_choice, check_integer
from fedjx.data.preprocess import Columns, Step

# Position k has the id k + 1 by TFF's convention, k + 3 by FedJAX's.
SHAKESPEARE_VOCABULARY = b"dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"

Convention = Literal["tff", "fedjax", "pfl"]


class TokenIds(NamedTuple):
    """Which integers stand for what; ``first`` is the id of the first entry of the vocabulary, and 0 pads."""

    first: int
    oov: int
    bos: int
    eos: int


def token_ids(vocabulary_size: int, convention: Convention = "tff") -> TokenIds:
    """Returns the ids of a vocabulary of so many words; ids are less than ``vocabulary_size + 4``.

    Raises:
      ValueError: If there is no such convention.

    >>> token_ids(10_000), token_ids(10_000, "fedjax")
    (TokenIds(first=1, oov=10001, bos=10002, eos=10003), TokenIds(first=3, oov=10003, bos=1, eos=2))
    """
    check_choice(("tff", "fedjax", "pfl"), convention=convention)
    if convention == "fedjax":
        return TokenIds(first=3, oov=vocabulary_size + 3, bos=1, eos=2)
    return TokenIds(first=1, oov=vocabulary_size + 1, bos=vocabulary_size + 2, eos=vocabulary_size + 3)


def renumbering(vocabulary_size: int, source: Convention, target: Convention) -> np.ndarray:
    """Returns a table from the ids of one convention to those of another, int32 ``[vocabulary_size + 4]``.

    >>> renumbering(2, "tff", "fedjax")[np.array([4, 1, 2, 5, 0, 3])]
    array([1, 3, 4, 2, 0, 5], dtype=int32)
    """
    a, b = token_ids(vocabulary_size, source), token_ids(vocabulary_size, target)
    table = np.zeros(vocabulary_size + 4, np.int32)
    table[a.first : a.first + vocabulary_size] = np.arange(vocabulary_size) + b.first
    table[[a.oov, a.bos, a.eos]] = b.oov, b.bos, b.eos
    return table


def shakespeare_tokens(*, convention: Literal["tff", "fedjax"] = "tff", sequence_length: int = 80) -> Step:
    """Cuts the snippets of a role into sequences of characters, ``tokens`` uint8 ``[m, sequence_length + 1]``.

    By ``"tff"`` each snippet is opened and closed, padded with zeros to a multiple of `sequence_length` + 1
    and cut: no sequence has parts of two snippets, and about one token in `sequence_length` + 1 is never
    predicted. By ``"fedjax"`` the snippets of a role are joined and every token is predicted once; the last
    token of a sequence is the first of the next. `next_token` makes inputs and targets of both.

    Args:
      convention: Whose ids and cuts.
      sequence_length: Length of an input.

    Raises:
      ValueError: If there is no such convention or the length is less than 1.

    >>> tokens = shakespeare_tokens(sequence_length=3)({"snippets": np.array([b"ABCD", b"E"], object)})["tokens"]
    >>> tokens.shape, tokens[1].tolist()
    ((3, 4), [8, 89, 0, 0])
    """
    check_integer("[1, inf)", sequence_length=sequence_length)
    check_choice(("tff", "fedjax"), convention=convention)
    ids = token_ids(len(SHAKESPEARE_VOCABULARY), convention)
    table = np.full(256, ids.oov, np.uint8)
    table[np.frombuffer(SHAKESPEARE_VOCABULARY, np.uint8)] = np.arange(len(SHAKESPEARE_VOCABULARY)) + ids.first

    def fn(columns: Columns) -> dict[str, np.ndarray]:
        snippets = [_as_bytes(snippet) for snippet in columns["snippets"]]
        encoded = [
            np.concatenate([[ids.bos], table[np.frombuffer(text, np.uint8)], [ids.eos]]).astype(np.uint8)
            for text in snippets
        ]
        if convention == "tff":
            rows = [_padded(tokens, sequence_length + 1) for tokens in encoded]
            return {"tokens": np.concatenate([np.empty((0, sequence_length + 1), np.uint8), *rows])}
        return {"tokens": windows(np.concatenate([np.empty(0, np.uint8), *encoded]), sequence_length)}

    return Step("characters", fn, {"convention": convention, "sequence_length": sequence_length})


def windows(stream: np.ndarray, sequence_length: int) -> np.ndarray:
    """Cuts a stream of tokens so that each but the first is a target once, ``[m, sequence_length + 1]``.

    >>> windows(np.arange(1, 7), 2)
    array([[1, 2, 3], [3, 4, 5], [5, 6, 0]])
    """
    num_rows = max(-(-(len(stream) - 1) // sequence_length), 0)
    padded = np.zeros(num_rows * sequence_length + 1, stream.dtype)
    padded[: len(stream)] = stream[: len(padded)]
    return padded[np.arange(num_rows)[:, None] * sequence_length + np.arange(sequence_length + 1)]


def next_word(
    vocabulary: Sequence[bytes],
    *,
    convention: Convention = "tff",
    sequence_length: int = 20,
    num_oov_buckets: int = 1,
) -> Step:
    """Numbers the words of sentences, ``tokens`` uint16 ``[n, sequence_length + 1]``.

    A sentence is split at every single space, opened, closed, and cut or padded with zeros to `sequence_length` + 1
    tokens. The conventions of TFF, FedJAX and pfl-research differ in the ids only, see `renumbering`, and in
    what they feed after the end of a sentence, see `next_token`.

    Args:
      vocabulary: The words by rank, see `word_counts`.
      convention: Whose ids, see `token_ids`.
      sequence_length: Length of an input.
      num_oov_buckets: How many ids unknown words share; only 1.

    Raises:
      ValueError: If `num_oov_buckets` is not 1, a word is there twice, the vocabulary does not fit in
        16 bits, the length is less than 1, or there is no such convention.

    >>> fn = next_word([b"a", b"b"], sequence_length=3)
    >>> fn({"tokens": np.array([b"a b c", b"a"], object)})["tokens"]
    array([[4, 1, 2, 3], [4, 1, 5, 0]], dtype=uint16)
    """
    if num_oov_buckets != 1:
        raise ValueError(
            "unknown words share one id: with more, TensorFlow chooses by FarmHash, which fedjx does not have; got "
            f"{num_oov_buckets=}. Use 1, as the published experiments do."
        )
    check_integer("[1, inf)", "The published one is 20.", sequence_length=sequence_length)
    ids = token_ids(len(vocabulary), convention)
    numbers = _numbers(vocabulary, ids.first)

    def fn(columns: Columns) -> dict[str, np.ndarray]:
        tokens = np.zeros((len(columns["tokens"]), sequence_length + 1), np.uint16)
        for row, sentence in zip(tokens, columns["tokens"], strict=True):
            words = _as_bytes(sentence).split(b" ")[:sequence_length]
            encoded = [ids.bos, *[numbers.get(word, ids.oov) for word in words], ids.eos][: sequence_length + 1]
            row[: len(encoded)] = encoded
        return {"tokens": tokens}

    parameters = {"convention": convention, "sequence_length": sequence_length, **_described(vocabulary, "vocabulary")}
    return Step("next_word", fn, parameters)


def tag_prediction(vocabulary: Sequence[bytes], tags: Sequence[bytes], *, max_words: int = 64) -> Step:
    """Numbers the words and tags of posts; `bag_of_words` makes the published inputs and targets of them.

    A dense bag of 10,000 words would take 40 kB a post, so the store keeps the numbers of the known words.

    Features: ``words`` uint16 ``[n, max_words]``, the known words of sentence and title, split at any white
    space, padded with the size of the vocabulary; ``num_words`` uint16 ``[n]``, how many there were, also where
    that is more than `max_words` and the rest was cut; ``tags`` uint16 ``[n, 5]``, padded with the number of tags.

    Args:
      vocabulary: The words by rank, see `word_counts`.
      tags: The tags by rank, see `tag_counts`; others are dropped.
      max_words: Words that are kept of a post.

    Raises:
      ValueError: If a word or tag is there twice or there are more than fit in 16 bits; when applied, if a
        post has more than 5 known tags.

    >>> fn = tag_prediction([b"a", b"b"], [b"x"], max_words=3)
    >>> post = {"tokens": [b"a c a"], "title": [b"b"], "tags": [b"x|y"]}
    >>> fn({name: np.array(column, object) for name, column in post.items()})["words"]
    array([[0, 0, 1]], dtype=uint16)
    """
    word_numbers, tag_numbers = _numbers(vocabulary, 0), _numbers(tags, 0)

    def fn(columns: Columns) -> dict[str, np.ndarray]:
        texts = zip(columns["tokens"], columns["title"], strict=True)
        known = [_known(b" ".join(map(_as_bytes, pair)).split(), word_numbers) for pair in texts]
        chosen = [_known(_as_bytes(value).split(b"|"), tag_numbers) for value in columns["tags"]]
        most = max(map(len, chosen), default=0)
        if most > 5:
            raise ValueError(f"a post has at most 5 tags; got {most}. Is the column of tags split by '|'?")
        return {
            "words": _table(known, max_words, len(vocabulary)),
            "num_words": np.array([min(len(words), 0xFFFF) for words in known], np.uint16),
            "tags": _table([sorted(set(numbers)) for numbers in chosen], 5, len(tags)),
        }

    parameters = {"max_words": max_words, **_described(vocabulary, "vocabulary"), **_described(tags, "tags")}
    return Step("tag_prediction", fn, parameters)


def stack_overflow_domain(columns: Columns) -> np.ndarray:
    """Returns FedJAX's ``domain_id``, uint8 ``[n]``: 1 for answers, 0 for questions."""
    return np.array([_as_bytes(kind) == b"answer" for kind in columns["type"]], np.uint8)


def next_token(batch: Mapping[str, object], *, pad_inputs: bool = False) -> dict[str, object]:
    """Makes inputs and targets of ``tokens``: all but the last and all but the first; for the jitted step.

    Args:
      batch: Has ``tokens``, integers ``[..., length + 1]``; other features stay.
      pad_inputs: Whether inputs without a target are 0, as by FedJAX's convention; by TFF's the end of the
        sentence is an input, whose target is padding.

    Returns:
      The batch with ``x`` and ``y``, int32 ``[..., length]``, in place of the tokens.

    >>> batch = next_token({"tokens": jnp.array([[4, 1, 5, 0]])})
    >>> batch["x"].tolist(), batch["y"].tolist()
    ([[4, 1, 5]], [[1, 5, 0]])
    """
    rest = {name: column for name, column in batch.items() if name != "tokens"}
    tokens = jnp.asarray(batch["tokens"]).astype(jnp.int32)
    x, y = tokens[..., :-1], tokens[..., 1:]
    return {**rest, "x": jnp.where(y == 0, 0, x) if pad_inputs else x, "y": y}


def bag_of_words(batch: Mapping[str, object], *, vocabulary_size: int, num_tags: int) -> dict[str, object]:
    """Makes the published inputs and targets of `tag_prediction`; for the jitted step.

    Args:
      batch: Has ``words``, ``num_words`` and ``tags``; other features stay.
      vocabulary_size: Number of known words.
      num_tags: Number of known tags.

    Returns:
      The batch with ``x`` float32 ``[B, vocabulary_size]``, the share of each word among the known words of a
      post (zeros if it has none), and ``y`` float32 ``[B, num_tags]``, 1 for the tags it has.
    """
    rest = {name: column for name, column in batch.items() if name not in ("words", "num_words", "tags")}
    counts = jax.vmap(lambda words: jnp.zeros(vocabulary_size).at[words].add(1.0, mode="drop"))(batch["words"])
    num_words = jnp.maximum(jnp.asarray(batch["num_words"]).astype(jnp.float32), 1.0)
    targets = jax.vmap(lambda tags: jnp.zeros(num_tags).at[tags].set(1.0, mode="drop"))(batch["tags"])
    return {**rest, "x": counts / num_words[:, None], "y": targets}


def _padded(tokens: np.ndarray, length: int) -> np.ndarray:
    rows = np.zeros((-(-len(tokens) // length), length), tokens.dtype)
    rows.reshape(-1)[: len(tokens)] = tokens
    return rows


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def _numbers(words: Sequence[bytes], first: int) -> dict[bytes, int]:
    numbers = {_as_bytes(word): number for number, word in enumerate(words, first)}
    if len(numbers) != len(words) or not 1 <= len(words) <= 0xFFFF - 4:
        raise ValueError(
            f"a vocabulary needs 1 to {0xFFFF - 4} different entries; got {len(words)}, {len(numbers)} of them "
            "different. Read it with word_counts or tag_counts."
        )
    return numbers


def _known(words: Sequence[bytes], numbers: Mapping[bytes, int]) -> list[int]:
    return [numbers[word] for word in words if word in numbers]


def _table(rows: Sequence[Sequence[int]], width: int, fill: int) -> np.ndarray:
    table = np.full((len(rows), width), fill, np.uint16)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values[:width]
    return table


def _described(words: Sequence[bytes], name: str) -> dict[str, object]:
    """Returns what the manifest of a store says about a vocabulary: its size and the SHA-256 of its lines."""
    digest = hashlib.sha256(b"\n".join(map(_as_bytes, words))).hexdigest()
    return {f"{name}_size": len(words), f"{name}_sha256": digest}
