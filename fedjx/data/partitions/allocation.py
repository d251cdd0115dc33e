"""What the partitioners share: arguments, and rows by client from counts of labels."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_integer


def generator(seed: int) -> np.random.Generator:
    """Returns the generator of a partition, on a keyed Philox stream."""
    check_integer("[0, inf)", seed=seed)
    return np.random.Generator(np.random.Philox(seed))


def check_enough(num_examples: int, num_clients: int, min_examples: int) -> None:
    """Raises if there are not `min_examples` for each client."""
    check_integer("[1, inf)", num_clients=num_clients)
    if num_examples < num_clients * min_examples:
        raise ValueError(
            f"every client needs min_examples; got {num_examples=}, {num_clients=} and {min_examples=}. "
            f"Use at most {num_examples // min_examples} clients or a smaller minimum."
        )


def vector(name: str, values: ArrayLike) -> np.ndarray:
    """Returns the values of all examples, ``[N]``, none of them NaN, NaT or None."""
    array = np.asarray(values)
    if array.dtype.kind in "US" and not isinstance(values, np.ndarray):
        array = np.asarray(values, object)  # As text, NaN among it would be the class "nan".
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} need to be a vector, not empty; got shape={array.shape}. Give one of each example.")
    unknown = array != array
    if array.dtype == object:
        unknown = np.array([value is None or bool(value != value) for value in array])
    if unknown.any():
        raise ValueError(f"{name} need to be known; got {unknown.sum()} NaN. Leave these examples out.")
    return array


def classes(labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the labels in their order: the different ones, ``[C]``, and that of each example, int64 ``[N]``."""
    names, codes = np.unique(vector("labels", labels), return_inverse=True)
    return names, codes.astype(np.int64)


def checked_sizes(num_examples: int, sizes: int | ArrayLike) -> np.ndarray:
    """Returns the clients' sizes, int64 ``[K]``, of all examples in equal numbers up to one if `sizes` is K."""
    sizes = np.asarray(sizes)
    if sizes.dtype.kind not in "iu" or sizes.ndim > 1:
        raise TypeError(f"sizes need to be integers; got {sizes.dtype}{list(sizes.shape)}. Give int64 [clients].")
    if sizes.ndim == 0:
        num_clients = int(sizes)
        check_enough(num_examples, num_clients, 1)
        return num_examples // num_clients + (np.arange(num_clients) < num_examples % num_clients)
    sizes = sizes.astype(np.int64)
    if not len(sizes) or sizes.min() < 1:
        raise ValueError(
            f"every client needs at least one example; got sizes={sizes[:5].tolist()}... of {len(sizes)} clients. "
            "Leave empty clients out."
        )
    if sizes.sum() > num_examples:
        fitting = int(np.searchsorted(sizes.cumsum(), num_examples, side="right"))
        raise ValueError(
            f"sizes need to add to at most the number of examples; got {sizes.sum()} and {num_examples=}. Use at most "
            f"the first {fitting} clients, or smaller sizes."
        )
    return sizes


def warn_dropped(num_dropped: int, num_examples: int, remedy: str) -> None:
    """Warns the caller of a partitioner of examples that no client gets."""
    if num_dropped:
        warnings.warn(f"{num_dropped} of {num_examples} examples are in no client. {remedy}", stacklevel=3)


def rows_by_client(order: np.ndarray, client: np.ndarray, num_clients: int) -> list[np.ndarray]:
    """Returns for each client its rows, as they come in `order`.

    Args:
      order: A permutation of the rows, int64 ``[N]``.
      client: Of each row, int64 ``[N]``; -1 for nobody's.
      num_clients: Number of clients.
    """
    # Stable, so that within a client the rows stay mixed as in the order.
    by_client = order[np.argsort(client[order], kind="stable")]
    return np.split(by_client, np.cumsum(np.bincount(client + 1, minlength=num_clients + 1))[:-1])[1:]


def rows_by_label_counts(random: np.random.Generator, codes: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Draws for each client so many examples of each class, without replacement and in random order.

    Args:
      random: Source of randomness.
      codes: The class of each example, int64 ``[N]``.
      counts: Examples of each class for each client, int64 ``[K, C]``; no column adds to more than there are.
    """
    num_clients, num_classes = counts.shape
    order = random.permutation(len(codes))
    left = np.bincount(codes, minlength=num_classes) - counts.sum(0)
    owner = np.tile(np.append(np.arange(num_clients), -1), num_classes)
    client = np.empty(len(codes), np.int64)
    client[order[np.argsort(codes[order], kind="stable")]] = np.repeat(owner, np.vstack([counts, left]).T.ravel())
    return rows_by_client(order, client, num_clients)


def drawn_counts(random: np.random.Generator, num_draws: int, shares: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Draws classes one after another; a class that is exhausted is removed and the shares renormalised.

    Args:
      random: Source of randomness.
      num_draws: At most what is left of all classes.
      shares: Probability of each class, ``[C]``.
      left: What is left of each class, int64 ``[C]``.

    Returns:
      How often each class was drawn, int64 ``[C]``.
    """
    counts = np.zeros_like(left)
    # To redraw an exhausted class is to ignore that it was drawn, so all draws but these are made at once.
    while (missing := num_draws - int(counts.sum())) > 0:
        free = left - counts
        shares = renormalised(random, shares, free)
        counts += np.minimum(random.multinomial(missing, shares), free)
    return counts


def renormalised(random: np.random.Generator, shares: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Returns the shares of the classes of which something is left, float64 ``[C]``, which add to 1."""
    p = np.where(left > 0, shares, 0.0)
    if not p.sum() > 0:
        # So skewed that 0 / 0 remains of them; in the limit of a small alpha all is one class, and so is what follows.
        p[random.choice(len(left), p=left / left.sum())] = 1.0
    return p / p.sum()
