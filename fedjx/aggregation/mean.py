"""The weighted mean."""

from __future__ import annotations

from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_mean, federated_value
from fedjx.core.language.placed import FederatedValue
from fedjx.core.language.types import SERVER


def mean() -> Aggregator:
    """Averages the clients' values by their weights; 0 if no client has weight."""

    def init(member: PyTree) -> tuple[()]:
        del member
        return ()

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        del key
        return state, federated_mean(value, weight), federated_value({}, SERVER)

    return Aggregator(init, next, lambda key, state, value, weight: (value, weight))


def wrapped(inner: Aggregator | None, *, unguarded: str | None = None) -> Aggregator:
    """Returns the aggregator that another one wraps: the `mean` if none is given.

    Args:
      inner: Which.
      unguarded: What of the clients goes past it, for a wrapper in which a private one would lose its guarantee.

    Raises:
      TypeError: If it is no `Aggregator`.
      ValueError: If it would lose its guarantee.
    """
    inner = mean() if inner is None else inner
    if not isinstance(inner, Aggregator):
        raise TypeError(
            f"inner must be an Aggregator, without a memory at the clients; got {type(inner).__name__}. Pass one "
            "of fedjx.aggregation, called, such as mean(); one with a memory goes outermost."
        )
    if unguarded is not None and inner.event is not None:
        raise ValueError(
            "a private mean keeps its guarantee in what changes each client's value by itself; got one in a wrapper "
            f"where {unguarded}. Take a fixed bound, such as clip_by_norm or zero_above, or give the guarantee up: "
            "inner._replace(event=None)."
        )
    return inner
