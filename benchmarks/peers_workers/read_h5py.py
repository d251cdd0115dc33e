"""TFF's HDF5 container, a group for each client, through h5py."""

from __future__ import annotations

import sys
from typing import Any

import h5py
from names import client_name
from reading import joined, serve_reader


def main() -> None:
    def open_file():
        clients: Any = h5py.File(f"{sys.argv[1]}/tff.h5", "r")["examples"]
        return lambda ids: joined({name: x[:] for name, x in clients[client_name(k)].items()} for k in ids)

    serve_reader(f"h5py {h5py.__version__}", open_file)


if __name__ == "__main__":
    main()
