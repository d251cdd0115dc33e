"""One round, of any method: what is sent, what clients do with it, how that is aggregated, what the server makes of it.

What a method *is* is a `Method`, a small value of pure functions. How a round of it is *run* are the arguments of
`compose`, the same for all methods. It is the generalised federated averaging of Reddi et al., "Adaptive Federated
Optimization" (arXiv 2003.00295, algorithm 1), for clients that may keep a state, with a pass before if need be.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster, broadcast
from fedjx.aggregation.error_feedback import StatefulAggregator
from fedjx.aggregation.mean import by_examples, mean
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator, Algorithm, StatefulAlgorithm, keeps_type
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import (
    federated_broadcast,
    federated_client_ids,
    federated_keys,
    federated_sum,
    federated_zip,
)
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.models.model import Model, Ratio, finalize_metrics
from fedjx.training.batch_stats import trained_alone
from fedjx.training.client import (
    ClientOptimizer,
    ClientUpdate,
    Local,
    LocalAmount,
    check_amount,
    checked,
    has_examples,
    local_training,
    local_update,
)
from fedjx.training.failures import Failures, checked_failures, failed, fate, remaining


class ServerState(NamedTuple):
    """The server's state between rounds, of every method.

    Attributes:
      params: The model's parameters.
      optimizer: The server optimizer's state, and what else a method's server keeps.
      aggregator: The aggregator's state; a pair if there is a pass before the round.
      broadcaster: The broadcaster's state.
      key: The random key of the whole run; never changes.
      round: int32 ``[]``; how many rounds are done.
    """

    params: PyTree
    optimizer: PyTree
    aggregator: PyTree
    broadcaster: PyTree
    key: jax.Array
    round: jax.Array


class Method(NamedTuple):
    """What a method is: pure functions of one client and of the server.

    Attributes:
      init: ``(key) -> params``, the first parameters.
      client_update: ``(params, data, key) -> ClientUpdate``, of one client. What else it takes, it takes by name, as
        keyword-only parameters: ``local``, a `Local`, how clients train in this run, or ``weight`` of it alone;
        ``id``, the client's, int32 ``[]``; ``context``, ``own`` and ``first``, see below. If clients keep a state it
        returns ``(ClientUpdate, own)``.
      server: ``(server_optimizer) -> optimizer``, what the server does around the run's server optimizer, as an optax
        transformation. It is applied to the aggregated delta as if it were a gradient, and gets the round's
        ``metrics``, its loss as ``value`` if there is one, and what comes of the pass before as ``first``.
      init_client: ``(state) -> own``, the state of a client that was never here, if clients keep one. A client keeps
        the one it came with if it has no examples, if its update weighs nothing, as one that is not finite does, or if
        its new state is not finite, which is counted.
      sent: ``(state) -> value``, what the broadcaster sends and the client update gets as ``params``; the parameters
        if not given.
      context: ``(state) -> context``, what the server tells the clients besides, as it is.
      first: A pass over the clients before the round, ``(params, data, key) -> ClientUpdate``, which takes by name
        what `client_update` does. It is aggregated as the round is, with a state of the aggregator's own. The client
        update gets, as ``first``, a `First`. Who is left out of the first pass is left out of the second.
      delta: ``(params) -> value``, of the type of a client's delta; the parameters if not given.

    >>> import optax
    >>> def client_update(center, data, key):  # one step towards each of its numbers
    ...     moved = fedjx.sequence_reduce(lambda c, batch: c + 0.5 * (batch["x"].mean() - c), center, data)
    ...     return ClientUpdate(center - moved, jnp.float32(1), {})
    >>> algorithm = compose(Method(lambda key: jnp.float32(0), client_update), server_optimizer=optax.sgd(1.0))
    >>> data = fedjx.data.FederatedData.from_clients([{"x": np.float32([4])}, {"x": np.float32([8, 4])}])
    >>> state = algorithm.init(jax.random.key(0))
    >>> state, _ = algorithm.next(state, fedjx.data.cohort(data, [0, 1], batch_size=1))
    >>> float(state.params)  # the mean of 2 and 4
    3.0
    """

    init: Callable[[jax.Array], PyTree]
    client_update: Callable[..., Any]
    server: Callable[[optax.GradientTransformation], optax.GradientTransformation] = lambda optimizer: optimizer
    init_client: Callable[[ServerState], PyTree] | None = None
    sent: Callable[[ServerState], PyTree] | None = None
    context: Callable[[ServerState], PyTree] | None = None
    first: Callable[..., ClientUpdate] | None = None
    delta: Callable[[PyTree], PyTree] | None = None


def averaging(model: Model) -> Method:
    """Returns federated averaging of a model: what clients do is train it."""
    return Method(model.init, local_update(model))


class First(NamedTuple):
    """What a pass before the round tells a client: its own update there, and what came of all."""

    own: ClientUpdate
    result: PyTree


class Held(NamedTuple):
    """What a client keeps where both the method and the aggregator have something: its own state, and the memory."""

    own: PyTree
    memory: PyTree


class RoundArguments(TypedDict, total=False):
    """How a round is run, for methods to pass on to `compose`; `fed_avg` describes each."""

    aggregator: Aggregator | StatefulAggregator | None
    broadcaster: Broadcaster | None
    metrics_sum: Callable[[PyTree], FederatedValue]
    failures: Failures | None


class LocalArguments(RoundArguments, LocalAmount, total=False):
    """How a round is run, and how much clients train in it."""

    client_weight: Callable[[jax.Array], jax.Array]


class ClientArguments(LocalArguments, total=False):
    """How a round is run, and how clients train in it."""

    client_optimizer: Required[ClientOptimizer]


class TrainingArguments(ClientArguments, total=False):
    """The arguments of `fed_avg`, which methods of local training have in common."""

    server_optimizer: optax.GradientTransformation | None


class RoundKeys(NamedTuple):
    """The random keys of one round, a stream for each purpose."""

    broadcaster: jax.Array
    clients: jax.Array
    aggregator: jax.Array


def round_keys(key: jax.Array, round: jax.Array) -> RoundKeys:
    """Draws a round's keys from the key of the run."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(key, round), 3))


