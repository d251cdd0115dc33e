"""FedNova: clients that take different numbers of local steps, without favouring those that take more.

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization" (arXiv 2007.07481,
equations 6, 7 and 10). Client i's change is ``delta_i = rate * G_i a_i``: its gradients, column by column, times how
much each one counts, a vector of ones for SGD. The server takes

    x <- x - tau_eff * sum_i p_i delta_i / ||a_i||_1        tau_eff = sum_i p_i ||a_i||_1

For every optimizer that is linear in the gradients, ``rate * ||a_i||_1`` is how far a parameter goes whose gradient is
always 1. So a client trains one such scalar along with its model: momentum, Nesterov's too, a proximal term, a schedule
of the rate and any number of steps are accounted for without a formula for each. (The rate cancels.)
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedjx.core.execution.process import Algorithm
from fedjx.core.language.names import PyTree
from fedjx.core.language.trees import map_keeping, number_dtype
from fedjx.core.language.values import Sequence
from fedjx.models.model import Batch, Model, Ratio, map_loss
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, Local, drop_non_finite, local_update
from fedjx.training.method import Method, ServerState, scale_delta
from fedjx.training.round import TrainingArguments, compose


def fed_nova(model: Model, **arguments: Unpack[TrainingArguments]) -> Algorithm[ServerState]:
    """Builds FedNova, of the arguments of `fed_avg`.

    Args:
      model: What is trained.
      **arguments: As for `fed_avg`. The client optimizer is linear in the gradients, as SGD with or without momentum is
        and Adam is not; the client weight is p_i in proportion. The server optimizer is applied to ``tau_eff``, which
        it learns from the metrics, times the aggregated normalised delta.

    Guarantees: `fed_avg` if all clients take equally many steps.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg` and ``effective_steps``: tau_eff times the learning rate.

    Raises:
      ValueError: When it is initialised, if the model has batch statistics.
    """
    model = no_batch_stats(model, "fed_nova")
    train = local_update(_probed(model))

    def client_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local) -> ClientUpdate:
        (delta, steps), weight, metrics = train((params, jnp.zeros((), number_dtype(params))), data, key, local=local)
        normalised = map_keeping(lambda d: d / jnp.where(steps == 0, 1, steps), delta)
        metrics = {**metrics, "effective_steps": Ratio(weight * steps, weight)}
        return drop_non_finite(ClientUpdate(normalised, weight, metrics))

    def server(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(scale_delta(lambda delta, metrics: metrics["effective_steps"]), optimizer)

    return compose(Method(model.init, client_update, server, input_spec=model.input_spec), **arguments)


def _probed(model: Model) -> Model:
    """Returns the model with another parameter, a scalar whose gradient is 1; the loss has the same value."""

    def loss(params: PyTree, batch: Batch, key: jax.Array) -> jax.Array:
        params, probe = params
        nothing = probe - lax.stop_gradient(probe)
        return map_loss(lambda loss, count: loss + count * nothing, model.loss(params, batch, key))

    return model._replace(loss=loss)
