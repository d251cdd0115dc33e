"""The command ``python -m fedjx.data``: looks at stores and checks them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence

import numpy as np

from fedjx.data.store import Store

_MAX_SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 1 where a store is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m fedjx.data", description="Looks at stores of client data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, text in ((inspect, "show what is in a store"), (verify, "compare all files with their checksums")):
        command = commands.add_parser(run.__name__, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("path", metavar="PATH", help="the directory of the store")
        command.set_defaults(run=run)
    options = parser.parse_args(arguments)
    try:
        print(options.run(options.path))
    except (OSError, ValueError) as error:
        print(f"{options.path}: {error}", file=sys.stderr)
        return 1
    return 0


def inspect(path: str) -> str:
    """Returns tables of what is in a store."""
    store = Store(path)
    low, middle, high = np.quantile(store.sizes, [0, 0.5, 1])
    summary = [
        ("clients", f"{store.num_clients:,}, with ids of type {store.manifest['client_ids']}"),
        ("examples", f"{store.num_examples:,}; a client has {low:,.0f} to {high:,.0f}, the median {middle:,.0f}"),
        ("size", f"{_size(store.num_bytes)} in {len(store.manifest['shards']):,} shards"),
        ("provenance", json.dumps(store.manifest["provenance"])),
        ("fingerprint", store.fingerprint),
    ]
    features = [("feature", "dtype", "shape", "size")]
    for name, feature in store.schema.items():
        size = store.num_examples * feature.dtype.itemsize * int(np.prod(feature.shape))
        features.append((name, feature.dtype.name, str(list(feature.shape)), _size(size)))
    metadata = [
        ("metadata", "clients by value"),
        *((name, _counts(store, name)) for name in store.manifest["metadata"]),
    ]
    tables = [summary, features] + ([metadata] if len(metadata) > 1 else [])
    return "\n\n".join(map(_table, tables))


def verify(path: str) -> str:
    """Reads all of a store, and returns that it is as it was written."""
    start = time.monotonic()
    store = Store(path)
    store.verify()
    files = store.manifest["files"]
    num_bytes = sum(file["bytes"] for file in files.values())
    return f"{path}: {len(files)} files, {_size(num_bytes)}, as written ({time.monotonic() - start:.1f} s)"


def _counts(store: Store, name: str) -> str:
    values, counts = np.unique(store.metadata(name), return_counts=True)
    common = np.argsort(-counts, kind="stable")[:_MAX_SHOWN]
    shown = ", ".join(f"{values[k]}: {counts[k]:,}" for k in common)
    return shown if len(values) <= _MAX_SHOWN else f"{shown}, and {len(values) - _MAX_SHOWN:,} more"


def _size(num_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