def compose(
    method: Method,
    *,
    client_optimizer: ClientOptimizer | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | StatefulAggregator | None = None,
    broadcaster: Broadcaster | None = None,
    client_weight: Callable[[jax.Array], jax.Array] | None = None,
    metrics_sum: Callable[[PyTree], FederatedValue] = federated_sum,
    failures: Failures | None = None,
    **amount: Unpack[LocalAmount],
) -> Any:
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
      **amount: Is that of the method's ``local.train``.

    Returns:
      An `Algorithm`, or a `StatefulAlgorithm` if clients keep a state or a memory; both: `Held`. Its metrics are the
      clients', summed up, ratios divided, and ``aggregation``, the aggregator's measurements; ``first_aggregation``
      are those of a pass before.

    Raises:
      TypeError: If the method's functions take by name what no round gives, do not train and are told how to, or
        cannot be left incomplete and should be.
      ValueError: If the amount of training is none, or probabilities of failures are not.
    """
    check_amount(**amount)
    failures = Failures() if failures is None else checked_failures(failures)
    clients = _Clients(method, client_optimizer, client_weight or by_examples, amount, failures)
    training = {"client_optimizer": client_optimizer, "client_weight": client_weight, **amount}
    clients.check([name for name, x in training.items() if x is not None])
    parts = _Round(
        method,
        clients,
        trained_alone(method.server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)),
        mean() if aggregator is None else aggregator,
        broadcast() if broadcaster is None else broadcaster,
        metrics_sum,
    )

    @federated_computation
    def next(state: Any, data: Any) -> Any:
        return parts.round(state, data)

    @federated_computation
    def next_with_states(state: Any, data: Any, states: Any) -> Any:
        return parts.round(state, data, states)

    init = jax.jit(parts.init)
    return StatefulAlgorithm(init, parts.init_client, next_with_states) if parts.is_stateful else Algorithm(init, next)


class _Aggregated(NamedTuple):
    state: Any
    result: Any
    measured: Any
    memory: Any = None


class _Round(NamedTuple):
    """All that a round is made of."""

    method: Method
    clients: _Clients
    server: optax.GradientTransformationExtraArgs
    aggregator: Aggregator | StatefulAggregator
    broadcaster: Broadcaster
    metrics_sum: Callable[[PyTree], FederatedValue]

    @property
    def is_stateful(self) -> bool:
        return self.method.init_client is not None or isinstance(self.aggregator, StatefulAggregator)

    def init(self, key: jax.Array) -> ServerState:
        """Makes the server's first state."""
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
        return init(member) if self.method.first is None else (init(params), init(member))

    def round(self, state: Any, data: Any, held: Any = None) -> Any:
        """Runs a round, as a function of placed values."""
        own, memory = self._apart(held)
        keys = federated_map(round_keys, state.key, state.round)
        server = state.params if self.method.sent is None else federated_map(self.method.sent, state)
        broadcaster_state, sent = self.broadcaster.next(keys.broadcaster, state.broadcaster, server)
        client_keys, told = federated_keys(keys.clients), self.clients.told(state, own)
        if self.method.first is None:
            update, own = self.clients.update(sent, data, client_keys, told)
            last = self._aggregated(keys.aggregator, state.aggregator, update, memory)
            return self._finished(state, broadcaster_state, update, own, [last])
        key_first, key_last = federated_map(lambda key: tuple(jax.random.split(key)), keys.aggregator)
        before = self.clients.first(sent, data, client_keys, told)
        first = self._aggregated(key_first, state.aggregator[0], before, None if memory is None else memory[0])
        update, own = self.clients.update(sent, data, client_keys, told, before, first.result)
        last = self._aggregated(key_last, state.aggregator[1], update, None if memory is None else memory[1])
        return self._finished(state, broadcaster_state, update, own, [first, last])

    def _apart(self, held: Any) -> tuple[Any, Any]:
        """Tells the method's client state from the aggregator's memory."""
        if self.method.init_client is None:
            return None, held
        return (held.own, held.memory) if isinstance(self.aggregator, StatefulAggregator) else (held, None)

    def _aggregated(self, key: Any, state: Any, update: Any, memory: Any) -> _Aggregated:
        arguments = (key, state, update.delta, update.weight)
        if isinstance(self.aggregator, StatefulAggregator):
            found = _Aggregated(*self.aggregator.next(*arguments, memory))
        else:
            found = _Aggregated(*self.aggregator.next(*arguments))
        return found._replace(state=keeps_type("an aggregator", state, found.state))

    def _finished(self, state: Any, broadcaster_state: Any, update: Any, own: Any, passes: list[_Aggregated]) -> Any:
        """Lets the server take the aggregate; returns its state, the metrics, and what clients hold, if anything."""
        *first, last = passes
        measured = {"aggregation": last.measured, **({"first_aggregation": first[0].measured} if first else {})}
        metrics = federated_map(round_metrics, self.metrics_sum(update.metrics), measured)
        aggregators = tuple(one.state for one in passes) if first else last.state
        results = [one.result for one in first]
        after = federated_map(self._finish, state, (aggregators, broadcaster_state), last.result, metrics, *results)
        held = [] if own is None else [own]
        if isinstance(self.aggregator, StatefulAggregator):
            held.append(federated_zip(tuple(one.memory for one in passes)) if first else last.memory)
        held = [federated_zip(Held(*held))] if len(held) > 1 else held
        return keeps_type("an algorithm", state, after), metrics, *held

    def _finish(self, state: ServerState, inner: Any, delta: PyTree, metrics: dict[str, Any], *first: Any) -> Any:
        extra = {"metrics": metrics, **({"first": first[0]} if first else {})}
        extra |= {"value": metrics["loss"]} if "loss" in metrics else {}
        updates, optimizer = self.server.update(delta, state.optimizer, state.params, **extra)
        params, (aggregator, broadcaster) = optax.apply_updates(state.params, updates), inner
        return ServerState(params, optimizer, aggregator, broadcaster, state.key, state.round + 1)


