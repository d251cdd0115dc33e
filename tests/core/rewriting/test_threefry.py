"""Random bits: the same to the bit as JAX's, under both of its schemes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.core.rewriting import jaxprs, threefry
from fedjx.core.rewriting.rewrite import rewritten

SHAPES = [(4096,), (4097,), (64, 65), (3, 5, 801), (9999, 1), (0,), ()]


def draws(shape: Any) -> Any:
    return lambda _, key: (
        jax.random.bits(key, shape),
        jax.random.bits(key, shape, jnp.uint16),
        jax.random.bits(key, shape, jnp.uint8),
        jax.random.normal(key, shape),
        jax.random.bernoulli(key, 0.3, shape),
    )


@pytest.mark.parametrize("partitionable", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_are_jaxs(shape, partitionable):
    fn, keys = draws(shape), jax.random.split(jax.random.key(7), (2, 3))
    with jax.threefry_partitionable(partitionable):
        rewritten_draws = jax.jit(jax.vmap(lambda key: rewritten(jax.vmap(fn, in_axes=(None, 0)), (), key)))
        want = jax.jit(jax.vmap(jax.vmap(lambda key: fn((), key))))(keys)
        for g, w in zip(rewritten_draws(keys), want, strict=True):
            np.testing.assert_array_equal(g, w)


def test_the_comparison_sees_another_rotation(monkeypatch):
    key = jax.random.key(7)
    monkeypatch.setattr(threefry, "_ROTATIONS", ((13, 15, 26, 6), (17, 29, 16, 23)))
    monkeypatch.setattr(threefry, "_are_jaxs", lambda: True)
    got = rewritten(lambda _, key: jax.random.bits(key, (4096,)), (), key)
    assert np.mean(got == jax.random.bits(key, (4096,))) < 0.01


def test_a_generator_that_draws_other_bits_is_left_to_jax(monkeypatch):
    key = jax.random.key(7)
    monkeypatch.setattr(threefry, "_ROTATIONS", ((13, 15, 26, 6), (17, 29, 16, 23)))
    threefry._are_jaxs.cache_clear()
    jaxprs.leave.cache_clear()
    with pytest.warns(UserWarning, match="'random_bits' as JAX .* has it: it draws other bits"):
        got = rewritten(lambda _, key: jax.random.bits(key, (4096,)), (), key)
    np.testing.assert_array_equal(got, jax.random.bits(key, (4096,)))
    threefry._are_jaxs.cache_clear()


@pytest.mark.parametrize("implementation", ["rbg", "threefry2x32"])
def test_only_many_bits_of_the_default_generator_are_replaced(implementation):
    def program(size: int) -> str:
        return str(jax.make_jaxpr(lambda key: rewritten(lambda _, k: jax.random.bits(k, (size,)), (), key))(key))

    key = jax.random.key(0, impl=implementation)
    assert "random_bits" in program(100)
    assert ("random_bits" in program(5000)) == (implementation == "rbg")
