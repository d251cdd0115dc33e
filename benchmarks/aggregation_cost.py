"""Times rounds with each aggregator beside plain rounds of the same cohorts, in turns, in one process.

The last line it prints is one JSON object. Every aggregator trains its own model; a ratio is of its round to the plain
one on the same clients, so what else the machine does spoils both. Rules of several passes train in each of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.measuring import (
    Compilations,
    client_mesh,
    environment,
    finish,
    flag_parser,
    peak_memory,
    quartiles,
    start,
    table,
)
from benchmarks.round_time import lanes, population_size
from benchmarks.workloads import WORKLOADS, Workload
from fedjx.aggregation.centred_clipping import centred_clipping, norm_bounding
from fedjx.aggregation.clipping import clip_adaptively
from fedjx.aggregation.geometric_median import geometric_median
from fedjx.aggregation.krum import multi_krum
from fedjx.aggregation.mean import mean
from fedjx.aggregation.median import coordinate_median, trimmed_mean
from fedjx.aggregation.quantize import quantize
from fedjx.aggregation.secure import secure_mean
from fedjx.algorithms import fed_avg
from fedjx.core.execution.process import Aggregator, Algorithm
from fedjx.data import Cohort, uniform_sampler
from fedjx.privacy.dp_mean import dp_mean, dp_mean_adaptive
from fedjx.privacy.noise import Noise, Strategy, matrix, tree

PLAIN = "mean"
BANDS = Strategy((0.644, 0.397, 0.332, 0.296, 0.27, 0.248, 0.229, 0.208))  # privacy.banded_strategy(100, 8)


def private_mean(num_clients: int, noise: Noise | None = None) -> Aggregator:
    """Averages with some noise."""
    return dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=num_clients, noise=noise)


AGGREGATORS: dict[str, Callable[[int], Aggregator]] = {
    PLAIN: lambda num_clients: mean(),
    "8-bit quantisation": lambda num_clients: quantize(8),
    "coordinate median": lambda num_clients: coordinate_median(),
    "trimmed mean": lambda num_clients: trimmed_mean(fraction=0.2),
    "multi-Krum": lambda num_clients: multi_krum(
        num_malicious=num_clients // 5, num_selected=num_clients - num_clients // 5
    ),
    "geometric median, 3 steps": lambda num_clients: geometric_median(num_steps=3),
    "centred clipping": lambda num_clients: centred_clipping(bound=1.0),
    "norm bounding": lambda num_clients: norm_bounding(bound=1.0),
    "adaptive clipping": lambda num_clients: clip_adaptively(),
    "DP-FedAvg": lambda num_clients: private_mean(num_clients),
    "DP-FedAvg, adaptive clip": lambda num_clients: dp_mean_adaptive(
        noise_multiplier=1.0, expected_clients=num_clients
    ),
    "DP-FTRL, 8 bands": lambda num_clients: private_mean(num_clients, matrix(BANDS, 100, min_separation=8)),
    "DP-FTRL, tree": lambda num_clients: private_mean(num_clients, tree(100)),
    "secure mean": lambda num_clients: secure_mean(bound=1.0, max_weight=1000.0, max_clients=num_clients),
}


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--workload", choices=list(WORKLOADS), default="emnist_cnn", help="what to train")
    flag("--clients", type=int, default=100, help="clients in a round")
    flag("--rounds", type=int, default=3, help="rounds to time, after one that compiles")
    flag("--lanes", type=lanes, default=1, help="clients that a device trains at the same time, or auto")
    flag("--aggregators", nargs="+", choices=list(AGGREGATORS), default=list(AGGREGATORS), help="beside the mean")
    return parser.parse_args(args)


class Timed(NamedTuple):
    """What rounds of several algorithms have done, by name.

    Attributes:
      states: Of the servers, after the last one.
      seconds: Of every round, the first, which compiles, too.
      processor_seconds: Likewise, how long processors worked; on a CPU that is all, whatever else the machine does.
      recompilations: Programs compiled after the first round.
      losses: Of the last one.
    """

    states: dict[str, Any]
    seconds: dict[str, list[float]]
    processor_seconds: dict[str, list[float]]
    recompilations: dict[str, int]
    losses: dict[str, float]


def in_turns(
    algorithms: Mapping[str, Algorithm], cohort: Callable[[int], Cohort], *, num_rounds: int, seed: int, mesh: Mesh
) -> Timed:
    """Times so many rounds of every algorithm after the first one, in turns on the same cohorts."""
    runs: dict[str, Any] = {name: algorithm.next.streamed(mesh=mesh) for name, algorithm in algorithms.items()}
    states: dict[str, Any] = {name: algorithm.init(jax.random.key(seed)) for name, algorithm in algorithms.items()}
    both = {name: [] for name in runs}, {name: [] for name in runs}
    timed = Timed(states, *both, dict.fromkeys(runs, 0), dict.fromkeys(runs, 0.0))
    for number in range(num_rounds + 1):
        names = list(runs)[:: -1 if number % 2 else 1]  # what drifts is not always against the same ones
        for name in names:
            with Compilations() as compiled:
                started, worked = time.perf_counter(), time.process_time()
                states[name], metrics = jax.block_until_ready(runs[name](states[name], cohort(number)))
                timed.seconds[name].append(time.perf_counter() - started)
                timed.processor_seconds[name].append(time.process_time() - worked)
            timed.recompilations[name] += compiled.number if number else 0
            timed.losses[name] = float(metrics["loss"])
    return timed


def measure(workload: Workload, compared: Mapping[str, Aggregator], flags: argparse.Namespace, mesh: Mesh) -> Timed:
    """Times rounds of a workload with every aggregator."""
    population = population_size(workload, flags.clients)
    data, sample = workload.data(population, flags.seed), uniform_sampler(population, flags.clients, seed=flags.seed)
    algorithms = {
        name: fed_avg(workload.model, client_optimizer=workload.client_optimizer, aggregator=aggregator)
        for name, aggregator in compared.items()
    }

    def cohort(number: int) -> Cohort:
        return Cohort(data, sample(number), batch_size=workload.batch_size, lanes=flags.lanes)

    return in_turns(algorithms, cohort, num_rounds=flags.rounds, seed=flags.seed, mesh=mesh)


def summary(timed: Timed) -> dict[str, dict[str, Any]]:
    """Summarises each aggregator's rounds: seconds, and ratios to the plain rounds of the same cohorts.

    ``state_share`` is the bytes of the aggregator's state over those of the parameters.
    """
    plain, work = timed.seconds[PLAIN][1:], {name: np.median(x[1:]) for name, x in timed.processor_seconds.items()}
    return {
        name: {
            "first_round_seconds": first,
            "seconds_per_round": quartiles(later),
            "ratio": quartiles(own / other for own, other in zip(later, plain, strict=True)),
            "ratio_of_medians": float(np.median(later) / np.median(plain)),
            "ratio_of_bests": min(later) / min(plain),
            "ratio_of_processor_seconds": float(work[name] / work[PLAIN]),
            "recompilations": timed.recompilations[name],
            "loss": timed.losses[name],
            "state_share": num_bytes(timed.states[name].aggregator) / num_bytes(timed.states[name].params),
        }
        for name, (first, *later) in timed.seconds.items()
    }


def num_bytes(tree: Any) -> int:
    """Returns how much memory the arrays of a tree take."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Times and reports."""
    workload, mesh = WORKLOADS[flags.workload](), client_mesh(flags.devices)
    compared = {name: AGGREGATORS[name](flags.clients) for name in dict.fromkeys([PLAIN, *flags.aggregators])}
    results = summary(measure(workload, compared, flags, mesh))
    print(show(results) + "\n")
    settings = {name: getattr(flags, name) for name in ("workload", "clients", "rounds", "lanes", "seed")}
    about = {"benchmark": "aggregation_cost", **settings, **environment(mesh), **peak_memory(mesh)}
    return finish({**about, "aggregators": results}, flags.output)


def show(results: Mapping[str, dict[str, Any]]) -> str:
    """Formats results as a table."""
    rows = [
        [
            name,
            r["seconds_per_round"]["median"],
            r["ratio"]["median"],
            r["ratio"]["min"],
            r["ratio_of_medians"],
            r["ratio_of_bests"],
            r["ratio_of_processor_seconds"],
            r["state_share"],
            r["first_round_seconds"],
            r["recompilations"],
        ]
        for name, r in results.items()
    ]
    header = ["aggregator", "s/round", "times plain", "least", "of medians", "of bests", "of processor s"]
    return table([*header, "state/model", "first round s", "recompiled"], rows)


if __name__ == "__main__":
    parsed = parse_flags()
    start(parsed.devices)
    main(parsed)
