"""Hashes of what is computed and of what it is computed from, the same in every process that has the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.names import PyTree
from fedjx.core.language.passes import Reduction
from fedjx.core.language.shares import is_shared
from fedjx.core.rewriting import jaxprs


def of_values(*values: PyTree) -> str:
    """Returns the SHA-256 of the arrays of some pytrees: their types and what they hold.

    Of an array that is divided among processes no process has all, so its type alone counts.

    >>> of_values(np.arange(3)) == of_values(np.array([0, 1, 2])) != of_values(np.arange(3.0))
    True
    """
    return _hash(part for leaf in jax.tree.leaves(values) for part in _of_array(leaf))


def of_function(fn: Callable[..., PyTree], *args: PyTree) -> str:
    """Returns the SHA-256 of a function of arrays of these types: its operations, and the numbers that it holds.

    What JAX names and shares in its own way, from one process to the next, does not count.

    >>> rates = [of_function(lambda x, rate=rate: rate * x, jnp.zeros(2)) for rate in (0.1, 0.1, 0.10001)]
    >>> rates[0] == rates[1] != rates[2]
    True
    """
    program, _ = jaxprs.trace(lambda *args: fn(*args), *args)
    return _hash(_of_program(program))


def of_reduction(reduction: Reduction, member: PyTree) -> str:
    """Returns the SHA-256 of a reduction over members of a type."""
    zero = jax.eval_shape(lambda member: reduction.zero(member), member)
    chunk = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), member)
    across = reduction.across if isinstance(reduction.across, str) else of_function(reduction.across, zero, zero)
    parts = [
        across,
        of_function(lambda: reduction.zero(member)),
        of_function(reduction.update, zero, chunk, jax.ShapeDtypeStruct((1,), jnp.bool_)),
        of_function(reduction.report, zero),
    ]
    return _hash(part.encode() for part in parts)


def of_texts(texts: list[str]) -> str:
    """Returns the SHA-256 of some texts."""
    return _hash(text.encode() for text in texts)


def _hash(parts: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def _of_array(x: PyTree) -> Iterator[bytes]:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        yield str(x.dtype).encode()
        x = jax.random.key_data(x)
    yield f"{getattr(x, 'dtype', type(x))}{list(np.shape(x))}".encode()
    if not is_shared(x) or x.is_fully_replicated:
        yield np.asarray(x).tobytes()


def _of_program(program: jaxprs.Program) -> Iterator[bytes]:
    """Yields what a program is made of, its variables numbered as they come."""
    number: dict[jaxprs.Atom, int] = {}

    def named(atom: jaxprs.Atom) -> Iterator[bytes]:
        if jaxprs.is_literal(atom):
            yield from _of_array(atom.val)
        else:
            yield f"{number.setdefault(atom, len(number))}:{atom.aval.str_short()}".encode()

    for variable, value in program.constants.items():
        yield from named(variable)
        yield from _of_array(value)
    for variable in program.inputs:
        yield from named(variable)
    for equation in program.equations:
        yield jaxprs.name_of(equation).encode()
        yield from (f"{name}={_shown(x)}".encode() for name, x in sorted(equation.params.items()))
        for atom in [*equation.invars, *equation.outvars]:
            yield from named(atom)
        for inner in jaxprs.inner(equation):
            yield from _of_program(inner)
    for atom in program.outputs:
        yield from named(atom)


def _shown(parameter: object) -> str:
    """Prints a parameter of an operation without programs, which are looked into, functions, and where things lie."""
    if callable(parameter) or hasattr(parameter, "eqns") or hasattr(parameter, "jaxpr"):
        return ""
    if isinstance(parameter, (tuple, list)):
        return f"({','.join(map(_shown, parameter))})"
    if isinstance(parameter, (set, frozenset)):
        return f"{{{','.join(sorted(map(_shown, parameter)))}}}"
    if isinstance(parameter, np.ndarray):
        return of_values(parameter)
    return re.sub(r"0x[0-9a-f]+", "", str(parameter))
