"""Products that a loop over time makes in every step, although nothing in the loop waits for them.

A recurrent step multiplies a few rows with a matrix: the matrix is read, and packed, for each of them. Of what such a
loop does only the recurrence itself has to be done step by step. `distributed` takes out of a `scan`

- before it, the products of what goes in alone (an LSTM's input projections), as one product of all time steps;
- after it, products of what comes out that no later step reads (the gradients of those projections, or logits);
- after it, products that are only added up (the gradients of the weights): a sum of products over time is one product
  that is contracted over time too, instead of a matrix read and written in every step.

This is loop distribution, as compilers call it (Kennedy and McKinley, 1990), for products only: what else a step does
is cheap where it is. It looks at operations, never at what they are part of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.core.rewriting import jaxprs, products
from fedjx.core.rewriting.jaxprs import Atom, Equation, Parameters, Program, Values

# Products of more rows are fast as they are, and what they take and give is too large to be kept for all times.
_FEW_ROWS = 64
# What commutes with a sum over time, of one operand: it acts on every time alike, and is linear.
_LINEAR = ("transpose", "reshape", "neg", "convert_element_type", "reduce_sum")
Part = Callable[[Program], Callable[..., Values]]


class _Split(NamedTuple):
    """A loop's body in parts.

    Attributes:
      invariant: Equations of what does not change from step to step.
      before: Those products of what goes in whose results are made for all steps at once, and what they need.
      early: The results of these.
      during: What is left to be done in every step.
      after: What can be done when the loop has ended.
      sums: The number of each carry that is only ever added to, with what is added, if that comes after the loop.
      added: The numbers of all carries that are only ever added to.
      unchanged: The numbers of the carries that stay as they are.
    """

    invariant: list[Equation]
    before: list[Equation]
    early: list[Atom]
    during: list[Equation]
    after: list[Equation]
    sums: dict[int, Atom]
    added: set[int]
    unchanged: set[int]


def is_distributed(eqn: Equation) -> bool:
    """Tells whether an equation is a loop out of which something can be taken."""
    if jaxprs.name_of(eqn) != "scan" or not any(_has_products(program) for program in jaxprs.inner(eqn)):
        return False
    params = jaxprs.parameters(eqn)
    if params is None or params["jaxpr"].jaxpr.effects or not all(jaxprs.is_sized(v) for v in eqn.invars):
        return False
    if params["length"] < 2:
        return False
    body, num_consts, num_carry = params["jaxpr"], params["num_consts"], params["num_carry"]
    if any(map(_calls_products, body.equations)):
        body = _flat(body, num_consts)
    split, ends = _split(body, num_consts, num_carry), body.outputs[:num_carry]
    # A loop that only adds up goes over examples, not over time: it is there to save memory.
    recurs = any(
        not jaxprs.is_literal(end) and end.aval.shape
        for i, end in enumerate(ends)
        if i not in {*split.added, *split.unchanged}
    )
    return recurs and bool(split.early or split.after)


def distributed(params: Parameters, inputs: Values, part: Part) -> Values:
    """Runs a `scan` with its products taken out.

    Args:
      params: Of the equation.
      inputs: Constants, first carry, and what is looped over.
      part: Makes a function of an inner program.
    """
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    body = _flat(params["jaxpr"], num_consts)
    split = _split(body, num_consts, num_carry)
    firsts, ends = body.inputs, body.outputs
    consts, carried, looped = firsts[:num_consts], firsts[num_consts:][:num_carry], firsts[num_consts + num_carry :]

    start = inputs[num_consts:][:num_carry]
    known = dict(zip(consts, inputs, strict=False)) | {carried[i]: start[i] for i in split.unchanged}
    fixed = _results(split.invariant)
    known |= dict(zip(fixed, part(body.part(split.invariant, [*known], fixed))(*known.values()), strict=True))
    stacked = dict(zip(looped, inputs[num_consts + num_carry :], strict=True))
    if split.early:
        before = part(body.part(split.before, [*known, *looped], split.early))
        axes = [None] * len(known) + [0] * len(looped)
        early = jax.vmap(before, in_axes=axes)(*known.values(), *stacked.values())
        stacked |= dict(zip(split.early, early, strict=True))

    kept = [i for i in range(num_carry) if i not in split.sums and i not in split.unchanged]
    late = _results(split.after)
    given = [v for v in ends[num_carry:] if not jaxprs.is_literal(v) and v not in late]
    needed = [v for eqn in split.after for v in eqn.invars if not jaxprs.is_literal(v)]
    elsewhere = {*late, *known, *stacked, *body.constants}
    shown = [v for v in dict.fromkeys([*given, *needed]) if v not in elsewhere]
    steps = part(
        body.part(split.during, [*known, *(carried[i] for i in kept), *stacked], [*(ends[i] for i in kept), *shown])
    )

    def step(carry: tuple[jax.Array, ...], now: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        results = steps(*known.values(), *carry, *now)
        return tuple(results[: len(kept)]), tuple(results[len(kept) :])

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    final, shown_values = lax.scan(step, tuple(start[i] for i in kept), tuple(stacked.values()), **options)
    stacked |= dict(zip(shown, shown_values, strict=True))
    ended = dict(zip(kept, final, strict=True)) | {i: start[i] for i in split.unchanged}
    times = _Times(known, stacked, {v: eqn for eqn in split.after for v in eqn.outvars}, body, part, params["length"])
    totals = {i: start[i] + times.summed(v, start[i].dtype) for i, v in split.sums.items()}
    return [*({**ended, **totals}[i] for i in range(num_carry)), *map(times.all, ends[num_carry:])]


class _Times:
    """Values of a loop's body at all times, ``[T, ...]``, computed when they are asked for."""

    def __init__(
        self,
        known: dict[Atom, jax.Array],
        stacked: dict[Atom, jax.Array],
        sources: dict[Atom, Equation],
        body: Program,
        part: Part,
        length: int,
    ):
        self._known, self._stacked, self._sources = known, stacked, sources
        self._body, self._part, self._length = body, part, length

    def all(self, v: Atom) -> jax.Array:
        """Returns a value at all times, ``[T, ...]``."""
        value, varies = self._value(v)
        return value if varies else jnp.broadcast_to(value, (self._length, *jnp.shape(value)))

    def _value(self, v: Atom) -> tuple[jax.Array, bool]:
        if jaxprs.is_literal(v):
            return v.val, False
        if v in self._known or v in self._body.constants:
            return {**self._body.constants, **self._known}[v], False
        if v not in self._stacked:
            eqn = self._sources[v]
            operands = [u for u in eqn.invars if not jaxprs.is_literal(u) and u not in self._body.constants]
            values = [self._value(u) for u in operands]
            run = self._part(self._body.part([eqn], operands, list(eqn.outvars)))
            axes = [0 if varies else None for _, varies in values]
            results = jax.vmap(run, in_axes=axes, axis_size=self._length)(*(x for x, _ in values))
            self._stacked |= dict(zip(eqn.outvars, results, strict=True))
        return self._stacked[v], True

    def summed(self, v: Atom, dtype: jnp.dtype) -> jax.Array:
        """Returns the sum of a value over all times, added up in the dtype of the total."""
        eqn = None if v in self._stacked else self._sources.get(v)
        name = None if eqn is None else jaxprs.name_of(eqn)
        if eqn is not None and name in _LINEAR and jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating):
            total = self.summed(eqn.invars[0], dtype)
            if name == "convert_element_type":
                return total
            return self._part(self._body.part([eqn], [eqn.invars[0]], [v]))(total)[0]
        if eqn is not None and name == "dot_general":
            return self._contracted(eqn, dtype)
        return jnp.sum(self.all(v), axis=0, dtype=dtype)

    def _contracted(self, eqn: Equation, dtype: jnp.dtype) -> jax.Array:
        """Multiplies and adds up over time in one product."""
        params = jaxprs.parameters(eqn)
        assert params is not None
        (left, left_varies), (right, right_varies) = map(self._value, eqn.invars)
        (left_axes, right_axes), (left_batch, right_batch) = params["dimension_numbers"]
        options = {"precision": params["precision"], "preferred_element_type": dtype}
        if not (left_varies and right_varies):
            left, right = (
                jnp.sum(x, axis=0) if varies else x for x, varies in ((left, left_varies), (right, right_varies))
            )
            return lax.dot_general(left, right, params["dimension_numbers"], **options)
        contracted: Any = tuple((0, *(a + 1 for a in axes)) for axes in (left_axes, right_axes))
        batch: Any = tuple(tuple(a + 1 for a in axes) for axes in (left_batch, right_batch))
        if products.is_merged_over(contracted, batch):
            return products.merged_product(left, right, dimension_numbers=(contracted, batch), **options)
        return lax.dot_general(left, right, (contracted, batch), **options)


