"""Loops over padded sequences that end where the longest of the sequences at hand ends.

A `scan` over the padding can be differentiated in reverse; a `while` skips the padding. The same
`sequence_reduce` is written once, as a scan in a function named `sequence_fold`, and the engine
turns it into a while loop where nothing is differentiated any more.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.jaxprs import Equation, Parameters, Program, PyTree, Values

FOLD = "sequence_fold"


@custom_vmap
def longest(length: jax.Array) -> jax.Array:
    """Returns the largest of the lengths ``[]`` of all sequences that are mapped together.

    It is one number for all of them, so that a loop up to it has one condition.
    """
    return length


@longest.def_vmap
def _longest_of_all(_: int, in_batched: list[bool], length: jax.Array) -> tuple[jax.Array, bool]:
    return longest(jnp.max(length) if in_batched[0] else length), False


def fold(step: Callable[[PyTree, PyTree], PyTree], zero: PyTree, xs: PyTree, length: jax.Array) -> PyTree:
    """Folds ``step`` over ``xs``, leaves ``[S, ...]``, as a scan that `is_fold` knows again."""

    def sequence_fold(length: jax.Array, zero: PyTree) -> tuple[jax.Array, PyTree]:
        return length, lax.scan(lambda total, x: (step(total, x), None), zero, xs)[0]

    return jax.jit(sequence_fold)(length, zero)[1]


def is_fold(eqn: Equation) -> bool:
    """Tells whether an equation is a `fold` as it was written, not differentiated since."""
    return jaxprs.called(eqn) == FOLD and _parts(eqn) is not None


def _parts(eqn: Equation) -> tuple[Program, Equation, Parameters] | None:
    """Returns the program of a `fold`, the scan in it, and the parameters of that."""
    params = jaxprs.parameters(eqn)
    if params is None:
        return None
    program: Program = params["jaxpr"]
    scans = [inner for inner in program.equations if jaxprs.name_of(inner) == "scan"]
    if len(scans) != 1 or program.outputs[0] not in program.inputs or program.outputs[1:] != scans[0].outvars:
        return None
    loop = jaxprs.parameters(scans[0])
    if loop is None or loop["reverse"] or len(scans[0].outvars) != loop["num_carry"]:
        return None
    return program, scans[0], loop


def while_loop(eqn: Equation, inputs: Values, part: Callable[[Program], Callable[..., Values]]) -> Values:
    """Runs a `fold` up to the longest length.

    Args:
      eqn: The fold: perhaps some preparation, then the scan; its first result is the length.
      inputs: What it is called with.
      part: Makes a function of an inner program.
    """
    parts = _parts(eqn)
    assert parts is not None
    program, scan, loop = parts
    before = program.equations[: program.equations.index(scan)]
    length, *operands = part(program.part(before, program.inputs, [program.outputs[0], *scan.invars]))(*inputs)
    num_consts, num_carry = loop["num_consts"], loop["num_carry"]
    consts, carry, xs = operands[:num_consts], operands[num_consts:][:num_carry], operands[num_consts + num_carry :]
    body, stop = part(loop["jaxpr"]), longest(jnp.max(length))  # of a user's own vmap, too

    def advance(state: tuple[jax.Array, tuple[jax.Array, ...]]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        position, carry = state
        at = [lax.dynamic_index_in_dim(x, position, keepdims=False) for x in xs]
        return position + 1, tuple(body(*consts, *carry, *at))

    _, end = lax.while_loop(lambda state: state[0] < stop, advance, (jnp.int32(0), tuple(carry)))
    return [length, *end]
