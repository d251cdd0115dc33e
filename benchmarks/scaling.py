"""Measures how rounds grow with the cohort, with unequal clients and with devices, and what streaming costs.

The last line it prints is one JSON object. Cohorts and numbers of devices each get a process of their own, so that
their memory and programs are their own; devices are always simulated on the CPU, since it is the division of the work
that is looked at.
"""

from __future__ import annotations

import argparse
import functools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks import round_time
from benchmarks.measuring import (
    client_mesh,
    environment,
    finish,
    flag_parser,
    peak_memory,
    quartiles,
    run_apart,
    start_alone,
)
from benchmarks.scaling_report import draw, show
from benchmarks.workloads import (
    Workload,
    constant_sizes,
    emnist_cnn,
    emnist_dense,
    emnist_sizes,
    heavy_tailed_sizes,
)
from fedjx.algorithms import fed_avg
from fedjx.data import Cohort

PARTS = ("cohort", "devices", "spread", "recompilation", "overhead")
COLLECTIVES = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(?:-start)?\("


def equal_clients(workload: Workload, size: int) -> Workload:
    """Gives all clients of a workload the same number of examples."""
    return workload._replace(sizes=functools.partial(constant_sizes, size))


# --- larger cohorts -----------------------------------------------------------------------------


def cohorts(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Times cohorts of growing size from one population, each in a process of its own."""
    passed = ["--rounds", flags.rounds, "--lanes", flags.lanes, "--seed", flags.seed]
    passed += ["--population", max(flags.cohorts)]
    passed += ["--devices", flags.devices] if flags.devices else []
    return [run_apart("scaling", "--child", "cohort", "--clients", size, *passed) for size in flags.cohorts]


def one_cohort(flags: argparse.Namespace) -> dict[str, Any]:
    """Times rounds of one size, of small clients: 20 examples each."""
    mesh = client_mesh(flags.devices)
    summary = round_time.measure(
        equal_clients(emnist_dense(), 20),
        mesh=mesh,
        num_rounds=flags.rounds,
        cohort_size=flags.clients,
        population=flags.population,
        lanes=flags.lanes,
        seed=flags.seed,
    )
    return {"clients": flags.clients, **summary, **peak_memory(mesh)}


def memory_ratio(measured: list[dict[str, Any]]) -> float:
    """Compares the peak memory of the largest cohort with that of 100 clients, or of the smallest where none is so."""
    base = next((m for m in measured if m["clients"] == 100), measured[0])
    return max(measured, key=lambda m: m["clients"])["peak_host_bytes"] / base["peak_host_bytes"]


# --- more devices -------------------------------------------------------------------------------


def devices(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Divides the same cohort among growing numbers of simulated devices, each in a process of its own."""
    passed = ["--child", "devices", "--rounds", flags.rounds, "--seed", flags.seed]
    numbers = flags.device_numbers
    return [run_apart("scaling", *passed, "--devices", number, platform="cpu") for number in numbers]


def one_mesh(flags: argparse.Namespace) -> dict[str, Any]:
    """Times 16 equal clients in eight lanes over all devices, and reads the programs that ran."""
    mesh = client_mesh(flags.devices)
    stream = round_time.rounds(
        equal_clients(emnist_dense(), 160), mesh=mesh, cohort_size=16, lanes=8 // mesh.size, seed=flags.seed
    )
    first, *timed = [next(stream) for _ in range(1 + flags.rounds)]
    programs = jax.devices()[0].client.live_executables()
    text = "\n".join(module.to_string() for program in programs for module in program.hlo_modules())
    return {
        "devices": mesh.size,
        "seconds_per_round": quartiles(r.seconds for r in timed),
        "first_round_seconds": first.seconds,
        "lane_steps_per_device": max(timed[-1].lane_steps),
        "flops_per_device": max(program.cost_analysis().get("flops", 0.0) for program in programs),
        "collectives_per_round": len(re.findall(COLLECTIVES, text)),
    }


# --- unequal clients ----------------------------------------------------------------------------


def spread(flags: argparse.Namespace, mesh: Mesh) -> list[dict[str, Any]]:
    """Times clients of 180 examples on average whose sizes differ more and more, in turns."""
    base = emnist_dense()
    kinds = {
        "constant": equal_clients(base, 180),
        "lognormal": base._replace(sizes=emnist_sizes),
        "heavy-tailed": base._replace(sizes=functools.partial(heavy_tailed_sizes, 60, 1.5, 3600)),
    }
    options: dict[str, Any] = {"mesh": mesh, "lanes": flags.lanes, "seed": flags.seed}
    options["cohort_size"] = flags.spread_clients
    streams = {name: round_time.rounds(workload, **options) for name, workload in kinds.items()}
    turns = list(in_turns(streams, flags.rounds + 1))
    done = {name: [turn[name] for turn in turns] for name in streams}
    rows = []
    for name, measured in done.items():
        summary = round_time.report(measured[:1], measured[1:])
        seconds = quartiles(r.seconds / r.num_examples for r in measured[1:])
        rows.append({"sizes": name, "seconds_per_example": seconds, **summary})
    return rows


def in_turns(streams: dict[str, Iterator[Any]], times: int) -> Iterator[dict[str, Any]]:
    """Takes one from each stream, again and again, so that other load falls on all of them."""
    for _ in range(times):
        yield {name: next(stream) for name, stream in streams.items()}


# --- what is compiled, and what the host costs --------------------------------------------------


def recompilation(flags: argparse.Namespace, mesh: Mesh) -> dict[str, Any]:
    """Counts what XLA compiles over random cohorts of unequal clients."""
    options: dict[str, Any] = {"mesh": mesh, "cohort_size": 10, "lanes": flags.lanes, "seed": flags.seed}
    return round_time.measure(emnist_dense(), num_rounds=flags.many_rounds, **options)


def overhead(flags: argparse.Namespace, mesh: Mesh) -> dict[str, Any]:
    """Times rounds of one cohort of equal clients, streamed and as one program, in turns.

    Equal clients in the same lanes, one on each device if not said, are padded alike by both, so that what differs
    is the host's loop.
    """
    lanes = 1 if flags.lanes == "auto" else flags.lanes
    workload, size = equal_clients(emnist_cnn(), flags.overhead_examples), flags.overhead_clients
    options: dict[str, Any] = {"mesh": mesh, "cohort_size": size, "lanes": lanes, "seed": flags.seed}
    streams = {
        "streamed": round_time.rounds(workload, population=size, **options),
        "in_graph": in_graph_seconds(workload, **options),
    }
    _, _, *timed = in_turns(streams, 2 + flags.rounds)  # a state that is not on the mesh yet is compiled for apart
    streamed, in_graph = [turn["streamed"].seconds for turn in timed], [turn["in_graph"] for turn in timed]
    return {
        "clients": size,
        "streamed_seconds": quartiles(streamed),
        "in_graph_seconds": quartiles(in_graph),
        "overhead_of_bests": min(streamed) / min(in_graph) - 1,
        "overhead_of_medians": float(np.median(streamed) / np.median(in_graph)) - 1,
    }


def in_graph_seconds(workload: Workload, *, mesh: Mesh, cohort_size: int, lanes: int, seed: int) -> Iterator[float]:
    """Trains without end on one cohort, each round one program, and yields its time."""
    algorithm: Any = fed_avg(workload.model, client_optimizer=workload.client_optimizer)
    data, state = workload.data(cohort_size, seed), algorithm.init(jax.random.key(seed))
    run = jax.jit(algorithm.next.in_graph(mesh=mesh, lanes=lanes))
    while True:
        started = time.perf_counter()
        clients = Cohort(data, range(cohort_size), batch_size=workload.batch_size).whole()
        state, _ = jax.block_until_ready(run(state, clients))
        yield time.perf_counter() - started


# --- command line -------------------------------------------------------------------------------


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    flag("--rounds", type=int, default=5, help="rounds to time in each part")
    flag("--cohorts", type=int, nargs="+", default=[10, 100, 1000, 10_000], help="sizes of cohorts, growing")
    flag(
        "--lanes", type=round_time.lanes, default="auto", help="clients that a device trains at the same time, or auto"
    )
    flag("--device-numbers", type=int, nargs="+", choices=(1, 2, 4, 8), default=[1, 2, 4], help="simulated devices")
    flag("--spread-clients", type=int, default=100, help="clients in a round where their sizes differ")
    flag("--many-rounds", type=int, default=50, help="rounds in which compilations are counted")
    flag("--overhead-clients", type=int, default=100, help="clients of the network where streaming is compared")
    flag("--overhead-examples", type=int, default=160, help="examples of each of them")
    flag("--plot", type=Path, help="file for a picture, .png")
    for name, kind in (("--child", str), ("--clients", int), ("--population", int)):
        flag(name, type=kind, help=argparse.SUPPRESS)  # of the processes that this one starts
    return parser.parse_args(args)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Measures the parts that are asked for, and reports."""
    if flags.child:
        measured = {"cohort": one_cohort, "devices": one_mesh}[flags.child](flags)
        return finish(measured, None)
    result: dict[str, Any] = {"benchmark": "scaling"}
    # First what runs apart: this process takes no accelerator before that is done.
    if "cohort" in flags.parts:
        result["cohort"] = cohorts(flags)
        result["peak_memory_ratio"] = memory_ratio(result["cohort"])
    if "devices" in flags.parts:
        result["devices"] = devices(flags)
    mesh = client_mesh(flags.devices)
    for name, part in (("spread", spread), ("recompilation", recompilation), ("overhead", overhead)):
        if name in flags.parts:
            result[name] = part(flags, mesh)
    result |= environment(mesh)
    print(show(result) + "\n")
    if flags.plot is not None:
        draw(flags.plot, result)
    return finish(result, flags.output)


if __name__ == "__main__":
    parsed = parse_flags()
    start_alone(parsed.devices)
    main(parsed)
