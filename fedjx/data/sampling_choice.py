"""Samplers that are told what clients reported, such as power of choice.

What was reported is a value of its own, an array with a number for each client, which goes into the checkpoint beside
the server's state: a sampler is still a pure function, of (seed, round, reports).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_integer
from fedjx.data.random_words import checked_word, hashed, words
from fedjx.data.sampling import Sampler, described, sorted_ids

_TIES = 40  # A stream of words of one (seed, round) that no other sampler uses.


class ToldSampler(NamedTuple):
    """A function from the round and from what clients reported to the ids of a cohort.

    Attributes:
      num_clients: Size of the population.
      draw: The function; returns int32 ``[C]`` from a round and float64 ``[num_clients]``.
      description: What makes two samplers the same, as a `Sampler` has it.
    """

    num_clients: int
    draw: Callable[[int, np.ndarray], np.ndarray]
    description: dict[str, Any]

    def init(self) -> np.ndarray:
        """Returns the reports before the first round, float64 ``[num_clients]``: infinite, as nobody reported yet."""
        return np.full(self.num_clients, np.inf)

    def told(self, reports: np.ndarray, ids: ArrayLike, values: ArrayLike) -> np.ndarray:
        """Returns the reports with those of a round in the place of what the same clients said before.

        Args:
          reports: Those before, float64 ``[num_clients]``; they stay as they are.
          ids: Who reported, integers ``[R]``.
          values: What, ``[R]``, such as losses. Whose is not finite, as of clients without examples, comes last.

        Raises:
          ValueError: If an id does not exist, or there is not a value for each.
        """
        ids, values = np.asarray(ids), np.asarray(values, np.float64)
        if ids.shape != values.shape or ids.ndim != 1:
            raise ValueError(
                f"each client reports one number; got ids {list(ids.shape)} and values {list(values.shape)}. "
                "Give [R] of both."
            )
        _check_clients(ids, self.num_clients)
        told = np.array(_checked(reports, self.num_clients))
        told[ids] = np.where(np.isfinite(values), values, -np.inf)
        return told

    def __call__(self, round: int, reports: np.ndarray) -> np.ndarray:
        """Returns the ids of the round's cohort in increasing order, int32 ``[C]``."""
        return self.draw(round, _checked(reports, self.num_clients))


def power_of_choice(candidates: Sampler, cohort_size: int, *, seed: int) -> ToldSampler:
    """Chooses, of some candidates, those who reported the largest numbers, such as the largest losses.

    Cho, Wang & Joshi, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection
    Strategies" (arXiv 2010.01243, section 4): candidates are drawn in proportion to their numbers of examples, and
    those of the largest loss are chosen. With losses that clients reported when they were last in a cohort it is their
    "rpow-d", which costs no communication; tell it losses of the present model for "pow-d". Numbers of another kind,
    such as the sizes of updates, choose likewise. Who has not reported is chosen first, and ties are broken at random.

    Guarantees: a function of (seed, round, reports) and of the sampler of candidates. With as many candidates as are
    chosen it is that sampler.

    Args:
      candidates: Draws them, such as `size_weighted_sampler`; its ids are numbers below its ``num_clients``.
      cohort_size: How many of them make a cohort; all, where there are fewer candidates.
      seed: Integer in ``[0, 2^64)``; it may be that of the candidates.

    Raises:
      ValueError: If a number is out of range, or the sampler does not say its number of clients.

    >>> sample = power_of_choice(fedjx.data.uniform_sampler(100, 5, seed=0), 2, seed=0)
    >>> reports = sample.told(sample.init(), np.arange(100), np.arange(100) % 10)
    >>> fedjx.data.uniform_sampler(100, 5, seed=0)(1), sample(1, reports)
    (array([15, 27, 43, 44, 54], dtype=int32), array([15, 27], dtype=int32))
    """
    seed = checked_word("seed", seed)
    check_integer("[1, inf)", cohort_size=cohort_size)
    of = candidates.description
    num_clients = of.get("num_clients")
    if num_clients is None:
        raise ValueError(
            "candidates need a number of clients in their description; got none. Sample by a sampler of it."
        )

    def draw(round: int, reports: np.ndarray) -> np.ndarray:
        ids = np.asarray(candidates(round))
        _check_clients(ids, num_clients)
        ties = hashed(ids, words(2, seed, round, _TIES))
        return sorted_ids(ids[np.lexsort((ties, -reports[ids]))[:cohort_size]])

    promises = {name: of.get(name) for name in ("replacement", "min_separation")}
    others = {"cohort_size": cohort_size, "candidates": of, **promises}
    return ToldSampler(num_clients, draw, described("power_of_choice", num_clients, seed=seed, **others))


def _checked(reports: np.ndarray, num_clients: int) -> np.ndarray:
    if np.shape(reports) != (num_clients,):
        raise ValueError(
            f"reports are a number for each of {num_clients} clients; got shape {list(np.shape(reports))}. Begin with "
            "`init()` of the sampler, and pass what `told` returns."
        )
    return np.asarray(reports)


def _check_clients(ids: np.ndarray, num_clients: int) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < num_clients:
        raise ValueError(
            f"ids need to be in [0, {num_clients}); got {ids.min()} to {ids.max()}. In a view, sample places."
        )
