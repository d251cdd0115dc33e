"""Times rounds with each aggregator beside plain rounds of the same cohorts, in turns, in one process.

The last line it prints is one JSON object. Every aggregator trains its own model; a ratio is of its round to the plain
one on the same clients, so what else the machine does spoils both. Rules of several passes train in each of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
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
from fedjx.core.execution.process import Aggregator
from fedjx.data import Cohort, uniform_sampler

PLAIN = "mean"
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


def measure(
    workload: Workload, compared: Mapping[str, Aggregator], flags: argparse.Namespace, mesh: Mesh
) -> tuple[dict[str, list[float]], dict[str, int], dict[str, float]]:
    """Times rounds of every aggregator in turns; returns their seconds, late compilations, and last losses."""
    population = population_size(workload, flags.clients)
    data, sample = workload.data(population, flags.seed), uniform_sampler(population, flags.clients, seed=flags.seed)
    runs, states = {}, {}
    for name, aggregator in compared.items():
        algorithm: Any = fed_avg(workload.model, client_optimizer=workload.client_optimizer, aggregator=aggregator)
        runs[name], states[name] = algorithm.next.streamed(mesh=mesh), algorithm.init(jax.random.key(flags.seed))
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    losses = dict.fromkeys(compared, 0.0)
    recompilations = dict.fromkeys(compared, 0)
    for number in range(flags.rounds + 1):
        names = list(compared)[:: -1 if number % 2 else 1]  # what drifts is not always against the same ones
        for name in names:
            cohort = Cohort(data, sample(number), batch_size=workload.batch_size, lanes=flags.lanes)
            with Compilations() as compiled:
                started = time.perf_counter()
                states[name], metrics = jax.block_until_ready(runs[name](states[name], cohort))
                seconds[name].append(time.perf_counter() - started)
            recompilations[name] += compiled.number if number else 0
            losses[name] = float(metrics["loss"])
    return seconds, recompilations, losses


def summary(
    seconds: Mapping[str, list[float]], recompilations: Mapping[str, int], losses: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Summarises each aggregator's rounds: seconds, and ratios to the plain rounds of the same cohorts."""
    plain = seconds[PLAIN][1:]
    return {
        name: {
            "first_round_seconds": first,
            "seconds_per_round": quartiles(timed),
            "ratio": quartiles(own / other for own, other in zip(timed, plain, strict=True)),
            "ratio_of_bests": min(timed) / min(plain),
            "recompilations": recompilations[name],
            "loss": losses[name],
        }
        for name, (first, *timed) in seconds.items()
    }


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Times and reports."""
    workload, mesh = WORKLOADS[flags.workload](), client_mesh(flags.devices)
    compared = {name: AGGREGATORS[name](flags.clients) for name in dict.fromkeys([PLAIN, *flags.aggregators])}
    results = summary(*measure(workload, compared, flags, mesh))
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
            r["ratio_of_bests"],
            r["first_round_seconds"],
            r["recompilations"],
        ]
        for name, r in results.items()
    ]
    return table(["aggregator", "s/round", "times plain", "least", "of bests", "first round s", "recompiled"], rows)


if __name__ == "__main__":
    parsed = parse_flags()
    start(parsed.devices)
    main(parsed)
