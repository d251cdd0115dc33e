"""Numbers as a few small integers each, whose sums over very many clients are exact: as fine as float32 is."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.aggregation.fixed_point import FixedPoint
from fedjx.aggregation.fixed_point import encode as rounded
from fedjx.core.language.names import Array, Key

_BITS = 24  # of a number with its sign: float32 has no finer ones


class Digits(NamedTuple):
    """How numbers of ``[-bound, bound]`` are written; `digits_for` makes it.

    Attributes:
      bound: The largest number.
      bits: Of a digit; the last one has the sign.
      number: Of digits.
    """

    bound: float
    bits: int
    number: int

    @property
    def step(self) -> float:
        """The distance of two numbers that can be written."""
        return self.bound / 2 ** (_BITS - 1)


def digits_for(bound: float, num_summands: int) -> Digits:
    """Returns the fewest digits whose sum over so many numbers fits into integers of 32 bits.

    Raises:
      ValueError: If there are too many numbers for digits of one bit.

    >>> digits_for(1.0, 100), digits_for(1.0, 10**7)
    (Digits(bound=1.0, bits=24, number=1), Digits(bound=1.0, bits=7, number=4))
    """
    bits = ((2**31 - 1) // num_summands).bit_length() - 1
    if bits < 1:
        raise ValueError(
            f"a secure sum is of fewer than 2^30 numbers; got {num_summands}. Pass max_records, or ask fewer."
        )
    return Digits(float(bound), bits, -(-_BITS // bits))


def encode(digits: Digits, x: jax.Array, key: Key) -> jax.Array:
    """Rounds numbers at random, without bias, and writes them, the lowest digit first: int32 ``[..., number]``."""
    whole = rounded(FixedPoint(digits.bound, 1 << (_BITS - 1), 32), x, key)
    low = [(whole >> digits.bits * k) & ((1 << digits.bits) - 1) for k in range(digits.number - 1)]
    return jnp.stack([*low, whole >> digits.bits * (digits.number - 1)], axis=-1)


def decode(digits: Digits, sums: Array) -> np.ndarray:
    """Reads sums of such numbers, exactly, float64 ``[...]``."""
    weights = 2.0 ** (digits.bits * np.arange(digits.number))
    return np.asarray(sums, np.float64) @ weights * digits.step
