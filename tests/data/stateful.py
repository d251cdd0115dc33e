"""A stateful algorithm over a store, with its states on disk and in checkpoints, for the tests of client states."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fedjx import federated_broadcast, federated_computation, federated_map, federated_mean, sequence_reduce
from fedjx.data import Cohort, Store, StoreWriter, uniform_sampler
from fedjx.data.client_states import ClientStates, StateCohort
from tests.data.states import NUM_CLIENTS, opened


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


ZERO = Server(jnp.zeros(3), jnp.int32(0))


def write(path):
    with StoreWriter(path) as writer:
        for k in range(NUM_CLIENTS):
            random = np.random.default_rng(k)
            writer.add(k, {"x": random.normal(size=(1 + k % 7, 3)).astype(np.float32) + k})


def rounds(store, states, server, num_rounds, on_chunk=lambda round: None):
    """Trains up to a round, with states on disk or in memory, and yields the server's after every round."""

    def sink(chunk):
        on_chunk(round)
        ClientStates.sink(states, chunk)

    step = next_round.streamed(sink=sink)
    sample = uniform_sampler(store.num_clients, 12, seed=3)
    for round in range(int(server.round) + 1, num_rounds + 1):
        ids = sample(round)
        server, _ = step(server, Cohort(store, ids, batch_size=2, lanes=1), StateCohort(states, ids))
        states.commit(round)
        yield server


def train(path, num_rounds, on_chunk=lambda round: None):
    """Trains up to a round, from the last checkpoint on, as a user's program does."""
    with ocp.CheckpointManager(
        path / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)
    ) as checkpoints:
        states, server, last = opened(path / "states"), ZERO, checkpoints.latest_step()
        if last is None:
            states.rollback(0)
        else:
            wanted = ocp.args.Composite(state=ocp.args.StandardRestore(ZERO), run=ocp.args.JsonRestore())
            saved = checkpoints.restore(last, args=wanted)
            server = saved["state"]
            states.rollback(last, fingerprint=saved["run"]["client_states"])
        started = states.round
        after = rounds(Store(path / "store"), states, server, num_rounds, on_chunk)
        for server in after:
            if states.round % 2 == 0:
                about = {"client_states": states.fingerprint}
                arguments = ocp.args.Composite(state=ocp.args.StandardSave(server), run=ocp.args.JsonSave(about))
                checkpoints.save(states.round, args=arguments)
                checkpoints.wait_until_finished()
                states.pin(min(checkpoints.all_steps()))
        return started, jax.tree.map(np.asarray, server), states
