"""Products that are added to a matrix in blocks: the same numbers, and no copy of the matrix."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.networks import Dense
from fedjx.algorithms import fed_avg
from fedjx.core.execution.devices import compiler_options
from fedjx.core.rewriting import few_rows, jaxprs, updates
from fedjx.core.rewriting.rewrite import mapped, rewritten
from fedjx.data import Cohort, FederatedData
from fedjx.models import from_flax

SHAPE = (701, 402)  # no multiple of a block


def arguments(seed: int = 0, rows: int = 5):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (SHAPE, (rows, SHAPE[0]), (rows, SHAPE[1]))]


@pytest.fixture
def ways(monkeypatch):
    """How often updates were made in blocks."""
    way, taken = updates._in_blocks, []
    monkeypatch.setattr(updates, "_in_blocks", lambda *args: taken.append(args) or way(*args))
    return taken


def found(fn, *args) -> list[updates.Update]:
    return list(updates.found_in(jaxprs.trace(fn, *args)[0]).values())


@pytest.mark.parametrize(
    "fn",
    [
        lambda w, x, g: w - 0.1 * (x.T @ g),
        lambda w, x, g: w + -0.1 * (g.T @ x).T,
        lambda w, x, g: (x.T @ g) + w,
        lambda w, x, g: w - (x.T @ g) / jnp.sum(x),
        lambda w, x, g: w - jnp.sum(g) * (0.5 * (x.T @ g)),
        lambda w, x, g: w - 0.1 * jnp.einsum("ri,rj->ij", x, g),
        lambda w, x, g: w - 0.1 * jnp.einsum("ri,rj->ji", g, x),
        lambda w, x, g: jax.lax.select(x[0, 0] > -9, w - 0.1 * (x.T @ g), w),
        lambda w, x, g: jax.lax.select(x[0, 0] > 9, w - 0.1 * (x.T @ g), w),
        lambda w, x, g: optax.apply_updates(w, optax.sgd(0.1).update(x.T @ g, optax.sgd(0.1).init(w))[0]),
    ],
)
def test_an_update_is_found_and_has_the_same_numbers(fn, ways):
    args = arguments()
    assert len(found(fn, *args)) == 1
    got = jax.jit(lambda own: rewritten(lambda _, own: fn(*own), (), own, stop_early=True))(args)
    assert len(ways) == 1
    np.testing.assert_allclose(got, fn(*args), rtol=1e-5, atol=1e-5)


def used_twice(w, x, g):
    gradient = x.T @ g
    return w - gradient, jnp.sum(gradient)


def read_later(w, x, g):
    new = w - x.T @ g
    return new, jnp.sin(w)


@pytest.mark.parametrize(
    ("fn", "rows"),
    [
        (used_twice, 5),
        (read_later, 5),
        (lambda w, x, g: (w - x.T @ g, w), 5),  # given back
        (lambda w, x, g: (x.T @ g) - w, 5),
        (lambda w, x, g: jax.lax.select(x[0, 0] > 0, w, w - x.T @ g), 5),
        (lambda w, x, g: jax.lax.select(w > 0, w - x.T @ g, w), 5),
        (lambda w, x, g: jax.lax.select(x[0, 0] > 0, 1.0, w[0, 0]), 5),
        (lambda w, x, g: jax.lax.select(x[0, 0] > 0, w - x.T @ g, -w), 5),
        (lambda w, x, g: w - 1.0 / (x.T @ g), 5),
        (lambda w, x, g: w - w * (x.T @ g), 5),
        (lambda w, x, g: w - jnp.sin(x.T @ g), 5),
        (lambda w, x, g: w - x.T @ g, 100),  # many rows
        (lambda w, x, g: w[:20] - (x.T @ g)[:20], 5),
        (lambda w, x, g: w - 0.1 * jnp.zeros(SHAPE), 5),  # nothing depends on it
    ],
)
def test_what_is_none_is_not_found(fn, rows):
    assert not found(fn, *arguments(rows=rows))


def by_transpose(y, w):
    return y @ w.T


def by_axes(y, w):
    return jax.lax.dot_general(y, w, (((1,), (1,)), ((), ())))


def train(backward, w, xs):
    """Takes steps of gradient descent that read the matrix in both directions."""

    def step(i, carry):
        w, total = carry
        y = jnp.tanh(xs[i] @ w)
        back = backward(y, w)
        return jax.lax.select(i < 2, w - 0.01 * (xs[i].T @ y), w), total + back

    return jax.lax.fori_loop(0, len(xs), step, (w, jnp.zeros_like(xs[0])))


def num_copies(fn, args):
    """How often XLA copies the matrix, and the compiled function."""
    wrapped = jax.jit(lambda own: rewritten(lambda _, own: fn(*own), (), own, stop_early=True))
    compiled = wrapped.lower(args).compile(compiler_options=dict(compiler_options("cpu") or {}))
    return len(re.findall(r"f32\[701,402\]\S* copy\(", compiled.as_text())), compiled


@pytest.mark.parametrize("backward", [by_transpose, by_axes])
def test_no_step_copies_the_matrix(backward, ways, monkeypatch):
    w, x, _ = arguments(rows=8)
    args, fn = (w, 0.05 * jnp.stack([x, x[::-1], 2 * x])), functools.partial(train, backward)
    copies, compiled = num_copies(fn, args)
    assert len(ways) == 1
    assert copies <= 1  # what is given must not change
    for got, expected in zip(compiled(args), fn(*args), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    # Unless what reads the matrix is waited for, XLA cannot know that it may be overwritten.
    monkeypatch.setattr(updates, "_zero_after", lambda x: jnp.int32(0))
    assert num_copies(fn, args)[0] > copies


def test_clients_that_are_mapped_together_have_the_same_numbers():
    several = [arguments(seed) for seed in range(3)]
    stacked = [jnp.stack(values) for values in zip(*several, strict=True)]
    got = jax.jit(lambda own: mapped(lambda _, own: own[0] - own[1].T @ own[2], (), own, stop_early=True))(stacked)
    np.testing.assert_allclose(got, [w - x.T @ g for w, x, g in several], rtol=1e-4, atol=1e-4)


def test_what_is_not_a_number_stays_where_it_is():
    w, x, g = arguments()
    w, g = w.at[3, 4].set(jnp.nan), g.at[0, 7].set(jnp.inf)

    def fn(w, x, g):
        total = jnp.sum(w)  # read before, and not a number
        return w - 0.1 * (x.T @ g), total

    assert len(found(fn, w, x, g)[0].readers) == 1
    got, total = jax.jit(lambda own: rewritten(lambda _, own: fn(*own), (), own, stop_early=True))((w, x, g))
    assert np.isnan(total)
    wrong = np.zeros(SHAPE, bool)
    wrong[3, 4], wrong[:, 7] = True, True
    np.testing.assert_array_equal(~np.isfinite(got), wrong)


def test_what_has_no_numbers_is_not_waited_for():
    def fn(w, x, g):
        others = w[:0], jax.random.wrap_key_data(w[0, :2].astype(jnp.uint32)), w[0] > 0
        return w - x.T @ g, others

    args = arguments()
    (update,) = found(fn, *args)
    assert all(v.aval.size and not jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for v in update.readers)
    got = jax.jit(lambda own: rewritten(lambda _, own: fn(*own), (), own, stop_early=True))(args)
    np.testing.assert_allclose(got[0], fn(*args)[0], rtol=1e-5, atol=1e-5)


def test_a_streamed_round_takes_these_ways(monkeypatch):
    taken = []
    for module, name in ((updates, "_in_blocks"), (few_rows, "_turned")):
        way = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, way=way, name=name, **kw: taken.append(name) or way(*args, **kw)
        )
    rng = np.random.default_rng(0)
    features = {"x": rng.normal(size=(64, 400)).astype(np.float32), "y": rng.integers(0, 3, 64)}
    model = from_flax(functools.partial(Dense, [400, 800, 3]))
    fed = fed_avg(model, client_optimizer=optax.sgd(0.1))
    cohort = Cohort(FederatedData(features, [0, 16, 40, 64]), [0, 1, 2], batch_size=8, lanes=1)
    state, _ = fed.next.streamed()(fed.init(jax.random.key(0)), cohort)
    assert {*taken} == {"_in_blocks", "_turned"}
    plain, _ = fed.next.in_graph()(fed.init(jax.random.key(0)), cohort)
    for got, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
