"""Products taken out of loops: the same numbers, and in the loop only what the next step waits for."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fedjx.core.rewriting import distribution, jaxprs, recurrence
from fedjx.core.rewriting.rewrite import mapped, rewritten

STEPS, BATCH, WIDTH = 5, 3, 4


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) * 0.5 for shape in shapes]


def cell(w: Any, h: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w["in"] + h @ w["own"] + w["bias"][None])


def states(w: Any, xs: Any) -> Any:
    """A recurrent layer: every state, and the last."""

    def step(h: jax.Array, x: jax.Array) -> Any:
        h = cell(w, h, x)
        return h, h

    return lax.scan(step, jnp.zeros((BATCH, WIDTH)), xs)


def loss_in_the_loop(w: Any, xs: jax.Array) -> Any:
    """Outputs and losses are made in the loop, where only their sum is kept."""

    def step(carry: Any, x: jax.Array) -> Any:
        h, total = carry
        h = cell(w, h, x)
        return (h, total + jnp.sum(jax.nn.log_softmax(h @ w["out"]))), None

    return lax.scan(step, (jnp.zeros((BATCH, WIDTH)), jnp.float32(1)), xs)[0]


def backwards(w: Any, xs: jax.Array) -> Any:
    return lax.scan(lambda h, x: (cell(w, h, x), h @ w["out"]), jnp.zeros((BATCH, WIDTH)), xs, reverse=True)


def called(w: Any, xs: jax.Array) -> Any:
    """The products are in functions of `jax.jit`, as `jnp.einsum` makes them."""
    inner = jax.jit(lambda h, x: jnp.einsum("bi,io->bo", x, w["in"]) + jnp.einsum("bi,io->bo", h, w["own"]))
    return lax.scan(lambda h, x: (jnp.tanh(inner(h, x)), None), jnp.zeros((BATCH, WIDTH)), xs)[0]


def turned(w: Any, xs: jax.Array) -> Any:
    """A matrix that is read by columns, and one that changes with time."""

    def step(h: jax.Array, x: Any) -> Any:
        x, scale = x
        return jnp.tanh(h @ w["own"].T + (scale * x) @ w["in"].T), (scale * x) @ w["out"]

    return lax.scan(step, jnp.zeros((BATCH, WIDTH)), (xs, jnp.arange(STEPS, dtype=jnp.float32)))


def two_layers(w: Any, xs: jax.Array) -> Any:
    return states(w, states(w, xs)[1])


def counted(w: Any, xs: jax.Array) -> Any:
    """Whole numbers are carried, and a carry is read as well as added to."""

    def step(carry: Any, x: jax.Array) -> Any:
        h, number, seen = carry
        return (cell(w, h, x) + number + jnp.mean(seen), number + 1, seen + x @ w["in"]), number

    return lax.scan(step, (jnp.zeros((BATCH, WIDTH)), jnp.int32(0), jnp.zeros((BATCH, WIDTH))), xs)


def several_heads(w: Any, xs: jax.Array) -> Any:
    """A matrix for each of two heads, read by its second axis; a function whose results nobody takes."""
    heads = jnp.stack([w["own"], w["out"]])  # [2, WIDTH, WIDTH]

    def step(h: jax.Array, x: jax.Array) -> Any:
        jax.jit(lambda x: None)(x)
        both = lax.dot_general(h, heads, (((1,), (1,)), ((), ())))  # [BATCH, 2, WIDTH]
        return jnp.tanh(both.sum(axis=1) + x @ w["in"]), both

    return lax.scan(step, jnp.zeros((BATCH, WIDTH)), xs)


def left_to_the_next(w: Any, xs: jax.Array) -> Any:
    """What is made of states, once of more than one, is made by the loop that reads it."""

    def step(h: jax.Array, x: jax.Array) -> Any:
        h = cell(w, h, x)
        return h, (h, jnp.sin(h) + w["bias"][None], jnp.cos(h) * x)

    states, sines, others = lax.scan(step, jnp.zeros((BATCH, WIDTH)), xs)[1]

    def again(h: jax.Array, both: Any) -> Any:
        h = jnp.tanh(h @ w["own"] + both[0] * both[1])
        return h, h @ w["out"]

    return lax.scan(again, jnp.zeros((BATCH, WIDTH)), (sines, others[::-1]), reverse=True), states, sines


LAYERS = {
    fn.__name__: fn
    for fn in (
        states,
        loss_in_the_loop,
        backwards,
        called,
        turned,
        two_layers,
        counted,
        several_heads,
        left_to_the_next,
    )
}


def weights() -> dict[str, np.ndarray]:
    matrices = arrays(*[(WIDTH, WIDTH)] * 3, (WIDTH,))
    return dict(zip(("in", "own", "out", "bias"), matrices, strict=True))


def gradients(layer: Any) -> Any:
    def total(w: Any, xs: jax.Array) -> Any:
        return sum((jnp.sum(jnp.sin(0.01 * x)) for x in jax.tree.leaves(layer(w, xs)) if x.dtype == jnp.float32), 0.0)

    return jax.grad(total, argnums=(0, 1))


@pytest.mark.parametrize("of", ["forward", "gradients"])
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("layer", LAYERS)
def test_results_are_the_same(layer, lanes, of):
    fn = LAYERS[layer] if of == "forward" else gradients(LAYERS[layer])
    w = jax.tree.map(lambda x: np.stack([x * (i + 1) for i in range(lanes)]), weights())
    (xs,) = arrays((lanes, STEPS, BATCH, WIDTH), seed=1)
    got = jax.jit(lambda w, xs: mapped(lambda _, own: fn(*own), (), (w, xs)))(w, xs)
    want = jax.jit(jax.vmap(fn))(w, xs)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == e.dtype
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)


def operations(fn: Any, *args: Any) -> tuple[list[str], list[list[str]]]:
    """Names the operations of a rewritten function, and those in the body of each of its scans."""
    leaves, tree = jax.tree.flatten(args)
    program, _ = jaxprs.trace(lambda *xs: rewritten(lambda _, own: fn(*own), (), tree.unflatten(xs)), *leaves)
    loops = [eqn for eqn in program.equations if jaxprs.name_of(eqn) == "scan"]
    bodies = [[jaxprs.name_of(e) for inner in jaxprs.inner(loop) for e in inner.equations] for loop in loops]
    return [jaxprs.name_of(eqn) for eqn in program.equations], bodies


def products_in_loops(fn: Any, *args: Any) -> list[int]:
    """How many products the body of each scan makes."""
    return [body.count("dot_general") for body in operations(fn, *args)[1]]


@pytest.mark.parametrize(
    ("layer", "forward", "backward"),
    [("states", [1], [1, 1]), ("loss_in_the_loop", [1], [1, 1]), ("backwards", [1], [1, 1]), ("turned", [1], [1, 1]),
     ("called", [1], [1, 1]), ("two_layers", [1, 1], [1, 1, 1, 1])],
)  # fmt: skip
def test_only_the_recurrence_multiplies_in_the_loop(layer, forward, backward):
    w, (xs,) = weights(), arrays((STEPS, BATCH, WIDTH))
    assert products_in_loops(LAYERS[layer], w, xs) == forward
    assert products_in_loops(gradients(LAYERS[layer]), w, xs) == backward


def test_a_loop_makes_what_an_earlier_one_can_leave_to_it():
    w, (xs,) = weights(), arrays((STEPS, BATCH, WIDTH))
    _, (first, second) = operations(left_to_the_next, w, xs)
    assert not {"sin", "cos"}.intersection(first)
    assert second.count("sin") == 1
    assert second.count("cos") == 0  # turned around in time

    def two(w: Any, xs: jax.Array) -> Any:
        """Would take two arrays instead of one."""

        def step(h: jax.Array, x: jax.Array) -> Any:
            h = cell(w, h, x)
            return h, (h * x, h)

        made = lax.scan(step, jnp.zeros((BATCH, WIDTH)), xs)[1][0]
        return lax.scan(lambda h, x: (jnp.tanh(h @ w["own"] + x), h @ w["out"]), jnp.zeros((BATCH, WIDTH)), made)[1]

    assert "mul" not in {*operations(two, w, xs)[1][0], *operations(two, w, xs)[1][1]}


def test_matrices_are_turned_for_many_steps_if_the_cache_holds_them(monkeypatch):
    def layer(w: Any, xs: jax.Array) -> Any:
        by_columns = lambda h: lax.dot_general(h, w, (((1,), (1,)), ((), ())))  # noqa: E731
        return lax.scan(lambda h, x: (jnp.tanh(by_columns(h) + x), by_columns(x)), jnp.zeros((BATCH, WIDTH)), xs)

    w, few, many = arrays((WIDTH, WIDTH), (STEPS, BATCH, WIDTH), (recurrence._MANY_STEPS, BATCH, WIDTH))
    for xs, is_turned in ((few, False), (many, True)):
        outside, (body,) = operations(layer, w, xs)
        assert body == ["dot_general", "add", "tanh"]
        assert outside.count("transpose") == is_turned
    monkeypatch.setattr(recurrence, "_LARGE_MATRIX", WIDTH)
    assert "transpose" not in operations(layer, w, many)[0]


def test_what_is_taken_to_pieces_is_whole_and_what_is_read_often_is_made_once():
    def gated(w: Any, xs: jax.Array) -> Any:
        def step(h: jax.Array, x: Any) -> Any:
            pieces, x = x
            a, b, c = jnp.split(h @ w["in"] + pieces, 3, axis=1)
            d, e, f = jnp.split(pieces, 3, axis=1)
            h = jnp.tanh(x + jnp.concatenate([a * d, b * e, c * f], axis=1))
            return h, (jnp.sin(h), jnp.cos(h), h * x, x @ w["in"])

        return lax.scan(step, jnp.zeros((BATCH, 3)), xs)

    w = {"in": arrays((3, 3))[0]}
    _, (body,) = operations(gated, w, tuple(arrays((STEPS, BATCH, 3), (STEPS, BATCH, 3))))
    assert body.count("optimization_barrier") == 3  # the product, the pieces, and h, but not x


@pytest.mark.parametrize("kind", [nnx.OptimizedLSTMCell, nnx.LSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_layers_of_flax_are_taken_apart(kind):
    cell = kind(WIDTH, WIDTH, rngs=nnx.Rngs(0))
    start = cell.initialize_carry((BATCH, WIDTH), nnx.Rngs(0))
    graph, params, rest = nnx.split(nnx.RNN(cell, rngs=False), nnx.Param, ...)

    def loss(params: Any, xs: Any) -> Any:
        states: Any = nnx.merge(graph, params, rest)(xs, initial_carry=start)
        return jnp.sum(jnp.sin(states))

    (xs,) = arrays((BATCH, STEPS, WIDTH))
    got = jax.jit(lambda p: rewritten(lambda _, own: jax.grad(loss)(own, xs), (), p))(params)
    want = jax.jit(jax.grad(loss))(params, xs)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)


def test_what_nothing_is_gained_from_stays():
    def added(w: Any, xs: jax.Array) -> Any:
        return lax.scan(lambda c, x: (c + jnp.sum(x @ w), None), jnp.float32(0), xs)[0]

    def averaged(w: Any, xs: jax.Array) -> Any:
        return lax.scan(lambda c, x: (0.9 * c + jnp.sum(x @ w, 0), None), jnp.zeros(WIDTH), xs)[0]

    w, xs = arrays((WIDTH, WIDTH), (STEPS, distribution._FEW_ROWS + 1, WIDTH))
    assert products_in_loops(averaged, w, xs) == [1]  # large as they are
    assert products_in_loops(averaged, w, xs[:, :BATCH]) == [0]
    assert products_in_loops(averaged, w, xs[:1, :BATCH]) == [1]  # a single step
    assert products_in_loops(added, w, xs[:, :BATCH]) == [1]  # over examples, not time


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_narrow_terms_are_added_up_in_the_dtype_of_their_total(dtype):
    """A thousand ones more than 256 are 256 in bfloat16; whole numbers and answers are counted."""

    def step(carry: Any, x: jax.Array) -> Any:
        h, total, matrix, number = carry
        h = jnp.tanh(h @ w + x)
        out = (h @ w).astype(jnp.float32)
        update = lax.dot_general(jnp.ones_like(h), jnp.ones_like(x) + 0 * x, (((0,), (0,)), ((), ())))
        right = jnp.sum(out < 10, dtype=jnp.int32)
        return (h, total + out, matrix + update.astype(jnp.float32), number + right), None

    w = 0.1 * jnp.eye(WIDTH, dtype=dtype)
    start = (jnp.zeros((BATCH, WIDTH), dtype), jnp.zeros((BATCH, WIDTH)), jnp.zeros((WIDTH, WIDTH)), jnp.int32(0))
    xs = jnp.ones((500, BATCH, WIDTH), dtype)
    run = lambda xs: lax.scan(step, start, xs)[0]  # noqa: E731
    got, want = jax.jit(lambda xs: rewritten(lambda _, own: run(own), (), xs))(xs), jax.jit(run)(xs)
    for g, e in zip(got, want, strict=True):
        assert g.dtype == e.dtype
        np.testing.assert_allclose(np.float32(g), np.float32(e), rtol=1e-2 if dtype != jnp.float32 else 1e-5)
    np.testing.assert_array_equal(got[2], 500 * BATCH)
    assert got[3] == 500 * BATCH * WIDTH


def test_gradients_pass_through():
    w, (xs,) = weights(), arrays((STEPS, BATCH, WIDTH))
    run = lambda w: rewritten(lambda _, own: states(*own), (), (w, xs))  # noqa: E731
    got = jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(run(w)[1]))))(w)
    want = jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(states(w, xs)[1]))))(w)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)


def test_loops_of_any_length_and_batches_of_any_size_are_left():
    """As of a program that is exported for all of them."""
    w = weights()
    steps, batch = jax.export.symbolic_shape("steps, batch")

    def layer(xs: jax.Array) -> jax.Array:
        start = jnp.zeros((xs.shape[1], WIDTH))
        return lax.scan(lambda h, x: (cell(w, h, x), jnp.sum(h)), start, xs)[0]

    exported = jax.export.export(jax.jit(lambda xs: rewritten(lambda _, own: layer(own), (), xs)))(
        jax.ShapeDtypeStruct((steps, batch, WIDTH), jnp.float32)
    )
    (xs,) = arrays((STEPS, BATCH, WIDTH))
    np.testing.assert_allclose(exported.call(xs), layer(jnp.asarray(xs)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "narrow",
    [
        lambda o: (3 * o).astype(jnp.int32),
        lambda o: o.astype(jnp.int32),
        lambda o: -o.T.reshape(BATCH, WIDTH).astype(jnp.int8).astype(jnp.int32),
        lambda o: o.astype(jnp.float8_e4m3fn).astype(jnp.float32),
    ],
    ids=["scaled", "product", "turned", "float8"],
)
def test_what_is_rounded_on_purpose_is_rounded_in_every_step(narrow):
    w, xs = arrays((WIDTH, WIDTH), (20, BATCH, WIDTH))

    def client(_: Any, own: Any) -> Any:
        w, xs = own

        def step(carry: Any, x: jax.Array) -> Any:
            h, total = carry
            h = jnp.tanh(x + h @ w)
            return (h, total + narrow(8 * h @ w)), None

        zero = jnp.zeros_like(narrow(xs[0]))
        return lax.scan(step, (jnp.zeros((BATCH, WIDTH)), zero), xs)[0][1]

    got = jax.jit(lambda own: rewritten(client, (), own))((w, xs))
    np.testing.assert_array_equal(got, jax.jit(lambda own: client((), own))((w, xs)))
