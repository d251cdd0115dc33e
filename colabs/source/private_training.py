# %% [markdown]
# # Train privately
#
# Federated averaging leaves the data where they are, and that is not yet privacy: the model is made of the data, and
# who sees the model can learn about them. *Differential privacy* bounds how much. This notebook trains with it,
# watches what it costs, and stops when what was promised is spent.
#
# It runs on a CPU and needs `fedjx[privacy]`, for the accounts.

# %%
# %pip install -q "fedjx[privacy]"
# %matplotlib inline

# %% [markdown]
# ## Clients, few and many
#
# The data are made up, so that there can be as many clients as we like: ten clouds of points in sixteen dimensions,
# of which each client has eight points, moved a little its own way. The task is to tell the clouds apart.

# %%
import numpy as np

from fedjx.data import FederatedData

rng = np.random.default_rng(0)
middles = rng.normal(0, 0.8, (10, 16))


def clients(number):
    y = rng.integers(0, 10, (number, 8))
    x = middles[y] + rng.normal(0, 0.3, (number, 1, 16)) + rng.normal(0, 1, (number, 8, 16))
    columns = {"x": x.reshape(-1, 16).astype(np.float32), "y": y.reshape(-1).astype(np.int32)}
    return FederatedData(columns, np.arange(0, 8 * number + 1, 8))


many, few, test = clients(2000), clients(200), clients(250)
print(many, few, sep="\n")

# %% [markdown]
# ## A mean with noise
#
# DP-FedAvg (McMahan et al.) changes one thing about federated averaging: the mean. Each client's update is *clipped*,
# so that no client can move the sum by more than the clip, and the sum gets Gaussian noise whose deviation is
# `noise_multiplier` clips. What anyone could conclude from the result about one client drowns in that noise.
#
# How much is promised is a number, epsilon: to leave out all of a client's data changes the probability of anything
# that could come out by a factor of at most e to the epsilon, but for cases of probability delta. Small is strong.
# Each round costs; that a client is drawn rarely, and at random, makes it cheaper. `calibrate` finds the noise for a
# wish:

# %%
from fedjx import privacy

ROUNDS, SHARE, DELTA = 30, 0.05, 1e-5  # a client is in a round with probability SHARE


def noise_for(epsilon):
    found = privacy.calibrate(num_clients=2000, cohort_size=100, rounds=ROUNDS, epsilon=epsilon, delta=DELTA)
    return found.noise_multiplier


noise = {epsilon: noise_for(epsilon) for epsilon in (0.5, 2.0, 8.0)}
for epsilon, noise_multiplier in noise.items():
    print(f"epsilon {epsilon}: noise of {noise_multiplier:.2f} clips on the sum of a round")

# %% [markdown]
# ## A budget that stops the run
#
# The account is made of the aggregator that does the work and of the sampler that draws the clients, not of numbers
# that are written beside them. A budget of it ends the run before the round that would overspend, however many rounds
# are asked for.

# %%
import jax
import optax

from fedjx.algorithms import fed_avg
from fedjx.data import poisson_sampler
from fedjx.experiment import central_evaluation, run
from fedjx.models import linear

model = linear(10, input_shape=(16,))
tested = {"test": central_evaluation(model, test)}


def private_mean(data, epsilon):
    return privacy.dp_mean(clip=0.5, noise_multiplier=noise[epsilon], expected_clients=round(SHARE * data.num_clients))


def trained(data, num_rounds, budget=None, **aggregation):
    algorithm = fed_avg(model, client_optimizer=optax.sgd(0.3), **aggregation)
    sample = poisson_sampler(data.num_clients, probability=SHARE, seed=0)
    settings = {"batch_size": 8, "key": jax.random.key(0), "lanes": 20, "budget": budget, "progress": False}
    return run(algorithm, data, sample, num_rounds=num_rounds, evaluate=tested, evaluate_every=5, **settings)


mean, sample = private_mean(many, 2.0), poisson_sampler(many.num_clients, probability=SHARE, seed=0)
limit = privacy.budget(privacy.account(mean, sample), epsilon=2.0, delta=DELTA)
private = trained(many, 1000, limit, aggregator=mean)
last = private.rows[-1]
print(private.reason)
print(f"round {last['round']}: epsilon {last['privacy/epsilon']:.3f}, {last['test/accuracy']:.1%} right")

