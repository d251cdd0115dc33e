"""Placed values: the nodes of the graph, and what may be done with a value directly.

Operators build a graph of immutable nodes and nothing else: there is no context, stack or
global, so a computation called inside another is simply inlined, and threads do not disturb
each other. Seven kinds of node suffice: argument, constant, client id, broadcast, map, reduce
and collect.
"""

from __future__ import annotations

import numbers
import operator
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from fedjx.core.language.names import DType, PyTree
from fedjx.core.language.types import FederatedType, Placement, children, member_type, notation
from fedjx.core.language.values import Sequence

Function = Callable[..., PyTree]
Operand = Any  # a `FederatedValue` or a number; whatever else it is, an error says so


class Node:
    """A node of the graph.

    Attributes:
      kind: argument, constant, client_id, broadcast, map, reduce or collect.
      type: The `FederatedType` of its value.
      inputs: The nodes it is computed from.
      fn: What is applied: a function for map, a `Reduction` for reduce, the value of a constant.
      sent: For broadcast, reduce and collect, the member type that travels; for a map by which the
        server decodes what it is sent, that type.
      key: What tells ``fn`` from others; nodes that agree in all but their identity are one.
      name: Of the operator, where its messages show the server something of the clients.
    """

    __slots__ = ("fn", "inputs", "key", "kind", "name", "sent", "type")

    def __init__(
        self,
        kind: str,
        type_: FederatedType,
        inputs: tuple[Node, ...] = (),
        fn: PyTree = None,
        sent: PyTree = None,
        key: Hashable = None,
        name: str = "",
    ):
        self.kind, self.type, self.inputs, self.fn, self.sent, self.key = kind, type_, inputs, fn, sent, key
        self.name = name


class FederatedValue:
    """A value placed at the server or at the clients, while a computation is traced.

    It is not an array: only federated operators act on it. Fields of a structured member are
    selected by ``value.name`` or ``value["name"]``, and values of one placement may be added,
    subtracted, multiplied and divided. Everything else goes through `federated_map`.
    """

    __slots__ = ("_node",)
    __array_ufunc__ = None  # or NumPy would make arrays of objects

    def __init__(self, node: Node):
        object.__setattr__(self, "_node", node)

    @property
    def type(self) -> FederatedType:
        """Returns the value's federated type."""
        return self._node.type

    def __repr__(self) -> str:
        return f"<FederatedValue {self.type}>"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise TypeError(f"placed values are immutable; got an assignment to {name!r}. Use federated_map.")

    def __getattr__(self, name: str) -> FederatedValue:
        if name.startswith("__"):
            raise AttributeError(name)
        return _select(self, name, AttributeError)

    def __getitem__(self, key: int | str) -> FederatedValue:
        return _select(self, key, TypeError)

    def __iter__(self) -> Iterator[FederatedValue]:
        fields = children(self.type.member)
        if not isinstance(self.type.member, (tuple, list)) or fields is None:
            _refuse(self, "iterated over")
        return iter([self[i] for i in range(len(fields))])

    def __bool__(self) -> NoReturn:
        _refuse(self, "used as a truth value")

    def __len__(self) -> NoReturn:
        _refuse(self, "measured with len")

    def _no_number(self, *_: object) -> NoReturn:
        _refuse(self, "turned into a number or an array")

    __float__ = __int__ = __index__ = __complex__ = __array__ = _no_number

    def _no_comparison(self, _: object) -> NoReturn:
        _refuse(self, "compared")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _no_comparison  # type: ignore[assignment]
    __hash__ = object.__hash__

    def __add__(self, other: Operand) -> FederatedValue:
        return _arithmetic("add", self, other)

    def __radd__(self, other: Operand) -> FederatedValue:
        return _arithmetic("add", other, self)

    def __sub__(self, other: Operand) -> FederatedValue:
        return _arithmetic("sub", self, other)

    def __rsub__(self, other: Operand) -> FederatedValue:
        return _arithmetic("sub", other, self)

    def __mul__(self, other: Operand) -> FederatedValue:
        return _arithmetic("mul", self, other)

    def __rmul__(self, other: Operand) -> FederatedValue:
        return _arithmetic("mul", other, self)

    def __truediv__(self, other: Operand) -> FederatedValue:
        return _arithmetic("truediv", self, other)

    def __rtruediv__(self, other: Operand) -> FederatedValue:
        return _arithmetic("truediv", other, self)

    def __neg__(self) -> FederatedValue:
        return _arithmetic("mul", self, -1)


