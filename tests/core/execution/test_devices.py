"""How XLA is asked to compile a step for a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import fedjx
from fedjx.core.execution import devices
from fedjx.core.execution.devices import compiler_options


@pytest.fixture(autouse=True)
def _forget():
    compiler_options.cache_clear()
    yield
    compiler_options.cache_clear()


def test_options_that_this_xla_does_not_have_are_left_out(monkeypatch):
    monkeypatch.setattr(devices, "_CPU_OPTIONS", {"xla_no_such_option": True, "xla_cpu_enable_fast_math": False})
    assert compiler_options("cpu") == {"xla_cpu_enable_fast_math": False}
    monkeypatch.setattr(devices, "_CPU_OPTIONS", {"xla_no_such_option": True})
    compiler_options.cache_clear()
    assert compiler_options("cpu") is None
    assert compiler_options("cuda") is None


def test_without_any_of_them_a_round_has_the_same_result(monkeypatch):
    train, _ = fedjx.data.digits(num_clients=4)
    model = fedjx.models.mlp(10, input_shape=(8, 8, 1), hidden=(5,), scale=1 / 16)
    algorithm = fedjx.fed_avg(model, client_optimizer=optax.sgd(0.1))
    state, cohort = algorithm.init(jax.random.key(0)), fedjx.data.Cohort(train, [0, 3], batch_size=20)
    with_options, _ = algorithm.next.streamed(lanes=1)(state, cohort)
    monkeypatch.setattr(devices, "_CPU_OPTIONS", {})
    compiler_options.cache_clear()
    without, _ = algorithm.next.streamed(lanes=1)(state, cohort)
    jax.tree.map(np.testing.assert_array_equal, with_options.params, without.params)


def test_a_loop_updates_a_matrix_in_place():
    """Its old values are read by a product that the new ones do not need; without the option XLA copies them."""

    def step(_, carry):
        x, w = carry
        y = x @ w
        return x + (y * y) @ w.T, w - 0.1 * x.T @ y

    def copies(options) -> int:
        loop = jax.jit(lambda x, w: lax.fori_loop(0, 3, step, (x, w)), compiler_options=options)
        text = loop.lower(jnp.ones((8, 300)), jnp.ones((300, 301))).compile().as_text()
        return sum(" copy(" in line and "f32[300,301]" in line for line in text.splitlines())

    if compiler_options("cpu") is None:
        pytest.skip("this XLA has none of the options")
    assert copies(compiler_options("cpu")) < copies(None)


@pytest.mark.parametrize(("flags", "expected"), [("", 1), ("--xla_backend_optimization_level=2", None)])
def test_a_program_that_runs_once_is_compiled_in_less_time_unless_the_user_has_said_how(monkeypatch, flags, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    options = compiler_options("cpu", once=True) or {}
    assert options.get("xla_backend_optimization_level") == expected
    assert compiler_options("cuda", once=True) is None


def test_a_function_that_is_called_once_may_be_part_of_another_program(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # those of the tests name the option
    algorithm = fedjx.fed_avg(fedjx.models.mlp(3, input_shape=(4,), hidden=(5,)), client_optimizer=optax.sgd(0.1))
    key = jax.random.key(0)
    alone = algorithm.init(key)
    for within in (jax.jit(algorithm.init)(key), jax.jit(lambda: algorithm.init(key))()):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), alone.params, within.params)
    shapes = jax.eval_shape(algorithm.init, key)
    assert jax.tree.map(jnp.shape, shapes.params) == jax.tree.map(jnp.shape, alone.params)
    many = jax.vmap(algorithm.init)(jax.random.split(key, 3))
    assert {x.shape[0] for x in jax.tree.leaves(many.params)} == {3}