class _Clients(NamedTuple):
    """The clients of a round: the method's functions of one client, and how they are run."""

    method: Method
    optimizer: ClientOptimizer | None
    weight: Callable[[jax.Array], jax.Array]
    amount: LocalAmount
    failures: Failures

    def told(self, state: Any, own: Any) -> dict[str, Any]:
        """Returns all that clients may be told, placed there; what none of them takes is not sent."""
        told = {"id": federated_client_ids()} | ({} if own is None else {"own": own})
        if self.method.context is not None:
            told["context"] = federated_broadcast(federated_map(self.method.context, state))
        return told | ({"round": federated_broadcast(state.round)} if callable(self.optimizer) else {})

    def first(self, params: Any, data: Any, keys: Any, told: dict[str, Any]) -> Any:
        """Runs the pass before the round; returns what clients send."""
        assert self.method.first is not None
        return self._each(self.method.first, self.failures._replace(partial=0), params, data, keys, told, ())

    def update(self, params: Any, data: Any, keys: Any, told: dict[str, Any], *first: Any) -> Any:
        """Runs the client update; returns what clients send, and what they keep, or None."""
        if first:
            before, result = first
            told = {**told, "left_out": before.metrics["num_non_finite_clients"]}
            told["first"] = federated_zip(First(before, federated_broadcast(result)))
        sent = self._each(self.method.client_update, self.failures, params, data, keys, told, ("own", "left_out"))
        return (sent[0], sent[1]) if "own" in told else (sent, None)

    def _each(
        self,
        fn: Callable[..., Any],
        failures: Failures,
        params: Any,
        data: Any,
        keys: Any,
        told: dict[str, Any],
        also: tuple[str, ...],
    ) -> Any:
        """Maps a function of one client, told what it takes by name; it fails, and keeps its state, as is said."""
        names = _by_name(fn)
        needed = {*names, *also, *(("round",) if "local" in names else ())}
        told = {name: value for name, value in told.items() if name in needed}
        keeps, leaves = "own" in also and "own" in told, "left_out" in told

        def step(params: PyTree, data: Any, key: jax.Array, told: dict[str, Any] = {}) -> Any:  # noqa: B006
            happens = fate(failures, key) if any(failures) else None
            named = told_to(fn, told)
            completed = happens.completed if happens is not None and failures.partial else None
            named |= {"local": self._local(told.get("round"), completed)} if "local" in names else {}
            named |= {"weight": self.weight} if "weight" in names else {}
            found = fn(params, data if happens is None else remaining(data, happens), key, **named)
            update, own = found if keeps else (found, None)
            update = update if happens is None else failed(update, happens, has_examples(data))
            update = left_out(update, told["left_out"] > 0) if leaves else update
            return kept(update, own, told["own"], has_examples(data)) if keeps else update

        step.__qualname__ = getattr(fn, "__qualname__", repr(fn))  # errors name the user's function
        return federated_map(step, params, data, keys, *([told] if told else []))

    def _local(self, round: Any, completed: jax.Array | None) -> Local:
        optimizer: Any = self.optimizer(round) if callable(self.optimizer) else self.optimizer
        return local_training(optimizer, self.weight, completed=completed, **self.amount)

    def check(self, given: list[str]) -> None:
        """Refuses functions that take what no round gives, and arguments that no function takes."""
        for fn in filter(None, (self.method.client_update, self.method.first)):
            unknown = [name for name in _by_name(fn, required=True) if name not in self._names]
            if unknown:
                raise TypeError(
                    f"a function of one client takes by name {sorted(self._names)}; got {unknown} in "
                    f"{getattr(fn, '__name__', fn)}. Bind it with functools.partial, or declare it in the Method."
                )
        names = _by_name(self.method.client_update)
        trains = "local" in names
        unused = [] if trains else [name for name in given if not (name == "client_weight" and "weight" in names)]
        if unused:
            raise TypeError(f"this method does not train as the arguments say; got {unused}. Leave them out.")
        if self.failures.partial and not trains:
            raise TypeError(
                f"a client update that is left incomplete trains with local.train; got {self.failures} for one that "
                "does not take local. Take it by name."
            )

    @property
    def _names(self) -> set[str]:
        declared = {"own": self.method.init_client, "context": self.method.context, "first": self.method.first}
        return {"local", "weight", "id"} | {name for name, part in declared.items() if part is not None}


