"""Federated Reconstruction: partly local models without any state of the clients.

Singhal et al., "Federated Reconstruction: Partially Local Federated Learning" (arXiv 2102.03448, algorithm 1). A client
makes its local parameters anew in every round, on one part of its data, the support; then it trains the global ones on
the other, the query.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import jax
import optax

from fedjx.algorithms.personalization import Strategy
from fedjx.core.execution.process import Algorithm
from fedjx.core.language.names import PyTree
from fedjx.core.language.values import Sequence
from fedjx.models.model import Model
from fedjx.training.client import ClientUpdate, Local, LocalAmount, check_amount, local_train
from fedjx.training.method import Method, ServerState
from fedjx.training.parts import combine, first_parts, partition, with_fixed
from fedjx.training.round import TrainingArguments, compose
from fedjx.training.splits import Split, alternate_split


def reconstruction(
    model: Model,
    *,
    is_local: Callable[[str], bool],
    reconstruction_optimizer: optax.GradientTransformation,
    num_reconstruction_epochs: int | None = None,
    num_reconstruction_steps: int | None = None,
    split: Split = alternate_split,
    **arguments: Unpack[TrainingArguments],
) -> Algorithm[ServerState]:
    """Builds Federated Reconstruction, of the arguments of `fed_avg` and its own.

    Args:
      model: What is trained.
      is_local: Which parameters are local, by their names, as for `partition`.
      reconstruction_optimizer: Of the local parameters, while the global ones stand.
      num_reconstruction_epochs: How long the local parameters are trained; one epoch if not given; or
      num_reconstruction_steps: the number of steps.
      split: ``(data, key) -> (support, query)`` of one client; `no_split` uses all data for both.
      **arguments: As for `fed_avg`. The client optimizer is that of the global parameters, while the local ones stand;
        the client weight is that of the size of the query.

    Returns:
      An `Algorithm` whose parameters are the global part, so that no local parameter is ever at the server. Its metrics
      are those of `fed_avg`, on the query. `reconstructing` is how it is evaluated.
    """
    reconstruct = reconstructing(
        model,
        is_local=is_local,
        optimizer=reconstruction_optimizer,
        num_epochs=num_reconstruction_epochs,
        num_steps=num_reconstruction_steps,
        shuffle=arguments.get("shuffle", True),
        drop_remainder=arguments.get("drop_remainder", False),
    )

    def client_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local) -> ClientUpdate:
        # `train` splits the key in two, which is folding in 0 and 1.
        key_split, key_local = (jax.random.fold_in(key, purpose) for purpose in (2, 3))
        support, query = split(data, key_split)
        own = partition(reconstruct(params, support, key_local), is_local).local
        return local.report(params, local.train(with_fixed(model, own), params, query, key, optimizer=local.optimizer))

    return compose(Method(first_parts(model, is_local)[0], client_update, input_spec=model.input_spec), **arguments)


def reconstructing(
    model: Model,
    *,
    is_local: Callable[[str], bool],
    optimizer: optax.GradientTransformation,
    **amount: Unpack[LocalAmount],
) -> Strategy:
    """Returns the strategy, as `personalization_evaluation` takes it, of making local parameters for the global ones.

    They start anew from the model's initial ones, drawn from the client's key. Other arguments as for `local_train`.
    """
    check_amount(**amount)

    def strategy(params: PyTree, data: Sequence, key: jax.Array) -> PyTree:
        key_init, key_train = jax.random.split(key)
        first = partition(model.init(key_init), is_local).local
        own = local_train(with_fixed(model, params), first, data, key_train, optimizer=optimizer, **amount)
        return combine(params, own.params)

    return strategy
