"""Rewrites the function of one client so that it runs well when it is mapped over clients.

`rewritten` traces a function and replaces the operations that XLA runs badly under `vmap`, before
it is mapped: convolutions whose kernel is each client's own, pooling, and the drawing of random
bits. Where nobody differentiates any more, loops over sequences end with the longest. Gradients are ordinary
operations by then and are replaced alike, and any model takes this path as it is. What remains
are ordinary operations, so every transformation of JAX still applies.

Programs inside of `jit`, `remat`, `scan`, `while` and `cond` are rewritten too. Functions with a
derivative of their own (`custom_jvp`, `custom_vjp`) that nobody has differentiated yet are left
as they are, since the rule belongs to the operation that it comes with. So is, with a warning,
whatever this version of JAX writes in a form that `jaxprs` does not know.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.core.rewriting import early_stop, few_rows, jaxprs, pooling, products, recurrence, sums, threefry, updates
from fedjx.core.rewriting.convolution import convolution
from fedjx.core.rewriting.jaxprs import Atom, Equation, Parameters, Program, PyTree, Values


class Traced(NamedTuple):
    """A function of what clients share and of one client's own, once it is traced: for several uses, in one context.

    Attributes:
      fn: The function.
      program: What it was traced into, of the leaves of both arguments.
      result: The structure of shapes and dtypes of its result.
    """

    fn: Callable[..., PyTree]
    program: Program
    result: PyTree


def traced(fn: Callable[..., PyTree], shared: PyTree, own: PyTree) -> Traced:
    """Traces ``fn(shared, own)``, of arrays or of their types.

    >>> traced(lambda x, y: x + y, 1.0, jax.ShapeDtypeStruct((2,), jnp.float32)).result.shape
    (2,)
    """
    flat, treedef = jax.tree.flatten((shared, own))
    program, result = jaxprs.trace(lambda *xs: fn(*treedef.unflatten(xs)), *flat)
    return Traced(fn, program, result)


def rewritten(fn: Callable[..., PyTree] | Traced, shared: PyTree, own: PyTree, *, stop_early: bool = False) -> PyTree:
    """Evaluates ``fn(shared, own)`` with what runs badly under `vmap` replaced.

    Args:
      fn: The function of one client, traceable, or traced for arguments of these types.
      shared: What all clients have in common; what is made of this alone stays as it is.
      own: What is each client's own.
      stop_early: Whether `sequence_reduce` ends with the longest sequence, and has no derivative in reverse.
    """
    fn, program, result = fn if isinstance(fn, Traced) else traced(fn, shared, own)
    flat, num_shared = jax.tree.leaves((shared, own)), len(jax.tree.leaves(shared))
    is_own = [False] * num_shared + [True] * (len(flat) - num_shared)
    try:
        if _is_concerned(program, stop_early):
            results, _ = _evaluate(program, flat, is_own, stop_early)
        else:
            results = program(*flat)
    except Exception as error:  # a JAX that makes programs in another way must not stop anyone
        jaxprs.leave("a program", f"it cannot be rewritten: {error!r}")
        return fn(shared, own)
    return jax.tree.unflatten(jax.tree.structure(result), results)


def mapped(fn: Callable[..., PyTree] | Traced, shared: PyTree, own: PyTree, *, stop_early: bool = False) -> PyTree:
    """Maps ``fn(shared, own)``, rewritten, over the clients: the leading axis of what is their own.

    A single client is not mapped: XLA folds fewer transposes into products with an axis of one.

    >>> mapped(lambda x, y: x + y, 1.0, jnp.array([10.0, 20.0])).tolist()
    [11.0, 21.0]
    """
    if jax.tree.leaves(own)[0].shape[0] == 1:
        result = rewritten(fn, shared, jax.tree.map(lambda x: x[0], own), stop_early=stop_early)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], result)  # constants come as numbers of Python
    return jax.vmap(lambda member: rewritten(fn, shared, member, stop_early=stop_early))(own)


def _is_concerned(program: Program, stop_early: bool) -> bool:
    is_replaced = any(
        _is_replaced(eqn, stop_early) or _is_concerned_inside(eqn, stop_early) for eqn in program.equations
    )
    return is_replaced or (stop_early and bool(updates.found_in(program)))


def _is_concerned_inside(eqn: Equation, stop_early: bool) -> bool:
    return any(_is_concerned(inner, stop_early) for inner in jaxprs.inner(eqn))


def _is_replaced(eqn: Equation, stop_early: bool) -> bool:
    is_slow = jaxprs.name_of(eqn) == "conv_general_dilated" or pooling.is_unrolled(eqn) or threefry.is_unrolled(eqn)
    is_slow = is_slow or sums.is_split(eqn) or products.is_replaced(eqn) or (stop_early and few_rows.is_turned(eqn))
    return is_slow or recurrence.is_distributed(eqn) or (stop_early and early_stop.is_fold(eqn))


def _evaluate(program: Program, args: Values, is_own: list[bool], stop_early: bool) -> tuple[Values, list[bool]]:
    """Evaluates a program, and tells which results depend on what is each client's own."""
    values: dict[Atom, tuple[jax.Array, bool]] = {v: (x, False) for v, x in program.constants.items()}
    values |= dict(zip(program.inputs, zip(args, is_own, strict=True), strict=True))

    def read(v: Atom) -> tuple[jax.Array, bool]:
        return (v.val, False) if jaxprs.is_literal(v) else values[v]

    sources, repeated = {v: eqn for eqn in program.equations for v in eqn.outvars}, _repeated(program)
    added = updates.found_in(program) if stop_early else {}
    late: dict[Atom, recurrence.Late | None] = {}
    for eqn in program.equations:
        inputs, flags = [read(v)[0] for v in eqn.invars], [read(v)[1] for v in eqn.invars]
        if jaxprs.name_of(eqn) == "conv_general_dilated":
            flipped = _flipped(eqn, sources.get(eqn.invars[1])) if flags[1] else None
            turned = None if flipped is None else read(flipped)[0]
            outputs = _convolution(eqn, inputs, turned, id(eqn) in repeated) if flags[1] else None
        elif id(eqn) in added and any(flags):
            update = added[id(eqn)]
            outputs = [updates.updated(update, *(read(v)[0] for v in update.operands))]
        elif recurrence.is_distributed(eqn) and (params := jaxprs.parameters(eqn)) is not None:
            known = [None if jaxprs.is_literal(v) else late.get(v) for v in eqn.invars]
            part = functools.partial(_part, is_own=any(flags), stop_early=stop_early)
            outputs, made = recurrence.distributed(params, inputs, known, part)
            late |= dict(zip(eqn.outvars, made, strict=True))
        else:
            outputs = _replaced(eqn, inputs, any(flags), stop_early)
        outputs = jaxprs.alone(program, eqn, inputs) if outputs is None else _checked(eqn, outputs)
        values |= dict(zip(eqn.outvars, [(x, any(flags)) for x in outputs], strict=True))
    results = [read(v) for v in program.outputs]
    return [x for x, _ in results], [flag for _, flag in results]


