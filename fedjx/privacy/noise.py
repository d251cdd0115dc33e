"""Noise over the rounds of a run: independent, of a binary tree, or correlated by a matrix.

Each is noise of the *sum over all rounds so far*, given out round by round as what it changes by. Server optimizers
that are linear, such as SGD with momentum, then are DP-FTRL: Kairouz et al., "Practical and Private (Deep) Learning
without Sampling or Shuffling" (arXiv 2103.00039, algorithms 1 and B.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import number_dtype
from fedjx.privacy.events import Independent, Kind, Laplacian, Matrix, Tree


class Noise(NamedTuple):
    """Noise, round by round, for a sensitivity of 1 and a noise multiplier of 1.

    Attributes:
      init: ``(member) -> state``, for values of the type of ``member``.
      next: ``(key, state, member) -> (state, noise)``, noise of the shapes of ``member``, in float32 or wider.
      kind: What an accountant is told of it.
    """

    init: Callable[[PyTree], PyTree]
    next: Callable[[jax.Array, PyTree, PyTree], tuple[PyTree, PyTree]]
    kind: Kind


def independent() -> Noise:
    """Draws anew in every round, as DP-FedAvg does.

    >>> state, noise = independent().next(jax.random.key(0), (), jnp.zeros(3))
    >>> noise.shape
    (3,)
    """
    return Noise(lambda member: (), lambda key, state, member: (state, _normal(key, member)), Independent())


def laplace() -> Noise:
    """Draws Laplace noise anew in every round: with it, `dp_mean` clips the L1 norm, and delta can be very small.

    >>> state, noise = laplace().next(jax.random.key(0), (), jnp.zeros(3))
    >>> noise.shape
    (3,)
    """

    def next(key: jax.Array, state: PyTree, member: PyTree) -> tuple[PyTree, PyTree]:
        return state, _drawn(jax.random.laplace, key, member)

    return Noise(lambda member: (), next, Laplacian())


class TreeState(NamedTuple):
    """The nodes of a tree that the next prefix needs.

    Attributes:
      rounds: int32 ``[]``; leaves of all trees so far.
      nodes: ``[levels, ...]``; the last node of each level.
      prefix: ``[...]``; the noise on the sum of the tree's leaves so far.
    """

    rounds: jax.Array
    nodes: PyTree
    prefix: PyTree


def tree(num_rounds: int, *, warm_up: int | None = None, efficient: bool = True) -> Noise:
    """Adds noise to the nodes of a binary tree over the rounds; the noise of a prefix is that of few nodes.

    Its variance after t rounds is the number of ones among the binary digits of t, or about half of that.

    Args:
      num_rounds: Leaves of a tree. After so many rounds the next one begins, and the noise so far stays.
      warm_up: Leaves of the first tree, up to as many; as many if not given.
      efficient: Whether what is known of the subtrees makes better estimates, Honaker, "Efficient Use of
        Differentially Private Binary Trees" (2015): the sum over the ones, at digit d, of ``2^d / (2^(d+1) - 1)``.

    Returns:
      `Noise` with a `TreeState` of ``floor(log2(num_rounds)) + 2`` times the parameters.
    """
    check_integer("[1, 2^30]", num_rounds=num_rounds)
    first_rounds = num_rounds if warm_up is None else warm_up
    check_integer(f"[1, {num_rounds}]", warm_up=first_rounds)
    levels = num_rounds.bit_length()
    share = 1 / (2 - 2.0 ** -np.arange(levels)) if efficient else np.ones(levels)

    def init(member: PyTree) -> TreeState:
        zeros = _zeros(member)
        nodes = jax.tree.map(lambda x: jnp.zeros((levels, *x.shape), x.dtype), zeros)
        return TreeState(jnp.int32(0), nodes, zeros)

    def next(key: jax.Array, state: TreeState, member: PyTree) -> tuple[TreeState, PyTree]:
        later = (state.rounds - first_rounds) % num_rounds
        count = jnp.where(state.rounds < first_rounds, state.rounds, later)
        before = jax.tree.map(lambda x: jnp.where(count == 0, 0, x), state.prefix)

        def join(node: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
            level, right = node
            fresh = _normal(jax.random.fold_in(key, level + 1), member)
            if efficient:
                fresh = jax.tree.map(lambda new, n, r: new + (n[level] + r) / 2, fresh, state.nodes, right)
            return level + 1, fresh

        leaf = jnp.int32(0), _normal(jax.random.fold_in(key, 0), member)
        level, node = lax.while_loop(lambda at: (count >> at[0]) & 1 == 1, join, leaf)
        nodes = jax.tree.map(lambda n, new: n.at[level].set(new), state.nodes, node)
        digits = (count + 1 >> jnp.arange(levels)) & 1
        prefix = jax.tree.map(lambda n: jnp.tensordot(digits * jnp.asarray(share, n.dtype), n, 1), nodes)
        return TreeState(state.rounds + 1, nodes, prefix), jax.tree.map(jnp.subtract, prefix, before)

    return Noise(init, next, Tree(num_rounds, first_rounds))


class Strategy(NamedTuple):
    """A lower triangular Toeplitz matrix C whose inverse correlates noise; its first column is not negative and falls.

    Attributes:
      coefficients: Of the first column, the first few; all others are 0. Or, in front of `decays`, only the first.
      scales: With ``decays``, the column goes on as ``sum(scales * decays**(k - 1))`` for rows ``k >= 1``.
      decays: In [0, 1).
    """

    coefficients: tuple[float, ...]
    scales: tuple[float, ...] = ()
    decays: tuple[float, ...] = ()

    def column(self, num_rounds: int) -> np.ndarray:
        """Returns the first column of the matrix, float64 ``[num_rounds]``."""
        column = np.zeros(num_rounds)
        column[: len(self.coefficients)] = self.coefficients[:num_rounds]
        if self.decays:
            powers = np.array(self.decays) ** np.arange(num_rounds - 1)[:, None]
            column[1:] += powers @ np.array(self.scales)
        return column


def sensitivity(strategy: Strategy, num_rounds: int, *, min_separation: int, max_participations: int) -> float:
    """Returns the norm of the change in C times the rounds' sums that one client of norm 1 can make.

    For columns that fall, the worst rounds are the first and every ``min_separation``-th after it: Kalinin & Lampert,
    "Banded Square Root Matrix Factorization" (arXiv 2405.13763, theorem 2).

    >>> sensitivity(Strategy((1.0,)), 64, min_separation=8, max_participations=4)
    2.0
    """
    column, total = strategy.column(num_rounds), np.zeros(num_rounds)
    for start in range(0, min(num_rounds, min_separation * max_participations), min_separation):
        total[start:] += column[: num_rounds - start]
    return float(np.linalg.norm(total))


class MatrixState(NamedTuple):
    """What the next noise is made of.

    Attributes:
      last: ``[bands - 1, ...]``; the noise of the rounds before, the latest first.
      buffers: ``[buffers, ...]``; sums of the noise of all rounds before, which decay.
    """

    last: PyTree
    buffers: PyTree


def matrix(strategy: Strategy, num_rounds: int, *, min_separation: int, max_participations: int | None = None) -> Noise:
    """Correlates the noise of rounds by the inverse of a matrix, so that much of it cancels in the sum.

    Choquette-Choo et al., "(Amplified) Banded Matrix Factorization" (arXiv 2306.08153), for bands; Dvijotham et al.,
    "Efficient and Near-Optimal Noise Generation for Streaming Differential Privacy" (arXiv 2404.16706), for buffers.

    Args:
      strategy: The matrix.
      num_rounds: The most rounds of a run.
      min_separation: The least number of rounds from one participation of a client to its next.
      max_participations: The most rounds with one client; by default as many as that separation lets it have.

    Raises:
      ValueError: If the first column of the matrix does not fall, or has less than 0 in it.
    """
    check_integer("[1, inf)", num_rounds=num_rounds, min_separation=min_separation)
    most = -(-num_rounds // min_separation)
    participations = most if max_participations is None else max_participations
    check_integer(f"[1, {most}]", "A client cannot be there more often.", max_participations=participations)
    _check_falls(strategy.column(num_rounds))
    norm = sensitivity(strategy, num_rounds, min_separation=min_separation, max_participations=participations)
    share = sensitivity(strategy, num_rounds, min_separation=num_rounds, max_participations=1) / norm
    first, *bands = strategy.coefficients
    num_bands = None if strategy.decays else len(strategy.coefficients)

    def init(member: PyTree) -> MatrixState:
        def held(number: int) -> PyTree:
            return jax.tree.map(lambda x: jnp.zeros((number, *x.shape), x.dtype), _zeros(member))

        return MatrixState(held(len(bands)), held(len(strategy.decays)))

    def next(key: jax.Array, state: MatrixState, member: PyTree) -> tuple[MatrixState, PyTree]:
        def solved(z: jax.Array, last: jax.Array, buffers: jax.Array) -> jax.Array:
            return (norm * z - _dot(bands, last) - _dot(strategy.scales, buffers)) / first

        noise = jax.tree.map(solved, _normal(key, member), *state)
        last = jax.tree.map(lambda n, held: jnp.concatenate([n[None], held])[: len(bands)], noise, state.last)
        buffers = jax.tree.map(lambda n, held: _along(strategy.decays, held) + n[None], noise, state.buffers)
        return MatrixState(last, buffers), noise

    return Noise(init, next, Matrix(num_rounds, min_separation, participations, num_bands, share))


def _check_falls(column: np.ndarray) -> None:
    if not (column[0] > 0 and (column >= 0).all() and (np.diff(column) <= 1e-12).all()):
        raise ValueError(
            "the first column of a strategy is positive, never below 0, and falls, or its sensitivity is not known; "
            f"got {np.round(column[:4], 4).tolist()}... Optimize it with that constraint."
        )


def _dot(weights: Sequence[float], x: jax.Array) -> jax.Array:
    return jnp.tensordot(jnp.asarray(weights, x.dtype), x, 1)


def _along(weights: Sequence[float], x: jax.Array) -> jax.Array:
    return jnp.asarray(weights, x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * x


def _zeros(member: PyTree) -> PyTree:
    dtype = number_dtype(member)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), member)


def _normal(key: jax.Array, member: PyTree) -> PyTree:
    return _drawn(jax.random.normal, key, member)


def _drawn(draw: Callable[..., jax.Array], key: jax.Array, member: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(member)
    keys, dtype = jax.random.split(key, max(len(leaves), 1)), number_dtype(member)
    # Drawn in float32, so that it is the same noise for values of any dtype.
    drawn = [draw(k, x.shape, jnp.float32) for k, x in zip(keys, leaves, strict=False)]
    return treedef.unflatten([x.astype(dtype) for x in drawn])
