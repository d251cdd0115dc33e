"""Clients of whom the laws ask: many sizes, nobody among them, columns of every kind."""

from __future__ import annotations

import functools

import numpy as np

from fedjx.data import FederatedData

SIZES = (1, 4, 3, 0, 4, 1, 3, 4, 0, 1, 3, 4, 4, 1, 0, 3, 4, 3, 1, 4, 3, 4, 4, 3, 1, 3, 4)  # of two widths: few programs


@functools.cache
def people(seed: int = 0) -> FederatedData:
    """Returns clients with records of an age, a score below and above 0, a city, a time and a word."""
    random = np.random.default_rng(seed)
    return FederatedData.from_clients(
        [
            {
                "age": random.integers(0, 100, n).astype(np.int32),
                "score": random.normal(size=n).astype(np.float32),
                "city": random.integers(0, 5, n).astype(np.uint8),
                "time": (1_600_000_000 + random.integers(0, 1000, n)).astype(np.int32),
                "word": random.choice(np.frombuffer(b"aeinst", np.uint8), (n, 3)),
            }
            for n in SIZES
        ]
    )
