"""Ditto: beside the shared model, every client trains one of its own that is held near the shared one.

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization" (arXiv 2012.04221, algorithm 1). The
shared model is that of federated averaging, whatever the personal ones do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Unpack

import jax
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import by_examples
from fedjx.algorithms.fed_prox import proximal
from fedjx.core.execution.process import Aggregator, StatefulAlgorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.models.model import Model
from fedjx.training.client import ClientUpdate, LocalAmount, check_amount, local_train, no_schedule, reported
from fedjx.training.stateful import OWN, compose_stateful

PyTree = Any


def ditto(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    proximal_strength: float,
    personal_optimizer: optax.GradientTransformation | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    **amount: Unpack[LocalAmount],
) -> StatefulAlgorithm:
    """Builds Ditto.

    Args:
      model: As for `fed_avg`, and so are all arguments that are not described here.
      client_optimizer: Of the shared model.
      proximal_strength: lambda, with which a personal model is drawn to the shared one that the round begins with; 0
        is local training, infinity no personalisation.
      personal_optimizer: Of the personal models; ``client_optimizer`` if not given.
      server_optimizer: As for `fed_avg`.
      aggregator: As for `fed_avg`.
      broadcaster: As for `fed_avg`.
      client_weight: As for `fed_avg`.
      metrics_sum: As for `fed_avg`.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`, of either model.

    Returns:
      A `StatefulAlgorithm`; a client's state is its own model's parameters, at first the server's. Its metrics are the
      shared model's, as for `fed_avg`, and ``num_non_finite_states``.

    Raises:
      ValueError: If the proximal strength is negative.
    """
    if not proximal_strength >= 0:
        raise ValueError(f"a proximal strength is not negative; got {proximal_strength=}. Pass 0 for local training.")
    check_amount(**amount)
    personal_optimizer = no_schedule(client_optimizer if personal_optimizer is None else personal_optimizer)
    train = functools.partial(local_train, model, **amount)

    def client_update(params: PyTree, data: Any, own: PyTree, key: jax.Array) -> tuple[ClientUpdate, PyTree]:
        trained = train(params, data, key, optimizer=client_optimizer)
        drawn = optax.chain(proximal(proximal_strength, params), personal_optimizer)
        own = train(own, data, jax.random.fold_in(key, OWN), optimizer=drawn).params
        return reported(params, trained, client_weight), own

    return compose_stateful(
        client_update,
        server_optimizer,
        aggregator,
        init=model.init,
        init_client=lambda state: state.params,
        broadcaster=broadcaster,
        metrics_sum=metrics_sum,
    )
