"""Ten clients, in memory and in stores, for the tests of stores."""

from pathlib import Path

import numpy as np

from fedjx.data import FederatedData, Store, StoreWriter


def client(k, n):
    """Examples that are all different from one another and from zero."""
    first = 10_000 * k + 1
    x = np.arange(first, first + 6 * n, dtype=np.int32).reshape(n, 2, 3)
    return {"x": x.astype(np.float32), "y": np.arange(n, dtype=np.int16) + k, "flag": np.arange(n) % 2 == k % 2}


SIZES = [3, 1, 7, 2, 2, 9, 4, 1, 1, 5]
CLIENTS = [client(k, n) for k, n in enumerate(SIZES)]
MEMORY = FederatedData.from_clients(CLIENTS)
SPLITS = ["train"] * 5 + ["test"] * 2 + ["train"] * 3


def written(path, clients=CLIENTS, *, ids=None, shard_bytes=1 << 29, **metadata):
    ids = ids or [f"client {k}" for k in range(len(clients))]
    with StoreWriter(path, shard_bytes=shard_bytes, provenance={"made": "here"}) as writer:
        for k, examples in enumerate(clients):
            writer.add(ids[k], examples, **{name: values[k] for name, values in metadata.items()})
    return Store(path)


def assert_equal(columns, expected):
    assert columns.keys() == expected.keys()
    for name, column in expected.items():
        assert columns[name].dtype == column.dtype
        np.testing.assert_array_equal(columns[name], column)


ROOT = Path(__file__).resolve().parents[2]
