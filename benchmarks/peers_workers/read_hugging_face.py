"""Hugging Face datasets on disk, partitioned by writer with flwr-datasets."""

from __future__ import annotations

import importlib.metadata
import sys

from datasets import load_from_disk  # pyright: ignore[reportMissingImports]
from flwr_datasets.partitioner import NaturalIdPartitioner  # pyright: ignore[reportMissingImports]
from names import client_name
from reading import joined, serve_reader


def main() -> None:
    def open_dataset():
        partitioner = NaturalIdPartitioner(partition_by="writer")
        partitioner.dataset = load_from_disk(f"{sys.argv[1]}/hugging_face").with_format("numpy")
        partitioner.load_partition(0)  # It numbers the writers at first use.
        numbers = {name: k for k, name in partitioner.partition_id_to_natural_id.items()}
        return lambda ids: joined(partitioner.load_partition(numbers[client_name(k)])[:] for k in ids)

    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("datasets", "flwr-datasets")]
    serve_reader(", ".join(versions), open_dataset)


if __name__ == "__main__":
    main()
