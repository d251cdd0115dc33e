"""Compares rounds of federated averaging with the fastest that the machine's matrix products would allow.

The last line it prints is one JSON object. Products and rounds are timed in turns in one process, so that other
load falls on both. The ceiling counts the matrix products of training and nothing else: no other operation, no
memory traffic, no padding; a fraction of it is what all of these leave.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import round_time
from benchmarks.flops import Product, total_flops, training_products
from benchmarks.measuring import (
    check_alone,
    client_mesh,
    environment,
    finish,
    flag_parser,
    peak_memory,
    run_apart,
    start,
    table,
)
from benchmarks.workloads import WORKLOADS, Workload
from fedjx.core.execution.hosts import agreed

SPLIT = PartitionSpec("clients")
# What is too small to matter for a step is not timed: this share of its operations.
SMALL = 0.01

# --- the machine --------------------------------------------------------------------------------


def product_rate(mesh: Mesh, rows: int, inner: int, columns: int, *, seconds: float) -> float:
    """Times a float32 matrix product on every device at once; returns the operations per second of all together."""

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.dot(left[0], right[0])[None]

    both = jax.jit(jax.shard_map(product, mesh=mesh, in_specs=SPLIT, out_specs=SPLIT, check_vma=False))
    left, right = on_every_device(mesh, (rows, inner)), on_every_device(mesh, (inner, columns))
    return 2 * rows * inner * columns * mesh.size / least_seconds(lambda: both(left, right), seconds)


def bandwidth(mesh: Mesh, size: int, *, seconds: float) -> float:
    """Times adding 1 in place to `size` bytes on every device; returns the bytes per second that all read and write."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0, out_shardings=NamedSharding(mesh, SPLIT))
    held = [on_every_device(mesh, (size // 4,))]

    def step() -> jax.Array:
        held[0] = add(held[0])
        return held[0]

    return 2 * size * mesh.size / least_seconds(step, seconds)


def on_every_device(mesh: Mesh, shape: tuple[int, ...]) -> jax.Array:
    """Puts ones of a shape on each device."""
    return jnp.ones((mesh.size, *shape), jnp.float32, device=NamedSharding(mesh, SPLIT))


def least_seconds(call: Callable[[], jax.Array], seconds: float) -> float:
    """Calls for some time and returns the least time of a call, taken over several where one is short."""

    def timed(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times - 1):
            call()
        jax.block_until_ready(call())
        return (time.perf_counter() - started) / times

    timed(1)  # compiles
    least = agreed(timed(1))  # processes that share the devices call equally often
    deadline = time.perf_counter() + seconds
    while agreed(deadline - time.perf_counter()) > 0:
        least = min(least, agreed(timed(max(1, int(0.1 * seconds / least)))))
    return least


# --- the workload -------------------------------------------------------------------------------


def workload_products(workload: Workload) -> tuple[Counter[Product], int]:
    """Counts the products of one training step, and the operations per example, which a step has in proportion."""
    examples = workload.examples(np.random.default_rng(0), workload.batch_size)
    counts = training_products(workload.model, examples, workload.batch_size)
    return counts, total_flops(counts) // workload.batch_size


def shape_rates(mesh: Mesh, counts: Counter[Product], *, seconds: float) -> list[dict[str, Any]]:
    """Times a product of every shape that matters to a step, the largest share of its operations first."""
    total, found = total_flops(counts), []
    for product, number in sorted(counts.items(), key=lambda item: -item[0].flops * item[1]):
        share = product.flops * number / total
        if share >= SMALL:
            shape = product[:3]
            rate = product_rate(mesh, *shape, seconds=seconds)
            found.append({"shape": shape, "number": number, "share": share, "flops_per_second": rate})
    return found


def rate_of_shapes(shapes: list[dict[str, Any]]) -> float:
    """Returns the operations per second of a step that runs products of these shapes and nothing else."""
    share = sum(shape["share"] for shape in shapes)
    return share / sum(shape["share"] / shape["flops_per_second"] for shape in shapes)


# --- command line -------------------------------------------------------------------------------


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--workload", choices=[*WORKLOADS, "all"], default="emnist_cnn", help="what to train; all, one by one")
    flag("--clients", type=int, help="clients in a round; the workload's own number if not given")
    flag("--rounds", type=int, default=10, help="turns of a product and a round")
    flag("--warm-up", type=int, default=1, help="rounds before them")
    flag(
        "--lanes", type=round_time.lanes, default="auto", help="clients that a device trains at the same time, or auto"
    )
    flag("--sizes", type=int, nargs="+", help="sides of the square products; 256 to 2048 on a CPU, else to 16384")
    flag("--megabytes", type=int, default=256, help="of memory for the bandwidth, on each device")
    flag("--seconds", type=float, default=0.5, help="for each product")
    return parser.parse_args(args)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Measures the machine, then machine and rounds in turns, and reports."""
    if flags.workload == "all":
        return main_all(flags)
    workload, mesh = WORKLOADS[flags.workload](), client_mesh(flags.devices)
    counts, flops = workload_products(workload)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    sides = flags.sizes or ([256, 512, 1024, 2048] if on_cpu else [1024, 2048, 4096, 8192, 16384])
    squares = [
        {"shape": (n, n, n), "flops_per_second": product_rate(mesh, n, n, n, seconds=flags.seconds)} for n in sides
    ]
    shapes = shape_rates(mesh, counts, seconds=flags.seconds)
    memory = bandwidth(mesh, flags.megabytes * 2**20, seconds=flags.seconds)
    fastest = max(squares + shapes, key=lambda measured: measured["flops_per_second"])
    peaks, done = in_turns(flags, workload, mesh, fastest["shape"])
    peak = max([fastest["flops_per_second"], *peaks])
    rates = [r.num_examples / r.seconds for r in done[flags.warm_up :]]
    result = {
        "benchmark": "limit",
        "workload": workload.name,
        "clients": done[0].num_clients,
        "lanes": done[-1].lanes,
        "flops_per_example": flops,
        "peak_flops_per_second": peak,
        "bytes_per_second": memory,
        "ceiling_examples_per_second": peak / flops,
        "shapes_ceiling_examples_per_second": rate_of_shapes(shapes) / flops,
        "best_examples_per_second": max(rates),
        "examples_per_second": float(np.median(rates)),
        "fraction_of_bests": max(rates) * flops / peak,
        "fraction_of_medians": float(np.median(rates) / np.median(peaks)) * flops,
        "fraction_of_shapes": max(rates) * flops / rate_of_shapes(shapes),
        "rounds": round_time.report(done[: flags.warm_up], done[flags.warm_up :]),
        "peaks_in_turns": peaks,
        "squares": squares,
        "shapes": shapes,
    }
    result |= {**peak_memory(mesh), **environment(mesh)}
    print(show(result))
    return finish(result, flags.output)


def main_all(flags: argparse.Namespace) -> dict[str, Any]:
    """Measures every workload, each in a process of its own so that its memory is its own."""
    check_alone()
    passed = ["--sizes", *flags.sizes] if flags.sizes else []
    for name in ("clients", "devices", "rounds", "warm_up", "lanes", "seed", "megabytes", "seconds"):
        value = getattr(flags, name)
        passed += [] if value is None else [f"--{name.replace('_', '-')}", value]
    results = [run_apart("limit", "--workload", name, *passed) for name in WORKLOADS]
    print(show_all(results) + "\n")
    return finish(
        {"benchmark": "limit", "workload": "all", "workloads": results, **environment(client_mesh(flags.devices))},
        flags.output,
    )


def in_turns(
    flags: argparse.Namespace, workload: Workload, mesh: Mesh, shape: tuple[int, int, int]
) -> tuple[list[float], list[round_time.Round]]:
    """Times the fastest product and a round, again and again, after the first rounds."""
    size = flags.clients or workload.cohort_size
    stream = round_time.rounds(workload, mesh=mesh, cohort_size=size, lanes=flags.lanes, seed=flags.seed)
    done = [next(stream) for _ in range(flags.warm_up)]
    peaks = []
    for _ in range(flags.rounds):
        peaks.append(product_rate(mesh, *shape, seconds=flags.seconds))
        done.append(next(stream))
    return peaks, done


def show_all(results: list[dict[str, Any]]) -> str:
    """Formats the results of several workloads as one table."""
    columns = {
        "peak_flops_per_second": ("peak GFLOP/s", 1e9),
        "flops_per_example": ("MFLOP/example", 1e6),
        "ceiling_examples_per_second": ("ceiling", 1),
        "examples_per_second": ("examples/s", 1),
        "best_examples_per_second": ("best", 1),
        "fraction_of_bests": ("of the peak", 1),
        "fraction_of_medians": ("medians", 1),
        "fraction_of_shapes": ("of its shapes", 1),
    }
    rows = [
        [
            r["workload"],
            r["lanes"],
            *(r[name] / unit for name, (_, unit) in columns.items()),
            r["rounds"]["first_round_seconds"],
        ]
        for r in results
    ]
    return table(["workload", "lanes", *(title for title, _ in columns.values()), "first round s"], rows)


def show(result: dict[str, Any]) -> str:
    """Formats a result as tables."""
    shapes = [
        (" x ".join(map(str, s["shape"])), s.get("number"), s.get("share"), s["flops_per_second"] / 1e9)
        for s in result["squares"] + result["shapes"]
    ]
    rows = [
        ("operations per example (MFLOP)", result["flops_per_example"] / 1e6),
        ("products, best (GFLOP/s)", result["peak_flops_per_second"] / 1e9),
        ("memory, read and written (GB/s)", result["bytes_per_second"] / 1e9),
        ("ceiling (examples/s)", result["ceiling_examples_per_second"]),
        ("ceiling with its own shapes (examples/s)", result["shapes_ceiling_examples_per_second"]),
        ("a round, best (examples/s)", result["best_examples_per_second"]),
        ("a round, median (examples/s)", result["examples_per_second"]),
        ("fraction, best of best", result["fraction_of_bests"]),
        ("fraction, median of median", result["fraction_of_medians"]),
        ("fraction of its own shapes, best", result["fraction_of_shapes"]),
    ]
    products = table(["matrix product", "in a step", "share", "GFLOP/s"], shapes)
    return f"{products}\n\n{table([result['workload'], ''], rows)}\n"


if __name__ == "__main__":
    parsed = parse_flags()
    start(parsed.devices)
    main(parsed)
