"""Quantiles of the numbers in a column: from a fine histogram in one pass, by bisection, or followed round by round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedjx.analytics.dialogue import Dialogue, State
from fedjx.analytics.hierarchy import Tree, hierarchy_of, tree_of, tree_question
from fedjx.analytics.numbers import Range, bounds
from fedjx.analytics.question import Entry, Question, Total, once
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import Array, PyTree


def quantile(
    column: str, q: ArrayLike, *, low: float, high: float, num_bins: int | None = 1024, arity: int | None = None
) -> Question:
    """Asks for quantiles of the numbers in a column, in one pass, from how many there are in each of many bins.

    Between two records it is as `numpy.quantile` has it by default, and the records of a bin are taken to lie evenly in
    it: without noise the two differ by at most a bin, and not at all if each bin has one whole number.

    With noise on 1024 bins the number of records that lie below the median has the variance of 256 of them. With sums
    of neighbours, 4 at a time as in `hierarchical_histogram`, it is that of at most 16, at the same price. How far the
    value is off follows from it, see `Hierarchy.quantile`.

    Args:
      column: Of numbers ``[]``. They are clipped; NaN is left out.
      q: The shares of the records that are below, in ``[0, 1]``, of any shape.
      low: The least number.
      high: The largest.
      num_bins: How many bins there are, all as wide; None for a bin for each whole number, of a column of such: other
        numbers are rounded to them.
      arity: How many neighbours are summed, and their sums again: what `trust="central_dp"` and `"distributed_dp"`
        answer best with, and local reports cannot; None for bins alone.

    Returns:
      A `Question`; its answer is float64, of the shape of `q`, NaN if there are no numbers.

    Raises:
      ValueError: If shares, bounds or bins are none; if `low` and `high` are not whole where numbers are.

    >>> from fedjx.analytics import ask, quantile
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [k % 90, 40]} for k in range(2000)])
    >>> ask(quantile("age", [0.1, 0.5, 0.9], low=0, high=120, num_bins=None), ages).value
    array([17., 40., 71.])
    """
    check_number("[0, 1]", q=q)
    within, shares = bounds(low, high), np.asarray(q, np.float64)
    leaves = _Places(within, _number_of_bins(within, num_bins), num_bins is None)
    tree = Tree(leaves.size, leaves.size) if arity is None else tree_of(leaves.size, arity)
    edges = leaves.edges

    def estimate(total: Total) -> tuple[Any, Any]:
        return hierarchy_of(total, tree, edges, discrete=num_bins is None).quantile(shares)

    return tree_question(column, leaves, tree, estimate)


def median(column: str, *, low: float, high: float, num_bins: int | None = 1024, arity: int | None = None) -> Question:
    """Asks for the median of the numbers in a column, the `quantile` 0.5, whose arguments it has.

    >>> from fedjx.analytics import ask, median
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [31, 52]}, {"age": [7]}, {"age": [60, 64]}])
    >>> float(ask(median("age", low=0, high=120, num_bins=None), ages).value)
    52.0
    """
    return quantile(column, 0.5, low=low, high=high, num_bins=num_bins, arity=arity)


class _Places(NamedTuple):
    """Bins as wide as each other between two ends, into which numbers are clipped."""

    within: Range
    size: int
    are_whole: bool

    @property
    def edges(self) -> np.ndarray:
        low, high = self.within
        return low + np.arange(self.size + 1.0) if self.are_whole else np.linspace(low, high, self.size + 1)

    def bin_of(self, x: Array) -> Array:
        if self.are_whole:
            whole = self.within.clipped(x if jnp.issubdtype(x.dtype, jnp.integer) else jnp.round(x))
            found = whole.astype(jnp.int32) - int(self.within.low)
        else:
            place = (self.within.distance(x) + self.within.half) * (self.size / (2 * self.within.half))
            found = jnp.minimum(place.astype(jnp.int32), self.size - 1)
        return jnp.where(jnp.isnan(x), -1, found)


def _number_of_bins(within: Range, num_bins: int | None) -> int:
    if num_bins is not None:
        check_integer("[1, 2^31)", num_bins=num_bins)
        return num_bins
    if within.low != math.floor(within.low) or within.high != math.floor(within.high):
        raise ValueError(f"whole numbers lie between two of them; got {within}. Pass such, or num_bins.")
    return int(within.high - within.low) + 1


# --- in rounds ------------------------------------------------------------------------------------


def quantile_by_bisection(column: str, q: ArrayLike, *, low: float, high: float, num_rounds: int = 12) -> Dialogue:
    """Asks for quantiles of the numbers in a column, by halving where each may be, as often as there are rounds.

    In a round each record says how many of the quantiles' thresholds it exceeds: of one quantile yes or no, of which
    local reports are at their best. Without noise it comes, up to ``(high - low) / 2**(num_rounds + 1)``, to where the
    share of the records at most as large reaches `q`: `numpy.quantile` by the method "inverted_cdf". With noise it
    takes turns at random where the share is as near to `q` as the noise, and ends about as far off: its standard
    deviation is the share's, divided by the slope of the shares between the nearest thresholds that are twice that
    away. Where the slope changes much between them, such as in a tail that the noise hides, it can be further off. Of
    local reports it does not have how far the clients of one round differ from all, by chance.

    Args:
      column: Of numbers ``[]``; NaN is left out.
      q: The shares, in ``(0, 1)``, of any shape.
      low: The least that a quantile may be.
      high: The largest.
      num_rounds: How often it is halved. Noise is for all rounds together: more of them have more of it each.

    Returns:
      A `Dialogue`; its answer is float64, of the shape of `q`, NaN if there are no numbers.

    Raises:
      ValueError: If shares, bounds or rounds are none.

    >>> from fedjx.analytics import ask, quantile_by_bisection
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [k % 90, 40]} for k in range(2000)])
    >>> ask(quantile_by_bisection("age", [0.1, 0.5], low=0, high=128, num_rounds=14), ages).value.round(2)
    array([17., 40.])
    """
    check_number("(0, 1)", q=q)
    check_integer("[1, inf)", num_rounds=num_rounds)
    within, shares = bounds(low, high), np.asarray(q, np.float64)
    ends = np.full((2, shares.size), [[within.low], [within.high]])
    rounds = np.zeros((3, num_rounds, shares.size))

    def question(state: State, round: int) -> Question:
        return _exceeding(column, state["ends"].mean(0))

    def update(state: State, round: int, total: Total) -> State:
        thresholds, rounds = state["ends"].mean(0).astype(np.float32), state["rounds"].copy()
        rounds[:, round] = thresholds, *_at_most(thresholds, total)
        low, high = state["ends"]
        is_above = rounds[1, round] < shares.reshape(-1)
        ends = np.where(is_above, [thresholds, high], [low, thresholds])
        return {**state, "ends": ends, "rounds": rounds}

    def estimate(state: State) -> tuple[Any, Any]:
        columns = zip(shares.reshape(-1), np.moveaxis(state["rounds"], 2, 0), strict=True)
        off = np.array([_reach(share, within, *of) for share, of in columns])
        value = np.where(np.isnan(off), np.nan, state["ends"].mean(0))
        return value.reshape(shares.shape)[()], off.reshape(shares.shape)[()]

    begin = {"ends": ends, "rounds": rounds, "shares": shares}
    return Dialogue(num_rounds, begin, question, update, estimate)


def quantile_online(
    column: str,
    q: ArrayLike,
    *,
    initial: ArrayLike,
    num_rounds: int,
    learning_rate: float = 0.2,
    geometric: bool = True,
) -> Dialogue:
    """Asks for quantiles of the numbers in a column, by moving a guess a little in each round.

    Of the records of a round, the share b is at most the guess C; the next is ``C * exp(-learning_rate * (b - q))``,
    Andrew et al. (arXiv 1905.03871), section 2, or ``C - learning_rate * (b - q)`` for numbers that have a sign. Each
    round may ask another sample, and the guess follows what changes; it never comes to rest, but stays about as far off
    as a round moves it.

    Args:
      column: Of numbers ``[]``; NaN is left out.
      q: The shares, in ``(0, 1)``, of any shape.
      initial: The first guess, of the shape of `q`, or one for all; positive if it moves by a factor.
      num_rounds: How often it moves.
      learning_rate: How fast: a factor's logarithm, or in the unit of the numbers.
      geometric: Whether it moves by a factor.

    Returns:
      A `Dialogue`; its answer is float64, of the shape of `q`. It has no standard deviation.

    Raises:
      ValueError: If shares, guesses, rounds or rate are none.

    >>> from fedjx.analytics import ask, quantile_online
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [k % 90, 40]} for k in range(2000)])
    >>> print(ask(quantile_online("age", 0.9, initial=10, num_rounds=60), ages).value.round(1))
    70.4
    """
    check_number("(0, 1)", q=q)
    check_integer("[1, inf)", num_rounds=num_rounds)
    check_number("(0, inf)", learning_rate=learning_rate)
    check_number("(0, inf)" if geometric else "(-inf, inf)", initial=initial)
    shares = np.asarray(q, np.float64)
    first = np.broadcast_to(np.asarray(initial, np.float64), shares.shape).reshape(-1)

    def question(state: State, round: int) -> Question:
        return _exceeding(column, state["guess"])

    def update(state: State, round: int, total: Total) -> State:
        guess, below = state["guess"], _at_most(state["guess"], total)[0]
        step = learning_rate * (np.where(np.isnan(below), shares.reshape(-1), below) - shares.reshape(-1))
        return {**state, "guess": guess * np.exp(-step) if geometric else guess - step}

    def estimate(state: State) -> tuple[Any, None]:
        return state["guess"].reshape(shares.shape)[()], None

    begin = {"guess": first, "shares": shares, "rule": np.array([learning_rate, geometric])}
    return Dialogue(num_rounds, begin, question, update, estimate)


def _exceeding(column: str, thresholds: np.ndarray) -> Question:
    """Asks how many records exceed so many of the thresholds, as float32."""
    number = len(thresholds) + 1
    return Question((column,), _Exceeded(column), number, _counts, once, told=thresholds.astype(np.float32))


class _Exceeded(NamedTuple):
    column: str

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        x = record[self.column].astype(jnp.float32)
        return Entry(jnp.where(jnp.isnan(x), -1, jnp.sum(x > told, dtype=jnp.int32)))


def _counts(total: Total) -> tuple[Any, Any]:
    return total.table[:, 0], np.sqrt(total.variance[:, 0])


def _at_most(thresholds: np.ndarray, total: Total) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shares of the records that are at most some thresholds, with their standard deviations, ``[k]``."""
    counts = total.table[:, 0]
    if not counts.sum() > 0:
        return np.full(len(thresholds), np.nan), np.full(len(thresholds), np.nan)
    places = thresholds.argsort(kind="stable").argsort(kind="stable")
    are_below = np.arange(len(counts)) <= places[:, None]
    shares = are_below @ counts / counts.sum()
    gradients = (are_below - shares[:, None]) / counts.sum()
    return shares, np.array([total.stddev(gradient) for gradient in gradients])


def _reach(q: float, within: Range, thresholds: np.ndarray, shares: np.ndarray, stddevs: np.ndarray) -> float:
    """Returns how far a quantile may be off: as far as the shares are, over how fast they grow around it."""
    if np.isnan(shares).all():
        return math.nan
    below, above = shares < q - 2 * stddevs, shares > q + 2 * stddevs
    ends = [(within.low, 0.0), *zip(thresholds[below], shares[below], strict=True)]
    others = [(within.high, 1.0), *zip(thresholds[above], shares[above], strict=True)]
    (low, least), (high, most) = max(ends), min(others)
    slope = (most - least) / (high - low)
    return float(np.nanmean(stddevs) / slope) if slope > 0 else math.inf
