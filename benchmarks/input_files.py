"""The files that `benchmarks.input_pipeline` reads: the same clients in the formats of other projects and in stores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_workers.names import client_name
from benchmarks.workloads import emnist_sizes
from fedjx.data import Client, FederatedData, Source, write_store
from fedjx.data.exporters import to_fedjax_sqlite, to_tff_sqlite


def clients_of(num_clients: int, seed: int) -> FederatedData:
    """Returns clients of EMNIST's sizes: ink on a background, as bytes ``[28, 28]``."""
    rng = np.random.default_rng(seed)
    sizes = emnist_sizes(rng, num_clients)
    total = int(sizes.sum())
    # A fifth of a digit's picture is ink; what is all background or all noise would compress better or worse.
    rows, columns = np.mgrid[:28, :28].astype(np.int16)
    pixels = rng.integers(0, 256, (total, 28, 28), np.uint8)
    for block in np.array_split(pixels, -(-total // 10_000)):
        middle = rng.integers(8, 20, (2, len(block), 1, 1), np.int16)
        block[(rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 >= 50] = 255
    labels = rng.integers(0, 62, total).astype(np.int32)
    return FederatedData({"pixels": pixels, "label": labels}, np.append(0, sizes.cumsum()))


def training(data: FederatedData) -> FederatedData:
    """Returns the clients as the EMNIST workloads train on them."""
    return FederatedData({"x": data.examples["pixels"][..., None], "y": data.examples["label"]}, data.offsets)


def write_all(folder: Path, data: FederatedData, names: set[str]) -> None:
    """Writes the clients in some of the formats, each once."""

    def source(dtype: str) -> Source:
        def clients() -> Iterator[Client]:
            for k in range(data.num_clients):
                columns = data.client(k)
                pixels = columns["pixels"]
                if dtype == "float32":  # as TFF's, FedJAX's and Hugging Face's are
                    pixels = pixels.astype(np.float32) / np.float32(255)
                yield Client(client_name(k), {"pixels": pixels, "label": columns["label"]})

        return Source(clients, data.num_clients)

    writers: dict[str, Callable[[Path], Any]] = {
        "training": lambda path: write_store(path, training(data)),
        "uint8": lambda path: write_store(path, source("uint8")),
        "float32": lambda path: write_store(path, source("float32")),
        "fedjax.sqlite": lambda path: to_fedjax_sqlite(source("float32"), path, level=1),
        "tff.sqlite": lambda path: to_tff_sqlite(source("float32"), path, split="train"),
        "tff.h5": lambda path: write_hdf5(path, source("float32")),
        "hugging_face": lambda path: write_hugging_face(path, source("float32")),
    }
    for name, write in writers.items():
        if name in names and not (folder / name).exists():
            print(f"writing {name}", flush=True)
            write(folder / name)


def write_hdf5(path: Path, source: Source) -> None:
    """Writes TFF's layout: a group for each client."""
    import h5py  # pyright: ignore[reportMissingImports]

    with h5py.File(path.with_suffix(".partial"), "w") as file:
        for client in source.clients():
            group = file.create_group(f"examples/{client.id}")
            for name, column in client.examples.items():
                group.create_dataset(name, data=column)
    path.with_suffix(".partial").rename(path)


def write_hugging_face(path: Path, source: Source) -> None:
    """Writes Arrow files as `datasets` does, with a column of the writers."""
    import datasets  # pyright: ignore[reportMissingImports]
    from datasets.arrow_writer import ArrowWriter  # pyright: ignore[reportMissingImports]

    features = datasets.Features(
        {
            "pixels": datasets.Array2D((28, 28), "float32"),
            "label": datasets.Value("int32"),
            "writer": datasets.Value("string"),
        }
    )
    partial = path.with_name("hugging_face.partial")
    with ArrowWriter(path=str(path.parent / "rows.arrow"), features=features) as writer:
        for client in source.clients():
            batch: Any = {**client.examples, "writer": [client.id] * len(client.examples["label"])}
            writer.write_batch(batch)
        writer.finalize()
    datasets.Dataset.from_file(str(path.parent / "rows.arrow")).save_to_disk(str(partial))
    (path.parent / "rows.arrow").unlink()
    partial.rename(path)


def drop_from_cache(path: Path) -> None:
    """Asks the system to forget the pages of a file, or of all files in a folder."""
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
