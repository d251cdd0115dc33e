"""Reads serialised `tf.train.Example` into columns, without TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

from fedjx.core.language.types import ArrayType
from fedjx.data.importers import wire
from fedjx.data.importers.features import Features, check_names, located, stacked

Parse = Callable[[bytes, Container[str] | None], dict[str, np.ndarray]]


def example_reader(
    features: Features | None = None, *, parse: Parse | None = None
) -> Callable[[Sequence[bytes]], dict[str, np.ndarray]]:
    """Returns a function that reads serialised examples into columns.

    Args:
      features: The type of one example, by name of the feature; others are left out. On the wire there are only
        int64, float32 and bytes, each in a flat list; what they stand for is for you to say: integers become a
        narrower dtype if they are in its range, bytes are of dtype object, and lists whose length differs from
        example to example are asked for with the shape ``(None,)`` and become an object array of arrays.
        By default all features are read as the very first example has them, a list of one value as a scalar, and
        all examples need to be like it.
      parse: From a serialised example, and the names of the features to return or None for all, to the values by
        name, flat. By default protobuf where it imports, which is faster, and otherwise
        `fedjx.data.importers.wire.parse_example`.

    Returns:
      From serialised `tf.train.Example` to columns by name, ``[n, ...]`` each. It raises ValueError if an example is
      not well-formed, lacks a feature, or has one of another kind or size, saying which example.

    >>> read = example_reader({"y": ArrayType((), np.uint8)})
    >>> read([bytes.fromhex("0a0c0a0a0a017912051a030a0107")] * 2)
    {'y': array([7, 7], dtype=uint8)}
    """
    parse = parse or default_parse()
    inferred: dict[str, ArrayType] = {}

    def read(serialised: Sequence[bytes]) -> dict[str, np.ndarray]:
        examples = []
        for k, example in enumerate(serialised):
            with located(f"example {k}"):
                if not isinstance(example, bytes):
                    raise ValueError(f"a serialised example is bytes; got {type(example).__name__}. Mend the file.")
                examples.append(parse(example, features))
                if features is None:
                    inferred.update(inferred or _inferred(examples[-1]))
                    _check_same(examples[-1], inferred)
                elif len(examples[-1]) < len(features):
                    check_names(parse(example, None), features)
        targets = inferred if features is None else features
        return {name: stacked(name, [example[name] for example in examples], targets[name]) for name in targets}

    return read


@functools.cache
def default_parse() -> Parse:
    """Returns a parser of examples: protobuf's where it imports, otherwise ours."""
    try:
        return _protobuf_parse()
    except ImportError:
        return wire.parse_example


def _protobuf_parse() -> Parse:
    from google.protobuf.message import DecodeError

    message = _example_message()

    def parse(serialised: bytes, names: Container[str] | None = None) -> dict[str, np.ndarray]:
        try:
            entries = message.FromString(serialised).features.feature
        except DecodeError:
            wire.parse_example(serialised)  # Says where the fault is.
            raise ValueError(
                "a serialised example needs to be well-formed; got a corrupt one. Fetch it again."
            ) from None
        return {name: _values(feature) for name, feature in entries.items() if names is None or name in names}

    return parse


def _values(feature: Any) -> np.ndarray:
    """Returns the values that a protobuf Feature lists."""
    kind = feature.WhichOneof("kind")
    if kind == "int64_list":
        return np.array(feature.int64_list.value, np.int64)
    if kind == "float_list":
        return np.array(feature.float_list.value, np.float32)
    if kind is None:
        return np.empty(0, bool)
    column = np.empty(len(feature.bytes_list.value), object)
    column[:] = feature.bytes_list.value
    return column


def _example_message() -> Any:
    """Describes the message at run time, in a pool of its own, where it cannot clash with TensorFlow's."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="fedjx", syntax="proto3")
    lists = {"bytes_list": kinds.TYPE_BYTES, "float_list": kinds.TYPE_FLOAT, "int64_list": kinds.TYPE_INT64}
    feature = descriptor_pb2.DescriptorProto(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind) in enumerate(lists.items(), 1):
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)
        feature.field.add(name=name, number=number, type=kinds.TYPE_MESSAGE, type_name=f".fedjx.{name}", oneof_index=0)
    features = descriptor_pb2.DescriptorProto(name="Features")
    entry = features.nested_type.add(name="FeatureEntry", options={"map_entry": True})
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, type_name=".fedjx.Feature")
    features.field.add(
        name="feature",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=".fedjx.Features.FeatureEntry",
        label=kinds.LABEL_REPEATED,
    )
    example = descriptor_pb2.DescriptorProto(name="Example")
    example.field.add(name="features", number=1, type=kinds.TYPE_MESSAGE, type_name=".fedjx.Features")
    file.message_type.extend([feature, features, example])
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fedjx.Example"))


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
