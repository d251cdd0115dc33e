"""Processes under the names of TensorFlow Federated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.weights import by_examples, uniform
from fedjx.aggregation.zeroing import zero_outliers
from fedjx.algorithms.evaluation import federated_evaluation
from fedjx.core.execution.computation import Computation, federated_computation
from fedjx.core.execution.process import Aggregator, Algorithm
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_eval
from fedjx.core.language.placed import FederatedValue
from fedjx.core.language.sequence import sequence_reduce
from fedjx.core.language.streams import AtClients
from fedjx.core.language.types import SERVER, FunctionType
from fedjx.core.language.values import MASK, Batches, Clients, Sequence
from fedjx.models.model import Batch, MetricSums, Model, batch_loss, sum_metrics
from fedjx.privacy.dp_mean import dp_mean_adaptive
from fedjx.tff import framework
from fedjx.tff.learning.metrics import Metrics, averaging_metrics, learning_metrics, measured_alone, sum_then_finalize
from fedjx.tff.simulation.data import as_clients
from fedjx.training.client import ClientUpdate, Local, as_batches, drop_non_finite
from fedjx.training.method import Method, ServerState
from fedjx.training.round import compose

ModelFn = Callable[[], Model]
OptimizerFn = Callable[[], optax.GradientTransformation]
Data = AtClients | Iterable[Iterable[PyTree]]  # a cohort of fedjx, or a list of the clients' data sets


class RoundResult(NamedTuple):
    """What `IterativeProcess.next` returns."""

    state: ServerState
    metrics: Metrics


class Round(NamedTuple):
    """One round as a function of the state and a list of data sets, or of a cohort of fedjx.

    Attributes:
      computation: ``(state@SERVER, data@CLIENTS) -> (state@SERVER, metrics@SERVER)``.
      run: How it runs.
      report: Names the metrics.
    """

    computation: Computation[[ServerState, AtClients], tuple[ServerState, dict[str, PyTree]]]
    run: Callable[[ServerState, AtClients], tuple[ServerState, dict[str, PyTree]]]
    report: Callable[[dict[str, PyTree]], Metrics]

    def __call__(self, state: ServerState, data: Data) -> RoundResult:
        """Runs the round."""
        cohort = _cohort(data)
        framework.count(self.computation, state, cohort)
        state, metrics = self.run(state, cohort)
        return RoundResult(state, self.report(metrics))

    def type_signature(self, state: ServerState, data: Data) -> FunctionType:
        """Types the round for a state and federated data."""
        return self.computation.type_signature(state, _cohort(data))


class IterativeProcess(NamedTuple):
    """A federated algorithm.

    Attributes:
      initialize: ``() -> state``, a computation that prints its ``type_signature``.
      next: ``(state, data) -> (state, metrics)``.
      get_model_weights: ``(state) -> params``.
    """

    initialize: Computation[[], ServerState]
    next: Round
    get_model_weights: Callable[[ServerState], PyTree]


def build_federated_averaging_process(
    model_fn: ModelFn,
    client_optimizer_fn: OptimizerFn,
    server_optimizer_fn: OptimizerFn = lambda: optax.sgd(1.0),
    client_weighting: Callable[[jax.Array], jax.Array] = by_examples,
    broadcast_process: Broadcaster | None = None,
    aggregation_process: Aggregator | None = None,
    metrics_aggregator: Callable[[PyTree], FederatedValue] = sum_then_finalize,
    *,
    seed: int = 0,
    lanes: int | None = None,
) -> IterativeProcess:
    """Builds federated averaging, with metrics ``<broadcast, aggregation, train>``.

    Args:
      model_fn: Makes the model.
      client_optimizer_fn: Makes the clients' optimizer.
      server_optimizer_fn: Makes the server's.
      client_weighting: From a client's number of examples to its weight.
      broadcast_process: How the parameters are sent.
      aggregation_process: How the clients' changes become one.
      metrics_aggregator: How the clients' metrics become the server's.
      seed: Of the first parameters and all that is random.
      lanes: How many clients a device runs at once; all if not given.
    """
    algorithm = compose(
        _method(model_fn()),
        client_optimizer=client_optimizer_fn(),
        server_optimizer=server_optimizer_fn(),
        aggregator=aggregation_process,
        broadcaster=broadcast_process,
        client_weight=client_weighting,
        metrics_sum=lambda metrics: metrics_aggregator(measured_alone(metrics)),
    )
    return _process(algorithm, averaging_metrics, seed, lanes)


class _Others(TypedDict, total=False):
    """What the two have in common, by their names in TensorFlow Federated."""

    model_distributor: Broadcaster | None
    model_aggregator: Aggregator | None
    metrics_aggregator: Callable[[PyTree], FederatedValue]
    seed: int
    lanes: int | None


def dp_aggregator(noise_multiplier: float, clients_per_round: float, zeroing: bool = True) -> Aggregator:
    """Returns a private mean with an adaptive clip, and the preset's zeroing before it.

    The threshold of the zeroing follows the clients' norms without noise, as in TensorFlow Federated, so with it
    it has no event, and `fedjx.privacy.account` refuses it: nobody knows its epsilon.
    """
    private = dp_mean_adaptive(noise_multiplier=noise_multiplier, expected_clients=clients_per_round)
    return zero_outliers(inner=private._replace(event=None)) if zeroing else private


def build_unweighted_fed_avg(
    model_fn: ModelFn,
    client_optimizer_fn: OptimizerFn,
    server_optimizer_fn: OptimizerFn = lambda: optax.sgd(1.0),
    **others: Unpack[_Others],
) -> IterativeProcess:
    """Builds `build_weighted_fed_avg` in which clients count once each."""
    return build_weighted_fed_avg(
        model_fn, client_optimizer_fn, server_optimizer_fn, client_weighting=uniform, **others
    )


def build_weighted_fed_avg(
    model_fn: ModelFn,
    client_optimizer_fn: OptimizerFn,
    server_optimizer_fn: OptimizerFn = lambda: optax.sgd(1.0),
    *,
    client_weighting: Callable[[jax.Array], jax.Array] = by_examples,
    model_distributor: Broadcaster | None = None,
    model_aggregator: Aggregator | None = None,
    metrics_aggregator: Callable[[PyTree], FederatedValue] = sum_then_finalize,
    seed: int = 0,
    lanes: int | None = None,
) -> IterativeProcess:
    """Builds the same under a later name, with metrics ``<distributor, client_work, aggregator, finalizer>``."""
    algorithm = compose(
        _method(model_fn()),
        client_optimizer=client_optimizer_fn(),
        server_optimizer=server_optimizer_fn(),
        aggregator=model_aggregator,
        broadcaster=model_distributor,
        client_weight=client_weighting,
        metrics_sum=metrics_aggregator,
    )
    return _process(algorithm, learning_metrics, seed, lanes)


def build_federated_evaluation(model_fn: ModelFn) -> Callable[[PyTree, Data], Metrics]:
    """Builds ``(params, data) -> metrics``."""
    run = federated_evaluation(model_fn()).streamed()
    return lambda params, data: Metrics(run(params, _cohort(data)))


def _process(
    algorithm: Algorithm[ServerState], report: Callable[[dict[str, PyTree]], Metrics], seed: int, lanes: int | None
) -> IterativeProcess:
    @federated_computation
    def initialize() -> FederatedValue:
        return federated_eval(lambda: algorithm.init(jax.random.key(seed)), SERVER)

    run = Round(algorithm.next, algorithm.next.streamed(lanes=lanes), report)
    return IterativeProcess(initialize, run, lambda state: state.params)


def _cohort(data: PyTree) -> AtClients:
    is_list = isinstance(data, list) and not (data and isinstance(data[0], Clients))
    return as_clients(data) if is_list else data


def _method(model: Model) -> Method[None]:
    return Method(model.init, _client_work(model), input_spec=model.input_spec)


def _client_work(model: Model) -> Callable[..., ClientUpdate]:
    """Trains on the batches as they come, and measures the model before every step."""

    def loss(params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, MetricSums]]:
        mean, (sums, _) = batch_loss(model)(params, batch, key)
        return mean, {**sum_metrics(model.metrics(params, batch), batch[MASK]), **sums}

    def client_update(params: PyTree, data: Sequence, key: jax.Array, *, local: Local) -> ClientUpdate:
        def step(carry: PyTree, batch: Batch) -> PyTree:
            trained, state, sums, t = carry
            grads, metrics = jax.grad(loss, has_aux=True)(trained, batch, jax.random.fold_in(key, t))
            updates, state = local.optimizer.update(grads, state, trained)
            return optax.apply_updates(trained, updates), state, jax.tree.map(jnp.add, sums, metrics), t + 1

        batches = as_batches(data)
        one = Batches(batches.pool, batches.index[0]).gather()
        zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(loss, params, one, key)[1])
        start = (params, local.optimizer.init(params), zero, jnp.int32(0))
        trained, _, metrics, _ = sequence_reduce(step, start, Sequence(batches, data.length))
        num_examples = jnp.sum(batches.index >= 0, dtype=jnp.int32)
        delta = jax.tree.map(jnp.subtract, params, trained)
        return drop_non_finite(
            ClientUpdate(delta, local.weight(num_examples), {**metrics, "num_examples": num_examples})
        )

    return client_update
