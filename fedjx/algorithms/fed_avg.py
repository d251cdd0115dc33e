"""Federated averaging, with any client and server optimizer.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data"
(arXiv 1602.05629, algorithm 1), in the generalised form of Reddi et al., "Adaptive Federated
Optimization" (arXiv 2003.00295, algorithm 1). FedAvgM, FedAdagrad, FedAdam and FedYogi are choices
of the server's optimizer: `fed_opt.py` has those of the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack, overload

import jax
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.error_feedback import StatefulAggregator
from fedjx.aggregation.weights import by_examples
from fedjx.core.execution.process import Aggregator, Algorithm, StatefulAlgorithm
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_sum
from fedjx.core.language.placed import FederatedValue
from fedjx.models.model import Model
from fedjx.training.client import ClientOptimizer
from fedjx.training.failures import Failures
from fedjx.training.method import ServerState, averaging
from fedjx.training.round import OtherArguments, compose


@overload
def fed_avg(
    model: Model,
    *,
    client_optimizer: ClientOptimizer,
    aggregator: Aggregator | None = None,
    **others: Unpack[OtherArguments],
) -> Algorithm[ServerState]: ...
@overload
def fed_avg(
    model: Model, *, client_optimizer: ClientOptimizer, aggregator: StatefulAggregator, **others: Unpack[OtherArguments]
) -> StatefulAlgorithm[ServerState, PyTree]: ...
def fed_avg(
    model: Model,
    *,
    client_optimizer: ClientOptimizer,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | StatefulAggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] = by_examples,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    failures: Failures | None = None,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = False,
) -> Algorithm[ServerState] | StatefulAlgorithm[ServerState, PyTree]:
    """Builds federated averaging.

    All methods of local training take these arguments; what theirs say besides is in their own descriptions.

    Args:
      model: What is trained.
      client_optimizer: Of every client, from its initial state. A function ``(round) -> optimizer`` of the round
        number, int32 ``[]``, is a schedule over rounds: ``lambda round: optax.sgd(schedule(round))``.
      server_optimizer: Applied to the aggregated ``delta`` (initial minus trained parameters) as
        if it were a gradient; ``optax.sgd(1.0)``, which replaces the model by the clients' mean,
        if not given. Schedules in it count rounds. One that takes extra arguments gets the round's ``metrics``, and
        its loss as ``value``.
      aggregator: The weighted `mean` if not given. One with a memory at the clients, such as `error_feedback`,
        makes a `StatefulAlgorithm`.
      broadcaster: How the server sends the parameters; as they are if not given.
      client_weight: From a client's number of examples to its weight: `by_examples`, `uniform` or your own; with a
        parameter ``id`` it is told who the client is too: ``lambda num_examples, id: trust[id] * num_examples``.
      metrics_sum: Adds the clients' metrics up; `fedjx.aggregation.secure.secure_total` lets the server see no more
        than the totals, and `fedjx.training.sum_and_report` also what each client reported.
      failures: How often clients fail, and how.
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
    >>> state, metrics = algorithm.next(state, fedjx.data.Cohort(train, [3, 5, 8], batch_size=20))
    >>> int(metrics["num_clients"]), int(state.round)
    (3, 1)
    """
    return compose(
        averaging(model),
        client_optimizer=client_optimizer,
        server_optimizer=server_optimizer,
        aggregator=aggregator,
        broadcaster=broadcaster,
        client_weight=client_weight,
        metrics_sum=metrics_sum,
        failures=failures,
        num_epochs=num_epochs,
        num_steps=num_steps,
        shuffle=shuffle,
        drop_remainder=drop_remainder,
    )
