"""TFF's SQLite container, as TFF reads it, a query for each client, but parsed with protobuf alone."""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from names import client_name
from reading import Columns, joined, serve_reader


def example_class():
    """Builds the part of `tf.train.Example` that these files use."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str], repeated: bool = False):
        built = file.message_type.add(name=name)
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        for key, number, kind, type_name in fields:
            built.field.add(name=key, number=number, type=kind, label=label, type_name=type_name or None)
        return built

    message("FloatList", ("value", 1, field.TYPE_FLOAT, ""), repeated=True)
    message("Int64List", ("value", 1, field.TYPE_INT64, ""), repeated=True)
    message(
        "Feature", ("floats", 2, field.TYPE_MESSAGE, ".t.FloatList"), ("ints", 3, field.TYPE_MESSAGE, ".t.Int64List")
    )
    features = message("Features", ("feature", 1, field.TYPE_MESSAGE, ".t.Features.FeatureEntry"), repeated=True)
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL, type_name=".t.Feature")
    message("Example", ("features", 1, field.TYPE_MESSAGE, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def main() -> None:
    example: Any = example_class()
    query = "SELECT serialized_example_proto FROM examples WHERE client_id = ? AND split_name = 'train'"

    def client(connection: sqlite3.Connection, k: int) -> Columns:
        parsed = [example.FromString(row).features.feature for (row,) in connection.execute(query, (client_name(k),))]
        return {
            "pixels": np.array([x["pixels"].floats.value for x in parsed], np.float32),
            "label": np.array([x["label"].ints.value[0] for x in parsed], np.int64),
        }

    def open_file():
        connection = sqlite3.connect(f"file:{sys.argv[1]}/tff.sqlite?mode=ro", uri=True)
        return lambda ids: joined(client(connection, k) for k in ids)

    serve_reader(f"sqlite {sqlite3.sqlite_version} and protobuf", open_file)


if __name__ == "__main__":
    main()
