"""What a run costs: the event of its aggregator under the sampling of its sampler, and nothing else.

An epsilon belongs to a mechanism *and* to how its clients were chosen. `account` takes both from what does the work,
and refuses what no theorem covers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjx.aggregation.error_feedback import StatefulAggregator
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.data.sampling import Described
from fedjx.privacy.events import Event, Independent, Laplacian, Local, Matrix, Shared, Stated, Tree
from fedjx.privacy.integer_loss import of_cohorts
from fedjx.privacy.loss import (
    RELATIONS,
    Accountant,
    Gaussian,
    Laplace,
    Loss,
    Relation,
    Response,
    Shuffled,
    epsilon,
    epsilon_so_far,
    epsilon_together,
    of_round,
)

_AMPLIFIED = ("poisson", "cyclic_poisson", "uniform")
_SCHEDULED = ("cyclic", "fixed")
_REFUSED = {
    "over_select": "who reports first is not drawn at random. Account for the clients that are selected, and keep all",
    "power_of_choice": "it chooses by the clients' losses, which are private. Sample without looking at data",
    "weighted": "probabilities differ and are not independent. Use poisson_sampler with a probability for each client",
    "availability": "the server does not draw who is there. Use poisson_sampler, or noise of a tree",
}


class Account(NamedTuple):
    """What rounds of one aggregator on one sampler's cohorts cost. `account` makes it.

    Attributes:
      loss: What one participation costs, or one tree's or matrix's.
      relation: Which two data sets are to look alike: of which one has a client more ("add_or_remove_one"), another
        one in its place ("replace_one"), or one that sends nothing ("zero_out_one").
      rounds_each: After so many rounds the loss is suffered once more.
      max_rounds: The most rounds; None without end.
      sampler: The sampler's description.
      event: The aggregator's.
      rounds_before: So many fewer rounds pass before the second loss.
    """

    loss: Loss
    relation: Relation
    rounds_each: int
    max_rounds: int | None
    sampler: dict[str, Any]
    event: Event
    rounds_before: int = 0

    def epsilon(self, rounds: int, delta: float, accountant: Accountant = "pld") -> float:
        """Returns epsilon after so many rounds.

        Args:
          rounds: How many.
          delta: In (0, 1); less than one over the number of clients.
          accountant: The tight one ("pld"), or that by Rényi divergences, whose numbers older papers have ("rdp").

        Raises:
          ValueError: If the noise was made for fewer rounds, a number is out of range, or RDP says nothing here.
        """
        check_choice(("pld", "rdp"), accountant=accountant)
        return epsilon(self.loss, self._count(rounds, delta), float(delta), self.relation, accountant)

    def epsilon_so_far(self, rounds: int, delta: float) -> float:
        """Returns `epsilon` to seven digits: cheap after every round, and bitwise the same in a run that resumes."""
        return epsilon_so_far(self.loss, self._count(rounds, delta), float(delta), self.relation)

    def most_rounds(self, epsilon: float, delta: float) -> int:
        """Returns the most rounds of which epsilon is at most one, 0 if none is; `max_rounds` if all are.

        Raises:
          ValueError: If there is no end to them.
        """
        check_number("[0, inf)", epsilon=epsilon)

        def rounds(count: int) -> int:
            return max(0, count * self.rounds_each - self.rounds_before)

        def is_paid(count: int) -> bool:
            return self.epsilon(min(rounds(count), self.max_rounds or rounds(count)), delta) <= epsilon

        low, high = 0, 1
        while is_paid(high):
            if self.max_rounds is not None and rounds(high) >= self.max_rounds:
                return self.max_rounds
            low, high = high, 2 * high
            if high > 1 << 40:
                raise ValueError(f"some number of rounds should cost {epsilon=}; got none up to 2^40. Ask for less.")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if is_paid(middle) else (low, middle)
        return rounds(low)

    def _count(self, rounds: int, delta: float) -> int:
        check_integer("[0, inf)", rounds=rounds)
        rounds = int(rounds)  # of a state it is an array
        check_number("(0, 1)", "Take less than one over the number of clients.", delta=delta)
        if self.max_rounds is not None and rounds > self.max_rounds:
            raise ValueError(
                f"the noise was made for at most {self.max_rounds} rounds; got {rounds=}. Make it for the whole run."
            )
        return -(-(rounds + self.rounds_before) // self.rounds_each) if rounds else 0


def account(
    private: Aggregator | StatefulAggregator | Event,
    sampler: Described,
    *,
    relation: Relation | None = None,
    noise_population: int | None = None,
    shuffled: bool = False,
) -> Account:
    """Ties what an aggregator does to how its cohorts are drawn.

    - `poisson_sampler` amplifies: each round's loss is that of a sampled Gaussian (PLD).
    - `uniform_sampler` without replacement amplifies less, and by a looser bound (RDP, replace one).
    - `cyclic_sampler` and `fixed_sampler` do not amplify, but a client is not back before ``min_separation`` rounds.
    - `cyclic_poisson_sampler` amplifies the turns of a client's group, also with a banded `matrix` of so many bands.
    - Noise of a `tree` or a `matrix` takes any of these as a schedule: it counts how often a client can be there.
    - Shares of noise, `distributed_dp_mean`, are accounted for by RDP: with Poisson samples for who sees results, with
      schedules for the server too, which knows who takes part.
    - Local reports cost the same however clients are drawn, unless they are shuffled.
    - So does what a theorem of its own is about, ``Event(0.0, Stated(epsilon, delta))``: whether it holds, and for this
      relation, is up to you.

    Args:
      private: An aggregator with an ``event``, such as `dp_mean`.
      sampler: Of the run's cohorts.
      relation: As in `Account`; what the sampler's theorem is about if not given.
      noise_population: Where the noise is that of larger cohorts (``noise_clients``), the population out of which these
        would be drawn, by the same kind of sampling.
      shuffled: Whether somebody that is trusted with that, and with nothing else, shuffles a round's local reports. The
        whole cohort must report: who has no weight hides nobody.

    Raises:
      TypeError: If the aggregator gives no guarantee.
      ValueError: If no theorem covers this sampler with it, or not for this relation.

    >>> private = fedjx.privacy.dp_mean(clip=1.0, noise_multiplier=1.2, expected_clients=120)
    >>> spent = account(private, fedjx.data.poisson_sampler(3383, probability=120 / 3383, seed=0))
    >>> round(spent.epsilon(rounds=100, delta=1e-5), 3)
    1.707
    """
    event = private.event if isinstance(private, (Aggregator, StatefulAggregator)) else private
    if not isinstance(event, Event):
        raise TypeError(
            "an account needs an aggregator that makes noise, alone or within one that changes each client's value "
            f"by itself; got {_named(private)}. Use privacy.dp_mean or dp_mean_adaptive; rules that look at other "
            "clients' values (clip_adaptively, zero_outliers, robust ones) are no part of a private mean."
        )
    if not hasattr(sampler, "description"):
        raise TypeError(
            f"an account needs the sampler itself; got {type(sampler).__name__}. Pass poisson_sampler(...), not a "
            "cohort of it; of over_select(...) the first."
        )
    description = dict(sampler.description)
    _check_sampler(description)
    check_number("[0, inf)", noise_multiplier=event.noise_multiplier)
    if relation is not None:
        check_choice(RELATIONS, relation=relation)
    description = _as_deployed(event, description, noise_population)
    made = _MAKE[type(event.noise)](event, description, relation)
    return _shuffled(made) if shuffled else made


def _named(private: object) -> str:
    """Names what has no event, by its functions if it is an aggregator."""
    if isinstance(private, (Aggregator, StatefulAggregator)):
        return f"the aggregator {private.next.__module__.rsplit('.', 1)[-1]!r}, without an event"
    return f"a value of {type(private).__name__}"


def together(spent: Sequence[tuple[Account, int]], delta: float) -> float:
    """Returns epsilon of everything that was done with the same clients: of each account, so many rounds.

    Such as of training and of a private evaluation, or of several questions, which may take turns. It is often less
    than the sum of theirs. Cohorts of a fixed size, shuffled reports and integer noise, whose losses have no known
    distribution, compose less tightly, each by its epsilon at a share of delta.

    Raises:
      ValueError: If they are about different relations.

    >>> sampler = fedjx.data.fixed_sampler(10, [range(10)])
    >>> train, test = (account(Event(z), sampler) for z in (5.0, 10.0))
    >>> alone = train.epsilon(10, 1e-5), test.epsilon(1, 1e-5)
    >>> [round(x, 2) for x in (*alone, together([(train, 10), (test, 1)], 1e-5))]
    [2.59, 0.34, 2.63]
    """
    if not all(isinstance(one, tuple) and len(one) == 2 for one in spent):
        raise TypeError(f"what composes are pairs (account, rounds); got {[type(one).__name__ for one in spent]}.")
    relations: set[Relation] = {of.relation for of, _ in spent}
    if len(relations) > 1:
        raise ValueError(
            f"what composes is about the same two data sets; got {sorted(relations)}. Make all accounts with "
            "one of them, account(..., relation=); sampling has replace_one too."
        )
    if len({of.event.noise_clients for of, _ in spent}) > 1:
        raise ValueError(
            "what composes was done with the same clients; got accounts of runs that are simulated (noise_clients) and "
            "of others. Account for each alone."
        )
    losses = [(of.loss, of._count(rounds, delta)) for of, rounds in spent]
    return epsilon_together(losses, float(delta), relations.pop()) if relations else 0.0


def _as_deployed(event: Event, sampler: dict[str, Any], population: int | None) -> dict[str, Any]:
    """Returns the description of the sampler that the noise is for."""
    if (event.noise_clients is None) != (population is None):
        raise ValueError(
            "noise for larger cohorts is accounted for in their population, and no other noise; got "
            f"noise_clients={event.noise_clients} and noise_population={population}. Give both, or neither."
        )
    if population is None:
        return sampler
    check_integer("[1, inf)", noise_population=population)
    if sampler.get("max_cohort_size") is not None or sampler.get("probabilities") is not None:
        raise ValueError(
            "a larger run is simulated for cohorts of one probability for all, that are not cut off; got a sampler "
            "with max_cohort_size, or a probability for each client. Leave these out."
        )
    size = float(event.noise_clients or 0)
    if sampler["kind"] not in ("poisson", "uniform") or not isinstance(event.noise, Independent) or population < size:
        raise ValueError(
            "a larger run is simulated for independent noise on cohorts drawn at random, out of at least as many "
            f"clients; got {sampler['kind']!r} cohorts, {event.noise} and {event.noise_clients} of {population}. "
            "Simulate it whole."
        )
    deployed = {"probability": size / population, "cohort_size": math.ceil(size)}
    return {**sampler, **{k: v for k, v in deployed.items() if k in sampler}, "num_clients": population}


def _check_sampler(description: Mapping[str, Any]) -> None:
    kind = description.get("kind")
    if description.get("replacement", True):
        raise ValueError(
            f"a client may be in a cohort once; got a sampler with replacement, {kind=}. It would add several clips to "
            "one sum: sample without."
        )
    if kind in _REFUSED:
        raise ValueError(f"no account covers cohorts of kind {kind!r}: {_REFUSED[kind]}.")
    if kind not in (*_AMPLIFIED, *_SCHEDULED):
        raise ValueError(
            f"an account knows the samplers {[*_AMPLIFIED, *_SCHEDULED]}; got {kind=}. Use one of fedjx.data."
        )


def _shuffled(of_reports: Account) -> Account:
    loss, sampler = of_reports.loss, of_reports.sampler
    if not isinstance(loss, Response) or sampler["kind"] not in ("uniform", "cyclic"):
        raise ValueError(
            "local reports of pure epsilon hide among those of a known number of clients; got "
            f"{of_reports.event.noise} and {sampler['kind']!r} cohorts. Use local_mean and uniform_sampler."
        )
    # The smallest cohort of a cycle is that of the clients spread evenly over its rounds.
    number = sampler["num_clients"] // sampler["rounds_per_epoch"] if sampler["kind"] == "cyclic" else None
    return of_reports._replace(loss=Shuffled(loss.epsilon, number or sampler["cohort_size"]))


def _scheduled(sampler: dict[str, Any]) -> int:
    """Returns after how many rounds a client may be back."""
    return max(1, sampler["min_separation"])


def _independent(event: Event, sampler: dict[str, Any], relation: Relation | None) -> Account:
    z, separation = event.noise_multiplier, _scheduled(sampler)
    if sampler["kind"] in _SCHEDULED:
        return Account(Gaussian(z), relation or "zero_out_one", separation, None, sampler, event)
    # Cohorts drawn out of groups that take turns: the turn of a client's group is its only chance.
    return Account(*of_round(z, relation, sampler), separation, None, sampler, event)


def _laplacian(event: Event, sampler: dict[str, Any], relation: Relation | None) -> Account:
    relation = relation or "add_or_remove_one"
    kind, probability = sampler["kind"], sampler.get("probability", 1.0)
    if kind == "uniform" or "max_cohort_size" in sampler or (probability < 1 and relation == "replace_one"):
        raise ValueError(
            f"Laplace noise is accounted for on schedules, and on Poisson samples by adding or removing a client; got "
            f"{kind!r} cohorts and {relation=}. Use poisson_sampler without a largest size, or Gaussian noise."
        )
    return Account(Laplace(event.noise_multiplier, probability), relation, _scheduled(sampler), None, sampler, event)


def _local(event: Event, sampler: dict[str, Any], relation: Relation | None) -> Account:
    assert isinstance(event.noise, Local)
    # Who sees a report sees whose it is, so that nothing is gained by drawing who reports.
    epsilon, rounds_each = event.noise.epsilon, _scheduled(sampler)
    if relation == "add_or_remove_one" or (epsilon is not None and relation == "zero_out_one"):
        raise ValueError(f"a local report is as private for any two values of a client; got {relation=}. Leave it out.")
    if epsilon is None:
        return Account(Gaussian(event.noise_multiplier), relation or "replace_one", rounds_each, None, sampler, event)
    return Account(Response(epsilon), "replace_one", rounds_each, None, sampler, event)


def _stated(event: Event, sampler: dict[str, Any], relation: Relation | None) -> Account:
    assert isinstance(event.noise, Stated)
    check_number("[0, 100]", epsilon=event.noise.epsilon)
    check_number("[0, 1)", delta=event.noise.delta)
    # The theorem knows of no sampling, and who is not there loses nothing.
    return Account(event.noise, relation or "add_or_remove_one", _scheduled(sampler), None, sampler, event)


def _matrix(event: Event, sampler: dict[str, Any], relation: Relation | None) -> Account:
    noise, separation = event.noise, _scheduled(sampler)
    assert isinstance(noise, Matrix)
    most = -(-noise.num_rounds // separation)
    if separation < noise.min_separation or most > noise.max_participations:
        raise ValueError(
            f"the noise was scaled for clients that are back after at least {noise.min_separation} rounds, at most "
            f"{noise.max_participations} times in {noise.num_rounds}; got a sampler with min_separation="
            f"{separation}. Use cyclic_sampler with that separation, or make the matrix for this one."
        )
    z = event.noise_multiplier
    if sampler["kind"] == "cyclic_poisson" and noise.bands is not None and noise.bands <= separation:
        loss, relation = of_round(z / noise.share, relation, sampler)
        return Account(loss, relation, separation, noise.num_rounds, sampler, event)
    return Account(Gaussian(z), relation or "zero_out_one", noise.num_rounds, noise.num_rounds, sampler, event)


def _tree(event: Event, sampler: dict[str, Any], relation: Relation | None) -> Account:
    noise, separation, relation = event.noise, _scheduled(sampler), relation or "zero_out_one"
    assert isinstance(noise, Tree)
    norm = math.sqrt(tree_sensitivity_squared(noise.num_rounds, min_separation=separation))
    loss = Gaussian(event.noise_multiplier / norm)
    if separation >= noise.num_rounds:  # once in a tree, and not in each
        return Account(loss, relation, separation, None, sampler, event)
    before = noise.num_rounds - noise.first_rounds
    return Account(loss, relation, noise.num_rounds, None, sampler, event, before)


def _shared(event: Event, sampler: dict[str, Any], relation: Relation | None) -> Account:
    assert isinstance(event.noise, Shared)
    loss, of = of_cohorts(event.noise, event.noise_multiplier, sampler, relation)
    return Account(loss, of, _scheduled(sampler), None, sampler, event)


_MAKE = {
    Independent: _independent,
    Laplacian: _laplacian,
    Local: _local,
    Matrix: _matrix,
    Shared: _shared,
    Stated: _stated,
    Tree: _tree,
}


def tree_sensitivity_squared(num_rounds: int, *, min_separation: int, max_participations: int | None = None) -> int:
    """Bounds how much one client of norm 1 changes the nodes of a binary tree over the rounds, squared.

    On each level a node has at most ``ceil(size / min_separation)`` of the client's rounds, and all complete nodes no
    more than those of the rounds that they cover.

    >>> tree_sensitivity_squared(2000, min_separation=314, max_participations=6)  # Gboard, arXiv 2305.18465
    79
    """
    check_integer("[1, inf)", num_rounds=num_rounds, min_separation=min_separation)
    total = 0
    for level in range(num_rounds.bit_length()):
        size = 1 << level
        within, covered = -(-size // min_separation), -(-(num_rounds // size * size) // min_separation)
        rounds = covered if max_participations is None else min(covered, max_participations)
        within = min(within, rounds)
        full, rest = divmod(rounds, within)
        total += full * within**2 + rest**2
    return total