# --- what can be taken out ----------------------------------------------------------------------


def _has_products(program: Program) -> bool:
    return any(jaxprs.name_of(eqn) == "dot_general" or _calls_products(eqn) for eqn in program.equations)


def _calls_products(eqn: Equation) -> bool:
    return jaxprs.name_of(eqn) == "jit" and any(map(_has_products, jaxprs.inner(eqn)))


def _flat(program: Program, num_consts: int) -> Program:
    """Writes out functions that are called by `jax.jit` and have products, and turns matrices the way they are read."""

    def run(program: Program, args: Iterable[jax.Array], fixed: set[Atom]) -> Values:
        values = dict(program.constants) | dict(zip(program.inputs, args, strict=True))
        for eqn in program.equations:
            _grows(fixed, eqn)
            inputs = [v.val if jaxprs.is_literal(v) else values[v] for v in eqn.invars]
            values |= dict(zip(eqn.outvars, outputs(program, eqn, inputs, fixed), strict=True))
        return [v.val if jaxprs.is_literal(v) else values[v] for v in program.outputs]

    def outputs(program: Program, eqn: Equation, inputs: Values, fixed: set[Atom]) -> Values:
        is_fixed = [jaxprs.is_literal(v) or v in fixed for v in eqn.invars]
        is_called = _calls_products(eqn)
        params = jaxprs.parameters(eqn) if is_called or jaxprs.name_of(eqn) == "dot_general" else None
        if params is not None and is_called:
            called = params["jaxpr"]
            inside = {v for v, known in zip(called.inputs, is_fixed, strict=True) if known}
            return run(called, inputs, {*called.constants, *inside})
        is_matrix = is_fixed == [False, True] and len(eqn.invars[1].aval.shape) == 2
        if params is not None and is_matrix and params["dimension_numbers"] == (((1,), (1,)), ((), ())):
            turned = {**params, "dimension_numbers": (((1,), (0,)), ((), ()))}
            return [lax.dot_general(inputs[0], lax.transpose(inputs[1], (1, 0)), **turned)]
        return jaxprs.alone(program, eqn, inputs)

    types = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.inputs]
    consts = {*program.constants, *program.inputs[:num_consts]}
    return jaxprs.trace(lambda *args: run(program, args, consts), *types)[0]


