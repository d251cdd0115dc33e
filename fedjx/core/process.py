"""What an algorithm and an aggregator are: a pair of pure functions each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Algorithm(NamedTuple):
    """An iterative federated algorithm.

    Attributes:
      init: ``(key) -> state``; a pure function of the random key.
      next: The computation of one round, ``(state@SERVER, data@CLIENTS) -> (state@SERVER,
        metrics@SERVER)``. Its state has the type that ``init`` returns.
    """

    init: Callable[..., Any]
    next: Callable[..., Any]


class Aggregator(NamedTuple):
    """How the server makes one value of the clients' values.

    Attributes:
      init: ``(member) -> state``, for values of the type of ``member``.
      next: ``(key@SERVER, state@SERVER, value@CLIENTS, weight@CLIENTS) -> (state@SERVER,
        result@SERVER, measurements@SERVER)``, written with the federated operators.
    """

    init: Callable[..., Any]
    next: Callable[..., Any]
