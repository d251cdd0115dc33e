"""A budget for many questions to the same clients: the one that would overspend it is not asked."""

from __future__ import annotations

import contextlib
import fcntl
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjx.core.language.checks import check_choice, check_number
from fedjx.data.manifest import replace_file
from fedjx.privacy import integer_loss
from fedjx.privacy import loss as losses
from fedjx.privacy.account import Account
from fedjx.privacy.budget import BudgetSpent
from fedjx.privacy.loss import RELATIONS, Loss, Relation, epsilon_together

_ROUNDING = 1 + 1e-9  # of a budget: a third, three times, is all of it


class Payment(NamedTuple):
    """What was paid for a question.

    Attributes:
      question: Its name.
      loss: What it cost, so many times.
      times: See there.
      token: Names a question of several rounds that may go on after a crash, and is paid once.
      drawn: What its noise was drawn from, a digest of the key.
    """

    question: str
    loss: Loss
    times: int
    token: str = ""
    drawn: str = ""


class Ledger:
    """Keeps what was paid for questions to the same clients, and refuses to pay more than there is.

    What is paid is on disk, if it has a file, before clients are asked: a crash may lose an answer, never a payment.
    Several processes may pay out of one file, one after the other.
    Losses compose, so that many questions cost less than the sum of theirs.

    Attributes:
      epsilon: The most that all questions may cost together, at `delta`.
      delta: See there.
      relation: Which two data sets look alike, as in `fedjx.privacy.Account`; that of the first question if not given.
      path: The file, JSON; in memory alone if not given. One that is there goes on.
      payments: What was paid so far.

    Raises:
      ValueError: If a number is out of range, or the file is that of another budget.

    >>> ledger = Ledger(epsilon=1.0, delta=1e-6)
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [k % 90]} for k in range(1000)])
    >>> count = fedjx.analytics.count()
    >>> for seed in range(3):
    ...     answer = fedjx.analytics.ask(
    ...         count, ages, trust="central_dp", epsilon=0.4, max_records=1, key=jax.random.key(seed), ledger=ledger
    ...     )
    Traceback (most recent call last):
    fedjx.privacy.budget.BudgetSpent: ...
    >>> len(ledger.payments), round(ledger.spent(), 3)
    (2, 0.8)
    """

    relation: Relation | None

    def __init__(
        self, *, epsilon: float, delta: float, relation: Relation | None = None, path: str | Path | None = None
    ):
        check_number("(0, inf)", epsilon=epsilon)
        check_number("(0, 1)", "Take less than one over the number of clients.", delta=delta)
        if relation is not None:
            check_choice(RELATIONS, relation=relation)
        self.epsilon, self.delta, self.relation = float(epsilon), float(delta), relation
        self.path = None if path is None else Path(path)
        self.payments: list[Payment] = []
        self._lock = threading.Lock()
        with self._held():
            pass

    def __repr__(self) -> str:
        spent = f"{self.spent():.3g} of epsilon {self.epsilon:g} at delta {self.delta:g} are spent"
        return f"Ledger({spent}, by {len(self.payments)} questions, {self.relation})"

    def spent(self) -> float:
        """Returns epsilon of all that was paid, at the ledger's delta."""
        return _together(self.payments, self.delta, self.relation)

    def pay(self, question: str, account: Account, rounds: int, *, token: str = "", drawn: str = "") -> None:
        """Pays for so many rounds; nothing, if the same token has paid before.

        Args:
          question: Its name.
          account: What a round costs.
          rounds: How many.
          token: As in `Payment`.
          drawn: As in `Payment`; none is paid twice, for of two answers with the same noise the difference has none.

        Raises:
          BudgetSpent: With what has been spent and what the question would make of it; nothing is paid then.
          ValueError: If the account is about other data sets that are to look alike, or noise was there before.
        """
        with self._held():
            if not (token and any(one.token == token for one in self.payments)):
                self._pay(question, account, rounds, token, drawn)

    def _pay(self, question: str, account: Account, rounds: int, token: str, drawn: str) -> None:
        if drawn and any(one.drawn == drawn for one in self.payments):
            raise ValueError(
                f"noise is drawn anew for each question; got a key for {question} that another one had. Pass "
                "jax.random.fold_in(key, number)."
            )
        if self.relation not in (None, account.relation):
            raise ValueError(
                f"all that a ledger pays for is about the same two data sets, {self.relation!r}; got "
                f"{account.relation!r} for {question}. That of the first question is the ledger's: begin with "
                'Ledger(relation="replace_one") for local reports and noise at the server, with "zero_out_one" for '
                "noise at the server and shares of it."
            )
        payment = Payment(question, account.loss, account._count(rounds, self.delta), token, drawn)
        after = _together([*self.payments, payment], self.delta, account.relation)
        if not after <= self.epsilon * _ROUNDING:
            raise BudgetSpent(
                f"a budget of epsilon {self.epsilon:g} at delta {self.delta:g} has paid {self.spent():.6g} for "
                f"{len(self.payments)} questions; {question} would make it {after:.6g}. Ask with more noise, or stop."
            )
        self.relation = account.relation
        self.payments.append(payment)
        if self.path is not None:
            self._save(self.path)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Keeps others out of the file, and reads what they have paid; of one without a file, other threads."""
        with self._lock, contextlib.ExitStack() as held:
            if self.path is not None:
                file = held.enter_context(open(self.path.with_name(f"{self.path.name}.lock"), "a"))
                fcntl.flock(file, fcntl.LOCK_EX)
                self._open(self.path)
            yield

    def _open(self, path: Path) -> None:
        if not path.exists():
            self._save(path)
            return
        saved = json.loads(path.read_text())
        if (saved["epsilon"], saved["delta"]) != (self.epsilon, self.delta) or (
            None not in (self.relation, saved["relation"]) and self.relation != saved["relation"]
        ):
            was = {name: saved[name] for name in ("epsilon", "delta", "relation")}
            raise ValueError(
                f"a ledger goes on with the budget that it began with, {was}; got epsilon={self.epsilon}, "
                f"delta={self.delta}, relation={self.relation!r} for {path}. Repeat it, or take another file."
            )
        self.relation = self.relation or saved["relation"]
        self.payments = [Payment(**{**one, "loss": _loss_of(one["loss"])}) for one in saved["payments"]]

    def _save(self, path: Path) -> None:
        payments = [{**one._asdict(), "loss": [type(one.loss).__name__, *one.loss]} for one in self.payments]
        head = {"epsilon": self.epsilon, "delta": self.delta, "relation": self.relation}
        replace_file(path, json.dumps({**head, "payments": payments}, indent=1).encode())


def _together(payments: Sequence[Payment], delta: float, relation: Relation | None) -> float:
    paid = [(one.loss, one.times) for one in payments]
    return epsilon_together(paid, delta, relation) if paid and relation else 0.0


def _loss_of(entry: list[Any]) -> Loss:
    name, *fields = entry
    if name == "IntegerSum":
        made = integer_loss.IntegerSum(*fields)
        return made._replace(norms=integer_loss.Norms(*made.norms))
    return getattr(losses, name)(*fields)
