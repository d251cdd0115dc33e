"""q-FedAvg: clients with a higher loss count for more.

Li et al., "Fair Resource Allocation in Federated Learning" (arXiv 1905.10497, algorithm 2). With F_k the loss on client
k's data of the model w that it was sent, w_k its trained model and L an estimate of the gradient's Lipschitz constant,

    dw_k = L (w - w_k)
    Delta_k = F_k^q dw_k        h_k = q F_k^(q - 1) ||dw_k||^2 + L F_k^q
    w <- w - sum_k Delta_k / sum_k h_k

Here in a form that an aggregator can bound: the mean of the changes ``d_k = w - w_k`` with weights F_k^q, times a
factor of at most 1, in which the norms are those of the changes as they come through the aggregator:

    w <- w - factor * sum_k F_k^q d_k / sum_k F_k^q
    factor = L sum_k F_k^q / sum_k h_k        h_k = q L^2 F_k^(q - 1) ||d_k||^2 + L F_k^q
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.mean import mean
from fedjx.aggregation.weights import uniform
from fedjx.core.execution.process import Algorithm
from fedjx.core.language.checks import check_number
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.trees import squared_norm
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
        to d_k, with weights ``p_k F_k^q``; a rule that takes no notice of weights is not fair, one with
        ``weighted=True`` is. The server learns the factor from the metrics: by a lie about its loss a client can weigh
        more, and slow the server down, but not move it further than the aggregator lets its change. Of a rule that
        says nothing of single clients, the norm of its result stands for all of theirs. The client weight is p_k, also
        of h_k; unlike elsewhere, and as in the paper, which draws clients in proportion to their examples, `uniform` if
        not given.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg` and the means of F_k^q, ``fairness``, of ``q L^2 F_k^(q - 1)``,
      ``slope``, and of h_k, ``curvature``, but for rules that say nothing of single clients.

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
        weight, delta = local.weight(trained.num_examples), jax.tree.map(jnp.subtract, params, trained.params)
        slope = q * lipschitz**2 * loss ** (q - 1)
        metrics = {"fairness": Ratio(weight * loss**q, weight), "slope": Ratio(weight * slope, weight)}
        metrics = {**trained.metrics, "num_examples": trained.num_examples, **metrics}
        return drop_non_finite(ClientUpdate(delta, weight * loss**q, metrics))

    def bounded_metrics(update: ClientUpdate) -> Metrics:
        of_all = {name: update.metrics[name] for name in ("fairness", "slope")}
        fairness, slope = jax.tree.map(lambda x: jnp.where(update.weight > 0, x, 0), of_all).values()
        h = slope.numerator * squared_norm(update.delta) + lipschitz * fairness.numerator
        return {"fairness": fairness, "curvature": Ratio(h, fairness.denominator)}

    def factor(delta: PyTree, metrics: Metrics) -> jax.Array:
        h = metrics["slope"] * squared_norm(delta) + lipschitz * metrics["fairness"]
        h = metrics.get("curvature", h)
        part = lipschitz * metrics["fairness"] / jnp.where(h == 0, 1, h)
        return jnp.clip(jnp.nan_to_num(part), 0, 1)  # as it is by itself, unless a client lies

    def server(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(scale_delta(factor), optimizer)

    arguments.setdefault("client_weight", uniform)
    of_each = getattr(arguments.get("aggregator") or mean(), "bounded", None) is not None
    method = Method(model.init, client_update, server, input_spec=model.input_spec)
    method = method._replace(bounded_metrics=bounded_metrics) if of_each else method
    return compose(method, **arguments)
