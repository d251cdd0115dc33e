"""Reptile, as federated learning: move the model towards what a few steps on each client make of it.

Nichol et al., "On First-Order Meta-Learning Algorithms" (arXiv 1803.02999, algorithm 2), and Jiang et al., "Improving
Federated Learning Personalization via Model Agnostic Meta Learning" (arXiv 1909.12488), who found it to be federated
averaging with K local steps, clients that count alike, and a server that steps with a rate or with Adam. With K = 1 it
is FedSGD.
"""

from __future__ import annotations

from typing import Unpack

import optax

from fedjx.aggregation.mean import uniform
from fedjx.algorithms.fed_avg import FedAvgArguments, fed_avg
from fedjx.core.execution.process import Algorithm
from fedjx.models.model import Model


def reptile(
    model: Model, *, server_optimizer: optax.GradientTransformation | None = None, **arguments: Unpack[FedAvgArguments]
) -> Algorithm:
    """Builds Reptile.

    Args:
      model: As for `fed_avg`.
      server_optimizer: The outer one: ``optax.sgd(epsilon)`` moves the model by epsilon towards the clients' mean.
      **arguments: As for `fed_avg`. ``client_optimizer`` is the inner one, ``num_steps`` is K; clients weigh alike if
        no ``client_weight`` is given.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg`. A personal model is made by `fine_tuning`.
    """
    arguments.setdefault("client_weight", uniform)
    return fed_avg(model, server_optimizer=server_optimizer, **arguments)
