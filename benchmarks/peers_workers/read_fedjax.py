"""FedJAX: its SQLite container through its own reader."""

from __future__ import annotations

import importlib.metadata
import sys

import fedjax  # pyright: ignore[reportMissingImports]
from names import client_name
from reading import joined, serve_reader


def main() -> None:
    def open_file():
        data = fedjax.SQLiteFederatedData.new(f"{sys.argv[1]}/fedjax.sqlite")
        return lambda ids: joined(
            dataset.all_examples() for _, dataset in data.get_clients(client_name(k).encode() for k in ids)
        )

    serve_reader(f"fedjax {importlib.metadata.version('fedjax')}", open_file)


if __name__ == "__main__":
    main()
