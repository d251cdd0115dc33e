"""Types: placements, federated and function types, and their compact notation.

A *member type* is a pytree of anything with a shape and a dtype, with `Sequence` nodes for data sets:
of `jax.ShapeDtypeStruct`, which `jax.eval_shape` returns, or of `ArrayType`, whose dimensions may be
unknown. A type **is** its notation: two types are equal when they print the same, and what prints parses back::

    float32[10,5]                       an array
    <weights=float32[10,5],bias=float32[5]>   a structure; names are optional
    int32*                              a sequence
    float32@SERVER                      one value, at the server
    {float32}@CLIENTS                   one value per client
    float32@CLIENTS                     the same value at every client
    ({float32}@CLIENTS -> float32@SERVER)     a function
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.names import DType, PyTree, Type
from fedjx.core.language.values import Clients, Sequence, gathered, map_own, per_client

Shape = tuple[Any, ...]  # of numbers, symbols of `jax.export`, and None for what is not known


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """The type of an array, of which dimensions may be unknown: ``float32[28,28]``, ``uint8[?]``.

    Attributes:
      shape: Its dimensions; None for one that is not known.
      dtype: Of NumPy or JAX; object for bytes and text.

    >>> ArrayType((28, None), np.uint8)
    ArrayType((28, None), 'uint8')
    """

    shape: Shape
    dtype: DType

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not jnp.issubdtype(self.dtype, jax.dtypes.extended):
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype))

    def __repr__(self) -> str:
        return f"ArrayType({self.shape}, {str(self.dtype)!r})"

    @property
    def ndim(self) -> int:
        """Returns the number of dimensions."""
        return len(self.shape)


def array_type(shape: Shape, dtype: DType) -> jax.ShapeDtypeStruct | ArrayType:
    """Returns an array's type, in JAX's own form if all of its dimensions are known."""
    return ArrayType(shape, dtype) if None in shape else jax.ShapeDtypeStruct(shape, dtype)


@dataclasses.dataclass(frozen=True)
class Placement:
    """A role that values are placed at: `SERVER` or `CLIENTS`."""

    name: str

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


SERVER = Placement("SERVER")
CLIENTS = Placement("CLIENTS")


class _Notation:
    """What all types share: they are compared, hashed and shown by their notation."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Notation) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return notation(self)

    def __repr__(self) -> str:
        return f"parse_type({str(self)!r})"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FederatedType(_Notation):
    """The type of a placed value.

    Attributes:
      member: What one participant holds. Accepts dtypes, arrays, notation and pytrees of these.
      placement: `SERVER` or `CLIENTS`.
      all_equal: Whether all participants hold the same value; the default at the server.

    >>> print(FederatedType(jnp.float32, CLIENTS), FederatedType({"x": np.zeros((2, 3), np.int8)}, SERVER))
    {float32}@CLIENTS <x=int8[2,3]>@SERVER
    """

    member: PyTree
    placement: Placement
    all_equal: bool = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "member", member_type(self.member))
        if not isinstance(self.placement, Placement):
            raise TypeError(f"a placement must be SERVER or CLIENTS; got {self.placement!r}. Import them from fedjx.")
        if self.all_equal is None:
            object.__setattr__(self, "all_equal", self.placement == SERVER)

    def accepts(self, other: object) -> bool:
        """Tells whether a value of type ``other`` may be passed where this type is declared.

        An all-equal value may stand for one that need not be, never the reverse; an unknown
        dimension ``?`` accepts any size.
        """
        if not isinstance(other, FederatedType) or self.placement != other.placement:
            return False
        return member_accepts(self.member, other.member) and (other.all_equal or not self.all_equal)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FunctionType(_Notation):
    """The type of a computation: at most one parameter (several are packed into a structure), one result.

    >>> print(FunctionType(None, jax.ShapeDtypeStruct((), np.int32)))
    ( -> int32)
    """

    parameter: Type
    result: Type


@jax.tree_util.register_pytree_with_keys_class
class Struct:
    """A structure with optional names, as the notation writes it.

    Parsed types and the results of loaded computations are made of these; select an element
    by name (``s.x``, ``s["x"]``) or by position (``s[0]``).
    """

    def __init__(self, names: tuple[str | None, ...], values: tuple[PyTree, ...]):
        self._names, self._values = tuple(names), tuple(values)

    def __getattr__(self, name: str) -> PyTree:
        if name.startswith("__") or name not in self.__dict__.get("_names", ()):
            raise AttributeError(f"no element {name!r} in {self!r}")
        return self._values[self._names.index(name)]

    def __getitem__(self, key: int | str) -> PyTree:
        return getattr(self, key) if isinstance(key, str) else self._values[key]

    def __iter__(self) -> Iterator[PyTree]:
        return iter(self._values)

    def __repr__(self) -> str:
        items = (f"{n}={v!r}" if n else repr(v) for n, v in zip(self._names, self._values, strict=True))
        return f"<{', '.join(items)}>"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[object, PyTree]], tuple[str | None, ...]]:
        """Names become attribute keys, positions sequence keys."""
        keys = [jax.tree_util.GetAttrKey(n) if n else jax.tree_util.SequenceKey(i) for i, n in enumerate(self._names)]
        return list(zip(keys, self._values, strict=True)), self._names

    @classmethod
    def tree_unflatten(cls, names: tuple[str | None, ...], values: Iterable[PyTree]) -> Struct:
        """Puts together again what `tree_flatten_with_keys` has taken apart."""
        return cls(names, tuple(values))


