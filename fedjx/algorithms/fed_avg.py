"""Federated averaging, with any client and server optimizer.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data"
(arXiv 1602.05629, algorithm 1), in the generalised form of Reddi et al., "Adaptive Federated
Optimization" (arXiv 2003.00295, algorithm 1). FedSGD is one local step, FedAvgM a server
optimizer with momentum, FedAdagrad, FedAdam and FedYogi adaptive ones: choices, not classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.mean import by_examples, mean
from fedjx.algorithms.client import ClientUpdate, check_amount, checked, local_train
from fedjx.core.computation import federated_computation
from fedjx.core.operators import federated_broadcast, federated_keys, federated_sum
from fedjx.core.placed import FederatedValue, federated_map
from fedjx.core.process import Aggregator, Algorithm, keeps_type
from fedjx.models.model import Model, Ratio, finalize_metrics

PyTree = Any


class FedAvgState(NamedTuple):
    """The server's state between rounds.

    Attributes:
      params: The model's parameters.
      optimizer: The server optimizer's state.
      aggregator: The aggregator's state.
      key: The random key of the whole run; never changes.
      round: int32 ``[]``; how many rounds are done.
    """

    params: PyTree
    optimizer: PyTree
    aggregator: PyTree
    key: jax.Array
    round: jax.Array


def fed_avg(
    model: Model,
    *,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = False,
) -> Algorithm:
    """Builds federated averaging.

    Args:
      model: What is trained.
      client_optimizer: Of every client, from its initial state.
      server_optimizer: Applied to the aggregated ``delta`` (initial minus trained parameters) as
        if it were a gradient; ``optax.sgd(1.0)``, which replaces the model by the clients' mean,
        if not given.
      aggregator: The weighted `mean` if not given.
      client_weight: From a client's number of examples to its weight: `by_examples`, `uniform`
        or your own.
      metrics_sum: Adds the clients' metrics up; `fedjx.aggregation.secure.secure_total` lets the server see no more
        than the totals.
      num_epochs: Local epochs, one if not given; or
      num_steps: the number of local steps.
      shuffle: Whether clients reorder their examples every epoch.
      drop_remainder: Whether clients leave out an epoch's last batch when it is not full.

    Returns:
      An `Algorithm`. Its metrics are ``loss`` (the clients' mean over the examples they trained
      on), ``num_examples``, ``num_clients`` that contributed, ``num_non_finite_clients`` that
      were left out, and ``aggregation``, the aggregator's measurements.

    >>> train, _ = fedjx.data.digits(num_clients=20)
    >>> algorithm = fed_avg(fedjx.models.linear(10, input_shape=(8, 8, 1)), client_optimizer=optax.sgd(0.01))
    >>> state = algorithm.init(jax.random.key(0))
    >>> state, metrics = algorithm.next(state, fedjx.data.cohort(train, [3, 5, 8], batch_size=20))
    >>> int(metrics["num_clients"]), int(state.round)
    (3, 1)
    """
    check_amount(num_epochs, num_steps)
    server_optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    aggregator = mean() if aggregator is None else aggregator

    @jax.jit
    def init(key: jax.Array) -> FedAvgState:
        key_params, key_rounds = jax.random.split(key)
        params = model.init(key_params)
        return FedAvgState(params, server_optimizer.init(params), aggregator.init(params), key_rounds, jnp.int32(0))

    def client_update(params: PyTree, data: Any, key: jax.Array) -> ClientUpdate:
        trained = local_train(
            model,
            params,
            data,
            key,
            optimizer=client_optimizer,
            num_epochs=num_epochs,
            num_steps=num_steps,
            shuffle=shuffle,
            drop_remainder=drop_remainder,
        )
        delta = jax.tree.map(jnp.subtract, params, trained.params)
        metrics = {**trained.metrics, "num_examples": trained.num_examples}
        return checked(ClientUpdate(delta, client_weight(trained.num_examples), metrics))

    def server_update(state: FedAvgState, aggregator_state: PyTree, delta: PyTree) -> FedAvgState:
        updates, optimizer = server_optimizer.update(delta, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return FedAvgState(params, optimizer, aggregator_state, state.key, state.round + 1)

    @federated_computation
    def next(state: Any, data: Any) -> Any:
        key = federated_map(jax.random.fold_in, state.key, state.round)
        update = federated_map(client_update, federated_broadcast(state.params), data, federated_keys(key))
        aggregator_state, delta, measured = aggregator.next(key, state.aggregator, update.delta, update.weight)
        aggregator_state = keeps_type("an aggregator", state.aggregator, aggregator_state)
        metrics = federated_map(round_metrics, metrics_sum(update.metrics), measured)
        return keeps_type("fed_avg", state, federated_map(server_update, state, aggregator_state, delta)), metrics

    return Algorithm(init, next)


def round_metrics(sums: dict[str, Any], measured: PyTree) -> dict[str, Any]:
    """Divides the summed ratios, passes on the counts, and adds the aggregator's measurements."""
    ratios = {name: x for name, x in sums.items() if isinstance(x, Ratio)}
    counts = {name: x for name, x in sums.items() if name not in ratios}
    return {**finalize_metrics(ratios), **counts, "aggregation": measured}
