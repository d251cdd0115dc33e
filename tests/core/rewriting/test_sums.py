"""Sums over leading axes and the last: the same number, in two steps, and only where it pays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.rewrite import mapped, rewritten


def equations(name: str, fn, *args) -> list[jaxprs.Equation]:
    program, _ = jaxprs.trace(lambda *own: rewritten(lambda _, own: fn(*own), (), own), *args)
    return [eqn for eqn in program.equations if jaxprs.name_of(eqn) == name]


def sums_of(fn, *args) -> list[tuple[int, ...]]:
    return [eqn.params["axes"] for eqn in equations("reduce_sum", fn, *args)]


@pytest.mark.parametrize(
    ("shape", "axes", "steps"),
    [
        ((2, 9, 8, 3, 4), (1, 2, 4), [(0, 1), (2,)]),  # groups of channels
        ((70, 3, 4), (0, 2), [(0,), (1,)]),
        ((9, 8, 4), (1, 2), [(1, 2)]),  # neighbours at the end
        ((9, 8, 4), (0, 1), [(0, 1)]),  # the last one stays
        ((9, 2, 4), (0, 2), [(0, 2)]),  # too few terms
        ((70, 3, 4), (0, 1, 2), [(0, 1, 2)]),
    ],
)
def test_a_sum_is_taken_in_the_steps_that_are_fast(shape, axes, steps):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert sums_of(lambda x: jnp.sum(x, axes), x) == steps
    assert len(equations("optimization_barrier", lambda x: jnp.sum(x, axes), x)) == len(steps) - 1
    got = jax.jit(lambda x: mapped(lambda _, own: jnp.sum(own, axes), (), x))(np.stack([x, 2 * x]))
    np.testing.assert_allclose(got, np.stack([x, 2 * x]).sum(tuple(a + 1 for a in axes)), rtol=1e-5, atol=1e-4)


def test_whole_numbers_are_left():
    assert sums_of(lambda x: jnp.sum(x, (0, 2)), np.ones((70, 3, 4), np.int32)) == [(0, 2)]


def test_group_normalisation_and_its_gradients_are_the_same():
    graph, params = nnx.split(nnx.GroupNorm(8, num_groups=2, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(2, 9, 9, 8)).astype(np.float32)

    def loss(params, x):
        return jnp.sum(jnp.sin(nnx.merge(graph, params)(x)))

    grad = jax.grad(loss, argnums=(0, 1))
    assert (0, 1) in sums_of(lambda x: loss(params, x), x)
    got = jax.jit(lambda p, x: rewritten(lambda _, own: grad(*own), (), (p, x)))(params, x)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(jax.jit(grad)(params, x)), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)