def children(tree: PyTree) -> list[tuple[str | None, PyTree]] | None:
    """Lists the direct children of a pytree node with their names, or returns None for a leaf."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if len(paths) == 1 and paths[0][0] == ():
        return None
    return [(_name(path[0]), child) for path, child in paths]


def _name(key: PyTree) -> str | None:
    if isinstance(key, jax.tree_util.DictKey):
        return str(key.key)
    return key.name if isinstance(key, jax.tree_util.GetAttrKey) else None


# --- printing -----------------------------------------------------------------------------------


def notation(type_: Type) -> str:
    """Writes a type in the compact notation.

    >>> notation({"b": jnp.zeros(5), "w": jnp.zeros((10, 5), jnp.bfloat16)})
    '<b=float32[5],w=bfloat16[10,5]>'
    """
    match type_:
        case FederatedType():
            member = notation(type_.member)
            return f"{member}@{type_.placement}" if type_.all_equal else f"{{{member}}}@{type_.placement}"
        case FunctionType():
            parameter = "" if type_.parameter is None else notation(type_.parameter)
            return f"({parameter} -> {notation(type_.result)})"
        case Sequence():
            return f"{notation(element_type(type_))}*"
    parts = children(type_)
    if parts is None:
        return _array_notation(type_)
    return "<" + ",".join(f"{_quoted(name)}={notation(t)}" if name else notation(t) for name, t in parts) + ">"


_PLAIN_NAME = re.compile(r"[\w.\-]+")


def _quoted(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _array_notation(leaf: jax.ShapeDtypeStruct | ArrayType) -> str:
    shape = ",".join(str(d) if isinstance(d, int) else "?" for d in leaf.shape)
    return f"{leaf.dtype}[{shape}]" if leaf.shape else str(leaf.dtype)


# --- parsing ------------------------------------------------------------------------------------

# The capacity of a sequence is no part of its type; a type made from notation shows this one.
_CAPACITY = 1


def parse_type(text: str) -> Type:
    """Parses the compact notation.

    Returns:
      A `FederatedType`, a `FunctionType` or a member type. Structures become tuples, or
      `Struct` when they have names.

    Raises:
      ValueError: With the position at which the text stops making sense.

    >>> print(parse_type("({<X=float32,Y=float32>*}@CLIENTS -> <int32,key<fry>>@SERVER)"))
    ({<X=float32,Y=float32>*}@CLIENTS -> <int32,key<fry>>@SERVER)
    """
    return _Parser(text).parse()


class _Parser:
    """Recursive descent over the grammar in the module's docstring."""

    def __init__(self, text: str):
        self.text, self.position = text, 0

    def parse(self) -> Type:
        type_ = self.type()
        self.match("")
        if self.position < len(self.text):
            self.fail("the end of the type")
        return type_

    def match(self, pattern: str) -> str | None:
        found = re.compile(rf"\s*({pattern})").match(self.text, self.position)
        if found is None:
            return None
        self.position = found.end()
        return found[1]

    def expect(self, pattern: str, meaning: str) -> str:
        found = self.match(pattern)
        return self.fail(meaning) if found is None else found

    def fail(self, meaning: str) -> NoReturn:
        raise ValueError(
            f"a type needs {meaning} at position {self.position}; got {self.text!r}. "
            "Examples: float32[10,5], <x=int32,float32>*, {float32}@CLIENTS, (int32 -> int32)."
        )

    def type(self) -> Type:
        if self.match(r"\("):
            return self.function()
        if self.match(r"\{"):
            member = self.type()
            self.expect(r"\}", "'}'")
            self.expect("@", "'@' and a placement")
            return FederatedType(self.unplaced(member), self.placement(), all_equal=False)
        type_ = self.structure() if self.match("<") else self.array()
        while self.match(r"\*"):
            type_ = sequence_type(self.unplaced(type_))
        return FederatedType(self.unplaced(type_), self.placement(), all_equal=True) if self.match("@") else type_

    def unplaced(self, member: Type) -> Type:
        leaves = jax.tree.leaves(member)
        return self.fail("an unplaced member") if any(isinstance(leaf, _Notation) for leaf in leaves) else member

    def function(self) -> FunctionType:
        parameter = None if self.match("->") else self.type()
        if parameter is not None:
            self.expect("->", "'->'")
        result = self.type()
        self.expect(r"\)", "')'")
        return FunctionType(parameter, result)

    def placement(self) -> Placement:
        return {"SERVER": SERVER, "CLIENTS": CLIENTS}[self.expect("SERVER|CLIENTS", "SERVER or CLIENTS")]

    def structure(self) -> Type:
        names, values = [], []
        while not self.match(">"):
            if values:
                self.expect(",", "',' or '>'")
            names.append(self.name())
            values.append(self.type())
        return Struct(tuple(names), tuple(values)) if any(names) else tuple(values)

    def name(self) -> str | None:
        text = self.match(r"(?:[\w.\-]+|'(?:[^'\\]|\\.)*')=")
        if text is None:
            return None
        return re.sub(r"\\(.)", r"\1", text[1:-2]) if text.startswith("'") else text[:-1]

    def array(self) -> jax.ShapeDtypeStruct | ArrayType:
        start = self.position
        name = self.expect(r"[A-Za-z_]\w*(?:<\w+>)?", "an array type, '<', '{' or '('")
        dims = self.match(r"\[(?:\d+|\?)(?:,(?:\d+|\?))*\]")
        shape = tuple(None if d == "?" else int(d) for d in dims[1:-1].split(",") if d) if dims else ()
        try:
            return array_type(shape, _dtype(name))
        except (TypeError, KeyError):
            self.position = start
            return self.fail("a known dtype")


