"""Counts the matrix products of a function from its traced program."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjx.core.language.values import MASK
from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.jaxprs import Equation, Program
from fedjx.models import Model, batch_loss


class Product(NamedTuple):
    """A matrix product, or a convolution seen as one.

    Attributes:
      rows: Of the left matrix; batch and output positions of a convolution.
      inner: What is summed over; taps and input channels of a convolution.
      columns: Of the right matrix; output channels of a convolution.
      flops: Multiplications and additions. A convolution's are those with its input only, so fewer
        than ``2 * rows * inner * columns`` where it is padded or dilated.
    """

    rows: int
    inner: int
    columns: int
    flops: int


def training_products(model: Model, examples: dict[str, Any], batch_size: int) -> Counter[Product]:
    """Counts the products of the gradient of one batch.

    Args:
      model: What is trained.
      examples: Features, of which the first batch serves.
      batch_size: Examples in the batch.
    """
    batch = {name: column[:batch_size] for name, column in examples.items()} | {MASK: np.ones(batch_size, bool)}
    gradient, key = jax.grad(batch_loss(model), has_aux=True), jax.random.key(0)
    return products(gradient, jax.eval_shape(model.init, key), batch, key)


def products(fn: Callable[..., Any], *args: Any) -> Counter[Product]:
    """Counts the matrix products and convolutions that a function runs, of every shape.

    Raises:
      ValueError: If one is inside a loop whose length is not known, or of a form that is not known.
    """
    program, _ = jaxprs.trace(fn, *args)
    return _in_program(program)


def total_flops(counts: Counter[Product]) -> int:
    """Sums the floating-point operations of counted products."""
    return sum(product.flops * times for product, times in counts.items())


def _in_program(program: Program) -> Counter[Product]:
    total: Counter[Product] = Counter()
    for eqn in program.equations:
        name = jaxprs.name_of(eqn)
        if name == "dot_general":
            product, times = _dot(eqn)
            total[product] += times
        elif name == "conv_general_dilated":
            total[_convolution(eqn)] += 1
        else:
            total += _inside(name, eqn)
    return total


def _inside(name: str, eqn: Equation) -> Counter[Product]:
    parts = [_in_program(inner) for inner in jaxprs.inner(eqn)]
    if name == "while" and any(parts):
        raise ValueError("products are counted in loops of known length; got one inside a while loop. Use a scan.")
    if name == "cond":
        return max(parts, key=total_flops)
    whole = sum(parts, Counter())
    times = _parameters(eqn)["length"] if name == "scan" and whole else 1
    return Counter({product: number * times for product, number in whole.items()})


def _parameters(eqn: Equation) -> dict[str, Any]:
    params = jaxprs.parameters(eqn)
    if params is None:
        raise ValueError(f"products are counted in operations that fedjx knows; got {eqn}. Use another JAX.")
    return params


def _dot(eqn: Equation) -> tuple[Product, int]:
    """Returns one product, and over how many pairs of matrices it is repeated."""
    (summed, right_summed), (repeated, right_repeated) = _parameters(eqn)["dimension_numbers"]
    left, right = (v.aval.shape for v in eqn.invars)
    rows = math.prod(n for i, n in enumerate(left) if i not in (*summed, *repeated))
    columns = math.prod(n for i, n in enumerate(right) if i not in (*right_summed, *right_repeated))
    inner = math.prod(left[i] for i in summed)
    return Product(rows, inner, columns, 2 * rows * inner * columns), math.prod(left[i] for i in repeated)


def _convolution(eqn: Equation) -> Product:
    params = _parameters(eqn)
    spec = params["dimension_numbers"]
    left, right = (v.aval.shape for v in eqn.invars)
    out = eqn.outvars[0].aval.shape
    sizes, taps, outputs = (
        [shape[i] for i in axes[2:]]
        for shape, axes in ((left, spec.lhs_spec), (right, spec.rhs_spec), (out, spec.out_spec))
    )
    pairs = [
        _pairs(*axis)
        for axis in zip(
            sizes,
            taps,
            outputs,
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ]
    channels, columns = right[spec.rhs_spec[1]], right[spec.rhs_spec[0]]
    # Groups need no case of their own: an output sums over the input channels that the kernel has.
    rows = out[spec.out_spec[0]] * math.prod(outputs)
    flops = 2 * out[spec.out_spec[0]] * math.prod(pairs) * channels * columns
    return Product(rows, math.prod(taps) * channels, columns, flops)


def _pairs(size: int, taps: int, outputs: int, stride: int, padding: Any, dilation: int, tap_dilation: int) -> int:
    """Counts, along one axis, the pairs of an output and a tap that meet an element and not the padding."""
    positions = (o * stride + t * tap_dilation - padding[0] for o in range(outputs) for t in range(taps))
    return sum(0 <= p <= (size - 1) * dilation and p % dilation == 0 for p in positions)
