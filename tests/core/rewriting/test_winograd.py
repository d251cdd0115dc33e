"""Winograd's algorithm: as exact as a direct convolution in float32, forward and in both gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjx.core.rewriting import winograd
from fedjx.core.rewriting.rewrite import mapped, rewritten

NHWC = ("NHWC", "HWIO", "NHWC")


def assert_close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * np.abs(w).max())


def in_float64(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), axis=(0, 1))
    return np.einsum("hwncij,ijco->hwno", windows, kernel.astype(np.float64))


def arrays(height: int = 9, width: int = 10, channels: int = 8, filters: int = 9) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(height, width, 2, channels)), random.normal(size=(3, 3, channels, filters))
    return x.astype(np.float32), kernel.astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (6, 7), (10, 6), (11, 13), (26, 8)])
def test_the_three_forms_are_exact(height, width):
    x, kernel = arrays(height, width)
    y = in_float64(x, kernel)
    g = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    assert_close(jax.jit(winograd.forward)(x, kernel), y, 3e-6)

    # A gradient of a bilinear map is what pairs with the direction as the map does.
    padded = np.pad(g, ((2, 2), (2, 2), (0, 0), (0, 0)))
    dx = in_float64(padded, kernel[::-1, ::-1].swapaxes(2, 3))
    assert_close(jax.jit(winograd.input_gradient)(g, kernel), dx, 3e-6)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), g.shape[:2], axis=(0, 1))
    dk = np.einsum("ijnchw,hwno->ijco", windows, g.astype(np.float64))
    assert_close(jax.jit(winograd.kernel_gradient)(x, g), dk, 3e-6)


def test_the_comparison_sees_a_wrong_matrix(monkeypatch):
    x, kernel = arrays()
    right = winograd._axis(3)
    wrong = right.input.copy()
    wrong[2, 1] *= 1.0001
    monkeypatch.setattr(winograd, "_axis", lambda taps: right._replace(input=wrong))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(jax.jit(lambda x, kernel: winograd.forward(x, kernel))(x, kernel), in_float64(x, kernel))


def training(padding: Any, dtype: Any = np.float32, *, pads_first: bool = False, **options: Any) -> Any:
    def fn(x: Any, kernel: Any) -> Any:
        def convolve(x: Any, kernel: Any) -> Any:
            if pads_first:
                widths = (
                    lax.padtype_to_pads(x.shape[1:3], (3, 3), (1, 1), padding) if isinstance(padding, str) else padding
                )
                x = lax.pad(x, np.float32(0), [(0, 0, 0), *((low, high, 0) for low, high in widths), (0, 0, 0)])
                return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=NHWC)
            return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=NHWC, **options)

        y, pullback = jax.vjp(convolve, x.astype(dtype), kernel.astype(dtype))
        return y, pullback(y)

    return fn


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "padding"),
    [
        (6, 7, "VALID"),
        (9, 4, "SAME"),
        (8, 13, ((0, 2), (1, 3))),
        (11, 5, ((3, 1), (2, 2))),
        (9, 12, ((-1, 0), (2, -1))),
    ],
)
def test_training_equals_xlas(height, width, padding, lanes, winograds):
    x, kernel = arrays(height, width)
    xs = np.stack([x.transpose(2, 0, 1, 3) * (i + 1) for i in range(lanes)])
    kernels = np.stack([kernel + i for i in range(lanes)])
    fn = training(padding)
    got = jax.jit(lambda own: mapped(lambda _, own: fn(*own), (), own))((xs, kernels))
    # XLA pads by an operation of its own: its gradients of kernels in wider padding hold uninitialised memory on a CPU.
    plain = jax.jit(training(padding, pads_first=True))
    one_by_one = [plain(*own) for own in zip(xs, kernels, strict=True)]
    assert_close(got, jax.tree.map(lambda *ys: np.stack(ys), *one_by_one))
    assert winograds == ["forward", "input_gradient", "kernel_gradient"]


@pytest.fixture
def winograds(monkeypatch) -> list[str]:
    """The names of the forms that are taken, sorted."""
    taken: list[str] = []

    def spy(name: str) -> Any:
        form = getattr(winograd, name)

        def called(*args: Any) -> Any:
            taken.append(name)
            taken.sort()
            return form(*args)

        return called

    for name in ("forward", "input_gradient", "kernel_gradient"):
        monkeypatch.setattr(winograd, name, spy(name))
    return taken


@pytest.mark.parametrize(
    ("dtype", "channels", "options"),
    [
        (jnp.bfloat16, 8, {}),
        (np.float32, 7, {}),
        (np.float32, 8, {"precision": "highest"}),
        (np.float32, 8, {"rhs_dilation": (1, 2)}),
    ],
)
def test_where_it_would_lose_digits_or_time_it_is_not_taken(dtype, channels, options, winograds):
    x, kernel = arrays(channels=channels)
    fn = training("SAME", dtype, **options)
    x = x.transpose(2, 0, 1, 3)
    got = jax.jit(lambda x, kernel: rewritten(fn, x, kernel))(x, kernel)
    assert not winograds
    want = jax.jit(fn)(x, kernel)
    tolerance = 1e-5 if dtype is np.float32 else 1e-2
    assert_close(jax.tree.map(np.float32, got), jax.tree.map(np.float32, want), tolerance)


@pytest.mark.parametrize("lanes", [1, 3])
def test_inside_of_a_loop_with_a_condition(lanes):
    x, kernel = arrays(filters=8)
    fn = training("SAME")

    def steps(shared: Any, own: Any) -> Any:
        images, (kernel, num_steps) = shared, own

        def step(kernel: Any, i: Any) -> Any:
            def descend(kernel: Any) -> Any:
                return kernel - 0.001 * fn(images, kernel)[1][1]

            return lax.cond(i < num_steps, descend, lambda kernel: kernel, kernel), None

        return lax.scan(step, kernel, jnp.arange(4))[0]

    images = x.transpose(2, 0, 1, 3)
    own = np.stack([0.1 * kernel * (i + 1) for i in range(lanes)]), np.arange(2, 2 + lanes)
    got = jax.jit(lambda own: mapped(steps, images, own))(own)
    assert_close(got, np.stack([jax.jit(steps)(images, one) for one in zip(*own, strict=True)]))


def test_one_exported_program_serves_several_platforms_and_any_number_of_clients():
    x, kernel = arrays()
    images, fn = x.transpose(2, 0, 1, 3), training("SAME")
    (clients,) = jax.export.symbolic_shape("clients")
    exported = jax.export.export(
        jax.jit(lambda kernels: mapped(lambda images, kernel: fn(images, kernel), images, kernels)),
        platforms=("cpu", "cuda"),
    )(jax.ShapeDtypeStruct((clients, *kernel.shape), np.float32))
    for num_clients in (1, 3):
        kernels = np.stack([kernel * (i + 1) for i in range(num_clients)])
        want = jax.tree.map(lambda *ys: np.stack(ys), *(jax.jit(fn)(images, k) for k in kernels))
        assert_close(exported.call(kernels), want)


def test_gradients_pass_through():
    x, kernel = arrays()
    images, fn = x.transpose(2, 0, 1, 3), training("VALID")

    def total(run: Any) -> Any:
        return jax.jit(jax.grad(lambda kernel: sum(map(jnp.sum, jax.tree.leaves(run(kernel))))))(kernel)

    got = total(lambda kernel: mapped(lambda images, k: fn(images, k), images, kernel[None]))
    assert_close(got, total(lambda kernel: fn(images, kernel)))


@pytest.mark.parametrize("size", [14, 15])
def test_what_sees_only_zeros_is_exactly_zero(size):
    """As with a plain convolution; a ReLU would let gradients through rounding errors of either sign."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, size, size, 8)).astype(np.float32)
    x[:, :, 3:11, 2:12] = 0
    kernel = rng.normal(size=(3, 3, 3, 8, 16)).astype(np.float32)

    def convolved(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)

    got = jax.jit(lambda x, k: mapped(lambda _, own: convolved(*own), None, (x, k)))(x, kernel)
    expected = np.stack([convolved(*own) for own in zip(x, kernel, strict=True)])
    assert (expected[:, :, 4:10, 3:11] == 0).all()
    np.testing.assert_array_equal(got == 0, expected == 0)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
