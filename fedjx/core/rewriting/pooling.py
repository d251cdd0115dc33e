"""Pooling, and the gradient of max-pooling, as elementwise operations on the slices of a window.

XLA's own loops over windows are slow on a CPU, more so under the client map. The values are the
same, ties, NaN and padding included; a sum may add in another order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.jaxprs import Equation
from fedjx.core.rewriting.windows import num_positions, overlap_add, padded, slices

# How two elements combine, and the element that changes nothing.
_POOLS = {
    "reduce_window_max": (lax.max, -np.inf),
    "reduce_window_min": (lax.min, np.inf),
    "reduce_window_sum": (lax.add, 0),
}
_GRADIENT = "select_and_scatter_add"
# Beyond this, unrolling compiles slowly and XLA's loop is as good.
_MOST_SLICES = 32


def is_unrolled(eqn: Equation) -> bool:
    """Tells whether `pool` computes an equation."""
    name = jaxprs.name_of(eqn)
    if name not in (*_POOLS, _GRADIENT) or not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return False
    params = jaxprs.parameters(eqn)
    if params is None:
        return False
    window = params["window_dimensions"]
    if name == _GRADIENT:
        return params["select"] is not None and math.prod(window) <= _MOST_SLICES
    return sum(window) - len(window) < _MOST_SLICES


def pool(eqn: Equation, *operands: jax.Array) -> jax.Array:
    """Computes ``reduce_window_max``, ``_min``, ``_sum`` or ``select_and_scatter_add``."""
    name, params = jaxprs.name_of(eqn), jaxprs.parameters(eqn)
    assert params is not None
    select = params.pop("select", None)
    window = _window(**params)
    first, *others = (lax.transpose(x, window.order) for x in operands)
    if name == _GRADIENT:
        result = _scatter(first, *others, window=window, select=select)
    else:
        result = _reduce(first, window, *_POOLS[name])
    return lax.transpose(result, np.argsort(window.order))


class _Window(NamedTuple):
    """A window over leading axes; `order` brings them to the front."""

    order: tuple[int, ...]
    size: list[int]
    strides: list[int]
    padding: list[tuple[int, int, int]]
    dilation: list[int]


def _window(
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    window_dilation: Sequence[int] | None = None,
    base_dilation: Sequence[int] | None = None,
) -> _Window:
    rank = len(window_dimensions)
    dilation, inside = window_dilation or (1,) * rank, base_dilation or (1,) * rank
    widths = [(low, high, d - 1) for (low, high), d in zip(padding, inside, strict=True)]
    everything = zip(window_dimensions, window_strides, widths, strict=True)
    axes = [i for i, (size, stride, width) in enumerate(everything) if size > 1 or stride > 1 or any(width)]
    return _Window(
        (*axes, *(i for i in range(rank) if i not in axes)),
        [window_dimensions[i] for i in axes],
        [window_strides[i] for i in axes],
        [widths[i] for i in axes],
        [dilation[i] for i in axes],
    )


def _reduce(
    x: jax.Array, window: _Window, combine: Callable[[jax.Array, jax.Array], jax.Array], neutral: float
) -> jax.Array:
    """Combines the elements of a window axis by axis."""
    x = padded(x, window.padding, neutral)
    outputs = num_positions(x.shape, window.size, window.strides, window.dilation)
    for axis, n in enumerate(outputs):
        # Along the other axes the window is of one element, and at every position.
        size, strides = ([v if i == axis else 1 for i, v in enumerate(vs)] for vs in (window.size, window.strides))
        seen = [n if i == axis else x.shape[i] for i in range(len(outputs))]
        x = functools.reduce(combine, slices(x, size, seen, strides, window.dilation).values())
    return x


def _scatter(g: jax.Array, x: jax.Array, window: _Window, select: str | None) -> jax.Array:
    """Sends each ``g`` to the element of its window that XLA selects: the first of equals."""
    size, outputs = x.shape[: len(window.size)], g.shape[: len(window.size)]
    x = padded(x, window.padding, -np.inf if select == "max" else np.inf)
    elements = slices(x, window.size, outputs, window.strides, window.dilation)
    (_, best), *others = elements.items()
    chosen = jnp.zeros(g.shape, jnp.int32)
    for number, (_, candidate) in enumerate(others, start=1):
        stays = best >= candidate if select == "max" else best <= candidate
        best, chosen = jnp.where(stays, best, candidate), jnp.where(stays, chosen, number)
    parts = {index: jnp.where(chosen == n, g, jnp.zeros((), g.dtype)) for n, index in enumerate(elements)}
    total = overlap_add(parts, window.strides)
    ends = zip(window.padding, size, total.shape, strict=False)
    return padded(total, [(-low, low + n - full, 0) for (low, _, _), n, full in ends])
