"""FedRep: the clients share a representation, and each fits a head of its own to it before improving it.

Collins et al., "Exploiting Shared Representations for Personalized Federated Learning" (arXiv 2102.07078, algorithm 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import by_examples
from fedjx.core.execution.process import Aggregator, StatefulAlgorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.models.model import Model
from fedjx.training.client import ClientUpdate, check_amount, local_train, reported
from fedjx.training.parts import frozen, partition
from fedjx.training.stateful import FIRST, OWN, compose_stateful

PyTree = Any


def fed_rep(
    model: Model,
    *,
    is_local: Callable[[str], bool],
    client_optimizer: optax.GradientTransformation,
    local_optimizer: optax.GradientTransformation | None = None,
    num_local_epochs: int | None = None,
    num_local_steps: int | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = False,
) -> StatefulAlgorithm:
    """Builds FedRep.

    Args:
      model: As for `fed_avg`, and so are all arguments that are not described here.
      is_local: Which parameters are local, the head, by their names, as for `partition`.
      client_optimizer: Of the shared parameters, the representation.
      local_optimizer: Of the head; ``client_optimizer`` if not given.
      num_local_epochs: How long the head is trained, while the representation stands; one epoch if not given; or
      num_local_steps: the number of steps.
      server_optimizer: As for `fed_avg`.
      aggregator: As for `fed_avg`.
      broadcaster: As for `fed_avg`.
      client_weight: As for `fed_avg`.
      metrics_sum: As for `fed_avg`.
      num_epochs: As for `fed_avg`: how long the representation is trained, while the head stands.
      num_steps: As for `fed_avg`.
      shuffle: As for `fed_avg`.
      drop_remainder: As for `fed_avg`.

    Returns:
      A `StatefulAlgorithm`; parameters, states and metrics as for `fed_per`.
    """
    check_amount(num_epochs, num_steps)
    check_amount(num_local_epochs, num_local_steps)
    local_optimizer = client_optimizer if local_optimizer is None else local_optimizer
    train = functools.partial(local_train, shuffle=shuffle, drop_remainder=drop_remainder)
    train_local = functools.partial(train, num_epochs=num_local_epochs, num_steps=num_local_steps)
    train_shared = functools.partial(train, num_epochs=num_epochs, num_steps=num_steps)

    def client_update(params: PyTree, data: Any, local: PyTree, key: jax.Array) -> tuple[ClientUpdate, PyTree]:
        key_local = jax.random.fold_in(key, OWN)
        local = train_local(frozen(model, params), local, data, key_local, optimizer=local_optimizer).params
        trained = train_shared(frozen(model, local), params, data, key, optimizer=client_optimizer)
        return reported(params, trained, client_weight), local

    return compose_stateful(
        client_update,
        server_optimizer,
        aggregator,
        init=lambda key: partition(model.init(key), is_local).shared,
        init_client=jax.jit(lambda state: partition(model.init(jax.random.fold_in(state.key, FIRST)), is_local).local),
        broadcaster=broadcaster,
        metrics_sum=metrics_sum,
    )
