"""Every partitioner under the laws of `test_partition_laws.py`."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjx.data.partitions.dirichlet import dirichlet_partition, iid_partition
from fedjx.data.partitions.keys import (
    continuous_partition,
    natural_grouped_partition,
    natural_partition,
    sort_partition,
    train_test_partition,
)
from fedjx.data.partitions.labels import (
    distribution_partition,
    pathological_partition,
    rotating_weights,
    shards_partition,
)
from fedjx.data.partitions.pachinko import dirichlet_by_client_partition, pachinko_partition
from fedjx.data.partitions.sizes import (
    dirichlet_sizes,
    exponential_sizes,
    linear_sizes,
    lognormal_sizes,
    power_law_sizes,
    size_partition,
    square_sizes,
    zipf_sizes,
)

N = 1003
RANDOM = np.random.default_rng(5)
FINE = RANDOM.integers(0, 12, N)
COARSE = np.array([0, 1, 2, 0, 1, 2, 2, 2, 0, 1, 1, 1])[FINE]
KEYS = np.array([f"user {k}" for k in RANDOM.zipf(1.5, N) % 37])
VALUES = RANDOM.normal(size=N)
TABLE = RANDOM.lognormal(size=(12, 4))


class Case(NamedTuple):
    """A partitioner, as a function of the seed. New partitioners are one line in `CASES`."""

    name: str
    partition: Callable[[int], list[np.ndarray]]
    min_examples: int = 1
    is_covering: bool = True
    is_random: bool = True


def sizes_case(name: str, sizes_fn: Callable[..., np.ndarray], **options: float) -> Case:
    return Case(
        name, lambda seed: size_partition(N, sizes_fn(N, 20, seed=seed, min_examples=7, **options), seed=seed), 7
    )


CASES = [
    Case("iid", lambda seed: iid_partition(N, 20, seed=seed), 50),
    Case("dirichlet", lambda seed: dirichlet_partition(FINE, 20, alpha=0.3, seed=seed, min_examples=5), 5),
    Case("dirichlet_balanced", lambda seed: dirichlet_partition(FINE, 9, alpha=0.3, seed=seed, self_balancing=True)),
    Case("by_client", lambda seed: dirichlet_by_client_partition(FINE, 20, alpha=0.5, seed=seed), 50),
    Case(
        "by_client_in_turns",
        lambda seed: dirichlet_by_client_partition(
            FINE, 20, alpha=0.5, seed=seed, concentration="per_class", turns="example"
        ),
        50,
    ),
    Case(
        "by_client_of_sizes",
        lambda seed: dirichlet_by_client_partition(FINE, linear_sizes(N, 20), alpha=1.0, seed=seed, prior=range(1, 13)),
        4,
    ),
    Case("by_client_of_some", lambda seed: dirichlet_by_client_partition(FINE, [9] * 9, alpha=1, seed=seed), 9, False),
    Case("pachinko", lambda seed: pachinko_partition(COARSE, FINE, 20, seed=seed), 50),
    *(
        Case(
            f"pathological_{how}",
            lambda seed, how=how: pathological_partition(FINE, 20, classes_per_client=3, seed=seed, assignment=how),
        )
        for how in ("random", "first-deterministic", "deterministic")
    ),
    Case("shards", lambda seed: shards_partition(FINE, 20, seed=seed), 50, False),
    Case(
        "shards_of_all",
        lambda seed: shards_partition(FINE, 7, seed=seed, shards_per_client=None, shard_size=30, keep_incomplete=True),
        103,
    ),
    Case(
        "distribution",
        lambda seed: distribution_partition(FINE, rotating_weights(TABLE, 24, classes_per_client=2), seed=seed),
    ),
    Case("given_counts", lambda seed: distribution_partition(FINE, np.eye(12), seed=seed, rescale=False), 1, False),
    Case("linear", lambda seed: size_partition(N, linear_sizes(N, 20), seed=seed), 4),
    Case("square", lambda seed: size_partition(N, square_sizes(N, 10), seed=seed), 2),
    Case("exponential", lambda seed: size_partition(N, exponential_sizes(N, 7), seed=seed)),
    sizes_case("lognormal", lognormal_sizes, sigma=2.0),
    sizes_case("dirichlet_sizes", dirichlet_sizes, alpha=0.2),
    sizes_case("power_law", power_law_sizes, exponent=1.2),
    sizes_case("zipf", zipf_sizes),
    Case("natural", lambda seed: natural_partition(KEYS), is_random=False),
    Case("grouped", lambda seed: natural_grouped_partition(KEYS, 5, seed=seed)),
    Case("grouped_in_order", lambda seed: natural_grouped_partition(KEYS, 5), is_random=False),
    Case("grouped_bigger", lambda seed: natural_grouped_partition(KEYS, 5, remainder="bigger", seed=seed)),
    Case("grouped_drop", lambda seed: natural_grouped_partition(KEYS, 5, remainder="drop", seed=seed), 1, False),
    Case("sort", lambda seed: sort_partition(VALUES, 20), 50, is_random=False),
    Case("continuous", lambda seed: continuous_partition(VALUES, 20, strictness=0.5, seed=seed), 50),
    Case("train_test", lambda seed: _joined(train_test_partition(PARTS, train_fraction=0.7, seed=seed))),
]
PARTS = iid_partition(N, 20, seed=0)


def _joined(lists: tuple[list[np.ndarray], list[np.ndarray]]) -> list[np.ndarray]:
    return [*lists[0], *lists[1]]


def quietly(case: Case, seed: int) -> list[np.ndarray]:
    """Partitions; only what is not covering may warn."""
    with warnings.catch_warnings():
        if not case.is_covering:
            warnings.simplefilter("ignore", UserWarning)
        return case.partition(seed)


def digests(seed: int) -> list[str]:
    return [
        f"{case.name} {hashlib.sha256(repr([rows.tolist() for rows in quietly(case, seed)]).encode()).hexdigest()}"
        for case in CASES
    ]


if __name__ == "__main__":
    print("\n".join(digests(int(sys.argv[1]))))