def _by_name(fn: Callable[..., Any], *, required: bool = False) -> tuple[str, ...]:
    """Returns what a function takes by name alone; all that there is, if it takes any name."""
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return () if required else ("local", "weight", "id", "own", "context", "first")
    names = [p for p in parameters if p.kind is p.KEYWORD_ONLY and not (required and p.default is not p.empty)]
    return tuple(p.name for p in names)


def told_to(fn: Callable[..., Any], told: dict[str, Any]) -> dict[str, Any]:
    """Returns of all that a client is told what a function takes by name: for a client update that calls others."""
    return {name: told[name] for name in _by_name(fn) if name in told}


def left_out(update: ClientUpdate, is_left_out: jax.Array) -> ClientUpdate:
    """Returns a client's second update; left out, and counted once, if the first one was left out as not finite."""
    return checked(update._replace(weight=jnp.where(is_left_out, jnp.nan, update.weight)))


def kept(update: ClientUpdate, new: PyTree, own: PyTree, present: jax.Array) -> tuple[ClientUpdate, PyTree]:
    """Returns the update and what the client keeps: its new state, or the old one, as `Method` promises."""
    inexact = [x for x in jax.tree.leaves(new) if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = jnp.all(jnp.stack([jnp.array(True), *(jnp.all(jnp.isfinite(x)) for x in inexact)]))
    arrives = present & (update.weight > 0)
    metrics = {**update.metrics, "num_non_finite_states": (arrives & ~finite).astype(jnp.int32)}
    state = jax.tree.map(lambda after, before: jnp.where(arrives & finite, after, before), new, own)
    return update._replace(metrics=metrics), state


def round_metrics(sums: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Divides the summed ratios, passes on the counts, and adds what aggregators measured."""
    ratios = {name: x for name, x in sums.items() if isinstance(x, Ratio)}
    counts = {name: x for name, x in sums.items() if name not in ratios}
    return {**finalize_metrics(ratios), **counts, **measured}


class Scaled(NamedTuple):
    """The state of `scaled`: the last round's factor, float32 ``[]``, 1 at first."""

    scale: jax.Array


def scaled(scale: Callable[[PyTree, dict[str, Any]], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """Multiplies the aggregated delta by ``(delta, metrics) -> scale``; to be chained before a server's optimizer."""

    def update(updates: PyTree, state: Any, params: PyTree = None, metrics: Any = None, **_: Any) -> Any:
        del state, params
        factor = scale(updates, metrics)
        return jax.tree.map(lambda d: factor * d, updates), Scaled(factor)

    return optax.GradientTransformationExtraArgs(lambda params: Scaled(jnp.float32(1)), update)
