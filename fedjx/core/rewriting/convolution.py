"""Convolutions with a kernel per client, as matrix products.

Under the client map a convolution whose kernel differs between clients becomes a grouped
convolution, which XLA runs 20 to 80 times slower than a loop over the clients. `convolution`
computes any of them by slices and matrix products, which map well: by Winograd's algorithm where
it pays, or else by gathering what every output position sees. Forward pass, input gradient and
kernel gradient are all ordinary convolutions; the last has few outputs and a large kernel.

Arrays are ``[*spatial, N, C]`` inside, so that slices consist of long contiguous rows. XLA chooses
layouts in which the transposes at both ends, and those of the operations between, cost nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjx.core.rewriting import jaxprs, products, winograd
from fedjx.core.rewriting.jaxprs import Parameters
from fedjx.core.rewriting.windows import fitted, interleave, num_positions, padded, slices

Ints = Sequence[int]
# So many groups of a convolution are convolved apart; of more the copies would be too small, and too many to compile.
_FEW_GROUPS = 8


class _Form(NamedTuple):
    """The parameters of `lax.conv_general_dilated` as they are used here, the number of outputs and their dtype."""

    outputs: list[int]
    taps: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: list[tuple[int, int, int]]
    feature_groups: int
    batch_groups: int
    options: Parameters
    dtype: jnp.dtype
    is_kernel_gradient: bool

    @property
    def has_phases(self) -> bool:
        """Whether zeros between the input's elements are all that a convolution skips, and it skips some."""
        spread = [inside > 0 for _, _, inside in self.padding]
        simple = zip(spread, self.strides, self.dilation, strict=True)
        return any(spread) and all(s == d == 1 for inside, s, d in simple if inside)

    def is_depthwise(self, x: jax.Array, kernel: jax.Array) -> bool:
        """Tells whether every channel has kernels of its own."""
        if self.is_kernel_gradient:  # its batch is the forward pass's channels
            return self.feature_groups == 1 and self.batch_groups == x.shape[-1] > 1
        return self.batch_groups == 1 and self.feature_groups == x.shape[-1] > 1


def convolution(lhs: jax.Array, rhs: jax.Array, flipped: jax.Array | None = None, **params: Any) -> jax.Array:
    """Computes `lax.conv_general_dilated`.

    Args:
      lhs: The input.
      rhs: The kernel.
      flipped: The kernel reversed along all spatial axes, where it is at hand: an input gradient
        has the reversed kernel of its forward pass.
      **params: The parameters of the primitive.
    """
    spec = params["dimension_numbers"]
    form = _form(lhs, rhs, params)
    batch, feature = spec.lhs_spec[:2]
    # [*spatial, N, C]; a kernel gradient sums over what it calls features: the batch of the forward pass.
    rest = (feature, batch) if form.is_kernel_gradient else (batch, feature)
    x = lax.transpose(lhs, (*spec.lhs_spec[2:], *rest))
    kernel = _spatial_first(rhs, spec)
    flipped = None if flipped is None else _spatial_first(flipped, spec)
    result = _computed(x, kernel, flipped, form)
    order = (*spec.out_spec[2:], *spec.out_spec[:2])
    return lax.transpose(result, np.argsort(order))


def _spatial_first(kernel: jax.Array, spec: lax.ConvDimensionNumbers) -> jax.Array:
    out_feature, in_feature, *spatial = spec.rhs_spec
    return lax.transpose(kernel, (*spatial, in_feature, out_feature))


def _form(lhs: jax.Array, rhs: jax.Array, params: Parameters) -> _Form:
    spec, dilations = params["dimension_numbers"], params["lhs_dilation"]
    padding = [(low, high, d - 1) for (low, high), d in zip(params["padding"], dilations, strict=True)]
    sizes = [
        low + high + n + max(n - 1, 0) * inside
        for n, (low, high, inside) in zip([lhs.shape[i] for i in spec.lhs_spec[2:]], padding, strict=True)
    ]
    taps = tuple(rhs.shape[i] for i in spec.rhs_spec[2:])
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    outputs = num_positions(sizes, taps, strides, dilation)
    groups = params["feature_group_count"], params["batch_group_count"]
    options = {key: params[key] for key in ("precision", "preferred_element_type")}
    is_kernel_gradient = math.prod(taps) > math.prod(outputs)
    dtype = options["preferred_element_type"] or jnp.promote_types(lhs.dtype, rhs.dtype)
    return _Form(outputs, taps, strides, dilation, padding, *groups, options, dtype, is_kernel_gradient)


def _computed(x: jax.Array, kernel: jax.Array, flipped: jax.Array | None, form: _Form) -> jax.Array:
    """Computes ``[*outputs, N, O]`` from ``[*spatial, N, C]`` and ``[*taps, I, O]``."""
    if form.has_phases:
        return _by_phases(x, kernel, form)
    if form.is_depthwise(x, kernel):
        return _depthwise_gradient(x, kernel, form) if form.is_kernel_gradient else _depthwise(x, kernel, form)
    if form.feature_groups * form.batch_groups > 1:
        return _grouped(x, kernel, form)
    direct = functools.partial(_correlated if form.is_kernel_gradient else _direct, form=form)
    if not _suits_winograd(x, kernel, form):
        return direct(x, kernel)
    # Chosen when the program is lowered, so an exported one is right for all of its platforms.
    return lax.platform_dependent(
        x,
        kernel,
        flipped,
        cpu=functools.partial(_winograd, form=form),
        default=lambda x, kernel, _: direct(x, kernel),
    )


