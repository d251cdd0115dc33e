"""Times rounds of federated averaging over random cohorts, streamed, with what they compile, hold and pad.

The last line it prints is one JSON object. A round is timed from the ids of its clients to the new
state on the device: its plan is part of it, and in the first round the placement of the data too; the
drawing of ids is not. See `report` for the fields.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.measuring import (
    Compilations,
    check_alone,
    client_mesh,
    environment,
    finish,
    flag_parser,
    peak_memory,
    quartiles,
    run_apart,
    start,
    table,
)
from benchmarks.workloads import WORKLOADS, Workload
from fedjx.algorithms import fed_avg
from fedjx.core.execution.chunks import Chunks, Level
from fedjx.core.language.shares import Share
from fedjx.data import Cohort, uniform_sampler

Lanes = int | Literal["auto"]


class Round(NamedTuple):
    """What one round did.

    Attributes:
      seconds: From ids to the new state.
      num_clients: Of the cohort.
      num_examples: Trained on.
      real_steps: Local steps of the clients.
      lane_steps: Steps that each device executed, padding included.
      lanes: Clients that a device ran at once, at most.
      compilations: Programs that XLA compiled meanwhile.
      compile_seconds: How long that took.
      loss: The clients' training loss.
    """

    seconds: float
    num_clients: int
    num_examples: int
    real_steps: int
    lane_steps: tuple[int, ...]
    lanes: int
    compilations: int
    compile_seconds: float
    loss: float


# --- rounds -------------------------------------------------------------------------------------


def lane_steps(cohort: Cohort, levels: list[Level], num_devices: int) -> tuple[int, ...]:
    """Counts the local steps that each device executes: clients that run at once stop with the longest.

    Args:
      cohort: The clients.
      levels: Numbers of clients that a device runs at once, as the executor has chosen them.
      num_devices: Devices that share the cohort.
    """
    total = np.zeros(num_devices, np.int64)
    for lanes, ids, mask in Chunks([cohort], Share(num_devices), result_bytes=0).order(levels):
        num_groups = len(ids) // (num_devices * lanes)
        groups = (num_devices, num_groups, lanes)
        steps = -(-cohort.data.sizes[ids].reshape(groups) // cohort.batch_size)
        # Groups of padding alone are skipped, unless they are all that their device has in a chunk.
        runs = mask.reshape(groups).any(axis=2) | (num_groups == 1)
        total += lanes * (steps.max(axis=2) * runs).sum(axis=1)
    return tuple(total.tolist())


def rounds(
    workload: Workload, *, mesh: Mesh, cohort_size: int, population: int = 0, lanes: Lanes = "auto", seed: int = 0
) -> Iterator[Round]:
    """Trains without end on random cohorts of a made-up population, a round for each that is asked for."""
    population = population or population_size(workload, cohort_size)
    data = workload.data(population, seed)
    algorithm: Any = fed_avg(workload.model, client_optimizer=workload.client_optimizer)
    run: Any = algorithm.next.streamed(mesh=mesh)
    state = algorithm.init(jax.random.key(seed))
    sample = uniform_sampler(population, cohort_size, seed=seed)
    for number in itertools.count(1):
        ids = sample(number)
        with Compilations() as compiled:
            started = time.perf_counter()
            cohort = Cohort(data, ids, batch_size=workload.batch_size, lanes=lanes)
            state, metrics = jax.block_until_ready(run(state, cohort))
            seconds = time.perf_counter() - started
        sizes = data.sizes[ids]
        yield Round(
            seconds,
            len(ids),
            num_examples=int(sizes.sum()),
            real_steps=int(np.ceil(sizes / workload.batch_size).sum()),
            lane_steps=lane_steps(cohort, run._levels, mesh.size),
            lanes=run.lanes,
            compilations=compiled.number,
            compile_seconds=compiled.seconds,
            loss=float(metrics["loss"]),
        )
        while not run.is_settled:  # what is compiled and measured meanwhile would be in the way of the clock
            state, _ = jax.block_until_ready(run(state, cohort))


def population_size(workload: Workload, cohort_size: int) -> int:
    """Enlarges a workload's population for cohorts that it could hardly vary."""
    return max(workload.num_clients, 2 * cohort_size)


