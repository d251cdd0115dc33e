"""FedPer: the clients share the body of the model, and each has a head of its own.

Arivazhagan et al., "Federated Learning with Personalization Layers" (arXiv 1912.00818, algorithms 1 and 2): both are
trained together, and only the body is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import by_examples
from fedjx.core.execution.process import Aggregator, StatefulAlgorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.models.model import Model
from fedjx.training.client import ClientUpdate, LocalAmount, check_amount, local_train, reported
from fedjx.training.parts import merge, partition
from fedjx.training.stateful import FIRST, compose_stateful

PyTree = Any


def fed_per(
    model: Model,
    *,
    is_local: Callable[[str], bool],
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    **amount: Unpack[LocalAmount],
) -> StatefulAlgorithm:
    """Builds FedPer.

    Args:
      model: As for `fed_avg`, and so are all arguments that are not described here.
      is_local: Which parameters are local, by their names, as for `partition`.
      client_optimizer: Of shared and local parameters together.
      server_optimizer: As for `fed_avg`.
      aggregator: As for `fed_avg`.
      broadcaster: As for `fed_avg`.
      client_weight: As for `fed_avg`.
      metrics_sum: As for `fed_avg`.
      **amount: ``num_epochs``, ``num_steps``, ``shuffle``, ``drop_remainder``, as for `fed_avg`.

    Returns:
      A `StatefulAlgorithm`; the server's parameters are the shared part, a client's state the local one, and `merge`
      puts them together. All clients begin with one local part, drawn from the key of the run. Its metrics are those of
      `fed_avg` and ``num_non_finite_states``.
    """
    check_amount(**amount)

    def client_update(params: PyTree, data: Any, local: PyTree, key: jax.Array) -> tuple[ClientUpdate, PyTree]:
        trained = local_train(
            model,
            merge(params, local),
            data,
            key,
            optimizer=client_optimizer,
            **amount,
        )
        parts = partition(trained.params, is_local)
        return reported(params, trained._replace(params=parts.shared), client_weight), parts.local

    return compose_stateful(
        client_update,
        server_optimizer,
        aggregator,
        init=lambda key: partition(model.init(key), is_local).shared,
        init_client=jax.jit(lambda state: partition(model.init(jax.random.fold_in(state.key, FIRST)), is_local).local),
        broadcaster=broadcaster,
        metrics_sum=metrics_sum,
    )
