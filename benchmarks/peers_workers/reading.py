"""What the workers of `benchmarks.input_pipeline` share: reading a cohort to the device, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from protocol import conversation

Columns = Mapping[str, np.ndarray]


def serve_reader(version: str, open_fn: Callable[[], Callable[[list[int]], Iterable[Columns]]]) -> None:
    """Answers with the sum of a cohort's labels, once its columns are on the device.

    Args:
      version: For the table.
      open_fn: Opens the files; returns what reads the named clients into columns ``pixels`` and ``label``.
    """
    serve = conversation()
    jax.block_until_ready(jax.device_put(np.zeros(8)))  # JAX starts here, not in the first round.
    read = open_fn()

    def run_round(ids: list[int]) -> float:
        placed = [jax.device_put(dict(columns)) for columns in read(ids)]
        jax.block_until_ready(placed)
        return float(sum(int(np.asarray(columns["label"]).sum()) for columns in placed))

    serve(version=version, run_round=run_round, run_check=lambda ids: {})


def joined(clients: Iterable[Columns]) -> Iterable[Columns]:
    """Concatenates the columns of all clients."""
    clients = list(clients)
    yield {name: np.concatenate([client[name] for client in clients]) for name in ("pixels", "label")}
