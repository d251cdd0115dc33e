"""FedProx: clients are drawn back to the model they were sent.

Li et al., "Federated Optimization in Heterogeneous Networks" (arXiv 1812.06127, algorithm 2). A client minimises
``F_k(w) + mu / 2 ||w - w_t||^2``; mu is fixed, or follows the loss as in section 5.3.2.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_number, check_params
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import map_keeping, number_dtype
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model
from fedjx.training.client import ClientUpdate, Local
from fedjx.training.method import Method, ServerState
from fedjx.training.round import TrainingArguments, compose


def proximal(strength: float | jax.Array, center: PyTree = None) -> optax.GradientTransformation:
    """Adds to a gradient that of ``strength / 2 * ||params - center||^2``, about where training starts if not given.

    >>> pull = proximal(0.1)
    >>> pull.update(jnp.float32(1), pull.init(jnp.float32(2)), jnp.float32(5))[0]  # 1 + 0.1 * (5 - 2)
    Array(1.3, dtype=float32)
    """

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        check_params("proximal", params)
        return map_keeping(lambda g, p, c: g + strength * (p - c), updates, params, state), state

    return optax.GradientTransformation(lambda params: params if center is None else center, update)


def fed_prox(
    model: Model, *, proximal_strength: float, adaptive: bool = False, **arguments: Unpack[TrainingArguments]
) -> Algorithm[ServerState]:
    """Builds FedProx, of the arguments of `fed_avg` and its own.

    Args:
      model: What is trained.
      proximal_strength: mu, at least 0; at 0 this is `fed_avg`.
      adaptive: Whether mu rises by 0.1 after every round with a higher loss than the one before, and falls by 0.1, to
        no less than 0, when the loss has fallen in five rounds running. It is then ``state.optimizer.strength``.
      **arguments: As for `fed_avg`. The client optimizer gets the gradient with the proximal term in it; the loss among
        the metrics is without it. The paper's client weight is `uniform` over clients drawn in proportion to their
        examples.

    Raises:
      ValueError: If the strength is negative.
    """
    check_number("[0, inf]", "Pass 0 for fed_avg.", proximal_strength=proximal_strength)

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, *, local: Local, context: float | jax.Array = proximal_strength
    ) -> ClientUpdate:
        optimizer = optax.chain(proximal(context), local.optimizer)
        return local.report(params, local.train(model, params, data, key, optimizer=optimizer))

    method = Method(model.init, client_update, input_spec=model.input_spec)
    if adaptive:
        method = method._replace(
            server=lambda optimizer: following_loss(optimizer, proximal_strength),
            context=lambda state: state.optimizer.strength,
        )
    return compose(method, **arguments)


class FollowingLoss(NamedTuple):
    """The server's state beside an adaptive mu.

    Attributes:
      inner: The server optimizer's.
      strength: mu, ``[]``.
      loss: Of the last round that had examples; infinite before the first.
      num_falls: int32 ``[]``; how many times in a row it fell since mu last did.
    """

    inner: PyTree
    strength: jax.Array
    loss: jax.Array
    num_falls: jax.Array


def following_loss(
    server_optimizer: optax.GradientTransformation, strength: float, *, step: float = 0.1, patience: int = 5
) -> optax.GradientTransformationExtraArgs:
    """Wraps a server optimizer to keep a strength that rises with the loss, and falls after ``patience`` falls."""
    inner = optax.with_extra_args_support(server_optimizer)

    def init(params: PyTree) -> FollowingLoss:
        dtype = number_dtype(params)
        first = jnp.asarray(strength, dtype), jnp.asarray(jnp.inf, dtype)
        return FollowingLoss(inner.init(params), *first, jnp.int32(0))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, metrics: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, FollowingLoss]:
        updates, inner_state = inner.update(updates, state.inner, params, metrics=metrics, **extra)
        loss = jnp.where(metrics["num_examples"] > 0, metrics["loss"], state.loss).astype(state.loss.dtype)
        rises, falls = loss > state.loss, (loss < state.loss) & jnp.isfinite(state.loss)
        num_falls = jnp.where(falls, state.num_falls + 1, jnp.where(rises, 0, state.num_falls))
        lower = num_falls >= patience
        strength = jnp.maximum(state.strength + step * rises - step * lower, 0)
        return updates, FollowingLoss(inner_state, strength, loss, jnp.where(lower, 0, num_falls))

    return optax.GradientTransformationExtraArgs(init, update)
