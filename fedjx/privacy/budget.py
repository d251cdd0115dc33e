"""A budget that stops a run before the round that would overspend it; every round's metrics say what is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

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
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "relation": account.relation,
            "noise_multiplier": account.event.noise_multiplier,
            "noise": [type(account.event.noise).__name__, *account.event.noise],
            "clip": account.event.clip,
            "noise_clients": account.event.noise_clients,
            "sampler": account.sampler,
        }


def budget(account: Account, *, epsilon: float, delta: float) -> Budget:
    """Makes a budget, and finds out how many rounds it pays.

    >>> from fedjx import privacy
    >>> private = privacy.dp_mean(clip=1.0, noise_multiplier=4.0, expected_clients=10)
    >>> sampler = fedjx.data.fixed_sampler(10, [range(10)])
    >>> spent = privacy.budget(privacy.account(private, sampler), epsilon=2.0, delta=1e-5)
    >>> spent.max_rounds, list(spent.rounds(first=2))
    (4, [2, 3])
    """
    return Budget(account, float(epsilon), float(delta), account.most_rounds(epsilon, delta))


def within(budget: Budget, step: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Wraps a round, ``(state, ...) -> (state, metrics, ...)``, so that it is refused if it cannot be paid.

    Args:
      budget: The run's.
      step: Such as ``algorithm.next`` or ``algorithm.next.streamed()``; its state counts the rounds, ``round``.

    Returns:
      The same, whose metrics have a dict ``privacy``, as `Budget.report` makes it, and in it ``not_covered``, the names
      of the metrics that are exact, such as a loss: who publishes them leaves the guarantee.

    Raises:
      BudgetSpent: When called, before anything runs.
    """

    def paid(state: _HasRound, *others: Any, **named: Any) -> tuple[Any, ...]:
        budget.check(int(state.round))
        after, metrics, *rest = step(state, *others, **named)
        not_covered = tuple(sorted(metrics.keys() - {"aggregation"}))
        report = budget.report(int(after.round)) | {"not_covered": not_covered}
        return after, {**metrics, "privacy": report}, *rest

    return paid
