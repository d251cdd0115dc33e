"""Hyper-parameters that JAX traces: `optax.inject_hyperparams` over the library's optimizers, grids over the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx import aggregation
from fedjx import algorithms as methods
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.types import type_of
from fedjx.core.language.values import Clients
from fedjx.data import Cohort
from fedjx.training import Failures
from tests.algorithms.problems import assert_trees_close
from tests.algorithms.test_every_combination import SGD, toy
from tests.worlds.programs import DATA

OPTIMIZERS: dict[str, tuple[Callable[..., Any], dict[str, float]]] = {
    "server_adagrad": (methods.server_adagrad, {"learning_rate": 0.1, "b1": 0.5, "tau": 1e-2}),
    "server_adam": (methods.server_adam, {"learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "tau": 1e-2}),
    "server_yogi": (methods.server_yogi, {"learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "tau": 1e-2}),
    "delta_sgd": (methods.delta_sgd, {"initial_step": 0.3, "amplification": 1.5, "growth": 0.2}),
    "proximal": (methods.proximal, {"strength": 0.3}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_optimizers_take_injected_hyperparameters(name, dtype):
    build, numbers = OPTIMIZERS[name]
    plain, injected = build(**numbers), optax.inject_hyperparams(build)(**numbers)
    params = {"w": jnp.arange(3, dtype=dtype), "b": jnp.ones((), dtype)}
    steps = jax.jit(lambda g, s, t, p: (plain.update(g, s, p), injected.update(g, t, p)))
    states, gradient = (plain.init(params), injected.init(params)), jax.tree.map(lambda x: 0.5 * x + 1, params)
    for _ in range(3):
        (expected, after), (found, injected_after) = steps(gradient, *states, params)
        assert type_of(found) == type_of(params)
        assert type_of((after, injected_after)) == type_of(states)
        narrow, wide = (jax.tree.map(lambda x: np.asarray(x, np.float32), tree) for tree in (found, expected))
        assert_trees_close(narrow, wide, rtol=1e-6 if dtype == jnp.float32 else 0.05)  # optax rounds what it injects
        states = after, injected_after
        params = optax.apply_updates(params, found)
    changed = injected.update(
        gradient,
        states[1]._replace(hyperparams={k: 0.5 * x for k, x in states[1].hyperparams.items()}),
        jax.tree.map(lambda p: p + 1, params),
    )[0]
    again = injected.update(gradient, states[1], jax.tree.map(lambda p: p + 1, params))[0]
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), changed, again)))


def trained(**own: Any) -> Any:
    return methods.fed_avg(toy(), client_optimizer=SGD, **own)


def aggregated(aggregator: Any) -> Any:
    return trained(aggregator=aggregator)


TRACED: dict[str, Callable[[Any], Any]] = {
    "fed_sgd": lambda v: methods.fed_sgd(toy(), learning_rate=v),
    "fed_adam": lambda v: methods.fed_adam(toy(), client_optimizer=optax.sgd(v), learning_rate=v, b1=v, b2=v, tau=v),
    "fed_avgm": lambda v: methods.fed_avgm(toy(), client_optimizer=SGD, learning_rate=v, momentum=v),
    "fed_prox": lambda v: methods.fed_prox(toy(), client_optimizer=SGD, proximal_strength=v),
    "fed_prox_adaptive": lambda v: methods.fed_prox(toy(), client_optimizer=SGD, proximal_strength=v, adaptive=True),
    "q_fed_avg": lambda v: methods.q_fed_avg(toy(), client_optimizer=SGD, q=v, lipschitz=v),
    "fed_exp": lambda v: methods.fed_exp(toy(), client_optimizer=SGD, epsilon=v),
    "fed_dyn": lambda v: methods.fed_dyn(toy(), client_optimizer=SGD, num_clients=3, proximal_strength=v),
    "p_fed_me": lambda v: methods.p_fed_me(
        toy(), client_optimizer=SGD, proximal_strength=v, inner_optimizer=optax.sgd(v), num_inner_steps=1
    ),
    "per_fed_avg": lambda v: methods.per_fed_avg(
        toy(), client_optimizer=SGD, inner_learning_rate=v, variant="hessian_free", difference=v
    ),
    "apfl": lambda v: methods.apfl(toy(), client_optimizer=SGD, mixing=v),
    "ditto": lambda v: methods.ditto(toy(), client_optimizer=SGD, proximal_strength=v),
    "agnostic_fed_avg": lambda v: methods.agnostic_fed_avg(
        toy(), client_optimizer=SGD, domain_weights=[0.2, 0.3, 0.5], domain_learning_rate=v
    ),
    "ema": lambda v: methods.ema(trained(), v),
    "failures": lambda v: trained(failures=Failures(v, v, v)),
    "kmeans": lambda v: methods.kmeans(init=lambda key: jnp.eye(5), memory=v, initial_weight=v),
    "gaussian_mixture": lambda v: methods.gaussian_mixture(
        init=lambda key: methods.mixture_around(jnp.eye(5)), min_variance=v
    ),
    "clip_by_norm": lambda v: aggregated(aggregation.clip_by_norm(max_norm=v)),
    "clip_by_value": lambda v: aggregated(aggregation.clip_by_value(max_value=v)),
    "clip_adaptively": lambda v: aggregated(aggregation.clip_adaptively(quantile=v, initial=v, learning_rate=v)),
    "zero_above": lambda v: aggregated(aggregation.zero_above(threshold=v)),
    "zero_outliers": lambda v: aggregated(aggregation.zero_outliers(quantile=v, initial=v, multiplier=v, increment=v)),
    "centred_clipping": lambda v: aggregated(aggregation.centred_clipping(bound=v)),
    "norm_bounding": lambda v: aggregated(aggregation.norm_bounding(bound=v)),
    "geometric_median": lambda v: aggregated(aggregation.geometric_median(smoothing=v)),
}


@pytest.mark.parametrize("name", TRACED)
def test_a_grid_of_hyperparameters_may_be_traced(name):
    """A round of parameters that keep their types, whatever is traced; a check that looks at it would raise."""

    def one_round(value: Any) -> Any:
        algorithm: Any = TRACED[name](value)
        state = algorithm.init(jax.random.key(0))
        clients = Cohort(DATA, range(3), batch_size=2).whole(num_steps=2)
        if not isinstance(algorithm, StatefulAlgorithm):
            return state.params, algorithm.next(state, clients)[0].params
        own = jax.tree.map(lambda x: jnp.stack([x] * 3), algorithm.init_client(state))
        states = Clients.of(own, ids=clients.id, mask=clients.mask)
        return state.params, algorithm.next(state, clients, states)[0].params

    before, after = jax.eval_shape(jax.vmap(one_round), jax.ShapeDtypeStruct((4,), jnp.float32))
    assert type_of(before) == type_of(after)
    assert all(x.shape[0] == 4 for x in jax.tree.leaves(after))
