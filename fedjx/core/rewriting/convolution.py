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
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjx.core.rewriting import winograd
from fedjx.core.rewriting.jaxprs import Parameters
from fedjx.core.rewriting.windows import num_positions, padded, slices

Ints = Sequence[int]


class _Form(NamedTuple):
    """The parameters of `lax.conv_general_dilated` as they are used here, and the number of outputs."""

    outputs: list[int]
    taps: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: list[tuple[int, int, int]]
    feature_groups: int
    batch_groups: int
    options: Parameters

    @property
    def is_kernel_gradient(self) -> bool:
        return math.prod(self.taps) > math.prod(self.outputs)


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
    return _Form(outputs, taps, strides, dilation, padding, *groups, options)


def _computed(x: jax.Array, kernel: jax.Array, flipped: jax.Array | None, form: _Form) -> jax.Array:
    """Computes ``[*outputs, N, O]`` from ``[*spatial, N, C]`` and ``[*taps, I, O]``."""
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
    """Tells whether a convolution is one with 3 x 3 taps, of arrays large enough to gain."""
    small, large = (form.outputs, form.taps) if form.is_kernel_gradient else (form.taps, form.outputs)
    return (
        list(small) == [3, 3]
        and min(large) >= 4
        and min(x.shape[-1], kernel.shape[-1]) >= 8
        and {*form.strides, *form.dilation} == {1}
        and not any(inside for _, _, inside in form.padding)
        # Its transforms would lose the digits of narrower types, and some of those asked for by a precision.
        and x.dtype == kernel.dtype == jnp.float32
        and form.options["precision"] in (None, (lax.Precision.DEFAULT,) * 2)
        and form.options["preferred_element_type"] in (None, jnp.float32)
    )


def _winograd(x: jax.Array, kernel: jax.Array, flipped: jax.Array | None, form: _Form) -> jax.Array:
    if form.is_kernel_gradient:
        return winograd.kernel_gradient(padded(x, form.padding), kernel)
    if flipped is None:
        x = padded(x, form.padding)
        # What sees only zeros is zero, not a rounding error: a ReLU after it would let gradients through.
        seen = functools.reduce(
            operator.or_, slices(jnp.any(x != 0, axis=-1), form.taps, form.outputs, (1, 1), (1, 1)).values()
        )
        return jnp.where(seen[..., None], winograd.forward(x, kernel), 0)
    # The kernel added at every place of the input, of which the padding cuts out a part.
    whole = winograd.input_gradient(x, jnp.swapaxes(flipped, 2, 3))
    return padded(whole, [(low - 2, high - 2, 0) for low, high, _ in form.padding])


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
    return functools.reduce(operator.add, parts)


def _correlated(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
    """Computes a kernel gradient: outputs and taps, strides and dilation change places."""
    columns = _columns(x, form.outputs, form.taps, form.dilation, form.strides, form.padding)
    product = lax.dot_general(
        columns.reshape(-1, columns.shape[-1]),
        kernel.reshape(-1, kernel.shape[-1]),
        (((0,), (0,)), ((), ())),
        **form.options,
    )
    return product.reshape(*form.outputs, -1, kernel.shape[-1])


def _grouped(x: jax.Array, kernel: jax.Array, form: _Form) -> jax.Array:
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


def _columns(
    x: jax.Array, window: Ints, positions: Ints, strides: Ints, dilation: Ints, padding: list[tuple[int, int, int]]
) -> jax.Array:
    """Gathers what a window sees at every position: ``[*positions, N, element * C]``."""
    return jnp.concatenate(list(slices(padded(x, padding), window, positions, strides, dilation).values()), axis=-1)
