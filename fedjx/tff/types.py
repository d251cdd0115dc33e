"""Type constructors of TensorFlow Federated: a type is its notation, so they return text, which is taken for one."""

from __future__ import annotations

from collections.abc import Iterable

from fedjx.core.language import types
from fedjx.core.language.names import DType, Type


class TensorType(str):
    """The type of an array, ``dtype[shape]``.

    >>> print(TensorType(np.int32), TensorType(np.int32, [10]), TensorType(np.int32, [10]).shape)
    int32 int32[10] (10,)
    """

    def __new__(cls, dtype: DType, shape: Iterable[int | None] = ()) -> TensorType:
        """Writes the type of an array; None is a dimension that is not known."""
        return super().__new__(cls, types.notation(types.ArrayType(tuple(shape), dtype)))

    @property
    def dtype(self) -> DType:
        """Returns what its elements are."""
        return types.member_type(self).dtype

    @property
    def shape(self) -> types.Shape:
        """Returns its dimensions."""
        return types.member_type(self).shape


class SequenceType(str):
    """The type ``T*`` of a client's data set.

    >>> SequenceType(np.int32), SequenceType(StructType([("X", np.float32), ("Y", np.float32)]))
    ('int32*', '<X=float32,Y=float32>*')
    """

    def __new__(cls, element: Type) -> SequenceType:
        """Writes the type of a sequence of such elements."""
        return super().__new__(cls, f"{_notation(element)}*")


class StructType(str):
    """The type ``<n_1=T_1,...,n_k=T_k>`` of a structure, of which elements may have names.

    >>> StructType([np.int32, ("rate", np.float32)])
    '<int32,rate=float32>'
    """

    def __new__(cls, elements: Iterable[Type | tuple[str, Type]]) -> StructType:
        """Writes the type of a structure of types, or of pairs of a name and a type."""
        pairs = [element if isinstance(element, tuple) else (None, element) for element in elements]
        names, values = zip(*pairs, strict=True) if pairs else ((), ())
        return super().__new__(cls, types.notation(types.Struct(names, tuple(map(types.member_type, values)))))


def FunctionType(parameter: Type, result: Type) -> types.FunctionType:
    """Returns the type ``(T -> U)`` of a function, or ``( -> U)`` of one without a parameter, which is None.

    >>> print(FunctionType(SequenceType(np.int32), np.int32), FunctionType(None, np.int32))
    (int32* -> int32) ( -> int32)
    """
    given = [None if type_ is None else types.parse_type(_notation(type_)) for type_ in (parameter, result)]
    return types.FunctionType(*given)


def _notation(type_: Type) -> str:
    placed = isinstance(type_, types.FederatedType | types.FunctionType)
    return str(type_) if placed else types.notation(types.member_type(type_))
