"""Numbers of a column, bounded and scaled: what sums and means are taken of."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

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
        """Returns numbers within the range, in their dtype."""
        if not self.is_bounded:
            return x
        if jnp.issubdtype(x.dtype, jnp.integer):
            most = jnp.iinfo(x.dtype)
            low, high = max(math.ceil(self.low), most.min), min(math.floor(self.high), most.max)
            return jnp.clip(x, low, high)
        return jnp.clip(x, self.low, self.high)

    def distance(self, x: Array) -> Array:
        """Returns how far numbers, clipped, are from the middle, float32."""
        whole = round(self.middle) if jnp.issubdtype(x.dtype, jnp.integer) else 0
        # An integer's distance from another one is exact; as float32 it would not be if it is large.
        return (self.clipped(x) - whole).astype(jnp.float32) - jnp.float32(self.middle - whole)


def bounds(low: float | None, high: float | None) -> Range:
    """Returns the range of numbers between two ends, or of all numbers.

    Raises:
      ValueError: If only one end is given, or they are not in order.
    """
    if (low is None) != (high is None):
        raise ValueError(f"numbers have two bounds, or none; got {low=} and {high=}. Give both.")
    if low is None or high is None:
        return Range(-math.inf, math.inf)
    check_number("(-inf, inf)", low=low, high=high)
    if not low < high:
        raise ValueError(f"bounds are in order; got {low=} and {high=}. Let low be less than high.")
    return Range(float(low), float(high))


def finite(x: Array) -> Array:
    """Returns 0, the only bin, of a number, and -1 of what is none: int32 ``[]``."""
    return jnp.where(jnp.isfinite(x), 0, -1).astype(jnp.int32)
