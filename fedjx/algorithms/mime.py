"""Mime and MimeLite: local steps that mimic those of a centralised optimizer.

Karimireddy et al., "Breaking the centralized barrier for cross-device federated learning" (2008.03606, algorithm 1).
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedjx.core.execution.process import Algorithm
from fedjx.core.language.names import PyTree
from fedjx.core.language.values import Sequence
from fedjx.models.model import Batch, Model, Ratio, map_loss
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, Local, no_schedule
from fedjx.training.gradients import gradient_update, shift
from fedjx.training.method import First, Method, ServerState
from fedjx.training.round import LocalArguments, compose


def mime(
    model: Model,
    *,
    base_optimizer: optax.GradientTransformation,
    corrected: bool = True,
    server_optimizer: optax.GradientTransformation | None = None,
    **arguments: Unpack[LocalArguments],
) -> Algorithm[ServerState]:
    """Builds Mime, or MimeLite, of the arguments of `fed_avg` and its own.

    Clients step by the base optimizer with the statistics s that the server sends, which they do not change; the server
    does, by the mean c of their gradients over all their examples at x. Mime corrects the gradient of each batch by
    its difference to c at x, in a second pass over the clients; MimeLite does not.

    Args:
      model: What is trained.
      base_optimizer: The paper's B: its ``update`` returns ``-η U(g, s)`` and the state V(g, s). With `optax.adam` a
        step's own gradient is thus part of the second moment by which it is divided.
      corrected: True for Mime, False for MimeLite.
      server_optimizer: As for `fed_avg`.
      **arguments: As for `fed_avg`, without a client optimizer. The aggregator is that of the gradients and, with
        another state, of the changes of parameters; s and c are sent as they are, without the broadcaster.

    Returns:
      An `Algorithm`; s is ``state.optimizer.statistics``. Metrics are those of `fed_lin`. Who is left out of the
      gradients' mean is left out of the other.

    Raises:
      ValueError: When it is initialised, if the model has batch statistics.
    """
    if "client_optimizer" in arguments:
        raise TypeError("clients of Mime step by the base optimizer; got client_optimizer. Pass it as base_optimizer.")
    model, base = no_batch_stats(model, "mime"), no_schedule(base_optimizer)

    def lite_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local, context: PyTree) -> ClientUpdate:
        optimizer = fixed_statistics(base, context)
        return local.report(params, local.train(model, params, data, key, optimizer=optimizer))

    def mime_update(
        params: PyTree, data: Sequence, key: jax.Array, *, local: Local, context: PyTree, first: First
    ) -> ClientUpdate:
        optimizer = optax.chain(shift(first.result), fixed_statistics(base, context))
        return local.report(params, local.train(centred(model, params), params, data, key, optimizer=optimizer))

    method = Method(
        model.init,
        mime_update if corrected else lite_update,
        server=lambda optimizer: mimicked(base, optimizer),
        context=lambda state: state.optimizer.statistics,
        first=gradient_update(model),
        input_spec=model.input_spec,
    )
    return compose(method, server_optimizer=server_optimizer, **arguments)


class Mimicked(NamedTuple):
    """What the server of Mime keeps: the state s of the base optimizer, and that of the server optimizer."""

    statistics: PyTree
    inner: PyTree


def mimicked(
    base_optimizer: optax.GradientTransformation, server_optimizer: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Moves the statistics by the mean gradient of the first pass, and the parameters by the server optimizer."""
    inner = optax.with_extra_args_support(server_optimizer)

    def init(params: PyTree) -> Mimicked:
        return Mimicked(base_optimizer.init(params), inner.init(params))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, first: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, Mimicked]:
        _, statistics = base_optimizer.update(first, state.statistics, params)
        steps, inner_state = inner.update(updates, state.inner, params, first=first, **extra)
        return steps, Mimicked(statistics, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def fixed_statistics(base_optimizer: optax.GradientTransformation, statistics: PyTree) -> optax.GradientTransformation:
    """Steps by an optimizer whose state stays as it is."""
    return optax.stateless(lambda gradient, params: base_optimizer.update(gradient, statistics, params)[0])


def centred(model: Model, center: PyTree) -> Model:
    """Takes off the gradient of every batch what it is at the center; the loss is the same number."""

    def loss(params: PyTree, batch: Batch, key: jax.Array) -> jax.Array:
        away = jax.tree.map(jnp.subtract, params, center)

        def values(params: PyTree) -> jax.Array:
            losses = model.loss(params, batch, key)
            return losses.numerator if isinstance(losses, Ratio) else losses

        _, linear = jax.jvp(values, (center,), (away,))
        return map_loss(lambda loss, _: loss - (linear - lax.stop_gradient(linear)), model.loss(params, batch, key))

    return model._replace(loss=loss)
