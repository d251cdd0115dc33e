"""Measures how the memory of streamed aggregation grows with the cohort, for every aggregator that the laws hold.

The last line it prints is one JSON object. Every aggregator gets a process of its own, which aggregates a small cohort
and then a large one; the clients' values are made chunk by chunk, so that nothing but the aggregation can grow.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.measuring import (
    client_mesh,
    environment,
    finish,
    flag_parser,
    peak_memory,
    run_apart,
    start_alone,
    table,
)
from fedjx.core.execution.computation import federated_computation
from fedjx.core.language.values import Clients
from tests.aggregation.case import law_cases

MEMBER = {"kernel": (245, 200), "bias": (1000,)}
VALUE_BYTES = 4 * 50_000


@dataclasses.dataclass(frozen=True, eq=False)
class MadeClients:
    """A cohort of clients whose values and weights are made when they are asked for."""

    ids: np.ndarray
    lanes: int = 1

    @property
    def sizes(self) -> np.ndarray:
        """How much work each client is, ``[C]``: as much as any other."""
        return np.ones(len(self.ids), np.int64)

    def members(self, ids: np.ndarray, mask: np.ndarray, share: Any = None) -> Clients:
        """Draws the values of a chunk."""
        del share
        random = np.random.default_rng(int(ids[0]))
        value = {k: random.standard_normal((len(ids), *shape), np.float32) for k, shape in MEMBER.items()}
        weight = np.ones(len(ids), np.float32)
        return Clients({"value": value, "weight": weight}, mask, np.where(mask, ids, -1).astype(np.int32))


def one(flags: argparse.Namespace, mesh: Mesh) -> dict[str, Any]:
    """Aggregates cohorts of growing size, and reads the peak of memory after each."""
    aggregator = law_cases()[flags.aggregator].aggregator

    @federated_computation
    def next(key: Any, state: Any, clients: Any) -> Any:
        return aggregator.next(key, state, clients.value, clients.weight)

    state = aggregator.init({k: jnp.zeros(shape) for k, shape in MEMBER.items()})
    step, peaks = next.streamed(mesh=mesh), []
    for number in flags.cohorts:
        jax.block_until_ready(step(jax.random.key(flags.seed), state, MadeClients(np.arange(number))))
        peaks.append(peak_memory(mesh)["peak_host_bytes"])
    growth = (peaks[-1] - peaks[0]) / (flags.cohorts[-1] - flags.cohorts[0]) / VALUE_BYTES
    return {"peak_host_bytes": peaks, "growth_in_values": growth}


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    parser.add_argument("--cohorts", type=int, nargs=2, default=[64, 1024], help="sizes of a small and a large cohort")
    parser.add_argument(
        "--aggregators", nargs="+", help="which to measure; if not given, all that take values of any size"
    )
    parser.add_argument("--aggregator", help=argparse.SUPPRESS)  # of the processes that this one starts
    return parser.parse_args(args)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Measures every aggregator in a process of its own, and reports."""
    if flags.aggregator:
        return finish(one(flags, client_mesh(flags.devices)), None)
    passed = ["--cohorts", *flags.cohorts, "--seed", flags.seed, "--devices", flags.devices or 1]
    rows = []
    for name in flags.aggregators or [name for name, case in law_cases().items() if case.max_elements is None]:
        measured = run_apart("aggregation_memory", "--aggregator", name, *passed, platform="cpu")
        rows.append({"aggregator": name, "materialises": law_cases()[name].materialises, **measured})
        print(*_row(rows[-1]), file=sys.stderr, flush=True)
    small, large = flags.cohorts
    header = ["aggregator", "materialises", f"MiB, {small} clients", f"MiB, {large:,}", "values kept per client"]
    print(table(header, [_row(row) for row in rows]) + "\n")
    result = {"benchmark": "aggregation_memory", "cohorts": flags.cohorts, "value_bytes": VALUE_BYTES}
    return finish({**result, "aggregators": rows, **environment(client_mesh(1))}, flags.output)


def _row(row: dict[str, Any]) -> list[Any]:
    mebibytes = [round(peak / 2**20) for peak in row["peak_host_bytes"]]
    return [row["aggregator"], "yes" if row["materialises"] else "no", *mebibytes, round(row["growth_in_values"], 2)]


if __name__ == "__main__":
    parsed = parse_flags()
    start_alone(parsed.devices)
    main(parsed)
