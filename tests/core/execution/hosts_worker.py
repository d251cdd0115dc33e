"""What `test_hosts` runs in one process and in two.

``python -m tests.core.execution.hosts_worker RANK PORT STORE OUTPUT``
"""

from __future__ import annotations

import contextlib
import faulthandler
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjx import (
    Clients,
    fed_avg,
    federated_collect,
    federated_computation,
    federated_map,
    federated_sum,
    sequence_reduce,
)
from fedjx.core.execution.engine import PassStream
from fedjx.data import Cohort, Store, uniform_sampler
from fedjx.models import Model
from fedjx.privacy import dp_mean, tree
from tests.algorithms.problems import BATCH_SIZE, NUM_CLASSES, NUM_FEATURES, federated_data

NUM_PROCESSES, DEVICES_PER_PROCESS = 2, 2
SECONDS_TO_LIVE = 220  # whatever becomes of the tests, no process stays behind

SIZES = (1, 3, 5, 7, 8, 12, 2, 6, 4, 9, 30, 2, 5, 1, 7, 3, 40, 2, 9, 6)
ROUNDS = [np.random.default_rng(r).permutation(len(SIZES))[:17] for r in range(3)]


def noisy(key: jax.Array, x: jax.Array) -> jax.Array:
    return x + 0.1 * jax.random.normal(key, x.shape)


