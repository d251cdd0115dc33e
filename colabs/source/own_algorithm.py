# %% [markdown]
# # Write your own algorithm
#
# From federated averaging as a plain Python loop, in 20 lines without fedjx, to your own client update, server update
# and aggregator, each a small pure function that runs with everything else in fedjx. You should know JAX a little:
# `grad` and `tree.map`. A CPU is enough.

# %%
# %pip install -q fedjx
# %matplotlib inline

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fedjx
from fedjx.data import Cohort, digits, uniform_sampler

train, test = digits(num_clients=50, alpha=0.3)  # 8 x 8 images; a client has few of the ten digits
sample = uniform_sampler(train.num_clients, 10, seed=0)
print(train)

# %% [markdown]
# ## The loop
#
# The model is logistic regression. A round: every client starts from the server's parameters, takes a step for each
# of its batches, and the server averages what comes back, by the number of images. Here is all of it.

# %%
first = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}


def loss(params, x, y):
    logits = x.reshape(len(x), 64) / 16 @ params["w"] + params["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


gradient = jax.jit(jax.grad(loss))


def plain_round(params, ids):
    trained, sizes = [], []
    for k in ids:
        local, client = params, train.client(k)
        for start in range(0, len(client["y"]), 10):
            batch = client["x"][start : start + 10], client["y"][start : start + 10]
            local = jax.tree.map(lambda p, g: p - 0.1 * g, local, gradient(local, *batch))
        trained.append(local)
        sizes.append(len(client["y"]))
    return jax.tree.map(lambda *leaves: np.average(leaves, axis=0, weights=sizes), *trained)


def accuracy(params):
    logits = test["x"].reshape(-1, 64) / 16 @ params["w"] + params["b"]
    return float((logits.argmax(-1) == test["y"]).mean())


params = first
for number in range(1, 4):
    params = plain_round(params, sample(number))
    print(f"round {number}: {100 * accuracy(params):.1f} %")
plain = params

# %% [markdown]
# Keep this loop in mind: nothing below does more, in meaning. But it runs one client after the other, one small step
# after the other. And whatever you add to it (clipping, noise, a memory at the clients, several devices) makes it
# longer.
#
# ## The same round, said with operators
#
# What a client does becomes a function of *one* client; what all do together, three operators. fedjx then runs many
# clients at once, in one compiled program. The last batch of a client may be shorter than the others: `mask` says
# which rows of it are real.


# %%
def masked_loss(params, batch):
    logits = batch["x"].reshape(-1, 64) / 16 @ params["w"] + params["b"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return jnp.sum(losses * batch["mask"]) / jnp.sum(batch["mask"])


def local_training(params, batches):
    def step(params, batch):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(masked_loss)(params, batch))

    def count(total, batch):
        return total + batch["mask"].sum()

    return fedjx.sequence_reduce(step, params, batches), fedjx.sequence_reduce(count, jnp.int32(0), batches)


@fedjx.federated_computation
def federated_round(params, data):
    trained, size = fedjx.federated_map(local_training, fedjx.federated_broadcast(params), data)
    return fedjx.federated_mean(trained, size)


params = first
for number in range(1, 4):
    params = federated_round(params, Cohort(train, sample(number), batch_size=10))
difference = max(float(abs(params[name] - plain[name]).max()) for name in first)
print(f"{100 * accuracy(params):.1f} %; the parameters differ from the loop's by {difference:.0e} at most")
assert difference < 1e-5

# %% [markdown]
# ## Your own client update
#
# A real method has more around it: a server optimizer, an aggregator, clients that fail, random keys, metrics. That
# is the same for all methods, and `compose` adds it. What is left for you to write is a `Method`: the first
# parameters, and the client update.
#
# In this one, clients take steps of one length, however steep their loss is. A client reports a `ClientUpdate`:
#
# * `delta`, where it started minus where it is: for the server, a gradient;
# * `weight`, how much it counts;
# * `metrics`, sums of what it has measured.

# %%
from fedjx.models import linear
from fedjx.training import ClientUpdate, Method, compose

model = linear(10, input_shape=(8, 8, 1), scale=1 / 16)  # the same model, with what else fedjx asks of one


def normalized_averaging(model, *, step_length, **run):
    def client_update(params, data, key):
        def step(params, batch):
            gradient, _ = jax.grad(fedjx.models.batch_loss(model), has_aux=True)(params, batch, key)
            scale = step_length / (optax.tree.norm(gradient) + 1e-8)
            return jax.tree.map(lambda p, g: p - scale * g, params, gradient)

        trained = fedjx.sequence_reduce(step, params, data)
        delta = jax.tree.map(jnp.subtract, params, trained)
        return ClientUpdate(delta, weight=jnp.float32(data.length), metrics={})

    return compose(Method(model.init, client_update), **run)


# %% [markdown]
# An algorithm is a pair: `init` makes the server's state, and `next` is a round. `run` repeats it and measures.

# %%
from fedjx.experiment import central_evaluation, run

NUM_ROUNDS = 40
evaluate = {"test": central_evaluation(model, test, batch_size=400)}


def curve(algorithm):
    result = run(
        algorithm,
        train,
        sample,
        batch_size=10,
        num_rounds=NUM_ROUNDS,
        key=jax.random.key(0),
        lanes=5,
        evaluate=evaluate,
        evaluate_every=2,
        progress=False,
    )
    return [row["test/accuracy"] for row in result.rows if "test/accuracy" in row]


curves = {
    "FedAvg": curve(fedjx.fed_avg(model, client_optimizer=optax.sgd(0.1))),
    "own client update": curve(normalized_averaging(model, step_length=0.2)),
}
for name, accuracies in curves.items():
    print(f"{name:<20} {100 * accuracies[-1]:.1f} %")

# %% [markdown]
# ## Your own server update
#
# The server treats the mean of the deltas as a gradient and hands it to an Optax optimizer. FedAvg's is
# `optax.sgd(1.0)`; with momentum it is FedAvgM. An optimizer of your own is a pair of pure functions, too. This one
# remembers how long the mean has been, and makes steps that are shorter the more the last ones disagreed:


# %%
def by_agreement(decay=0.8):
    """Scales a step by how much the last ones agree: the length of their mean over the mean of their lengths."""

    def init(params):
        return optax.tree.zeros_like(params), jnp.float32(0)

    def update(delta, state, params=None):
        mean = jax.tree.map(lambda m, d: decay * m + (1 - decay) * d, state[0], delta)
        length = decay * state[1] + (1 - decay) * optax.tree.norm(delta)
        agreement = optax.tree.norm(mean) / (length + 1e-8)
        return jax.tree.map(lambda d: -agreement * d, delta), (mean, length)

    return optax.GradientTransformation(init, update)


own_server = {"server_optimizer": optax.chain(by_agreement(), optax.scale(2.0))}
curves["own client and server update"] = curve(normalized_averaging(model, step_length=0.2, **own_server))

# %%
figure, axis = plt.subplots(figsize=(6.5, 3.4), dpi=90, layout="constrained")
for name, accuracies in curves.items():
    axis.plot(np.arange(0, NUM_ROUNDS + 1, 2), accuracies, label=name)
axis.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1))
axis.legend(frameon=False)
plt.show()
assert all(accuracies[-1] > 0.75 for accuracies in curves.values())