def _refuse(value: FederatedValue, done: str) -> NoReturn:
    raise TypeError(
        f"a placed value cannot be {done}: its members are not at hand while tracing; got {value.type}. "
        "Act on members with federated_map, combine them with federated_sum or federated_mean."
    )


# --- sugar: selection and arithmetic --------------------------------------------------------------


class _Field(NamedTuple):
    key: int | str
    position: int

    def __call__(self, member: PyTree) -> PyTree:
        return jax.tree.leaves(member, is_leaf=lambda x: x is not member)[self.position]


def _select(value: FederatedValue, key: int | str, error: type[Exception]) -> FederatedValue:
    fields = children(value.type.member)
    if fields is None:
        raise error(
            f"members of a placed value cannot be accessed, so [{key!r}] selects a field of a structure; "
            f"got {value.type}. Act on members with federated_map."
        )
    names = [name for name, _ in fields]
    if isinstance(key, int) and -len(names) <= key < len(names):
        return federated_map(_Field(key, key % len(names)), value)
    if isinstance(key, str) and key in names:
        return federated_map(_Field(key, names.index(key)), value)
    raise error(f"a selection names a field of the structure; got {key!r} for {value.type}. Choose one of {names}.")


class _Arithmetic(NamedTuple):
    name: str
    left: Operand = None
    right: Operand = None

    def __call__(self, *operands: PyTree) -> PyTree:
        fn = getattr(operator, self.name)
        if self.left is not None:
            return jax.tree.map(lambda y: fn(self.left, y), operands[0])
        if self.right is not None:
            return jax.tree.map(lambda x: fn(x, self.right), operands[0])
        return jax.tree.map(fn, *operands)


def _arithmetic(name: str, left: Operand, right: Operand) -> FederatedValue:
    placed = [x for x in (left, right) if isinstance(x, FederatedValue)]
    constants = [x for x in (left, right) if not isinstance(x, FederatedValue)]
    if constants and not (isinstance(constants[0], numbers.Number) or getattr(constants[0], "shape", None) == ()):
        raise TypeError(
            f"arithmetic on placed values takes another of the same placement, or a number; got {constants[0]!r} "
            f"with {placed[0].type}. Use federated_map with a function that holds the array."
        )
    if placed[0] is not left:
        return federated_map(_Arithmetic(name, left=left), right)
    return federated_map(_Arithmetic(name, right=right) if constants else _Arithmetic(name), *placed)


# --- checks ---------------------------------------------------------------------------------------


def one_value(name: str, value: PyTree) -> FederatedValue:
    """Returns a pytree of placed values as a single placed value."""
    if isinstance(value, FederatedValue):
        return value
    leaves, treedef = jax.tree.flatten(value)
    _common_placement(name, leaves)
    return map_node(_Structure(treedef), leaves)


def _common_placement(name: str, leaves: list[PyTree]) -> Placement:
    for leaf in leaves:
        if not isinstance(leaf, FederatedValue):
            raise TypeError(
                f"{name} takes placed values; got {_shown(leaf)}. Pass it as an argument of the computation, "
                "place it with federated_value, or let the mapped function hold it."
            )
    placements = {leaf.type.placement for leaf in leaves}
    if len(placements) != 1:
        got = ", ".join(str(leaf.type) for leaf in leaves) or "nothing"
        raise TypeError(
            f"{name} takes values of one placement; got {got}. "
            "Bring server values to the clients with federated_broadcast, client values to the server by a reduction; "
            "only arguments that are Clients are at CLIENTS (Clients.of, fedjx.data.Cohort)."
        )
    return placements.pop()


def _shown(value: PyTree) -> str:
    try:
        return f"the unplaced {notation(member_type(value))}"
    except (TypeError, ValueError):
        return repr(value)


def value_at(name: str, value: PyTree, placement: Placement, hint: str) -> FederatedValue:
    """Returns a pytree of placed values as one, and refuses it at another placement."""
    value = one_value(name, value)
    if value.type.placement != placement:
        raise TypeError(f"{name} takes a value at {placement}; got {value.type}. {hint}")
    return value