def _split(body: Program, num_consts: int, num_carry: int) -> _Split:
    carried, ends = body.inputs[num_consts:][:num_carry], body.outputs[:num_carry]
    kept = {i for i, (first, end) in enumerate(zip(carried, ends, strict=True)) if first is end}
    fixed = {*body.inputs[:num_consts], *body.constants, *(carried[i] for i in kept)}
    equations = [eqn for eqn in body.equations if eqn.outvars]  # calls of functions without results are left over
    invariant = [eqn for eqn in equations if _grows(fixed, eqn)]
    varying = _without(equations, invariant)
    free = {*fixed, *body.inputs[num_consts + num_carry :]}
    independent = [eqn for eqn in varying if _grows(free, eqn)]
    early = [eqn for eqn in independent if _is_slow(eqn, fixed)]
    rest = _without(varying, early)

    sums = _sums(body, carried)
    recurrent = _needed(rest, [v for i, v in enumerate(ends) if i not in {*sums, *kept}])
    after = _after(_without(rest, recurrent), rest, fixed, {ends[i] for i in sums}, sums)
    after = _completed(rest, recurrent, after, free, body.outputs[num_carry:])
    late = set(_results(after))
    added, sums = set(sums), {i: v for i, v in sums.items() if v in late}
    totals = {ends[i] for i in sums}
    after = [eqn for eqn in after if not totals.intersection(eqn.outvars)]
    late = set(_results(after))
    read = [*body.outputs, *(v for eqn in after for v in eqn.invars)]
    wanted = [v for v in read if not jaxprs.is_literal(v) and v not in late and v not in totals]
    during = _needed(rest, wanted)  # with what both parts need and costs little
    return _Split(invariant, _needed(independent, _results(early)), _results(early), during, after, sums, added, kept)


def _without(equations: list[Equation], taken: list[Equation]) -> list[Equation]:
    gone = set(map(id, taken))
    return [eqn for eqn in equations if id(eqn) not in gone]


def _grows(found: set[Atom], eqn: Equation) -> bool:
    """Adds an equation's results to what is found if all that it takes is among it, and something is."""
    variables = [v for v in eqn.invars if not jaxprs.is_literal(v)]
    if not variables or not found.issuperset(variables):
        return False
    found.update(eqn.outvars)
    return True


def _is_slow(eqn: Equation, fixed: Collection[Atom]) -> bool:
    """Tells a product of few rows with a matrix that does not change."""
    if jaxprs.name_of(eqn) != "dot_general":
        return False
    varying = [(v, i) for i, v in enumerate(eqn.invars) if jaxprs.is_literal(v) or v not in fixed]
    params = jaxprs.parameters(eqn) if len(varying) == 1 else None
    if params is None:
        return False
    (v, side), contracted = varying[0], params["dimension_numbers"][0]
    rows = math.prod(n for axis, n in enumerate(v.aval.shape) if axis not in contracted[side])
    return rows <= _FEW_ROWS


