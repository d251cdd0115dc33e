"""Products that a loop over time makes in every step, although nothing in the loop waits for them.

A recurrent step multiplies a few rows with a matrix: the matrix is read, and packed, for each of them. Of what such a
loop does only the recurrence itself has to be done step by step. `distributed` takes out of a `scan`

- before it, the products of what goes in alone (an LSTM's input projections), as one product of all time steps;
- after it, products of what comes out that no later step reads (the gradients of those projections, or logits);
- after it, products that are only added up (the gradients of the weights): a sum of products over time is one product
  that is contracted over time too, instead of a matrix read and written in every step.

This is loop distribution, as compilers call it (Kennedy and McKinley, 1990), for products only: what else a step does
is cheap where it is. What a loop could hand on, though, and a later one make by itself of the rest, goes into that one.
It looks at operations, never at what they are part of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.core.rewriting import distribution, jaxprs, products
from fedjx.core.rewriting.distribution import Split
from fedjx.core.rewriting.jaxprs import Atom, Equation, Parameters, Program, Values

# A matrix is turned before the loop, in 1 to 2 ns an element, where that saves more: 0.05 to 0.15 ns an element and
# step, for as long as the matrix stays in the cache.
_MANY_STEPS, _LARGE_MATRIX = 16, 2**20
Part = Callable[[Program], Callable[..., Values]]


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
        body = _flat(body)
    split, ends = distribution.split(body, num_consts, num_carry), body.outputs[:num_carry]
    # A loop that only adds up goes over examples, not over time: it is there to save memory.
    recurs = any(
        not jaxprs.is_literal(end) and end.aval.shape
        for i, end in enumerate(ends)
        if i not in {*split.added, *split.unchanged}
    )
    return recurs and bool(split.early or split.after)


def distributed(
    params: Parameters, inputs: Values, late: Sequence[Late | None], part: Part
) -> tuple[Values, list[Late | None]]:
    """Runs a `scan` with its products taken out.

    Args:
      params: Of the equation.
      inputs: Constants, first carry, and what is looped over.
      late: How each of these is made, if it is a result of another loop that can be made step by step.
      part: Makes a function of an inner program.

    Returns:
      The results, and how each of them is made.
    """
    params, inputs = _taken_in(params, inputs, late)
    (body, split), num_carry = _divided(params), params["num_carry"]
    start, ends = inputs[params["num_consts"] :][:num_carry], body.outputs
    known, stacked = _prepared(params, inputs, body, split, part)
    ended = dict(enumerate(start)) | _run(params, start, known, stacked, body, split, part)
    times = _Times(known, stacked, split.after, body, part, params["length"])
    ended |= {i: start[i] + times.summed(v, start[i].dtype) for i, v in split.sums.items()}
    made = [Late(times, v) if times.is_late(v) else None for v in ends[num_carry:]]
    return [*(ended[i] for i in range(num_carry)), *map(times.all, ends[num_carry:])], [*[None] * num_carry, *made]


def _divided(params: Parameters) -> tuple[Program, Split]:
    """Returns the body of a loop as its steps are run best, and its parts."""
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    body = _flat(params["jaxpr"])
    split = distribution.split(body, num_consts, num_carry)
    matrices = {*body.inputs[:num_consts], *distribution.results_of(split.invariant)}
    by_columns = [eqn for eqn in split.during if _reads_by_columns(eqn, matrices)]
    if by_columns and params["length"] >= _MANY_STEPS:
        body = _flat(body, by_columns)
        split = distribution.split(body, num_consts, num_carry)
    return body, split


def _prepared(
    params: Parameters, inputs: Values, body: Program, split: Split, part: Part
) -> tuple[dict[Atom, jax.Array], dict[Atom, jax.Array]]:
    """Returns what is known before the loop: for every step, and for each, ``[T, ...]``."""
    num_consts, first = params["num_consts"], params["num_consts"] + params["num_carry"]
    known = dict(zip(body.inputs[:num_consts], inputs, strict=False))
    known |= {body.inputs[num_consts + i]: inputs[num_consts + i] for i in split.unchanged}
    fixed = distribution.results_of(split.invariant)
    known |= dict(zip(fixed, part(body.part(split.invariant, [*known], fixed))(*known.values()), strict=True))
    stacked = dict(zip(body.inputs[first:], inputs[first:], strict=True))
    if split.early:
        before = part(body.part(split.before, [*known, *stacked], split.early))
        axes = [None] * len(known) + [0] * len(stacked)
        early = jax.vmap(before, in_axes=axes)(*known.values(), *stacked.values())
        stacked |= dict(zip(split.early, early, strict=True))
    return known, stacked


def _run(
    params: Parameters,
    start: Values,
    known: dict[Atom, jax.Array],
    stacked: dict[Atom, jax.Array],
    body: Program,
    split: Split,
    part: Part,
) -> dict[int, jax.Array]:
    """Runs what is left of a loop; returns its last carries by number, and adds to what is stacked."""
    num_consts, num_carry, ends = params["num_consts"], params["num_carry"], body.outputs
    kept = [i for i in range(num_carry) if i not in split.sums and i not in split.unchanged]
    after = distribution.results_of(split.after)
    given = [v for v in ends[num_carry:] if not jaxprs.is_literal(v) and v not in after]
    needed = [v for eqn in split.after for v in eqn.invars if not jaxprs.is_literal(v)]
    elsewhere = {*after, *known, *stacked, *body.constants}
    shown = [v for v in dict.fromkeys([*given, *needed]) if v not in elsewhere]
    takes = [*known, *(body.inputs[num_consts + i] for i in kept), *stacked]
    steps = part(body.part(split.during, takes, [*(ends[i] for i in kept), *shown]))

    def step(carry: tuple[jax.Array, ...], now: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        results = steps(*known.values(), *carry, *now)
        return tuple(results[: len(kept)]), tuple(results[len(kept) :])

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    final, shown_values = lax.scan(step, tuple(start[i] for i in kept), tuple(stacked.values()), **options)
    stacked |= dict(zip(shown, shown_values, strict=True))
    return dict(zip(kept, final, strict=True))


class _Times:
    """Values of a loop's body at all times, ``[T, ...]``, computed when they are asked for."""

    def __init__(
        self,
        known: dict[Atom, jax.Array],
        stacked: dict[Atom, jax.Array],
        after: list[Equation],
        body: Program,
        part: Part,
        length: int,
    ):
        self._known, self._stacked, self._after = known, stacked, after
        self._sources = {v: eqn for eqn in after for v in eqn.outvars}
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

    def is_late(self, v: Atom) -> bool:
        """Tells whether a value can be made at each time of others that are there, without products."""
        return not jaxprs.is_literal(v) and v in self._sources and distribution.is_small(self._sources[v])

    def recipe(self, results: list[Atom]) -> tuple[Program, list[tuple[jax.Array, bool]]]:
        """Returns how late values are made in one step: a program, and what it takes, with whether that varies."""
        small = [eqn for eqn in self._after if distribution.is_small(eqn)]
        equations = distribution.needed_for(small, results)
        made = {*distribution.results_of(equations), *self._body.constants}
        variables = dict.fromkeys(v for eqn in equations for v in eqn.invars if not jaxprs.is_literal(v))
        operands = [v for v in variables if v not in made]
        return self._body.part(equations, operands, results), [self._value(v) for v in operands]

    def summed(self, v: Atom, dtype: jnp.dtype) -> jax.Array:
        """Returns the sum of a value over all times, added up in the dtype of the total."""
        eqn = None if v in self._stacked else self._sources.get(v)
        name = None if eqn is None else jaxprs.name_of(eqn)
        if eqn is not None and distribution.is_linear(eqn):
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


