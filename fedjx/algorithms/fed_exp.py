"""FedExP: a server step as long as the clients' disagreement allows.

Jhunjhunwala et al., "FedExP: Speeding Up Federated Averaging via Extrapolation" (arXiv 2301.09604, algorithm 1):

    step = max(1, sum_i ||delta_i||^2 / (2 M (||mean delta||^2 + epsilon)))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import by_examples
from fedjx.core.execution.process import Aggregator, Algorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model, Ratio
from fedjx.training.batch_stats import no_batch_stats
from fedjx.training.client import ClientOptimizer, ClientUpdate, LocalAmount, check_positive, checked, local_update
from fedjx.training.compose import compose, round_context, scaled
from fedjx.training.failures import Failures

PyTree = Any


def fed_exp(
    model: Model,
    *,
    epsilon: float = 1e-3,
    client_optimizer: ClientOptimizer,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    failures: Failures | None = None,
    **amount: Unpack[LocalAmount],
) -> Algorithm:
    """Builds FedExP.

    The iterates oscillate; the paper evaluates the mean of the last two.

    Args:
      model: As for `fed_avg`.
      epsilon: Keeps the step small when the mean change is; of the size of a squared norm.
      client_optimizer: As for `fed_avg`.
      aggregator: As for `fed_avg`.
      broadcaster: As for `fed_avg`.
      client_weight: As for `fed_avg`; the squared norms are averaged by the same weights, equal ones in the paper.
      metrics_sum: As for `fed_avg`; the server learns the mean squared norm from the metrics.
      failures: As for `fed_avg`.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg` and ``squared_norm``, the mean of ``||delta_i||^2``. The last
      round's step is ``state.optimizer[0].scale``.

    Raises:
      ValueError: If epsilon is not positive; when initialised, if the model has batch statistics.
    """
    check_positive(epsilon=epsilon)
    model = no_batch_stats(model, "fed_exp")
    train = local_update(model, optimizer=client_optimizer, weight=client_weight, **amount)

    def client_update(
        params: PyTree, data: Sequence, key: jax.Array, context: PyTree = None, *, completed: jax.Array | None = None
    ) -> ClientUpdate:
        delta, weight, metrics = train(params, data, key, context, completed=completed)
        squared_norm = optax.tree.norm(delta, squared=True)
        metrics = {**metrics, "squared_norm": Ratio(weight * squared_norm, weight)}
        return checked(ClientUpdate(delta, weight, metrics))

    def step(delta: PyTree, metrics: dict[str, Any]) -> jax.Array:
        return jnp.maximum(1, metrics["squared_norm"] / (2 * (optax.tree.norm(delta, squared=True) + epsilon)))

    return compose(
        client_update,
        optax.chain(scaled(step), optax.sgd(1.0)),
        aggregator,
        init=model.init,
        broadcaster=broadcaster,
        metrics_sum=metrics_sum,
        context=round_context(client_optimizer),
        failures=failures,
    )