# %% [markdown]
# What is spent is in each row, beside what was learnt:

# %%
from fedjx.experiment import plot_curves

plot_curves({"epsilon 2 in all": private.rows}, "privacy/epsilon")

# %%
plot_curves({"epsilon 2 in all": private.rows}, "test/accuracy", "privacy/epsilon")

# %% [markdown]
# Epsilon jumps at the first round and then grows ever more slowly: what many rounds let through adds up to less than
# the sum. Most of the accuracy comes early as well.
#
# A loop of your own is held to the budget in the same way, by `within`, which refuses before anything is computed:

# %%
try:
    limit.check(ROUNDS)  # rounds count from 0, so this is one more
except privacy.BudgetSpent as refused:
    print(refused)

# %% [markdown]
# ## What the noise does, with few clients and with many
#
# The noise on the sum does not depend on how many clients are in it. The mean divides it by them. So the same promise
# costs little among many and much among few, and this is the first question to ask of any private training: how many
# are we?
#
# Both populations below are asked for the same share of their clients a round, so the same noise makes the same
# epsilon: ten clients a round of 200, and 100 of 2,000. Without noise, federated averaging learns from either.

# %%

groups = {"2,000 clients": many, "200 clients": few}


def accuracy_of(data, **aggregation):
    return trained(data, ROUNDS, **aggregation).rows[-1]["test/accuracy"]


without = {name: accuracy_of(data) for name, data in groups.items()}
accuracy = {
    name: [accuracy_of(data, aggregator=private_mean(data, epsilon)) for epsilon in noise]
    for name, data in groups.items()
}
for name, accuracies in accuracy.items():
    private_ones = ", ".join(
        f"{found:.2f} at epsilon {epsilon}" for epsilon, found in zip(noise, accuracies, strict=True)
    )
    print(f"{name}: {private_ones}; {without[name]:.2f} without noise")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.6))
for (name, accuracies), color in zip(accuracy.items(), ("#2e6f95", "#d1495b"), strict=True):
    axes.plot(list(noise), accuracies, marker="o", color=color, label=name)
    axes.axhline(without[name], color=color, linestyle=":", linewidth=1)
axes.set(xscale="log", xlabel="epsilon, at delta 1e-5", ylabel="test accuracy", ylim=(0, 1))
axes.set_xticks(list(noise), [str(epsilon) for epsilon in noise])
axes.minorticks_off()
axes.legend(frameon=False, loc="lower right", title="dotted: without noise")
plt.show()

# %% [markdown]
# Noise, cohort, rounds and epsilon: `calibrate` finds any one of them from the others. A larger cohort drowns the noise
# better, and costs more, for each client is asked more often. With few clients there may be no useful private model,
# and it is better to know that than to raise epsilon until it promises nothing.

# %% [markdown]
# ## What is guaranteed, and what is not
#
# **Guaranteed**, by what ran above: whoever sees all models of the run, and knows everything about everybody but one
# client, learns next to nothing about whether that client, with all of its data, took part; how little, epsilon and
# delta say.
#
# **Not guaranteed:**
#
# - *Against the server.* It sees the updates and adds the noise; it is trusted here. `privacy.distributed_dp_mean` is
#   for servers that are not: clients add the noise, and the server sees only sums.
# - *For the exact numbers on this page.* A simulation sees losses and cohort sizes without noise. `privacy.within`
#   names them in a round's metrics, under `not_covered`, and who publishes them leaves the guarantee.
# - *For choices.* Whoever tries ten settings on the same people and publishes the best has spent more than that one
#   run.
# - *That nothing can be learnt.* That the model says something about you which is true of everybody like you is what
#   learning is, with or without your data.
# - *For real use by this code.* Floating-point noise shows what a mechanism does to learning; secrets need integer
#   noise and good random numbers.

# %%
assert private.reason == "the budget of epsilon 2 pays 30 rounds"
assert last["round"] == ROUNDS
assert last["privacy/epsilon"] <= 2.0
assert all(found > 0.7 for found in without.values())
assert accuracy["200 clients"][0] + 0.1 < accuracy["200 clients"][-1]
assert min(accuracy["2,000 clients"]) > without["2,000 clients"] - 0.1
for of_many, of_few in zip(*accuracy.values(), strict=True):
    assert of_many > of_few
