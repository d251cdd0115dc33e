"""What an accountant is told of a private aggregator: how much noise, and how it hangs together over the rounds."""

from __future__ import annotations

from typing import Literal, NamedTuple

Mechanism = Literal["skellam", "discrete_gaussian"]


class Independent(NamedTuple):
    """Every round has noise of its own."""


class Laplacian(NamedTuple):
    """Every round has noise of its own, of the Laplace distribution; what is clipped is the L1 norm."""


class Local(NamedTuple):
    """Every client's report is private by itself, whoever sees it.

    Attributes:
      epsilon: No report is more than ``exp(epsilon)`` times as likely for one value as for another; None if reports
        are values with Gaussian noise.
    """

    epsilon: float | None = None


class Stated(NamedTuple):
    """Every round is a mechanism whose own theorem states what one costs.

    Attributes:
      epsilon: Of a round, for the two data sets that the theorem is about.
      delta: Of it; 0 of pure differential privacy.
    """

    epsilon: float
    delta: float = 0.0


class Tree(NamedTuple):
    """The noise on the sum of all rounds so far is that of a binary tree, whose leaves are the rounds.

    Attributes:
      num_rounds: Leaves of a tree, after which another one begins.
      first_rounds: Leaves of the first one, no more.
      efficient: Whether nodes are estimated.
    """

    num_rounds: int
    first_rounds: int
    efficient: bool


class Matrix(NamedTuple):
    """The noise of the rounds is correlated by the inverse of a strategy matrix C.

    Attributes:
      num_rounds: Rows of the matrix: the most rounds of a run.
      min_separation: The least number of rounds from one participation of a client to its next, for which noise was
        scaled by the sensitivity of C.
      max_participations: The most rounds with one client.
      strategy: Its first column, as a `Strategy` of `fedjx.privacy` has it.
      share: The norm of the change by one participation, in that by all.
    """

    num_rounds: int
    min_separation: int
    max_participations: int
    strategy: tuple[tuple[float, ...], ...]
    share: float

    @property
    def bands(self) -> int | None:
        """How many rounds hang together; None if all do."""
        coefficients, *buffers = self.strategy
        return None if any(buffers) else len(coefficients)


class Shared(NamedTuple):
    """Every round has integer noise of its own, of which each client makes a share; lengths are in steps of a grid.

    Attributes:
      mechanism: Of which a share is.
      stddev: Standard deviation of one.
      min_clients: The fewest shares in a sum that the server sees.
      max_clients: The shares in the noise of a result.
      clip: What `Event.clip` is on the grid.
      size: Integers that each client sends.
      log_inverse_beta: Clients round again what is too long, as a part of beta of all roundings is at most.
    """

    mechanism: Mechanism
    stddev: float
    min_clients: int
    max_clients: int
    clip: float
    size: int
    log_inverse_beta: float = 0.5


Kind = Independent | Laplacian | Local | Stated | Tree | Matrix | Shared


class Event(NamedTuple):
    """One round, or a run's noise, of a sum to which each client adds a vector of at most a norm, its sensitivity.

    Attributes:
      noise_multiplier: Standard deviation of Gaussian noise, or scale of Laplace noise, in sensitivities; 0 without
        noise, and of what has an epsilon of its own (`Local`, `Stated`).
      noise: How it hangs together over the rounds.
      clip: The sensitivity; None if it adapts.
      noise_clients: The expected cohort that the noise was made for, if it is not the simulated one.
    """

    noise_multiplier: float
    noise: Kind = Independent()
    clip: float | None = None
    noise_clients: float | None = None

    @property
    def may_be_split(self) -> bool:
        """Whether clients may be in one of several such sums by what is in their data: nothing counts them."""
        return not isinstance(self.noise, (Local, Shared, Stated))
