"""All methods and aggregators, of parameters of a dtype, as programs of two rounds that one compiles once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjx.algorithms import delta_sgd, ema, gaussian_mixture, kmeans, kmeans_start, mixture_around, pca
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.values import Clients
from fedjx.data import Cohort
from fedjx.models import Model
from fedjx.models.model import Variables
from tests.aggregation.case import law_cases
from tests.aggregation.test_laws import Members
from tests.algorithms.problems import NUM_FEATURES, federated_data, normed_model, with_domains
from tests.algorithms.test_every_combination import methods_of, toy

DATA = with_domains(federated_data((2, 1, 4)))
MOMENTUM = optax.sgd(0.7, momentum=0.9)
OWN_SERVER = {"fed_sgd", "fed_avgm", "fed_adagrad", "fed_adam", "fed_yogi"}  # their server's optimizer is theirs


class Program(NamedTuple):
    """A computation, its arguments, and what those of the next round are, of these and of what came."""

    step: Any
    arguments: tuple[Any, ...]
    after: Callable[[tuple[Any, ...], Any], tuple[Any, ...]]


def floats_of(tree: Any, dtype: Any) -> Any:
    """Casts the floats of a tree."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def of_dtype(model: Model, dtype: Any) -> Model:
    """Returns a model whose parameters have a dtype; batch statistics are float32 at least, or Flax warns."""

    def init(key: Any) -> Any:
        params = model.init(key)
        if isinstance(params, Variables):
            stats = floats_of(params.batch_stats, jnp.promote_types(dtype, jnp.float32))
            return Variables(floats_of(params.params, dtype), stats)
        return floats_of(params, dtype)

    return model._replace(init=init)


def algorithms(dtype: Any) -> dict[str, Callable[[], Any]]:
    """Returns functions that build all methods, with momentum on both sides where there is a choice."""
    model = of_dtype(toy(), dtype)
    methods = methods_of(model, of_dtype(normed_model(), dtype))
    adaptive = optax.chain(delta_sgd(), optax.trace(0.5))
    centers = np.random.default_rng(0).normal(size=(3, NUM_FEATURES))

    def first(key: Any) -> Any:
        del key
        return jnp.asarray(centers, dtype)

    return {
        **{
            name: functools.partial(
                method, shuffle=False, **({} if name in OWN_SERVER else {"server_optimizer": MOMENTUM})
            )
            for name, method in methods.items()
            if name != "fed_sgd"
        },
        "fed_sgd": methods["fed_sgd"],
        "delta_sgd": lambda: methods["fed_avg"](client_optimizer=adaptive, num_epochs=2),
        "ema": lambda: ema(methods["fed_avg"](shuffle=False), 0.5),
        "kmeans": lambda: kmeans(init=first, memory=0.5),
        "gaussian_mixture": lambda: gaussian_mixture(
            init=lambda key: mixture_around(first(key), full=True), min_variance=0.1
        ),
    }


# What has no parameters to say it is of the dtype that JAX takes for floats.
UNTYPED = {"pca": lambda: pca(2, num_features=NUM_FEATURES), "kmeans_start": lambda: kmeans_start(2, num_features=5)}
METHODS = sorted({**algorithms(jnp.float32), **UNTYPED})
AGGREGATORS = sorted(law_cases())


def of_method(name: str, dtype: Any) -> Program:
    """Returns a method's round of three clients, of one, of a half and of two batches."""
    algorithm: Any = {**algorithms(dtype), **UNTYPED}[name]()
    state = algorithm.init(jax.random.key(0))
    clients = Cohort(DATA, range(3), batch_size=2).whole(num_steps=2)
    if not isinstance(algorithm, StatefulAlgorithm):
        return Program(algorithm.next, (state, clients), lambda arguments, came: (came[0], arguments[1]))
    first = jax.tree.map(lambda x: jnp.stack([x] * 3), algorithm.init_client(state))
    own = Clients.of(first, ids=clients.id, mask=clients.mask)
    return Program(algorithm.next, (state, clients, own), lambda arguments, came: (came[0], arguments[1], came[2]))


def of_aggregator(name: str, dtype: Any) -> Program:
    """Returns an aggregator's round of seven clients."""
    aggregator = law_cases()[name].aggregator
    value, weight = Members().placed()
    value = Clients(floats_of(jax.tree.map(jnp.asarray, value.value), dtype), value.mask, value.id)
    state = aggregator.init(jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), value.value))
    key = jax.random.key(5)
    return Program(aggregator.next, (key, state, value, weight), lambda arguments, came: (key, came[0], *arguments[2:]))


def program(name: str, dtype: Any) -> Program:
    """Returns the program of a name in `METHODS` or `AGGREGATORS`."""
    return (of_method if name in METHODS else of_aggregator)(name, dtype)


def two_rounds(run: Program, step: Callable[..., Any]) -> list[Any]:
    """Returns what comes of two rounds."""
    first = step(*run.arguments)
    return [first, step(*run.after(run.arguments, first))]


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields the operations of a traced program, those of inner ones too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for parameter in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
