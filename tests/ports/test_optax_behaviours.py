"""What optax's own tests ask of every transformation, asked of those that fedjx exports or builds.

They minimise, with real and complex parameters; keep types; are the same compiled, inside optax's wrappers and with
hyper-parameters that are data; take empty trees and extra arguments, and are still where nothing is to be done.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fedjx.algorithms import delta_sgd, proximal, server_adagrad, server_adam, server_yogi
from fedjx.algorithms.apfl import _within_0_1
from fedjx.algorithms.attacks import constrained, projected_descent
from fedjx.algorithms.fed_dyn import accumulated
from fedjx.algorithms.fed_prox import following_loss
from fedjx.training.batch_stats import trained_alone
from fedjx.training.domains import worst_domains
from fedjx.training.gradients import averaged, shift
from fedjx.training.method import scale_delta
from tests.algorithms.problems import assert_trees_close, assert_trees_equal


class Case(NamedTuple):
    """An optimizer, of a learning rate with which it finds both minima, and what it is not for."""

    make: Callable[[Any], optax.GradientTransformation]
    learning_rate: float = 1e-3
    is_real: bool = False
    needs_params: bool = False


def sgd(learning_rate: Any) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=0.9)


CASES = {
    "server_adagrad": Case(server_adagrad, 1.0),
    "server_adagrad_with_momentum": Case(lambda rate: server_adagrad(rate, b1=0.9), 1.0),
    "server_adam": Case(server_adam, 0.1),
    "server_yogi": Case(server_yogi, 0.1),
    "delta_sgd": Case(lambda rate: delta_sgd(initial_step=rate, amplification=1.0), 1e-3, needs_params=True),
    "proximal": Case(lambda rate: optax.chain(proximal(0.0), sgd(rate)), needs_params=True),
    "shift": Case(lambda rate: optax.chain(_shifted_by_nothing(), sgd(rate))),
    "averaged": Case(lambda rate: optax.chain(averaged(), sgd(rate))),
    "trained_alone": Case(lambda rate: trained_alone(sgd(rate))),
    "scale_delta": Case(lambda rate: optax.chain(scale_delta(lambda delta, metrics: metrics["one"]), sgd(rate))),
    "accumulated": Case(lambda rate: optax.chain(accumulated(1e-3, 10**6), sgd(rate))),
    "following_loss": Case(lambda rate: following_loss(sgd(rate), 0.1)),
    "worst_domains": Case(lambda rate: worst_domains(sgd(rate), np.ones(2, np.float32) / 2, 0.1, 3)),
    "constrained": Case(lambda rate: constrained(sgd(rate), 1.0), needs_params=True),
    "projected_descent": Case(lambda rate: projected_descent(sgd(rate), 100.0), needs_params=True),
    "within_0_1": Case(lambda rate: optax.chain(sgd(rate), _within_0_1()), is_real=True, needs_params=True),
}
METRICS = {
    "one": jnp.float32(1),
    "loss": jnp.float32(1),
    "num_examples": jnp.int32(5),
    "num_clients": jnp.int32(1),
    "domain_loss": jnp.ones(2),
    "domain_examples": jnp.ones(2, jnp.int32),
}
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64)
PARAMS = {"a": (-jnp.ones((2, 3)), jnp.ones((2, 5, 2))), "b": jnp.float32(0.5)}
GRADIENTS = jax.tree.map(jnp.negative, PARAMS)
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _shifted_by_nothing() -> optax.GradientTransformation:
    return optax.stateless(lambda g, params: shift(jax.tree.map(jnp.zeros_like, g)).update(g, optax.EmptyState())[0])


def step(optimizer: optax.GradientTransformation, gradient: Any, state: Any, params: Any) -> Any:
    return optax.with_extra_args_support(optimizer).update(gradient, state, params, metrics=METRICS)


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def types(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


# --- minima ---------------------------------------------------------------------------------------


def squared(x: jax.Array) -> jax.Array:
    return (x * x.conj()).real


def parabola(p: jax.Array) -> jax.Array:
    return squared(p - target(parabola, p.dtype)).sum()


def rosenbrock(p: jax.Array) -> jax.Array:
    return squared(target(rosenbrock, p.dtype)[0] - p[0]) + 10 * squared(p[1] - p[0] ** 2)


def target(fn: Callable, dtype: Any) -> jax.Array:
    a = 1 + 1j if jnp.issubdtype(dtype, jnp.complexfloating) else 1.0
    return jnp.array([a, -a, a] if fn is parabola else [a, a**2], dtype)


START = {parabola: jnp.array([-1.0, 10.0, 1.0]), rosenbrock: jnp.zeros(2)}


@each
def test_finds_the_minimum_of_real_and_complex_parameters(case):
    @jax.jit
    def found() -> Any:
        return [descended(fn, START[fn].astype(dtype)) for fn, dtype in tried]

    def descended(fn: Callable, start: jax.Array) -> jax.Array:
        def one(carry: Any, _: None) -> Any:
            params, state = carry
            # A descent goes against the conjugate of what JAX calls the gradient.
            updates, state = step(optimizer, jax.grad(fn)(params).conj(), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(one, (start, optimizer.init(start)), None, length=10_000)[0][0]

    optimizer = case.make(case.learning_rate)
    dtypes = (jnp.float32,) if case.is_real else (jnp.float32, jnp.complex64)
    tried = [(fn, dtype) for fn in START for dtype in dtypes]
    for (fn, dtype), params in zip(tried, found(), strict=True):
        expected = jnp.clip(target(fn, dtype), 0, 1) if case.is_real else target(fn, dtype)
        np.testing.assert_allclose(params, expected, atol=0.03, err_msg=f"{fn.__name__} of {dtype}")


# --- types ----------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("rate", ["number", "schedule", "injected"])
def test_keeps_the_types_of_updates_and_state(case, rate):
    value = {"number": 0.1, "schedule": lambda count: 0.1 / (1 + count), "injected": 0.1}
    if rate == "schedule" and case.make is CASES["delta_sgd"].make:
        pytest.skip("delta_sgd has a first step, no learning rate")
    # Injected hyper-parameters get the dtype of the parameters, and none of these is complex.
    for dtype in DTYPES[: -1 if case.is_real or rate == "injected" else None]:
        make = optax.inject_hyperparams(case.make) if rate == "injected" else case.make
        params, gradient = cast(PARAMS, dtype), cast(GRADIENTS, dtype)
        state = make(value[rate]).init(params)
        updates, after = jax.eval_shape(functools.partial(step, make(value[rate])), gradient, state, params)
        assert types(updates) == types(params), dtype
        assert types(after) == types(state), dtype
        assert types(jax.eval_shape(make(value[rate]).init, params)) == types(state)


# --- values ---------------------------------------------------------------------------------------


@each
def test_is_the_same_compiled_injected_and_in_optaxs_wrappers(case):
    optimizer = case.make(case.learning_rate)
    injected = optax.inject_hyperparams(case.make)(case.learning_rate)
    inside = {
        "if_finite": optax.apply_if_finite(optimizer, 3),
        "masked": optax.masked(optimizer, jax.tree.map(lambda x: True, PARAMS)),
        "partition": optax.partition({"all": optimizer}, jax.tree.map(lambda x: "all", PARAMS)),
    }

    def two_steps(optimizer: optax.GradientTransformation) -> Any:
        params, state, moved = PARAMS, optimizer.init(PARAMS), []
        for k in (1.0, 2.0):
            updates, state = step(optimizer, jax.tree.map(lambda g, k=k: k * g, GRADIENTS), state, params)
            params = optax.apply_updates(params, updates)
            moved.append(updates)
        return moved, state

    moved, state = two_steps(optimizer)
    compiled = jax.jit(lambda: {name: two_steps(x) for name, x in {**inside, "": optimizer, "in": injected}.items()})()
    assert_trees_close(compiled[""], (moved, state))
    assert_trees_close(compiled["in"][0], moved)
    assert_trees_close(compiled["in"][1].inner_state, state)
    for name in inside:
        assert_trees_close(compiled[name][0], moved)
    assert any(np.any(x != 0) for x in jax.tree.leaves(moved))


@each
def test_stays_where_the_gradient_is_zero_and_takes_empty_trees(case):
    optimizer = case.make(case.learning_rate)
    params = {"w": jnp.full((2, 0), 0.5), "b": jnp.full(3, 0.5), "none": None, "empty": {}}
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = step(optimizer, jax.tree.map(jnp.zeros_like, params), state, params)
        assert_trees_equal(updates, jax.tree.map(jnp.zeros_like, params))
    assert all(np.all(np.isfinite(x) | (np.asarray(x) == 1)) for x in jax.tree.leaves(state))
    assert optimizer.init({}) is not None
    assert step(optimizer, {}, optimizer.init({}), {})[0] == {}


@each
def test_state_lies_where_the_parameters_do(case):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    divided = NamedSharding(mesh, PartitionSpec("model"))
    params, gradient = (jax.device_put(jnp.ones((4, 2)), divided) for _ in range(2))
    optimizer = case.make(case.learning_rate)
    with jax.set_mesh(mesh):
        state = optimizer.init(params)
        updates, after = step(optimizer, gradient, state, params)
    for tree in (state, updates, after):
        large = [x for x in jax.tree.leaves(tree) if np.shape(x) == (4, 2)]
        assert all(x.sharding.is_equivalent_to(divided, 2) for x in large)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.needs_params])
def test_says_that_it_needs_the_parameters(name):
    optimizer = CASES[name].make(0.1)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(GRADIENTS, optimizer.init(PARAMS))
