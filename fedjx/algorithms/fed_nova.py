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

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import by_examples
from fedjx.core.execution.process import Aggregator, Algorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model, Ratio
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientOptimizer, ClientUpdate, LocalAmount, checked, local_update
from fedjx.training.compose import compose, round_context, scaled
from fedjx.training.failures import Failures

PyTree = Any


def fed_nova(
    model: Model,
    *,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    failures: Failures | None = None,
    **amount: Unpack[LocalAmount],
) -> Algorithm:
    """Builds FedNova.

    Args:
      model: As for `fed_avg`.
      client_optimizer: Linear in the gradients, as SGD with or without momentum is and Adam is not.
      server_optimizer: Applied to ``tau_eff`` times the aggregated normalised delta.
      aggregator: Of the normalised deltas.
      broadcaster: As for `fed_avg`.
      client_weight: As for `fed_avg`; p_i in proportion.
      metrics_sum: As for `fed_avg`; the server learns ``tau_eff`` from the metrics.
      failures: As for `fed_avg`.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`.

    Guarantees: `fed_avg` if all clients take equally many steps.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg` and ``effective_steps``: tau_eff times the learning rate.

    Raises:
      ValueError: When it is initialised, if the model has batch statistics.
    """
    model = no_batch_stats(model, "fed_nova")
    train = local_update(_probed(model), optimizer=client_optimizer, weight=client_weight, **amount)

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, context: PyTree = None, *, completed: jax.Array | None = None
    ) -> ClientUpdate:
        (delta, steps), weight, metrics = train((params, jnp.float32(0)), data, key, context, completed=completed)
        normalised = jax.tree.map(lambda d: d / jnp.where(steps == 0, 1, steps), delta)
        metrics = {**metrics, "effective_steps": Ratio(weight * steps, weight)}
        return checked(ClientUpdate(normalised, weight, metrics))

    return compose(
        client_update,
        optax.chain(
            scaled(lambda delta, metrics: metrics["effective_steps"]),
            server_optimizer or optax.sgd(1.0),
        ),
        aggregator,
        init=model.init,
        broadcaster=broadcaster,
        metrics_sum=metrics_sum,
        context=round_context(client_optimizer),
        failures=failures,
    )


def _probed(model: Model) -> Model:
    """Returns the model with another parameter, a scalar whose gradient is 1; the loss has the same value."""

    def loss(params: PyTree, batch: Any, key: jax.Array) -> jax.Array:
        params, probe = params
        return model.loss(params, batch, key) + probe - lax.stop_gradient(probe)

    return model._replace(loss=loss)