def _checked(eqn: Equation, outputs: Values) -> Values:
    """Refuses results that are not of the shapes and dtypes that the equation has."""
    for v, x in zip(eqn.outvars, outputs, strict=True):
        if x.shape != v.aval.shape or x.dtype != v.aval.dtype:
            raise TypeError(f"{jaxprs.name_of(eqn)} became {x.dtype}{x.shape} instead of {v.aval}")
    return outputs


def _convolution(eqn: Equation, inputs: Values, flipped: jax.Array | None, is_repeated: bool) -> Values | None:
    params = jaxprs.parameters(eqn)
    lhs, rhs = inputs
    if params is None:
        return None
    if not is_repeated:
        return [convolution(lhs, rhs, flipped, **params)]
    with jaxprs.calls(inlined=False):
        return [_one_of_many(lhs, rhs, flipped, options=tuple(sorted(params.items())))]


@functools.partial(jax.jit, static_argnames="options")
def _one_of_many(
    lhs: jax.Array, rhs: jax.Array, flipped: jax.Array | None, *, options: tuple[tuple[str, Any], ...]
) -> jax.Array:
    """Computes a convolution like others of its program, in one function that XLA compiles for all of them."""
    with jaxprs.calls(inlined=True):
        return convolution(lhs, rhs, flipped, **dict(options))


def _repeated(program: Program) -> set[int]:
    """Returns which equations are convolutions that the program has several times, by their `id`."""
    alike: dict[str, list[int]] = {}
    for eqn in program.equations:
        if jaxprs.name_of(eqn) == "conv_general_dilated":
            form = str(([v.aval for v in eqn.invars], sorted(eqn.params.items())))
            alike.setdefault(form, []).append(id(eqn))
    return {one for ids in alike.values() if len(ids) > 1 for one in ids}


