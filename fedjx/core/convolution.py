"""Convolutions with a kernel per client, as matrix products.

Under the client map a convolution whose kernel differs between clients becomes a grouped
convolution, which XLA runs 20 to 80 times slower than a loop over the clients. `by_products`
rewrites the traced function of one client, before it is mapped: such a convolution (forward,
input gradient and kernel gradient are all ordinary convolutions by then) becomes slices and one
matrix product, which map well. Any model takes this path as it is. What remains are ordinary
operations, so every transformation of JAX still applies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from fedjx.core.early_stop import FOLD, stops_early, while_loop

PyTree = Any


def by_products(fn: Callable[..., PyTree], shared: PyTree, own: PyTree, *, stop_early: bool = False) -> PyTree:
    """Evaluates ``fn(shared, own)`` with its per-client convolutions rewritten.

    Args:
      fn: The function of one client, traceable.
      shared: What all clients have in common; a kernel made of this alone stays a convolution.
      own: What is each client's own.
      stop_early: Whether loops over sequences end with the longest, and have no derivative in reverse.
    """
    flat, treedef = jax.tree.flatten((shared, own))
    closed, shape = jax.make_jaxpr(lambda *xs: fn(*treedef.unflatten(xs)), return_shape=True)(*flat)
    wanted = frozenset(["conv_general_dilated"] + [FOLD] * stop_early)
    if not _has(wanted, closed.jaxpr):
        return jax.tree.unflatten(jax.tree.structure(shape), jaxpr_as_fun(closed)(*flat))
    num_shared = len(jax.tree.leaves(shared))
    is_own = [False] * num_shared + [True] * (len(flat) - num_shared)
    results, _ = _evaluate(closed, flat, is_own, wanted)
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def _has(names: frozenset[str], jaxpr: Jaxpr) -> bool:
    return any(
        eqn.primitive.name in names
        or eqn.params.get("name") in names
        or any(_has(names, inner) for inner in _inner(eqn.params.values()))
        for eqn in jaxpr.eqns
    )


def _inner(params: Iterable[Any]) -> list[Jaxpr]:
    found = []
    for value in params:
        for x in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(x, ClosedJaxpr):
                found.append(x.jaxpr)
            elif isinstance(x, Jaxpr):
                found.append(x)
    return found


def _evaluate(
    closed: ClosedJaxpr, args: list[Any], is_own: list[bool], wanted: frozenset[str]
) -> tuple[list[Any], list[bool]]:
    """Evaluates a program, and tells which results depend on what is each client's own."""
    jaxpr = closed.jaxpr
    values: dict[Any, tuple[Any, bool]] = {v: (x, False) for v, x in zip(jaxpr.constvars, closed.consts, strict=True)}
    values |= dict(zip(jaxpr.invars, zip(args, is_own, strict=True), strict=True))

    def read(v: Any) -> tuple[Any, bool]:
        return (v.val, False) if isinstance(v, Literal) else values[v]

    for eqn in jaxpr.eqns:
        inputs, flags = zip(*map(read, eqn.invars), strict=True) if eqn.invars else ((), ())
        outputs, out_flags = _apply(jaxpr, eqn, list(inputs), list(flags), wanted)
        values |= dict(zip(eqn.outvars, zip(outputs, out_flags, strict=True), strict=True))
    results = [read(v) for v in jaxpr.outvars]
    return [x for x, _ in results], [flag for _, flag in results]


def _apply(
    jaxpr: Jaxpr, eqn: Any, inputs: list[Any], flags: list[bool], wanted: frozenset[str]
) -> tuple[list[Any], list[bool]]:
    name, params = eqn.primitive.name, eqn.params
    if name == "conv_general_dilated" and flags[1]:
        return [_products(*inputs, **params)], [True]
    if name in _INSIDE and (params.get("name") in wanted or any(_has(wanted, x) for x in _inner(params.values()))):
        # What goes in as anyone's own makes all of it their own; a mistaken True costs speed only.
        def part(jaxpr: Jaxpr | ClosedJaxpr) -> Callable[..., list[Any]]:
            closed = jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())
            return lambda *args: _evaluate(closed, list(args), [any(flags)] * len(args), wanted)[0]

        inside = _stopped_early if params.get("name") in wanted and stops_early(params["jaxpr"]) else _INSIDE[name]
        outputs = inside(params, inputs, part)
        return outputs, [any(flags)] * len(outputs)
    # A program of this one step: JAX knows best how each of its primitives is called.
    variables = {v: x for v, x in zip(eqn.invars, inputs, strict=True) if not isinstance(v, Literal)}
    alone = jaxpr.replace(constvars=[], invars=list(variables), outvars=eqn.outvars, eqns=[eqn])
    outputs = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*variables.values())
    return list(outputs), [any(flags)] * len(outputs)


# How to run an operation that holds programs, given what makes a rewritten function of each.
Part = Callable[[Any], Callable[..., list[Any]]]


def _call(params: dict[str, Any], inputs: list[Any], part: Part) -> list[Any]:
    return part(params["jaxpr"])(*inputs)


