"""Products that are added to a matrix, block by block: a step of gradient descent on a dense layer.

XLA writes the gradient of a matrix, which is as large as the matrix, and then reads it again to add it. In blocks of
rows that stay in the cache it never reaches the memory.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.core.rewriting import jaxprs
from fedjx.core.rewriting.alone import alone_on_cpu
from fedjx.core.rewriting.jaxprs import Atom, Equation, Program

_LEAST_ELEMENTS = 2**18  # a smaller gradient stays in the cache as it is
_BLOCK = 2**16  # elements
_MOST_ROWS = 64  # of a batch: with more the product takes far longer than its result is written
_FORMS = ("transpose", "reshape", "squeeze", "convert_element_type")  # in which a matrix is read, without a copy
_Uses = dict[Atom, list[tuple[int, Equation | None]]]
_STEPS: dict[str, Callable[..., jax.Array]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}


class Update(NamedTuple):
    """A matrix ``[M, N]`` to which a multiple of a product of R rows and R rows is added.

    Attributes:
      step: The last operation, of the matrix and the multiple.
      matrix: What is added to.
      factors: The factors of the product, ``[R, M]`` and ``[R, N]``, or transposed.
      axes: Their axes of the R rows.
      scales: Operations with a number each that make the multiple of the product.
      chosen: Whether the matrix changes at all, a number of its own; None if it does.
      readers: What else was made of the matrix.
    """

    step: str
    matrix: Atom
    factors: tuple[Atom, Atom]
    axes: tuple[int, int]
    scales: list[tuple[str, Atom]]
    chosen: Atom | None
    readers: list[Atom]

    @property
    def operands(self) -> list[Atom]:
        """What `updated` takes."""
        numbers = [number for _, number in self.scales] + ([] if self.chosen is None else [self.chosen])
        return [self.matrix, *self.factors, *numbers, *self.readers]


def found_in(program: Program) -> dict[int, Update]:
    """Finds the updates of a program; each stands for the operation whose `id` leads to it."""
    sources = {v: eqn for eqn in program.equations for v in eqn.outvars}
    variables = [v for eqn in program.equations for v in eqn.invars] + program.outputs
    count = Counter(v for v in variables if not jaxprs.is_literal(v))
    roots = [eqn for eqn in program.equations if jaxprs.name_of(eqn) == "select_n" or _is_large_sum(eqn)]
    uses = _uses(program) if roots else {}
    updates = {id(eqn): _update(eqn, sources, count, uses) for eqn in roots}
    return {key: update for key, update in updates.items() if update is not None}


def _uses(program: Program) -> _Uses:
    """Returns where each variable is read, in order; of a result of the program, also at its end."""
    uses: _Uses = {}
    for place, eqn in enumerate(program.equations):
        for v in eqn.invars:
            if not jaxprs.is_literal(v):
                uses.setdefault(v, []).append((place, eqn))
    for v in program.outputs:
        if not jaxprs.is_literal(v):
            uses.setdefault(v, []).append((len(program.equations), None))
    return uses


def _is_large_sum(eqn: Equation) -> bool:
    if jaxprs.name_of(eqn) not in ("add", "sub") or not all(map(jaxprs.is_sized, eqn.invars)):
        return False
    shapes = [v.aval.shape for v in eqn.invars]
    is_matrix = shapes[0] == shapes[1] and len(shapes[0]) == 2 and eqn.outvars[0].aval.size >= _LEAST_ELEMENTS
    return is_matrix and all(v.aval.dtype == jnp.float32 and not jaxprs.is_literal(v) for v in eqn.invars)


def _update(root: Equation, sources: dict[Atom, Equation], count: Counter[Atom], uses: _Uses) -> Update | None:
    eqn, old, chosen = root, None, None
    if jaxprs.name_of(root) == "select_n":  # of the matrix as it was, and as it will be, by one number
        (chosen, old, *others) = root.invars
        is_new = len(others) == 1 and not jaxprs.is_literal(others[0]) and count[others[0]] == 1
        eqn = sources.get(others[0]) if is_new else None
        if eqn is None or chosen.aval.shape or not _is_large_sum(eqn):
            return None
    pairs = [tuple(eqn.invars), tuple(eqn.invars[::-1])][: 2 if jaxprs.name_of(eqn) == "add" else 1]
    for matrix, multiple in pairs:
        product = _product(multiple, sources, count) if old in (None, matrix) else None
        readers = None if product is None else _readers(matrix, uses, root, eqn)
        if product is not None and readers is not None:
            waited_for = [v for v in readers if v in count and _has_numbers(v)]
            return Update(jaxprs.name_of(eqn), matrix, *product, chosen, waited_for)
    return None


def _has_numbers(v: Atom) -> bool:
    """Tells what `_zero_after` can read; what it cannot, such as a random key, costs a copy."""
    is_real = any(jnp.issubdtype(v.aval.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    return is_real and jaxprs.is_sized(v) and v.aval.size > 0


def _readers(matrix: Atom, uses: _Uses, root: Equation, eqn: Equation) -> list[Atom] | None:
    """Returns what is made of a matrix besides its update, unless something is made of it after that."""
    end = next(place for place, using in uses[matrix] if using is root)
    forms, made = [matrix], []
    for form in forms:  # of which there come to be more
        for place, using in uses.get(form, ()):
            if using is None or place > end:
                return None
            if using is not root and using is not eqn:
                # XLA turns no matrix before a product reads it: that is what is to come before.
                (forms if jaxprs.name_of(using) in _FORMS else made).extend(using.outvars)
    return made


def _product(
    v: Atom, sources: dict[Atom, Equation], count: Counter[Atom]
) -> tuple[tuple[Atom, Atom], tuple[int, int], list[tuple[str, Atom]]] | None:
    """Follows a value, of which nothing else is made, back to a product of a few rows."""
    scales, is_turned = [], False
    while (eqn := sources.get(v)) is not None and count[v] == 1:
        name = jaxprs.name_of(eqn)
        if name == "dot_general":
            (left, right), axes = eqn.invars, _contracted(eqn)
            if axes is None:
                return None
            if is_turned:
                return (right, left), (axes[1], axes[0]), scales[::-1]
            return (left, right), axes, scales[::-1]
        if name == "transpose":  # of a matrix: [1, 0]
            v, is_turned = eqn.invars[0], not is_turned
            continue
        numbers = [_number(u, sources) for u in eqn.invars] if name in ("mul", "div") else []
        number, v = next(
            ((n, u) for n, u in zip(numbers[::-1], eqn.invars, strict=False) if n is not None), (None, None)
        )
        if number is None or jaxprs.is_literal(v) or (name == "div" and v is not eqn.invars[0]):
            return None
        scales.append((name, number))
    return None


def _contracted(eqn: Equation) -> tuple[int, int] | None:
    """Returns the axes over which a product of two matrices is contracted, if they are short."""
    params = jaxprs.parameters(eqn)
    types = [(v.aval.dtype, len(v.aval.shape)) for v in eqn.invars]
    if params is None or params.get("out_sharding") is not None or types != [(jnp.float32, 2)] * 2:
        return None
    (left, right), (batch, _) = params["dimension_numbers"]
    if batch or len(left) != 1 or params["precision"] is not None or eqn.outvars[0].aval.dtype != jnp.float32:
        return None
    return (left[0], right[0]) if eqn.invars[0].aval.shape[left[0]] <= _MOST_ROWS else None


def _number(v: Atom, sources: dict[Atom, Equation]) -> Atom | None:
    """Returns the number that a value is everywhere, if it is one."""
    source = None if jaxprs.is_literal(v) else sources.get(v)
    if v.aval.shape and source is not None and jaxprs.name_of(source) == "broadcast_in_dim":
        v = source.invars[0]
    return None if v.aval.shape else v


def updated(update: Update, *args: jax.Array) -> jax.Array:
    """Adds a multiple of a product to a matrix.

    Args:
      update: What is to be done.
      *args: Its operands, of which the readers come before the matrix is overwritten.
    """

    def plain(matrix: jax.Array, left: jax.Array, right: jax.Array, *others: jax.Array) -> jax.Array:
        left_axis, right_axis = update.axes
        multiple = lax.dot_general(left, right, (((left_axis,), (right_axis,)), ((), ())))
        for (name, _), number in zip(update.scales, others, strict=False):
            multiple = _STEPS[name](multiple, number)
        new = _STEPS[update.step](matrix, multiple)
        return new if update.chosen is None else lax.select(others[len(update.scales)], new, matrix)

    return alone_on_cpu(functools.partial(_in_blocks, plain, update), plain, *args)


def _in_blocks(
    plain: Callable[..., jax.Array], update: Update, matrix: jax.Array, left: jax.Array, *others: jax.Array
) -> jax.Array:
    num_readers = len(update.readers)
    others, readers = others[: len(others) - num_readers], others[len(others) - num_readers :]
    num_rows, num_columns = matrix.shape
    size = max(1, _BLOCK // num_columns)

    def add_block(start: jax.Array, size: int, matrix: jax.Array) -> jax.Array:
        block = lax.dynamic_slice_in_dim(matrix, start, size)
        columns = lax.dynamic_slice_in_dim(left, start, size, 1 - update.axes[0])
        return lax.dynamic_update_slice_in_dim(matrix, plain(block, columns, *others), start, 0)

    # Rows are overwritten, so XLA copies the matrix unless all that reads it is known to come before.
    zero, whole = sum(map(_zero_after, readers), jnp.int32(0)), num_rows // size
    matrix = lax.fori_loop(zero, zero + whole, lambda i, matrix: add_block(i * size, size, matrix), matrix)
    return add_block(zero + whole * size, num_rows % size, matrix) if num_rows % size else matrix


def _zero_after(x: jax.Array) -> jax.Array:
    """Returns 0, which XLA does not know before it has ``x``; barriers are gone when it plans its memory."""
    first = lax.slice(x, (0,) * x.ndim, (1,) * x.ndim).reshape(())
    if not jnp.issubdtype(x.dtype, jnp.integer):
        first = lax.bitcast_convert_type(first.astype(jnp.float32), jnp.int32)
    return lax.shift_right_logical(first.astype(jnp.int32) & 1, 1)