def _flipped(eqn: Equation, source: Equation | None) -> Atom | None:
    """Returns the variable that the kernel of a convolution is the reversal of, along all of its spatial axes."""
    if source is None or jaxprs.name_of(source) != "rev":
        return None
    convolved, reversed_ = jaxprs.parameters(eqn), jaxprs.parameters(source)
    if convolved is None or reversed_ is None:
        return None
    axes = sorted(convolved["dimension_numbers"].rhs_spec[2:])
    return source.invars[0] if sorted(reversed_["dimensions"]) == axes else None


def _part(program: Program, is_own: bool, stop_early: bool) -> Callable[..., Values]:
    """Returns an inner program, rewritten, as a function."""
    # What goes in as anyone's own makes all of it their own; a mistaken True costs speed only.
    return lambda *args: _evaluate(program, list(args), [is_own] * len(args), stop_early)[0]


def _replaced(eqn: Equation, inputs: Values, is_own: bool, stop_early: bool) -> Values | None:
    """Evaluates an equation in another way than JAX; None if it is left to JAX."""
    name, part = jaxprs.name_of(eqn), functools.partial(_part, is_own=is_own, stop_early=stop_early)
    if stop_early and early_stop.is_fold(eqn):
        return early_stop.while_loop(eqn, inputs, part)
    if _is_concerned_inside(eqn, stop_early):
        params = jaxprs.parameters(eqn)
        return None if params is None else _INSIDE[name](params, inputs, part)
    if is_own and pooling.is_unrolled(eqn):
        return [pooling.pool(eqn, *inputs)]
    if is_own and products.is_replaced(eqn):
        params = jaxprs.parameters(eqn)
        return None if params is None else [products.product(*inputs, **params)]
    if is_own and stop_early and few_rows.is_turned(eqn):
        params = jaxprs.parameters(eqn)
        return None if params is None else [few_rows.turned_product(*inputs, **params)]
    if is_own and sums.is_split(eqn):
        params = jaxprs.parameters(eqn)
        return None if params is None else [sums.split_sum(inputs[0], params["axes"])]
    if threefry.is_unrolled(eqn):
        return [threefry.random_bits(*inputs, **eqn.params)]
    return None


# Makes a function of an inner program.
Part = Callable[[Program], Callable[..., Values]]


def _call(params: Parameters, inputs: Values, part: Part) -> Values:
    return part(params["jaxpr"])(*inputs)


def _remat(params: Parameters, inputs: Values, part: Part) -> Values:
    options = {name: params[name] for name in ("policy", "prevent_cse")}
    if params.get("differentiated") and params["prevent_cse"]:
        # As JAX does when it lowers one: or XLA would find that all of this has been computed before, and keep that.
        inputs = lax.optimization_barrier(inputs)
    return list(jax.checkpoint(part(params["jaxpr"]), **options)(*inputs))


def _scan(params: Parameters, inputs: Values, part: Part) -> Values:
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    step = part(params["jaxpr"])
    consts, carry, xs = inputs[:num_consts], inputs[num_consts:][:num_carry], inputs[num_consts + num_carry :]

    def body(
        carry: tuple[jax.Array, ...], xs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        results = step(*consts, *carry, *xs)
        return tuple(results[:num_carry]), tuple(results[num_carry:])

    length = None if xs else params["length"]  # a length that is a symbol cannot be given, only found
    carry, ys = lax.scan(body, tuple(carry), tuple(xs), length, params["reverse"], params["unroll"])
    return [*carry, *ys]


def _while(params: Parameters, inputs: Values, part: Part) -> Values:
    num_tests, num_bodies = params["cond_nconsts"], params["body_nconsts"]
    goes_on, body = part(params["cond_jaxpr"]), part(params["body_jaxpr"])
    tests, bodies = inputs[:num_tests], inputs[num_tests:][:num_bodies]
    start = tuple(inputs[num_tests + num_bodies :])
    end = lax.while_loop(lambda c: goes_on(*tests, *c)[0], lambda c: tuple(body(*bodies, *c)), start)
    return list(end)


def _cond(params: Parameters, inputs: Values, part: Part) -> Values:
    return list(lax.switch(inputs[0], [part(branch) for branch in params["branches"]], *inputs[1:]))


# The operations that hold programs of their own.
_INSIDE = {"jit": _call, "remat2": _remat, "scan": _scan, "while": _while, "cond": _cond}
