"""One round, of any method: what is sent, what clients do with it, how that is aggregated, what the server makes of it.

What a method *is* is a `Method`, a small value of pure functions. How a round of it is *run* are the arguments of
`compose`, the same for all methods. It is the generalised federated averaging of Reddi et al., "Adaptive Federated
Optimization" (arXiv 2003.00295, algorithm 1), for clients that may keep a state, with a pass before if need be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Required, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster, broadcast
from fedjx.aggregation.error_feedback import StatefulAggregator
from fedjx.aggregation.mean import mean
from fedjx.aggregation.weights import by_examples
from fedjx.core.execution.cache import use_compilation_cache
from fedjx.core.execution.computation import Computation
from fedjx.core.execution.devices import compiled_once
from fedjx.core.execution.process import Aggregator, Algorithm, StatefulAlgorithm, keeps_type
from fedjx.core.language.meshes import outside_meshes
from fedjx.core.language.names import Metrics, PyTree
from fedjx.core.language.operators import (
    federated_keys,
    federated_sum,
    federated_zip,
)
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import all_finite
from fedjx.core.language.types import CLIENTS, children
from fedjx.models.model import Ratio, Sums, finalize_metrics
from fedjx.training.batch_stats import trained_alone
from fedjx.training.checks import (
    Withheld,
    check_bounded,
    check_delta,
    check_key,
    check_method,
    check_parts,
    check_private,
)
from fedjx.training.client import (
    ClientOptimizer,
    ClientUpdate,
    LocalAmount,
    check_amount,
)
from fedjx.training.each_client import EachClient
from fedjx.training.failures import Failures, checked_failures, may_happen
from fedjx.training.meeting import data_hooks, round_hooks
from fedjx.training.method import Held, InitClient, Method, ServerState

Outcome = tuple[FederatedValue, ...]  # state and metrics at the server, and what the clients hold, if anything


class _Around(TypedDict, total=False):
    """How a round is run, whatever the aggregator is."""

    broadcaster: Broadcaster | None
    metrics_sum: Callable[[PyTree], FederatedValue]
    failures: Failures | None


class RoundArguments(_Around, total=False):
    """How a round is run, for methods to pass on to `compose`; `fed_avg` describes each."""

    aggregator: Aggregator | StatefulAggregator | None


class LocalArguments(RoundArguments, LocalAmount, total=False):
    """How a round is run, and how much clients train in it."""

    client_weight: Callable[[jax.Array], jax.Array]


class ClientArguments(LocalArguments, total=False):
    """How a round is run, and how clients train in it."""

    client_optimizer: Required[ClientOptimizer]


class TrainingArguments(ClientArguments, total=False):
    """The arguments of `fed_avg`, which methods of local training have in common."""

    server_optimizer: optax.GradientTransformation | None


class OtherArguments(_Around, LocalAmount, total=False):
    """The arguments of `fed_avg` but for the client optimizer and the aggregator."""

    client_weight: Callable[[jax.Array], jax.Array]
    server_optimizer: optax.GradientTransformation | None


class RoundKeys(NamedTuple):
    """The random keys of one round, a stream for each purpose."""

    broadcaster: jax.Array
    clients: jax.Array
    aggregator: jax.Array


def round_keys(key: jax.Array, round: jax.Array) -> RoundKeys:
    """Draws a round's keys from the key of the run."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(key, round), 3))


