"""q-FedAvg: clients with a higher loss count for more.

Li et al., "Fair Resource Allocation in Federated Learning" (arXiv 1905.10497, algorithm 2). With F_k the loss on client
k's data of the model w that it was sent, w_k its trained model and L an estimate of the gradient's Lipschitz constant,

    dw_k = L (w - w_k)
    Delta_k = F_k^q dw_k        h_k = q F_k^(q - 1) ||dw_k||^2 + L F_k^q
    w <- w - sum_k Delta_k / sum_k h_k
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.weights import uniform
from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.trees import map_keeping, squared_norm
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model, Ratio, finalize_metrics
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientUpdate, Local, drop_non_finite, has_examples, local_evaluate
from fedjx.training.method import Method, ServerState, scale_delta
from fedjx.training.round import TrainingArguments, compose


def q_fed_avg(
    model: Model, *, q: float, lipschitz: float, **arguments: Unpack[TrainingArguments]
) -> Algorithm[ServerState]:
    """Builds q-FedAvg, which minimises ``sum_k p_k F_k^(q + 1) / (q + 1)``, of the arguments of `fed_avg` and its own.

    Args:
      model: What is trained.
      q: How much fairness matters, at least 0; at 0 this is `fed_avg` with the same weights.
      lipschitz: L; the paper takes the reciprocal of the client learning rate that is best at q = 0.
      **arguments: As for `fed_avg`. The server optimizer is applied to ``sum_k Delta_k / sum_k h_k``, the aggregator
        to Delta_k; the server learns the mean of h_k from the metrics. The client weight is p_k, of Delta_k and h_k;
        unlike elsewhere, and as in the paper, which draws clients in proportion to their examples, `uniform` if not
        given.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg` and ``curvature``, the mean of h_k.

    Raises:
      ValueError: If q is negative or the Lipschitz constant not positive; when initialised, if the model has batch
        statistics.
    """
    check_number("[0, inf]", q=q)
    check_number("(0, inf]", lipschitz=lipschitz)
    model = no_batch_stats(model, "q_fed_avg")

    def client_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local) -> ClientUpdate:
        trained = local.train(model, params, data, key, optimizer=local.optimizer)
        # A loss of 0 has no negative power; who has no example has no loss, and weighs nothing.
        found = finalize_metrics(local_evaluate(model, params, data))["loss"]
        loss = jnp.where(has_examples(data), found, 0) + 1e-10
        change = map_keeping(lambda p, t: lipschitz * (p - t), params, trained.params)
        h = q * loss ** (q - 1) * squared_norm(change) + lipschitz * loss**q
        weight = local.weight(trained.num_examples)
        metrics = {"num_examples": trained.num_examples, "curvature": Ratio(weight * h, weight)}
        delta = map_keeping(lambda c: loss**q * c, change)
        return drop_non_finite(ClientUpdate(delta, weight, {**trained.metrics, **metrics}))

    def inverse(delta: PyTree, metrics: Metrics) -> jax.Array:
        return 1 / jnp.where(metrics["curvature"] == 0, 1, metrics["curvature"])

    def server(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(scale_delta(inverse), optimizer)

    arguments.setdefault("client_weight", uniform)
    return compose(Method(model.init, client_update, server, input_spec=model.input_spec), **arguments)
