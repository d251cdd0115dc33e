"""The answer to a question: its value, how far it may be off, what it cost, and who saw what."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from fedjx.core.language.checks import check_number
from fedjx.privacy.account import Account


class Answer(NamedTuple):
    """What is known after a question.

    Attributes:
      value: The answer: a number, an array or what the question says.
      stddev: Its standard deviation by noise and sampling, to first order, like ``value``; 0 if it is exact, None where
        no theory gives it.
      num_clients: Clients that were asked; None if they were drawn by Poisson sampling for noise that relies on it.
      num_answered: Of these, clients with a record that counts; None where that is private.
      bits: That one client sent.
      sees: What the server saw.
      trust: The model of trust.
      account: What it cost, an account of ``num_rounds`` rounds; None if nothing was promised.
      num_rounds: How often clients were asked.
    """

    value: Any
    stddev: Any
    num_clients: int | None
    num_answered: int | None
    bits: int
    sees: str
    trust: str
    account: Account | None = None
    num_rounds: int = 1

    def interval(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """Returns the ends of an interval that has the true value with such a probability, by the normal distribution.

        Raises:
          ValueError: If no theory gives the standard deviation.
        """
        check_number("(0, 1)", confidence=confidence)
        if self.stddev is None:
            raise ValueError("an interval needs a standard deviation; got None. This question has none: repeat it.")
        reach = float(ndtri((1 + confidence) / 2)) * np.asarray(self.stddev)
        return (self.value - reach)[()], (self.value + reach)[()]

    def epsilon(self, delta: float) -> float:
        """Returns what it cost at a delta; infinity if nothing was promised."""
        return float("inf") if self.account is None else self.account.epsilon(self.num_rounds, delta)
