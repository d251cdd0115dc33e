"""A budget that stops a run before the round that would overspend it; every round's metrics say what is spent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedjx.data.cohort import Cohort
from fedjx.privacy.account import Account


class BudgetSpent(RuntimeError):
    """Raised in place of a round that would cost more than there is."""


class _HasRound(Protocol):
    @property
    def round(self) -> Any: ...


class Budget(NamedTuple):
    """How much a run may cost. `budget` makes it.

    Attributes:
      account: What rounds cost.
      epsilon: The most that they may cost, at `delta`.
      delta: See there.
      max_rounds: The most rounds that cost no more.
    """

    account: Account
    epsilon: float
    delta: float
    max_rounds: int

    def rounds(self, first: int = 0) -> Iterator[int]:
        """Yields the rounds that can be paid, from one on."""
        yield from range(first, self.max_rounds)

    def check(self, round: int) -> None:
        """Refuses a round, by its number from 0, that would overspend.

        Raises:
          BudgetSpent: With what has been spent, and what the round would make of it.
        """
        if round >= self.max_rounds:
            spent = self.account.epsilon(self.max_rounds, self.delta)
            raise BudgetSpent(
                f"a budget of epsilon {self.epsilon:g} at delta {self.delta:g} pays {self.max_rounds} rounds (epsilon "
                f"{spent:.6g}); got round {round}, counted from 0. Stop here: a larger budget is another guarantee."
            )

    def report(self, rounds: int) -> dict[str, float]:
        """Returns what so many rounds have cost, for metrics: numbers by name, also the cohort of a simulated run."""
        spent = self.account.epsilon_so_far(rounds, self.delta)
        found = {"epsilon": spent, "delta": self.delta, "rounds_left": self.max_rounds - rounds}
        simulated = self.account.event.noise_clients
        return found if simulated is None else found | {"noise_clients": simulated}

    @property
    def description(self) -> dict[str, Any]:
        """What makes two budgets the same, as JSON holds it: for a checkpoint, and `fedjx.data.check_description`."""
        account = self.account
        found = {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "relation": account.relation,
            "noise_multiplier": account.event.noise_multiplier,
            "noise": [type(account.event.noise).__name__, *account.event.noise],
            "clip": account.event.clip,
            "noise_clients": account.event.noise_clients,
            "sampler": account.sampler,
            "loss": [type(account.loss).__name__, *account.loss],
        }
        return json.loads(json.dumps(found))


def budget(account: Account, *, epsilon: float, delta: float) -> Budget:
    """Makes a budget, and finds out how many rounds it pays.

    Raises:
      ValueError: If it pays none.

    >>> from fedjx import privacy
    >>> private = privacy.dp_mean(clip=1.0, noise_multiplier=4.0, expected_clients=10)
    >>> sampler = fedjx.data.fixed_sampler(10, [range(10)])
    >>> spent = privacy.budget(privacy.account(private, sampler), epsilon=2.0, delta=1e-5)
    >>> spent.max_rounds, list(spent.rounds(first=2))
    (4, [2, 3])
    """
    rounds = account.most_rounds(epsilon, delta)
    if rounds == 0:
        raise ValueError(
            f"a budget should pay a round; got {epsilon=} at {delta=}, where the first one costs "
            f"{account.epsilon(1, delta):.6g}. Take more noise; `fedjx.privacy.noise_within` finds how much."
        )
    return Budget(account, float(epsilon), float(delta), rounds)


class Paid(NamedTuple):
    """A round, or a scan of rounds, that is refused if it cannot be paid. `within` makes it.

    Attributes:
      budget: What pays.
      step: What runs; the other attributes are its own, such as ``ahead``.
    """

    budget: Budget
    step: Callable[..., tuple[Any, ...]]

    def __call__(self, state: _HasRound, *others: Any, **named: Any) -> tuple[Any, ...]:
        """Runs the step, if the budget pays for it; adds what has been spent to its metrics."""
        number = 1
        if getattr(self.step, "takes_rounds", False):
            others = (list(others[0]), *others[1:])
            number = len(others[0])
        _check_once(others)
        if number:
            self.budget.check(int(state.round) + number - 1)
        after, metrics, *rest = self.step(state, *others, **named)
        exact = metrics.keys() - {"aggregation"}
        exact |= {"aggregation.not_private"} if "not_private" in metrics.get("aggregation", {}) else set()
        report = self.budget.report(int(after.round)) | {"not_covered": tuple(sorted(exact))}
        return after, {**metrics, "privacy": report}, *rest

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)


def _check_once(arguments: tuple[Any, ...]) -> None:
    """Refuses cohorts in which a client is twice: it would add two clips to one sum."""
    for cohort in (one for given in arguments for one in (given if isinstance(given, list) else [given])):
        if isinstance(cohort, Cohort) and len(np.unique(cohort.ids)) < len(cohort.ids):
            raise ValueError(
                "a client may be in a private cohort once; got one that is there more often. Sample without "
                "replacement."
            )


def within(budget: Budget, step: Callable[..., tuple[Any, ...]]) -> Paid:
    """Wraps a round, ``(state, ...) -> (state, metrics, ...)``, so that it is refused if it cannot be paid.

    That cohorts are those of the account's sampler is up to you: the round does not know who drew them.

    Args:
      budget: The run's.
      step: Such as ``algorithm.next``, ``algorithm.next.streamed()`` or ``.scanned()``; its state counts the rounds,
        ``round``.

    Returns:
      The same, whose metrics have a dict ``privacy``, as `Budget.report` makes it, and in it ``not_covered``, the names
      of the metrics that are exact, such as a loss: who publishes them leaves the guarantee. When it is called it
      raises `BudgetSpent` before anything runs, if the round, or the last of several, costs more than there is.

    Raises:
      TypeError: If one of them is something else.
      ValueError: If the algorithm's aggregator is not the account's.
    """
    if not isinstance(budget, Budget) or not callable(step):
        raise TypeError(
            f"within takes a budget and a function of a round; got {type(budget).__name__} and {type(step).__name__}. "
            "Write within(limit, algorithm.next)."
        )
    own = budget.account.event
    if getattr(step, "event", own) != own:
        raise ValueError(
            f"the budget is of an aggregator with {own}; got an algorithm whose aggregator has "
            f"{getattr(step, 'event', None) or 'no noise'}. Pass the aggregator that was accounted for."
        )
    return Paid(budget, step)