def cross_entropy(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    logits = noisy(key, batch["x"]) @ params["w"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


# Small, for compiling it is most of the time; of random loss, for keys must not depend on who has a client.
MODEL = Model(
    init=lambda key: {"w": jax.random.normal(key, (NUM_FEATURES, NUM_CLASSES))},
    loss=cross_entropy,
    metrics=lambda params, batch: {"loss": cross_entropy(params, batch, jax.random.key(0))},
)


def results(store: Path) -> dict[str, Any]:
    """Runs everything on a mesh of all devices; the numbers must not depend on whose the devices are."""
    data = federated_data(SIZES)
    algorithm = fed_avg(MODEL, client_optimizer=optax.sgd(0.1, 0.9), server_optimizer=optax.sgd(1.0, 0.9))
    streamed = algorithm.next.streamed(mesh=mesh())
    found: dict[str, Any] = {}

    def train(name: str, step: Any, cohorts: Any) -> None:
        state = algorithm.init(jax.random.key(0))
        for clients in cohorts:
            state, metrics = step(state, clients)
        found[name] = (state.params, float(metrics["loss"]), int(metrics["num_examples"]))

    def cohorts(cls: type[Cohort] = Cohort, *, of: Any = data, **options: Any) -> list[Cohort]:
        return [cls(of, ids, batch_size=BATCH_SIZE, **options) for ids in ROUNDS]

    train("lanes", streamed, cohorts(Recording, lanes=4))
    found["own/planned"] = sorted(Recording.planned)
    train("streamed pool", streamed, cohorts(placement="streamed", lanes=4))
    train("ahead", streamed, streamed.ahead(cohorts(placement="streamed", lanes=4)))
    train("from disk", streamed, streamed.ahead(cohorts(of=Reading(store), placement="streamed", lanes=4)))
    found["own/read"] = Reading.read_ids
    with disagreement():
        train("auto", streamed, cohorts())
        state, rounds = algorithm.init(jax.random.key(0)), cohorts()
        while not streamed.is_settled:
            state, _ = streamed(state, rounds[0])
        found["settled/lanes"] = [streamed(state, rounds[0]) and streamed.lanes for _ in range(2)]

    def whole(ids):
        return Cohort(data, ids, batch_size=BATCH_SIZE).whole(num_steps=12)

    in_graph = algorithm.next.in_graph(mesh=mesh())
    train("in graph", in_graph, [whole(ids) for ids in ROUNDS])  # 17 clients on four devices
    train("two clients", in_graph, [only_two(whole(ids)) for ids in ROUNDS])
    train("chunks", streamed, [[whole(ids[k : k + 3]) for k in (0, 3, 6)] for ids in ROUNDS])

    found |= at_clients(data)
    found["noise"] = noise()
    other = federated_data(SIZES, seed=jax.process_index())
    train("other data", streamed, cohorts(of=other, lanes=4))
    return found


def only_two(clients: Clients) -> Clients:
    """Leaves one client to each process: whatever the order of two numbers and zeros, their sum is the same."""
    return Clients(clients.value, np.isin(np.arange(len(clients.id)), [0, 12]), clients.id)


@federated_computation
def examined(data, factor):
    total = federated_map(lambda d: sequence_reduce(lambda t, b: t + jnp.sum(b["x"]), 0.0, d), data)
    return federated_sum(total * factor), federated_collect(total), total * factor


def at_clients(data: Any) -> dict[str, Any]:
    """Results that stay at the clients, and what is collected of them."""
    clients, ids = Cohort(data, ROUNDS[0], batch_size=BATCH_SIZE, lanes=1), np.arange(len(SIZES), dtype=np.int32)
    factor = Clients.of(ids.astype(np.float32))
    total, collected, kept = examined.streamed(mesh=mesh())(clients, factor)
    chunks: list[Clients] = []
    examined.streamed(mesh=mesh(), sink=chunks.append)(clients, factor)
    sunk = {k: float(x) for chunk in chunks for k, (x,) in chunk.members().items()}
    whole = Cohort(data, ids, batch_size=BATCH_SIZE).whole()
    inside = examined.in_graph(mesh=mesh())(whole, factor)[2]
    return {
        "sum": total,
        "collected": (np.asarray(collected.elements), np.asarray(collected.length)),
        "own/gathered": {k: float(x) for k, x in kept.members().items()},
        "own/sunk": sunk,
        "own/in graph": {k: float(x) for k, x in inside.members().items()},
    }


def noise() -> list[jax.Array]:
    """What a private mean makes of values that are 0: its noise alone, of three rounds of a tree."""
    private = dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=4, noise=tree(4))
    step, state = private.next.streamed(mesh=mesh(), lanes=1), private.init(jnp.zeros(5))
    value, weight = Clients.of(np.zeros((8, 5), np.float32)), Clients.of(np.ones(8, np.float32))
    results = []
    for number in range(3):
        state, result, _ = step(jax.random.key(number), state, value, weight)
        results.append(result)
    return results


class Recording(Cohort):
    """A cohort that remembers which clients a process has planned for a round."""

    planned: list[int] = []  # noqa: RUF012 - a record of the whole process

    def members(self, ids: np.ndarray, mask: np.ndarray, share: Any) -> Clients:
        clients = super().members(ids, mask, share)
        if share.num_devices > 1:  # not a look at one client, for its type
            Recording.planned += np.where(clients.mask, clients.id, -1).tolist()
        return clients


class Reading(Store):
    """A store that remembers which clients a process has read."""

    read_ids: list[list[int]] = []  # noqa: RUF012 - a record of the whole process

    def read(self, ids: Any, out: Any = None) -> Any:
        if np.size(ids) > 1:  # not a look at one client, for its type
            Reading.read_ids.append(np.asarray(ids).tolist())
        return super().read(ids, out)


@contextlib.contextmanager
def disagreement() -> Iterator[None]:
    """Lets the processes measure different lanes as the fastest: process 0 says 4, others say 1."""
    measure = PassStream.seconds

    def seconds(self: PassStream, server: Any, chunk: Clients, lanes: int) -> float:
        measure(self, server, chunk, lanes)
        fastest = 4 if jax.process_index() == 0 else 1
        return float(chunk.mask.sum()) * (1.0 + abs(lanes - fastest))

    PassStream.seconds = seconds
    try:
        yield
    finally:
        PassStream.seconds = measure


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((NUM_PROCESSES * DEVICES_PER_PROCESS,), ("clients",))


def errors() -> dict[str, str]:
    """What a mesh that is not of all processes is answered."""
    found = {}
    for name, devices in (("own", jax.local_devices()), ("others", jax.devices()[2 * (1 - jax.process_index()) :][:2])):
        alone = jax.sharding.Mesh(np.array(devices), ("clients",))
        for method in (examined.streamed, examined.in_graph):
            try:
                method(mesh=alone)
            except ValueError as error:
                found[f"{name} {method.__name__}"] = str(error)
    return found


# What one process may have otherwise, by a number that is its rank, and how the round is run.
CASES = {
    "sampler": {"sampler": 1},
    "data": {"data": 1},
    "rate": {"rate": 1},
    "key": {"key": 1},
    "in graph": {"key": 1, "how": "in_graph"},
    "scanned": {"rate": 1, "how": "scanned"},
}


def refused() -> dict[str, str]:
    """What processes of which one has something else are answered in the first round."""
    found = {}
    for name, different in CASES.items():
        try:
            one_round(**{k: v * jax.process_index() if v == 1 else v for k, v in different.items()})
        except ValueError as error:
            found[name] = str(error)
    return found


def one_round(*, sampler: int = 0, data: int = 0, rate: int = 0, key: int = 0, how: str = "streamed") -> None:
    """Runs one round, of which a number other than 0 makes another one."""
    algorithm = fed_avg(MODEL, client_optimizer=optax.sgd(0.1 + 1e-6 * rate))
    state = algorithm.init(jax.random.key(key))
    ids = uniform_sampler(len(SIZES), 6, seed=sampler)(1)
    clients = Cohort(federated_data(SIZES, seed=data), ids, batch_size=BATCH_SIZE)
    step = getattr(algorithm.next, how)(mesh=mesh())
    step(state, [clients] if how == "scanned" else clients)


def main(rank: int, port: int, store: str, output: str) -> None:
    faulthandler.dump_traceback_later(SECONDS_TO_LIVE, exit=True)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES_PER_PROCESS)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", NUM_PROCESSES, rank)
    everything = {**results(Path(store)), "own/errors": errors(), "own/refused": refused()}
    Path(output).write_bytes(pickle.dumps(jax.device_get(everything)))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
