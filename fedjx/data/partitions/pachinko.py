"""Partitions in which every client has its own distribution of labels: Dirichlet, and Pachinko allocation."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_choice, check_number, check_same_length
from fedjx.data.partitions.allocation import (
    checked_sizes,
    classes,
    drawn_counts,
    generator,
    renormalised,
    rows_by_label_counts,
    warn_dropped,
)

_REMEDY = "Give sizes that add to the number of examples to use all."


def dirichlet_by_client_partition(
    labels: ArrayLike,
    sizes: int | ArrayLike,
    *,
    alpha: float,
    seed: int,
    prior: ArrayLike | None = None,
    concentration: Literal["total", "per_class"] = "total",
    turns: Literal["client", "example"] = "client",
) -> list[np.ndarray]:
    """Distributes examples with skewed labels to clients of given, for example equal, sizes.

    Client k draws its label distribution ``q_k ~ Dirichlet(alpha * prior)``, where the prior adds to 1, and then its
    examples one after another without replacement; an exhausted class is removed and ``q_k`` renormalised (Hsu
    et al. 2019, arXiv:1909.06335). Drawing one client after another, here in random order, leaves to the last what
    the others have not taken, whatever alpha, if all examples are used; ``turns="example"`` spreads that over all.

    Two numbers are called alpha in the literature: with ``concentration="total"``, as in that paper, a uniform
    prior gives each of C classes the parameter ``alpha / C``; with "per_class", as in most later work, `alpha`,
    so the same number means C times less skew.

    Args:
      labels: The class of each example, ``[N]``.
      sizes: Number of examples of each client, integers ``[K]``; or K, to share all equally up to one. If they
        add to less than N, the others are in no client and a warning counts them.
      alpha: Concentration, more than 0.
      seed: Non-negative integer.
      prior: Weights of the C classes that occur, in their order, all more than 0; uniform if not given.
      concentration: What `alpha` is of: all classes together, or each on average.
      turns: Whether a client draws all its examples when it has its turn, or one.

    Returns:
      For each client the rows of its examples in random order, int64 ``[n_k]``; no row is in two clients.

    Raises:
      ValueError: If the arguments are out of range, or the sizes add to more than N.

    >>> parts = dirichlet_by_client_partition(np.arange(100) % 10, 8, alpha=1.0, seed=0)
    >>> [len(rows) for rows in parts]
    [13, 13, 13, 13, 12, 12, 12, 12]
    """
    names, codes = classes(labels)
    sizes = checked_sizes(len(codes), sizes)
    parameters = _parameters(len(names), alpha, prior, concentration)
    check_choice(("client", "example"), turns=turns)
    random = generator(seed)
    shares = random.dirichlet(parameters, len(sizes))
    draw = _drawn_by_client if turns == "client" else _drawn_by_example
    counts = draw(random, sizes, shares, np.bincount(codes))
    warn_dropped(len(codes) - counts.sum(), len(codes), _REMEDY)
    return rows_by_label_counts(random, codes, counts)


def pachinko_partition(
    coarse: ArrayLike,
    fine: ArrayLike,
    sizes: int | ArrayLike,
    *,
    seed: int,
    coarse_alpha: float = 0.1,
    fine_alpha: float = 10.0,
) -> list[np.ndarray]:
    """Distributes examples whose labels form a tree, as CIFAR-100 is distributed in TFF: Pachinko allocation.

    Client k draws a distribution of the coarse labels, ``Dirichlet(coarse_alpha)``, and one of the fine labels
    under each coarse one, ``Dirichlet(fine_alpha)``. For each example it draws a coarse label, a fine label
    under it, and an example of this without replacement. An exhausted fine label is removed and its siblings
    renormalised; so is a coarse label under which all are exhausted (Reddi et al. 2021, arXiv:2003.00295, appendix F).
    The clients take turns in random order, since the last get what is left.

    Args:
      coarse: The coarse label of each example, ``[N]``.
      fine: The fine label of each example, ``[N]``, which determines the coarse one.
      sizes: Number of examples of each client, integers ``[K]``; or K, to share all equally up to one. If they
        add to less than N, the others are in no client and a warning counts them.
      seed: Non-negative integer.
      coarse_alpha: Concentration of each coarse label, more than 0.
      fine_alpha: Concentration of each fine label, more than 0.

    Returns:
      For each client the rows of its examples in random order, int64 ``[n_k]``; no row is in two clients.

    Raises:
      ValueError: If the arguments are out of range, the labels form no tree, or the sizes add to more than N.

    >>> fine = np.arange(500) % 10
    >>> parts = pachinko_partition(fine // 5, fine, 25, seed=0)
    >>> {len(rows) for rows in parts}, len(np.unique(np.concatenate(parts)))
    ({20}, 500)
    """
    check_number(
        "(0, inf)", "Near 0 it is all skew; iid_partition has none.", coarse_alpha=coarse_alpha, fine_alpha=fine_alpha
    )
    children, codes = _tree(coarse, fine)
    sizes = checked_sizes(len(codes), sizes)
    random = generator(seed)
    left = np.bincount(codes)
    counts = np.zeros((len(sizes), len(left)), np.int64)
    for k in random.permutation(len(sizes)):
        shares = random.dirichlet(np.full(len(children), float(coarse_alpha)))
        draws = drawn_counts(random, int(sizes[k]), shares, np.array([left[below].sum() for below in children]))
        for parent in np.flatnonzero(draws):
            below = children[parent]
            shares = random.dirichlet(np.full(len(below), float(fine_alpha)))
            counts[k, below] = drawn_counts(random, int(draws[parent]), shares, left[below])
        left -= counts[k]
    warn_dropped(left.sum(), len(codes), _REMEDY)
    return rows_by_label_counts(random, codes, counts)


def _drawn_by_client(
    random: np.random.Generator, sizes: np.ndarray, shares: np.ndarray, left: np.ndarray
) -> np.ndarray:
    counts = np.zeros(shares.shape, np.int64)
    for k in random.permutation(len(sizes)):
        counts[k] = drawn_counts(random, int(sizes[k]), shares[k], left)
        left = left - counts[k]
    return counts


def _drawn_by_example(
    random: np.random.Generator, sizes: np.ndarray, shares: np.ndarray, left: np.ndarray
) -> np.ndarray:
    counts, left = np.zeros(shares.shape, np.int64), left.copy()
    draws = [iter(random.choice(len(left), n, p=q).tolist()) for n, q in zip(sizes, shares, strict=True)]
    for k in random.permutation(np.repeat(np.arange(len(sizes)), sizes)).tolist():
        label = next(draws[k])
        if not left[label]:
            shares[k] = renormalised(random, shares[k], left)
            label = random.choice(len(left), p=shares[k])
        counts[k, label] += 1
        left[label] -= 1
    return counts


def _parameters(num_classes: int, alpha: float, prior: ArrayLike | None, concentration: str) -> np.ndarray:
    check_number("(0, inf)", "Near 0 it is all skew; iid_partition has none.", alpha=alpha)
    weights = np.ones(num_classes) if prior is None else np.asarray(prior, float)
    if weights.shape != (num_classes,) or not ((weights > 0) & (weights < np.inf)).all():
        raise ValueError(
            f"prior needs a positive weight for each of {num_classes} classes; got {weights.tolist()}. "
            "Leave out the examples of a class that nobody is to have."
        )
    check_choice(("total", "per_class"), concentration=concentration)
    return alpha * weights / weights.sum() * (num_classes if concentration == "per_class" else 1)


def _tree(coarse: ArrayLike, fine: ArrayLike) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns which fine labels are under each coarse one, and the fine label of each example, as numbers."""
    _, parents = classes(coarse)
    names, codes = classes(fine)
    check_same_length("Give every example both labels.", coarse=parents, fine=codes)
    parent = np.empty(len(names), np.int64)
    parent[codes] = parents
    stray = np.flatnonzero(parent[codes] != parents)
    if len(stray):
        raise ValueError(
            f"a fine label needs to be under one coarse label; got several for {names[codes[stray[0]]]} "
            f"({len(np.unique(codes[stray]))} labels in all). Correct the labels."
        )
    return [np.flatnonzero(parent == code) for code in range(parent.max() + 1)], codes
