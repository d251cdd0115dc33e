"""What can be read off a traced function: which results depend on some of its arguments, and what it does besides.

An operation of which nothing else is known depends on all that goes into it. Programs inside of others are looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.jaxprs import Atom, Equation, Program, PyTree

# Random keys are made to be as good as independent of what they are made of.
_ENDS = ("random_fold_in",)
# Effects on references (`jax.new_ref`) stay within the program; but they hide what depends on what.
_INSIDE = ("ReadEffect", "WriteEffect", "AccumEffect", "InternalMutableArrayEffect")
_OUTWARD = ("callback", "debug_print", "outfeed", "infeed")


def depends_on(
    fn: Callable[..., PyTree], args: Sequence[PyTree], is_source: Sequence[bool]
) -> tuple[list[bool], set[str]]:
    """Tells which results of a function depend on some arguments, other than through random keys folded from them.

    Args:
      fn: The function; it is traced and not run.
      args: Types or values of its arguments.
      is_source: For each array in the arguments, in the order of `jax.tree.leaves`, whether it is one of these.

    Returns:
      For each array in the result whether it depends on one, and the operations by which the function acts on the
      world outside, such as callbacks.

    >>> spec = jax.ShapeDtypeStruct((), jnp.int32)
    >>> depends_on(lambda x, y: (x + y, y), [spec, spec], [True, False])
    ([True, False], set())
    """
    program, _ = jaxprs.trace(lambda *args: fn(*args), *args)
    effects = {(jaxprs.name_of(eqn), type(effect).__name__) for eqn in _all(program) for effect in eqn.effects}
    outward = {name for name, effect in effects if effect not in _INSIDE}
    outward |= {name for name in map(jaxprs.name_of, _all(program)) if any(word in name for word in _OUTWARD)}
    if any(effect in _INSIDE for _, effect in effects):
        return [any(is_source)] * len(program.outputs), outward
    return _results(program, list(is_source)), outward


def _all(program: Program) -> Iterator[Equation]:
    """Lists all operations, but for those that only hold others."""
    for eqn in program.equations:
        parts = list(jaxprs.inner(eqn))
        yield from [] if parts else [eqn]
        for part in parts:
            yield from _all(part)


def _results(program: Program, flags: list[bool]) -> list[bool]:
    depends: dict[Atom, bool] = dict(zip(program.inputs, flags, strict=True))
    for eqn in program.equations:
        inputs = [not jaxprs.is_literal(v) and depends.get(v, False) for v in eqn.invars]
        depends |= dict(zip(eqn.outvars, _of_equation(eqn, inputs), strict=True))
    return [not jaxprs.is_literal(v) and depends.get(v, False) for v in program.outputs]


def _of_equation(eqn: Equation, inputs: list[bool]) -> list[bool]:
    name, whole = jaxprs.name_of(eqn), [any(inputs)] * len(eqn.outvars)
    if not any(inputs) or name in _ENDS:
        return [False] * len(eqn.outvars)
    if name in ("scan", "while", "cond"):
        params = jaxprs.parameters(eqn)
        return whole if params is None else _CONTROL[name](params, inputs)
    match list(jaxprs.inner(eqn)):  # a call, of whatever kind
        case [part] if len(part.inputs) == len(inputs) and len(part.outputs) == len(whole):
            return _results(part, inputs)
    return whole


def _until_stable(step: Callable[[list[bool]], list[bool]], carry: list[bool]) -> list[bool]:
    """Repeats a step of a loop until what it carries depends on no more than before."""
    while (after := [a or b for a, b in zip(carry, step(carry), strict=True)]) != carry:
        carry = after
    return carry


def _scan(params: jaxprs.Parameters, inputs: list[bool]) -> list[bool]:
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, carry, xs = inputs[:num_consts], inputs[num_consts:][:num_carry], inputs[num_consts + num_carry :]

    def step(carry: list[bool]) -> list[bool]:
        return _results(params["jaxpr"], [*consts, *carry, *xs])

    carry = _until_stable(lambda carry: step(carry)[:num_carry], carry)
    return [*carry, *step(carry)[num_carry:]]


def _while(params: jaxprs.Parameters, inputs: list[bool]) -> list[bool]:
    num_tests, num_bodies = params["cond_nconsts"], params["body_nconsts"]
    tests, bodies = inputs[:num_tests], inputs[num_tests:][:num_bodies]
    carry = _until_stable(
        lambda carry: _results(params["body_jaxpr"], [*bodies, *carry]), inputs[num_tests + num_bodies :]
    )
    # How often it runs is seen in all that it leaves.
    return [True] * len(carry) if any(_results(params["cond_jaxpr"], [*tests, *carry])) else carry


def _cond(params: jaxprs.Parameters, inputs: list[bool]) -> list[bool]:
    branches = [_results(branch, inputs[1:]) for branch in params["branches"]]
    return [inputs[0] or any(flags) for flags in zip(*branches, strict=True)]


_CONTROL = {"scan": _scan, "while": _while, "cond": _cond}
