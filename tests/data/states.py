"""Client states in memory, a run of random operations on them, and a stateful algorithm, for the tests of states."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx import federated_broadcast, federated_computation, federated_map, federated_mean, sequence_reduce
from fedjx.data import Cohort, Store, uniform_sampler
from fedjx.data.client_states import ClientStates, StateCohort

NUM_CLIENTS = 30
INITIAL = {"control": np.arange(3, dtype=np.float32), "visits": np.int32(0)}


class InMemory:
    """The same as `ClientStates` in dicts, one for each round."""

    def __init__(self, num_clients=NUM_CLIENTS):
        self.num_clients, self.rounds, self.pending = num_clients, {0: {}}, {}

    @property
    def round(self):
        return max(self.rounds)

    def copy(self):
        other = InMemory(self.num_clients)
        other.rounds, other.pending = dict(self.rounds), dict(self.pending)
        return other

    def take(self, ids):
        states = [self.rounds[self.round].get(int(k), INITIAL) for k in ids]
        return {name: np.stack([state[name] for state in states]) for name in INITIAL}

    def put(self, ids, states):
        for row, k in enumerate(ids):
            self.pending[int(k)] = {name: np.array(x[row]) for name, x in states.items()}

    def discard(self):
        self.pending = {}

    def commit(self, round):
        self.rounds[round], self.pending = self.rounds[self.round] | self.pending, {}

    def rollback(self, round):
        self.rounds = {k: states for k, states in self.rounds.items() if k <= round}
        self.pending = {}

    def pin(self, round):
        self.rounds = {k: states for k, states in self.rounds.items() if k >= round}


def operate(states, step):
    """Does the operation of this number, which depends on it and on the states alone."""
    random = np.random.default_rng(step)
    if step % 5 == 4:
        states.pin(sorted(states.rounds)[-3:][0])
    elif step % 7 == 6:
        states.rollback(sorted(states.rounds)[-2:][0])
    else:
        for ids in np.array_split(random.permutation(states.num_clients)[: random.integers(0, 13)], 3):
            if len(ids):
                before = states.take(ids)
                noise = random.normal(size=(len(ids), 3)).astype(np.float32)
                states.put(ids, {"control": before["control"] + noise, "visits": before["visits"] + np.int32(1)})
        states.commit(states.round + 1 + int(random.integers(2)))


def contents(states):
    """Returns all that can be seen of states, to compare."""
    taken = states.take(np.arange(states.num_clients))
    return states.round, sorted(states.rounds), {name: x.tobytes() for name, x in taken.items()}


def assert_same(states, expected):
    """Compares states with those in memory: all clients, now and in the rounds that can be returned to."""
    assert contents(states) == contents(expected)
    for round in sorted(expected.rounds, reverse=True):
        states.rollback(round)
        earlier = InMemory(expected.num_clients)
        earlier.rounds = {round: expected.rounds[round]}
        assert contents(states)[::2] == contents(earlier)[::2], round


# --- a stateful algorithm -----------------------------------------------------------------------------


class Server(NamedTuple):
    params: Any
    round: Any


class Update(NamedTuple):
    delta: Any
    state: Any


def _client(params, data, own):
    """Takes a step to the mean of the data, corrected by a control variate that the client keeps."""

    def add(sums, batch):
        mask = batch["mask"].astype(jnp.float32)
        return sums[0] + batch["x"].T @ mask, sums[1] + mask.sum()

    total, number = sequence_reduce(add, (jnp.zeros(3), jnp.zeros(())), data)
    gradient = params - total / number
    control = own["control"] + 0.5 * (gradient - own["control"])
    return Update(0.3 * (gradient - 0.1 * own["control"]), {"control": control, "visits": own["visits"] + 1})


@federated_computation
def next_round(server, data, states):
    update = federated_map(_client, federated_broadcast(server.params), data, states)
    after = federated_map(
        lambda server, delta: Server(server.params - delta, server.round + 1), server, federated_mean(update.delta)
    )
    return after, update.state


def train(store: Store, states, *, num_rounds: int, server=None, on_round=lambda server: None, on_chunk=lambda: None):
    """Trains up to a round, with states on disk or in memory."""

    def sink(chunk):
        on_chunk()
        ClientStates.sink(states, chunk)

    step = next_round.streamed(sink=sink)
    server = server or Server(jnp.zeros(3), jnp.int32(0))
    sample = uniform_sampler(store.num_clients, 12, seed=3)
    for round in range(int(server.round) + 1, num_rounds + 1):
        ids = sample(round)
        server, _ = step(server, Cohort(store, ids, batch_size=2, lanes=1), StateCohort(states, ids))
        states.commit(round)
        on_round(server)
    return jax.tree.map(np.asarray, server)


def opened(path: Path, **options) -> ClientStates:
    return ClientStates(path, INITIAL, num_clients=NUM_CLIENTS, **options)
