"""Federated SGD: one step along the gradient over all examples of the cohort.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv 1602.05629,
section 2), the baseline of federated averaging.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import by_examples
from fedjx.core.execution.process import Aggregator, Algorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.models.model import Model
from fedjx.training.compose import compose
from fedjx.training.gradients import gradient_update

PyTree = Any


def fed_sgd(
    model: Model,
    *,
    learning_rate: float | jax.Array | optax.Schedule,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
) -> Algorithm:
    """Builds federated SGD: every client sends the mean gradient over its examples, however they are batched.

    Args:
      model: As for `fed_avg`.
      learning_rate: Of the server's step, or its schedule over rounds.
      aggregator: As for `fed_avg`.
      broadcaster: As for `fed_avg`.
      client_weight: As for `fed_avg`.
      metrics_sum: As for `fed_avg`.

    Guarantees: By default a round is a gradient step on the mean loss over the union of the clients' examples.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg`.
    """
    return compose(
        gradient_update(model, weight=client_weight),
        optax.sgd(learning_rate),
        aggregator,
        init=model.init,
        broadcaster=broadcaster,
        metrics_sum=metrics_sum,
    )
