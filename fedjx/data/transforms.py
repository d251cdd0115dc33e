"""Functions for `preprocess`, which also say how many examples they leave where that is known, and splits.

Any function from a dict of NumPy columns to another will do; with these, a data set need not be read to know
its clients' sizes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_choice, check_integer
from fedjx.data.client_ids import ClientId, encoded
from fedjx.data.federated_data import ClientData
from fedjx.data.preprocess import Columns, Preprocessed, Step, name_of, num_rows, preprocess

Splittable = TypeVar("Splittable", bound=ClientData)


def select_features(*names: str, **renamed: str) -> Step:
    """Keeps some features, under the same name or, as ``new="old"``, under another.

    >>> from fedjx.data import FederatedData, preprocess
    >>> data = FederatedData({"a": np.arange(2), "b": np.ones(2)}, np.array([0, 2]))
    >>> preprocess(data, select_features(x="a")).client(0)
    {'x': array([0, 1])}
    """
    wanted = {**{name: name for name in names}, **renamed}

    def function(columns: Columns) -> Columns:
        missing = sorted(set(wanted.values()) - set(columns))
        if missing:
            raise ValueError(
                f"a selection needs features that exist; got {missing}, and there are {sorted(columns)}. "
                "Choose among these."
            )
        return {new: columns[old] for new, old in wanted.items()}

    return Step("select_features", function, wanted, _same)


def map_examples(function: Callable[[Columns], Mapping[str, ArrayLike]]) -> Step:
    """Declares that a function keeps the number of examples, so that sizes are known without reading.

    Args:
      function: From columns ``[n, ...]`` to columns ``[n, ...]``.

    >>> from fedjx.data import FederatedData, preprocess
    >>> data = FederatedData({"x": np.arange(3)}, np.array([0, 1, 3]))
    >>> preprocess(data, map_examples(lambda columns: {"x": columns["x"] * 10})).client(1)["x"]
    array([10, 20])
    """

    def mapped_alike(columns: Columns) -> Mapping[str, ArrayLike]:
        mapped = function(columns)
        for name, column in mapped.items():
            if len(np.asarray(column)) != num_rows(columns):
                raise ValueError(
                    f"map_examples needs a function that keeps the number of examples, here {num_rows(columns)}; got "
                    f"{len(np.asarray(column))} in {name!r}. Give the function to preprocess."
                )
        return mapped

    return Step("map_examples", mapped_alike, {"function": name_of(function)}, _same)


def filter_examples(predicate: Callable[[Columns], ArrayLike]) -> Step:
    """Keeps the examples for which a predicate of the columns, ``[n, ...]``, is True; it returns bool ``[n]``.

    >>> from fedjx.data import FederatedData, preprocess
    >>> data = FederatedData({"x": np.arange(6)}, np.array([0, 2, 6]))
    >>> preprocess(data, filter_examples(lambda columns: columns["x"] > 0)).sizes
    array([1, 4])
    """

    def function(columns: Columns) -> Columns:
        kept = np.asarray(predicate(columns))
        if kept.dtype != bool or kept.shape != (num_rows(columns),):
            raise ValueError(
                f"a predicate needs to return bool[{num_rows(columns)}]; got {kept.dtype}{list(kept.shape)}. "
                "Return one bool for each example."
            )
        return {name: column[kept] for name, column in columns.items()}

    return Step("filter_examples", function, {"predicate": name_of(predicate)})


def truncate(num_examples: int, *, seed: int | None = None) -> Step:
    """Keeps at most so many examples of a client: the first, or with a seed a random subset in its old order.

    The subset is a function of the seed and the client's id.

    >>> from fedjx.data import FederatedData, preprocess
    >>> data = FederatedData({"x": np.arange(6)}, np.array([0, 2, 6]))
    >>> preprocess(data, truncate(3)).sizes
    array([2, 3])
    """
    if seed is not None:
        check_integer("[0, 2^63)", seed=seed)
    check_integer("[1, inf)", num_examples=num_examples)

    def function(columns: Columns, client_id: ClientId) -> Columns:
        size = num_rows(columns)
        if size <= num_examples:
            return columns
        if seed is None:
            return {name: column[:num_examples] for name, column in columns.items()}
        rows = np.sort(_shuffled(seed, client_id, size)[:num_examples])
        return {name: column[rows] for name, column in columns.items()}

    parameters = {"num_examples": num_examples, "seed": seed}
    return Step("truncate", function, parameters, lambda sizes: np.minimum(sizes, num_examples), takes_id=True)


def tokenize(
    name: str,
    encode: Callable[[Any], Sequence[int]],
    *,
    length: int,
    padding: int = 0,
    dtype: Any = np.int32,
) -> Step:
    """Replaces the text of a feature by its tokens, cut or padded to one length.

    Args:
      name: The feature, an object array ``[n]`` of bytes or str; it becomes ``[n, length]``.
      encode: From one text to its tokens.
      length: Number of tokens of an example.
      padding: What follows the last token.
      dtype: Of the tokens; all need to fit.

    >>> from fedjx.data import Client, Source, preprocess
    >>> texts = Source(lambda: iter([Client("ada", {"text": np.array([b"ab", b"abcd"], object)})]))
    >>> next(preprocess(texts, tokenize("text", list, length=3)).clients()).examples["text"].tolist()
    [[97, 98, 0], [97, 98, 99]]
    """
    check_integer("[1, inf)", length=length)
    limits = np.iinfo(dtype)

    def function(columns: Columns) -> Columns:
        check_choice(sorted(columns), feature=name)
        tokens = np.full((num_rows(columns), length), padding, np.int64)
        for row, text in zip(tokens, columns[name], strict=True):
            encoded_text = list(itertools.islice(encode(text), length))
            row[: len(encoded_text)] = encoded_text
        if tokens.size and not limits.min <= tokens.min() <= tokens.max() <= limits.max:
            raise ValueError(
                f"tokens need to fit in {np.dtype(dtype)}; got {tokens.min()} to {tokens.max()} in {name!r}. "
                "Give a wider dtype."
            )
        return {**columns, name: tokens.astype(dtype)}

    parameters = {"feature": name, "encode": name_of(encode), "length": length, "padding": padding}
    return Step("tokenize", function, {**parameters, "dtype": np.dtype(dtype).name}, _same)


def split_examples(data: ClientData, *, fractions: Mapping[str, float], seed: int | None) -> dict[str, Preprocessed]:
    """Splits within clients: every example of a client is in exactly one part.

    Of n examples, the part that ends at the cumulated fraction f ends at the rounded f n, in an order that
    is a function of the seed and the client's id; within a part, examples keep their order. Every client is in every
    part, under its number, and may be empty there.

    Args:
      data: Client data in memory or on disk; nothing is copied.
      fractions: The parts' shares by name, which add to 1, such as ``{"train": 0.8, "test": 0.2}``.
      seed: Of the order; None for the order in which a client has them, as of time or of a text: the first part is then
        of its first examples, the last of its last.

    >>> from fedjx.data import FederatedData, preprocess
    >>> data = FederatedData({"x": np.arange(7)}, np.array([0, 5, 7]))
    >>> parts = split_examples(data, fractions={"train": 0.6, "test": 0.4}, seed=0)
    >>> parts["train"].sizes, parts["test"].sizes
    (array([3, 1]), array([2, 1]))
    >>> split_examples(data, fractions={"past": 0.6, "future": 0.4}, seed=None)["past"].client(0)
    {'x': array([0, 1, 2])}
    """
    if seed is not None:
        check_integer("[0, 2^63)", seed=seed)
    bounds = _bounds(fractions)

    def part(name: str, start: float, end: float) -> Step:
        def ends(sizes: Any) -> tuple[np.ndarray, np.ndarray]:
            return np.rint(start * sizes).astype(np.int64), np.rint(end * sizes).astype(np.int64)

        def function(columns: Columns, client_id: ClientId) -> Columns:
            size = num_rows(columns)
            order = np.arange(size) if seed is None else _shuffled(seed, client_id, size)
            rows = np.sort(order[slice(*ends(size))])
            return {name: column[rows] for name, column in columns.items()}

        parameters = {"part": name, "fractions": dict(fractions), "seed": seed}
        return Step(
            "split_examples", function, parameters, lambda sizes: np.subtract(*reversed(ends(sizes))), takes_id=True
        )

    return {name: preprocess(data, part(name, start, end)) for name, (start, end) in bounds.items()}


def split_clients(data: Splittable, *, fractions: Mapping[str, float], seed: int) -> dict[str, Splittable]:
    """Splits by clients: every client is, with all its examples and under its number, in exactly one part.

    Args:
      data: Client data with a method `select_clients`: `FederatedData`, a `Store`, or what `preprocess` returns.
      fractions: The parts' shares of the clients by name, which add to 1.
      seed: Of the assignment, a random permutation of the clients.

    Raises:
      ValueError: If a part gets no client.

    >>> from fedjx.data import FederatedData, preprocess
    >>> data = FederatedData({"x": np.arange(10)}, np.arange(11))
    >>> parts = split_clients(data, fractions={"train": 0.7, "test": 0.3}, seed=0)
    >>> {name: part.ids.tolist() for name, part in parts.items()}
    {'train': [0, 1, 3, 4, 6, 7, 8], 'test': [2, 5, 9]}
    """
    order = np.random.Generator(np.random.Philox(seed)).permutation(data.num_clients)
    parts = {}
    for name, bounds in _bounds(fractions).items():
        start, end = np.rint(np.multiply(bounds, data.num_clients)).astype(int)
        if start == end:
            raise ValueError(
                f"every part of a split needs a client; got none in {name!r} for {data.num_clients} clients. "
                "Give it a larger fraction."
            )
        parts[name] = cast(Any, data).select_clients(data.ids[np.sort(order[start:end])])
    return parts


def _same(sizes: np.ndarray) -> np.ndarray:
    return sizes


def _shuffled(seed: int, client_id: ClientId, size: int) -> np.ndarray:
    """Returns a permutation of range(size) that is a function of the seed and the client's id."""
    words = hashlib.blake2b(encoded(client_id).value, digest_size=16, salt=seed.to_bytes(8, "little")).digest()
    # Sorting raw words, and not Generator.permutation, whose results may change with the version of NumPy.
    return np.argsort(np.random.Philox(key=np.frombuffer(words, np.uint64)).random_raw(size), kind="stable")


def _bounds(fractions: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    if not isinstance(fractions, Mapping):
        raise TypeError(
            f"fractions need to be the parts' shares by name; got {fractions!r}. "
            "Give {'train': 0.8, 'test': 0.2}, for example."
        )
    if not fractions or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(
            f"fractions need to be at least 0 and to add to 1; got {dict(fractions)}. "
            "Give {'train': 0.8, 'test': 0.2}, for example."
        )
    ends = np.minimum(np.cumsum(list(fractions.values())), 1.0).tolist()
    ends[-1] = 1.0
    return dict(zip(fractions, itertools.pairwise([0.0, *ends]), strict=True))
