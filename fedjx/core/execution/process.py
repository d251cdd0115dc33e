"""What an algorithm and an aggregator are: a pair of pure functions each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjx.core.language.operators import federated_zip


class Algorithm(NamedTuple):
    """An iterative federated algorithm.

    Attributes:
      init: ``(key) -> state``; a pure function of the random key.
      next: The computation of one round, ``(state@SERVER, data@CLIENTS) -> (state@SERVER,
        metrics@SERVER)``. Its state has the type that ``init`` returns.
    """

    init: Callable[..., Any]
    next: Callable[..., Any]


class StatefulAlgorithm(NamedTuple):
    """An iterative federated algorithm whose clients keep a state between rounds.

    Attributes:
      init: ``(key) -> state``, the server's; a pure function of the random key.
      init_client: ``(state) -> client state`` of a client that was never here: one pytree of arrays, the same for all.
        `fedjx.data.ClientStates` keeps them on disk.
      next: The computation of one round, ``(state@SERVER, data@CLIENTS, states@CLIENTS) -> (state@SERVER,
        metrics@SERVER, states@CLIENTS)``. A client without examples, or whose update is not finite, keeps its state.
    """

    init: Callable[..., Any]
    init_client: Callable[..., Any]
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


def keeps_type(name: str, before: Any, after: Any) -> Any:
    """Returns a new state, if it has the type of the one before.

    Raises:
      TypeError: If not: the next round would be another computation.
    """
    new = federated_zip(after)
    if new.type != before.type:
        raise TypeError(
            f"{name} keeps the type of its state; got {new.type} from {before.type}. "
            "Return the dtypes and the structure that init makes."
        )
    return new
