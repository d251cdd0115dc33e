"""Pooling by slices: equal to XLA's loops over windows, forward and backward, ties, infinities and NaN included."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjx.core.rewriting import pooling
from fedjx.core.rewriting.rewrite import mapped, rewritten

WINDOWS: dict[str, tuple[Any, Any, Any]] = {
    "apart": ((2, 2), (2, 2), "VALID"),
    "apart, with a rest": ((3, 2), (3, 2), "VALID"),
    "gaps": ((1, 2), (2, 3), "VALID"),
    "overlapping": ((3, 3), (2, 2), "SAME"),
    "every place": ((2, 3), (1, 1), "SAME"),
    "asymmetric padding": ((2, 3), (3, 1), ((1, 0), (0, 2))),
}


def images(contents: str) -> np.ndarray:
    random = np.random.default_rng(0)
    if contents == "distinct":
        return random.normal(size=(3, 2, 9, 8, 3)).astype(np.float32)
    x = random.integers(0, 3, size=(3, 2, 9, 8, 3)).astype(np.float32)
    if contents == "infinite":
        x[x == 0], x[:, 0, :4] = np.inf, -np.inf
    if contents == "nan":
        x[:, 0, 1:3, 1:4], x[:, 0, 8, 7] = np.nan, np.nan
    return x


def with_gradient(pool: Any) -> Any:
    def fn(x: Any, scale: Any = 1.0) -> Any:
        y, pullback = jax.vjp(pool, x)
        return y, pullback(scale + jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))[0]

    return fn


@functools.cache
def programs(name: str, window: str) -> tuple[Any, Any]:
    """Pooling with its gradient, mapped by fedjx, and for one client by XLA: compiled once for all contents."""
    pool = {"max": nnx.max_pool, "min": nnx.min_pool, "avg": nnx.avg_pool}[name]
    fn = with_gradient(lambda x: pool(x, *WINDOWS[window]))
    return jax.jit(lambda *own: mapped(lambda _, own: fn(*own), (), own)), jax.jit(fn)


@pytest.mark.parametrize(
    ("name", "contents"),
    [("avg", "distinct"), *((name, c) for name in ("max", "min") for c in ("distinct", "ties", "infinite", "nan"))],
)
@pytest.mark.parametrize("window", WINDOWS)
def test_pooling_equals_xlas(name, window, contents):
    ours, theirs = programs(name, window)
    xs, scales = images(contents), np.float32([1, 2, 3])
    for own in ((xs[:1], scales[:1]), (xs, scales)):
        text = str(ours.trace(*own).jaxpr)
        assert "reduce_window" not in text
        assert "select_and_scatter" not in text
        want = [theirs(*one) for one in zip(*own, strict=True)]
        for g, w in zip(ours(*own), map(np.stack, zip(*want, strict=True)), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-5 if name == "avg" else 1e-6, atol=1e-6)


def test_the_comparison_sees_the_last_of_equals_chosen(monkeypatch):
    x = images("ties")[0]
    fn = with_gradient(lambda x: nnx.max_pool(x, (2, 2), (2, 2)))
    slices = pooling.slices
    monkeypatch.setattr(pooling, "slices", lambda *args: dict(reversed(slices(*args).items())))
    got = jax.jit(lambda x: rewritten(lambda _, x: fn(x), (), x)[1])(x)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(got, jax.jit(fn)(x)[1])


def test_what_is_large_or_shared_or_whole_numbers_is_left_to_xla():
    x = images("distinct")[0]

    def program(x: Any, window: Any, own: bool = True) -> str:
        args = ((), x) if own else (x, ())
        fn = with_gradient(lambda x: nnx.max_pool(x, window, (1, 1))) if x.dtype == np.float32 else None
        fn = fn or (lambda x: nnx.max_pool(x, window, (1, 1)))
        return str(jax.make_jaxpr(lambda a, b: rewritten(lambda a, b: fn(b if own else a), a, b))(*args))

    assert "select_and_scatter" in program(x, (6, 6))
    assert "reduce_window" in program(x, (2, 2), own=False)
    assert "reduce_window" in program(x.astype(np.int32), (2, 2))
    assert "reduce_window" not in program(x, (2, 2))
