"""Shamir's secret sharing over a prime field.

Shamir, "How to Share a Secret" (CACM 1979): a secret is the value at 0 of a polynomial of degree
``threshold - 1``, a share its value elsewhere. Fewer shares than the threshold fit every secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PRIME = 2**255 - 19


def share(secret: int, coefficients: Sequence[int], points: Sequence[int], *, prime: int = PRIME) -> dict[int, int]:
    """Evaluates ``secret + coefficients[0] * x + coefficients[1] * x^2 + ...`` modulo the prime at each point.

    Args:
      secret: In ``[0, prime)``.
      coefficients: ``threshold - 1`` uniform numbers in ``[0, prime)``, used once.
      points: Different modulo the prime, and not 0.
      prime: The order of the field.

    Returns:
      The shares by point; as many as there are coefficients, and one more, recover the secret.

    >>> share(1234, [166, 94], range(1, 7))
    {1: 1494, 2: 1942, 3: 2578, 4: 3402, 5: 4414, 6: 5614}
    """
    if not 0 <= secret < prime:
        raise ValueError(f"a secret must be in [0, prime); got one of {secret.bit_length()} bits. Split it.")
    if len({x % prime for x in points} - {0}) != len(points):
        raise ValueError(f"points must differ and not be 0 in the field; got {list(points)}. Number them from 1.")

    def value(x: int) -> int:
        total = 0
        for coefficient in reversed([secret, *coefficients]):
            total = (total * x + coefficient) % prime
        return total

    return {x: value(x) for x in points}


def recover(shares: Mapping[int, int], *, prime: int = PRIME) -> int:
    """Returns the secret of at least ``threshold`` shares, by Lagrange's interpolation at 0.

    Fewer shares give a wrong number, which nothing tells from the secret: count them before.

    >>> recover({2: 1942, 4: 3402, 5: 4414})
    1234
    """
    numerators = {x: math.prod(-other for other in shares if other != x) for x in shares}
    denominators = {x: math.prod(x - other for other in shares if other != x) for x in shares}
    terms = (y * numerators[x] * pow(denominators[x], -1, prime) for x, y in shares.items())
    return sum(terms) % prime
