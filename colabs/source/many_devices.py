# %% [markdown]
# # One device, or many
#
# A round is written once, for *one* client. How many clients run at once, on which devices, in one program or in
# pieces, is said when it is run, and the result is the same. This notebook runs one and the same round in every way,
# and compares the numbers. It says nothing about speed: four devices here are four parts of one processor.

# %%
# %pip install -q fedjx
# %matplotlib inline

# %% [markdown]
# ## Devices
#
# JAX sees a GPU or a TPU chip as a device, and a whole CPU as one, unless it is told to see more. That has to be said
# before anything uses JAX. (If this notebook has run already, restart its runtime.)

# %%
import jax

jax.config.update("jax_num_cpu_devices", 4)  # on a machine of your own: os.cpu_count()
print(jax.device_count(), "devices of kind", jax.devices()[0].platform)

# %% [markdown]
# ## A round
#
# Federated averaging with momentum, on digits of twenty clients, of which eight take part. Nothing in it knows of
# devices.

# %%
import numpy as np
import optax

from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, digits, uniform_sampler
from fedjx.models import linear

train, _ = digits(num_clients=20)
model = linear(10, input_shape=(8, 8, 1), scale=1 / 16)
algorithm = fed_avg(model, client_optimizer=optax.sgd(0.1), server_optimizer=optax.sgd(1.0, momentum=0.9))
sample = uniform_sampler(train.num_clients, 8, seed=0)
rounds = range(1, 9)


def cohort(number, lanes=1):
    return Cohort(train, sample(number), batch_size=10, lanes=lanes)


def trained(step, **options):
    state, losses = algorithm.init(jax.random.key(0)), []
    for number in rounds:
        state, metrics = step(state, cohort(number, **options))
        losses.append(float(metrics["loss"]))
    return state.params, losses


def difference(some, others):
    """Returns the largest difference of two networks' parameters."""
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(np.array(a) - np.array(b)).max()), some, others)))


# %% [markdown]
# ## 1, 2, 4 devices
#
# A *mesh* names devices. Its axis `clients` is what a cohort is divided along: on four devices each computes two of
# the eight clients, and then they add up. Without a mesh all devices are used.


# %%
def mesh_of(number):
    return jax.make_mesh((number,), ("clients",), devices=jax.devices()[:number])


numbers = [number for number in (1, 2, 4) if number <= jax.device_count()]
steps = {number: algorithm.next.streamed(mesh=mesh_of(number)) for number in numbers}
results = {f"on {number} of the devices": trained(step) for number, step in steps.items()}

first = results["on 1 of the devices"]
for name, (params, losses) in results.items():
    print(f"{name}: loss {losses[-1]:.7f}, parameters differ by at most {difference(params, first[0]):.1e}")

# %% [markdown]
# The differences are those of rounding: `(a + b) + (c + d)` is not always `((a + b) + c) + d` to a computer. What
# could not be forgiven is a result that depends on the devices in any other way, such as on the padding when nine
# clients meet four devices, or on who got which random number. A client's random numbers are made of the round's key
# and its id, wherever it runs.

# %%
nine = Cohort(train, range(9), batch_size=10, lanes=1)
state = algorithm.init(jax.random.key(0))
alone, metrics = steps[1](state, nine)
together, _ = steps[numbers[-1]](state, nine)
print(f"{metrics['num_clients']} clients: parameters differ by at most {difference(together.params, alone.params):.1e}")

# %% [markdown]
# ## A stream, or one program
#
# There are two ways to run a computation:
#
# | | what happens | takes memory for |
# |---|---|---|
# | `next.streamed()`, also `next` | a loop of Python over pieces of the cohort | a piece, however large the cohort |
# | `next.in_graph()` | one program, which may stand in a `jit` of yours | the whole cohort |
#
# `next.scanned()` goes on from the second: many rounds in one program.

# %%
results["one program"] = trained(algorithm.next.in_graph(mesh=mesh_of(numbers[-1])))

state, metrics = algorithm.next.scanned()(algorithm.init(jax.random.key(0)), [cohort(number) for number in rounds])
results["all rounds in one program"] = state.params, metrics["loss"].tolist()

for name in ("one program", "all rounds in one program"):
    params, losses = results[name]
    print(f"{name}: loss {losses[-1]:.7f}, parameters differ by at most {difference(params, first[0]):.1e}")