# Of a method that hands on its arguments a type checker takes the aggregator for one without a memory.
@overload
def compose(
    method: Method[Any],
    *,
    client_optimizer: ClientOptimizer | None = None,
    aggregator: StatefulAggregator,
    **others: Unpack[OtherArguments],
) -> StatefulAlgorithm[ServerState, PyTree]: ...
@overload
def compose(
    method: Method[None],
    *,
    client_optimizer: ClientOptimizer | None = None,
    aggregator: Aggregator | StatefulAggregator | None = None,
    **others: Unpack[OtherArguments],
) -> Algorithm[ServerState]: ...
@overload
def compose(
    method: Method[InitClient],
    *,
    client_optimizer: ClientOptimizer | None = None,
    aggregator: Aggregator | StatefulAggregator | None = None,
    **others: Unpack[OtherArguments],
) -> StatefulAlgorithm[ServerState, PyTree]: ...
def compose(
    method: Method[InitClient | None],
    *,
    client_optimizer: ClientOptimizer | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | StatefulAggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] | None = None,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    failures: Failures | None = None,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    shuffle: bool | None = None,
    drop_remainder: bool | None = None,
) -> Algorithm[ServerState] | StatefulAlgorithm[ServerState, PyTree]:
    """Makes an algorithm of a method and of how its rounds are run.

    The arguments are those of `fed_avg`, which describes them, for every method.

    Args:
      method: What clients and server do.
      client_optimizer: Is the method's ``local.optimizer``.
      server_optimizer: ``optax.sgd(1.0)``, which takes what is aggregated off the parameters, if not given.
      aggregator: The weighted `mean` if not given. With one that keeps a memory at the clients, such as
        `error_feedback`, the algorithm has client states.
      broadcaster: Sends the parameters as they are if not given.
      client_weight: Is the method's ``local.weight``; by examples if not given.
      metrics_sum: Adds the clients' metrics up.
      failures: How often clients fail, and how. They do so alike in a pass before the round, but there all finish.
      num_epochs: Of the method's ``local.train``, as are the next three.
      num_steps: The number of local steps instead.
      shuffle: Whether clients reorder their examples every epoch; they do if not given.
      drop_remainder: Whether clients leave out an epoch's last batch when it is not full; they do not if not given.

    Returns:
      An `Algorithm`, or a `StatefulAlgorithm` if clients keep a state or a memory; both: `Held`. Its metrics are the
      clients', summed up, ratios divided, and ``aggregation``, the aggregator's measurements; ``first_aggregation``
      are those of a pass before.

    Raises:
      TypeError: If the method's functions take by name what no round gives, do not train and are told how to, or
        cannot be left incomplete and should be.
      ValueError: If the amount of training is none, or probabilities of failures are not; if the aggregator is private
        and the method passes over the clients twice, or, when a round is traced, its server reads exact metrics.
    """
    if not isinstance(method, Method):
        raise TypeError(f"compose takes a Method; got {type(method).__name__}. For a model, say averaging(model).")
    check_method(method)
    check_amount(num_epochs, num_steps)
    check_parts(client_optimizer, server_optimizer, aggregator, broadcaster, client_weight, failures)
    amount: LocalAmount = {"num_epochs": num_epochs, "num_steps": num_steps}
    amount |= {} if shuffle is None else {"shuffle": shuffle}
    amount |= {} if drop_remainder is None else {"drop_remainder": drop_remainder}
    failures = Failures() if failures is None else checked_failures(failures)
    clients = EachClient(method, client_optimizer, client_weight or by_examples, amount, failures)
    training = {"client_optimizer": client_optimizer, "client_weight": client_weight, **amount}
    clients.check([name for name, x in training.items() if x is not None])
    check_bounded(method, aggregator)
    check_private(method, aggregator)
    parts = _Round(
        method,
        clients,
        trained_alone(method.server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)),
        mean() if aggregator is None else aggregator,
        broadcast() if broadcaster is None else broadcaster,
        metrics_sum,
    )

    def next(state: FederatedValue, data: FederatedValue) -> Outcome:
        return parts.round(state, data)

    def next_with_states(state: FederatedValue, data: FederatedValue, states: FederatedValue) -> Outcome:
        return parts.round(state, data, states)

    for function in (next, next_with_states):  # kept by every way to run them, for `fedjx.privacy.within`
        function.__dict__["event"] = getattr(aggregator, "event", None)
    use_compilation_cache()  # before the first program, which is `init`
    init = outside_meshes(compiled_once(parts.init))
    # Who asked for updates that are not finite need not be told of them.
    hooks = data_hooks(method.input_spec) if may_happen(failures.non_finite) else round_hooks(method.input_spec)
    if parts.is_stateful:
        return StatefulAlgorithm(init, parts.init_client, Computation(next_with_states, hooks=hooks))
    return Algorithm(init, Computation(next, hooks=hooks))


class _Aggregated(NamedTuple):
    state: FederatedValue
    result: FederatedValue
    measured: FederatedValue
    memory: PyTree = None  # at the clients, if they have one


