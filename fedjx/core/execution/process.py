"""What an algorithm and an aggregator are: a pair of pure functions each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from fedjx.core.execution.computation import Computation
from fedjx.core.language.names import Key, Metrics, PyTree
from fedjx.core.language.operators import federated_zip
from fedjx.core.language.placed import FederatedValue
from fedjx.core.language.streams import AtClients
from fedjx.core.language.values import Clients

State = TypeVar("State")
ClientState = TypeVar("ClientState")
Bounded = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
Aggregation = tuple[FederatedValue, FederatedValue, FederatedValue]  # an aggregator's state, result and measurements


class Algorithm(NamedTuple, Generic[State]):
    """An iterative federated algorithm.

    Attributes:
      init: ``(key) -> state``; a pure function of the random key.
      next: The computation of one round, ``(state@SERVER, data@CLIENTS) -> (state@SERVER,
        metrics@SERVER)``. Its state has the type that ``init`` returns.
    """

    init: Callable[[Key], State]
    next: Computation[[State, AtClients], tuple[State, Metrics]]


class StatefulAlgorithm(NamedTuple, Generic[State, ClientState]):
    """An iterative federated algorithm whose clients keep a state between rounds.

    Attributes:
      init: ``(key) -> state``, the server's; a pure function of the random key.
      init_client: ``(state) -> client state`` of a client that was never here: one pytree of arrays, the same for all.
        `fedjx.data.ClientStates` keeps them on disk.
      next: The computation of one round, ``(state@SERVER, data@CLIENTS, states@CLIENTS) -> (state@SERVER,
        metrics@SERVER, states@CLIENTS)``. A client without examples, or whose update is not finite, keeps its state.
    """

    init: Callable[[Key], State]
    init_client: Callable[[State], ClientState]
    next: Computation[[State, AtClients, AtClients], tuple[State, Metrics, Clients]]


class Aggregator(NamedTuple):
    """How the server makes one value of the clients' values.

    Attributes:
      init: ``(member) -> state``, for values of the type of ``member``.
      next: ``(key@SERVER, state@SERVER, value@CLIENTS, weight@CLIENTS) -> (state@SERVER,
        result@SERVER, measurements@SERVER)``, written with the federated operators.
      bounded: ``(key, state, value, weight) -> (value@CLIENTS, weight@CLIENTS)``, what of each client goes into the
        mean, if the result is the weighted mean of such: clipped, for one that clips. What a server takes of the
        clients' values besides their mean, it takes of these. None for rules that are no mean.
      secure: Whether the server sees no more than secure sums of what clients send; who wraps such an aggregator then
        sums what it counts securely too.
      event: What an accountant of differential privacy is told of it, see `fedjx.privacy`; None without a guarantee.
        Who wraps such an aggregator keeps it if it changes each client's value by itself, and only then.
    """

    init: Callable[[PyTree], PyTree]
    next: Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]
    bounded: Bounded | None = None
    secure: bool = False
    event: object = None


def bounded_after(inner: Aggregator, before: Callable[..., tuple[PyTree, PyTree, PyTree, PyTree]]) -> Bounded | None:
    """Returns ``bounded`` of an aggregator that wraps another.

    Args:
      inner: The other one.
      before: From the wrapper's ``(key, state, value, weight)`` to those that the inner one gets.
    """
    of_inner = inner.bounded
    return None if of_inner is None else lambda *sent: of_inner(*before(*sent))


def keeps_type(name: str, before: FederatedValue, after: PyTree) -> FederatedValue:
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