# %% [markdown]
# ## Your own aggregator
#
# How many values become one is the aggregator's affair: `Aggregator(init, next)`, written with the same operators.
# Its state stays at the server. This one bounds how long a client's delta may be, by the mean length of the round
# before, so that nobody shouts down the others.

# %%
from fedjx import Aggregator


def bounded_by_the_last_round():
    def init(member):
        return jnp.float32(jnp.inf)  # nobody knows yet how long deltas are

    def bounded(value, length, bound):
        factor = jnp.minimum(1.0, bound / (length + 1e-8))
        return jax.tree.map(lambda leaf: factor * leaf, value), jnp.minimum(length, 2 * bound)

    @fedjx.federated_computation
    def next(key, bound, value, weight):
        length = fedjx.federated_map(optax.tree.norm, value)
        value, length = fedjx.federated_map(bounded, value, length, fedjx.federated_broadcast(bound))
        return fedjx.federated_mean(length), fedjx.federated_mean(value, weight), fedjx.federated_zip({"bound": bound})

    return Aggregator(init, next)


# %% [markdown]
# To see what it is for, let one client in ten send noise. Who does what is an argument of any run:

# %%
from fedjx.training import Failures


def shouting(id, update):
    def noise(leaf):
        return jnp.where(id % 10 == 3, jax.random.normal(jax.random.key(id), leaf.shape), leaf)

    return update._replace(delta=jax.tree.map(noise, update.delta))


def with_noise(aggregator):
    options = {"client_optimizer": optax.sgd(0.1), "failures": Failures(forged=shouting)}
    return curve(fedjx.fed_avg(model, aggregator=aggregator, **options))


noisy = {
    "nobody shouts": curves["FedAvg"],
    "mean": with_noise(fedjx.aggregation.mean()),
    "own aggregator": with_noise(bounded_by_the_last_round()),
}

# %%
figure, axis = plt.subplots(figsize=(6.5, 3.4), dpi=90, layout="constrained")
for name, accuracies in noisy.items():
    axis.plot(np.arange(0, NUM_ROUNDS + 1, 2), accuracies, label=name)
axis.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1), title="One client in ten sends noise")
axis.legend(frameon=False)
plt.show()
print({name: round(100 * accuracies[-1], 1) for name, accuracies in noisy.items()})
assert noisy["mean"][-1] < 0.5 < 0.8 < noisy["own aggregator"][-1]

# %% [markdown]
# ## Where it goes from here
#
# Method, server optimizer and aggregator go together with each other and with all that is there already: `own` for a
# memory at the clients, `Failures`, privacy, compression. And when something looks wrong, `debug=True` runs one
# client after the other, uncompiled, so that a debugger shows numbers:

# %%
algorithm = normalized_averaging(model, step_length=0.2)
step = algorithm.next.streamed(debug=True)
state, metrics = step(algorithm.init(jax.random.key(0)), Cohort(train, [3, 4], batch_size=10))
print("rounds done:", state.round)
