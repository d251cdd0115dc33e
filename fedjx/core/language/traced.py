"""From a function of placed values to its types and its program."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from fedjx.core.language.arguments import as_declared, check_type, declared_type
from fedjx.core.language.names import PyTree, Type
from fedjx.core.language.operators import federated_zip
from fedjx.core.language.placed import FederatedValue, Node
from fedjx.core.language.program import Message, Program
from fedjx.core.language.streams import first_chunk
from fedjx.core.language.types import (
    CLIENTS,
    SERVER,
    FederatedType,
    FunctionType,
    Struct,
    element_type,
    notation,
    type_of,
)
from fedjx.core.language.values import Sequence


def _as_it_is(value: PyTree) -> PyTree:
    return value


def _nothing(value: PyTree) -> None:
    del value


class Hooks(NamedTuple):
    """What is done on the host around each call of a computation, whichever way it runs.

    Attributes:
      argument: From an argument to the one that is taken for it, such as a cohort that looks at what it reads.
      result: Is given what comes back; it must not wait for it.
    """

    argument: Callable[[PyTree], PyTree] = _as_it_is
    result: Callable[[PyTree], None] = _nothing


class Traced:
    """A function of placed values: what its types are, and which program it is traced into.

    Attributes:
      name: Of the function.
      hooks: What is done on the host around each call.
    """

    def __init__(self, fn: Callable[..., PyTree], types: tuple[Type, ...] | None = None, hooks: Hooks = Hooks()):
        self.name, self.hooks = getattr(fn, "__name__", repr(fn)), hooks
        self._fn = fn
        self._signature = inspect.signature(fn)
        self._parameters = _parameter_names(self.name, self._signature)
        if types is None and not self._parameters:
            types = ()
        self._types = None if types is None else tuple(map(declared_type, types))
        if self._types is not None and len(self._types) != len(self._parameters):
            raise TypeError(
                f"a computation declares one type per parameter; got {len(self._types)} for {self._parameters} of "
                f"{self.name}. Declare all, or none."
            )
        self._traced: tuple[Type, ...] | None = None  # types with which it went well, for a message
        if self._types is not None:
            self._declared_signature = self._signature_of(self._types)

    def __repr__(self) -> str:
        return f"<federated computation {self.name}>"

    # --- types ---

    @property
    def type_signature(self) -> Any:
        """Returns the `FunctionType`; for a computation without declared types, a function of the arguments.

        Arguments may be values, streams or types.
        """
        return self._inferred_signature if self._types is None else self._declared_signature

    def _inferred_signature(self, *args: PyTree, **kwargs: PyTree) -> FunctionType:
        return self._signature_of(self._types_of(args, kwargs))

    def _signature_of(self, types: tuple[Type, ...]) -> FunctionType:
        parameter = types[0] if len(types) == 1 else Struct(self._parameters, types) if types else None
        if self._is_local(types):
            return FunctionType(parameter, jax.eval_shape(self._fn, *types))
        return FunctionType(parameter, _result_type(self.trace(types).result))

    def _types_of(self, args: tuple[PyTree, ...], kwargs: Mapping[str, PyTree]) -> tuple[Type, ...]:
        return tuple(type_of(first_chunk(value)) for value in self.bind(args, kwargs))

    def _is_local(self, types: tuple[Type, ...] | None) -> bool:
        return bool(types) and not any(isinstance(t, FederatedType) for t in types)

    def communication(self, *args: PyTree, **kwargs: PyTree) -> list[Message]:
        """Lists the messages between the server and one client, without running anything.

        Arguments may be values, streams or types; none are needed where types are declared.
        """
        return self.program(*args, **kwargs).communication()

    # --- tracing ---

    def program(self, *args: PyTree, **kwargs: PyTree) -> Program:
        """Traces the computation for arguments, which may be values, streams or types, or for its declared types."""
        types = self._types if self._types is not None and not args and not kwargs else self._types_of(args, kwargs)
        return self.trace(types)

    def trace(self, types: tuple[Type, ...]) -> Program:
        """Runs the function on placed values of the types, and cuts its graph into passes."""
        for name, type_ in zip(self._parameters, types, strict=True):
            if not isinstance(type_, FederatedType):
                raise TypeError(
                    f"parameters must be all placed or all unplaced; got {notation(type_)} for {name!r}. "
                    "Write FederatedType(member, SERVER)."
                )
            if "?" in str(type_):
                raise TypeError(f"a computation is traced for arrays of known size; got {type_} for {name!r}. Give it.")
        arguments = [Node("argument", type_) for type_ in types]
        try:
            result = self._fn(*map(FederatedValue, arguments))
        except Exception as error:  # whatever the functions of others raise
            if FederatedValue.__name__ in str(error):
                error.add_note("fedjx: a placed value is no array. Act on its members with federated_map.")
            if self._traced is not None and (changed := _changed(self._parameters, self._traced, types)):
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(
                    f"{self.name} needs data that its functions take, as those of the calls before; got {changed}. "
                    f"Bring them into that form. The functions say: {error}"
                ) from error
            raise
        program, self._traced = Program(arguments, _normal(result)), types
        return program

    def bind(self, args: tuple[PyTree, ...], kwargs: Mapping[str, PyTree]) -> list[PyTree]:
        """Returns the arguments of a call in the order of the parameters."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"{self.name} takes ({', '.join(self._parameters)}); got a call with {error}. Pass one value for each."
            ) from None
        options = [name for name in bound.arguments if name not in self._parameters]
        if options:
            raise TypeError(
                f"keyword-only parameters keep their defaults; {self.name} got {options}. Pass by position."
            )
        bound.apply_defaults()
        values = [self.hooks.argument(bound.arguments[name]) for name in self._parameters]
        if self._types is None and any(isinstance(v, list) and not v for v in values):
            raise ValueError("a cohort needs at least one client; got []. Sample again, or skip the round.")
        return values

    def named(self, values: list[PyTree]) -> dict[str, PyTree]:
        """Returns arguments, in the order of the parameters, by name."""
        return dict(zip(self._parameters, values, strict=True))

    def check_arrays(self, values: list[PyTree]) -> None:
        """Refuses an argument that holds what is no array and no number, such as a whole data set."""
        for name, value in zip(self._parameters, values, strict=True):
            for leaf in jax.tree.leaves(value):
                if not (hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float, complex))):
                    raise TypeError(
                        f"{self.name} takes arrays, Clients and cohorts; got {leaf!r} in {name!r}. Say who takes "
                        "part: `Cohort(data, ids, batch_size=...)` of data, `states.cohort(ids)` of states on disk."
                    )

    def converted(self, values: list[PyTree]) -> list[PyTree]:
        """Brings arguments into their declared types, or leaves them if none are declared."""
        if self._types is None:
            return values
        named = zip(self._parameters, values, self._types, strict=True)
        return [as_declared(self.name, name, value, type_) for name, value, type_ in named]

    def inline(self, values: list[PyTree]) -> PyTree:
        """Applies the function to placed values, which makes it part of the computation that they belong to."""
        if self._types is not None:
            values = [federated_zip(value) for value in values]
            for name, value, type_ in zip(self._parameters, values, self._types, strict=True):
                check_type(self.name, name, value.type, type_)
        return self._fn(*values)