class Late(NamedTuple):
    """A value that a loop can leave to those who take it.

    Attributes:
      times: All values of the loop.
      result: Which of them.
    """

    times: _Times
    result: Atom


def _taken_in(params: Parameters, inputs: Values, late: Sequence[Late | None]) -> tuple[Parameters, Values]:
    """Lets a loop make by itself what an earlier one leaves, where it has to read no more for that.

    The gradient of a layer takes, for each gate, the gate and several functions of it, which would be written for all
    times and read again.
    """
    body, num_consts, num_carry = params["jaxpr"], params["num_consts"], params["num_carry"]
    first = num_consts + num_carry
    loops = {id(x.times): x.times for x in late[first:] if x is not None}
    fixed, taken, recipes = list(inputs[:num_consts]), set[int](), []
    for times in loops.values():
        places = [i for i, x in enumerate(late) if i >= first and x is not None and x.times is times]
        program, operands = times.recipe([late[i].result for i in places])  # pyright: ignore[reportOptionalMemberAccess]
        others = [x for i, x in enumerate(inputs) if i >= first and i not in places]
        more = [x for x, varies in operands if varies and _place(x, others) is None]
        if sum(x.size for x in more) <= sum(inputs[i].size for i in places):
            taken.update(places)
            recipes.append((places, program, operands))
    if not recipes:
        return params, inputs
    looped = [x for i, x in enumerate(inputs) if i >= first and i not in taken]
    for x, varies in (operand for *_, operands in recipes for operand in operands):
        values = looped if varies else fixed
        if _place(x, values) is None:
            values.append(x)

    def step(*args: jax.Array) -> Values:
        consts, carry, now = args[: len(fixed)], args[len(fixed) :][:num_carry], args[len(fixed) + num_carry :]
        given = iter(now)
        values = [None if i in taken else next(given) for i in range(first, len(inputs))]
        for places, program, operands in recipes:
            own = (now[_place(x, looped)] if varies else consts[_place(x, fixed)] for x, varies in operands)
            for i, x in zip(places, program(*own), strict=True):
                values[i - first] = x
        return body(*consts[:num_consts], *carry, *values)

    once = [*fixed, *inputs[num_consts:first]]
    types = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in once]
    types += [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in looped]
    return {**params, "jaxpr": jaxprs.trace(step, *types)[0], "num_consts": len(fixed)}, [*once, *looped]


