"""Federated SGD: one step along the gradient over all examples of the cohort.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv 1602.05629,
section 2), the baseline of federated averaging.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import jax
import optax

from fedjx.aggregation.weights import by_examples
from fedjx.core.execution.process import Algorithm
from fedjx.models.model import Model
from fedjx.training.gradients import gradient_update
from fedjx.training.method import Method, ServerState
from fedjx.training.round import RoundArguments, compose


def fed_sgd(
    model: Model,
    *,
    learning_rate: float | jax.Array | optax.Schedule,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    **arguments: Unpack[RoundArguments],
) -> Algorithm[ServerState]:
    """Builds federated SGD: every client sends the mean gradient over its examples, however they are batched.

    Args:
      model: As for `fed_avg`.
      learning_rate: Of the server's step, or its schedule over rounds.
      client_weight: As for `fed_avg`.
      **arguments: As for `fed_avg`: how the round is run.

    Guarantees: By default a round is a gradient step on the mean loss over the union of the clients' examples.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg`.
    """
    method = Method(model.init, gradient_update(model), input_spec=model.input_spec)
    return compose(method, server_optimizer=optax.sgd(learning_rate), client_weight=client_weight, **arguments)
