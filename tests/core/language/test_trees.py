"""Numbers and pytrees: whether all are finite, told in few reductions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from fedjx.core.language.trees import all_finite

TREE = {"a": jnp.ones((3, 40)), "b": jnp.ones((3, 40), jnp.bfloat16), "c": jnp.ones(()), "d": jnp.ones((0, 2)), "n": 3}
TREE = jax.tree.map(jnp.asarray, TREE)


def spoiled(name, value):
    flat = TREE[name].reshape(-1)
    return {**TREE, name: flat.at[-1].set(value).reshape(TREE[name].shape)}


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_one_number_of_any_leaf_decides(name, value):
    assert all_finite(TREE)
    assert not jax.jit(all_finite)(spoiled(name, value))
    assert jax.vmap(all_finite)(jax.tree.map(lambda *x: jnp.stack(x), TREE, spoiled(name, value))).tolist() == [1, 0]


def test_what_was_not_finite_before_need_not_become_so():
    before = spoiled("a", jnp.nan)
    assert all_finite((), before=before, after=TREE)
    assert all_finite((), before=before, after=spoiled("a", jnp.inf))
    assert not all_finite((), before=before, after=spoiled("b", jnp.inf))
    assert not all_finite(before, before=before, after=TREE)
    assert all_finite({"key": jax.random.key(0)})
    assert all_finite(())


def test_leaves_of_one_shape_share_a_reduction():
    leaves = [jnp.ones((4, 40))] * 9 + [jnp.ones(7)] * 9
    text = str(jax.make_jaxpr(lambda x: all_finite(x, before=x, after=x))(leaves))
    assert text.count(" reduce[") == 2
