"""Partitions that give every client a few labels: by number, in shards, or as a table says."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_choice, check_integer
from fedjx.data.partitions.allocation import (
    check_enough,
    classes,
    generator,
    rows_by_client,
    rows_by_label_counts,
    warn_dropped,
)


def pathological_partition(
    labels: ArrayLike,
    num_clients: int,
    *,
    classes_per_client: int,
    seed: int,
    assignment: Literal["random", "first-deterministic", "deterministic"] = "random",
) -> list[np.ndarray]:
    """Gives every client examples of the same number of classes; each class is cut evenly over its owners.

    Client i gets, of C classes in their order,

    * "random": some drawn at random;
    * "first-deterministic": class ``i mod C``, and others drawn at random (NIID-Bench, Li et al. 2022,
      arXiv:2102.02079);
    * "deterministic": the classes ``i, i + 1, ... mod C``.

    Args:
      labels: The class of each example, ``[N]``.
      num_clients: Number of clients, K.
      classes_per_client: Number of classes of a client.
      seed: Non-negative integer.
      assignment: Which classes a client gets.

    Returns:
      For each client the rows of its examples in random order, int64 ``[n_k]``. Every row is in exactly one
      client, but for those of classes that nobody owns, which a warning counts.

    Raises:
      ValueError: If the arguments are out of range, or a class has fewer examples than owners.

    >>> labels = np.arange(100) % 10
    >>> parts = pathological_partition(labels, 10, classes_per_client=2, seed=0, assignment="deterministic")
    >>> [np.unique(labels[rows]).tolist() for rows in parts[-3:]]
    [[7, 8], [8, 9], [0, 9]]
    """
    names, codes = classes(labels)
    check_enough(len(codes), num_clients, 1)
    random = generator(seed)
    owned = _owned(random, num_clients, len(names), classes_per_client, assignment)
    class_sizes = np.bincount(codes)
    fits = np.all(np.cumsum(owned, axis=0) <= class_sizes, axis=1)
    if not fits[-1]:
        scarce = int(np.argmax(owned.sum(0) - class_sizes))
        raise ValueError(
            f"every owner of a class needs an example of it; got {class_sizes[scarce]} of class {names[scarce]} and "
            f"{owned[:, scarce].sum()} owners. Use at most {fits.argmin()} clients, or fewer classes for each."
        )
    num_owners = np.maximum(owned.sum(0), 1)
    # The first owners get one more, as many as it takes.
    is_first = np.cumsum(owned, axis=0) <= class_sizes % num_owners
    counts = owned * (class_sizes // num_owners + is_first)
    unowned = names[~owned.any(axis=0)]
    warn_dropped(
        len(codes) - counts.sum(), len(codes), f"Nobody owns {len(unowned)} classes, {unowned[:5].tolist()} among them."
    )
    return rows_by_label_counts(random, codes, counts)


def shards_partition(
    labels: ArrayLike,
    num_clients: int,
    *,
    seed: int,
    shards_per_client: int | None = 2,
    shard_size: int | None = None,
    keep_incomplete: bool = False,
) -> list[np.ndarray]:
    """Sorts the examples by label, cuts them into equal shards and deals these at random.

    With the default every client gets two shards of ``N / 2K`` examples, as in McMahan et al. 2017
    (arXiv:1602.05629); a client with k shards has at most 2k labels if no class is smaller than a shard. The order of
    examples of one label stays as it is.

    Args:
      labels: The class of each example, ``[N]``.
      num_clients: Number of clients, K.
      seed: Non-negative integer.
      shards_per_client: Number of shards of a client; None to deal all there are, to the first clients one more
        where the numbers are not equal.
      shard_size: Number of examples of a shard; by default as many as there are for the shards that are dealt.
      keep_incomplete: Whether to deal the last shard also if it is smaller.

    Returns:
      For each client the rows of its examples in random order, int64 ``[n_k]``; no row is in two clients.
      A warning counts the examples that are left over.

    Raises:
      ValueError: If the arguments are out of range or ask for more examples than there are.

    >>> labels = np.arange(100) // 10
    >>> [len(rows) for rows in shards_partition(labels, 5, seed=0)]
    [20, 20, 20, 20, 20]
    """
    _, codes = classes(labels)
    num_examples = len(codes)
    check_enough(num_examples, num_clients, 1)
    shard_size = _shard_size(num_examples, num_clients, shards_per_client, shard_size)
    num_shards = num_examples // shard_size + (keep_incomplete and num_examples % shard_size > 0)
    needed = num_clients * (shards_per_client or 1)
    if num_shards < needed:
        raise ValueError(
            f"{num_clients} clients need {needed} shards; got {num_shards} of {shard_size=} from {num_examples} "
            f"examples. Use at most {num_shards * num_clients // needed} clients or smaller shards."
        )
    random = generator(seed)
    dealt = random.permutation(num_shards)[: needed if shards_per_client else num_shards]
    # As cards are dealt: the first hands are the larger ones.
    owner = np.full(num_shards, -1)
    owner[dealt] = np.arange(len(dealt)) % num_clients
    client = np.full(num_examples, -1)
    by_label = np.argsort(codes, kind="stable")[: num_shards * shard_size]
    client[by_label] = np.repeat(owner, shard_size)[: len(by_label)]
    warn_dropped((client < 0).sum(), num_examples, f"Shards have {shard_size} examples and {len(dealt)} are dealt.")
    return rows_by_client(random.permutation(num_examples), client, num_clients)


def distribution_partition(
    labels: ArrayLike, weights: ArrayLike, *, seed: int, min_per_class: int = 0, rescale: bool = True
) -> list[np.ndarray]:
    """Distributes the examples of each class in proportion to a table of weights.

    A client gets the exact share rounded down, and the clients with the largest fractions one more, so that
    every example of a class with an owner is in exactly one client. With `rotating_weights` this is the
    power law of FedProx (Li et al. 2020, arXiv:1812.06127).

    Args:
      labels: The class of each example, ``[N]``.
      weights: For each client and each of the C classes that occur, in their order, at least 0,
        ``[K, C]``; 0 for a class the client does not own.
      seed: Non-negative integer.
      min_per_class: What an owner of a class gets of it before the others are shared.
      rescale: False if the weights are the numbers of examples themselves, integers.

    Returns:
      For each client the rows of its examples in random order, int64 ``[n_k]``; no row is in two clients.
      A warning counts those that nobody gets.

    Raises:
      ValueError: If the arguments are out of range, there are not enough examples, or a client would get none.

    >>> labels = np.arange(100) % 2
    >>> parts = distribution_partition(labels, [[1, 0], [3, 1]], seed=0)
    >>> [np.bincount(labels[rows], minlength=2).tolist() for rows in parts]
    [[13, 0], [37, 50]]
    """
    names, codes = classes(labels)
    weights = np.asarray(weights)
    if weights.ndim != 2 or weights.shape[1] != len(names) or not ((weights >= 0) & (weights < np.inf)).all():
        raise ValueError(
            f"weights need to be at least 0 and finite, [clients, {len(names)}]; got {weights.shape=}. "
            "Give a row for each client and a column for each class."
        )
    class_sizes = np.bincount(codes)
    counts = _shared(class_sizes, weights, min_per_class) if rescale else _given(class_sizes, weights)
    empty = np.flatnonzero(counts.sum(1) == 0)
    if len(empty):
        raise ValueError(
            f"every client needs an example; got none for client {empty[0]} ({len(empty)} in all). "
            "Raise min_per_class or the weights."
        )
    warn_dropped(len(codes) - counts.sum(), len(codes), "The weights leave them out.")
    return rows_by_label_counts(generator(seed), codes, counts)


def rotating_weights(table: ArrayLike, num_clients: int, *, classes_per_client: int) -> np.ndarray:
    """Assigns the classes to clients in rotation, and weights to them, for `distribution_partition`.

    Client i owns the classes ``i, i + 1, ... mod C``; the j-th owner of a class has the j-th weight of its row.

    Args:
      table: Weights of the owners of each class, ``[C, m]``.
      num_clients: Number of clients, K.
      classes_per_client: Number of classes of a client.

    Returns:
      Weights ``[K, C]``, with 0 for the classes a client does not own.

    Raises:
      ValueError: If a class has more owners than the table has columns.

    >>> rotating_weights([[5, 6], [7, 8]], 3, classes_per_client=1)
    array([[5, 0],
           [0, 7],
           [6, 0]])
    """
    table = np.asarray(table)
    owned = _owned(None, num_clients, len(table), classes_per_client, "deterministic")
    turn = np.cumsum(owned, axis=0) - 1
    if table.ndim != 2 or table.shape[1] != turn[-1].max() + 1:
        raise ValueError(
            f"the table needs as many columns as a class has owners, {turn[-1].max() + 1}; got {table.shape=}. "
            "It is [classes, classes_per_client * num_clients / classes]."
        )
    return np.where(owned, table[np.arange(len(table)), np.maximum(turn, 0)], 0)


def _owned(
    random: np.random.Generator | None, num_clients: int, num_classes: int, classes_per_client: int, assignment: str
) -> np.ndarray:
    """Returns which classes each client owns, bool ``[K, C]``."""
    check_choice(("random", "first-deterministic", "deterministic"), assignment=assignment)
    check_integer(f"[1, {num_classes}]", f"Use at most {num_classes}.", classes_per_client=classes_per_client)
    clients = np.arange(num_clients)
    if random is None or assignment == "deterministic":
        chosen = (clients[:, None] + np.arange(classes_per_client)) % num_classes
    else:
        lots = random.random((num_clients, num_classes))
        if assignment != "random":
            lots[clients, clients % num_classes] = -1.0
        chosen = np.argsort(lots, axis=1)[:, :classes_per_client]
    owned = np.zeros((num_clients, num_classes), bool)
    owned[clients[:, None], chosen] = True
    return owned


def _shard_size(num_examples: int, num_clients: int, shards_per_client: int | None, shard_size: int | None) -> int:
    if shards_per_client is None and shard_size is None:
        raise ValueError("shards need a number or a size; got neither. Give shards_per_client or shard_size.")
    given = {"shards_per_client": shards_per_client, "shard_size": shard_size}
    check_integer("[1, inf)", **{name: value for name, value in given.items() if value is not None})
    return shard_size or max(1, num_examples // (num_clients * (shards_per_client or 1)))


def _shared(class_sizes: np.ndarray, weights: np.ndarray, min_per_class: int) -> np.ndarray:
    """Shares each class in proportion to its column, by largest remainders; int64 ``[K, C]``."""
    owned = weights > 0
    num_owners = owned.sum(0)
    check_integer("[0, inf)", min_per_class=min_per_class)
    if (num_owners * min_per_class > class_sizes).any():
        largest = (class_sizes[num_owners > 0] // num_owners[num_owners > 0]).min()
        raise ValueError(
            f"every owner of a class needs min_per_class of its examples; got {min_per_class=}. Use at most {largest}."
        )
    rest = (class_sizes - num_owners * min_per_class) * (num_owners > 0)
    exact = rest * weights / np.where(num_owners > 0, weights.sum(0), 1)
    counts = np.floor(exact).astype(np.int64)
    missing = rest - counts.sum(0)
    rank = np.argsort(np.argsort(counts - exact, axis=0, kind="stable"), axis=0)
    return min_per_class * owned + counts + (rank < missing)


def _given(class_sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    counts = weights.astype(np.int64)
    if (counts != weights).any() or (counts.sum(0) > class_sizes).any():
        raise ValueError(
            f"numbers of examples need to be integers that add to at most {class_sizes.tolist()}; got "
            f"{weights.sum(0).tolist()}. Rescale them, or ask for fewer."
        )
    return counts
