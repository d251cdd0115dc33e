"""Per-client convolutions as matrix products: equal to XLA's, in every form, and in place under the client map."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fedjx import Clients, federated_broadcast, federated_computation, federated_map, federated_sum
from fedjx.core.rewriting import convolution as convolutions
from fedjx.core.rewriting.rewrite import mapped, rewritten

NHWC = ("NHWC", "HWIO", "NHWC")

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "same": {"padding": "SAME"},
    "strides": {"window_strides": (2, 3)},
    "padding": {"padding": ((2, 1), (0, 3))},
    "negative padding": {"padding": ((-1, 0), (2, -1))},
    "kernel dilation": {"rhs_dilation": (2, 1), "padding": "SAME"},
    "input dilation": {"lhs_dilation": (2, 2), "padding": ((1, 1), (2, 2))},
    "feature groups": {"feature_group_count": 2},
    "depthwise": {"feature_group_count": 4},
    "NCHW": {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    "everything": {
        "window_strides": (2, 1), "padding": ((1, 2), (2, 0)), "rhs_dilation": (1, 2), "feature_group_count": 2,
    },
}  # fmt: skip

# By form, the ways that its forward pass takes and the barriers in it, and those with both gradients.
ONLY_PRODUCTS = ("direct", 0), ("direct correlated", 1)
WAYS = {
    **dict.fromkeys(FORMS, ONLY_PRODUCTS),
    "strides": (("direct", 0), ("direct correlated by_phases", 1)),
    "input dilation": (("direct by_phases", 0), ("direct correlated by_phases", 0)),
    "feature groups": (("direct one_by_one", 0), ("direct correlated one_by_one", 1)),
    "depthwise": (("depthwise", 1), ("depthwise depthwise_gradient direct one_by_one", 2)),
    "everything": (("direct one_by_one", 0), ("direct correlated one_by_one by_phases", 1)),
}


@pytest.fixture
def ways(monkeypatch) -> set[str]:
    """The names of the ways that are taken."""
    taken: set[str] = set()

    def spy(name: str) -> Any:
        way = getattr(convolutions, f"_{name}")

        def called(*args: Any, **options: Any) -> Any:
            taken.add(name)
            return way(*args, **options)

        return called

    for name in ("direct", "correlated", "by_phases", "depthwise", "depthwise_gradient", "one_by_one"):
        monkeypatch.setattr(convolutions, f"_{name}", spy(name))
    return taken


def convolution(options: dict[str, Any]) -> tuple[Any, np.ndarray, np.ndarray]:
    options = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": NHWC, **options}
    groups = options.get("feature_group_count", 1)
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(3, 9, 8, 4)), random.normal(size=(3, 2, 4 // groups, 8))
    if options["dimension_numbers"] != NHWC:
        x, kernel = x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)
    return functools.partial(lax.conv_general_dilated, **options), x.astype(np.float32), kernel.astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("of", ["forward", "gradients"])
def test_a_convolution_equals_xlas(form, of, ways):
    convolve, x, kernel = convolution(FORMS[form])

    def fn(shared: Any, own: Any) -> Any:
        x, kernel = shared, own
        if of == "forward":
            return convolve(x, kernel)
        return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel))), argnums=(0, 1))(x, kernel)

    program = jax.jit(lambda x, kernel: rewritten(fn, x, kernel))
    text = str(program.trace(x, kernel).jaxpr)
    assert "conv_general_dilated" not in text
    of_form = WAYS[form][of == "gradients"]
    assert (ways, text.count("optimization_barrier")) == (set(of_form[0].split()), of_form[1])
    expected = jax.jit(fn)(x, kernel)
    for got, want in zip(jax.tree.leaves(program(x, kernel)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_a_kernel_that_all_clients_share_stays_a_convolution():
    convolve, x, kernel = convolution({})
    program = jax.make_jaxpr(lambda kernel, x: rewritten(lambda k, x: convolve(x, k), kernel, x))(kernel, x)
    assert str(program).count("conv_general_dilated") == 1


class Network(nnx.Module):
    """A user's ordinary model."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 3, (3, 3), padding="VALID", rngs=rngs)
        self.second = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return nnx.relu(self.second(nnx.max_pool(nnx.relu(self.first(x)), (2, 2), (2, 2)))).mean(axis=(1, 2))


