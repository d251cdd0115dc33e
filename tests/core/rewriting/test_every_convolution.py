"""Any convolution, with a kernel of each client's own: the numbers of its definition, forward and in both gradients."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from jax import lax

from fedjx.core.rewriting import winograd
from fedjx.core.rewriting.rewrite import mapped

SPATIAL = {1: "W", 2: "HW", 3: "DHW"}


class Case(NamedTuple):
    """The shapes and parameters of a convolution."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    options: dict[str, Any]
    dtype: Any
    lanes: int


@st.composite
def cases(draw: Any) -> Case:
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    axis = st.integers(1, {1: 17, 2: 12, 3: 6}[rank])
    size, taps = ([draw(kind) for _ in range(rank)] for kind in (axis, st.sampled_from([1, 2, 3, 3, 3, 4, 5, 5, 7])))
    if draw(st.booleans()):  # kernels have as many taps along all axes, mostly
        taps = taps[:1] * rank
    is_plain = draw(st.booleans())
    few = st.just(1) if is_plain else st.sampled_from([1, 1, 2, 3])
    strides, rhs_dilation, lhs_dilation = ([draw(few) for _ in range(rank)] for _ in range(3))
    padding = draw(st.sampled_from(["SAME", "VALID", "own"]))
    if max(lhs_dilation) > 1 or padding == "own":
        padding = [(draw(st.integers(-1, 4)), draw(st.integers(-1, 4))) for _ in range(rank)]
    inputs = draw(st.sampled_from([1, 2, 3, 8, 9]))
    groups, batch_groups = draw(st.sampled_from([(1, 1), (1, 1), (inputs, 1), (math.gcd(inputs, 4), 1), (1, 2)]))
    batch = 2 * batch_groups
    outputs = groups * batch_groups * draw(st.sampled_from([1, 2, 8]))
    options = {
        "window_strides": strides, "padding": padding, "rhs_dilation": rhs_dilation, "lhs_dilation": lhs_dilation,
        "feature_group_count": groups, "batch_group_count": batch_groups,
        "dimension_numbers": (f"N{SPATIAL[rank]}C", f"{SPATIAL[rank]}IO", f"N{SPATIAL[rank]}C"),
    }  # fmt: skip
    dtype = draw(st.sampled_from([jnp.float32] * 5 + [jnp.bfloat16]))
    if dtype == jnp.bfloat16 and draw(st.booleans()):
        options["preferred_element_type"] = jnp.float32
    return Case(
        (batch, *size, inputs), (*taps, inputs // groups, outputs), options, dtype, draw(st.sampled_from([1, 1, 2]))
    )


def has_outputs(case: Case) -> bool:
    """Whether the convolution exists, and its input is as large as its kernel."""
    x, kernel = (jax.ShapeDtypeStruct(shape, case.dtype) for shape in (case.x, case.kernel))
    try:
        return jax.eval_shape(functools.partial(lax.conv_general_dilated, **case.options), x, kernel).size > 0
    except ValueError:  # it cuts off more than there is
        return False


def by_definition(case: Case, x: np.ndarray, kernel: np.ndarray, g: Any = None) -> Any:
    """The convolution, and with ``g`` both of its gradients, tap by tap in float64; channels come last.

    Not XLA's, whose gradient of a kernel in wide padding holds uninitialised memory on a CPU.
    """
    options, size, taps = case.options, x.shape[1:-1], kernel.shape[:-2]
    strides, dilation, apart = (options[name] for name in ("window_strides", "rhs_dilation", "lhs_dilation"))
    wide = [(n - 1) * d + 1 for n, d in zip(size, apart, strict=True)]
    reach = [(n - 1) * d + 1 for n, d in zip(taps, dilation, strict=True)]
    padding = options["padding"]
    pads = lax.padtype_to_pads(wide, reach, strides, padding) if isinstance(padding, str) else padding
    room = [max(-low, 0) for low, _ in pads]  # what negative padding cuts off
    whole = np.zeros(
        (x.shape[0], *(n + max(low, 0) + max(high, 0) for n, (low, high) in zip(wide, pads, strict=True)), x.shape[-1])
    )
    placed = tuple(slice(max(low, 0), max(low, 0) + n, d) for (low, _), n, d in zip(pads, wide, apart, strict=True))
    whole[(slice(None), *placed)] = x
    ends = [n - max(-high, 0) for n, (_, high) in zip(whole.shape[1:-1], pads, strict=True)]
    seen = whole[(slice(None), *(slice(a, b) for a, b in zip(room, ends, strict=True)))]
    outputs = [(n - r) // s + 1 for n, r, s in zip(seen.shape[1:-1], reach, strides, strict=True)]
    features, batches = options["feature_group_count"], options["batch_group_count"]
    num_in, num_out = kernel.shape[-2], kernel.shape[-1] // (features * batches)

    y = np.zeros((batches, x.shape[0] // batches, *outputs, features, num_out))
    dwhole, dkernel = np.zeros_like(whole), np.zeros((*taps, num_in, batches, features, num_out))
    dseen = dwhole[(slice(None), *(slice(a, b) for a, b in zip(room, ends, strict=True)))]
    weights = kernel.reshape(*taps, num_in, batches, features, num_out).astype(np.float64)
    if g is not None:  # [N, *outputs, O], whose channels are batch groups first
        g = np.moveaxis(g.reshape(*g.shape[:-1], batches, features, num_out), -3, 0).astype(np.float64)
    for tap in np.ndindex(*taps):
        places = zip(tap, dilation, strides, outputs, strict=True)
        at = (slice(None), *(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, s, n in places))
        part = seen[at].reshape(batches, -1, *outputs, features, num_in)
        y += np.einsum("bn...gi,ibgo->bn...go", part, weights[tap])
        if g is not None:
            dkernel[tap] = np.einsum("bpgi,bpgo->ibgo", *(a.reshape(batches, -1, *a.shape[-2:]) for a in (part, g)))
            dseen[at] += np.einsum("bn...go,ibgo->bn...gi", g, weights[tap]).reshape(seen[at].shape)
    y = np.moveaxis(y, 0, -3).reshape(x.shape[0] // batches, *outputs, -1)
    return y if g is None else (y, (dwhole[(slice(None), *placed)], dkernel.reshape(kernel.shape)))


def compared(case: Case) -> tuple[Any, Any]:
    """A forward pass and both gradients: rewritten and mapped, and by definition, client by client."""

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, **case.options)

    def train(x: jax.Array, kernel: jax.Array, g: jax.Array) -> Any:
        y, pullback = jax.vjp(convolve, x, kernel)
        return y, pullback(g.astype(y.dtype))

    x, kernel = (jax.ShapeDtypeStruct(shape, case.dtype) for shape in (case.x, case.kernel))
    y = jax.eval_shape(convolve, x, kernel)
    rng = np.random.default_rng(0)
    own = [np.asarray(rng.normal(size=(case.lanes, *a.shape)), case.dtype) for a in (x, kernel, y)]
    ours = jax.jit(lambda *own: mapped(lambda _, own: train(*own), (), own))(*own)
    exact = [np.asarray(o, np.float32) for o in own]
    theirs = [by_definition(case, *(o[i] for o in exact)) for i in range(case.lanes)]
    return ours, jax.tree.map(lambda *parts: np.stack(parts), *theirs)


@pytest.mark.timeout(900)  # JAX 0.12 takes a third of a second for each program, on a core of its own
@given(cases())
@seed(sys.version_info.minor)  # each Python draws cases of its own, always the same
@settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_any_convolution_is_what_its_definition_says(case):
    assume(has_outputs(case))
    ours, theirs = compared(case)
    tolerance = 1e-5 if case.dtype == jnp.float32 else 2e-2
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(
            np.asarray(got, np.float32), want, rtol=tolerance, atol=tolerance * np.abs(want).max()
        )


def test_the_comparison_sees_a_kernel_that_is_turned(monkeypatch):
    case = Case((2, 6, 6, 8), (3, 3, 8, 8), {
        "window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (1, 1), "lhs_dilation": (1, 1),
        "feature_group_count": 1, "batch_group_count": 1, "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }, jnp.float32, 1)  # fmt: skip
    forward = winograd.forward
    monkeypatch.setattr(winograd, "forward", lambda x, kernel: forward(x, jnp.flip(kernel, (0, 1))))
    ours, theirs = compared(case)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-4)
