"""Lower bounds on epsilon, from how well one can tell who was in a run: what a run leaks at least.

An account says what a run leaks at most, if the run does what it says. A lower bound above it shows that it does not.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, expit

from fedjx.core.language.checks import check_integer, check_number
from fedjx.data.random_words import words


class Audit(NamedTuple):
    """What scores show. Each bound holds with the confidence by itself; decide for one beforehand.

    Attributes:
      clopper_pearson: A lower bound on epsilon, for canaries whose scores are independent: each of a run of its own.
        Those of one run come near to that if they hardly disturb each other.
      one_run: A lower bound on epsilon, for canaries of one run that were in it by fair coins, whatever hangs together.
      auroc: How often one that was in the run has a higher score than one that was not; 1/2 by guessing.
    """

    clopper_pearson: float
    one_run: float
    auroc: float


def audit(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    thresholds: ArrayLike | None = None,
) -> Audit:
    """Bounds epsilon from below by scores that are higher, if anything, for clients that were in the run.

    Clopper-Pearson: whoever scores above a threshold is guessed to be in, and epsilon is at least ``log((true positive
    rate - delta) / false positive rate)``, of which both rates are bounded (Jagielski et al., "Auditing Differentially
    Private Machine Learning", arXiv 2006.07709). One run: so many of so many guesses are not right by chance in a run
    that is (epsilon, delta) private with respect to each coin (Steinke et al., "Privacy Auditing with One (1) Training
    Run", arXiv 2305.08846).

    Guarantees: the confidence holds for all thresholds together, of which the best is reported. They are the scores
    with 0, 1, 3, 7, ... of those not included above them, for one run the scores with 1, 2, 4, ... of all: numbers that
    are no choice of the scores, corrected for as so many tests (Bonferroni). `jax-privacy` takes the corners of the
    scores' own convex hull, and corrects for these alone, which is not proven.

    Args:
      scores: One for each canary, float ``[canaries]``.
      included: Which were in the run, bool ``[canaries]``, such as `coins`.
      delta: Of the guarantee.
      confidence: That epsilon is not below a bound.
      thresholds: Of your own, decided without these scores: canaries that score as much or more are guessed to be in.

    Returns:
      An `Audit`; its bounds are 0 where nothing is shown. The relation is that of a client that is in the data or not
      (or sends nothing).

    Raises:
      ValueError: If a score is not a number, or all canaries, or none, were in the run.

    >>> normal = np.random.default_rng(0).normal
    >>> scores = np.concatenate([normal(1, 1, 2000), normal(0, 1, 2000)])  # as of one Gaussian mechanism, sigma 1
    >>> found = audit(scores, np.arange(4000) < 2000, delta=1e-5)
    >>> [round(x, 2) for x in found]  # its epsilon is 4.38
    [1.66, 1.43, 0.76]
    """
    check_number("[0, 1)", delta=delta)
    check_number("(0, 1)", confidence=confidence)
    inside, outside = _sides(scores, included)
    everyone = np.concatenate([inside, outside])
    doubled = 2 ** np.arange(len(everyone).bit_length())
    of_outside = _above(outside, doubled - 1) if thresholds is None else np.ravel(thresholds)
    of_everyone = _above(everyone, doubled) if thresholds is None else np.ravel(thresholds)
    return Audit(
        _clopper_pearson(_guesses(inside, outside, of_outside), len(inside), len(outside), delta, 1 - confidence),
        _one_run(_guesses(inside, outside, of_everyone), len(everyone), delta, 1 - confidence),
        _auroc(inside, outside),
    )


def coins(number: int, *, seed: int) -> np.ndarray:
    """Tosses a fair coin for each canary, that says whether it is in the run, bool ``[number]``.

    >>> coins(8, seed=0).astype(int)
    array([0, 0, 0, 1, 1, 0, 1, 1])
    """
    check_integer("[1, inf)", number=number)
    return words(number, seed, 0) >> np.uint64(63) == 1


def _sides(scores: ArrayLike, included: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, flags = np.asarray(scores, np.float64), np.asarray(included)
    if values.ndim != 1 or flags.shape != values.shape or flags.dtype != bool:
        raise ValueError(
            "an audit needs one score, and one flag, for each canary; got scores of shape "
            f"{list(values.shape)} and {flags.dtype}{list(flags.shape)}. Make one score of the rounds' by canary_score."
        )
    if np.isnan(values).any() or flags.all() or not flags.any():
        raise ValueError(
            f"an audit needs scores, of canaries that were in the run and of others; got {np.isnan(values).sum()} NaN, "
            f"and {flags.sum()} of {len(flags)} in the run. Toss coins for more canaries."
        )
    return values[flags], values[~flags]


def _above(scores: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns the thresholds that so many of the scores reach, or fewer if some are equal."""
    falling = np.sort(scores)[::-1]
    return np.nextafter(falling[numbers[numbers < len(scores)]], np.inf)


def _guesses(inside: np.ndarray, outside: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts who is guessed to be in, rightly and wrongly, for each threshold."""
    right, wrong = (len(x) - np.searchsorted(np.sort(x), thresholds) for x in (inside, outside))
    return right, wrong


def _clopper_pearson(
    guesses: tuple[np.ndarray, np.ndarray], inside: int, outside: int, delta: float, significance: float
) -> float:
    right, wrong = guesses
    each = significance / (2 * len(right))
    lowest = np.where(right > 0, betaincinv(np.maximum(right, 1), inside - right + 1, each), 0)
    highest = np.where(wrong < outside, betaincinv(wrong + 1, np.maximum(outside - wrong, 1), 1 - each), 1)
    return float(np.log(np.maximum((lowest - delta) / highest, 1)).max())


def _one_run(guesses: tuple[np.ndarray, np.ndarray], number: int, delta: float, significance: float) -> float:
    best, each = 0.0, significance / len(guesses[0])
    for right, wrong in zip(*guesses, strict=True):

        def excess(epsilon: float, right: int = right, wrong: int = wrong) -> float:
            return _chance(epsilon, delta, right, right + wrong, number) - each

        if excess(best) < 0:
            high = max(1.0, 2 * best)
            while excess(high) < 0:
                high *= 2
            best = cast(float, brentq(excess, best, high, xtol=1e-9))
    return best


def _chance(epsilon: float, delta: float, right: int, guesses: int, number: int) -> float:
    """Bounds the probability of so many right guesses about coins that are (epsilon, delta) private."""
    share = expit(epsilon)  # of right guesses about a coin that is told with the most noise
    enough = _at_least(right, guesses, share)
    fewer = np.arange(1, right + 1)
    helped = (_at_least(right - fewer, guesses, share) - enough) / fewer  # by what delta allows
    return min(1.0, float(enough + 2 * number * delta * helped.max(initial=0.0)))


def _at_least(successes: ArrayLike, trials: int, probability: float) -> np.ndarray:
    """Returns the probability of so many successes, or more."""
    least = np.maximum(successes, 1)
    return np.where(np.asarray(successes) > 0, betainc(least, trials - least + 1, probability), 1.0)


def _auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside) + np.searchsorted(ordered, inside, side="right")
    return float(below.mean() / (2 * len(outside)))
