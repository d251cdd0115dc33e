"""Over-selection: more clients are chosen than are needed, and the first to report make the round.

Bonawitz et al., "Towards Federated Learning at Scale: System Design" (arXiv 1902.01046, sections 2.2 and 9: 130 % of
the goal are chosen, to make up for drop-outs of 6 to 10 %).

Who reports is decided on the host, before the round. It is a function of (seed, round, client) alone, so nothing that
clients compute is needed for it; who does not report is then not simulated, streaming needs no second pass, and it
works with every algorithm, which never hears of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjx.core.language.checks import check_integer, check_number
from fedjx.data.random_words import below, checked_word, hashed, words
from fedjx.data.sampling import Sampler, described, sorted_ids

# Streams of words of one (seed, round), none of which a sampler uses: it may have the same seed.
_DROP, _TIME = 32, 33


class Reports(NamedTuple):
    """Who of a round's clients reports.

    Attributes:
      ids: The clients whose reports count, in increasing order, int32 ``[R]``.
      num_dropped: How many were lost before they reported.
      num_late: How many reports came after the goal was reached, and were discarded.
      time: When the last report that counts came; 0 if none did.
    """

    ids: np.ndarray
    num_dropped: int
    num_late: int
    time: float


def exponential_times(ids: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Returns exponential times of mean 1, ``[C]``, whoever the clients are."""
    del ids
    return -np.log1p(-uniform)


def over_select(
    sampler: Sampler,
    reporting_goal: int,
    *,
    seed: int,
    dropped: float = 0.0,
    times: Callable[[np.ndarray, np.ndarray], np.ndarray] = exponential_times,
) -> tuple[Sampler, Callable[[int], Reports]]:
    """Keeps, of the clients that a sampler selects, the first ones to report.

    If fewer than the goal report, the round goes on with those; it may be empty, as a cohort of `poisson_sampler` may.

    Guarantees: a function of (seed, round) and of the arguments; whether and when a client reports depends on
    (seed, round, id) alone. Of equal times, that of the smaller id counts.

    Beware that the model learns less from clients that are slow, if `times` depend on the client, and that an
    accountant of differential privacy is told of the clients selected, not of those that report.

    Args:
      sampler: Selects clients, without replacement.
      reporting_goal: How many reports count; R is at most that.
      seed: Integer in ``[0, 2^64)``; it may be that of the sampler.
      dropped: The probability with which a selected client is lost before it reports.
      times: ``(ids [C], uniform [C]) -> [C]``, from numbers uniform in [0, 1) to when the clients report, such as a
        quantile function; infinite if never, which counts as dropped.

    Returns:
      The `Sampler` of those that report in time, whose description has that of the sampler as ``selected``; and the
      function from the round to its `Reports`, for the counts.

    Raises:
      ValueError: If the goal is not positive, the probability is none, the sampler repeats clients, or a time is NaN.

    >>> sample, report = over_select(fedjx.data.uniform_sampler(1000, 13, seed=0), 10, seed=0, dropped=0.1)
    >>> [(len(sample(round)), report(round).num_dropped, report(round).num_late) for round in (4, 5, 6)]
    [(10, 1, 2), (10, 0, 3), (10, 2, 1)]
    """
    seed = checked_word("seed", seed)
    check_integer("[1, inf)", reporting_goal=reporting_goal)
    check_number("[0, 1]", dropped=dropped)
    selected = sampler.description
    if selected.get("replacement", False):
        raise ValueError("a client reports once; got a sampler with replacement. Sample without.")

    def report(round: int) -> Reports:
        ids = sampler(round)
        is_dropped = below(_words(ids, seed, round, _DROP), dropped)
        uniform = (_words(ids, seed, round, _TIME) >> np.uint64(11)) * 2.0**-53
        arrival = np.where(is_dropped, np.inf, times(ids, uniform))
        if np.isnan(arrival).any():
            raise ValueError(f"a client reports at some time or never; got NaN for {ids[np.isnan(arrival)][0]}.")
        order = np.lexsort((ids, arrival))
        num_reports = int(np.isfinite(arrival).sum())
        first = order[: min(reporting_goal, num_reports)]
        last = float(arrival[first[-1]]) if len(first) else 0.0
        return Reports(sorted_ids(ids[first]), len(ids) - num_reports, num_reports - len(first), last)

    own = {"reporting_goal": reporting_goal, "dropped": dropped, "times": times.__qualname__}
    promises = {"replacement": False, "min_separation": selected.get("min_separation", 1)}
    num_clients = selected.get("num_clients")
    entries = described("over_select", num_clients, seed=seed, **own, **promises, selected=dict(selected))
    return Sampler(lambda round: report(round).ids, entries), report


def _words(ids: np.ndarray, seed: int, round: int, stream: int) -> np.ndarray:
    """Draws a 64-bit word for each client, whoever else is there."""
    return hashed(ids, words(2, seed, round, stream))