def check_numeric(name: str, value: FederatedValue, allowed: tuple[DType, ...], needed: str, hint: str) -> None:
    """Refuses members with a dtype outside the allowed kinds, and data sets."""
    for leaf in jax.tree.leaves(value.type.member, is_leaf=lambda x: isinstance(x, Sequence)):
        if isinstance(leaf, Sequence) or not any(jnp.issubdtype(leaf.dtype, kind) for kind in allowed):
            raise TypeError(f"{name} needs {needed} members; got {value.type}. {hint}")


# --- map ------------------------------------------------------------------------------------------


class _Applied(NamedTuple):
    """A function of pytrees as a function of their leaves."""

    fn: Function
    treedef: Any

    def __call__(self, *leaves: PyTree) -> PyTree:
        return self.fn(*self.treedef.unflatten(leaves))


class _Structure(NamedTuple):
    treedef: Any

    def __call__(self, *leaves: PyTree) -> PyTree:
        return self.treedef.unflatten(leaves)


def map_node(fn: Function, inputs: list[FederatedValue]) -> FederatedValue:
    """Returns a map over values of one placement, as they come."""
    members, fn = [x.type.member for x in inputs], _frozen(fn)
    try:
        member = jax.eval_shape(lambda *members: fn(*members), *members)
    except Exception as error:
        shown = ", ".join(map(notation, members))
        error.add_note(f"fedjx: in federated_map of {function_name(fn)} over one member of type ({shown})")
        raise
    type_ = FederatedType(member, inputs[0].type.placement)
    return FederatedValue(Node("map", type_, tuple(x._node for x in inputs), fn, key=function_key(fn)))


def _frozen(fn: Function) -> Function:
    """Binds a function's free variables as they are now.

    It is called again when the program runs, and must not see what a loop has made of them since.
    """
    if isinstance(fn, _Applied):
        return fn._replace(fn=_frozen(fn.fn))
    if not isinstance(fn, types.FunctionType) or not fn.__closure__:
        return fn  # no free variable: an object, or a function of its arguments and globals alone
    # A closure is a tuple of cells, one a free variable. The loop that writes to its variable writes to the cell, so
    # a function with the same code and new cells keeps what they hold now.
    cells = tuple(types.CellType(cell.cell_contents) for cell in fn.__closure__ if _is_filled(cell))
    if len(cells) != len(fn.__closure__):
        return fn  # a variable has no value yet, as in a function that calls itself
    bound = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, cells)
    bound.__kwdefaults__, bound.__qualname__ = fn.__kwdefaults__, fn.__qualname__
    return bound


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def function_key(fn: Function) -> Hashable:
    """Tells functions apart by what they do: same code over the same variables is the same function."""
    if isinstance(fn, _Applied):
        return function_key(fn.fn), fn.treedef
    if isinstance(fn, types.FunctionType):
        contents = tuple(id(cell.cell_contents) for cell in fn.__closure__ or () if _is_filled(cell))
        defaults = tuple(map(id, [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]))
        return fn.__code__, id(fn.__globals__), contents, defaults
    return type(fn), repr(fn) if isinstance(fn, (_Arithmetic, _Field)) else fn


def function_name(fn: Function) -> str:
    """Names a function for a message."""
    fn = fn.fn if isinstance(fn, _Applied) else fn
    return getattr(fn, "__qualname__", None) or repr(fn)


def federated_map(fn: Function, *values: PyTree) -> FederatedValue:
    """Applies a function of one member to every member.

    Args:
      fn: An ordinary JAX function; takes one member of each value, returns a pytree of arrays.
      *values: Placed values, or pytrees of them, all at one placement.

    Returns:
      A value of the same placement. Select its fields to take it apart.

    Raises:
      TypeError: If the values are not placed, or at different placements.
      Exception: Whatever ``fn`` raises, with a note that says which map it was.

    >>> @fedjx.federated_computation
    ... def shifted_sum(x, shift):
    ...     moved = federated_map(jnp.add, x, fedjx.federated_broadcast(shift))
    ...     return fedjx.federated_sum(moved)
    >>> shifted_sum(fedjx.Clients.of(np.array([1.0, 2.0])), 10.0)
    Array(23., dtype=float32)
    """
    leaves, treedef = jax.tree.flatten(values)
    _common_placement("federated_map", leaves)
    direct = all(isinstance(value, FederatedValue) for value in values)
    return map_node(fn if direct else _Applied(fn, treedef), leaves)
