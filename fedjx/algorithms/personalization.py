"""Evaluation of personalised models, client by client, before and after.

Wang et al., "Federated Evaluation of On-device Personalization" (arXiv 1910.10252): every client makes its own model on
one part of its data, by each strategy, and evaluates it on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from fedjx.algorithms.evaluation import evaluated, summary
from fedjx.core.execution.computation import Computation
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.operators import federated_broadcast, federated_keys, federated_mean, federated_sum
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.streams import AtClients
from fedjx.core.language.values import Clients, Sequence
from fedjx.models.model import Model
from fedjx.training.client import LocalAmount, check_amount, local_train
from fedjx.training.meeting import data_hooks
from fedjx.training.splits import Split, alternate_split

Strategy = Callable[[PyTree, Sequence, jax.Array], PyTree]
Scores = dict[str, dict[str, jax.Array]]  # of one client: by strategy, metrics by name


def no_fine_tuning(params: PyTree, data: Sequence, key: jax.Array) -> PyTree:
    """Returns the server's parameters, as a strategy: the baseline."""
    del data, key
    return params


def fine_tuning(
    model: Model,
    *,
    optimizer: optax.GradientTransformation,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = False,
) -> Strategy:
    """Returns the strategy of training on from the server's parameters; arguments as for `local_train`.

    Guarantees: With the same key, more epochs go on where fewer ended: strategies of 1, 2, 3 epochs show one training.
    """
    amount = LocalAmount(num_epochs=num_epochs, num_steps=num_steps, shuffle=shuffle, drop_remainder=drop_remainder)
    check_amount(**amount)

    def strategy(params: PyTree, data: Sequence, key: jax.Array) -> PyTree:
        return local_train(model, params, data, key, optimizer=optimizer, **amount).params

    return strategy


def personalization_evaluation(
    model: Model,
    strategies: Mapping[str, Strategy],
    *,
    split: Split = alternate_split,
    baseline: Strategy = no_fine_tuning,
) -> Computation[[PyTree, AtClients, jax.Array], tuple[Metrics, Clients]]:
    """Builds the computation ``(params@SERVER, data@CLIENTS, key@SERVER) -> (means@SERVER, metrics@CLIENTS)``.

    Args:
      model: What is evaluated.
      strategies: By name, pure functions ``(params, training data, key) -> params``; all get the same key.
      split: ``(data, key) -> (training data, test data)``, of one client.
      baseline: With which strategy ``"baseline"`` is evaluated; with the server's parameters if not given.

    Returns:
      The metrics of every client on its test data, by strategy; stream them into a sink, or they are gathered.
      ``means`` has their means over the clients that have test data, each counting once, and ``num_clients`` of these.

    Guarantees: What a client gets depends on its data, its id and the key only, not on the cohort.

    >>> from fedjx.models.factorization import matrix_factorization
    >>> model = matrix_factorization(16, num_factors=2)
    >>> tuned = {f"sgd_{n}": fine_tuning(model, optimizer=optax.sgd(0.01), num_epochs=n) for n in (1, 2)}
    >>> ratings = fedjx.data.FederatedData.from_clients([{"x": np.array([3, 7]), "y": np.float32([4, 1])}])
    >>> clients, key = fedjx.data.Cohort(ratings, [0], batch_size=2), jax.random.key(0)
    >>> type_ = personalization_evaluation(model, tuned).type_signature(model.init(key), clients, key)
    >>> list(type_.result[1].member), list(type_.result[1].member["sgd_2"])
    (['baseline', 'sgd_1', 'sgd_2'], ['accuracy', 'loss', 'num_examples'])
    """
    taken = {"baseline", "num_clients"} & set(strategies)
    if taken:
        raise ValueError(f"a strategy has a name of its own; got {sorted(taken)}. Call it otherwise.")

    def client_evaluation(params: PyTree, data: Sequence, key: jax.Array) -> Scores:
        key_split, key_strategy = jax.random.split(key)
        train, test = split(data, key_split)
        tried = {"baseline": baseline, **strategies}
        return {name: scores(model, tried[name](params, train, key_strategy), test) for name in tried}

    def evaluation(
        params: FederatedValue, data: FederatedValue, key: FederatedValue
    ) -> tuple[FederatedValue, FederatedValue]:
        metrics = federated_map(client_evaluation, federated_broadcast(params), data, federated_keys(key))
        return _means(metrics), metrics

    return Computation(evaluation, hooks=data_hooks(model.input_spec))


def personal_evaluation(
    model: Model, combine: Callable[[PyTree, PyTree], PyTree]
) -> Computation[[PyTree, AtClients, AtClients], tuple[Metrics, Clients]]:
    """Builds ``(params@SERVER, data@CLIENTS, states@CLIENTS) -> (means@SERVER, metrics@CLIENTS)``.

    Args:
      model: What is evaluated.
      combine: ``(params, client state) -> params`` of the client's own model: the state itself for `ditto`,
        `personal_params` for `apfl`, `combine` for `fed_rep` and `fed_per`.

    Returns:
      What `personalization_evaluation` does, with the one strategy ``"personal"`` and without a split.
    """

    def client_evaluation(params: PyTree, data: Sequence, own: PyTree) -> Scores:
        return {"personal": scores(model, combine(params, own), data)}

    def evaluation(
        params: FederatedValue, data: FederatedValue, states: FederatedValue
    ) -> tuple[FederatedValue, FederatedValue]:
        metrics = federated_map(client_evaluation, federated_broadcast(params), data, states)
        return _means(metrics), metrics

    return Computation(evaluation, hooks=data_hooks(model.input_spec))


def scores(model: Model, params: PyTree, data: Sequence) -> dict[str, jax.Array]:
    """Evaluates parameters on one client's data: metrics by name and ``num_examples``, float32 ``[]``."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), summary(evaluated(model, params, data)))


def _means(metrics: FederatedValue) -> FederatedValue:
    has_data = federated_map(_has_data, metrics)
    means, number = federated_mean(metrics, has_data), federated_sum(has_data)
    return federated_map(lambda means, number: {**means, "num_clients": number}, means, number)


def _has_data(metrics: Scores) -> jax.Array:
    return (next(iter(metrics.values()))["num_examples"] > 0).astype(jnp.int32)