def _suits_winograd(x: jax.Array, kernel: jax.Array, form: _Form) -> bool:
    """Tells whether a convolution is one with few taps, stride 1, of arrays large enough to gain."""
    small, large = (form.outputs, form.taps) if form.is_kernel_gradient else (form.taps, form.outputs)
    return (
        len(small) > 1
        and {*small} <= {*winograd.TAPS}
        and min(large) >= 4
        and min(x.shape[-1], kernel.shape[-1]) >= 8
        and {*form.strides, *form.dilation} == {1}
        and not any(inside for _, _, inside in form.padding)
        # Its transforms would lose the digits of narrower types, and some of those asked for by a precision.
        and x.dtype == kernel.dtype == form.dtype == jnp.float32
        and form.options["precision"] in (None, (lax.Precision.DEFAULT,) * 2)
    )


def _winograd(x: jax.Array, kernel: jax.Array, flipped: jax.Array | None, form: _Form) -> jax.Array:
    if form.is_kernel_gradient:
        return winograd.kernel_gradient(padded(x, form.padding), kernel)
    if flipped is None:
        x = padded(x, form.padding)
        # What sees only zeros is zero, not a rounding error: a ReLU after it would let gradients through.
        seen = functools.reduce(
            operator.or_,
            slices(jnp.any(x != 0, axis=-1), form.taps, form.outputs, form.strides, form.dilation).values(),
        )
        return jnp.where(seen[..., None], winograd.forward(x, kernel), 0)
    # The kernel added at every place of the input, of which the padding cuts out a part.
    whole = winograd.input_gradient(x, jnp.swapaxes(flipped, -1, -2))
    around = zip(form.padding, form.taps, strict=True)
    return padded(whole, [(low - taps + 1, high - taps + 1, 0) for (low, high, _), taps in around])


