"""Adaptive server optimizers.

Reddi et al., "Adaptive Federated Optimization" (arXiv 2003.00295, algorithm 2): FedAdagrad, FedAdam and FedYogi, with
neither Adam's bias correction nor its place for the small constant. In the paper's letters, with D the clients' mean
change, which is minus the delta that servers get here,

    m <- b1 m + (1 - b1) D        x <- x + learning_rate m / (sqrt(v) + tau)        v = tau^2 at first

    Adagrad  v <- v + D^2
    Adam     v <- b2 v + (1 - b2) D^2
    Yogi     v <- v - (1 - b2) D^2 sign(v - D^2)      D^2 is |D|^2 where D is complex

FedAvgM is Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification"
(arXiv 1909.06335, section 4.3). In all of these a learning rate may be an `optax.Schedule`, which counts rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import map_keeping
from fedjx.models.model import Model
from fedjx.training.method import ServerState, averaging
from fedjx.training.round import ClientArguments, compose

LearningRate = float | jax.Array | optax.Schedule


class Moments(NamedTuple):
    """The state of an adaptive server optimizer: m and v of the paper, like the parameters."""

    first: PyTree
    second: PyTree


def server_adagrad(learning_rate: LearningRate, *, b1: float = 0.0, tau: float = 1e-3) -> optax.GradientTransformation:
    """Sums the squares of the deltas, as FedAdagrad does."""
    return _adaptive(learning_rate, b1, tau, lambda v, square: v + square)


def server_adam(
    learning_rate: LearningRate, *, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """Averages the squares of the deltas exponentially, as FedAdam does.

    >>> optimizer = server_adam(0.1)
    >>> updates, _ = optimizer.update(jnp.float32(-0.5), optimizer.init(jnp.float32(0)))
    >>> round(float(updates), 3)  # 0.1 * 0.05 / (sqrt(0.002501) + 0.001)
    0.098
    """
    return _adaptive(learning_rate, b1, tau, lambda v, square: b2 * v + (1 - b2) * square)


def server_yogi(
    learning_rate: LearningRate, *, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """Moves towards the squares of the deltas by steps of their size, as FedYogi does."""
    return _adaptive(learning_rate, b1, tau, lambda v, square: v - (1 - b2) * square * jnp.sign(v - square))


def _adaptive(
    learning_rate: LearningRate, b1: float, tau: float, second_moment: Callable[[jax.Array, jax.Array], jax.Array]
) -> optax.GradientTransformation:
    check_number("(0, inf]", "Pass about 1e-3.", tau=tau)

    def init(params: PyTree) -> Moments:
        first = jax.tree.map(jnp.zeros_like, params)
        return Moments(first, jax.tree.map(lambda p: jnp.full_like(p.real, tau**2), params))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, Moments]:
        del params
        first = map_keeping(lambda m, d: b1 * m + (1 - b1) * d, state.first, updates)
        second = map_keeping(lambda v, d: second_moment(v, (d * d.conj()).real), state.second, updates)
        return map_keeping(lambda m, v: m / (jnp.sqrt(v) + tau), first, second), Moments(first, second)

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))


def fed_adagrad(
    model: Model,
    *,
    learning_rate: LearningRate = 0.1,
    b1: float = 0.0,
    tau: float = 1e-3,
    **arguments: Unpack[ClientArguments],
) -> Algorithm[ServerState]:
    """Builds `fed_avg` with `server_adagrad`, and the other arguments of `fed_avg`."""
    return compose(
        averaging(model),
        server_optimizer=server_adagrad(learning_rate, b1=b1, tau=tau),
        **arguments,
    )


def fed_adam(
    model: Model,
    *,
    learning_rate: LearningRate = 0.1,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    **arguments: Unpack[ClientArguments],
) -> Algorithm[ServerState]:
    """Builds `fed_avg` with `server_adam`, and the other arguments of `fed_avg`."""
    return compose(
        averaging(model),
        server_optimizer=server_adam(learning_rate, b1=b1, b2=b2, tau=tau),
        **arguments,
    )


def fed_yogi(
    model: Model,
    *,
    learning_rate: LearningRate = 0.1,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    **arguments: Unpack[ClientArguments],
) -> Algorithm[ServerState]:
    """Builds `fed_avg` with `server_yogi`, and the other arguments of `fed_avg`."""
    return compose(
        averaging(model),
        server_optimizer=server_yogi(learning_rate, b1=b1, b2=b2, tau=tau),
        **arguments,
    )


def fed_avgm(
    model: Model,
    *,
    learning_rate: LearningRate = 1.0,
    momentum: float = 0.9,
    **arguments: Unpack[ClientArguments],
) -> Algorithm[ServerState]:
    """Builds `fed_avg` with heavy-ball momentum at the server, and the other arguments of `fed_avg`."""
    return compose(averaging(model), server_optimizer=optax.sgd(learning_rate, momentum=momentum), **arguments)
