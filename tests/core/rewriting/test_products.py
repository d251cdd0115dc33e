"""Products over several axes: the same numbers, over one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.rewrite import mapped, rewritten


def equations(name: str, fn, *args) -> list[jaxprs.Equation]:
    program, _ = jaxprs.trace(lambda *own: rewritten(lambda _, own: fn(*own), (), own), *args)
    return [eqn for eqn in program.equations if jaxprs.name_of(eqn) == name]


def contractions(fn, *args) -> list[tuple[int, ...]]:
    products = equations("dot_general", fn, *args)
    return [tuple(map(len, eqn.params["dimension_numbers"][0])) for eqn in products]


def dense(kernel, x):
    return jnp.sum(jnp.sin(x @ kernel))


@pytest.mark.parametrize(
    ("places", "inputs", "outputs", "turned"),
    [
        ((41,), 13, 7, 1),
        ((3, 7), 13, 7, 1),
        ((5, 1, 3), 11, 1, 1),
        ((41,), 7, 13, 0),  # XLA is quick
        ((41,), 7, 7, 0),
        ((7,), 13, 7, 0),  # turning the result is as much work as the product
        ((), 13, 7, 0),
    ],
)
def test_a_gradient_of_more_rows_than_columns_is_turned_in_the_end(places, inputs, outputs, turned):
    rng = np.random.default_rng(0)
    kernel, x = (rng.normal(size=shape).astype(np.float32) for shape in ((inputs, outputs), (*places, inputs)))
    grad = jax.grad(dense, argnums=(0, 1))
    assert len(equations("optimization_barrier", grad, kernel, x)) == turned
    expected = jax.jit(grad)(kernel, x)
    for num_clients in (1, 2):
        own = (np.stack([kernel] * num_clients), np.stack([x] * num_clients))
        got = jax.jit(lambda *own: mapped(lambda _, own: grad(*own), (), own))(*own)
        for g, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(g, np.stack([e] * num_clients), rtol=1e-5, atol=1e-5)


def test_a_turned_gradient_can_be_differentiated():
    rng = np.random.default_rng(0)
    kernel, x = (rng.normal(size=shape).astype(np.float32) for shape in ((13, 7), (41, 13)))

    def size_of_gradient(kernel):
        return jnp.sum(jnp.square(jax.grad(dense)(kernel, x)))

    got = jax.jit(jax.grad(lambda kernel: rewritten(lambda _, own: size_of_gradient(own), (), kernel)))(kernel)
    np.testing.assert_allclose(got, jax.jit(jax.grad(size_of_gradient))(kernel), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("left", "right", "axes", "batch", "merged"),
    [
        ((2, 3, 4), (2, 3, 5), ((0, 1), (0, 1)), ((), ()), 1),
        ((4, 2, 3), (2, 3, 5), ((1, 2), (0, 1)), ((), ()), 1),
        ((2, 3, 4), (3, 2, 5), ((0, 1), (1, 0)), ((), ()), 2),  # in another order
        ((2, 4, 3), (2, 5, 3), ((0, 2), (0, 2)), ((), ()), 2),  # apart
        ((6, 2, 3, 4), (6, 2, 3, 5), ((1, 2), (1, 2)), ((0,), (0,)), 2),  # of each of a batch
        ((3, 4), (3, 5), ((0,), (0,)), ((), ()), 1),
    ],
)
def test_neighbouring_axes_become_one(left, right, axes, batch, merged):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=shape).astype(np.float32) for shape in (left, right))

    def product(x, y):
        return lax.dot_general(x, y, (axes, batch))

    assert contractions(product, x, y) == [(merged, merged)]
    got = jax.jit(lambda *own: mapped(lambda _, own: product(*own), (), own))(np.stack([x, 2 * x]), np.stack([y, y]))
    once = np.asarray(product(x, y))
    np.testing.assert_allclose(got, np.stack([once, 2 * once]), rtol=1e-5, atol=1e-5)


def test_a_dense_layer_at_every_place_has_the_same_gradients():
    graph, params = nnx.split(nnx.Linear(4, 5, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    grad = jax.grad(lambda params, x: jnp.sum(jnp.sin(nnx.merge(graph, params)(x))), argnums=(0, 1))
    assert set(contractions(grad, params, x)) == {(1, 1)}
    got = jax.jit(lambda p, x: rewritten(lambda _, own: grad(*own), (), (p, x)))(params, x)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(jax.jit(grad)(params, x)), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5)
