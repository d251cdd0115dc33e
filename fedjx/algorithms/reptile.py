"""Reptile, as federated learning: move the model towards what a few steps on each client make of it.

Nichol et al., "On First-Order Meta-Learning Algorithms" (arXiv 1803.02999, algorithm 2), and Jiang et al., "Improving
Federated Learning Personalization via Model Agnostic Meta Learning" (arXiv 1909.12488), who found it to be federated
averaging with K local steps, clients that count alike, and a server that steps with a rate or with Adam. With K = 1 it
is FedSGD.
"""

from __future__ import annotations

from typing import Unpack

from fedjx.aggregation.weights import uniform
from fedjx.core.execution.process import Algorithm
from fedjx.models.model import Model
from fedjx.training.method import ServerState, averaging
from fedjx.training.round import TrainingArguments, compose


def reptile(model: Model, **arguments: Unpack[TrainingArguments]) -> Algorithm[ServerState]:
    """Builds Reptile, of the arguments of `fed_avg`.

    Args:
      model: What is trained.
      **arguments: As for `fed_avg`. The client optimizer is the inner one, ``num_steps`` is K, and the server optimizer
        the outer one: ``optax.sgd(epsilon)`` moves the model by epsilon towards the clients' mean. Clients weigh alike
        if no ``client_weight`` is given.

    Returns:
      An `Algorithm`, with the metrics of `fed_avg`. A personal model is made by `fine_tuning`.
    """
    arguments.setdefault("client_weight", uniform)
    return compose(averaging(model), **arguments)
