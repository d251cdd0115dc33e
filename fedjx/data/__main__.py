"""The command ``python -m fedjx.data``: makes stores, looks at them and checks them."""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np

from fedjx.data import importers, partitions, published
from fedjx.data.arguments import add_arguments, called, first_line
from fedjx.data.describe import describe
from fedjx.data.federated_data import checked_examples
from fedjx.data.importers.idx import images_beside_labels
from fedjx.data.plots import plot_description
from fedjx.data.source import Client, Source, write_store
from fedjx.data.store import Store
from fedjx.data.tables import bytes_text, counts_text, table
from fedjx.data.tallies import most_frequent

IMPORTERS = (
    importers.arrow_ipc,
    importers.dataset_grouper,
    importers.emnist_writers,
    importers.fedjax_sqlite,
    importers.leaf,
    importers.parquet,
    importers.pfl_hdf5,
    importers.tff_hdf5,
    importers.tff_sqlite,
    importers.tfrecord_clients,
    importers.webdataset,
)
PARTITIONS = (
    partitions.continuous_partition,
    partitions.dirichlet_partition,
    partitions.dirichlet_by_client_partition,
    partitions.iid_partition,
    partitions.natural_partition,
    partitions.natural_grouped_partition,
    partitions.pachinko_partition,
    partitions.pathological_partition,
    partitions.shards_partition,
    partitions.size_partition,
    partitions.sort_partition,
)
# Parameters of partitions that are columns of the examples.
_COLUMNS = ("coarse", "fine", "keys", "labels", "values")
_SOURCE = "a store, an .npz file of columns, an IDX file of images with their labels beside it, or EMNIST's .mat"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m fedjx.data", description="Stores of client data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_group(commands, "import", "make a store of data in another format", IMPORTERS, import_)
    for run, text in ((inspect, "show what is in a store"), (verify, "compare all files with their checksums")):
        command = commands.add_parser(run.__name__, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("path", metavar="PATH", help="the directory of the store")
        command.set_defaults(run=run)
    command = commands.add_parser(
        "describe", help="show how its clients and values are distributed", description=first_line(describe)
    )
    command.add_argument("path", metavar="PATH", help="the directory of the store")
    command.add_argument("--columns", nargs="+", metavar="FEATURE", help="features to describe; by default all")
    command.add_argument("--plot", metavar="FILE", help="a picture to write, such as store.png")
    command.set_defaults(run=describe_)
    _add_group(commands, "partition", "distribute all examples of a store over new clients", PARTITIONS, partition)
    sets = list(published.DATA_SETS.values())
    _add_group(commands, "published", "open a published data set, or make its stores of its files", sets, open_)
    twin = commands.add_parser("twin", help="make a synthetic twin", description=first_line(published.synthetic_twin))
    add_arguments(twin, published.synthetic_twin)
    twin.set_defaults(run=twin_)
    options = vars(parser.parse_args(arguments))
    run = options.pop("run")
    try:
        print(run(**options))
    except (OSError, ValueError, TypeError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # What was half written is gone.
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    return 0


def import_(function: Callable[..., Source], output: str, **options: Any) -> str:
    """Writes what an importer reads into a store, and shows what is in it."""
    write_store(output, called(function, options))
    return inspect(output)


def partition(function: Callable[..., list[np.ndarray]], source: str, output: str, **options: Any) -> str:
    """Writes all examples of a store or a file into another store, of new clients, and shows it.

    The examples are held in memory.
    """
    examples, provenance = _central(source)
    named = {name: options[name] for name in _COLUMNS if name in options}
    for name, feature in named.items():
        if feature not in examples:
            raise ValueError(f"{name} need to be a feature of {source}; got {feature!r}. It has {sorted(examples)}.")
    columns = {name: examples[feature] for name, feature in named.items()}
    num_examples = len(next(iter(examples.values())))
    parts = called(function, {**options, **columns, "num_examples": num_examples})

    def clients() -> Iterator[Client]:
        for k, rows in enumerate(parts):
            yield Client(k, {name: column[rows] for name, column in examples.items()})

    said = {**options, "name": function.__name__, "of": provenance}
    write_store(output, Source(clients, len(parts), {"partition": said}))
    return inspect(output)


def open_(function: Callable[..., published.DataSet], **options: Any) -> str:
    """Opens the stores of all splits of a published data set, and shows what is in them."""
    return _shown(called(published.open, {**options, "data_set": called(function, options)}))


def twin_(**options: Any) -> str:
    """Makes the stores of all splits of a synthetic twin, and shows what is in them."""
    return _shown(called(published.synthetic_twin, options))


def _shown(splits: Mapping[str, Store]) -> str:
    return "\n\n".join(f"{split}: {store.path}\n{inspect(str(store.path))}" for split, store in splits.items())


def _add_group(commands: Any, name: str, text: str, functions: Sequence[Callable[..., Any]], run: Any) -> None:
    """Adds a command with a subcommand for each of some functions."""
    group = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    choices = group.add_subparsers(required=True, metavar="KIND")
    for function in functions:
        kind = function.__name__.removesuffix("_partition")
        command = choices.add_parser(kind, help=first_line(function), description=first_line(function))
        if run is partition:
            command.add_argument("source", metavar="SOURCE", help=_SOURCE)
            for parameter in sorted(set(signature(function).parameters) & set(_COLUMNS)):
                command.add_argument(f"--{parameter}", required=True, metavar="FEATURE", help="a feature of the source")
        if run is open_:
            add_arguments(command, published.open, leave_out=("data_set",))
        add_arguments(command, function, leave_out=(*_COLUMNS, "num_examples") if run is partition else ())
        if run is not open_:
            command.add_argument("--output", required=True, help="the directory of the new store")
        command.set_defaults(run=functools.partial(run, function))


def _central(path: str) -> tuple[Mapping[str, np.ndarray], Any]:
    """Reads all examples of a store or a file, and says where they come from."""
    if path.endswith(".npz"):
        try:
            with open(path, "rb") as file, np.load(file) as columns:
                examples = dict(columns)
            checked_examples(examples, f" of {path}")
            return examples, {"file": os.path.basename(path)}
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"an .npz file needs to be whole; got {path}, {error}. Write it again.") from error
    if os.path.isfile(path):
        return images_beside_labels(path), {"file": os.path.basename(path)}
    store = Store(path)
    return store.load().examples, store.provenance


def inspect(path: str) -> str:
    """Returns tables of what is in a store."""
    store = Store(path)
    low, middle, high = np.quantile(store.sizes, [0, 0.5, 1])
    summary = [
        ("clients", f"{store.num_clients:,}, with ids of type {store.manifest['client_ids']}"),
        ("examples", f"{store.num_examples:,}; a client has {low:,.0f} to {high:,.0f}, the median {middle:,.0f}"),
        ("size", f"{bytes_text(store.num_bytes)} in {len(store.manifest['shards']):,} shards"),
        ("provenance", json.dumps(store.manifest["provenance"])),
        ("fingerprint", store.fingerprint),
    ]
    features = [("feature", "dtype", "shape", "size")]
    for name, feature in store.schema.items():
        size = store.num_examples * feature.dtype.itemsize * int(np.prod(feature.shape))
        features.append((name, feature.dtype.name, str(list(feature.shape)), bytes_text(size)))
    metadata = [
        ("metadata", "clients by value"),
        *((name, _counts(store, name)) for name in store.manifest["metadata"]),
    ]
    tables = [summary, features] + ([metadata] if len(metadata) > 1 else [])
    return "\n\n".join(map(table, tables))


def describe_(path: str, columns: Sequence[str] | None, plot: str | None) -> str:
    """Returns tables of how the clients and the values of a store are distributed, and draws them if asked to."""
    if plot is not None:
        _check_picture(plot)
    description = describe(Store(path), features=columns)
    if plot is not None:
        plot_description(description).savefig(plot, dpi=150)
    return str(description)


def verify(path: str) -> str:
    """Reads all of a store, and returns that it is as it was written."""
    start = time.monotonic()
    store = Store(path)
    store.verify()
    files = store.manifest["files"]
    num_bytes = sum(file["bytes"] for file in files.values())
    return f"{path}: {len(files)} files, {bytes_text(num_bytes)}, as written ({time.monotonic() - start:.1f} s)"


def _check_picture(path: str) -> None:
    """Refuses a picture that could not be written, before a store is read for it."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    folder, name = os.path.split(path)
    if name.rpartition(".")[2].lower() not in kinds or not os.path.isdir(folder or "."):
        raise ValueError(
            f"a picture needs a file name of type {', '.join(kinds)}, in a folder that is there; got {path}."
        )


def _counts(store: Store, name: str) -> str:
    values, counts = np.unique(store.metadata(name), return_counts=True)
    return counts_text(most_frequent(dict(zip(values, counts, strict=True))))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Cleans up, as for Ctrl-C.
    sys.exit(main())
