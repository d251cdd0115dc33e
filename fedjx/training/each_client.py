"""The clients of a round: a method's functions of one client, told what they take by name, failing as is drawn."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import (
    federated_broadcast,
    federated_client_ids,
    federated_zip,
)
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import all_finite
from fedjx.training.client import (
    ClientOptimizer,
    ClientUpdate,
    Local,
    LocalAmount,
    drop_non_finite,
    has_examples,
    local_training,
    zeroed_if_non_finite,
)
from fedjx.training.failures import Failures, failed, fate, may_happen, remaining
from fedjx.training.method import First, InitClient, Method, Reported

# From a number of examples, and by name the client's id if it takes that, to the client's weight.
ClientWeight = Callable[..., jax.Array]
Told = dict[str, FederatedValue]  # what clients may be told, by name, at the clients


class EachClient(NamedTuple):
    """The clients of a round: the method's functions of one client, and how they are run."""

    method: Method[InitClient | None]
    optimizer: ClientOptimizer | None
    weight: ClientWeight
    amount: LocalAmount
    failures: Failures

    def told(self, state: FederatedValue, own: FederatedValue | None) -> Told:
        """Returns all that clients may be told, placed there; what none of them takes is not sent."""
        told = {"id": federated_client_ids()} | ({} if own is None else {"own": own})
        if self.method.context is not None:
            told["context"] = federated_broadcast(federated_map(self.method.context, state))
        return told | ({"round": federated_broadcast(state.round)} if callable(self.optimizer) else {})

    def first(self, params: FederatedValue, data: FederatedValue, keys: FederatedValue, told: Told) -> FederatedValue:
        """Runs the pass before the round; returns what clients send."""
        assert self.method.first is not None
        return self._each(self.method.first, self.failures._replace(partial=0), params, data, keys, told, ())

    def update(
        self, params: FederatedValue, data: FederatedValue, keys: FederatedValue, told: Told, *first: PyTree
    ) -> tuple[FederatedValue, FederatedValue | None]:
        """Runs the client update; returns what clients send, and what they keep, or None."""
        if first:
            before, result = first
            told = {**told, "left_out": before.metrics["num_non_finite_clients"]}
            told["first"] = federated_zip(First(before, federated_broadcast(result)))
        sent = self._each(self.method.client_update, self.failures, params, data, keys, told, ("own", "left_out"))
        return (sent[0], sent[1]) if "own" in told else (sent, None)

    def _each(
        self,
        fn: Callable[..., Reported],
        failures: Failures,
        params: FederatedValue,
        data: FederatedValue,
        keys: FederatedValue,
        told: Told,
        also: tuple[str, ...],
    ) -> FederatedValue:
        """Maps a function of one client, told what it takes by name; it fails, and keeps its state, as is said."""
        names = _by_name(fn)
        by_id = failures.forged is not None or (self._weighs_by_id and {"local", "weight"} & {*names})
        also = (*also, *(("id",) if by_id else ()))
        needed = {*names, *also, *(("round",) if "local" in names else ())}
        told = {name: value for name, value in told.items() if name in needed}
        keeps, leaves = "own" in also and "own" in told, "left_out" in told

        def step(params: PyTree, data: PyTree, key: jax.Array, told: dict[str, PyTree] = {}) -> Reported:  # noqa: B006
            happens = fate(failures, key) if any(map(may_happen, failures.probabilities)) else None
            named = told_to(fn, told)
            completed = happens.completed if happens is not None and may_happen(failures.partial) else None
            by_id = self._weighs_by_id and "id" in told  # not told where nobody is weighed
            weight = functools.partial(self.weight, id=told["id"]) if by_id else self.weight
            named |= {"local": self._local(told.get("round"), completed, weight)} if "local" in names else {}
            named |= {"weight": weight} if "weight" in names else {}
            found = fn(params, data if happens is None else remaining(data, happens), key, **named)
            update, own = _reported(fn, found, keeps)
            update = drop_non_finite(update) if fn is self.method.first else update
            update = update if happens is None else failed(update, happens, has_examples(data))
            update = update if failures.forged is None else drop_non_finite(failures.forged(told["id"], update))
            update = left_out(update, told["left_out"] > 0) if leaves else update
            return kept(update, own, told["own"], has_examples(data)) if keeps else update

        step.__qualname__ = getattr(fn, "__qualname__", repr(fn))  # errors name the user's function
        return federated_map(step, params, data, keys, *([told] if told else []))

    @property
    def _weighs_by_id(self) -> bool:
        return "id" in inspect.signature(self.weight).parameters

    def _local(self, round: PyTree, completed: jax.Array | None, weight: ClientWeight) -> Local:
        optimizer = self.optimizer(round) if callable(self.optimizer) else self.optimizer
        if not isinstance(optimizer, optax.GradientTransformation | None):
            raise TypeError(
                f"client_optimizer as a function of the round makes an optimizer; got {optimizer!r} from it. Return "
                "optax.sgd(...), not the learning rate."
            )
        return local_training(optimizer, weight, fails_after=completed, **self.amount)

    def check(self, given: list[str]) -> None:
        """Refuses functions that take what no round gives, and arguments that no function takes."""
        functions = [fn for fn in (self.method.client_update, self.method.first) if fn is not None]
        for fn in functions:
            known = self._names - ({"first"} if fn is self.method.first else set())
            unknown = [name for name in _by_name(fn, required=True) if name not in known]
            if unknown:
                raise TypeError(
                    f"a function of one client takes by name {sorted(known)}; got {unknown} in "
                    f"{getattr(fn, '__name__', fn)}. Bind it with functools.partial, or declare it in the Method."
                )
        names = {name for fn in functions for name in _by_name(fn)}
        trains = "local" in names
        unused = [] if trains else [name for name in given if not (name == "client_weight" and "weight" in names)]
        if unused:
            raise TypeError(f"this method does not train as the arguments say; got {unused}. Leave them out.")
        if may_happen(self.failures.partial) and not trains:
            raise TypeError(
                f"a client update that is left incomplete trains with local.train; got {self.failures} for one that "
                "does not take local. Take it by name."
            )

    @property
    def _names(self) -> set[str]:
        declared = {"own": self.method.init_client, "context": self.method.context, "first": self.method.first}
        return {"local", "weight", "id"} | {name for name, part in declared.items() if part is not None}


