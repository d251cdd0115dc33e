"""Numbers of a column, bounded and scaled: what sums and means are taken of."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjx.core.language.checks import check_number
from fedjx.core.language.names import Array


class Range(NamedTuple):
    """Where the numbers of a column are clipped to; `bounds` makes it.

    Attributes:
      low: The least number; -infinity if there is no bound.
      high: The largest.
    """

    low: float
    high: float

    @property
    def is_bounded(self) -> bool:
        """Whether it has both ends."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def middle(self) -> float:
        """Halfway between them; 0 without bounds."""
        return (self.low + self.high) / 2 if self.is_bounded else 0.0

    @property
    def half(self) -> float:
        """The distance from the middle to an end."""
        return (self.high - self.low) / 2

    def clipped(self, x: Array) -> Array:
        """Returns a number within the range, as `number` has it."""
        x = number(x)
        if not self.is_bounded:
            return x
        if jnp.issubdtype(x.dtype, jnp.integer):
            most = jnp.iinfo(x.dtype)
            low, high = (min(max(end, most.min), most.max) for end in (math.ceil(self.low), math.floor(self.high)))
            return jnp.clip(x, *(jnp.asarray(end, x.dtype) for end in (low, high)))
        return jnp.clip(x, self.low, self.high)

    def distance(self, x: Array) -> Array:
        """Returns how far a number, clipped, is from the middle, float32, within half the range."""
        x, whole = self.clipped(x), 0
        if jnp.issubdtype(x.dtype, jnp.integer) and self._is_narrow(jnp.iinfo(x.dtype)):
            # An integer's distance from another one is exact; as float32 it would not be if it is large. Modulo 2^32,
            # since only the distance fits into an integer for sure.
            whole = round(self.middle)
            x = (x.astype(jnp.uint32) - np.uint32(whole % 2**32)).astype(jnp.int32)
        # Rounding may have moved the ends of the range by more than half of it.
        return jnp.clip(x.astype(jnp.float32) - jnp.float32(self.middle - whole), -self.half, self.half)

    def _is_narrow(self, most: Any) -> bool:
        """Whether distances from the middle, which is one of these integers, are int32."""
        return self.half < 1 << 30 and most.min <= self.middle <= most.max


def bounds(low: float | None, high: float | None) -> Range:
    """Returns the range of numbers between two ends, or of all numbers.

    Raises:
      ValueError: If only one end is given, one is not finite, or they are not in order.
    """
    if (low is None) != (high is None):
        raise ValueError(f"numbers have two bounds, or none; got {low=} and {high=}. Give both.")
    if low is None or high is None:
        return Range(-math.inf, math.inf)
    check_number("(-inf, inf)", "Pass numbers that make sense, or neither bound.", low=low, high=high)
    if not low < high:
        raise ValueError(f"bounds are in order; got {low=} and {high=}. Let low be less than high.")
    return Range(float(low), float(high))


def number(x: Array) -> Array:
    """Returns a number, an integer or boolean in at least 32 bits.

    Raises:
      ValueError: If it is several: a record would add more than noise is made for.
    """
    if x.shape:
        raise ValueError(
            f"this question is about columns of one number a record; got {x.dtype}{list(x.shape)}. Ask about one "
            "element at a time, each a column of its own."
        )
    is_narrow = x.dtype == bool or (jnp.issubdtype(x.dtype, jnp.integer) and jnp.iinfo(x.dtype).bits < 32)
    return x.astype(jnp.int32) if is_narrow else x


def category(x: Array) -> Array:
    """Returns a category, an integer of at least 32 bits.

    Raises:
      ValueError: If it is a fraction, or several: a record would add more than noise is made for.
    """
    if not (x.dtype == bool or jnp.issubdtype(x.dtype, jnp.integer)):
        raise ValueError(
            f"categories and groups are integers; got a column of {x.dtype}. Number them from 0, or give edges of bins."
        )
    return number(x)


def finite(x: Array) -> Array:
    """Returns 0, the only bin, of a number, and -1 of what is none: int32 ``[]``."""
    return jnp.where(jnp.isfinite(number(x)), 0, -1).astype(jnp.int32)