def report(warm: Sequence[Round], timed: Sequence[Round]) -> dict[str, Any]:
    """Summarises rounds, of which the first ones are apart.

    Returns:
      `seconds_per_round` in quartiles; `examples_per_second` and `clients_per_second` of the median round, and of
      the best; `first_round_seconds`; `compile_seconds`, how long XLA compiled in the first rounds;
      `recompilations` in the others; `padded_work`, the steps executed per real step; `imbalance`, those of the
      busiest device against an equal share.
    """
    steps, examples = sum(r.real_steps for r in timed), sum(r.num_examples for r in timed)
    rates = quartiles(r.num_examples / r.seconds for r in timed)
    clients = quartiles(r.num_clients / r.seconds for r in timed)
    executed = sum(sum(r.lane_steps) for r in timed)
    return {
        "rounds": len(timed),
        "warm_up_rounds": len(warm),
        "seconds_per_round": quartiles(r.seconds for r in timed),
        "examples_per_second": rates["median"],
        "best_examples_per_second": rates["max"],
        "clients_per_second": clients["median"],
        "examples_per_round": examples / len(timed),
        "first_round_seconds": warm[0].seconds,
        "compile_seconds": sum(r.compile_seconds for r in warm),
        "compilations": sum(r.compilations for r in warm),
        "recompilations": sum(r.compilations for r in timed),
        "padded_work": executed / steps,
        "imbalance": sum(max(r.lane_steps) * len(r.lane_steps) for r in timed) / executed,
        "lane_steps": executed,
        "lanes": timed[-1].lanes,
        "real_steps": steps,
        "loss": timed[-1].loss,
    }


def measure(workload: Workload, *, mesh: Mesh, num_rounds: int, warm_up: int = 1, **options: Any) -> dict[str, Any]:
    """Times rounds of a workload, and adds `batch_fill`, the real examples per place in a real step.

    The options are those of `rounds`.
    """
    done = list(itertools.islice(rounds(workload, mesh=mesh, **options), warm_up + num_rounds))
    summary = report(done[:warm_up], done[warm_up:])
    fill = summary["rounds"] * summary["examples_per_round"] / (summary["real_steps"] * workload.batch_size)
    return {**summary, "batch_fill": fill}


# --- command line -------------------------------------------------------------------------------


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--workload", choices=[*WORKLOADS, "all"], default="emnist_cnn", help="what to train; all, one by one")
    flag("--clients", type=int, help="clients in a round; the workload's own number if not given")
    flag("--population", type=int, default=0, help="clients in all; 0 leaves it to the workload")
    flag("--rounds", type=int, default=10, help="rounds to time")
    flag("--warm-up", type=int, default=1, help="rounds before them")
    flag("--lanes", type=lanes, default="auto", help="clients that a device trains at the same time, or auto")
    flags = parser.parse_args(args)
    if min(flags.rounds, flags.warm_up) < 1:
        parser.error(f"--rounds and --warm-up need to be at least 1; got {flags.rounds} and {flags.warm_up}.")
    return flags


def lanes(text: str) -> Lanes:
    """Reads a number of lanes."""
    if text == "auto":
        return "auto"
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"lanes are auto or at least 1; got {text}.")
    return int(text)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Times and reports."""
    if flags.workload == "all":
        return main_all(flags)
    workload, mesh = WORKLOADS[flags.workload](), client_mesh(flags.devices)
    cohort_size = flags.clients or workload.cohort_size
    summary = measure(
        workload,
        mesh=mesh,
        num_rounds=flags.rounds,
        warm_up=flags.warm_up,
        cohort_size=cohort_size,
        population=flags.population,
        lanes=flags.lanes,
        seed=flags.seed,
    )
    about = {"benchmark": "round_time", "workload": workload.name, "clients": cohort_size, "asked_lanes": flags.lanes}
    result = {**about, **summary, **peak_memory(mesh), **environment(mesh)}
    print(show([result]) + "\n")
    return finish(result, flags.output)


def main_all(flags: argparse.Namespace) -> dict[str, Any]:
    """Times every workload, each in a process of its own so that its memory is its own."""
    check_alone()
    passed = ["--rounds", flags.rounds, "--warm-up", flags.warm_up, "--lanes", flags.lanes, "--seed", flags.seed]
    for name in ("clients", "devices"):
        passed += [f"--{name}", getattr(flags, name)] if getattr(flags, name) else []
    results = [run_apart("round_time", "--workload", name, *passed) for name in WORKLOADS]
    print(show(results) + "\n")
    return finish(
        {"benchmark": "round_time", "workload": "all", "workloads": results, **environment(client_mesh(flags.devices))},
        flags.output,
    )


def show(results: Sequence[dict[str, Any]]) -> str:
    """Formats results as a table."""
    columns = {
        "clients": "clients",
        "lanes": "lanes",
        "examples_per_second": "examples/s",
        "best_examples_per_second": "best",
        "clients_per_second": "clients/s",
        "first_round_seconds": "first round s",
        "compile_seconds": "compiling s",
        "recompilations": "recompiled",
        "padded_work": "padded work",
        "imbalance": "imbalance",
    }
    rows = [
        [r["workload"], r["seconds_per_round"]["median"], r["seconds_per_round"]["min"]]
        + [r[name] for name in columns]
        + [r["peak_host_bytes"] / 2**20]
        for r in results
    ]
    return table(["workload", "s/round", "least", *columns.values(), "peak MiB"], rows)


if __name__ == "__main__":
    parsed = parse_flags()
    start(parsed.devices)
    main(parsed)
