"""What a run's rows, files, bar and checkpoints cost, beside the bare rounds of the same cohorts, in turns.

A turn is so many rounds: bare ones, which the device may have ahead of it, and those of a run, with `metrics.jsonl`,
`metrics.csv`, TensorBoard's events, a bar, and a checkpoint in the background at their end.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.measuring import client_mesh, environment, finish, flag_parser, quartiles, start_alone, table
from benchmarks.round_time import population_size
from benchmarks.workloads import WORKLOADS
from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, uniform_sampler
from fedjx.experiment import (
    Checkpoint,
    Checkpointer,
    Log,
    csv_table,
    json_lines,
    open_run,
    progress_bar,
    tensorboard,
)

Turn = Callable[[Any, list[int]], Any]  # runs some rounds from a state


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--workload", choices=list(WORKLOADS), default="emnist_cnn", help="what to train")
    flag("--clients", type=int, default=10, help="clients in a round")
    flag("--rounds", type=int, default=10, help="rounds in a turn, of which the last has a checkpoint")
    flag("--turns", type=int, default=6, help="turns of either kind, after one that compiles")
    return parser.parse_args(args)


@contextlib.contextmanager
def turns(flags: argparse.Namespace, step: Any, cohort: Callable[[int], Cohort]) -> Iterator[dict[str, Turn]]:
    """Yields the two ways to run some rounds, of one compiled program."""

    def bare(state: Any, numbers: list[int]) -> Any:
        for clients in step.ahead(map(cohort, numbers)):
            state, _ = step(state, clients)
        return state

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        run = stack.enter_context(open_run(f"{folder}/run", {}))
        sinks = [json_lines(run), csv_table(run, []), tensorboard(run, 0), progress_bar(flags.rounds * flags.turns)]
        log = stack.enter_context(Log(sinks))
        saved = stack.enter_context(Checkpointer(run))

        def recorded(state: Any, numbers: list[int]) -> Any:
            for number, clients in zip(numbers, step.ahead(map(cohort, numbers)), strict=True):
                state, metrics = step(state, clients)
                log.add(number, {"train": metrics, "total": {"clients": len(clients.ids)}})
            saved.save(Checkpoint(numbers[-1], state), before=log.flush)
            return state

        yield {"bare": bare, "run": recorded}


def measure(flags: argparse.Namespace) -> dict[str, list[float]]:
    """Times the turns of either kind, in seconds, whose order changes; a run's includes its checkpoint's writing."""
    workload, mesh = WORKLOADS[flags.workload](), client_mesh(flags.devices)
    population = population_size(workload, flags.clients)
    data, sample = workload.data(population, flags.seed), uniform_sampler(population, flags.clients, seed=flags.seed)
    algorithm = fed_avg(workload.model, client_optimizer=workload.client_optimizer)
    step = algorithm.next.streamed(mesh=mesh)

    def cohort(number: int) -> Cohort:
        return Cohort(data, sample(number), batch_size=workload.batch_size, lanes=1)

    seconds: dict[str, list[float]] = {"bare": [], "run": []}
    with turns(flags, step, cohort) as kinds:
        states = {name: algorithm.init(jax.random.key(flags.seed)) for name in kinds}
        for turn in range(flags.turns + 1):
            numbers = list(range(turn * flags.rounds + 1, (turn + 1) * flags.rounds + 1))
            for name in list(kinds)[:: -1 if turn % 2 else 1]:
                started = time.perf_counter()
                states[name] = jax.block_until_ready(kinds[name](states[name], numbers))
                seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Times and reports."""
    seconds = measure(flags)
    per_round = {name: quartiles(np.array(times) / flags.rounds) for name, times in seconds.items()}
    ratio = quartiles(np.array(seconds["run"]) / np.array(seconds["bare"]))
    of_bests = min(seconds["run"]) / min(seconds["bare"])
    rows = [[name, found["median"], found["min"]] for name, found in per_round.items()]
    print(table(["rounds", "s/round", "best"], rows))
    print(f"a run takes {ratio['median']:.4f} times the bare rounds (median of turns), {of_bests:.4f} of bests\n")
    settings = {name: getattr(flags, name) for name in ("workload", "clients", "rounds", "turns", "seed")}
    about = {"benchmark": "experiment_cost", **settings, **environment(client_mesh(flags.devices))}
    return finish({**about, "seconds_per_round": per_round, "ratio": ratio, "ratio_of_bests": of_bests}, flags.output)


if __name__ == "__main__":
    parsed = parse_flags()
    start_alone(parsed.devices)
    main(parsed)