# %% [markdown]
# Five runs in one picture, the first drawn thick and the last thin: one curve.

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.4))
for width, (name, (_, losses)) in zip((13, 10, 7, 4, 1.5), results.items(), strict=False):
    axes.plot(rounds, losses, linewidth=width, label=name)
axes.set(xlabel="round", ylabel="clients' training loss", ylim=(0, None))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Lanes
#
# A client with ten images does not fill a device. *Lanes* are clients that a device computes side by side, as one
# batched computation: `lanes=4` on two devices are eight clients at once. More lanes need more memory, and how many
# are fastest depends on the network and the device. If you do not say, fedjx begins with one and measures. If you do,
# nothing is tried, and a run is the same bit by bit each time, which resumed runs need.

# %%
step = steps[numbers[-1]]
for lanes in (1, 2):
    params, losses = trained(step, lanes=lanes)
    print(f"lanes={lanes}: loss {losses[-1]:.7f}, parameters differ by at most {difference(params, first[0]):.1e}")
assert difference(trained(step, lanes=2)[0], params) == 0  # the same lanes, the same bits

# %% [markdown]
# ## Ahead
#
# While the devices compute a round, the host can already read and place the data of the next. `ahead` takes the
# cohorts to come and hands them out one by one. `fedjx.experiment.run` does this for you.

# %%
state = algorithm.init(jax.random.key(0))
for clients in step.ahead(map(cohort, rounds)):
    state, metrics = step(state, clients)
params, _ = trained(step)
print(f"with and without `ahead`, parameters differ by {difference(state.params, params)}")
assert difference(state.params, params) == 0

# %% [markdown]
# ## One client on several devices
#
# A network that is too large for a device can itself be divided. A mesh may have further axes, which fedjx leaves to
# you: constrain an array to lie along one, and XLA divides the work. Here a mesh of 2 × 2 runs two clients at once,
# each on two devices, which hold half of the hidden layer each.

# %%
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fedjx.models import Model

WIDTH = 64


def wide(constrained):
    """Returns a network with one hidden layer; `constrained` says where an array lies."""

    def init(key):
        key_in, key_out = jax.random.split(key)
        return {
            "in": jax.random.normal(key_in, (64, WIDTH)) / 8,
            "out": jax.random.normal(key_out, (WIDTH, 10)) / WIDTH**0.5,
        }

    def loss(params, batch, key):
        x = batch["x"].reshape(-1, 64) / 16
        hidden = jax.nn.tanh(x @ constrained(params["in"], PartitionSpec(None, "model")))
        logits = hidden @ constrained(params["out"], PartitionSpec("model", None))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    return Model(init, loss, lambda params, batch: {"loss": loss(params, batch, None)})


def a_round(constrained, **options):
    algorithm = fed_avg(wide(constrained), client_optimizer=optax.sgd(0.1))
    state = algorithm.init(jax.random.key(0))
    return algorithm.next.in_graph(**options)(state, cohort(1))[0].params


undivided = a_round(lambda x, spec: x)
if jax.device_count() >= 4:
    mesh = jax.make_mesh((2, 2), ("clients", "model"), devices=jax.devices()[:4], axis_types=(AxisType.Auto,) * 2)
    divided = a_round(lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec)), mesh=mesh)
    print(f"divided or not, parameters differ by at most {difference(divided, undivided):.1e}")
    assert difference(divided, undivided) < 1e-5

# %% [markdown]
# ## Many machines
#
# More machines are more devices. The same script is started once on each, and begins with
#
# ```python
# fedjx.initialize_distributed()  # before anything else uses JAX
# ```
#
# Then `jax.devices()` are those of all machines, and the mesh of all of them is what a round runs on if none is
# given. All processes draw the same cohorts, and each reads and computes only the clients of its own devices. What is
# at the server is on every machine; process 0 writes the files. If the processes differ in anything that matters, the
# data, the key or a number in the model, the first round ends with the name of it.
#
# A notebook is one process, so there is nothing to run here. [Many devices, many machines](../docs/pods.md) has a
# script for each kind of machine: several GPUs, Slurm, a slice of a TPU pod, any launcher. A run that was started on
# two processes resumes on one, and the other way round.

# %%
assert len(results) >= 3
for params, losses in results.values():
    assert difference(params, first[0]) < 1e-5
    assert np.allclose(losses, first[1], atol=1e-5)
assert first[1][-1] < first[1][0]
assert difference(together.params, alone.params) < 1e-5
