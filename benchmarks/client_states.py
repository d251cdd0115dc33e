"""Measures rounds of SCAFFOLD over very many clients whose states are on disk, against rounds of federated averaging.

Three ways take turns on the same cohorts in one process: federated averaging; SCAFFOLD with the states of the cohort
in memory, which shows its extra arithmetic; SCAFFOLD with the states of all clients on disk. Peak memory is that of
processes of their own, over many clients and over few.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.data_scale import bag_of_tokens
from benchmarks.measuring import (
    client_mesh,
    environment,
    finish,
    flag_parser,
    peak_memory,
    quartiles,
    run_apart,
    start_alone,
    table,
)
from benchmarks.workloads import WORKLOADS
from fedjx import fed_avg
from fedjx.algorithms.scaffold import scaffold
from fedjx.core.language.values import Clients
from fedjx.data import ClientData, ClientStates, Cohort, Store, uniform_sampler
from fedjx.data.published import synthetic_twin
from fedjx.models import Model

TWIN, MEAN_EXAMPLES = "stack_overflow", 10.0
# Rounds that compile, measure lanes, and warm up.
FIRST = 3


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = flag_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/client_states"), help="where data and states are")
    parser.add_argument("--population", type=int, default=100_000, help="all clients")
    parser.add_argument("--few", type=int, default=1_000, help="the clients with which memory is compared")
    parser.add_argument("--clients", type=int, default=400, help="in a cohort")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--classes", type=int, nargs="+", default=[16, 1024], help="of the models: 20 weights for each")
    parser.add_argument("--lanes", type=int, default=16, help="clients that a device runs at once, in all ways")
    parser.add_argument("--durable-every", type=int, default=10, help="rounds after which states are waited for")
    parser.add_argument("--workload", choices=list(WORKLOADS), help="another model and its data, for the step of turns")
    parser.add_argument(
        "--step", choices=("write", "turns", "memory"), help="one step, as the benchmark itself calls it"
    )
    return parser.parse_args(arguments)


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark, or the step of it that is asked for, and returns the report."""
    if flags.step:
        report = {"write": write, "turns": turns, "memory": memory}[flags.step](flags)
        return finish({"benchmark": "client_states", **report}, flags.output)
    common = ["--folder", flags.folder, "--clients", flags.clients, "--rounds", flags.rounds, "--seed", flags.seed]
    common += [
        "--durable-every",
        flags.durable_every,
        "--lanes",
        flags.lanes,
        *(["--devices", flags.devices] if flags.devices else []),
    ]

    def step(name: str, population: int, classes: int) -> dict[str, Any]:
        sizes = ["--population", population, "--classes", classes]
        return run_apart("client_states", "--step", name, *sizes, *common)

    for population in (flags.population, flags.few):
        step("write", population, 1)
    models = []
    for classes in flags.classes:
        many, few = (
            step("memory", population, classes)["peak_host_bytes"] for population in (flags.population, flags.few)
        )
        peaks = {"peak_host_bytes": many, "few_peak_host_bytes": few, "memory_ratio": many / few}
        models.append({**step("turns", flags.population, classes), **peaks})
    columns = ("state_bytes", "fed_avg_ms", "in_memory_ms", "on_disk_ms", "durable_commit_ms", "ratio", "memory_ratio")
    rows = [[f"{model['num_weights']} weights", *(model[column] for column in columns)] for model in models]
    print(table(("model", *(column.replace("_", " ") for column in columns)), rows))
    sizes = {"population": flags.population, "few": flags.few, "clients": flags.clients, "rounds": flags.rounds}
    report = {
        "benchmark": "client_states",
        **sizes,
        "lanes": flags.lanes,
        "durable_every": flags.durable_every,
        "models": models,
    }
    return finish({**report, **environment(client_mesh(flags.devices))}, flags.output)


def store_folder(flags: argparse.Namespace) -> Path:
    """Returns where the data of so many clients are."""
    return flags.folder / f"data-{flags.population}"


def write(flags: argparse.Namespace) -> dict[str, Any]:
    """Writes the clients' examples."""
    folder = store_folder(flags)
    shutil.rmtree(folder, ignore_errors=True)
    synthetic_twin(TWIN, folder, seed=flags.seed, num_clients=flags.population, mean_examples=MEAN_EXAMPLES)
    return {"population": flags.population}


def data_and_model(flags: argparse.Namespace) -> tuple[ClientData, Model, int]:
    """Returns the clients' examples, the model and the size of a batch."""
    if flags.workload:
        workload = WORKLOADS[flags.workload]()
        return workload.data(flags.population, flags.seed), workload.model, workload.batch_size
    (path,) = store_folder(flags).glob("*-train")
    (classes,) = flags.classes
    return (store := Store(path)), bag_of_tokens(store, classes), 16


