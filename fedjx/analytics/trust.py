"""Whom clients trust: what is computed, what the server sees, what it costs and how far the sums may be off."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from scipy.optimize import brentq

from fedjx.analytics import sums
from fedjx.analytics.digits import decode, digits_for
from fedjx.analytics.question import Question, Sensitivity
from fedjx.analytics.sums import Asking, Shared
from fedjx.core.execution.computation import Computation
from fedjx.data.sampling import Described
from fedjx.privacy import events
from fedjx.privacy.account import Account, account
from fedjx.privacy.calibration import noise_within
from fedjx.privacy.events import Event, Laplacian, Local
from fedjx.privacy.local import Randomizer, number_response, sampled_response
from fedjx.privacy.local_frequency import frequency_response
from fedjx.privacy.loss import Relation

Trust = Literal["plain", "secure", "central_dp", "distributed_dp", "local_dp", "shuffled_dp"]
TRUSTS: tuple[Trust, ...] = ("plain", "secure", "central_dp", "distributed_dp", "local_dp", "shuffled_dp")
SEES: dict[Trust, str] = {
    "plain": "every client's entries",
    "secure": "the sum over all clients, exactly",
    "central_dp": "every client's entries; it adds noise to their sum, and shows nothing else",
    "distributed_dp": "the sum over all clients, with the noise in it that they have added",
    "local_dp": "of each client a report that is random enough by itself",
    "shuffled_dp": "such reports, and not whose is whose, since somebody shuffles them",
}
Variance = float | np.ndarray
_MOST_LOCAL = 12.0  # epsilon of a report


class Terms(NamedTuple):
    """On which terms clients answer. `fedjx.analytics.ask` describes its arguments.

    Attributes:
      trust: See there.
      epsilon: See there; of all rounds.
      delta: See there.
      relation: See there.
      max_records: See there.
      sampler: That clients are drawn by; of all of them if they all are asked.
      min_clients: See there.
      num_clients: How many are asked.
      num_bits: See there.
      num_rounds: How often the same clients answer, at the same terms.
      largest: The most records that a client has.
      num_records: Of all clients together.
      randomizer: See there.
    """

    trust: Trust
    epsilon: float | None
    delta: float
    relation: Relation | None
    max_records: int | None
    sampler: Described
    min_clients: int
    num_clients: int
    num_bits: int
    num_rounds: int
    largest: int
    num_records: int
    randomizer: Callable[..., Randomizer] | None


class Prepared(NamedTuple):
    """How a question is asked on some terms.

    Attributes:
      computation: ``(key, told, *extra, records) -> Shown``.
      extra: What it takes besides.
      spent: What a round costs, as an account; None if nothing is promised.
      noise: ``(num_answered, counts) -> (of values, of counts)``, the variance of an element of the table that is not
        due to who is asked; of values in their bounds.
      read: From values as the server has them to numbers.
      divides: Whether values are in their bounds.
    """

    computation: Computation[..., sums.Shown]
    extra: tuple[Any, ...]
    spent: Account | None
    noise: Callable[[int, np.ndarray | None], tuple[Variance, Variance]]
    read: Callable[[np.ndarray], np.ndarray] = np.asarray
    divides: bool = True


def prepared(question: Question, terms: Terms, *, with_moments: bool = False) -> Prepared:
    """Returns how a question is asked on some terms.

    Raises:
      ValueError: If it cannot be asked so, or the terms are not those of this model of trust.
    """
    _check(question, terms)
    asked = sums.asking(question, terms.max_records, divides=terms.trust != "plain")
    if terms.trust == "plain":
        return Prepared(sums.plain(asked, with_moments), (), None, _exact, divides=False)
    if terms.trust == "secure":
        return _secure(asked, terms)
    if terms.trust in ("central_dp", "distributed_dp"):
        assert terms.max_records is not None
        sensitivity = question.sensitivity(terms.max_records, question.distinct)
        return (_central if terms.trust == "central_dp" else _distributed)(asked, terms, sensitivity)
    if asked.num_values and asked.num_bins > 1:
        raise ValueError(f"trust={terms.trust!r} is for numbers or for bins; got both. Ask about one group at a time.")
    return _local(asked, terms)


def _check(question: Question, terms: Terms) -> None:
    trust, is_private = terms.trust, terms.trust not in ("plain", "secure")
    if trust in question.refuses:
        raise ValueError(f"this question is not for trust={trust!r}: {question.refuses[trust]}.")
    if trust != "plain" and not all(map(math.isfinite, question.bounds)):
        raise ValueError(
            f"trust={trust!r} needs bounds to which numbers are clipped; got none. Pass low= and high= to the question."
        )
    if not is_private and terms.epsilon is not None:
        raise ValueError(f"trust={trust!r} promises no epsilon; got {terms.epsilon}. Leave it out, or trust less.")
    if is_private and terms.epsilon is None:
        raise ValueError(f"trust={trust!r} needs to know how much may be spent; got no epsilon. Pass epsilon=1.0.")
    if trust in ("distributed_dp", "shuffled_dp") and terms.delta == 0:
        raise ValueError(f"trust={trust!r} needs a delta; got none. Pass less than one over the number of clients.")
    if trust in ("central_dp", "distributed_dp") and terms.max_records is None:
        raise ValueError(
            "what a client adds is bounded before noise can hide it; got no max_records. Pass 1, for example: more of "
            "a client's records need as many times the noise."
        )
    if trust in ("local_dp", "shuffled_dp") and terms.max_records not in (None, 1):
        raise ValueError(
            f"a client reports on one record, drawn at random; got max_records={terms.max_records}. Leave it out."
        )


def _exact(num_answered: int, counts: np.ndarray | None) -> tuple[float, float]:
    return 0.0, 0.0


def _secure(asked: Asking, terms: Terms) -> Prepared:
    if asked.num_values == 0 or asked.modular:
        return Prepared(sums.secure(asked, None), (), None, _exact)
    most = asked.max_records or terms.largest
    if asked.num_bins == 1:  # what is sent is a client's sum
        digits, each = digits_for(most, terms.num_clients), 1
    else:
        digits, each = digits_for(1.0, min(most * terms.num_clients, terms.num_records)), most

    def noise(num_answered: int, counts: np.ndarray | None) -> tuple[float, float]:
        return num_answered * each * digits.step**2 / 4, 0.0  # at most, of what is rounded at random

    return Prepared(sums.secure(asked, digits), (), None, noise, functools.partial(decode, digits))


def _central(asked: Asking, terms: Terms, sensitivity: Sensitivity) -> Prepared:
    if terms.delta == 0:
        multiplier, norm, event = _laplace_multiplier(terms), sensitivity.l1, Laplacian()
        variance = 2 * (multiplier * norm) ** 2
        # Of a schedule this costs the same as for a client more or less, and goes with what Gaussian noise costs.
        relation = terms.relation or ("zero_out_one" if terms.sampler.description["kind"] == "fixed" else None)
        spent = account(Event(multiplier, event, norm), terms.sampler, relation=relation)
    else:
        multiplier, norm = _gaussian_multiplier(terms, lambda z: Event(z, clip=sensitivity.l2)), sensitivity.l2
        variance = (multiplier * norm) ** 2
        spent = account(Event(multiplier, clip=norm), terms.sampler, relation=terms.relation)
    computation = sums.noisy(asked, terms.delta == 0)
    return Prepared(computation, (np.float32(multiplier * norm),), spent, lambda *_: (variance, variance))


def _gaussian_multiplier(terms: Terms, event: Callable[[float], Event]) -> float:
    assert terms.epsilon is not None
    return noise_within(
        event,
        terms.sampler,
        epsilon=terms.epsilon,
        rounds=terms.num_rounds,
        delta=terms.delta,
        relation=terms.relation,
    )


def _laplace_multiplier(terms: Terms) -> float:
    """Returns the scale of Laplace noise, in sensitivities, of which so many rounds are epsilon without delta."""
    assert terms.epsilon is not None
    each = terms.epsilon / terms.num_rounds
    each = math.log1p(math.expm1(each) / terms.sampler.description.get("probability", 1.0))
    return (2 if terms.relation == "replace_one" else 1) / each


def _distributed(asked: Asking, terms: Terms, sensitivity: Sensitivity) -> Prepared:
    def noise_of(z: float) -> Shared:
        return Shared(sensitivity.l2, z, terms.min_clients, terms.num_clients, terms.num_bits)

    def event_of(z: float) -> Event:
        event = noise_of(z).aggregator(asked).event
        assert isinstance(event, Event)
        return event

    z = _gaussian_multiplier(terms, event_of)
    event = event_of(z)
    assert isinstance(event.noise, events.Shared)
    # Each client rounds to the grid at random besides: by at most so much, which of many clients is no little.
    step = sensitivity.l2 / event.noise.clip
    variance = (z * sensitivity.l2) ** 2 + terms.num_clients * step**2 / 4
    spent = account(event, terms.sampler, relation=terms.relation)
    return Prepared(sums.distributed(asked, noise_of(z)), (), spent, lambda *_: (variance, variance))


def _local(asked: Asking, terms: Terms) -> Prepared:
    is_shuffled = terms.trust == "shuffled_dp"
    assert terms.epsilon is not None
    each = _shuffled_report(terms) if is_shuffled else terms.epsilon / terms.num_rounds
    make, size = _Report(terms.randomizer, asked.num_values == 0), sums.report_size(asked)
    of_one = make(each, size)
    spent = account(Event(0.0, Local(each)), terms.sampler, relation=terms.relation, shuffled=is_shuffled)

    def noise(num_answered: int, counts: np.ndarray | None) -> tuple[float, Variance]:
        rare = num_answered * of_one.variance
        if asked.num_values or counts is None or of_one.variance_held is None:
            return rare, 0.0 if asked.num_values else rare
        return rare, rare + np.clip(counts, 0, num_answered) * (of_one.variance_held - of_one.variance)

    return Prepared(sums.local(asked, make, each), (), spent, noise)


class _Report(NamedTuple):
    """How a client reports a bin, or numbers in ``[-1, 1]``: as it is asked to, or with the least variance."""

    randomizer: Callable[..., Randomizer] | None
    of_bins: bool

    def __call__(self, epsilon: float, size: int) -> Randomizer:
        if self.of_bins:
            return (self.randomizer or frequency_response)(epsilon=epsilon, num_categories=size)
        if size > 1:
            return (self.randomizer or sampled_response)(epsilon=epsilon, bounds=np.ones(size))
        one = (self.randomizer or number_response)(epsilon=epsilon, bound=1.0)
        return one._replace(
            check=lambda member: None,
            report=lambda key, value: one.report(key, value[0]),
            decode=lambda message: one.decode(message)[None],
        )


def _shuffled_report(terms: Terms) -> float:
    """Returns the largest epsilon of a report of which so many shuffled ones cost no more."""
    assert terms.epsilon is not None

    most = terms.epsilon

    def surplus(each: float) -> float:
        made = account(Event(0.0, Local(each)), terms.sampler, shuffled=True)
        return made.epsilon(terms.num_rounds, terms.delta) - most

    if surplus(_MOST_LOCAL) <= 0:
        return _MOST_LOCAL
    return cast(float, brentq(surplus, most / terms.num_rounds, _MOST_LOCAL, xtol=1e-6)) - 1e-6