def _by_name(fn: Callable[..., object], *, required: bool = False) -> tuple[str, ...]:
    """Returns what a function takes by name alone; all that there is, if it takes any name."""
    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    parameters = [p for p in inspect.signature(fn).parameters.values() if p.name not in bound]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return () if required else ("local", "weight", "id", "own", "context", "first")
    names = [p for p in parameters if p.kind is p.KEYWORD_ONLY and not (required and p.default is not p.empty)]
    return tuple(p.name for p in names)


def takes_positional(fn: Callable[..., object], number: int) -> bool:
    """Tells whether a function can be called with so many arguments by position, whatever it needs by name."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except ValueError:  # of a function that is built in nothing is known
        return True
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in positional) <= number <= len(positional)


def _reported(fn: Callable[..., Reported], found: Reported, keeps: bool) -> tuple[ClientUpdate, PyTree]:
    """Returns what a function of one client reports, and keeps; refuses what is neither."""
    pair = found if keeps and type(found) is tuple and len(found) == 2 else (found, None)
    if not isinstance(pair[0], ClientUpdate) or (keeps and pair[0] is found):
        wanted = (
            "(ClientUpdate, own), as its Method has init_client" if keeps else "ClientUpdate(delta, weight, metrics)"
        )
        raise TypeError(
            f"a function of one client returns {wanted}; got {jax.tree.map(jnp.shape, found)} of "
            f"{getattr(fn, '__name__', fn)}. Change what it returns, or the Method."
        )
    update = pair[0]
    return update._replace(weight=jnp.asarray(update.weight)), pair[1]


def told_to(fn: Callable[..., object], told: dict[str, PyTree]) -> dict[str, PyTree]:
    """Returns of all that a client is told what a function takes by name: for a client update that calls others."""
    return {name: told[name] for name in _by_name(fn) if name in told}


def left_out(update: ClientUpdate, is_left_out: jax.Array) -> ClientUpdate:
    """Returns a client's second update; left out, and counted once, if the first one was left out as not finite."""
    return zeroed_if_non_finite(update._replace(weight=jnp.where(is_left_out, jnp.nan, update.weight)))


def kept(update: ClientUpdate, new: PyTree, own: PyTree, present: jax.Array) -> tuple[ClientUpdate, PyTree]:
    """Returns the update and what the client keeps: its new state, or the old one, as `Method` promises."""
    finite = all_finite(new)
    arrives = present & (update.weight > 0)
    metrics = {**update.metrics, "num_non_finite_states": (arrives & ~finite).astype(jnp.int32)}
    state = jax.tree.map(lambda after, before: jnp.where(arrives & finite, after, before), new, own)
    return update._replace(metrics=metrics), state
