"""Partitions by a key or a number that every example has, and the split of a partition for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.data.partitions.allocation import check_enough, generator, rows_by_client, vector, warn_dropped


def natural_partition(keys: ArrayLike) -> list[np.ndarray]:
    """Makes a client of the examples that have one key, such as a user's id.

    Args:
      keys: Of each example, anything that can be sorted, ``[N]``.

    Returns:
      For each key, in the order of ``np.unique(keys)``, its rows in increasing order, int64 ``[n_k]``; every
      row is in exactly one client.

    Raises:
      ValueError: If there is no key, or one is NaN.

    >>> [rows.tolist() for rows in natural_partition(["eve", "ada", "eve"])]
    [[1], [0, 2]]
    """
    _, codes = np.unique(vector("keys", keys), return_inverse=True)
    return rows_by_client(np.arange(len(codes)), codes, codes.max() + 1)


def natural_grouped_partition(
    keys: ArrayLike,
    group_size: int,
    *,
    remainder: Literal["smaller", "bigger", "drop", "strict"] = "smaller",
    seed: int | None = None,
) -> list[np.ndarray]:
    """Makes a client of several keys: of devices, silos.

    Args:
      keys: Of each example, anything that can be sorted, ``[N]``.
      group_size: Number of keys of a client.
      remainder: What becomes of the keys that are left over when the others are grouped: "smaller", a last, smaller
        group; "bigger", one more for the first groups each, or several if there are few groups; "drop", nothing, and a
        warning counts their examples; "strict", an error.
      seed: Of a random order in which the keys are grouped; by default they are grouped as they are sorted.

    Returns:
      For each group its rows in increasing order, int64 ``[n_k]``; no row is in two clients.

    Raises:
      ValueError: If `group_size` is not positive, a key is NaN, or the keys make no group or, if "strict", leave some
        over.

    >>> [rows.tolist() for rows in natural_grouped_partition([7, 5, 6, 5, 8, 9], 2)]
    [[1, 2, 3], [0, 4], [5]]
    """
    _, codes = np.unique(vector("keys", keys), return_inverse=True)
    num_keys = int(codes.max()) + 1
    check_choice(("smaller", "bigger", "drop", "strict"), remainder=remainder)
    most = "inf)" if remainder == "smaller" else f"{num_keys}]"
    check_integer(f"[1, {most}", f"Use at most {num_keys}.", group_size=group_size)
    num_groups, num_left = divmod(num_keys, group_size)
    if remainder == "strict" and num_left:
        raise ValueError(
            f"group_size needs to divide the number of keys; got {group_size=} and {num_keys} keys. "
            f"Leave out {num_left} keys, or choose another remainder."
        )
    if remainder == "bigger":
        group = np.repeat(np.arange(num_groups), [len(part) for part in np.array_split(range(num_keys), num_groups)])
    else:
        group = np.arange(num_keys) // group_size
        num_groups += remainder == "smaller" and num_left > 0
    group = np.where(group < num_groups, group, -1)
    if seed is not None:
        group = generator(seed).permutation(group)
    client = group[codes]
    warn_dropped((client < 0).sum(), len(codes), f"They belong to {num_left} of {num_keys} keys.")
    return rows_by_client(np.arange(len(codes)), client, num_groups)


def sort_partition(values: ArrayLike, num_clients: int) -> list[np.ndarray]:
    """Sorts the examples by a value and cuts them into clients of equal sizes up to one.

    Args:
      values: Of each example, anything that can be sorted, ``[N]``; equal ones keep their order.
      num_clients: Number of clients, K.

    Returns:
      For each client its rows as they are sorted, int64 ``[n_k]``; every row is in exactly one client.

    Raises:
      ValueError: If a value is NaN, or there are fewer examples than clients.

    >>> [rows.tolist() for rows in sort_partition([0.3, 0.1, 0.2, 0.4], 2)]
    [[1, 2], [0, 3]]
    """
    array = vector("values", values)
    check_enough(len(array), num_clients, 1)
    return np.array_split(np.argsort(array, kind="stable"), num_clients)


def continuous_partition(values: ArrayLike, num_clients: int, *, strictness: float, seed: int) -> list[np.ndarray]:
    """Distributes examples by a number, more or less strictly.

    With z the standardised values and e Gaussian noise of variance 1, the examples are sorted by
    ``strictness * z + (1 - strictness) * e`` and cut into clients of equal sizes up to one: at 1 this is
    `sort_partition`, at 0 `iid_partition`.

    Args:
      values: A number of each example, ``[N]``.
      num_clients: Number of clients, K.
      strictness: From 0 to 1.
      seed: Non-negative integer.

    Returns:
      For each client its rows in random order, int64 ``[n_k]``; every row is in exactly one client.

    Raises:
      ValueError: If the arguments are out of range, a value is not finite, or all are equal.

    >>> values = np.arange(1000)
    >>> [round(values[rows].mean()) for rows in continuous_partition(values, 3, strictness=0.9, seed=0)]
    [169, 499, 832]
    """
    array = vector("values", values).astype(np.float64)
    check_enough(len(array), num_clients, 1)
    check_number("[0, 1]", "Use 1 to sort.", strictness=strictness)
    if not np.isfinite(array).all() or array.min() == array.max():
        raise ValueError(
            f"values need to be finite and different; got {array.min()} to {array.max()}. Use iid_partition."
        )
    random = generator(seed)
    scores = strictness * (array - array.mean()) / array.std() + (1 - strictness) * random.standard_normal(len(array))
    return [random.permutation(rows) for rows in sort_partition(scores, num_clients)]


def train_test_partition(
    partition: Sequence[ArrayLike], *, train_fraction: float, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Splits the examples of each client for evaluation, by LEAF's rule (Caldas et al. 2018, arXiv:1812.01097).

    Each client keeps ``max(1, floor(train_fraction * n))`` of its n examples, at random, for training and the others
    for test: with two examples, one and one. Where LEAF leaves out a client of one example, its test part is empty
    here, so that clients keep their numbers. To test on other clients, use `fedjx.data.split_clients`.

    Examples that overlap, such as windows of one text, are not independent: cut the text after the split.

    Args:
      partition: For each client its rows, ``[n_k]``.
      train_fraction: In (0, 1).
      seed: Non-negative integer.

    Returns:
      Two partitions of the same clients, for training and for test; rows keep their order.

    Raises:
      ValueError: If `train_fraction` is not in (0, 1), or no client has two examples.

    >>> train, test = train_test_partition([[4, 5, 6], [9], [7, 8]], train_fraction=0.9, seed=0)
    >>> [len(rows) for rows in train], [len(rows) for rows in test]
    ([2, 1, 1], [1, 0, 1])
    """
    check_number("(0, 1)", train_fraction=train_fraction)
    parts = [np.asarray(rows, np.int64) for rows in partition]
    if max(map(len, parts), default=0) < 2:
        raise ValueError(f"a split needs a client with two examples; got none of {len(parts)}. Give more examples.")
    random = generator(seed)
    masks = [random.permutation(len(rows)) < max(1, int(train_fraction * len(rows))) for rows in parts]
    pairs = list(zip(parts, masks, strict=True))
    return [rows[mask] for rows, mask in pairs], [rows[~mask] for rows, mask in pairs]
