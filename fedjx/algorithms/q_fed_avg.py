"""q-FedAvg: clients with a higher loss count for more.

Li et al., "Fair Resource Allocation in Federated Learning" (arXiv 1905.10497, algorithm 2). With F_k the loss on client
k's data of the model w that it was sent, w_k its trained model and L an estimate of the gradient's Lipschitz constant,

    dw_k = L (w - w_k)
    Delta_k = F_k^q dw_k        h_k = q F_k^(q - 1) ||dw_k||^2 + L F_k^q
    w <- w - sum_k Delta_k / sum_k h_k
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import uniform
from fedjx.core.execution.process import Aggregator, Algorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model, Ratio, finalize_metrics
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import (
    ClientOptimizer,
    ClientUpdate,
    LocalAmount,
    checked,
    local_evaluate,
    local_train,
    optimizer_of,
)
from fedjx.training.compose import compose, round_context, scaled
from fedjx.training.failures import Failures

PyTree = Any


def q_fed_avg(
    model: Model,
    *,
    q: float,
    lipschitz: float,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = uniform,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    failures: Failures | None = None,
    **amount: Unpack[LocalAmount],
) -> Algorithm:
    """Builds q-FedAvg, which minimises ``sum_k p_k F_k^(q + 1) / (q + 1)``.

    Args:
      model: As for `fed_avg`.
      q: How much fairness matters, at least 0; at 0 this is `fed_avg` with the same weights.
      lipschitz: L; the paper takes the reciprocal of the client learning rate that is best at q = 0.
      client_optimizer: As for `fed_avg`.
      server_optimizer: Applied to ``sum_k Delta_k / sum_k h_k``.
      aggregator: Of Delta_k.
      broadcaster: As for `fed_avg`.
      client_weight: p_k: from a client's number of examples to the weight of its Delta_k and h_k. Unlike elsewhere,
        and as in the paper, which draws clients in proportion to their examples, `uniform` if not given.
      metrics_sum: As for `fed_avg`; the server learns the mean of h_k from the metrics.
      failures: As for `fed_avg`.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg` and ``curvature``, the mean of h_k.

    Raises:
      ValueError: If q is negative or the Lipschitz constant not positive; when initialised, if the model has batch
        statistics.
    """
    if not (q >= 0 and lipschitz > 0):
        raise ValueError(f"q is at least 0 and the Lipschitz constant positive; got {q=}, {lipschitz=}. Pass such.")

    model = no_batch_stats(model, "q_fed_avg")

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, context: PyTree = None, *, completed: jax.Array | None = None
    ) -> ClientUpdate:
        optimizer = optimizer_of(client_optimizer, context)
        trained = local_train(model, params, data, key, optimizer=optimizer, completed=completed, **amount)
        # A loss of 0 has no negative power.
        loss = finalize_metrics(local_evaluate(model, params, data))["loss"] + 1e-10
        change = jax.tree.map(lambda p, t: lipschitz * (p - t), params, trained.params)
        h = q * loss ** (q - 1) * optax.tree.norm(change, squared=True) + lipschitz * loss**q
        weight = client_weight(trained.num_examples)
        metrics = {"num_examples": trained.num_examples, "curvature": Ratio(weight * h, weight)}
        delta = jax.tree.map(lambda c: loss**q * c, change)
        return checked(ClientUpdate(delta, weight, {**trained.metrics, **metrics}))

    return compose(
        client_update,
        optax.chain(
            scaled(lambda delta, metrics: 1 / jnp.where(metrics["curvature"] == 0, 1, metrics["curvature"])),
            server_optimizer or optax.sgd(1.0),
        ),
        aggregator,
        init=model.init,
        broadcaster=broadcaster,
        metrics_sum=metrics_sum,
        context=round_context(client_optimizer),
        failures=failures,
    )
