"""Computations as files: `export` to bytes, `load` in a process without the Python that made them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

from fedjx.core.execution.computation import Computation
from fedjx.core.language.arguments import as_declared
from fedjx.core.language.names import PyTree, Type
from fedjx.core.language.streams import first_chunk, whole
from fedjx.core.language.types import (
    CLIENTS,
    FederatedType,
    FunctionType,
    Struct,
    element_type,
    parse_type,
    sequence_type,
    type_of,
)
from fedjx.core.language.values import Clients, Sequence, check_same_clients, gathered

Dimension = Any  # a number, or a symbol of `jax.export`

_FORMAT = "fedjx computation 2"
_START = f"{_FORMAT}: ".encode()  # then the length and SHA-256 of all that follows the line


def export(computation: Computation, *args: PyTree) -> bytes:
    """Serialises a computation, for any number of clients and any length of their sequences.

    Args:
      computation: The federated computation.
      *args: Arguments like those it will be called with, or their types.

    Returns:
      A self-contained artefact: the StableHLO program of `jax.export`, and the type signature
      that says how arguments and results are structured.

    >>> @fedjx.federated_computation("{float32[2]}@CLIENTS")
    ... def total(x):
    ...     return fedjx.federated_sum(x)
    >>> load(export(total, total.type_signature.parameter))([[1.0, 2.0], [3.0, 4.0]])
    Array([4., 6.], dtype=float32)
    """
    types = [type_of(first_chunk(arg)) for arg in args]
    signature = computation.type_signature
    signature = signature if isinstance(signature, FunctionType) else signature(*types)
    sizes = jax.export.symbolic_shape("clients, steps")
    leaves, treedef = jax.tree.flatten([_symbolic(t, *sizes) for t in types])

    def flat(*leaves: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(computation.in_graph()(*treedef.unflatten(leaves)))

    program = jax.export.export(jax.jit(flat))(*leaves)
    header = {"jax": jax.__version__, "type": str(signature), "arguments": [str(t) for t in types]}
    return _sealed(json.dumps(header).encode() + b"\n" + bytes(program.serialize()))


def load(artefact: bytes) -> LoadedComputation:
    """Restores what `export` wrote.

    Nothing is parsed before length and SHA-256, in the first line, are found right: a damaged program may crash the
    process. They tell damage, not malice; load what you would run.

    Raises:
      TypeError: If it is given anything but bytes.
      ValueError: If the bytes are no such artefact, are damaged, or are one that this version of JAX cannot read: JAX
        keeps programs readable for six months.
    """
    head, _, body = _unsealed(artefact).partition(b"\n")
    header = json.loads(head)
    try:
        program = jax.export.deserialize(bytearray(body))
    except Exception as error:  # JAX does not say which
        raise ValueError(
            f"an artefact needs a program that JAX can read; this one, written by JAX {header['jax']}, "
            f"cannot be read by JAX {jax.__version__}: {error}. Export it again."
        ) from error
    return LoadedComputation(parse_type(header["type"]), header["arguments"], program)


def _sealed(content: bytes) -> bytes:
    """Puts a line in front of some bytes: format, length and SHA-256."""
    return f"{_FORMAT}: {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}\n".encode() + content


def _unsealed(artefact: bytes) -> bytes:
    """Returns the bytes behind the line that `_sealed` puts in front, if it is the line of these bytes."""
    if not isinstance(artefact, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"an artefact is bytes; got {type(artefact).__name__}. Read the file: `Path(...).read_bytes()`."
        )
    artefact = bytes(artefact)
    line = artefact[:200].partition(b"\n")[0]
    if not line.startswith(_START):
        raise ValueError(
            f"an artefact begins with {_FORMAT!r}; got {line[:40]!r}. Use export, of this release of fedjx."
        )
    content = artefact[len(line) + 1 :]
    if _sealed(content) != artefact:
        raise ValueError(
            f"an artefact needs the length and SHA-256 of its first line; got {line[len(_START) :]!r}, and "
            f"{len(content)} bytes that are others. It is damaged: copy it again, or export it again."
        )
    return content


class LoadedComputation:
    """A computation from a file. Call it with values of the types in its signature.

    Structures in its results are `Struct` and tuples, whatever they were made of.

    Attributes:
      type_signature: The `FunctionType`.
    """

    def __init__(self, type_signature: FunctionType, arguments: list[str], program: jax.export.Exported):
        self.type_signature = type_signature
        self._arguments = [parse_type(t) for t in arguments]
        self._program = program

    def __call__(self, *args: PyTree) -> PyTree:
        """Runs the computation on arguments of the types in its signature."""
        if len(args) != len(self._arguments):
            raise TypeError(f"this computation takes {len(self._arguments)} arguments; got {len(args)}.")
        pairs = enumerate(zip(args, self._arguments, strict=True))
        values = [as_declared("the loaded computation", str(i), whole(arg), type_) for i, (arg, type_) in pairs]
        check_same_clients([value for value in values if isinstance(value, Clients)])
        results = self._program.call(*map(jnp.asarray, jax.tree.leaves(gathered(values))))
        return jax.tree.unflatten(jax.tree.structure(_template(self.type_signature.result)), results)


def _symbolic(type_: FederatedType, clients: Dimension, steps: Dimension) -> PyTree:
    """Returns the device form of a value of a type, with symbols for the sizes that are no part of it."""
    lead = (clients,) if type_.placement == CLIENTS else ()

    def spec(leaf: jax.ShapeDtypeStruct, *sizes: Dimension) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*sizes, *leaf.shape[len(sizes) - len(lead) :]), leaf.dtype)

    def part(node: Type) -> PyTree:
        if not isinstance(node, Sequence):
            return spec(node, *lead)
        elements = jax.tree.map(lambda leaf: spec(leaf, *lead, steps), sequence_type(element_type(node)).elements)
        return Sequence(elements, spec(node.length, *lead))

    value = jax.tree.map(part, type_.member, is_leaf=lambda x: isinstance(x, Sequence))
    return Clients(value, jax.ShapeDtypeStruct(lead, bool), jax.ShapeDtypeStruct(lead, jnp.int32)) if lead else value


def _template(type_: Type) -> PyTree:
    """Returns a pytree of the structure that a result of a type has."""
    if isinstance(type_, FederatedType):
        return Clients(type_.member, 0, 0) if type_.placement == CLIENTS else type_.member
    if isinstance(type_, (tuple, Struct)):
        parts, treedef = jax.tree.flatten(type_, is_leaf=lambda x: x is not type_)
        return treedef.unflatten([_template(part) for part in parts])
    return type_
