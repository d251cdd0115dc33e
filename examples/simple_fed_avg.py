"""Federated averaging in one file, to be copied and edited; README.md beside it says which line is for which idea.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (arXiv 1602.05629,
algorithm 1): what a client does and what the server does, in plain JAX; how that is put together, in federated
operators; and a script that runs round after round, on handwritten digits.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import fedjx

# --- local functions: arrays of one client, or of the server ------------------------------------------


class ServerState(NamedTuple):
    """What the server keeps between rounds."""

    params: Any
    optimizer: Any
    round: Any  # int32 []; how many rounds are done


class ClientUpdate(NamedTuple):
    """What a client sends."""

    delta: Any  # initial minus trained parameters: a gradient, for the server's optimizer
    num_examples: Any  # float32 []
    loss: Any  # float32 []


def init_params(key, sizes=(8 * 8, 32, 10)):
    """Draws the layers of a network: a kernel [before, after] and a bias [after] each."""
    keys = jax.random.split(key, len(sizes) - 1)
    kernels = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, itertools.pairwise(sizes), strict=True)]
    return [(kernel, jnp.zeros(kernel.shape[1])) for kernel in kernels]


def logits(params, x):
    """Computes [B, 10] of images [B, 8, 8, 1]."""
    x = x.reshape(len(x), -1) / 16
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias[None])
    kernel, bias = params[-1]
    return x @ kernel + bias[None]


def loss_fn(params, batch):
    """Averages over the examples of a batch, but for those that are padding."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, batch["x"]), batch["y"])
    return jnp.sum(losses, where=batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1)


def client_update(params, batches, *, optimizer, num_epochs):
    """Trains on the batches of one client: x [S, B, ...], y [S, B], and mask [S, B], False for padding."""

    def step(before, batch):
        trained, state = before
        loss, gradient = jax.value_and_grad(loss_fn)(trained, batch)
        change, state = optimizer.update(gradient, state, trained)
        after = optax.apply_updates(trained, change), state
        is_step = jnp.any(batch["mask"])  # a batch of padding is none, for an optimizer with momentum neither
        return jax.tree.map(lambda a, b: jnp.where(is_step, a, b), after, before), loss * jnp.sum(batch["mask"])

    def epoch(before, _):
        return lax.scan(step, before, batches)

    (trained, _), losses = lax.scan(epoch, (params, optimizer.init(params)), length=num_epochs)
    delta = jax.tree.map(jnp.subtract, params, trained)
    num_examples = jnp.sum(batches["mask"], dtype=jnp.float32)
    return ClientUpdate(delta, num_examples, jnp.sum(losses) / (num_epochs * jnp.maximum(num_examples, 1)))


def server_update(state, delta, *, optimizer):
    """Takes the clients' mean change for a gradient."""
    change, optimizer_state = optimizer.update(delta, state.optimizer, state.params)
    return ServerState(optax.apply_updates(state.params, change), optimizer_state, state.round + 1)


@jax.jit
def evaluate(params, batches):
    """Returns the accuracy on batches like those of `client_update`."""
    predicted = lax.map(lambda batch: jnp.argmax(logits(params, batch["x"]), axis=-1), batches)
    return jnp.mean(predicted == batches["y"], where=batches["mask"])


# --- orchestration: what is where, and what is sent --------------------------------------------------


def batches_of(data):
    """Returns a client's data set as arrays."""
    return data.elements.gather()


def federated_averaging(client_optimizer, server_optimizer, num_epochs):
    """Returns the computation of a round: (state@SERVER, data@CLIENTS) -> (state@SERVER, loss@SERVER)."""
    train = functools.partial(client_update, optimizer=client_optimizer, num_epochs=num_epochs)
    descend = functools.partial(server_update, optimizer=server_optimizer)

    @fedjx.federated_computation
    def next_round(state, data):
        params, batches = fedjx.federated_broadcast(state.params), fedjx.federated_map(batches_of, data)
        update = fedjx.federated_map(train, params, batches)
        delta = fedjx.federated_mean(update.delta, update.num_examples)
        loss = fedjx.federated_mean(update.loss, update.num_examples)
        return fedjx.federated_map(descend, state, delta), loss

    return next_round


# --- driver: whose turn it is ------------------------------------------------------------------------


def main(flags):
    """Trains; returns the server's last state."""
    train, test = fedjx.data.digits(flags.num_clients, seed=flags.seed)
    test_batches = batches_of(fedjx.data.central(test, batch_size=flags.test_batch_size))
    client_optimizer = optax.sgd(flags.client_rate)
    server_optimizer = optax.sgd(flags.server_rate)
    next_round = federated_averaging(client_optimizer, server_optimizer, flags.num_epochs)
    sample = fedjx.data.uniform_sampler(train.num_clients, flags.clients_per_round, seed=flags.seed)
    params = init_params(jax.random.key(flags.seed))
    state = ServerState(params, server_optimizer.init(params), jnp.int32(0))
    for number in range(1, flags.num_rounds + 1):
        clients = fedjx.data.Cohort(train, sample(number), batch_size=flags.batch_size)
        state, loss = next_round(state, clients)
        if number % flags.eval_every == 0 or number == flags.num_rounds:
            accuracy = evaluate(state.params, test_batches)
            print(f"round {number}: loss {loss:.3f}, test accuracy {accuracy:.3f}")
    return state


def parse_flags(args=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num-clients", type=int, default=50, help="clients that share the training images")
    parser.add_argument("--num-rounds", type=int, default=256, help="rounds of training")
    parser.add_argument("--clients-per-round", type=int, default=2, help="size of the cohort")
    parser.add_argument("--num-epochs", type=int, default=1, help="local epochs")
    parser.add_argument("--batch-size", type=int, default=16, help="images in a local batch")
    parser.add_argument("--test-batch-size", type=int, default=128, help="images in a batch of the test")
    parser.add_argument("--client-rate", type=float, default=0.1, help="learning rate of the clients")
    parser.add_argument("--server-rate", type=float, default=1.0, help="learning rate of the server")
    parser.add_argument("--eval-every", type=int, default=32, help="rounds between evaluations")
    parser.add_argument("--seed", type=int, default=0, help="of the partition, the cohorts and the model")
    return parser.parse_args(args)


if __name__ == "__main__":
    main(parse_flags())
