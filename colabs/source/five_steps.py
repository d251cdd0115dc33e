# %% [markdown]
# # Federated learning in five steps
#
# What federated learning is, from the beginning: why it exists, its five steps as five pieces of code, and what
# becomes of the questions that come up as soon as it works. All on made-up data of 1,000 phones, of which 25 take
# part in a round. A CPU is enough.

# %%
# %pip install -q "fedjx[privacy]"
# %matplotlib inline

# %% [markdown]
# ## Learning where the data are
#
# Usually, all examples are copied to one place and a model is trained there. Often that is not possible:
#
# * *the law*: medical or financial records may not leave a hospital, a bank or a country;
# * *people*: who types on a phone does not expect to find it on somebody's server;
# * *amounts*: a fleet of cameras records more than anybody can send or store.
#
# Federated learning turns it round: **the model travels to the data, and the data stay where they are.**
#
# Here is a case. Three networks cover a city. A phone notes which one was the strongest where it has been. A map of
# that for the whole city would serve everybody, but where a phone has been is nobody's business.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import fedjx

rng = np.random.default_rng(3)
MASTS = rng.uniform(-1, 1, (10, 2))
OWNER = np.arange(10) % 3


def strongest(x):
    """Returns the network, 0, 1 or 2, of the nearest mast, at each place [n, 2]."""
    return OWNER[np.linalg.norm(x[:, None] - MASTS, axis=-1).argmin(-1)].astype(np.int32)


def phone():
    home = rng.uniform(-0.9, 0.9, 2)
    places = rng.normal(home, 0.1, (rng.integers(5, 60), 2)).astype(np.float32)
    return {"x": places, "y": strongest(places)}


phones = fedjx.data.FederatedData.from_clients([phone() for _ in range(1000)])
everywhere = rng.uniform(-1, 1, (2000, 2)).astype(np.float32)
test = {"x": everywhere, "y": strongest(everywhere)}  # for us: nobody else has such data
print(phones)

# %%
GRID = np.stack(np.meshgrid(np.linspace(-1, 1, 80), np.linspace(-1, 1, 80)), -1).reshape(-1, 2).astype(np.float32)
COLOURS = np.array([[0.16, 0.44, 0.67], [0.93, 0.62, 0.18], [0.29, 0.60, 0.38]])


def draw_map(axis, networks, title):
    colours = 1 - 0.55 * (1 - COLOURS[np.asarray(networks)])
    axis.imshow(colours.reshape(80, 80, 3), origin="lower", extent=(-1, 1, -1, 1))
    axis.set(xticks=[], yticks=[], xlim=(-1, 1), ylim=(-1, 1))
    axis.set_title(title, fontsize=10)


figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), dpi=90, layout="constrained")
draw_map(axes[0], strongest(GRID), "The city, which nobody sees")
draw_map(axes[1], strongest(GRID), "Where four phones have been")
for k, marker in enumerate("osv^"):
    axes[1].plot(*phones.client(k)["x"].T, marker, ms=3, color="0.15")
axes[2].hist(phones.sizes, np.arange(5, 65, 5), color="0.6")
axes[2].set(xlabel="notes on a phone", ylabel="phones")
axes[2].set_title("How much they have", fontsize=10)
plt.show()

# %% [markdown]
# ## Step 0: a model
#
# The server makes up the first model, at random. It could also load one that was trained before.

# %%
model = fedjx.models.mlp(3, input_shape=(2,), hidden=(64, 64))
params = model.init(jax.random.key(0))
num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
print(f"{num_parameters:,} parameters")

# %% [markdown]
# ## Step 1: send it to some clients
#
# To some, not to all. Most phones are off or in use at any moment, and the more clients there are in a round, the
# less each further one helps. A sampler says who takes part in which round.

# %%
sample = fedjx.data.uniform_sampler(1000, 25, seed=0)
print(sample(1))

# %% [markdown]
# ## Step 2: each of them trains
#
# With its own data, from the model that it was sent, and for a short while: once or a few times through what it has.
# The function knows of one phone and is ordinary JAX. `batches` is a sequence of the phone's examples in batches.
#
# ## Step 3: each sends back what has changed
#
# That is the function's result: the trained parameters, and the number of examples behind them.


# %%
def train_here(params, batches):
    def step(params, batch):
        gradient, _ = jax.grad(fedjx.models.batch_loss(model), has_aux=True)(params, batch, None)
        return jax.tree.map(lambda w, g: w - 0.4 * g, params, gradient)

    def count(total, batch):
        return total + batch["mask"].sum()

    return fedjx.sequence_reduce(step, params, batches), fedjx.sequence_reduce(count, jnp.int32(0), batches)


