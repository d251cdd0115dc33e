"""FedNova: clients that take different numbers of local steps, without favouring those that take more.

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization" (arXiv 2007.07481,
equations 6, 7 and 10). Client i's change is ``delta_i = rate * G_i a_i``: its gradients, column by column, times how
much each one counts, a vector of ones for SGD. The server takes

    x <- x - tau_eff * sum_i p_i delta_i / ||a_i||_1        tau_eff = sum_i p_i ||a_i||_1

that is the mean of the whole changes weighted by ``w_i = p_i / ||a_i||_1``, times how far the mean of ``||a_i||_1`` is
above their harmonic mean:

    x <- x - factor * sum_i w_i delta_i / sum_i w_i        factor = sum_i p_i ||a_i||_1 * sum_i p_i / ||a_i||_1

In this form an aggregator bounds the changes as it does those of `fed_avg`, and there is one number left that clients
say of themselves, which is at least 1 and can be bounded.

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
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.trees import number_dtype
from fedjx.core.language.values import Sequence
from fedjx.models.model import Batch, Model, Ratio, map_loss
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, Local, drop_non_finite, local_update
from fedjx.training.method import Method, ServerState, scale_delta
from fedjx.training.round import TrainingArguments, compose


def fed_nova(
    model: Model, *, max_factor: float = 10.0, **arguments: Unpack[TrainingArguments]
) -> Algorithm[ServerState]:
    """Builds FedNova, of the arguments of `fed_avg`.

    Args:
      model: What is trained.
      max_factor: The most that the factor may be, since a client may lie about its steps: the server moves at most so
        many times as far as the aggregator lets the clients' changes. Steps from 1 to 40, each as often, have 4.8; with
        1, tau_eff is their harmonic mean.
      **arguments: As for `fed_avg`. The client optimizer is linear in the gradients, as SGD with or without momentum is
        and Adam is not; the client weight is p_i in proportion. The aggregator is that of the changes, with weights
        w_i; a rule that takes no notice of weights, such as `coordinate_median()`, does not normalise, one with
        ``weighted=True`` does. The server learns the factor from the metrics.

    Guarantees: `fed_avg` if all clients take equally many steps.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg`, ``effective_steps``, the mean of ``||a_i||_1`` times the learning
      rate, and ``inverse_steps``, the mean of the reciprocals.

    Raises:
      ValueError: If ``max_factor`` is less than 1; when it is initialised, if the model has batch statistics.
    """
    model = no_batch_stats(model, "fed_nova")
    check_number("[1, inf]", max_factor=max_factor)
    train = local_update(_probed(model))

    def client_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local) -> ClientUpdate:
        probing, probe = local._replace(optimizer=_apart(local.optimizer)), jnp.zeros((), number_dtype(params))
        (delta, steps), weight, metrics = train((params, probe), data, key, local=probing)
        normalised = jnp.where(steps == 0, 0, weight / jnp.where(steps == 0, 1, steps))
        steps_taken = {"effective_steps": Ratio(weight * steps, weight), "inverse_steps": Ratio(normalised, weight)}
        return drop_non_finite(ClientUpdate(delta, normalised, {**metrics, **steps_taken}))

    def factor(delta: PyTree, metrics: Metrics) -> jax.Array:
        return jnp.clip(metrics["effective_steps"] * metrics["inverse_steps"], 1, max_factor)

    def server(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(scale_delta(factor), optimizer)

    return compose(Method(model.init, client_update, server, input_spec=model.input_spec), **arguments)


def _apart(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Trains parameters and probe each with an optimizer for itself: one that clips the norm of all would mix them."""

    def init(params: PyTree) -> tuple[PyTree, PyTree]:
        return optimizer.init(params[0]), optimizer.init(params[1])

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        params = (None, None) if params is None else params
        each = [optimizer.update(*of_one) for of_one in zip(updates, state, params, strict=True)]
        steps, states = zip(*each, strict=True)
        return tuple(steps), tuple(states)

    return optax.GradientTransformation(init, update)


def _probed(model: Model) -> Model:
    """Returns the model with another parameter, a scalar whose gradient is 1; the loss has the same value."""

    def loss(params: PyTree, batch: Batch, key: jax.Array) -> jax.Array:
        params, probe = params
        nothing = probe - lax.stop_gradient(probe)
        return map_loss(lambda loss, count: loss + count * nothing, model.loss(params, batch, key))

    return model._replace(loss=loss)