class Problem:
    """What all ways share: data, model, cohorts, and an empty store of states."""

    def __init__(self, flags: argparse.Namespace):
        self.data, self.model, self.batch_size = data_and_model(flags)
        optimizer = optax.sgd(0.1)
        self.fed_avg: Any = fed_avg(self.model, client_optimizer=optimizer)
        self.scaffold: Any = scaffold(self.model, num_clients=flags.population, client_optimizer=optimizer)
        self.sample = uniform_sampler(flags.population, min(flags.clients, flags.population), seed=flags.seed)
        self.lanes, self.mesh, self.key = flags.lanes, client_mesh(flags.devices), jax.random.key(flags.seed)
        self.first = jax.device_get(self.scaffold.init_client(self.scaffold.init(self.key)))
        states = flags.folder / f"states-{flags.population}-{flags.workload or flags.classes[0]}"
        shutil.rmtree(states, ignore_errors=True)
        self.states = ClientStates(states, self.first, num_clients=flags.population)

    def cohort(self, number: int) -> Cohort:
        """Returns the cohort of a round."""
        ids = self.sample(number)
        return Cohort(self.data, ids, batch_size=self.batch_size, lanes=self.lanes, placement="streamed")


def turns(flags: argparse.Namespace) -> dict[str, Any]:
    """Lets the three ways run round after round, in changing order, and times them."""
    problem = Problem(flags)
    seconds, commits = [], []
    ways = {
        "fed_avg": averaging(problem),
        "in_memory": states_in_memory(problem),
        "on_disk": states_on_disk(problem, flags.durable_every, commits),
    }
    names = list(ways)
    for number in range(1, flags.rounds + FIRST + 1):
        found = {}
        for name in names[number % 3 :] + names[: number % 3]:
            start = time.perf_counter()
            ways[name](number)
            found[name] = 1000 * (time.perf_counter() - start)
        seconds.append(found)
    problem.states.close()
    counted = seconds[FIRST:]
    # What is left of a round on disk without the extra arithmetic, in rounds of federated averaging.
    ratios = [(x["on_disk"] - max(x["in_memory"] - x["fed_avg"], 0)) / x["fed_avg"] for x in counted]
    return {
        "num_weights": sum(x.size for x in jax.tree.leaves(problem.first)),
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(problem.first)),
        **{f"{name}_ms": float(np.median([x[name] for x in counted])) for name in names},
        **{f"{name}_rounds": quartiles(x[name] for x in counted) for name in names},
        "durable_commit_ms": float(np.median([1000 * x for x in commits])),
        "ratio": float(np.median(ratios)),
        "ratios": quartiles(ratios),
        "touched": problem.states.num_touched,
    }


Way = Callable[[int], None]


def averaging(problem: Problem) -> Way:
    """Returns rounds of federated averaging."""
    step, state = problem.fed_avg.next.streamed(mesh=problem.mesh), problem.fed_avg.init(problem.key)

    def round(number: int) -> None:
        nonlocal state
        state, metrics = step(state, problem.cohort(number))
        float(metrics["loss"])

    return round


def states_in_memory(problem: Problem) -> Way:
    """Returns rounds of SCAFFOLD whose cohort's states are arrays, and whose new ones are dropped."""
    step: Any = problem.scaffold.next.streamed(mesh=problem.mesh, sink=jax.block_until_ready)
    state = problem.scaffold.init(problem.key)
    rows = jax.tree.map(lambda x: np.repeat(x[None], len(problem.sample(1)), axis=0), problem.first)

    def round(number: int) -> None:
        nonlocal state
        state, metrics, _ = step(state, problem.cohort(number), Clients.of(rows, ids=problem.sample(number)))
        float(metrics["loss"])

    return round


def states_on_disk(problem: Problem, durable_every: int, commits: list[float]) -> Way:
    """Returns rounds of SCAFFOLD with states on disk, and notes how long those commits take that wait for it."""
    step: Any = problem.scaffold.next.streamed(mesh=problem.mesh, sink=problem.states.sink)
    state = problem.scaffold.init(problem.key)

    def round(number: int) -> None:
        nonlocal state
        cohort = problem.cohort(number)
        state, metrics, _ = step(state, cohort, problem.states.cohort(cohort.ids))
        float(metrics["loss"])
        start, durable = time.perf_counter(), number % durable_every == 0
        problem.states.commit(number, durable=durable)
        if durable:
            # As with a checkpoint: it is the one to return to, and room of earlier states is used again.
            problem.states.pin(number)
            commits.append(time.perf_counter() - start)

    return round


def memory(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs SCAFFOLD with states on disk alone, and says how much memory the process took."""
    problem = Problem(flags)
    round = states_on_disk(problem, flags.durable_every, [])
    for number in range(1, flags.rounds + 1):
        round(number)
    return {"touched": problem.states.num_touched, **peak_memory(problem.mesh)}


if __name__ == "__main__":
    parsed = parse_flags()
    start_alone(parsed.devices)
    main(parsed)
