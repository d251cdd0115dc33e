"""APFL: every client mixes the shared model with one of its own, and learns how much of either.

Deng et al., "Adaptive Personalized Federated Learning" (arXiv 2003.13461, algorithm 1 and the adaptive mixing of
section 4). On each batch, with the mixture ``v~ = alpha v + (1 - alpha) w`` of a client's own v and its copy w of the
shared model,

    w <- w - eta grad f(w),   v <- v - eta alpha grad f(v~),   alpha <- alpha - eta <v - w, grad f(v~)>,

which are the derivatives of ``f(w) + f(alpha v + (1 - alpha) w')``, w' being w held fixed: one gradient step.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.checks import check_number, check_params
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import map_keeping, number_dtype
from fedjx.core.language.values import Sequence
from fedjx.models.model import Batch, Model, Ratio, map_loss
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, Local
from fedjx.training.method import Method, ServerState
from fedjx.training.round import TrainingArguments, compose


class Personal(NamedTuple):
    """What a client of `apfl` keeps.

    Attributes:
      params: v, its own model's parameters.
      mixing: ``[]``; alpha, the share of its own model in the mixture.
    """

    params: PyTree
    mixing: PyTree


class _Pair(NamedTuple):
    shared: PyTree
    own: Personal


def personal_params(params: PyTree, own: Personal) -> PyTree:
    """Returns a client's personalised parameters: its own and the shared ones, mixed."""
    return map_keeping(lambda v, w: own.mixing * v + (1 - own.mixing) * w, own.params, params)


def apfl(
    model: Model,
    *,
    mixing: float = 0.5,
    mixing_optimizer: optax.GradientTransformation | None = None,
    **arguments: Unpack[TrainingArguments],
) -> StatefulAlgorithm[ServerState, PyTree]:
    """Builds APFL, of the arguments of `fed_avg` and its own.

    Args:
      model: What is trained.
      mixing: alpha at first, the share of a client's own model; 0 is federated averaging, 1 local training.
      mixing_optimizer: Of alpha, which stays within 0 and 1; alpha is fixed if not given.
      **arguments: As for `fed_avg`. The client optimizer is that of the shared and, apart, of the clients' own models.

    Returns:
      A `StatefulAlgorithm`; a client's state is `Personal`, and `personal_params` its model. Its metrics are those of
      the shared model, as for `fed_avg`, and ``num_non_finite_states``.

    Raises:
      ValueError: If alpha is not between 0 and 1; when initialised, if the model has batch statistics.
    """
    check_number("[0, 1]", mixing=mixing)
    model = no_batch_stats(model, "apfl")
    of_mixing = optax.set_to_zero() if mixing_optimizer is None else optax.chain(mixing_optimizer, _within_0_1())

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, *, local: Local, own: Personal
    ) -> tuple[ClientUpdate, Personal]:
        optimizers: dict[Hashable, optax.GradientTransformation] = {
            "shared": local.optimizer,
            "own": local.optimizer,
            "mixing": of_mixing,
        }
        optimizer = optax.partition(optimizers, _Pair("shared", Personal("own", "mixing")))
        pair = local.train(mixture(model), _Pair(params, own), data, key, optimizer=optimizer)
        return local.report(params, pair._replace(params=pair.params.shared)), pair.params.own

    def init_client(state: ServerState) -> Personal:
        return Personal(state.params, jnp.asarray(mixing, number_dtype(state.params)))

    return compose(Method(model.init, client_update, init_client=init_client, input_spec=model.input_spec), **arguments)


def mixture(model: Model) -> Model:
    """Returns the model of both: its value is the shared model's loss, its gradient that of either in its own part."""

    def loss(pair: _Pair, batch: Batch, key: jax.Array) -> jax.Array:
        personal = model.loss(personal_params(lax.stop_gradient(pair.shared), pair.own), batch, key)
        own = personal.numerator if isinstance(personal, Ratio) else personal
        return map_loss(lambda loss, _: loss + own - lax.stop_gradient(own), model.loss(pair.shared, batch, key))

    return model._replace(loss=loss)


def _within_0_1() -> optax.GradientTransformation:
    def within(updates: PyTree, params: PyTree) -> PyTree:
        check_params("apfl's mixing", params)
        return jax.tree.map(lambda u, p: jnp.clip(p + u, 0, 1) - p, updates, params)

    return optax.stateless(within)
