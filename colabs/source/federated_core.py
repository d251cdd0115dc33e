# %% [markdown]
# # The federated core
#
# A federated algorithm is about values that live in different places: a model at a server, pictures on phones. In
# fedjx the place is part of a value's *type*, and a few operators are the only way to move values. This notebook
# shows the types, then the operators, and ends with federated averaging written from nothing else. A CPU is enough.

# %%
# %pip install -q fedjx
# %matplotlib inline

# %% [markdown]
# ## Types, and how they are written
#
# What one member of the system holds has an ordinary type. There is a short way to write each.
#
# * An array has a dtype and perhaps a shape: `int32`, `int32[10]`.
# * A *sequence* is something that one client goes through in order, such as its examples: `int32*`.
# * A *structure* has fields, with names or without: `<int32,int32>`, `<X=float32,Y=float32>`. Structures nest, and so
#   `<X=float32,Y=float32>*` is a sequence of points in the plane.
# * A function has an argument and a result: `(int32* -> int32)`, or `( -> int32)` if it takes nothing.
#
# `parse_type` reads this notation. A structure is what JAX calls a pytree: a tuple, a dict, a `NamedTuple`.

# %%
import jax
import jax.numpy as jnp

import fedjx
from fedjx import CLIENTS, FederatedType, parse_type

print(parse_type("(int32* -> int32)"))
print(parse_type("( -> int32[10])"))

# %% [markdown]
# A *federated type* says where a value is.
#
# * `{int32}@CLIENTS`: each client has an integer of its own. It is one value, spread over many machines; the braces
#   say that its members may differ.
# * `{<X=float32,Y=float32>*}@CLIENTS`: each client has a sequence of points. This is a federated data set.
# * `<weights=float32[10,5],bias=float32[5]>@SERVER`: the server has a model. No braces: there is one.

# %%
examples = [
    FederatedType(jnp.int32, CLIENTS),
    parse_type("{<X=float32,Y=float32>*}@CLIENTS"),
    parse_type("<weights=float32[10,5],bias=float32[5]>@SERVER"),
]
for federated_type in examples:
    print(federated_type)

# %% [markdown]
# ## A first computation
#
# Every sensor has a reading. What is their mean, and where is it?


# %%
@fedjx.federated_computation(FederatedType(jnp.float32, CLIENTS))
def get_average_temperature(sensor_readings):
    return fedjx.federated_mean(sensor_readings)


print(get_average_temperature.type_signature)

# %% [markdown]
# The function ran once, with a stand-in for the readings, and left behind a description of what is to be done. The
# type says that something goes in at the clients and comes out at the server: that is what an average does.
#
# In a simulation, a value at the clients is given as a list, with one member for each client.

# %%
print(get_average_temperature([68.5, 70.3, 69.8]))
print(get_average_temperature([68.5, 70.3, 69.8, 71.0, 66.4]))

# %% [markdown]
# ## What a client does
#
# Work that happens on one machine is an ordinary JAX function. `sequence_reduce` goes through a client's data from
# the first element to the last, with a value that it carries along.


# %%
@fedjx.federated_computation("int32*")
def add_up_integers(x):
    return fedjx.sequence_reduce(jnp.add, jnp.int32(0), x)


print(add_up_integers.type_signature)
print(add_up_integers([1, 2, 3]), add_up_integers([]))

# %% [markdown]
# Nothing in this type is federated: it is work for one machine. `federated_map` has every client do it, and
# `federated_sum` adds up what comes out. `federated_reduce` does the same with an operation of your choice.


# %%
@fedjx.federated_computation("{int32*}@CLIENTS")
def total(x):
    sums = fedjx.federated_map(add_up_integers, x)
    return fedjx.federated_sum(sums), fedjx.federated_reduce(sums, jnp.int32(0), jnp.maximum)


print(total.type_signature)
in_all, most = total([[1, 2], [], [4, 5, 6]])
print(in_all, most)

# %% [markdown]
# ## From the server to the clients
#
# `federated_broadcast` is the other direction. For any type `T` it goes from `T@SERVER` to `T@CLIENTS`. There are no
# braces in the result: all clients have the same.


# %%
@fedjx.federated_computation("float32@SERVER")
def tell_everybody(threshold):
    return fedjx.federated_broadcast(threshold)


print(tell_everybody.type_signature)

# %% [markdown]
# With both directions a question can be asked: at how many sensors is it warmer than the server's threshold?


# %%
def is_over(reading, threshold):
    return (reading > threshold).astype(jnp.float32)


@fedjx.federated_computation("{float32}@CLIENTS", "float32@SERVER")
def share_over(readings, threshold):
    return fedjx.federated_mean(fedjx.federated_map(is_over, readings, fedjx.federated_broadcast(threshold)))


print(share_over.type_signature)
print(share_over([68.5, 70.3, 69.8], 69.0))

# %% [markdown]
# The operators are all that is ever sent, so the bill of a computation follows from its type. Nothing is run for it:

