"""An exponential moving average of the server's model, beside it.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), with geometric weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from fedjx.core.execution.computation import Computation, federated_computation
from fedjx.core.execution.process import Algorithm, StatefulAlgorithm
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.placed import federated_map

A = TypeVar("A", Algorithm, StatefulAlgorithm)


class EmaState(NamedTuple):
    """The state of a wrapped algorithm.

    Attributes:
      inner: The algorithm's own, whose ``params`` the clients train from.
      params: The average, where evaluations look for a model.
    """

    inner: Any
    params: PyTree

    @property
    def round(self) -> jax.Array:
        """int32 ``[]``; how many rounds are done, as the algorithm counts."""
        return self.inner.round


def ema(algorithm: A, decay: float) -> A:
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

    step: Computation[..., Any] = algorithm.next  # of either kind

    def init(key: jax.Array) -> EmaState:
        state = algorithm.init(key)
        return EmaState(state, jax.tree.map(jnp.copy, state.params))

    def average(old: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, old, new)

    @federated_computation
    def next(state: Any, data: Any) -> Any:
        inner, metrics = step(state.inner, data)
        return EmaState(inner, federated_map(average, state.params, inner.params)), metrics

    @federated_computation
    def next_with_states(state: Any, data: Any, states: Any) -> Any:
        inner, metrics, states = step(state.inner, data, states)
        return EmaState(inner, federated_map(average, state.params, inner.params)), metrics, states

    if isinstance(algorithm, StatefulAlgorithm):
        return StatefulAlgorithm(init, lambda state: algorithm.init_client(state.inner), next_with_states)
    return Algorithm(init, next)
