"""Any one of noise, cohort, rounds and epsilon from the other three."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, cast

from scipy.optimize import brentq

from fedjx.core.execution.process import Aggregator
from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.data.sampling import Described
from fedjx.privacy.account import account
from fedjx.privacy.events import Event
from fedjx.privacy.loss import Relation, epsilon, of_round

Sampling = Literal["poisson", "fixed_size", "all"]
_TOLERANCE = 1e-4  # of a noise multiplier, relatively
_LEAST = 0.25  # less is not looked at: losses of hundreds are not told apart by anybody, and take minutes


def noise_within(
    make: Callable[[float], Aggregator | Event],
    sampler: Described,
    *,
    epsilon: float,
    rounds: int,
    delta: float,
    relation: Relation | None = None,
) -> float:
    """Finds the least noise multiplier of any aggregator on any sampler's cohorts, to four digits, upwards, from 0.25.

    Args:
      make: From a noise multiplier to the aggregator, or its event.
      sampler: Of the run's cohorts.
      epsilon: The most that the rounds may cost.
      rounds: How many.
      delta: In (0, 1).
      relation: As in `Account`; what the sampler's theorem is about if not given.

    Raises:
      ValueError: As `account` does; if no noise is enough.

    >>> from fedjx import privacy
    >>> sampler = fedjx.data.cyclic_sampler(200, 20, seed=0)
    >>> def private(z):
    ...     return privacy.dp_mean(clip=1.0, noise_multiplier=z, expected_clients=20, noise=privacy.tree(40))
    >>> round(noise_within(private, sampler, epsilon=2.0, rounds=40, delta=1e-5), 2)
    12.61
    """
    check_number("(0, inf)", epsilon=epsilon)
    return _least(lambda z: account(make(z), sampler, relation=relation).epsilon(rounds, delta), float(epsilon))


class Calibrated(NamedTuple):
    """Numbers that belong together: rounds with such noise on such cohorts cost epsilon.

    Attributes:
      epsilon: At `delta`.
      delta: See there.
      noise_multiplier: Standard deviation of the noise on the sum, in clips.
      cohort_size: Clients in a round; expected, with Poisson sampling.
      rounds: How many.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    cohort_size: int
    rounds: int


def calibrate(
    *,
    num_clients: int,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    cohort_size: int | None = None,
    rounds: int | None = None,
    sampling: Sampling = "poisson",
    relation: Relation | None = None,
) -> Calibrated:
    """Finds the one of four numbers that is left out, for independent noise in every round.

    The least noise multiplier (to four digits, upwards, from 0.25 on), the largest cohort or the most rounds that cost
    no more than epsilon; or what epsilon is. It is remembered: the next call with the same arguments is free.

    Args:
      num_clients: Of the population.
      delta: In (0, 1); less than one over the number of clients.
      epsilon: The most that all rounds may cost.
      noise_multiplier: Of the noise.
      cohort_size: Clients in a round, expected with Poisson sampling.
      rounds: How many.
      sampling: Of ``poisson_sampler``, of ``uniform_sampler`` ("fixed_size"), or "all" clients in each round.
      relation: As in `Account`; what the sampling's theorem is about if not given.

    Raises:
      ValueError: If not exactly one is left out, or nothing costs as little.

    >>> found = calibrate(num_clients=3383, delta=1e-5, noise_multiplier=1.2, cohort_size=120, rounds=100)
    >>> round(found.epsilon, 4)
    1.7075
    """
    if sampling == "all":
        if cohort_size not in (None, num_clients):
            raise ValueError(f"of all clients the cohort is all; got {cohort_size=} of {num_clients}. Leave it out.")
        cohort_size = num_clients
    given = {"epsilon": epsilon, "noise_multiplier": noise_multiplier, "cohort_size": cohort_size, "rounds": rounds}
    _check(num_clients, delta, sampling, given)
    cost = _cost(num_clients, float(delta), sampling, relation)
    most, z, cohort, number = epsilon or math.inf, noise_multiplier or 0.0, cohort_size or 0, rounds or 0
    if noise_multiplier is None:
        z = _least(lambda z: cost(z, cohort, number), most)
    elif cohort_size is None:
        cohort = _largest(lambda n: cost(z, n, number) <= most, num_clients, "client")
    elif rounds is None:
        number = _largest(lambda n: cost(z, cohort, n) <= most, 1 << 40, "round")
    return Calibrated(cost(z, cohort, number), delta, z, cohort, number)


def _check(num_clients: int, delta: float, sampling: Sampling, given: dict[str, float | int | None]) -> None:
    missing = [name for name, value in given.items() if value is None]
    if len(missing) != 1:
        raise ValueError(f"one of {list(given)} is found from the others; got {missing or 'none'} left out.")
    check_integer("[1, inf)", num_clients=num_clients)
    check_number("(0, 1)", "Take less than one over the number of clients.", delta=delta)
    check_choice(("poisson", "fixed_size", "all"), sampling=sampling)
    limits = {"cohort_size": f"[1, {num_clients}]", "rounds": "[1, inf)"}
    for name in given.keys() - missing:
        if name in limits:
            check_integer(limits[name], **{name: given[name]})
        else:
            check_number("(0, inf)", **{name: given[name]})


def _cost(
    num_clients: int, delta: float, sampling: Sampling, relation: Relation | None
) -> Callable[[float, int, int], float]:
    def cost(z: float, cohort: int, rounds: int) -> float:
        if sampling == "poisson":
            loss, by = of_round(z, relation, {"num_clients": num_clients, "probability": cohort / num_clients})
        else:  # the same relation for cohorts of all sizes
            by = relation or ("replace_one" if sampling == "fixed_size" else "zero_out_one")
            loss, by = of_round(z, by, {"num_clients": num_clients, "cohort_size": cohort})
        return epsilon(loss, rounds, delta, by)

    return cost


def _least(cost: Callable[[float], float], most: float) -> float:
    """Returns the least noise multiplier that costs no more, to the tolerance, upwards."""
    low, high = 0.5, 1.0
    while cost(high) > most:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(f"some noise should cost at most {most:g}; got none. Ask for more, or fewer rounds.")
    while low > _LEAST and cost(low) <= most:
        low, high = low / 2, low
    if cost(low) <= most:
        return low
    ends = math.log(low), math.log(high)
    found = brentq(lambda x: math.log(max(cost(math.exp(x)), 1e-300) / most), *ends, xtol=_TOLERANCE / 2)
    return math.exp(cast(float, found) + _TOLERANCE / 2)


def _largest(is_paid: Callable[[int], bool], most: int, what: str) -> int:
    """Returns the largest number up to one that is paid; of more, less is."""
    if not is_paid(1):
        raise ValueError(f"epsilon should pay for one {what} at least; got too little. Take more noise.")
    low, high = 1, 2
    while high <= most and is_paid(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_paid(middle) else (low, middle)
    return low