def _stopped_early(params: dict[str, Any], inputs: list[Any], part: Part) -> list[Any]:
    return while_loop(params["jaxpr"], inputs, part)


def _remat(params: dict[str, Any], inputs: list[Any], part: Part) -> list[Any]:
    options = {name: params[name] for name in ("policy", "prevent_cse")}
    return list(jax.checkpoint(part(params["jaxpr"]), **options)(*inputs))


def _scan(params: dict[str, Any], inputs: list[Any], part: Part) -> list[Any]:
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    step = part(params["jaxpr"])
    consts, carry, xs = inputs[:num_consts], inputs[num_consts:][:num_carry], inputs[num_consts + num_carry :]

    def body(carry: tuple[Any, ...], xs: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        results = step(*consts, *carry, *xs)
        return tuple(results[:num_carry]), tuple(results[num_carry:])

    kept = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(body, tuple(carry), tuple(xs), **kept)
    return [*carry, *ys]


def _while(params: dict[str, Any], inputs: list[Any], part: Part) -> list[Any]:
    num_tests, num_bodies = params["cond_nconsts"], params["body_nconsts"]
    goes_on, body = part(params["cond_jaxpr"]), part(params["body_jaxpr"])
    tests, bodies = inputs[:num_tests], inputs[num_tests:][:num_bodies]
    start = tuple(inputs[num_tests + num_bodies :])
    end = lax.while_loop(lambda c: goes_on(*tests, *c)[0], lambda c: tuple(body(*bodies, *c)), start)
    return list(end)


def _cond(params: dict[str, Any], inputs: list[Any], part: Part) -> list[Any]:
    return list(lax.switch(inputs[0], [part(branch) for branch in params["branches"]], *inputs[1:]))


# The operations that hold programs of their own, under the names of JAX 0.10 and later.
_INSIDE = {
    "jit": _call,
    "pjit": _call,
    "remat2": _remat,
    "checkpoint": _remat,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


def _products(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    window_strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    precision: Any,
    preferred_element_type: Any,
    **_: Any,
) -> jax.Array:
    """Computes `lax.conv_general_dilated` by slicing the input and one matrix product."""
    spec = dimension_numbers
    x = lax.transpose(lhs, (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1]))  # [N, ..., C]
    kernel = lax.transpose(rhs, (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]))  # [..., I, O]
    inside = [(low, high, dilation - 1) for (low, high), dilation in zip(padding, lhs_dilation, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inside, (0, 0, 0)])
    taps = kernel.shape[:-2]
    spans = [(k - 1) * d + 1 for k, d in zip(taps, rhs_dilation, strict=True)]
    outputs = [(size - span) // s + 1 for size, span, s in zip(x.shape[1:-1], spans, window_strides, strict=True)]
    columns = _columns(x, taps, outputs, window_strides, rhs_dilation)  # [N, out, tap * C]

    groups, batches = feature_group_count, batch_group_count
    num_taps, num_outputs = math.prod(taps), math.prod(outputs)
    in_group, out_group = kernel.shape[-2], kernel.shape[-1] // (groups * batches)
    options = {"precision": precision, "preferred_element_type": preferred_element_type}
    if groups * batches == 1:
        product = jnp.dot(columns.reshape(-1, num_taps * in_group), kernel.reshape(-1, out_group), **options)
    else:
        columns = columns.reshape(batches, -1, num_outputs, num_taps, groups, in_group)
        kernel = kernel.reshape(num_taps, in_group, batches, groups, out_group)
        product = jnp.einsum("bnotgi,tibgf->nobgf", columns, kernel, **options)
    product = product.reshape(-1, *outputs, batches * groups * out_group)
    order = (spec.out_spec[0], *spec.out_spec[2:], spec.out_spec[1])
    return lax.transpose(product, tuple(order.index(i) for i in range(len(order))))


def _columns(x: jax.Array, taps: Any, outputs: Any, strides: Any, dilation: Any) -> jax.Array:
    """Gathers what every output position sees, ``[N, out, tap * C]``, in the fewer slices of two ways.

    A kernel of few taps is slid over the input; a kernel gradient has few outputs and many taps.
    """

    def cut(start: Any, size: Any, start_step: Any, step: Any) -> jax.Array:
        low = [i * s for i, s in zip(start, start_step, strict=True)]
        high = [a + (n - 1) * s + 1 for a, n, s in zip(low, size, step, strict=True)]
        return lax.slice(x, [0, *low, 0], [x.shape[0], *high, x.shape[-1]], [1, *step, 1])

    if math.prod(taps) <= math.prod(outputs):
        slices = [cut(tap, outputs, dilation, strides) for tap in itertools.product(*map(range, taps))]
        return jnp.concatenate(slices, axis=-1).reshape(x.shape[0], math.prod(outputs), -1)
    slices = [cut(output, taps, strides, dilation) for output in itertools.product(*map(range, outputs))]
    return jnp.stack([s.reshape(x.shape[0], -1) for s in slices], axis=1)