# %% [markdown]
# ## Step 4: the server makes one model of many
#
# 25 models come back, each a little different. *Federated averaging* (McMahan et al., 2016) takes their mean, in
# which a phone with twice as many examples counts twice, so that each *example* has the same say.
#
# Now the round can be written down. Each line is a step:


# %%
@fedjx.federated_computation
def one_round(params, data):
    received = fedjx.federated_broadcast(params)  # step 1
    trained, num_examples = fedjx.federated_map(train_here, received, data)  # steps 2 and 3
    return fedjx.federated_mean(trained, num_examples)  # step 4


phones_of_a_round = fedjx.data.Cohort(phones, sample(1), batch_size=10)
for message in one_round.communication(params, phones_of_a_round):
    print(f"{message.direction:>4}: {message.bits:,} bits for a phone")

# %% [markdown]
# What goes up is what comes down and one number more. Nothing else is sent: that is what the computation's type says.
#
# ## Step 5: repeat
#
# After one round the model has seen 25 phones, for a moment. So again, with others, until it is good.

# %%
tested = fedjx.data.central(test, batch_size=500)
evaluate = jax.jit(lambda params: fedjx.training.local_evaluate(model, params, tested))
predict = jax.jit(lambda params: model.apply(params, {"x": GRID}).argmax(-1))


def accuracy_of(params):
    return float(fedjx.models.finalize_metrics(evaluate(params))["accuracy"])


NUM_ROUNDS = 100
maps, accuracy = {0: predict(params)}, [accuracy_of(params)]
for number in range(1, NUM_ROUNDS + 1):
    params = one_round(params, fedjx.data.Cohort(phones, sample(number), batch_size=10, lanes=8))
    accuracy.append(accuracy_of(params))
    if number in (5, 25, NUM_ROUNDS):
        maps[number] = predict(params)
print(f"{100 * accuracy[-1]:.1f} % of the city is right")
assert accuracy[-1] > 0.85

# %% [markdown]
# And what would one phone have learnt by itself, in as many rounds? The same computation says it, with a cohort of
# one.

# %%
alone = model.init(jax.random.key(0))
for _ in range(NUM_ROUNDS):
    alone = one_round(alone, fedjx.data.Cohort(phones, [0], batch_size=10, lanes=8))
print(f"{100 * accuracy_of(alone):.1f} % of the city is right")
assert accuracy_of(alone) < accuracy[-1] - 0.2

# %%
figure, axes = plt.subplots(2, 3, figsize=(9, 6), dpi=90, layout="constrained")
draw_map(axes[0, 0], strongest(GRID), "The city")
draw_map(axes[0, 1], predict(alone), "One phone alone")
axes[0, 1].plot(*phones.client(0)["x"].T, ".", ms=3, color="0.15")
for axis, number in zip((axes[0, 2], *axes[1, :2]), (5, 25, NUM_ROUNDS), strict=True):
    draw_map(axis, maps[number], f"25 of 1,000 phones, {number} rounds")
axes[1, 2].plot(accuracy, color="0.2")
axes[1, 2].set(xlabel="round", ylim=(0.3, 1))
axes[1, 2].set_title("How much of the city is right", fontsize=10)
plt.show()

# %% [markdown]
# # What comes next
#
# Five steps are enough to begin with. Each raises a question, and in fedjx each answer is an argument.
# `fedjx.fed_avg` is the round above with an optimizer of your choice on either side, and `fedjx.experiment.run` is
# the loop.

# %%
from fedjx.experiment import central_evaluation, run

in_the_city = central_evaluation(model, test, batch_size=500)


def train(sample, num_rounds=40, **options):
    algorithm = fedjx.fed_avg(model, client_optimizer=optax.sgd(0.4), **options)
    settings = {"batch_size": 10, "key": jax.random.key(0), "lanes": 8, "progress": False}
    return run(
        algorithm,
        phones,
        sample,
        num_rounds=num_rounds,
        evaluate={"city": in_the_city},
        evaluate_every=5,
        **settings,
    )


# %% [markdown]
# ## Which clients, and how many?

# %%
sizes = (5, 25, 100)
runs = {size: train(fedjx.data.uniform_sampler(1000, size, seed=0)) for size in sizes}

# %%
figure, axis = plt.subplots(figsize=(6, 3.2), dpi=90, layout="constrained")
for size, done in runs.items():
    rows = [row for row in done.rows if "city/accuracy" in row]
    axis.plot([row["round"] for row in rows], [row["city/accuracy"] for row in rows], label=f"{size} phones a round")
