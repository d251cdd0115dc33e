"""What a loop's body does that need not be done in every step.

`split` looks at operations, never at what they are part of.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

import jax.numpy as jnp

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.jaxprs import Atom, Equation, Program

# Products of more rows are fast as they are, and what they take and give is too large to be kept for all times.
_FEW_ROWS = 64
_LINEAR = ("transpose", "reshape", "neg", "convert_element_type", "reduce_sum")


class Split(NamedTuple):
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


def split(body: Program, num_consts: int, num_carry: int) -> Split:
    """Divides a loop's body."""
    carried, ends = body.inputs[num_consts:][:num_carry], body.outputs[:num_carry]
    kept = {i for i, (first, end) in enumerate(zip(carried, ends, strict=True)) if first is end}
    fixed = {*body.inputs[:num_consts], *body.constants, *(carried[i] for i in kept)}
    equations = [eqn for eqn in body.equations if eqn.outvars]  # calls of functions without results are left over
    invariant = [eqn for eqn in equations if grows(fixed, eqn)]
    varying = _without(equations, invariant)
    free = {*fixed, *body.inputs[num_consts + num_carry :]}
    independent = [eqn for eqn in varying if grows(free, eqn)]
    early = [eqn for eqn in independent if _is_slow(eqn, fixed)]
    rest = _without(varying, early)

    sums = _sums(body, carried)
    recurrent = needed_for(rest, [v for i, v in enumerate(ends) if i not in {*sums, *kept}])
    after = _after(_without(rest, recurrent), rest, fixed, {ends[i] for i in sums}, sums)
    after = _completed(rest, recurrent, after, free, body.outputs[num_carry:])
    late = set(results_of(after))
    added, sums = set(sums), {i: v for i, v in sums.items() if v in late}
    totals = {ends[i] for i in sums}
    after = [eqn for eqn in after if not totals.intersection(eqn.outvars)]
    late = set(results_of(after))
    read = [*body.outputs, *(v for eqn in after for v in eqn.invars)]
    wanted = [v for v in read if not jaxprs.is_literal(v) and v not in late and v not in totals]
    during = needed_for(rest, wanted)  # with what both parts need and costs little
    return Split(
        invariant, needed_for(independent, results_of(early)), results_of(early), during, after, sums, added, kept
    )


def _without(equations: list[Equation], taken: list[Equation]) -> list[Equation]:
    gone = set(map(id, taken))
    return [eqn for eqn in equations if id(eqn) not in gone]


def grows(found: set[Atom], eqn: Equation) -> bool:
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
        if is_summed and is_linear(eqn):
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


def is_linear(eqn: Equation) -> bool:
    """Tells what commutes with a sum over time, up to rounding: it acts on every time alike, and is linear.

    A conversion to integers is not, and one to floats of 8 bits is meant to round.
    """
    if jaxprs.name_of(eqn) not in _LINEAR or jaxprs.is_literal(eqn.invars[0]):
        return False
    dtypes = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    return all(jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 1 for dtype in dtypes)


def _completed(
    equations: list[Equation], recurrent: list[Equation], after: list[Equation], given: set[Atom], results: list[Atom]
) -> list[Equation]:
    """Adds what no step waits for and comes of values alone that the loop has to hand out anyway."""
    late, made = set(results_of(after)), set(results_of(recurrent))
    needed = [v for eqn in after for v in eqn.invars] + results
    shown = {v for v in needed if not jaxprs.is_literal(v) and v not in late and v in made} | given
    is_recurrent, is_after = set(map(id, recurrent)), set(map(id, after))
    found = []
    for eqn in equations:
        variables = [v for v in eqn.invars if not jaxprs.is_literal(v)]
        comes_of_these = id(eqn) not in is_recurrent and variables and shown.issuperset(variables)
        if id(eqn) in is_after or (comes_of_these and is_small(eqn)):
            shown.update(eqn.outvars)
            found.append(eqn)
    return found


def is_small(eqn: Equation) -> bool:
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


def needed_for(equations: list[Equation], results: Iterable[Atom]) -> list[Equation]:
    """Lists the equations that some results need."""
    wanted, found = {v for v in results if not jaxprs.is_literal(v)}, []
    for eqn in reversed(equations):
        if any(v in wanted for v in eqn.outvars):
            wanted.update(v for v in eqn.invars if not jaxprs.is_literal(v))
            found.append(eqn)
    return found[::-1]


def results_of(equations: list[Equation]) -> list[Atom]:
    """Lists the results of all equations."""
    return [v for eqn in equations for v in eqn.outvars]
