"""Krum, multi-Krum and Bulyan: rules of pairwise distances.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent" (NeurIPS 2017, sections 4
and 5); El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium" (arXiv 1802.07927,
section 4). n is the number of clients that take part, f that of malicious ones. Weights say only who takes part: a
weighted choice among clients has no guarantee. Equal scores go to the first in the cohort. All materialise the members.

Where fewer clients take part than the guarantee needs, as many are left out as can be, one is kept at least, and
``num_missing_clients`` is measured.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.aggregation.column_sort import by_columns, sorted_columns, sorted_with
from fedjx.aggregation.votes import rule_of_members
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.checks import check_integer


def krum(*, num_malicious: int) -> Aggregator:
    """Takes the member that is nearest to its n - f - 2 nearest others, by the sum of squared distances.

    Survives f malicious clients if n > 2f + 2.

    Args:
      num_malicious: f.
    """
    return multi_krum(num_malicious=num_malicious, num_selected=1)


def multi_krum(*, num_malicious: int, num_selected: int) -> Aggregator:
    """Takes the mean of the members with the lowest Krum scores.

    Survives f malicious clients if n > 2f + 2 and ``num_selected <= n - f``.

    Args:
      num_malicious: f.
      num_selected: How many members to average; all that take part, if these are fewer.
    """
    _check(num_malicious)
    check_integer("[1, inf)", num_selected=num_selected)

    def rule(matrix: jax.Array, weight: jax.Array) -> jax.Array:
        alive = weight > 0
        scores = krum_scores(squared_distances(matrix), alive, num_malicious)
        order = jnp.lexsort((scores, ~alive))
        chosen = (jnp.arange(len(order)) < num_selected) & alive[order]
        return jnp.sum(jnp.where(chosen[:, None], matrix[order], 0.0), axis=0) / jnp.sum(chosen)

    return rule_of_members(rule, num_needed=max(2 * num_malicious + 3, num_selected + num_malicious))


def bulyan(*, num_malicious: int) -> Aggregator:
    """Picks n - 2f members by Krum, one after another, then averages the n - 4f nearest to the median by coordinate.

    Survives f malicious clients if n >= 4f + 3; no coordinate of the result is theirs to choose.

    Args:
      num_malicious: f.
    """
    _check(num_malicious)

    def rule(matrix: jax.Array, weight: jax.Array) -> jax.Array:
        number = jnp.sum(weight > 0)
        picked = _bulyan_picks(squared_distances(matrix), weight > 0, num_malicious)
        num_picked, num_kept = jnp.sum(picked), jnp.maximum(number - 4 * num_malicious, 1)

        def middle(columns: jax.Array) -> jax.Array:
            ordered = sorted_columns(jnp.where(picked[:, None], columns, jnp.inf))
            median = ordered[(num_picked - 1) // 2] / 2 + ordered[num_picked // 2] / 2
            far = jnp.where(picked[:, None], jnp.abs(columns - median[None]), jnp.inf)
            nearest = sorted_with(far, columns)[1]
            kept = jnp.arange(len(nearest))[:, None] < num_kept
            return jnp.sum(jnp.where(kept, nearest, 0.0), axis=0) / num_kept

        return by_columns(middle, matrix)

    return rule_of_members(rule, num_needed=4 * num_malicious + 3)


def squared_distances(matrix: jax.Array) -> jax.Array:
    """Returns the squared distances ``[n, n]`` between the rows of ``[n, d]``.

    They are computed from differences, not from inner products, which lose all digits beside a row of huge numbers.
    """
    return lax.map(lambda row: jnp.sum(jnp.square(matrix - row[None]), axis=1), matrix)


def krum_scores(distances: jax.Array, alive: jax.Array, num_malicious: int) -> jax.Array:
    """Sums each row's smallest distances, n - f - 2 of them and at least one, to others that are alive."""
    number = jnp.sum(alive)
    num_neighbours = jnp.minimum(jnp.maximum(number - num_malicious - 2, 1), number - 1)
    others = alive[None, :] & ~jnp.eye(len(alive), dtype=bool)
    nearest = jnp.sort(jnp.where(others, distances, jnp.inf), axis=1)
    return jnp.sum(jnp.where(jnp.arange(len(alive))[None] < num_neighbours, nearest, 0.0), axis=1)


def _bulyan_picks(distances: jax.Array, alive: jax.Array, num_malicious: int) -> jax.Array:
    """Picks n - 2f rows, at least one: each time the one of the lowest score among those left; bool ``[n]``."""
    num_picks = jnp.maximum(jnp.sum(alive) - 2 * num_malicious, 1)

    def pick(_: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, picked = carry
        best = jnp.lexsort((krum_scores(distances, left, num_malicious), ~left))[0]
        return left.at[best].set(False), picked.at[best].set(True)

    return lax.fori_loop(0, num_picks, pick, (alive, jnp.zeros_like(alive)))[1]


def _check(num_malicious: int) -> None:
    check_integer("[0, inf)", num_malicious=num_malicious)
