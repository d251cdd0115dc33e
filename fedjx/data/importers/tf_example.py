"""Reads serialised `tf.train.Example` into columns, without TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from fedjx.core.language.types import ArrayType
from fedjx.data.importers.features import Features, check_names, located, stacked


def example_reader(features: Features | None = None) -> Callable[[Sequence[bytes]], dict[str, np.ndarray]]:
    """Returns a function that reads serialised examples into columns.

    Args:
      features: The type of one example, by name of the feature; others are left out. On the wire there are only
        int64, float32 and bytes, each in a flat list; what they stand for is for you to say: integers become a
        narrower dtype if they are in its range, bytes are of dtype object, and lists whose length differs from
        example to example are asked for with the shape ``(None,)`` and become an object array of arrays.
        By default all features are read as the very first example has them, a list of one value as a scalar, and
        all examples need to be like it.

    Returns:
      From serialised `tf.train.Example` to columns by name, ``[n, ...]`` each. It raises ValueError if an example is
      not well-formed, lacks a feature, or has one of another kind or size, saying which example.

    >>> read = example_reader({"y": ArrayType((), np.uint8)})
    >>> read([bytes.fromhex("0a0c0a0a0a017912051a030a0107")] * 2)
    {'y': array([7, 7], dtype=uint8)}
    """
    inferred: dict[str, ArrayType] = {}

    def read(serialised: Sequence[bytes]) -> dict[str, np.ndarray]:
        examples = []
        for k, example in enumerate(serialised):
            with located(f"example {k}"):
                if not isinstance(example, bytes):
                    raise ValueError(f"a serialised example is bytes; got {type(example).__name__}. Mend the file.")
                examples.append(parse_example(example, features))
                if features is None:
                    inferred.update(inferred or _inferred(examples[-1]))
                    _check_same(examples[-1], inferred)
                elif len(examples[-1]) < len(features):
                    check_names(parse_example(example, None), features)
        targets = inferred if features is None else features
        return {name: stacked(name, [example[name] for example in examples], targets[name]) for name in targets}

    return read


def parse_example(serialised: bytes, names: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Returns the values of an example's features by name: int64, float32, object for bytes, or bool for no list.

    Args:
      serialised: A `tf.train.Example`.
      names: The features to return; by default all.

    Raises:
      ValueError: If the example is not well-formed.

    >>> parse_example(bytes.fromhex("0a0c0a0a0a017912051a030a0107"))
    {'y': array([7])}
    """
    entries = _message("Example", serialised).features.feature.items()
    return {name: _values(feature) for name, feature in entries if names is None or name in names}


def parse_sequence(serialised: bytes, name: str) -> list[np.ndarray] | None:
    """Returns the values of each step of a feature list of a `tf.train.SequenceExample`, or None without such a list.

    Raises:
      ValueError: If it is not well-formed.
    """
    lists = _message("Sequence", serialised).lists.list
    return [_values(feature) for feature in lists[name].feature] if name in lists else None


def _values(feature: Any) -> np.ndarray:
    """Returns the values that a protobuf Feature lists."""
    kind = feature.WhichOneof("kind")
    if kind == "integers":
        return np.array(feature.integers.value, np.int64)
    if kind == "floats":
        return np.array(feature.floats.value, np.float32)
    if kind is None:
        return np.empty(0, bool)
    column = np.empty(len(feature.bytes.value), object)
    column[:] = feature.bytes.value
    return column


def _message(name: str, serialised: bytes) -> Any:
    try:
        return _message_class(name).FromString(serialised)
    except DecodeError:
        raise ValueError(
            "a serialised example needs to be well-formed; got one that protobuf cannot read. Fetch the file again, it "
            "is corrupt or another format."
        ) from None


# Messages and their fields in the order of their numbers; * marks one that is repeated, {} a map from text.
_MESSAGES = {
    "Bytes": ["value bytes*"],
    "Floats": ["value float*"],
    "Integers": ["value int64*"],
    "Feature": ["bytes Bytes", "floats Floats", "integers Integers"],
    "Features": ["feature {Feature}"],
    "Example": ["features Features"],
    "List": ["feature Feature*"],
    "Lists": ["list {List}"],
    "Sequence": ["context Features", "lists Lists"],
}


@functools.cache
def _message_class(name: str) -> Any:
    """Describes the messages at run time, in a pool of their own, where they cannot clash with TensorFlow's."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="fedjx", syntax="proto3")
    for message, fields in _MESSAGES.items():
        _describe(file.message_type.add(name=message), fields)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"fedjx.{name}"))


def _describe(message: descriptor_pb2.DescriptorProto, fields: Sequence[str]) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    scalars = {name: kinds.Type.Value(f"TYPE_{name.upper()}") for name in ("bytes", "float", "int64", "string")}
    if message.name == "Feature":
        message.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(map(str.split, fields), 1):
        if kind.startswith("{"):
            entry = message.nested_type.add(name=f"{name.title()}Entry", options={"map_entry": True})
            _describe(entry, ["key string", f"value {kind[1:-1]}"])
            kind = f"{message.name}.{entry.name}*"
        field = message.field.add(name=name, number=number, type=scalars.get(kind.rstrip("*"), kinds.TYPE_MESSAGE))
        field.label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
        if field.type == kinds.TYPE_MESSAGE:
            field.type_name = f".fedjx.{kind.rstrip('*')}"
        if message.name == "Feature":
            field.oneof_index = 0


def _inferred(example: dict[str, np.ndarray]) -> dict[str, ArrayType]:
    """Returns the type of an example as it is on the wire."""
    for name, values in example.items():
        if values.dtype == bool:
            raise ValueError(f"features without values have no type; got {name!r}. Ask for features with their types.")
    return {
        name: ArrayType(() if len(values) == 1 else values.shape, values.dtype)
        for name, values in sorted(example.items())
    }


def _check_same(example: dict[str, np.ndarray], inferred: dict[str, ArrayType]) -> None:
    if example.keys() != inferred.keys():
        raise ValueError(
            f"all examples need the same features; got {sorted(example)}, and {sorted(inferred)} in the first. "
            "Ask for those that all have."
        )
