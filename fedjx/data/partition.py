"""Partitions of a central data set over clients.

These use `np.random.Generator` on a keyed Philox stream (for gamma variates and permutations), so a
partition is the same on every machine but may change with the version of NumPy: store it with results.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import ArrayLike

from fedjx.data.federated_data import FederatedData


def dirichlet_partition(
    labels: ArrayLike, num_clients: int, *, alpha: float, seed: int, min_examples: int = 1
) -> list[np.ndarray]:
    """Distributes examples with skewed labels: each class by its own Dirichlet proportions.

    For every class, the shares of the clients are drawn from the symmetric ``Dirichlet(alpha)`` over
    the K clients and the shuffled examples of the class are cut accordingly, as in NIID-Bench (Li et
    al. 2022, arXiv:2102.02079), after Hsu et al. 2019 (arXiv:1909.06335). A share has mean ``1 / K`` and
    variance ``(K - 1) / (K^2 (K alpha + 1))``: the smaller alpha, the more skewed.

    Clients left with less than `min_examples` are then filled up, in their order, with one random example
    at a time of the client that is largest at that moment.

    Guarantees: every example is in exactly one client; the result depends on the arguments only; no
    client has less than `min_examples`.

    Args:
      labels: The class of each example, ``[N]``.
      num_clients: Number of clients, K.
      alpha: Concentration, more than 0; ``inf`` is not needed: see `iid_partition`.
      seed: Non-negative integer.
      min_examples: Least number of examples of a client.

    Returns:
      For each client the rows of its examples in random order, int64 ``[n_k]``.

    Raises:
      ValueError: If the arguments are out of range, or ``K * min_examples > N``.

    >>> parts = dirichlet_partition(np.arange(100) % 10, 8, alpha=0.5, seed=0)
    >>> len(parts), sorted(np.concatenate(parts).tolist()) == list(range(100))
    (8, True)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels need to be a vector; got {labels.shape=}. Give the class of each example.")
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha needs to be positive and finite; got {alpha=}. Use iid_partition for no skew.")
    if min_examples < 0:
        raise ValueError(f"min_examples needs to be at least 0; got {min_examples=}. Give 1 for no empty client.")
    _check_enough(len(labels), num_clients, min_examples)

    random = _random(seed)
    order = random.permutation(len(labels))
    client = np.empty(len(labels), np.int64)
    _, class_sizes = np.unique(labels, return_counts=True)
    by_class = order[np.argsort(labels[order], kind="stable")]
    for rows in np.split(by_class, np.cumsum(class_sizes)[:-1]):
        shares = random.dirichlet(np.full(num_clients, float(alpha)))
        # Rounded at random, so that a client's expected number is its share, also of small classes.
        ends = np.floor(np.cumsum(shares)[:-1] * len(rows) + random.random())
        client[rows] = np.searchsorted(ends, np.arange(len(rows)), side="right")
    # Stable, so that within a client the classes stay mixed as in the random order.
    by_client = order[np.argsort(client[order], kind="stable")]
    parts = np.split(by_client, np.cumsum(np.bincount(client, minlength=num_clients))[:-1])
    return _filled_up(parts, min_examples)


def iid_partition(num_examples: int, num_clients: int, *, seed: int) -> list[np.ndarray]:
    """Distributes examples at random, in equal numbers up to one.

    Args:
      num_examples: Number of examples, N.
      num_clients: Number of clients, K.
      seed: Non-negative integer.

    Returns:
      For each client the rows of its examples, int64 ``[n_k]``; every row is in exactly one client.

    Raises:
      ValueError: If there are fewer examples than clients.

    >>> [len(rows) for rows in iid_partition(10, 3, seed=0)]
    [4, 3, 3]
    """
    _check_enough(num_examples, num_clients, 1)
    return np.array_split(_random(seed).permutation(num_examples), num_clients)


def label_counts(data: FederatedData, label: str = "y", num_classes: int | None = None) -> np.ndarray:
    """Counts the examples of each class on each client.

    Args:
      data: The clients' examples.
      label: Name of the feature with the class of each example, integers ``[N]`` from 0.
      num_classes: Number of classes; one more than the largest label if not given.

    Returns:
      int64 ``[K, num_classes]``.

    >>> data = FederatedData({"y": np.array([0, 0, 2, 1])}, offsets=np.array([0, 3, 4]))
    >>> label_counts(data).tolist()
    [[2, 0, 1], [0, 1, 0]]
    """
    if label not in data.examples:
        raise ValueError(f"label needs to be a feature; got {label=}. Choose one of {sorted(data.examples)}.")
    labels = data.examples[label]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise TypeError(
            f"'{label}' needs to be one integer per example; got {labels.dtype}{list(labels.shape)}. "
            "Give the feature that holds the classes."
        )
    labels = labels.astype(np.int64)
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"classes need to be numbered from 0 to num_classes - 1; got {num_classes=} and labels from "
            f"{labels.min()} to {labels.max()}. Renumber the classes, or raise num_classes."
        )
    client = np.repeat(np.arange(data.num_clients), data.sizes)
    counts = np.bincount(client * num_classes + labels, minlength=data.num_clients * num_classes)
    return counts.reshape(data.num_clients, num_classes)


def _filled_up(parts: list[np.ndarray], min_examples: int) -> list[np.ndarray]:
    """Moves examples from the largest clients to those with less than `min_examples`.

    This ends: with ``N >= K * min_examples`` and a client below the minimum, the largest is above it,
    so each move brings the clients one example closer and takes none below.
    """
    sizes = np.array([len(rows) for rows in parts])
    short = np.flatnonzero(sizes < min_examples)
    if not len(short):
        return parts
    filled = [rows.tolist() for rows in parts]
    # What a receiver gains is not entered: it never gets large enough to give.
    largest = [(-size, k) for k, size in enumerate(sizes.tolist())]
    heapq.heapify(largest)
    for k in short:
        for _ in range(min_examples - sizes[k]):
            size, giver = largest[0]
            heapq.heapreplace(largest, (size + 1, giver))
            filled[k].append(filled[giver].pop())
    return [np.array(rows, np.int64) for rows in filled]


def _check_enough(num_examples: int, num_clients: int, min_examples: int) -> None:
    if num_clients < 1:
        raise ValueError(f"num_clients needs to be at least 1; got {num_clients=}. Give a positive number.")
    if num_examples < num_clients * min_examples:
        raise ValueError(
            f"every client needs min_examples; got {num_examples=}, {num_clients=} and {min_examples=}. "
            "Use fewer clients or a smaller minimum."
        )


def _random(seed: int) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed needs to be a non-negative integer; got {seed=}. Choose another.")
    return np.random.Generator(np.random.Philox(seed))