def _aggregated(found: PyTree, what: str, number: int) -> _Aggregated:
    if not isinstance(found, tuple) or len(found) != number:
        got = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
        raise TypeError(
            f"an aggregator's next returns {what}; got {got}. To measure nothing, return federated_value({{}}, SERVER)."
        )
    return _Aggregated(*found)


class _Round(NamedTuple):
    """All that a round is made of."""

    method: Method[InitClient | None]
    clients: EachClient
    server: optax.GradientTransformationExtraArgs
    aggregator: Aggregator | StatefulAggregator
    broadcaster: Broadcaster
    metrics_sum: Callable[[PyTree], FederatedValue]

    @property
    def is_stateful(self) -> bool:
        return self.method.init_client is not None or isinstance(self.aggregator, StatefulAggregator)

    def init(self, key: jax.Array) -> ServerState:
        """Makes the server's first state."""
        check_key(key)
        key_params, key_rounds = jax.random.split(key)
        params = self.method.init(key_params)
        state = ServerState(params, self.server.init(params), (), (), key_rounds, jnp.int32(0))
        sent = params if self.method.sent is None else self.method.sent(state)
        aggregators = self._of_each_pass(self.aggregator.init, params)
        return state._replace(aggregator=aggregators, broadcaster=self.broadcaster.init(sent))

    def init_client(self, state: ServerState) -> PyTree:
        """Makes what a client holds that was never here."""
        own = [] if self.method.init_client is None else [self.method.init_client(state)]
        if isinstance(self.aggregator, StatefulAggregator):
            own.append(self._of_each_pass(self.aggregator.init_client, state.params))
        return own[0] if len(own) == 1 else Held(*own)

    def _of_each_pass(self, init: Callable[[PyTree], PyTree], params: PyTree) -> PyTree:
        member = params if self.method.delta is None else self.method.delta(params)
        if self.method.first is None:
            return init(member)
        return init(params if self.method.first_delta is None else self.method.first_delta(params)), init(member)

    def round(self, state: FederatedValue, data: FederatedValue, held: FederatedValue | None = None) -> Outcome:
        """Runs a round, as a function of placed values."""
        if [name for name, _ in children(state.type.member) or []] != list(ServerState._fields):
            raise TypeError(
                f"a round takes the server's state, then the cohort; got {state.type} first. Pass the state that "
                "`init` or the round before returned."
            )
        if data.type.placement != CLIENTS:
            raise TypeError(
                f"a round takes data at CLIENTS; got {data.type}. Pass a Cohort(data, ids, batch_size=...)."
            )
        own, memory = self._apart(held)
        keys = federated_map(round_keys, state.key, state.round)
        server = state.params if self.method.sent is None else federated_map(self.method.sent, state)
        broadcaster_state, sent = self.broadcaster.next(keys.broadcaster, state.broadcaster, server)
        client_keys, told = federated_keys(keys.clients), self.clients.told(state, own)
        if self.method.first is None:
            update, own = self.clients.update(sent, data, client_keys, told)
            check_delta("delta", update, state, self.method.delta)
            last = self._aggregated(keys.aggregator, state.aggregator, update, memory)
            update = self._measured(keys.aggregator, state.aggregator, update)
            return self._finished(state, held, broadcaster_state, update, own, [last])
        key_first, key_last = federated_map(lambda key: tuple(jax.random.split(key)), keys.aggregator)
        before = self.clients.first(sent, data, client_keys, told)
        check_delta("first_delta", before, state, self.method.first_delta)
        first = self._aggregated(key_first, state.aggregator[0], before, None if memory is None else memory[0])
        update, own = self.clients.update(sent, data, client_keys, told, before, first.result)
        check_delta("delta", update, state, self.method.delta)
        last = self._aggregated(key_last, state.aggregator[1], update, None if memory is None else memory[1])
        update = self._measured(key_last, state.aggregator[1], update)
        return self._finished(state, held, broadcaster_state, update, own, [first, last])

    def _apart(self, held: FederatedValue | None) -> tuple[FederatedValue | None, FederatedValue | None]:
        """Tells the method's client state from the aggregator's memory."""
        if self.method.init_client is None or held is None:
            return None, held
        return (held.own, held.memory) if isinstance(self.aggregator, StatefulAggregator) else (held, None)

    def _aggregated(
        self, key: FederatedValue, state: FederatedValue, update: FederatedValue, memory: FederatedValue | None
    ) -> _Aggregated:
        arguments = (key, state, update.delta, update.weight)
        if isinstance(self.aggregator, StatefulAggregator):
            found = _aggregated(self.aggregator.next(*arguments, memory), "(state, result, measurements, memory)", 4)
        else:
            found = _aggregated(self.aggregator.next(*arguments), "(state, result, measurements)", 3)
        return found._replace(state=keeps_type("an aggregator", state, found.state))

    def _measured(self, key: FederatedValue, state: FederatedValue, update: FederatedValue) -> FederatedValue:
        """Returns the update with what the method's server takes of it as the aggregator lets it through."""
        measure, bounded = self.method.bounded_metrics, getattr(self.aggregator, "bounded", None)
        if measure is None or bounded is None:
            return update

        def measured(update: ClientUpdate, delta: PyTree, weight: jax.Array) -> ClientUpdate:
            through = update._replace(delta=delta, weight=weight)
            return update._replace(metrics={**update.metrics, **measure(through)})

        return federated_map(measured, update, *bounded(key, state, update.delta, update.weight))

    def _finished(
        self,
        state: FederatedValue,
        came: FederatedValue | None,
        broadcaster_state: FederatedValue,
        update: FederatedValue,
        own: FederatedValue | None,
        passes: list[_Aggregated],
    ) -> Outcome:
        """Lets the server take the aggregate; returns its state, the metrics, and what clients hold, if anything."""
        *first, last = passes
        measured = {"aggregation": last.measured, **({"first_aggregation": first[0].measured} if first else {})}
        metrics = federated_map(round_metrics, self.metrics_sum(update.metrics), measured)
        aggregators = tuple(one.state for one in passes) if first else last.state
        results = [one.result for one in first]
        after, metrics = federated_map(
            self._finish, state, (aggregators, broadcaster_state), last.result, metrics, *results
        )
        held = [] if own is None else [own]
        if isinstance(self.aggregator, StatefulAggregator):
            held.append(federated_zip(tuple(one.memory for one in passes)) if first else last.memory)
        held = [federated_zip(Held(*held))] if len(held) > 1 else held
        before = [] if came is None else [came]
        held = [keeps_type("a client", *states) for states in zip(before, held, strict=True)]
        return keeps_type("an algorithm", state, after), metrics, *held

    def _finish(
        self, state: ServerState, inner: tuple[PyTree, PyTree], delta: PyTree, metrics: Metrics, *first: PyTree
    ) -> tuple[ServerState, Metrics]:
        is_private = getattr(self.aggregator, "event", None) is not None
        extra = {"metrics": Withheld() if is_private else metrics, **({"first": first[0]} if first else {})}
        extra |= {"value": Withheld() if is_private else metrics["loss"]} if "loss" in metrics else {}
        updates, optimizer = self.server.update(delta, state.optimizer, state.params, **extra)
        params, (aggregator, broadcaster) = optax.apply_updates(state.params, updates), inner
        after = ServerState(params, optimizer, aggregator, broadcaster, state.key, state.round + 1)
        # What was not finite before, such as the best loss of nobody, may stay so.
        rejected = ~all_finite((delta, first), before=state, after=after)
        after = jax.tree.map(lambda old, new: jnp.where(rejected, old, new), state, after)
        if is_private:  # its noise is of this round, also if nothing came of it
            sound = all_finite((), before=state.aggregator, after=aggregator)
            kept = jax.tree.map(lambda old, new: jnp.where(sound, new, old), state.aggregator, aggregator)
            after = after._replace(aggregator=kept)
        metrics = {**metrics, "num_non_finite_aggregates": rejected.astype(jnp.int32)}
        return after._replace(round=state.round + 1), metrics


def round_metrics(sums: Metrics, measured: Metrics) -> Metrics:
    """Divides the summed ratios, passes on the counts, and adds what aggregators measured."""
    ratios = {name: x for name, x in sums.items() if isinstance(x, (Ratio, Sums))}
    counts = {name: x for name, x in sums.items() if name not in ratios}
    return {**finalize_metrics(ratios), **counts, **measured}
