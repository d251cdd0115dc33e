"""Federated Reconstruction: partly local models without any state of the clients.

Singhal et al., "Federated Reconstruction: Partially Local Federated Learning" (arXiv 2102.03448, algorithm 1). A client
makes its local parameters anew in every round, on one part of its data, the support; then it trains the global ones on
the other, the query.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.mean import by_examples
from fedjx.algorithms.personalization import Strategy
from fedjx.core.execution.process import Aggregator, Algorithm
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.models.model import Model
from fedjx.training.client import ClientUpdate, check_amount, local_train, reported
from fedjx.training.compose import compose
from fedjx.training.parts import frozen, merge, partition
from fedjx.training.splits import Split, alternate_split

PyTree = Any


def reconstruction(
    model: Model,
    *,
    is_local: Callable[[str], bool],
    client_optimizer: optax.GradientTransformation,
    reconstruction_optimizer: optax.GradientTransformation,
    num_reconstruction_epochs: int | None = None,
    num_reconstruction_steps: int | None = None,
    split: Split = alternate_split,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = False,
) -> Algorithm:
    """Builds Federated Reconstruction.

    Args:
      model: As for `fed_avg`, and so are all arguments that are not described here.
      is_local: Which parameters are local, by their names, as for `partition`.
      client_optimizer: Of the global parameters, while the local ones stand.
      reconstruction_optimizer: Of the local parameters, while the global ones stand.
      num_reconstruction_epochs: How long the local parameters are trained; one epoch if not given; or
      num_reconstruction_steps: the number of steps.
      split: ``(data, key) -> (support, query)`` of one client; `no_split` uses all data for both.
      server_optimizer: As for `fed_avg`.
      aggregator: As for `fed_avg`.
      broadcaster: As for `fed_avg`.
      client_weight: As for `fed_avg`, from the size of the query.
      metrics_sum: As for `fed_avg`.
      num_epochs: As for `fed_avg`.
      num_steps: As for `fed_avg`.
      shuffle: As for `fed_avg`.
      drop_remainder: As for `fed_avg`.

    Returns:
      An `Algorithm` whose parameters are the global part, so that no local parameter is ever at the server. Its metrics
      are those of `fed_avg`, on the query. `reconstructing` is how it is evaluated.
    """
    check_amount(num_epochs, num_steps)
    reconstruct = reconstructing(
        model,
        is_local=is_local,
        optimizer=reconstruction_optimizer,
        num_epochs=num_reconstruction_epochs,
        num_steps=num_reconstruction_steps,
        shuffle=shuffle,
        drop_remainder=drop_remainder,
    )
    train = functools.partial(
        local_train, num_epochs=num_epochs, num_steps=num_steps, shuffle=shuffle, drop_remainder=drop_remainder
    )

    def client_update(params: PyTree, data: Any, key: jax.Array) -> ClientUpdate:
        # `train` splits the key in two, which is folding in 0 and 1.
        key_split, key_local = (jax.random.fold_in(key, purpose) for purpose in (2, 3))
        support, query = split(data, key_split)
        local = partition(reconstruct(params, support, key_local), is_local).local
        trained = train(frozen(model, local), params, query, key, optimizer=client_optimizer)
        return reported(params, trained, client_weight)

    return compose(
        client_update,
        server_optimizer,
        aggregator,
        init=lambda key: partition(model.init(key), is_local).shared,
        broadcaster=broadcaster,
        metrics_sum=metrics_sum,
    )


def reconstructing(
    model: Model,
    *,
    is_local: Callable[[str], bool],
    optimizer: optax.GradientTransformation,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = False,
) -> Strategy:
    """Returns the strategy, as `personalization_evaluation` takes it, of making local parameters for the global ones.

    They start anew from the model's initial ones, drawn from the client's key. Other arguments as for `local_train`.
    """
    check_amount(num_epochs, num_steps)

    def strategy(params: PyTree, data: Any, key: jax.Array) -> PyTree:
        key_init, key_train = jax.random.split(key)
        local = local_train(
            frozen(model, params),
            partition(model.init(key_init), is_local).local,
            data,
            key_train,
            optimizer=optimizer,
            num_epochs=num_epochs,
            num_steps=num_steps,
            shuffle=shuffle,
            drop_remainder=drop_remainder,
        )
        return merge(params, local.params)

    return strategy