axis.set(xlabel="round", title="How much of the city is right")
axis.legend(frameon=False)
plt.show()
final = {size: done.rows[-1]["city/accuracy"] for size, done in runs.items()}
assert final[25] - final[5] > final[100] - final[25]

# %% [markdown]
# From 5 to 25 phones helps; from 25 to 100 costs four times as much and hardly shows. Other samplers of `fedjx.data`
# choose by amount of data, by loss, or by who is awake.
#
# ## Which aggregation?
#
# A mean trusts everybody. Let every tenth phone send ten times the opposite of what it has learnt:

# %%
from fedjx.aggregation import coordinate_median
from fedjx.training import Failures


def opposite(id, update):
    turned = jax.tree.map(lambda delta: jnp.where(id % 10 == 0, -10 * delta, delta), update.delta)
    return update._replace(delta=turned)


liars = Failures(forged=opposite)
results = {
    "everybody honest, mean": runs[25],
    "one in ten lies, mean": train(sample, failures=liars),
    "one in ten lies, median": train(sample, failures=liars, aggregator=coordinate_median()),
}
for name, done in results.items():
    print(f"{name:<24} {100 * done.rows[-1]['city/accuracy']:.1f} %")
mean_of_lies, median_of_lies = (done.rows[-1]["city/accuracy"] for done in list(results.values())[1:])
assert median_of_lies > mean_of_lies + 0.2

# %% [markdown]
# The coordinate median does not care how far off a few are. It has its price where clients honestly differ, as here.
#
# ## What if clients fail?
#
# Phones lose their connection, or stop when somebody picks them up. Who does not report is left out of the mean:

# %%
half_lost = train(sample, failures=Failures(dropped=0.5))
reported = [row["train/num_clients"] for row in half_lost.rows if "train/num_clients" in row]
print(f"{min(reported):.0f} to {max(reported):.0f} of 25 phones reported")
print(f"{100 * half_lost.rows[-1]['city/accuracy']:.1f} % of the city is right")
assert half_lost.rows[-1]["city/accuracy"] > 0.8

# %% [markdown]
# ## How good is it, for whom?
#
# There is no test set of the whole city in real life. But each phone can test the model on its own notes and send a
# number: *federated evaluation*. And the mean hides who is served badly, so look at the distribution over phones.

# %%
from fedjx.algorithms import distribution, federated_evaluation

everybody = fedjx.data.Cohort(phones, range(1000), batch_size=60)
overall, of_each = federated_evaluation(model, per_client=True)(params, everybody)
found = distribution(of_each)["accuracy"]
print(f"{100 * overall['accuracy']:.1f} % of all notes")
print(f"{100 * found.quantiles[0.5]:.1f} % on the phone in the middle")
print(f"{100 * found.lowest_decile:.1f} % on the worst tenth of the phones")

# %% [markdown]
# ## Without a model
#
# Some questions need no model at all. How often is each network the strongest, where people are? *Federated
# analytics* asks all phones, and with secure sums the server sees the sum of their answers and no single one.

# %%
from fedjx.analytics import ask, histogram

answer = ask(histogram("y", bins=3), phones, trust="secure")
print((100 * answer.value / answer.value.sum()).round(1), "%;", answer.bits, "bits of a phone")

# %% [markdown]
# ## Does the model tell on anybody?
#
# Data do not leave the phones, but what a phone sends, and the model itself, can still betray something of them.
# *Differential privacy* bounds that. Each phone's change is clipped to a length, and noise is added to their sum,
# enough that from all the models it is hard to tell if one phone took part. Its measure is epsilon: small is
# private.

# %%
from fedjx import privacy

noise = privacy.calibrate(num_clients=1000, cohort_size=25, rounds=40, epsilon=1.0, delta=1e-4)
private = privacy.dp_mean(clip=1.0, noise_multiplier=noise.noise_multiplier, expected_clients=25)
at_random = fedjx.data.poisson_sampler(1000, probability=25 / 1000, seed=0)  # who takes part is a secret, too
done = train(at_random, aggregator=private)
print(f"epsilon {noise.epsilon:.2f}: {100 * done.rows[-1]['city/accuracy']:.1f} % of the city is right")
print(f"without noise: {100 * final[25]:.1f} %")
assert done.rows[-1]["city/accuracy"] > 0.7

# %% [markdown]
# The noise has to hide one phone, however many there are. So privacy is cheap in a crowd, and dear among few.
# `private_training`, another notebook, takes it from here, and `own_algorithm` shows how to change any of the steps.
