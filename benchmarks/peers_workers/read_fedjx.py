"""fedjx: chunks of a streamed cohort, with their plans."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

from reading import Columns, serve_reader

from fedjx.data import Cohort, Store

CLIENTS_AT_ONCE = 128


def main() -> None:
    folder, name = sys.argv[1:]

    def open_store():
        store = Store(Path(folder) / name)

        def read(ids: list[int]) -> Iterator[Columns]:
            for chunk in Cohort(store, ids, batch_size=20, lanes=CLIENTS_AT_ONCE, placement="streamed"):
                batches = chunk.value.elements
                yield {**batches.pool, "index": batches.index}

        return read

    serve_reader(f"fedjx {importlib.metadata.version('fedjx')}", open_store)


if __name__ == "__main__":
    main()