def test_a_users_model_takes_this_path_in_the_client_map():
    graph, params = nnx.split(Network(nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)

    def train(params: Any, images: Any) -> Any:
        def step(params: Any, batch: Any) -> Any:
            def loss(params: Any) -> Any:
                return jnp.mean((nnx.merge(graph, nnx.State(params))(batch) - 1.0) ** 2)

            value, grads = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

        return lax.scan(step, params, images)

    @federated_computation
    def round_of(params: Any, images: Any) -> Any:
        return federated_sum(federated_map(jax.checkpoint(train), federated_broadcast(params), images))

    images = np.random.default_rng(0).normal(size=(5, 3, 2, 10, 10, 1)).astype(np.float32)
    text = jax.jit(round_of.in_graph()).lower(params, Clients.of(images)).as_text()
    assert "convolution" not in text
    one_by_one = [jax.jit(train)(params, x) for x in images]
    expected = jax.tree.map(lambda *xs: sum(xs), *one_by_one)
    for run in (round_of, round_of.streamed(lanes=1), round_of.in_graph(mesh=jax.make_mesh((4,), ("clients",)))):
        for got, want in zip(jax.tree.leaves(run(params, Clients.of(images))), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_gradients_pass_through_the_client_map():
    convolve, x, kernel = convolution({})

    @federated_computation
    def total(kernel: Any, x: Any) -> Any:
        own = federated_map(lambda k, x: k * (1 + x.mean()), federated_broadcast(kernel), x)
        return federated_sum(federated_map(lambda k, x: jnp.sum(jnp.sin(convolve(x, k))), own, x))

    clients = np.stack([x, 2 * x])
    got = jax.jit(jax.grad(lambda k: total(k, Clients.of(clients))))(kernel)
    want = jax.jit(jax.grad(lambda k: sum(jnp.sum(jnp.sin(convolve(c, k * (1 + c.mean())))) for c in clients)))(kernel)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inside", ["jit", "remat", "scan", "while", "cond", "nested"])
def test_convolutions_inside_of_programs_are_found(inside):
    convolve, x, kernel = convolution({"padding": "SAME", "window_strides": (1, 1)})
    square = 0.1 * kernel[:, :, :, :4]

    def loop(x: Any, kernel: Any) -> Any:
        return lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.sin(convolve(s[1], kernel))), (0, x))[1]

    wrapped = {
        "jit": jax.jit(convolve),
        "remat": jax.checkpoint(convolve),
        "scan": lambda x, k: lax.scan(lambda c, _: (jnp.sin(convolve(c, k)), c.sum()), x, None, length=3),
        "while": loop,
        "cond": lambda x, k: lax.cond(x.sum() > 0, lambda: convolve(x, k), lambda: convolve(-x, k)),
        "nested": jax.jit(lambda x, k: lax.scan(lambda c, _: (jax.checkpoint(loop)(c, k), None), x, None, length=2)),
    }[inside]
    program = jax.jit(lambda x, k: rewritten(wrapped, x, k))
    assert "conv_general_dilated" not in str(program.trace(x, square).jaxpr)
    expected = jax.jit(wrapped)(x, square)
    for got, want in zip(jax.tree.leaves(program(x, square)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_equal_convolutions_are_one_function_that_xla_keeps():
    convolve, x, kernel = convolution({"padding": "SAME"})
    square = 0.1 * kernel[:, :, :, :4]

    def twice(x: Any, kernel: Any) -> Any:
        return convolve(jnp.sin(convolve(x, kernel)), kernel)

    def program(fn: Any) -> str:
        lowered = jax.jit(lambda x, kernel: rewritten(lambda _, own: fn(*own), (), (x, kernel))).lower(x, square)
        assert "convolution" not in lowered.as_text()
        return lowered.as_text()

    once, both = program(convolve), program(twice)
    assert 'inlineable = "false"' not in once
    assert both.count('inlineable = "false"') == 2
    assert both.count("func.func private @_one_of_many") == 1
    for fn in (twice, jax.grad(lambda x, kernel: jnp.sum(jnp.sin(twice(x, kernel))), argnums=(0, 1))):
        stacked = [np.stack([a, 2 * a]) for a in (x, square)]
        got = jax.jit(lambda *own, fn=fn: mapped(lambda _, own: fn(*own), (), own))(*stacked)
        want = [jax.jit(fn)(*own) for own in zip(*stacked, strict=True)]
        want = jax.tree.map(lambda *parts: np.stack(parts), *want)
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5 * np.abs(e).max())


def normal(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("num_groups", [2, 16])  # apart, and together
def test_groups_are_what_xla_makes_of_them(num_groups, ways):
    shapes = [(2, 6, 5, 32), (3, 3, 32 // num_groups, 64), (2, 6, 5, 64)]
    x, kernel, g = normal(*shapes)

    def train(x, kernel, g):
        options = {"dimension_numbers": NHWC, "feature_group_count": num_groups}
        y, pullback = jax.vjp(lambda *own: lax.conv_general_dilated(*own, (1, 1), "SAME", **options), x, kernel)
        return y, pullback(g)

    got = jax.jit(lambda own: rewritten(lambda _, own: train(*own), (), own))((x, kernel, g))
    assert ("one_by_one" in ways) == (num_groups == 2)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(jax.jit(train)(x, kernel, g)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_result_that_is_wider_than_its_operands_keeps_its_digits():
    with jax.enable_x64(True):
        x, kernel = normal((2, 8, 8, 8), (3, 3, 8, 8))
        options = {"dimension_numbers": NHWC, "preferred_element_type": jnp.float64}

        def convolve(x, kernel):
            return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options)

        got = jax.jit(lambda own: rewritten(lambda _, own: convolve(*own), (), own))((x, kernel))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, convolve(x.astype(np.float64), kernel.astype(np.float64)), rtol=1e-12)


@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_narrow_depthwise_convolutions_add_up_in_float32(preferred):
    """A kernel's gradient sums 5,000 products near 1; bfloat16 itself does not count beyond 256."""
    x, kernel = np.ones((2, 50, 50, 3), jnp.bfloat16), np.ones((3, 3, 1, 3), jnp.bfloat16)

    def convolve(x: Any, kernel: Any) -> Any:
        options = {"dimension_numbers": NHWC, "feature_group_count": 3, "preferred_element_type": preferred}
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options)

    def train(x: Any, kernel: Any) -> Any:
        y, pullback = jax.vjp(convolve, x, kernel)
        return y, pullback(jnp.ones_like(y))

    y, (dx, dkernel) = jax.jit(lambda x, k: rewritten(lambda _, own: train(*own), (), (x, k)))(x, kernel)
    assert y.dtype == (preferred or jnp.bfloat16)
    assert {dx.dtype, dkernel.dtype} == {jnp.dtype(jnp.bfloat16)}
    assert np.max(y) == np.max(dx) == 9
    np.testing.assert_allclose(np.float32(dkernel[1, 1]), 5000, rtol=1 / 128)
