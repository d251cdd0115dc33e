"""An independent reader and writer of `tf.train.Example`: protobuf, with the schema spelled out."""

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

_SCHEMA = {
    "name": "oracle.proto",
    "package": "oracle",
    "syntax": "proto3",
    "messageType": [
        {
            "name": "BytesList",
            "field": [{"name": "value", "number": 1, "type": "TYPE_BYTES", "label": "LABEL_REPEATED"}],
        },
        {
            "name": "FloatList",
            "field": [{"name": "value", "number": 1, "type": "TYPE_FLOAT", "label": "LABEL_REPEATED"}],
        },
        {
            "name": "Int64List",
            "field": [{"name": "value", "number": 1, "type": "TYPE_INT64", "label": "LABEL_REPEATED"}],
        },
        {
            "name": "Feature",
            "oneofDecl": [{"name": "kind"}],
            "field": [
                {"name": name, "number": number, "type": "TYPE_MESSAGE", "typeName": f".oracle.{kind}", "oneofIndex": 0}
                for number, name, kind in [
                    (1, "bytes_list", "BytesList"),
                    (2, "float_list", "FloatList"),
                    (3, "int64_list", "Int64List"),
                ]
            ],
        },
        {
            "name": "Features",
            "field": [
                {
                    "name": "feature",
                    "number": 1,
                    "type": "TYPE_MESSAGE",
                    "label": "LABEL_REPEATED",
                    "typeName": ".oracle.Features.FeatureEntry",
                }
            ],
            "nestedType": [
                {
                    "name": "FeatureEntry",
                    "options": {"mapEntry": True},
                    "field": [
                        {"name": "key", "number": 1, "type": "TYPE_STRING"},
                        {"name": "value", "number": 2, "type": "TYPE_MESSAGE", "typeName": ".oracle.Feature"},
                    ],
                }
            ],
        },
        {
            "name": "Example",
            "field": [{"name": "features", "number": 1, "type": "TYPE_MESSAGE", "typeName": ".oracle.Features"}],
        },
        {
            "name": "FeatureList",
            "field": [
                {
                    "name": "feature",
                    "number": 1,
                    "type": "TYPE_MESSAGE",
                    "label": "LABEL_REPEATED",
                    "typeName": ".oracle.Feature",
                }
            ],
        },
        {
            "name": "FeatureLists",
            "field": [
                {
                    "name": "feature_list",
                    "number": 1,
                    "type": "TYPE_MESSAGE",
                    "label": "LABEL_REPEATED",
                    "typeName": ".oracle.FeatureLists.FeatureListEntry",
                }
            ],
            "nestedType": [
                {
                    "name": "FeatureListEntry",
                    "options": {"mapEntry": True},
                    "field": [
                        {"name": "key", "number": 1, "type": "TYPE_STRING"},
                        {"name": "value", "number": 2, "type": "TYPE_MESSAGE", "typeName": ".oracle.FeatureList"},
                    ],
                }
            ],
        },
        {
            "name": "SequenceExample",
            "field": [
                {"name": "context", "number": 1, "type": "TYPE_MESSAGE", "typeName": ".oracle.Features"},
                {"name": "feature_lists", "number": 2, "type": "TYPE_MESSAGE", "typeName": ".oracle.FeatureLists"},
            ],
        },
    ],
}
_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(
    json_format.ParseDict(_SCHEMA, descriptor_pb2.FileDescriptorProto()).SerializeToString()  # pyright: ignore
)
EXAMPLE, SEQUENCE = (
    message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"oracle.{name}"))
    for name in ("Example", "SequenceExample")
)
LISTS = {"i": "int64_list", "f": "float_list", "O": "bytes_list"}


def serialised(**features):
    """Serialises one example; each feature a scalar or an array."""
    example = EXAMPLE()
    for name, value in features.items():
        value = np.asarray(value, object if isinstance(value, bytes | list) else None)
        kind = "i" if value.dtype.kind in "ub" else value.dtype.kind
        getattr(example.features.feature[name], LISTS[kind]).value.extend(value.ravel().tolist())
    return example.SerializeToString()


def parsed(data):
    """Returns the values of an example by name, as Python lists."""
    features = EXAMPLE.FromString(data).features.feature
    return {
        name: (kind := feature.WhichOneof("kind"), list(getattr(feature, kind).value) if kind else [])
        for name, feature in features.items()
    }


def sequence(examples, name="serialized_bytes"):
    """Serialises a client as dataset_grouper does."""
    message = SEQUENCE()
    message.context.feature["other"].int64_list.value.append(1)
    for example in examples:
        message.feature_lists.feature_list[name].feature.add().bytes_list.value.append(example)
    return message.SerializeToString()