def _sums(body: Program, carried: list[Atom]) -> dict[int, Atom]:
    """Finds the carries that are only ever added to, and what is added."""
    used = [*(v for eqn in body.equations for v in eqn.invars), *body.outputs]
    count = Counter(v for v in used if not jaxprs.is_literal(v))
    sources = {v: eqn for eqn in body.equations for v in eqn.outvars}
    found = {}
    for i, (first, end) in enumerate(zip(carried, body.outputs, strict=False)):
        eqn = None if jaxprs.is_literal(end) else sources.get(end)
        if eqn is None or jaxprs.name_of(eqn) not in ("add", "add_any") or count[first] != 1 or count[end] != 1:
            continue
        terms = [v for v in eqn.invars if v is not first]
        if len(terms) == 1 and not jaxprs.is_literal(terms[0]) and terms[0].aval.shape == first.aval.shape:
            found[i] = terms[0]
    return found


def _after(
    free: list[Equation], equations: list[Equation], fixed: Collection[Atom], totals: set[Atom], sums: dict[int, Atom]
) -> list[Equation]:
    """Lists, of what no step waits for, all from the first product on that is slow in a loop."""
    only_summed, totals = set(sums.values()), set(totals)
    readers: dict[Atom, list[Atom]] = {}
    for eqn in equations:
        for v in eqn.invars:
            if not jaxprs.is_literal(v):
                readers.setdefault(v, []).append(eqn.outvars[0])
    for eqn in reversed(free):
        is_summed = eqn.outvars[0] in only_summed and totals.issuperset(readers.get(eqn.outvars[0], []))
        if is_summed and jaxprs.name_of(eqn) in _LINEAR:
            only_summed.add(eqn.invars[0])
            totals.add(eqn.outvars[0])
    late: set[Atom] = set()
    found = []
    for eqn in free:
        starts = _is_slow(eqn, fixed) or (eqn.outvars[0] in only_summed and _is_update(eqn, fixed))
        if starts or any(v in late for v in eqn.invars if not jaxprs.is_literal(v)):
            late.update(eqn.outvars)
            found.append(eqn)
    return found


def _completed(
    equations: list[Equation], recurrent: list[Equation], after: list[Equation], given: set[Atom], results: list[Atom]
) -> list[Equation]:
    """Adds what no step waits for and comes of values alone that the loop has to hand out anyway."""
    late, made = set(_results(after)), set(_results(recurrent))
    needed = [v for eqn in after for v in eqn.invars] + results
    shown = {v for v in needed if not jaxprs.is_literal(v) and v not in late and v in made} | given
    is_recurrent, is_after = set(map(id, recurrent)), set(map(id, after))
    found = []
    for eqn in equations:
        variables = [v for v in eqn.invars if not jaxprs.is_literal(v)]
        comes_of_these = id(eqn) not in is_recurrent and variables and shown.issuperset(variables)
        if id(eqn) in is_after or (comes_of_these and _is_small(eqn)):
            shown.update(eqn.outvars)
            found.append(eqn)
    return found


def _is_small(eqn: Equation) -> bool:
    """Tells what works through its operands once, and makes no more of them."""
    if jaxprs.name_of(eqn) in ("dot_general", "conv_general_dilated") or any(True for _ in jaxprs.inner(eqn)):
        return False
    return max(v.aval.size for v in eqn.outvars) <= max(v.aval.size for v in eqn.invars)


def _is_update(eqn: Equation, fixed: Collection[Atom]) -> bool:
    """Tells a product of what changes, contracted over few rows."""
    if jaxprs.name_of(eqn) != "dot_general" or any(jaxprs.is_literal(v) or v in fixed for v in eqn.invars):
        return False
    params = jaxprs.parameters(eqn)
    if params is None:
        return False
    return math.prod(eqn.invars[0].aval.shape[a] for a in params["dimension_numbers"][0][0]) <= _FEW_ROWS


def _needed(equations: list[Equation], results: Iterable[Atom]) -> list[Equation]:
    """Lists the equations that some results need."""
    wanted, found = {v for v in results if not jaxprs.is_literal(v)}, []
    for eqn in reversed(equations):
        if any(v in wanted for v in eqn.outvars):
            wanted.update(v for v in eqn.invars if not jaxprs.is_literal(v))
            found.append(eqn)
    return found[::-1]


def _results(equations: list[Equation]) -> list[Atom]:
    return [v for eqn in equations for v in eqn.outvars]