def _dtype(name: str) -> DType:
    if name.startswith("key<"):
        return jax.eval_shape(lambda: jax.random.key(0, impl=_KEY_IMPLEMENTATIONS[name[4:-1]])).dtype
    dtype = jnp.dtype(name)
    if dtype.name != name or not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        raise TypeError(name)
    return dtype


_KEY_IMPLEMENTATIONS = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}


# --- from values to types -----------------------------------------------------------------------


def member_type(value: PyTree) -> PyTree:
    """Reads the member type off dtypes, arrays, notation, or a pytree of these.

    Raises:
      TypeError: If something in it has no array type, or is itself placed.
    """
    return jax.tree.map(_leaf_type, value, is_leaf=lambda x: isinstance(x, _Notation))


def _leaf_type(leaf: PyTree) -> Type:
    if isinstance(leaf, (jax.ShapeDtypeStruct, ArrayType)):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if isinstance(leaf, str):
        leaf = parse_type(leaf)
        return leaf if not isinstance(leaf, _Notation) else _leaf_type(leaf)
    if isinstance(leaf, _Notation):
        raise TypeError(f"a member must be unplaced; got {leaf}. Place the structure as a whole.")
    try:
        if isinstance(leaf, (type, np.dtype)) or (not hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            return jax.eval_shape(lambda: jnp.zeros((), leaf))
        array = jax.eval_shape(lambda x: x, leaf)
        return jax.ShapeDtypeStruct(array.shape, array.dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"members are arrays, numbers and pytrees of these; got {leaf!r}. Keep other objects out of placed values."
        ) from error


def member_accepts(declared: PyTree, other: PyTree) -> bool:
    """Tells whether members of a type may stand where one is declared; ``?`` accepts any size."""
    pattern = re.escape(notation(declared)).replace(r"\?", r"(\d+|\?)")
    return re.fullmatch(pattern, notation(other)) is not None


def element_type(sequence: Sequence) -> PyTree:
    """Returns the type of one element of a sequence: no leading axis, batches gathered."""
    own, pools, join = per_client(member_type(sequence.elements))
    row = without_leading_axis(own)
    return jax.eval_shape(lambda *args: gathered(join(*args)), row, pools) if jax.tree.leaves(pools) else row


def without_leading_axis(tree: PyTree) -> PyTree:
    """Returns the types of one row of every leaf."""
    return jax.tree.map(_row_type, tree)


def _row_type(leaf: Type) -> Type:
    return array_type(leaf.shape[1:], leaf.dtype)


def sequence_type(element: PyTree) -> Sequence:
    """Returns the type of a sequence of such elements."""
    elements = jax.tree.map(lambda leaf: array_type((_CAPACITY, *leaf.shape), leaf.dtype), element)
    return Sequence(elements, jax.ShapeDtypeStruct((), jnp.int32))


def type_of(value: PyTree) -> FederatedType:
    """Infers where a value is and what it is: `Clients` are at CLIENTS, all else at SERVER.

    >>> print(type_of(Clients.of(np.zeros((7, 2), np.float32))), type_of({"a": 1}))
    {float32[2]}@CLIENTS <a=int32>@SERVER
    """
    if isinstance(value, FederatedType):
        return value
    if not isinstance(value, Clients):
        return FederatedType(value, SERVER)
    return FederatedType(map_own(_row_type, member_type(value.value)), CLIENTS)
