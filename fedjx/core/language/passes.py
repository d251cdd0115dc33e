"""What the language asks of whoever runs it: passes over a cohort, and how each makes one value of many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax

from fedjx.core.language.names import PyTree

Merge = Callable[[PyTree, PyTree], PyTree]


class Reduction(NamedTuple):
    """How members become one value.

    Attributes:
      zero: From the type of one member to the empty accumulator.
      update: ``(accumulator, members [C, ...], mask [C]) -> accumulator``.
      across: How the accumulators of two devices combine: a sum, a minimum, a maximum, or
        any associative and commutative function of two accumulators.
      report: From the accumulator to the result.
      secure: Whether the server sees the result alone, and no member.
    """

    zero: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree, jax.Array], PyTree]
    across: Literal["sum", "min", "max"] | Merge
    report: Callable[[PyTree], PyTree] = lambda accumulator: accumulator
    secure: bool = False


class Pass(NamedTuple):
    """One sweep over the cohort.

    Attributes:
      fn: ``(server values, one client's member, id) -> (one value per reduction, outputs)``.
      reductions: What becomes of the values; outputs stay with their client.
      differentiable: Whether `sequence_reduce` runs over all of the padding, in a loop that has a
        derivative in reverse, or stops where the longest of the clients at hand ends.
      in_step: Whether all devices take every step, padding included, as they must where several
        of them compute one client and talk to each other within a step.
    """

    fn: Callable[[PyTree, PyTree, jax.Array], tuple[tuple[PyTree, ...], PyTree]]
    reductions: tuple[Reduction, ...]
    differentiable: bool = True
    in_step: bool = False
