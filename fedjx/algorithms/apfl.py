"""APFL: every client mixes the shared model with one of its own, and learns how much of either.

Deng et al., "Adaptive Personalized Federated Learning" (arXiv 2003.13461, algorithm 1 and the adaptive mixing of
section 4). On each batch, with the mixture ``v~ = alpha v + (1 - alpha) w`` of a client's own v and its copy w of the
shared model,

    w <- w - eta grad f(w),   v <- v - eta alpha grad f(v~),   alpha <- alpha - eta <v - w, grad f(v~)>,

which are the derivatives of ``f(w) + f(alpha v + (1 - alpha) w')``, w' being w held fixed: one gradient step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import by_examples
from fedjx.core.execution.process import Aggregator, StatefulAlgorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.models.model import Batch, Model
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, LocalAmount, check_amount, local_train, no_schedule, reported
from fedjx.training.stateful import compose_stateful

PyTree = Any


class Personal(NamedTuple):
    """What a client of `apfl` keeps.

    Attributes:
      params: v, its own model's parameters.
      mixing: float32 ``[]``; alpha, the share of its own model in the mixture.
    """

    params: PyTree
    mixing: Any


class _Pair(NamedTuple):
    shared: PyTree
    own: Any


def mixed(params: PyTree, own: Personal) -> PyTree:
    """Returns a client's personalised parameters: its own and the shared ones, mixed."""
    return jax.tree.map(lambda v, w: own.mixing * v + (1 - own.mixing) * w, own.params, params)


def apfl(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    mixing: float = 0.5,
    mixing_optimizer: optax.GradientTransformation | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    **amount: Unpack[LocalAmount],
) -> StatefulAlgorithm:
    """Builds APFL.

    Args:
      model: As for `fed_avg`, and so are all arguments that are not described here.
      client_optimizer: Of the shared and, apart, of the clients' own models.
      mixing: alpha at first, the share of a client's own model; 0 is federated averaging, 1 local training.
      mixing_optimizer: Of alpha, which stays within 0 and 1; alpha is fixed if not given.
      server_optimizer: As for `fed_avg`.
      aggregator: As for `fed_avg`.
      broadcaster: As for `fed_avg`.
      client_weight: As for `fed_avg`.
      metrics_sum: As for `fed_avg`.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`.

    Returns:
      A `StatefulAlgorithm`; a client's state is `Personal`, and `mixed` its model. Its metrics are those of the shared
      model, as for `fed_avg`, and ``num_non_finite_states``.

    Raises:
      ValueError: If alpha is not between 0 and 1; when initialised, if the model has batch statistics.
    """
    if not 0 <= mixing <= 1:
        raise ValueError(f"a share is between 0 and 1; got {mixing=}. Pass 0.5 for equal parts.")
    check_amount(**amount)
    model, client_optimizer = no_batch_stats(model, "apfl"), no_schedule(client_optimizer)
    mixing_optimizer = optax.set_to_zero() if mixing_optimizer is None else optax.chain(mixing_optimizer, _within_0_1())
    optimizers: dict[Hashable, Any] = {"shared": client_optimizer, "own": client_optimizer, "mixing": mixing_optimizer}
    optimizer = optax.partition(optimizers, _Pair("shared", Personal(*("own", "mixing"))))

    def client_update(params: PyTree, data: Any, own: Personal, key: jax.Array) -> tuple[ClientUpdate, Personal]:
        pair = local_train(
            mixture(model),
            _Pair(params, own),
            data,
            key,
            optimizer=optimizer,
            **amount,
        )
        return reported(params, pair._replace(params=pair.params.shared), client_weight), pair.params.own

    return compose_stateful(
        client_update,
        server_optimizer,
        aggregator,
        init=model.init,
        init_client=lambda state: Personal(state.params, jnp.float32(mixing)),
        broadcaster=broadcaster,
        metrics_sum=metrics_sum,
    )


def mixture(model: Model) -> Model:
    """Returns the model of both: its value is the shared model's loss, its gradient that of either in its own part."""

    def loss(pair: _Pair, batch: Batch, key: jax.Array) -> jax.Array:
        personal = model.loss(mixed(lax.stop_gradient(pair.shared), pair.own), batch, key)
        return model.loss(pair.shared, batch, key) + personal - lax.stop_gradient(personal)

    return model._replace(loss=loss)


def _within_0_1() -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p: jnp.clip(p + u, 0, 1) - p, updates, params)
    )
