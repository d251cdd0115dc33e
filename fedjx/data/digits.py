"""The handwritten digits of scikit-learn as a small federated data set that needs no download."""

from __future__ import annotations

import numpy as np

from fedjx.core.language.checks import check_integer, check_number
from fedjx.data.federated_data import FederatedData
from fedjx.data.partitions.dirichlet import dirichlet_partition


def digits(
    num_clients: int = 50, *, alpha: float = 0.5, seed: int = 0, test_fraction: float = 0.2
) -> tuple[FederatedData, dict[str, np.ndarray]]:
    """Loads 1,797 images of digits, split into clients with skewed labels and a central test set.

    Features: ``x`` uint8 ``[N, 8, 8, 1]``, grey values from 0 to 16, and ``y`` int32 ``[N]``, the digit.

    Args:
      num_clients: Number of clients.
      alpha: Concentration of the Dirichlet label skew, see `dirichlet_partition`.
      seed: Non-negative integer, for the test set and for the partition.
      test_fraction: Share of each class that is held out, in (0, 1).

    Returns:
      The clients' examples, and the test set as features by name.

    Raises:
      ImportError: If scikit-learn is not installed.
      ValueError: If `test_fraction` is not in (0, 1), and as `dirichlet_partition`.

    >>> train, test = digits(num_clients=10)
    >>> train
    FederatedData(num_clients=10, num_examples=1438, examples=<x=uint8[8,8,1],y=int32>)
    >>> test["x"].shape
    (359, 8, 8, 1)
    """
    check_number("(0, 1)", test_fraction=test_fraction)
    check_integer("[0, inf)", seed=seed)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn; got no such package. pip install scikit-learn."
        ) from error

    images, labels = map(np.asarray, load_digits(return_X_y=True))
    examples = {"x": images.reshape(-1, 8, 8, 1).astype(np.uint8), "y": labels.astype(np.int32)}
    # A stream of its own: the partition is drawn from Philox(seed).
    held_out = _stratified(labels, test_fraction, np.random.Generator(np.random.Philox([seed, 1])))
    train = {name: column[~held_out] for name, column in examples.items()}
    test = {name: column[held_out] for name, column in examples.items()}
    partition = dirichlet_partition(train["y"], num_clients, alpha=alpha, seed=seed)
    return FederatedData.from_partition(train, partition), test


def _stratified(labels: np.ndarray, fraction: float, random: np.random.Generator) -> np.ndarray:
    """Chooses the same share of each class, up to rounding; bool ``[N]``."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        chosen[rows[: round(fraction * len(rows))]] = True
    return chosen
