"""Arguments of declared types: checked, and brought from Python lists and numbers into their device form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import numpy as np

from fedjx.core.language.names import DType, PyTree, Type
from fedjx.core.language.types import (
    SERVER,
    FederatedType,
    Struct,
    children,
    element_type,
    member_accepts,
    member_type,
    notation,
    parse_type,
    type_of,
)
from fedjx.core.language.values import Clients, Sequence, stack


def declared_type(type_: Type) -> Type:
    """Reads a declared parameter type: a `FederatedType`, its notation, or a member type."""
    type_ = parse_type(type_) if isinstance(type_, str) else type_
    return type_ if isinstance(type_, FederatedType) else member_type(type_)


def check_type(function: str, name: str, got: FederatedType, declared: FederatedType) -> None:
    """Refuses an argument that is not of the declared type."""
    if not declared.accepts(got):
        raise _mismatch(function, name, got, declared)


def _mismatch(function: str, name: str, got: Type, declared: Type) -> TypeError:
    order = " Names come in the declared order, as in an OrderedDict or a NamedTuple; those of a dict are sorted."
    return TypeError(
        f"{function} declares {name!r} as {declared}; got {got}. Pass a value of the declared type."
        + (order if "=" in str(declared) and "=" in str(got) else "")
    )


def as_declared(function: str, name: str, value: PyTree, declared: Type) -> PyTree:
    """Brings an argument into its device form: a list of members becomes `Clients`, a list a sequence."""
    if not isinstance(declared, FederatedType):
        value = _as_member(value, declared)
        if not member_accepts(declared, member_type(value)):
            raise _mismatch(function, name, notation(member_type(value)), notation(declared))
        return value
    if declared.placement == SERVER:
        value = _as_member(value, declared.member)
    elif not isinstance(value, Clients):
        if not isinstance(value, Iterable) or isinstance(value, (str, Mapping)):
            raise TypeError(f"{function} declares {name!r} as {declared}; got {value!r}. Pass one member per client.")
        value = Clients.of(stack([_as_member(member, declared.member) for member in value]))
    check_type(function, name, type_of(value), declared)
    return value


def _as_member(value: PyTree, type_: Type) -> PyTree:
    """Makes arrays of a type out of Python numbers, and sequences out of lists; leaves the rest."""
    if isinstance(type_, Sequence):
        return value if isinstance(value, Sequence) else _as_sequence(list(value), element_type(type_))
    fields = children(type_)
    if fields is None:
        return _as_array(value, type_)
    if isinstance(type_, Struct) and type(value) is dict and value.keys() == {name for name, _ in fields}:
        # A dict has its names sorted. What is declared has them in their order, and is accessed by name or attribute.
        value = Struct(tuple(name for name, _ in fields), tuple(value[name] for name, _ in fields))
    parts, treedef = jax.tree.flatten(value, is_leaf=lambda x: x is not value)
    if len(parts) != len(fields):
        return value
    return treedef.unflatten([_as_member(part, field) for part, (_, field) in zip(parts, fields, strict=True)])


def _as_array(value: PyTree, type_: Type) -> PyTree:
    if isinstance(value, (bool, int, float, complex, list)):
        array = np.asarray(value)
        if array.shape == type_.shape and _fits(array, type_.dtype):
            return array.astype(type_.dtype)
    return value


def _fits(array: np.ndarray, dtype: DType) -> bool:
    if array.dtype.kind == "i" and np.issubdtype(dtype, np.integer):
        return bool(np.all(array == array.astype(dtype)))
    return array.dtype.kind in "biufc" and np.can_cast(array.dtype, dtype, "same_kind")


def _as_sequence(elements: list[PyTree], type_: Type) -> Sequence:
    if not elements:
        return Sequence(jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), type_), np.int32(0))
    return Sequence(stack([_as_member(element, type_) for element in elements]), np.int32(len(elements)))