def _place(x: jax.Array, among: Sequence[jax.Array]) -> Any:
    return next((i for i, other in enumerate(among) if other is x), None)


# --- a step as it is run best ----------------------------------------------------------------


def _has_products(program: Program) -> bool:
    return any(jaxprs.name_of(eqn) == "dot_general" or _calls_products(eqn) for eqn in program.equations)


def _calls_products(eqn: Equation) -> bool:
    return jaxprs.name_of(eqn) == "jit" and any(map(_has_products, jaxprs.inner(eqn)))


def _flat(program: Program, by_columns: Sequence[Equation] = ()) -> Program:
    """Writes a loop's body as a step is run best.

    Functions that are called by `jax.jit` and have products are written out, what is read often is made whole, and the
    matrices of products by columns are turned.
    """
    turned = set(map(id, by_columns))

    def run(program: Program, args: Iterable[jax.Array]) -> Values:
        often = _read_often(program)
        whole = lambda v, x: lax.optimization_barrier(x) if v in often else x  # noqa: E731
        values = dict(program.constants) | {v: whole(v, x) for v, x in zip(program.inputs, args, strict=True)}
        for eqn in program.equations:
            inputs = [v.val if jaxprs.is_literal(v) else values[v] for v in eqn.invars]
            results = zip(eqn.outvars, outputs(program, eqn, inputs), strict=True)
            values |= {v: whole(v, x) for v, x in results}
        return [v.val if jaxprs.is_literal(v) else values[v] for v in program.outputs]

    def outputs(program: Program, eqn: Equation, inputs: Values) -> Values:
        params = jaxprs.parameters(eqn) if _calls_products(eqn) or id(eqn) in turned else None
        if params is not None and id(eqn) in turned:
            (left, matrix), params["dimension_numbers"] = inputs, (((1,), (0,)), ((), ()))
            # XLA's CPU compiler copies what it turns once more, unless there is another axis.
            matrix = lax.transpose(lax.optimization_barrier(matrix[None]), (2, 0, 1)).reshape(matrix.shape[::-1])
            return [lax.dot_general(left, matrix, **params)]
        return jaxprs.alone(program, eqn, inputs) if params is None else run(params["jaxpr"], inputs)

    types = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.inputs]
    return jaxprs.trace(lambda *args: run(program, args), *types)[0]


def _reads_by_columns(eqn: Equation, matrices: Collection[Atom]) -> bool:
    """Tells a product with one of some matrices of moderate size, contracted over its second axis."""
    if jaxprs.name_of(eqn) != "dot_general" or jaxprs.is_literal(eqn.invars[1]) or eqn.invars[1] not in matrices:
        return False
    params, matrix = jaxprs.parameters(eqn), eqn.invars[1].aval
    is_read = params is not None and params["dimension_numbers"] == (((1,), (1,)), ((), ()))
    return is_read and len(matrix.shape) == 2 and matrix.size <= _LARGE_MATRIX


def _read_often(program: Program) -> set[Atom]:
    """Finds what more than two operations read, or that is taken to pieces.

    XLA would compute it anew in the loop of each, and does not vectorise the reading of pieces of a step's input.
    """
    made = {v for eqn in program.equations if jaxprs.name_of(eqn) != "optimization_barrier" for v in eqn.outvars}
    read = [(v, eqn) for eqn in program.equations for v in eqn.invars if not jaxprs.is_literal(v)]
    count = Counter(v for v, eqn in read for _ in eqn.outvars if v in made or len(eqn.outvars) > 1)
    return {v for v, number in count.items() if number > 2}
