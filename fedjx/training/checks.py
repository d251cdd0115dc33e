"""What a round is made of is checked when an algorithm is built, and what it is called with when it is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import jax
import jax.numpy as jnp
import optax

from fedjx.aggregation.broadcast import Broadcaster
from fedjx.aggregation.error_feedback import StatefulAggregator
from fedjx.aggregation.mean import mean
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.names import PyTree
from fedjx.core.language.placed import FederatedValue
from fedjx.core.language.types import member_type, notation
from fedjx.training.each_client import takes_positional
from fedjx.training.failures import Failures
from fedjx.training.method import InitClient, Method


def check_delta(
    name: str, update: FederatedValue, state: FederatedValue, like: Callable[[PyTree], PyTree] | None
) -> None:
    """Refuses deltas that are not of the structure and shapes for which the aggregator's state was made."""
    params, found = state.type.member.params, update.type.member.delta
    expected = params if like is None else jax.eval_shape(like, params)
    shapes = [(jax.tree.structure(tree), [x.shape for x in jax.tree.leaves(tree)]) for tree in (expected, found)]
    if shapes[0] != shapes[1]:
        raise TypeError(
            f"what clients send is like the parameters, or like what Method({name}=...) makes of them; got "
            f"{notation(found)} instead of {notation(expected)}. Say what it is like."
        )


def check_method(method: Method[InitClient | None]) -> None:
    """Refuses parts of a method that are no functions, or not of what a round calls them with."""
    takes = {
        "init": ("key",),
        "client_update": ("params", "data", "key"),
        "server": ("server_optimizer",),
        "init_client": ("state",),
        "sent": ("state",),
        "context": ("state",),
        "first": ("params", "data", "key"),
        "bounded_metrics": ("update",),
        "delta": ("params",),
        "first_delta": ("params",),
    }
    for name, names in takes.items():
        part = getattr(method, name)
        wanted = f"Method({name}=...) is a function of ({', '.join(names)})"
        if part is None:
            continue
        if not callable(part):
            raise TypeError(f"{wanted}; got a {type(part).__name__}. Write lambda {', '.join(names)}: ...")
        if not takes_positional(part, len(names)):
            raise TypeError(f"{wanted}; got {part!r}, which does not take {len(names)}. Change its parameters.")


def check_bounded(method: Method[InitClient | None], aggregator: Aggregator | StatefulAggregator | None) -> None:
    """Refuses an aggregator that bounds no client by itself where the server takes more of clients than their mean."""
    if method.bounded_metrics is not None and getattr(aggregator or mean(), "bounded", None) is None:
        raise ValueError(
            "the server of this method takes a number of each client's change besides their mean, and so needs an "
            "aggregator that says what it makes of one change, a mean, clipped or compressed; got one that does not. "
            "Take such as clip_by_norm(max_norm=1.0), or fed_avg with this one."
        )


def check_private(method: Method[InitClient | None], aggregator: Aggregator | StatefulAggregator | None) -> None:
    """Refuses a private aggregator that a method would call twice a round: its event is of one call."""
    if method.first is not None and getattr(aggregator, "event", None) is not None:
        raise ValueError(
            "this method passes over the clients twice a round, and an account of a private aggregator is of one pass; "
            "got one with noise. Take a method of one pass, such as fed_avg, or an aggregator without noise."
        )


class Withheld:
    """Stands for the clients' exact metrics where the server has a private aggregator: who reads it is told."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ValueError(
            "with a private aggregator the server may read nothing exact of its clients, or the model is outside of "
            "the guarantee; got a method or a server optimizer that reads the round's metrics. Take another one, such "
            "as fed_avg, or an aggregator without noise."
        )

    def __getitem__(self, name: object) -> NoReturn:
        self.__getattr__(str(name))

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __getitem__
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __getitem__


def check_key(key: jax.Array) -> None:
    """Refuses what is no random key."""
    of_old = jnp.shape(key) == (2,) and key.dtype == jnp.uint32  # jax.random.PRNGKey
    if not of_old and (jnp.shape(key) or not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key)):
        raise TypeError(f"init takes a random key; got {notation(member_type(key))}. Pass jax.random.key(0).")


def check_parts(
    client_optimizer: object,
    server_optimizer: object,
    aggregator: object,
    broadcaster: object,
    client_weight: object,
    failures: object,
) -> None:
    """Refuses arguments of a round that are something else, when the algorithm is built."""
    if getattr(client_optimizer, "__module__", "").startswith("optax") and callable(client_optimizer):
        raise TypeError(
            f"client_optimizer is an optimizer, or a function of the round; got {client_optimizer!r} itself. Call it: "
            "optax.sgd(0.1)."
        )
    if callable(client_optimizer) and not takes_positional(client_optimizer, 1):
        raise TypeError(
            "client_optimizer is an optimizer, or a function of the round that makes one; got a function that does not "
            f"take one argument, {client_optimizer!r}. Pass the optimizer itself, or lambda round: ..."
        )
    kinds: dict[str, tuple[object, type | tuple[type, ...], str]] = {
        "client_optimizer": (
            client_optimizer if not callable(client_optimizer) else None,
            optax.GradientTransformation,
            "optax.sgd(0.1)",
        ),
        "server_optimizer": (server_optimizer, optax.GradientTransformation, "optax.sgd(1.0)"),
        "aggregator": (aggregator, (Aggregator, StatefulAggregator), "one of fedjx.aggregation, called"),
        "broadcaster": (broadcaster, Broadcaster, "fedjx.aggregation.broadcast()"),
        "failures": (failures, Failures, "fedjx.training.Failures(dropped=0.1)"),
    }
    for name, (given, kind, example) in kinds.items():
        if given is not None and not isinstance(given, kind):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise TypeError(f"{name} must be a value of {names}; got {given!r}. Pass {example}.")
    if client_weight is not None and not callable(client_weight):
        raise TypeError(
            f"client_weight is a function of a client's number of examples; got {client_weight!r}. Pass "
            "fedjx.aggregation.uniform."
        )
