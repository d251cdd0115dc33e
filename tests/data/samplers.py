"""Every sampler by name, as functions of the seed, for the tests of what holds for all of them."""

import json

import numpy as np

from fedjx.data import FederatedData, uniform_sampler
from fedjx.data.columns import OnDisk
from fedjx.data.sampling import poisson_sampler
from fedjx.data.sampling_reports import over_select
from fedjx.data.sampling_schedules import (
    Diurnal,
    availability_sampler,
    cyclic_poisson_sampler,
    cyclic_sampler,
    fixed_sampler,
)
from fedjx.data.sampling_weighted import size_weighted_sampler, weighted_sampler

N, C = 1000, 20


class Sizes:
    """The part of a store that samplers read: offsets that are nowhere in memory, of clients of 1, 2, 3, 1, ..."""

    def __init__(self, num_clients):
        self.num_clients, self.largest = num_clients, 3
        self.offsets = OnDisk(num_clients + 1, lambda rows: 2 * np.asarray(rows) - (np.asarray(rows) % 3 > 0))
        self.num_examples = int(self.offsets[num_clients])
        self.ids, self.sizes = (
            OnDisk(num_clients, np.asarray),
            OnDisk(num_clients, lambda rows: 1 + np.asarray(rows) % 3),
        )


def _in_memory(num_clients):
    offsets = np.asarray(Sizes(num_clients).offsets)
    return FederatedData({"x": np.zeros(offsets[-1], np.int8)}, offsets)


def half(round, ids):
    """Everybody is available in every second round."""
    return np.full(len(ids), 0.5)


def drawn(seed, n=N, c=C):
    """Samplers that need nothing of the size of the population, by name."""
    return {
        "uniform": uniform_sampler(n, c, seed=seed),
        "replacement": uniform_sampler(n, c, seed=seed, replacement=True),
        "poisson": poisson_sampler(n, probability=c / n, seed=seed),
        "poisson, truncated": poisson_sampler(n, probability=c / n, max_cohort_size=c, seed=seed),
        "cyclic poisson": cyclic_poisson_sampler(n, probability=0.5, num_groups=max(n // (2 * c), 1), seed=seed),
        "cyclic": cyclic_sampler(n, c, seed=seed),
        "separated": cyclic_sampler(n, c, seed=seed, min_separation=n // c // 2),
        "shuffled": cyclic_sampler(n, c, seed=seed, min_separation=1),
        "availability": availability_sampler(n, c, half, seed=seed),
        "diurnal": availability_sampler(n, c, Diurnal(period=24, least=0.1, most=0.9, seed=1), seed=seed),
        "over_select": over_select(uniform_sampler(n, c + c // 3, seed=seed), c, seed=seed)[0],
    } | (
        {}
        if n > 10**7
        else {  # An index of 2^31 clients takes seconds.
            "size": size_weighted_sampler(Sizes(n), c, seed=seed),
            "size, replacement": size_weighted_sampler(Sizes(n), c, seed=seed, replacement=True),
        }
    )


def samplers(seed, n=N, c=C):
    """All samplers by name."""
    weights = 1 / np.arange(1, n + 1)
    return drawn(seed, n, c) | {
        "poisson, unequal": poisson_sampler(n, probability=np.linspace(0, 2 * c / n, n), seed=seed),
        "weighted": weighted_sampler(weights, c, seed=seed),
        "weighted, replacement": weighted_sampler(weights, c, seed=seed, replacement=True),
        "size in memory": size_weighted_sampler(_in_memory(n), c, seed=seed),
        "fixed": fixed_sampler(n, np.arange(n).reshape(-1, c)),
    }


def cohorts(seed, rounds, n=N, c=C):
    """The cohorts of some rounds by the sampler's name."""
    return {name: [sample(round).tolist() for round in rounds] for name, sample in samplers(seed, n, c).items()}


if __name__ == "__main__":
    print(json.dumps(cohorts(3, [7, 0, 2**40])))
