"""Utility against epsilon: private mechanisms on real handwriting, each with the noise that its account asks for.

MNIST's files where `--mnist` says they are, scikit-learn's digits where not. A linear model, one short epoch of SGD at
every client, momentum at the server. For each mechanism and epsilon the noise is the least that the account of its own
sampler allows after all rounds: Poisson cohorts for noise that is independent, epochs without a random choice for
DP-FTRL. Server rates are chosen, for each, with a seed of their own by the accuracy on one half of the test set; that
on the other half is reported. What this tuning costs is in no epsilon here.

`--sweep` compares clips and client rates without noise instead.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.measuring import client_mesh, environment, finish, flag_parser, is_first, start
from benchmarks.privacy_report import draw, show, show_sweep
from fedjx import privacy
from fedjx.algorithms import fed_avg
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.values import Batches, Clients, Sequence
from fedjx.data import Cohort, FederatedData, central, cyclic_sampler, digits, poisson_sampler, shards_partition
from fedjx.data.importers import mnist
from fedjx.models import finalize_metrics, linear
from fedjx.training import local_evaluate

MOMENTUM = 0.9
LANES = 16  # clients at once

Trainer = Callable[[float, int], np.ndarray]
Sampler = Callable[[argparse.Namespace, int], Any]


def parse_flags(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flag_parser(__doc__)
    flag = parser.add_argument
    flag("--mnist", type=Path, help="directory with MNIST's four IDX files; the digits if not given")
    flag("--mechanisms", nargs="+", default=list(MECHANISMS), choices=list(MECHANISMS), metavar="MECHANISM")
    flag("--epsilons", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0, 8.0], help="what all rounds cost")
    flag("--delta", type=float, default=1e-5, help="at which epsilon is meant")
    flag("--num-clients", type=int, help="clients that share the images; 3000 if not given, of the digits 300")
    flag("--cohort", type=int, help="clients in a round, expected with Poisson sampling; one in 30 if not given")
    flag("--num-rounds", type=int, default=100, help="rounds of training")
    flag("--num-seeds", type=int, default=5, help="of cohorts, noise and orders of the examples; the partition is one")
    flag("--batch-size", type=int, default=10, help="images in a local batch")
    flag("--client-rate", type=float, default=0.1, help="learning rate of the clients' SGD")
    flag(
        "--server-rates", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0], help="of the server's SGD with momentum"
    )
    flag("--clip", type=float, default=0.3, help="most of a client's norm; for the adaptive clip the first one")
    flag("--bands", type=int, default=8, help="of the banded matrix")
    flag("--sweep", action="store_true", help="compare clips and client rates without noise, and end")
    flag("--clips", type=float, nargs="+", default=[0.1, 0.3, 1.0, 3.0], help="of the sweep")
    flag("--client-rates", type=float, nargs="+", default=[0.03, 0.1, 0.3], help="of the sweep")
    flags = parser.parse_args(args)
    flags.num_clients = flags.num_clients or (300 if flags.mnist is None else 3000)
    flags.cohort = flags.cohort or max(1, flags.num_clients // 30)
    return flags


# --- what is compared ---------------------------------------------------------------------------


class Mechanism(NamedTuple):
    """A private mean, and the sampler that it is accounted with.

    Attributes:
      sampler: ``(flags, seed) -> sampler``.
      aggregator: ``(flags, noise multiplier) -> mean``.
    """

    sampler: Sampler
    aggregator: Callable[[argparse.Namespace, float], Aggregator]


def poisson(flags: argparse.Namespace, seed: int) -> Any:
    """Draws every client by itself."""
    return poisson_sampler(flags.num_clients, probability=flags.cohort / flags.num_clients, seed=seed)


def cyclic(flags: argparse.Namespace, seed: int) -> Any:
    """Draws every client once an epoch, with as many rounds between as there can be."""
    return cyclic_sampler(flags.num_clients, flags.cohort, seed=seed)


def separation(flags: argparse.Namespace) -> int:
    """Returns after how many rounds a client of `cyclic` is back."""
    return -(-flags.num_clients // flags.cohort)


def fixed_clip(flags: argparse.Namespace, noise_multiplier: float, **others: Any) -> Aggregator:
    """Averages with the clip of the command line."""
    return privacy.dp_mean(clip=flags.clip, noise_multiplier=noise_multiplier, expected_clients=flags.cohort, **others)


def adaptive_clip(flags: argparse.Namespace, noise_multiplier: float) -> Aggregator:
    """Averages with a clip that follows the median norm; small cohorts have more noise on their count."""
    return privacy.dp_mean_adaptive(
        noise_multiplier=noise_multiplier,
        expected_clients=flags.cohort,
        initial_clip=flags.clip,
        count_stddev=max(flags.cohort / 20, noise_multiplier),
    )


def ftrl(noise: Callable[[argparse.Namespace], privacy.Noise]) -> Mechanism:
    """Averages with noise that is correlated over the rounds, on clients that come by turns."""
    return Mechanism(cyclic, lambda flags, noise_multiplier: fixed_clip(flags, noise_multiplier, noise=noise(flags)))


def banded(flags: argparse.Namespace) -> privacy.Noise:
    """Correlates by a banded matrix."""
    strategy = banded_strategy(flags.num_rounds, min(flags.bands, separation(flags)))
    return privacy.matrix(strategy, flags.num_rounds, min_separation=separation(flags))


def buffered(flags: argparse.Namespace) -> privacy.Noise:
    """Correlates by buffers that decay (BLT)."""
    strategy = buffered_strategy(flags.num_rounds, min_separation=separation(flags))
    return privacy.matrix(strategy, flags.num_rounds, min_separation=separation(flags))


def distributed(num_bits: int) -> Mechanism:
    """Averages by secure sums of integers of so many bits, to which each client adds a share of the noise."""

    def aggregator(flags: argparse.Namespace, noise_multiplier: float) -> Aggregator:
        spread = 8 * math.ceil(flags.cohort**0.5)  # cohorts that are smaller or larger are as good as never drawn
        return privacy.distributed_dp_mean(
            clip=flags.clip,
            noise_multiplier=noise_multiplier,
            expected_clients=flags.cohort,
            num_elements=10 * (1 + (8 * 8 if flags.mnist is None else 28 * 28)),
            min_clients=max(1, flags.cohort - spread),
            max_clients=min(flags.num_clients, flags.cohort + spread),
            num_bits=num_bits,
        )

    return Mechanism(poisson, aggregator)


banded_strategy, buffered_strategy = map(functools.cache, (privacy.banded_strategy, privacy.buffered_strategy))

MECHANISMS = {
    "DP-FedAvg": Mechanism(poisson, fixed_clip),
    "DP-FedAvg, adaptive clip": Mechanism(poisson, adaptive_clip),
    **{f"distributed, {num_bits} bits": distributed(num_bits) for num_bits in (12, 16, 20)},
    "DP-FTRL, tree": ftrl(lambda flags: privacy.tree(flags.num_rounds, efficient=False)),
    "DP-FTRL, Honaker's tree": ftrl(lambda flags: privacy.tree(flags.num_rounds)),
    "DP-FTRL, bands": ftrl(banded),
    "DP-FTRL, buffers (BLT)": ftrl(buffered),
}


def least_noise(mechanism: Mechanism, flags: argparse.Namespace, epsilon: float) -> float:
    """Returns the least noise multiplier of which all rounds cost no more; a ValueError says if none does."""
    return privacy.noise_within(
        functools.partial(mechanism.aggregator, flags),
        mechanism.sampler(flags, 0),
        epsilon=epsilon,
        rounds=flags.num_rounds,
        delta=flags.delta,
    )


# --- training -----------------------------------------------------------------------------------


class Problem:
    """The data of the comparison, and what a mechanism learns of it."""

    def __init__(self, flags: argparse.Namespace):
        self.flags = flags
        self.data, test, scale = images(flags)
        self.model = linear(10, input_shape=test["x"].shape[1:], scale=scale)
        halves = [{name: x[half::2] for name, x in test.items()} for half in (0, 1)]
        self.tests = [central(half, batch_size=len(half["y"])) for half in halves]
        self.tested = jax.jit(lambda *given: finalize_metrics(local_evaluate(self.model, *given))["accuracy"])

    def trainer(self, aggregator: Aggregator, sampler: Sampler, client_rate: float) -> Trainer:
        """Compiles all rounds as one program, for any server rate and seed: ``-> accuracy on both halves [2]``."""

        def algorithm(server_rate: float | jax.Array) -> Any:
            return fed_avg(
                self.model,
                client_optimizer=optax.sgd(client_rate),
                server_optimizer=optax.sgd(server_rate, momentum=MOMENTUM),
                aggregator=aggregator,
            )

        @jax.jit
        def run(server_rate: jax.Array, state: Any, plans: Any, pool: Any) -> Any:
            step = algorithm(server_rate).next.in_graph(differentiable=False, lanes=LANES)

            def round(state: Any, plan: Any) -> Any:
                index, length, mask, ids = plan
                return step(state, Clients(Sequence(Batches(pool, index), length), mask, ids))[0], None

            return jax.lax.scan(round, state, plans)[0]

        def train(server_rate: float, seed: int) -> np.ndarray:
            # Data are arguments: as constants they would be compiled.
            state, plans = algorithm(server_rate).init(jax.random.key(seed)), self._plans(sampler)[seed]
            trained = run(np.float32(server_rate), state, plans, self.data.pool)
            return np.array([self.tested(trained.params, half) for half in self.tests])

        return train

    @functools.cache  # noqa: B019 - there are two samplers
    def _plans(self, sampler: Sampler) -> list[Any]:
        """Stacks the cohorts of each seed's rounds, ``[rounds, clients, ...]``, all padded to the largest."""
        flags, seeds = self.flags, range(self.flags.num_seeds + 1)
        drawn = [[draw(r) for r in range(flags.num_rounds)] for draw in (sampler(flags, seed) for seed in seeds)]
        places = max(len(ids) for rounds in drawn for ids in rounds)
        steps = -(-int(self.data.sizes.max()) // flags.batch_size)

        def plan(ids: np.ndarray) -> Any:
            cohort = Cohort(self.data, ids, batch_size=flags.batch_size).whole(num_steps=steps, num_places=places)
            return cohort.value.elements.index, cohort.value.length, cohort.mask, cohort.id

        return [jax.tree.map(lambda *x: np.stack(x), *map(plan, rounds)) for rounds in drawn]


def images(flags: argparse.Namespace) -> tuple[FederatedData, dict[str, np.ndarray], float]:
    """Returns the clients' images, those of the test, and what makes their pixels numbers from 0 to 1."""
    if flags.mnist is None:
        return *digits(flags.num_clients, alpha=1.0, seed=flags.seed), 1 / 16
    train, test = mnist(flags.mnist)
    partition = shards_partition(train["y"], flags.num_clients, seed=flags.seed)
    return FederatedData.from_partition(train, partition), test, 1 / 255


def tuned(flags: argparse.Namespace, train: Trainer) -> dict[str, Any]:
    """Chooses the server rate on half of the test set, with a seed of its own; tests all seeds on the other half."""
    found = [train(rate, flags.num_seeds)[0] for rate in flags.server_rates]
    rate = flags.server_rates[int(np.nan_to_num(found).argmax())]
    accuracies = [float(train(rate, seed)[1]) for seed in range(flags.num_seeds)]
    return {"server_rate": rate, "accuracies": accuracies, "mean": float(np.mean(accuracies))}


def compare(problem: Problem) -> dict[str, Any]:
    """Trains with every mechanism at every epsilon, and without noise."""
    flags, results = problem.flags, {}
    no_noise = tuned(flags, problem.trainer(fixed_clip(flags, 0.0), poisson, flags.client_rate))
    for name in flags.mechanisms:
        results[name], (sampler, aggregator) = [], MECHANISMS[name]
        for epsilon in flags.epsilons:
            try:
                noise_multiplier = least_noise(MECHANISMS[name], flags, epsilon)
            except ValueError as error:  # rounding to few bits costs privacy that no noise brings back
                print(f"{name} at {epsilon:g}: {error}", flush=True)
                continue
            train = problem.trainer(aggregator(flags, noise_multiplier), sampler, flags.client_rate)
            found = tuned(flags, train)
            results[name].append({"epsilon": epsilon, "noise_multiplier": noise_multiplier, **found})
            print(f"{name} at {epsilon:g}: {found['mean']:.4f}, rate {found['server_rate']:g}", flush=True)
    print(show(no_noise, results))
    return {"no_noise": no_noise, "results": results}


def sweep(problem: Problem) -> dict[str, Any]:
    """Trains without noise, with every clip and client rate."""
    flags, found = problem.flags, []
    for clip, rate in itertools.product(flags.clips, flags.client_rates):
        aggregator = privacy.dp_mean(clip=clip, noise_multiplier=0.0, expected_clients=flags.cohort)
        found.append({"clip": clip, "client_rate": rate, **tuned(flags, problem.trainer(aggregator, poisson, rate))})
    print(show_sweep(found))
    return {"sweep": found}


def main(flags: argparse.Namespace) -> dict[str, Any]:
    """Compares, draws and reports."""
    started, problem = time.perf_counter(), Problem(flags)
    found = sweep(problem) if flags.sweep else compare(problem)
    if flags.output is not None and is_first() and not flags.sweep:
        draw(flags.output.with_suffix(".png"), flags.delta, found["no_noise"], found["results"])
    settings = {k: v for k, v in vars(flags).items() if k not in ("output", "devices", "mnist")}
    about = {"data": "digits" if flags.mnist is None else "MNIST", **settings, **environment(client_mesh())}
    return finish({**about, "seconds": time.perf_counter() - started, **found}, flags.output)


if __name__ == "__main__":
    parsed = parse_flags()
    start(parsed.devices)
    main(parsed)
