"""Partitions of a central data set over clients.

These use `np.random.Generator` on a keyed Philox stream (for gamma variates and permutations), so a
partition is the same on every machine but may change with the version of NumPy: store it with results.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.data.federated_data import ClientData, FederatedData
from fedjx.data.partitions.allocation import check_enough, classes, generator, rows_by_client

# Examples that are read at once to count their labels.
_BLOCK_BYTES = 1 << 24


def dirichlet_partition(
    labels: ArrayLike,
    num_clients: int,
    *,
    alpha: float | ArrayLike,
    seed: int,
    min_examples: int = 1,
    self_balancing: bool = False,
) -> list[np.ndarray]:
    """Distributes examples with skewed labels: each class by its own Dirichlet proportions.

    For every class, the shares of the clients are drawn from the symmetric ``Dirichlet(alpha)`` over
    the K clients and the shuffled examples of the class are cut accordingly, as in NIID-Bench (Li et
    al. 2022, arXiv:2102.02079), after Hsu et al. 2019 (arXiv:1909.06335). A share has mean ``1 / K`` and
    variance ``(K - 1) / (K^2 (K alpha + 1))``: the smaller alpha, the more skewed.

    Clients left with less than `min_examples` are then filled up, in their order, with one random example
    at a time of the client that is largest at that moment. (To draw again until all have enough, as is often
    done, does not end in reasonable time with many clients or a small alpha.)

    Guarantees: every example is in exactly one client; the result depends on the arguments only; no
    client has less than `min_examples`.

    Args:
      labels: The class of each example, ``[N]``.
      num_clients: Number of clients, K.
      alpha: Concentration, more than 0, of all clients or of each, ``[K]``; ``inf`` is not needed: see
        `iid_partition`.
      seed: Non-negative integer.
      min_examples: Least number of examples of a client.
      self_balancing: Whether a client that has more than ``N / K`` examples gets none of the following
        classes, which makes the sizes less unequal.

    Returns:
      For each client the rows of its examples in random order, int64 ``[n_k]``.

    Raises:
      ValueError: If the arguments are out of range, or ``K * min_examples > N``.

    >>> parts = dirichlet_partition(np.arange(100) % 10, 8, alpha=0.5, seed=0)
    >>> len(parts), sorted(np.concatenate(parts).tolist()) == list(range(100))
    (8, True)
    """
    _, codes = classes(labels)
    concentration = np.asarray(alpha, float)
    check_number("(0, inf)", "Near 0 it is all skew; iid_partition has none.", alpha=alpha)
    check_integer("[0, inf)", min_examples=min_examples)
    check_enough(len(codes), num_clients, min_examples)
    if concentration.shape not in ((), (num_clients,)):
        raise ValueError(f"alpha needs to be a number, or one for each client; got {concentration.shape=}. Give one.")

    random = generator(seed)
    order = random.permutation(len(codes))
    client = np.empty(len(codes), np.int64)
    sizes = np.zeros(num_clients, np.int64)
    by_class = order[np.argsort(codes[order], kind="stable")]
    for rows in np.split(by_class, np.cumsum(np.bincount(codes))[:-1]):
        shares = random.dirichlet(np.broadcast_to(concentration, num_clients))
        if self_balancing:
            shares = _only(sizes <= len(codes) / num_clients, shares)
        # Rounded at random, so that a client's expected number is its share, also of small classes.
        ends = np.floor(np.cumsum(shares)[:-1] * len(rows) + random.random())
        client[rows] = np.searchsorted(ends, np.arange(len(rows)), side="right")
        sizes += np.bincount(client[rows], minlength=num_clients)
    return _filled_up(rows_by_client(order, client, num_clients), min_examples)


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
    check_enough(num_examples, num_clients, 1)
    return np.array_split(generator(seed).permutation(num_examples), num_clients)


def label_counts(data: ClientData, label: str = "y", num_classes: int | None = None) -> np.ndarray:
    """Counts the examples of each class on each client.

    Data on disk are read a few clients at a time.

    Args:
      data: The clients' examples.
      label: Name of the feature with the class of each example, integers ``[N]`` from 0.
      num_classes: Number of classes; one more than the largest label if not given.

    Returns:
      int64 ``[K, num_classes]``, the clients in the order of `data.ids`.

    Raises:
      ValueError: If there is no such feature, or a label is not in ``[0, num_classes)``.
      TypeError: If it is not one integer per example.

    >>> data = FederatedData({"y": np.array([0, 0, 2, 1])}, offsets=np.array([0, 3, 4]))
    >>> label_counts(data).tolist()
    [[2, 0, 1], [0, 1, 0]]
    """
    check_choice(sorted(data.schema), label=label)
    feature = data.schema[label]
    if feature.shape or feature.dtype.kind not in "iu":
        raise TypeError(
            f"'{label}' needs to be one integer per example; got {feature.dtype}{[data.num_examples, *feature.shape]}. "
            "Give the feature that holds the classes."
        )
    blocks = [_counted(labels, sizes, num_classes) for labels, sizes in _label_blocks(data, label)]
    width = num_classes or max(counts.shape[1] for counts in blocks)
    return np.concatenate([np.pad(counts, [(0, 0), (0, width - counts.shape[1])]) for counts in blocks])


def _label_blocks(data: ClientData, label: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the labels and the sizes of some clients at a time."""
    sizes = np.asarray(data.sizes[:])
    if isinstance(data, FederatedData):
        yield data.examples[label], sizes
        return
    num_examples = max(1, _BLOCK_BYTES * data.num_examples // data.num_bytes)
    block = (sizes.cumsum() - sizes) // num_examples
    for places in np.split(np.arange(data.num_clients), np.flatnonzero(np.diff(block)) + 1):
        yield data.read(data.ids[places])[label], sizes[places]


def _counted(labels: np.ndarray, sizes: np.ndarray, num_classes: int | None) -> np.ndarray:
    labels = labels.astype(np.int64)
    if num_classes is None:
        num_classes = int(labels.max(initial=-1)) + 1
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"classes need to be numbered from 0 to num_classes - 1; got {num_classes=} and labels from "
            f"{labels.min()} to {labels.max()}. Renumber the classes, or raise num_classes."
        )
    client = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.bincount(client * num_classes + labels, minlength=len(sizes) * num_classes)
    return counts.reshape(len(sizes), num_classes)


def _only(chosen: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Renormalises the shares of a class over some clients."""
    kept = np.where(chosen, shares, 0.0)
    # Where these shares are rounded to nothing, they would be 0 / 0.
    return kept / kept.sum() if kept.sum() > 0 else chosen / chosen.sum()


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