# %%
readings = fedjx.Clients.of(jnp.array([68.5, 70.3, 69.8]))
for message in share_over.communication(readings, 69.0):
    print(f"{message.direction}: {message.bits} bits, {message.type}")

# %% [markdown]
# ## Fields
#
# Fields of a structure are selected by name or by place, and tuples are made as usual, inside of a computation too.


# %%
@fedjx.federated_computation("{<X=float32,Y=float32>}@CLIENTS")
def centre(points):
    return fedjx.federated_mean(points.X), fedjx.federated_mean(points["Y"])


print(centre.type_signature)
x, y = centre([{"X": 0.0, "Y": 1.0}, {"X": 4.0, "Y": 2.0}])
print(x, y)

# %% [markdown]
# ## What cannot be said
#
# A value at the clients is not an array. There is no first client, and no loop over them. This is the point of it: a
# computation that cannot ask for one client gives the same result however clients are cut into groups, padded, or
# spread over machines, and never looks at what should have stayed where it is.

# %%
for attempt in (lambda x: x[0], lambda x: sum(x), lambda x: float(x)):
    try:
        fedjx.federated_computation("{float32}@CLIENTS")(attempt)
    except TypeError as error:
        print(f"TypeError: {error}\n")

# %% [markdown]
# ## Federated averaging, from nothing else
#
# A line is to be fitted to points that are on a hundred clients. Clients have different points, but the line is the
# same: $Y = 2 X - 1$, with noise.

# %%
import numpy as np

rng = np.random.default_rng(0)


def client_points():
    x = rng.normal(rng.normal(), 0.5, rng.integers(3, 30)).astype(np.float32)  # each client sees another stretch
    return {"X": x, "Y": (2 * x - 1 + 0.1 * rng.normal(size=len(x))).astype(np.float32)}


data = fedjx.data.FederatedData.from_clients([client_points() for _ in range(100)])
print(data)

# %% [markdown]
# What one client does: it takes the server's line, follows the gradient of its own points, one batch after the other,
# and returns its own line with the number of its batches. A `mask` says which rows of a batch are there, since the
# last one may be shorter.


# %%
def loss(line, batch):
    error = line["slope"] * batch["X"] + line["offset"] - batch["Y"]
    return jnp.sum(error**2 * batch["mask"]) / jnp.sum(batch["mask"])


def local_training(line, batches):
    def step(line, batch):
        return jax.tree.map(lambda w, g: w - 0.1 * g, line, jax.grad(loss)(line, batch))

    return fedjx.sequence_reduce(step, line, batches), batches.length


# %% [markdown]
# What everybody does together is three operators: broadcast, map, mean.


# %%
@fedjx.federated_computation
def next_line(line, data):
    trained, num_batches = fedjx.federated_map(local_training, fedjx.federated_broadcast(line), data)
    return fedjx.federated_mean(trained, num_batches)


line = {"slope": jnp.float32(0), "offset": jnp.float32(0)}
cohort = fedjx.data.Cohort(data, range(100), batch_size=5)
print(next_line.type_signature(line, cohort))

# %% [markdown]
# Here the types were not declared: a computation can take those of its arguments. The data of the clients go in, and
# the only thing that comes out is a line at the server. A run repeats it, with some of the clients each time:

# %%
sample = fedjx.data.uniform_sampler(100, 20, seed=0)
lines = [line]
for round_number in range(1, 21):
    lines.append(next_line(lines[-1], fedjx.data.Cohort(data, sample(round_number), batch_size=5)))
slope, offset = (np.array([float(line[name]) for line in lines]) for name in ("slope", "offset"))
print(f"Y = {slope[-1]:.2f} X {offset[-1]:+.2f}")
assert abs(slope[-1] - 2) < 0.05
assert abs(offset[-1] + 1) < 0.05

# %%
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), dpi=90, layout="constrained")
for client in range(0, 100, 10):
    left.plot(data.client(client)["X"], data.client(client)["Y"], ".", ms=4)
reach = np.array([-3, 3])
for number in (0, 2, 20):
    left.plot(reach, slope[number] * reach + offset[number], color="0.2", lw=1, alpha=0.25 + number / 27)
    left.text(3.1, slope[number] * 3 + offset[number], f"round {number}", fontsize=8, va="center")
left.set(xlabel="X", ylabel="Y", xlim=(-3, 4.3), title="Ten clients' points, and the server's line")
right.plot(slope, label="slope")
right.plot(offset, label="offset")
right.axhline(2, color="0.7", lw=1, zorder=0)
right.axhline(-1, color="0.7", lw=1, zorder=0)
right.set(xlabel="round", xticks=range(0, 21, 5), title="They come to 2 and −1")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# That is all there is to the core. `fedjx.fed_avg` is the same three operators around a model, optimizers and an
# aggregator; `own_algorithm`, another notebook, goes on from here.