def _direct(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    """Gathers and multiplies, or multiplies and adds at shifted places: whichever makes the smaller array."""
    gathered, multiplied = math.prod(form.outputs) * x.shape[-1], math.prod(x.shape[:-2]) * kernel.shape[-1]
    if multiplied >= gathered or x.dtype.itemsize < 4:  # narrow types are to be added up inside of the product
        columns = _columns(x, form.taps, form.outputs, form.strides, form.dilation, form.padding)
        return jnp.dot(columns, kernel.reshape(-1, kernel.shape[-1]), **form.options)
    num_out = kernel.shape[-1]
    taps = jnp.moveaxis(kernel.reshape(-1, *kernel.shape[-2:]), 0, 1)  # [I, tap, O]
    products = padded(jnp.dot(x, taps.reshape(x.shape[-1], -1), **form.options), form.padding)
    seen = slices(products, form.taps, form.outputs, form.strides, form.dilation)
    parts = (part[..., i * num_out :][..., :num_out] for i, part in enumerate(seen.values()))
    return functools.reduce(lax.add, parts)


def _correlated(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    """Computes a kernel gradient: outputs and taps, strides and dilation change places."""
    columns = _columns(x, form.outputs, form.taps, form.dilation, form.strides, form.padding)
    columns, weights = columns.reshape(-1, columns.shape[-1]), kernel.reshape(-1, kernel.shape[-1])
    options = {"dimension_numbers": (((0,), (0,)), ((), ())), **form.options}
    if columns.shape[1] > weights.shape[1]:
        product = products.product(weights, columns, **options).T
    else:
        product = products.product(columns, weights, **options)
    return product.reshape(*form.outputs, -1, kernel.shape[-1])


def _by_phases(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    """Convolves an input with zeros between its elements, as of a strided convolution's input gradient, without them.

    With ``d - 1`` zeros between two elements, outputs that are d apart see elements with the same taps, every d-th, and
    zeros with the others. So each of the d phases along an axis is an ordinary convolution with a part of the kernel.
    """
    steps = [inside + 1 for _, _, inside in form.padding]
    counts = [-(-n // step) for n, step in zip(form.outputs, steps, strict=True)]
    num_rows = x.shape[-1 if form.is_kernel_gradient else -2] // form.batch_groups
    grid = {}
    for phase in itertools.product(*map(range, steps)):
        part, padding = kernel, []
        for axis, (first, step, (low, high, _)) in enumerate(zip(phase, steps, form.padding, strict=True)):
            if step > 1:
                tap = (low - first) % step  # the first that sees an element
                part = lax.slice_in_dim(part, min(tap, part.shape[axis]), part.shape[axis], step, axis)
                low = (low - first - tap) // step
                high = counts[axis] + part.shape[axis] - 1 - low - x.shape[axis]
            padding.append((low, high, 0))
        taps = part.shape[:-2]
        shape = (*counts, num_rows, kernel.shape[-1])
        own = form._replace(outputs=counts, taps=taps, padding=padding)
        grid[phase] = _computed(x, part, None, own) if math.prod(taps) else jnp.zeros(shape, form.dtype)
    return fitted(interleave(grid, len(steps)), form.outputs)


def _depthwise(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    """Adds up the input at shifted places, times one number a channel: XLA makes one loop of it."""
    # Padded apart, or every term would ask at every place whether it is within the input.
    x = lax.optimization_barrier(padded(x, form.padding))
    x, kernel = _wide(jnp.repeat(x, kernel.shape[-1] // x.shape[-1], axis=-1)), _wide(kernel)
    seen = slices(x, form.taps, form.outputs, form.strides, form.dilation)
    terms = [lax.mul(part, jnp.broadcast_to(kernel[tap][0], part.shape)) for tap, part in seen.items()]
    return functools.reduce(lax.add, terms).astype(form.dtype)


def _depthwise_gradient(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    """Computes a depthwise kernel gradient ``[*outputs, 1, O]``, row by row; the arguments are those of `_correlated`.

    A sum of a product over all axes but the last is slow; a sum of rows is an ordinary loop, and leaves little to sum.
    """
    x = lax.optimization_barrier(jnp.repeat(padded(x, form.padding), kernel.shape[-1] // x.shape[-1], axis=-1))
    (num_rows, *rest), (step, *strides), (apart, *dilation) = form.taps, form.dilation, form.strides
    taps, *others = form.outputs

    def add_row(row: jax.Array, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        g = _wide(lax.dynamic_index_in_dim(kernel, row, keepdims=False))  # [*rest, N, O]
        rows = [lax.dynamic_index_in_dim(x, row * step + tap * apart, keepdims=False) for tap in range(taps)]
        seen = [part for own in rows for part in slices(own, others, rest, strides, dilation).values()]
        return tuple(lax.add(total, lax.mul(_wide(part), g)) for total, part in zip(totals, seen, strict=True))

    zeros = (jnp.zeros_like(_wide(kernel[0])),) * math.prod(form.outputs)
    totals = lax.fori_loop(0, num_rows, add_row, zeros)
    sums = [jnp.sum(total, axis=tuple(range(total.ndim - 1))) for total in totals]
    return jnp.stack(sums).reshape(*form.outputs, 1, -1).astype(form.dtype)


def _wide(x: jax.Array) -> jax.Array:
    """Widens narrow floats to float32, in which they are added up."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _grouped(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    if form.feature_groups * form.batch_groups <= _FEW_GROUPS:
        return _one_by_one(x, kernel, form)
    features, batches = form.feature_groups, form.batch_groups
    weights = kernel.reshape(math.prod(form.taps), -1, batches, features, kernel.shape[-1] // (features * batches))
    num_in, num_taps, num_outputs = weights.shape[1], math.prod(form.taps), math.prod(form.outputs)
    if form.is_kernel_gradient:
        columns = _columns(x, form.outputs, form.taps, form.dilation, form.strides, form.padding)
        columns = columns.reshape(num_taps, features, num_in, num_outputs, batches, -1)
        product = jnp.einsum("tgiobn,tibgf->onbgf", columns, weights, **form.options)
    else:
        columns = _columns(x, form.taps, form.outputs, form.strides, form.dilation, form.padding)
        columns = columns.reshape(num_outputs, batches, -1, num_taps, features, num_in)
        product = jnp.einsum("obntgi,tibgf->onbgf", columns, weights, **form.options)
    return product.reshape(*form.outputs, -1, kernel.shape[-1])


def _one_by_one(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    """Convolves a few groups apart, each of which may take a better way than products of all of them.

    Groups of features are slices of the input's channels, or of a kernel gradient's images, groups of the batch slices
    of the other axis; each has its slice of the kernel's outputs.
    """
    num_groups, of_features = form.feature_groups * form.batch_groups, form.feature_groups > 1
    axis = -1 if of_features != form.is_kernel_gradient else -2
    inputs, kernels = jnp.split(x, num_groups, axis), jnp.split(kernel, num_groups, axis=-1)
    own = form._replace(feature_groups=1, batch_groups=1)

    @jax.jit
    def group(x: jax.Array, kernel: jax.Array) -> jax.Array:
        with jaxprs.calls(inlined=True):
            return _computed(x, kernel, None, own)

    with jaxprs.calls(inlined=False):  # compiled once for all groups
        parts = list(map(group, inputs, kernels))
    return jnp.concatenate(parts, axis=-1)


def _columns(
    x: jax.Array, window: Ints, positions: Ints, strides: Ints, dilation: Ints, padding: list[tuple[int, int, int]]
) -> jax.Array:
    """Gathers what a window sees at every position: ``[*positions, N, element * C]``."""
    return jnp.concatenate(list(slices(padded(x, padding), window, positions, strides, dilation).values()), axis=-1)