def _changed(names: tuple[str, ...], before: tuple[Type, ...], now: tuple[Type, ...]) -> str:
    """Says which leaves at the clients are others than before, if all at the server are the same."""
    said = []
    for name, was, is_ in zip(names, before, now, strict=True):
        if is_ != was and (isinstance(is_, FederatedType) and is_.placement == SERVER):
            return ""
        found, had = _leaves(is_), _leaves(was)
        differ = [path for path in {**had, **found} if found.get(path) != had.get(path)]
        said += [f"{name}{path} {found.get(path, 'missing')}, before {had.get(path, 'missing')}" for path in differ]
    return "; ".join(said)


def _leaves(type_: Type) -> dict[str, str]:
    member = type_.member if isinstance(type_, FederatedType) else type_
    member = jax.tree.map(_element, member, is_leaf=lambda x: isinstance(x, Sequence))
    return {jax.tree_util.keystr(path): notation(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(member)}


def _element(node: Type) -> Type:
    return element_type(node) if isinstance(node, Sequence) else node


def _parameter_names(name: str, signature: inspect.Signature) -> tuple[str, ...]:
    names = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
        elif parameter.kind != parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise TypeError(f"a federated computation has positional parameters; got {parameter} in {name}. Name each.")
    return tuple(names)


# --- results --------------------------------------------------------------------------------------


def _normal(result: PyTree, top: bool = True) -> PyTree:
    """Checks that all of a result is placed, and zips structures that are wholly at CLIENTS."""
    leaves = jax.tree.leaves(result)
    for leaf in leaves:
        if not isinstance(leaf, FederatedValue):
            raise TypeError(
                f"a federated computation returns placed values; got {leaf!r}. "
                "Place it with federated_value(x, fedjx.SERVER)."
            )
    if top and type(result) is tuple:
        return tuple(_normal(part, top=False) for part in result)
    at_clients = leaves and all(leaf.type.placement == CLIENTS for leaf in leaves)
    return federated_zip(result) if at_clients else result


def _result_type(result: PyTree, top: bool = True) -> Type:
    """Types a result: what is wholly at the server is one value, but for the parts of a returned tuple."""
    if isinstance(result, FederatedValue):
        return result.type
    if not (top and type(result) is tuple):
        leaves = jax.tree.leaves(result)
        if all(leaf.type.placement == SERVER for leaf in leaves):
            return FederatedType(jax.tree.map(lambda leaf: leaf.type.member, result), SERVER)
    parts, treedef = jax.tree.flatten(result, is_leaf=lambda x: x is not result)
    return treedef.unflatten([_result_type(part, top=False) for part in parts])
