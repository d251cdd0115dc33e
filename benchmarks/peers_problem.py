"""What `benchmarks.peers` lets the engines train: networks, and clients with made-up data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import workloads
from benchmarks.networks import NETWORKS
from benchmarks.peers_workers import flax_net
from benchmarks.peers_workers.protocol import Problem, Weights
from benchmarks.workloads import constant_sizes, emnist_sizes

# Clients for checks of the parameters, in batches: with whole ones only, and with a short last one, of which engines
# make different things. They are small, because a unit whose activation is within a rounding error of 0 is on in one
# engine and off in another, and training on multiplies what comes of it.
WHOLE_BATCHES, SHORT_BATCHES = (2, 1, 3), (1.25, 0.5, 2.25)


class Workload(NamedTuple):
    """A network and its clients' data.

    Attributes:
      net: As in `Problem`.
      examples: ``(rng, N) -> (x, y)``, as in `Problem`.
      sizes: ``(rng, clients) -> int64 [clients]``, how many examples each client has.
      batch_size: Examples in a local step.
      rate: The clients' learning rate.
      pool_size: Clients to sample from.
      cohort_size: The number of clients in a round if none is given.
    """

    net: dict[str, Any]
    examples: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    sizes: Callable[[np.random.Generator, int], np.ndarray] = emnist_sizes
    batch_size: int = 20
    rate: float = 0.05
    pool_size: int = 300
    cohort_size: int = 10


# --- plain networks, which every engine builds of its own layers ---------------------------------


def _plain(
    shape: list[int], classes: int, *, convs: tuple[int, ...] = (), hidden: tuple[int, ...] = (), **more: Any
) -> Workload:
    rates = [0.25, 0.5] if convs else [0.0, 0.0]
    net = {"shape": shape, "convs": list(convs), "hidden": list(hidden), "dropout": rates, "classes": classes}
    return Workload(net, functools.partial(sparse_images, shape, classes), **more)


def sparse_images(shape: list[int], classes: int, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws images and labels."""
    x = rng.random((size, *shape), dtype=np.float32)
    x *= 4 * (x < 0.25)  # Mostly background, as handwriting is.
    return x, rng.integers(classes, size=size, dtype=np.int32)


def plain_weights(net: dict[str, Any], rng: np.random.Generator) -> Weights:
    """Draws Glorot-uniform kernels, and biases 0."""
    weights: Weights = {}
    height, width, depth = net["shape"]
    for i, out in enumerate([*net["convs"], *net["hidden"], net["classes"]]):
        if i < len(net["convs"]):
            shape, fans, depth = (3, 3, depth, out), 9 * (depth + out), out
            height, width = height - 2, width - 2
        else:
            if i == len(net["convs"]):
                pooled = 2 if net["convs"] else 1
                depth *= (height // pooled) * (width // pooled)
            shape, fans, depth = (depth, out), depth + out, out
        limit = np.sqrt(6 / fans)
        weights[f"w{i}"] = rng.uniform(-limit, limit, shape).astype(np.float32)
        weights[f"b{i}"] = np.zeros(out, np.float32)
    return weights


# --- networks by name ---------------------------------------------------------------------------


def _named(name: str) -> Workload:
    """Makes what other engines train of a workload of `benchmarks.workloads`."""
    ours, dropout = workloads.WORKLOADS[name](), [0.1 if name == "transformer" else 0.0]
    examples = functools.partial(inputs_and_labels, ours.examples, name == "autoencoder")
    return Workload(
        {"name": name, "dropout": dropout},
        examples,
        ours.sizes,
        ours.batch_size,
        pool_size=ours.num_clients,
        cohort_size=ours.cohort_size,
    )


def inputs_and_labels(
    draw: Callable[[np.random.Generator, int], dict[str, np.ndarray]],
    reconstructs: bool,
    rng: np.random.Generator,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws what a network takes, and what it should give: tokens are both, one place apart."""
    drawn = draw(rng, size)
    if "tokens" in drawn:
        tokens = drawn["tokens"].astype(np.int32)
        return tokens[:, :-1], tokens[:, 1:]
    x = drawn["x"].astype(np.float32) / 255
    flattened = x.reshape(size, -1)
    return (flattened, flattened) if reconstructs else (x, drawn["y"])


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "emnist_cnn": lambda: _plain([28, 28, 1], 62, convs=(32, 64), hidden=(128,)),
    "emnist_dense": lambda: _plain([28, 28, 1], 62, hidden=(200, 200)),
    "logistic": lambda: _plain([28, 28, 1], 62),
    # The speed benchmark of pfl-research, with its cohorts, sizes and rate.
    "cifar10_cnn": lambda: _plain(
        [32, 32, 3],
        10,
        convs=(32, 64),
        hidden=(128,),
        sizes=functools.partial(constant_sizes, 50),
        batch_size=10,
        rate=0.1,
        cohort_size=50,
    ),
    # Of no interest but for the tests.
    "tiny_cnn": lambda: _plain(
        [8, 8, 1],
        3,
        convs=(2, 3),
        hidden=(4,),
        sizes=functools.partial(constant_sizes, 12),
        batch_size=8,
        pool_size=8,
    ),
    **{name: functools.partial(_named, name) for name in NETWORKS},
}


# --- the problem --------------------------------------------------------------------------------


def problem_of(workload: Workload, num_clients: int, num_rounds: int, *, num_cores: int) -> tuple[Problem, list]:
    """Draws data, weights and cohorts; returns also the cohorts for the checks of the parameters."""
    rng = np.random.default_rng(0)
    sizes = workload.sizes(rng, workload.pool_size)
    checked = np.ceil(workload.batch_size * np.array([*WHOLE_BATCHES, *SHORT_BATCHES])).astype(int)
    offsets = np.cumsum([0, *sizes, *checked])
    x, y = workload.examples(rng, int(offsets[-1]))
    cohorts = [
        *warm_up_cohorts(sizes, num_clients, rng),
        *(rng.choice(len(sizes), num_clients, replace=False).tolist() for _ in range(num_rounds)),
    ]
    weights = initial_weights(workload.net, rng)
    problem = Problem(x, y, offsets, weights, workload.net, cohorts, workload.batch_size, workload.rate, num_cores)
    ids = list(range(len(sizes), len(offsets) - 1))
    return problem, [ids[: len(WHOLE_BATCHES)], ids[len(WHOLE_BATCHES) :]]


def initial_weights(net: dict[str, Any], rng: np.random.Generator) -> Weights:
    """Draws the parameters with which every engine starts."""
    return flax_net.initial_weights(net) if "name" in net else plain_weights(net, rng)


def warm_up_cohorts(sizes: np.ndarray, num_clients: int, rng: np.random.Generator) -> list[list[int]]:
    """Draws cohorts of clients of all sizes, so that who compiles for several shapes does it before it is timed."""
    order = np.argsort(sizes, kind="stable")
    by_rank = np.linspace(0, len(sizes) - 1, num_clients).astype(int)
    by_size = np.unique(np.searchsorted(sizes[order], np.linspace(sizes.min(), sizes.max(), num_clients)))
    others = rng.permutation(np.setdiff1d(np.arange(len(sizes)), by_size))[: num_clients - len(by_size)]
    return [order[ranks].tolist() for ranks in (by_rank, np.concatenate([by_size, others]))]
