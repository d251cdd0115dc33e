"""Rewrites the function of one client so that it runs well when it is mapped over clients.

`rewritten` traces a function and replaces the operations that XLA runs badly under `vmap`, before
it is mapped: convolutions whose kernel is each client's own, pooling, and the drawing of random
bits. Where nobody differentiates any more, loops over sequences end with the longest. Gradients are ordinary
operations by then and are replaced alike, and any model takes this path as it is. What remains
are ordinary operations, so every transformation of JAX still applies.

Programs inside of `jit`, `remat`, `scan`, `while` and `cond` are rewritten too. Functions with a
derivative of their own (`custom_jvp`, `custom_vjp`) that nobody has differentiated yet are left
as they are, since the rule belongs to the operation that it comes with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from fedjx.core import early_stop, pooling, threefry
from fedjx.core.convolution import convolution

PyTree = Any


def rewritten(fn: Callable[..., PyTree], shared: PyTree, own: PyTree, *, stop_early: bool = False) -> PyTree:
    """Evaluates ``fn(shared, own)`` with what runs badly under `vmap` replaced.

    Args:
      fn: The function of one client, traceable.
      shared: What all clients have in common; what is made of this alone stays as it is.
      own: What is each client's own.
      stop_early: Whether `sequence_reduce` ends with the longest sequence, and has no derivative in reverse.
    """
    flat, treedef = jax.tree.flatten((shared, own))
    closed, shape = jax.make_jaxpr(lambda *xs: fn(*treedef.unflatten(xs)), return_shape=True)(*flat)
    if not _is_concerned(closed.jaxpr, stop_early):
        return jax.tree.unflatten(jax.tree.structure(shape), jaxpr_as_fun(closed)(*flat))
    num_shared = len(jax.tree.leaves(shared))
    is_own = [False] * num_shared + [True] * (len(flat) - num_shared)
    results, _ = _evaluate(closed, flat, is_own, stop_early)
    return jax.tree.unflatten(jax.tree.structure(shape), results)


def mapped(fn: Callable[..., PyTree], shared: PyTree, own: PyTree, *, stop_early: bool = False) -> PyTree:
    """Maps ``fn(shared, own)``, rewritten, over the clients: the leading axis of what is their own.

    A single client is not mapped: XLA folds fewer transposes into products with an axis of one.

    >>> mapped(lambda x, y: x + y, 1.0, jnp.array([10.0, 20.0])).tolist()
    [11.0, 21.0]
    """
    if jax.tree.leaves(own)[0].shape[0] == 1:
        result = rewritten(fn, shared, jax.tree.map(lambda x: x[0], own), stop_early=stop_early)
        return jax.tree.map(lambda x: x[None], result)
    return jax.vmap(lambda member: rewritten(fn, shared, member, stop_early=stop_early))(own)


def _is_concerned(jaxpr: Jaxpr, stop_early: bool) -> bool:
    return any(_is_replaced(eqn, stop_early) or _is_concerned_inside(eqn, stop_early) for eqn in jaxpr.eqns)


def _is_concerned_inside(eqn: Any, stop_early: bool) -> bool:
    return any(_is_concerned(jaxpr, stop_early) for jaxpr in _inner(eqn.params.values()))


def _is_replaced(eqn: Any, stop_early: bool) -> bool:
    is_slow = eqn.primitive.name == "conv_general_dilated" or pooling.is_unrolled(eqn) or threefry.is_unrolled(eqn)
    return is_slow or (stop_early and early_stop.is_fold(eqn))


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
    closed: ClosedJaxpr, args: list[Any], is_own: list[bool], stop_early: bool
) -> tuple[list[Any], list[bool]]:
    """Evaluates a program, and tells which results depend on what is each client's own."""
    jaxpr = closed.jaxpr
    values: dict[Any, tuple[Any, bool]] = {v: (x, False) for v, x in zip(jaxpr.constvars, closed.consts, strict=True)}
    values |= dict(zip(jaxpr.invars, zip(args, is_own, strict=True), strict=True))

    def read(v: Any) -> tuple[Any, bool]:
        return (v.val, False) if isinstance(v, Literal) else values[v]

    sources = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    for eqn in jaxpr.eqns:
        inputs, flags = [read(v)[0] for v in eqn.invars], [read(v)[1] for v in eqn.invars]
        if eqn.primitive.name == "conv_general_dilated" and flags[1]:
            flipped = _flipped(eqn, sources.get(eqn.invars[1]))
            kernel = None if flipped is None else read(flipped)[0]
            outputs, out_flags = [convolution(inputs[0], inputs[1], kernel, **eqn.params)], [True]
        else:
            outputs, out_flags = _apply(jaxpr, eqn, inputs, flags, stop_early)
        values |= dict(zip(eqn.outvars, zip(outputs, out_flags, strict=True), strict=True))
    results = [read(v) for v in jaxpr.outvars]
    return [x for x, _ in results], [flag for _, flag in results]


def _flipped(eqn: Any, source: Any) -> Any:
    """Returns the variable that the kernel of a convolution is the reversal of, along all of its spatial axes."""
    if source is None or source.primitive.name != "rev":
        return None
    axes = sorted(eqn.params["dimension_numbers"].rhs_spec[2:])
    return source.invars[0] if sorted(source.params["dimensions"]) == axes else None


def _apply(
    jaxpr: Jaxpr, eqn: Any, inputs: list[Any], flags: list[bool], stop_early: bool
) -> tuple[list[Any], list[bool]]:
    name, params = eqn.primitive.name, eqn.params

    def part(jaxpr: Jaxpr | ClosedJaxpr) -> Callable[..., list[Any]]:
        """Returns an inner program, rewritten, as a function."""
        closed = jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())
        # What goes in as anyone's own makes all of it their own; a mistaken True costs speed only.
        return lambda *args: _evaluate(closed, list(args), [any(flags)] * len(args), stop_early)[0]

    if stop_early and early_stop.is_fold(eqn):
        outputs = early_stop.while_loop(params["jaxpr"], inputs, part)
        return outputs, [any(flags)] * len(outputs)
    if name in _INSIDE and _is_concerned_inside(eqn, stop_early):
        outputs = _INSIDE[name](params, inputs, part)
        return outputs, [any(flags)] * len(outputs)
    if any(flags) and pooling.is_unrolled(eqn):
        return [pooling.pool(name, *inputs, **params)], [True]
    if threefry.is_unrolled(eqn):
        return [threefry.random_bits(*inputs, **params)], flags
    # A program of this one step: JAX knows best how each of its primitives is called.
    variables = {v: x for v, x in zip(eqn.invars, inputs, strict=True) if not isinstance(v, Literal)}
    alone = jaxpr.replace(constvars=[], invars=list(variables), outvars=eqn.outvars, eqns=[eqn])
    outputs = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*variables.values())
    return list(outputs), [any(flags)] * len(outputs)


# Makes a function of an inner program.
Part = Callable[[Any], Callable[..., list[Any]]]


def _call(params: dict[str, Any], inputs: list[Any], part: Part) -> list[Any]:
    return part(params["jaxpr"])(*inputs)


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
