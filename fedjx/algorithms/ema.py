"""An exponential moving average of the server's model, beside it.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), with geometric weights.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, Protocol, TypeVar, overload

import jax
import jax.numpy as jnp

from fedjx.core.execution.computation import Computation, federated_computation
from fedjx.core.execution.process import Algorithm, StatefulAlgorithm
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import map_keeping


class WithModel(Protocol):
    """A server's state with a model in it, and how many rounds are done."""

    @property
    def params(self) -> PyTree: ...  # noqa: D102
    @property
    def round(self) -> jax.Array: ...  # noqa: D102


State = TypeVar("State", bound=WithModel)
ClientState = TypeVar("ClientState")


class EmaState(NamedTuple, Generic[State]):
    """The state of a wrapped algorithm.

    Attributes:
      inner: The algorithm's own, whose ``params`` the clients train from.
      params: The average, where evaluations look for a model.
    """

    inner: State
    params: PyTree

    @property
    def round(self) -> jax.Array:
        """Returns how many rounds are done, as the algorithm counts: int32 ``[]``."""
        return self.inner.round


@overload
def ema(algorithm: Algorithm[State], decay: float) -> Algorithm[EmaState[State]]: ...
@overload
def ema(
    algorithm: StatefulAlgorithm[State, ClientState], decay: float
) -> StatefulAlgorithm[EmaState[State], ClientState]: ...
def ema(
    algorithm: Algorithm[State] | StatefulAlgorithm[State, ClientState], decay: float
) -> Algorithm[EmaState[State]] | StatefulAlgorithm[EmaState[State], ClientState]:
    """Wraps an algorithm to average its model over the rounds.

    After every round ``average <- decay * average + (1 - decay) * params``; it begins as the first parameters.

    Args:
      algorithm: Has ``params`` in its state. The average has no influence on it.
      decay: From 0, which keeps the last model, to below 1. About the last ``1 / (1 - decay)`` rounds count.

    Returns:
      An algorithm of the same kind, with an `EmaState`.

    Raises:
      ValueError: If the decay is outside of [0, 1).
    """
    check_number("[0, 1)", "Pass 0.9 for about the last 10 rounds.", decay=decay)

    step: Computation[..., PyTree] = algorithm.next  # of either kind

    def init(key: jax.Array) -> EmaState[State]:
        state = algorithm.init(key)
        return EmaState(state, jax.tree.map(jnp.copy, state.params))

    def average(old: PyTree, new: PyTree) -> PyTree:
        return map_keeping(lambda a, p: decay * a + (1 - decay) * p, old, new)

    @federated_computation
    def next(state: FederatedValue, data: FederatedValue) -> tuple[EmaState[PyTree], FederatedValue]:
        inner, metrics = step(state.inner, data)
        return EmaState(inner, federated_map(average, state.params, inner.params)), metrics

    @federated_computation
    def next_with_states(
        state: FederatedValue, data: FederatedValue, states: FederatedValue
    ) -> tuple[EmaState[PyTree], FederatedValue, FederatedValue]:
        inner, metrics, states = step(state.inner, data, states)
        return EmaState(inner, federated_map(average, state.params, inner.params)), metrics, states

    if isinstance(algorithm, StatefulAlgorithm):
        return StatefulAlgorithm(init, lambda state: algorithm.init_client(state.inner), next_with_states)
    return Algorithm(init, next)
