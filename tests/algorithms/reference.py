"""Softmax regression in NumPy, in float64, over one flat vector of parameters: what parity tests loop over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fedjx.core.execution.process import Algorithm
from fedjx.data import Cohort, FederatedData
from tests.algorithms.problems import BATCH_SIZE, NUM_CLASSES, NUM_FEATURES

NUM_PARAMS = (NUM_FEATURES + 1) * NUM_CLASSES
COHORTS = ((0, 2, 5, 9), (1, 5, 3, 8))

# `(w, gradient, state) -> (w, state)`, with a state of None at first.
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def flat(params: Any) -> np.ndarray:
    """The parameters of `softmax_regression` as one vector."""
    return np.concatenate([np.ravel(params["kernel"]), np.ravel(params["bias"])])


def _probabilities(w: Any, x: Any) -> Any:
    logits = x.astype(np.float64) @ w[:-NUM_CLASSES].reshape(NUM_FEATURES, NUM_CLASSES) + w[-NUM_CLASSES:]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def losses(w: Any, client: Any) -> Any:
    """The loss of every example of a client."""
    return -np.log(_probabilities(w, client["x"])[np.arange(len(client["y"])), client["y"]])


def gradient(w: Any, x: Any, y: Any, weights: Any = None) -> Any:
    """The gradient of the sum over examples of weight times loss; of the mean if there are no weights."""
    weights = np.full(len(y), 1 / len(y)) if weights is None else weights
    errors = (_probabilities(w, x) - np.eye(NUM_CLASSES)[y]) * weights[:, None]
    return np.concatenate([(x.T.astype(np.float64) @ errors).ravel(), errors.sum(axis=0)])


def trained(w: Any, client: Any, step: Step, num_epochs: int = 1, weights: Any = None) -> Any:
    """A client's parameters after epochs over its batches, in order."""
    state = None
    for start in list(range(0, len(client["y"]), BATCH_SIZE)) * num_epochs:
        rows = slice(start, start + BATCH_SIZE)
        found = gradient(w, client["x"][rows], client["y"][rows], None if weights is None else weights[rows])
        w, state = step(w, found, state)
    return w


def sgd(rate: float, momentum: float = 0.0) -> Step:
    """SGD with heavy-ball momentum."""

    def step(w: Any, found: Any, velocity: Any) -> Any:
        velocity = found + momentum * (0 if velocity is None else velocity)
        return w - rate * velocity, velocity

    return step


def clients_of(data: FederatedData, ids: Sequence[int]) -> list[Any]:
    """The clients' examples, in NumPy."""
    return [data.client(k) for k in ids]


def after_rounds(
    algorithms: dict[str, Algorithm],
    data: FederatedData,
    cohorts: Any = COHORTS,
    *,
    batch_size: int = BATCH_SIZE,
    num_steps: int = 3,
) -> dict[str, Any]:
    """Runs rounds of several algorithms in one compiled program; by name, a list of (state, metrics) of every round."""
    states = {name: algorithm.init(jax.random.key(0)) for name, algorithm in algorithms.items()}
    step = jax.jit(lambda states, clients: {name: algorithms[name].next(s, clients) for name, s in states.items()})
    rounds: dict[str, Any] = {name: [] for name in algorithms}
    for ids in cohorts:
        after = step(states, Cohort(data, ids, batch_size=batch_size).whole(num_steps=num_steps))
        for name, found in after.items():
            states[name] = found[0]
            rounds[name].append(found)
    return rounds
