"""What an accountant is told of a private aggregator: how much noise, and how it hangs together over the rounds."""

from __future__ import annotations

from typing import Literal, NamedTuple

Mechanism = Literal["skellam", "discrete_gaussian"]


class Independent(NamedTuple):
    """Every round has noise of its own."""


class Tree(NamedTuple):
    """The noise on the sum of all rounds so far is that of a binary tree, whose leaves are the rounds.

    Attributes:
      num_rounds: Leaves of a tree, after which another one begins.
    """

    num_rounds: int


class Matrix(NamedTuple):
    """The noise of the rounds is correlated by the inverse of a strategy matrix C.

    Attributes:
      num_rounds: Rows of the matrix: the most rounds of a run.
      min_separation: The least number of rounds from one participation of a client to its next, for which noise was
        scaled by the sensitivity of C.
      max_participations: The most rounds with one client.
    """

    num_rounds: int
    min_separation: int
    max_participations: int


class Shared(NamedTuple):
    """Every round has integer noise of its own, of which each client makes a share; lengths are in steps of a grid.

    Attributes:
      mechanism: Of which a share is.
      stddev: Standard deviation of one.
      min_clients: The fewest shares in a sum that the server sees.
      max_clients: The shares in the noise of a result.
      clip: What `Event.clip` is on the grid.
      size: Integers that each client sends.
    """

    mechanism: Mechanism
    stddev: float
    min_clients: int
    max_clients: int
    clip: float
    size: int


class Event(NamedTuple):
    """One round, or a run's noise, of a sum to which each client adds a vector of at most a norm, its sensitivity.

    Attributes:
      noise_multiplier: Standard deviation of the noise, in sensitivities.
      noise: How it hangs together over the rounds.
      clip: The sensitivity; None if it adapts.
      noise_clients: The expected cohort that the noise was made for, if it is not the simulated one.
    """

    noise_multiplier: float
    noise: Independent | Tree | Matrix | Shared = Independent()
    clip: float | None = None
    noise_clients: float | None = None
