# %% [markdown]
# # Classify images that nobody collects
#
# A hundred people have each written a few digits. None of them hands out the images, and the digits of one are not
# those of another. Here they train one network together, by federated averaging: the network travels, the images
# stay. It is the same path as a first project takes: look at the data, choose a model, run, measure on clients, count
# what was sent.
#
# It runs on a CPU; with a GPU or TPU nothing changes but the speed.

# %%
# %pip install -q fedjx
# %matplotlib inline

# %% [markdown]
# ## The clients' images
#
# The digits of scikit-learn, real handwriting of 8 × 8 pixels, are always there. They come without writers, so each
# client draws how often it has which digit from a Dirichlet distribution; a smaller `alpha` makes clients less alike.
# If you have the file of Federated EMNIST, name its folder: its clients are the real writers, in images of 28 × 28
# pixels, and the rest of the notebook is the same.
#
# The cell begins with what JAX runs on. If that is `cpu` on a GPU runtime, the installation is newer than the runtime's
# CUDA plugin: run `%pip install -U "jax[cuda12]"`, or `cuda13` where `!nvidia-smi` names CUDA 13, and restart.

# %%
import jax
import numpy as np

from fedjx.data import digits, map_examples, preprocess, published

print("JAX runs on:", jax.default_backend())
EMNIST = None  # such as "data", a folder with emnist_all.sqlite.lzma


def as_digits(columns):
    return {"x": 255 - columns["pixels"][..., None], "y": columns["label"].astype(np.int32)}


if EMNIST is None:
    train, test = digits(num_clients=100, alpha=0.3)
    image_shape, brightest = (8, 8, 1), 16
else:
    writers = published.open(published.emnist(digits_only=True), EMNIST)
    train, test = (preprocess(writers[split], map_examples(as_digits)) for split in ("train", "test"))
    image_shape, brightest = (28, 28, 1), 255
print(train)

# %% [markdown]
# This is all that one of them has. A client is a number, and its data are arrays with one row for each example.

# %%
import matplotlib.pyplot as plt

client = train.client(1)
figure, panels = plt.subplots(2, 10, figsize=(10, 2.4))
for panel in panels.flat:
    panel.axis("off")
for panel, image, label in zip(panels.flat, client["x"], client["y"], strict=False):
    panel.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=brightest)
    panel.set_title(label, fontsize=9)
plt.show()

# %% [markdown]
# Others have other digits. In the picture a bar is a client and a colour a digit: this is what *non-IID* means, and
# why averaging models is not the same as training on all images together.

# %%
from fedjx.data import plot_label_distribution, plot_sizes

first = [train.client(k)["y"] for k in train.ids[:50]]
counts = np.stack([np.bincount(labels, minlength=10) for labels in first])
plot_label_distribution(counts)

# %% [markdown]
# Clients have more images or fewer, too:

# %%
plot_sizes(train.sizes[:])

# %% [markdown]
# ## A model, and an algorithm
#
# A model is three pure functions: parameters, a loss of each example, metrics. `fedjx.models` has the usual networks,
# and `from_flax` makes one of any Flax module.
#
# `fed_avg` is federated averaging (McMahan et al.): the server sends the network to a few clients, each trains it a
# little on its own images, and the server moves to the mean of what they return, where a client counts by its number
# of images. Both sides have an optimizer; momentum at the server makes it FedAvgM.

# %%
import jax
import optax

from fedjx.algorithms import fed_avg
from fedjx.models import mlp

model = mlp(10, input_shape=image_shape, hidden=(100,), scale=1 / brightest)
algorithm = fed_avg(
    model,
    client_optimizer=optax.sgd(0.1),
    server_optimizer=optax.sgd(1.0, momentum=0.9),
    num_epochs=2,
)
num_parameters = sum(x.size for x in jax.tree.leaves(algorithm.init(jax.random.key(0)).params))
print(f"{num_parameters:,} parameters")

# %% [markdown]
# ## Train
#
# `run` is a loop over rounds with what one wants around it. In each round ten clients are drawn anew. Two evaluations
# are asked every five rounds: one on images of nobody in particular, kept for testing, and one on the clients
# themselves.

# %%
from fedjx.data import uniform_sampler
from fedjx.experiment import central_evaluation, client_evaluation, run

asked = train.ids[:100]
evaluations = {
    "test": central_evaluation(model, test),
    "clients": client_evaluation(model, train, ids=asked, lanes=10),
}
result = run(
    algorithm,
    train,
    uniform_sampler(train.num_clients, 10, seed=0),
    batch_size=10,
    num_rounds=60,
    key=jax.random.key(0),
    lanes=10,
    evaluate=evaluations,
    evaluate_every=5,
    progress=False,
)
print(result.reason)
for row in result.rows[::20]:
    print(f"round {row['round']:>2}: {row['test/accuracy']:.1%} of the test images are right")

# %% [markdown]
# A row is a dictionary of numbers by name. With `path="runs/digits"` the run would also keep rows, TensorBoard events
# and checkpoints in a folder, and go on after an interruption.

# %%
from fedjx.experiment import plot_curves

plot_curves({"10 clients a round": result.rows}, "test/accuracy", target=0.9)

# %% [markdown]
# ## How good is it for each client?
#
# One accuracy hides that the network serves some clients better than others. Every client evaluates it on its own
# images and tells the result. The band between the percentiles is the difference among people that an average does
# not show.

# %%
from fedjx.experiment import plot_percentiles

last = result.rows[-1]
for name in ("accuracy", "accuracy_lowest_decile", "accuracy_p10", "accuracy_p50", "accuracy_p90"):
    print(f"{name:>22}: {last[f'clients/{name}']:.3f}")
plot_percentiles(result.rows, "clients/accuracy")

# %% [markdown]
# Here the clients' accuracies are on images that were trained on. To measure on images that a client has kept back,
# cut its data in two by `split_examples`, train on one part and evaluate on the other.
#
# ## What was sent
#
# In practice the bill is what clients send and receive. It follows from the types of the round's messages, exactly,
# and nothing has to be measured:

# %%
from fedjx.experiment import rounds_to

down, up = (last[f"total/bits_{way}"] / 2**23 for way in ("down", "up"))
rounds, sent = (rounds_to(result.rows, "test/accuracy", 0.9, x=x) for x in ("round", "total/bits_up"))
print(f"{last['total/clients']} times a client took part: {down:.1f} MiB down and {up:.1f} MiB up")
if rounds is not None and sent is not None:
    print(f"90 % of the test images were right after {rounds:.1f} rounds, and {sent / 2**23:.1f} MiB of uploads")

# %% [markdown]
# ## One choice, compared
#
# Local training saves communication: a client that trains longer before it reports needs fewer rounds, as long as
# clients do not drift apart. Is that so here? The same clients, drawn in the same order, with the shortest local
# training there is and with more:

# %%


def trained(num_epochs):
    algorithm = fed_avg(model, client_optimizer=optax.sgd(0.1), num_epochs=num_epochs)
    sample = uniform_sampler(train.num_clients, 10, seed=0)
    settings = {"key": jax.random.key(0), "lanes": 10, "evaluate_every": 5, "progress": False}
    tests = {"test": evaluations["test"]}
    return run(algorithm, train, sample, batch_size=10, num_rounds=40, evaluate=tests, **settings).rows


runs = {"1 epoch": trained(1), "5 epochs": trained(5)}
plot_curves(runs, "test/accuracy", "total/bits_up", target=0.9)

# %% [markdown]
# Each epoch more is work for the client's device, and none for the network between. Next: `compression` makes each
# message smaller, `personalisation` gives clients models of their own, `private_training` hides each client's part in
# the result.

# %%
assert last["test/accuracy"] > 0.9
assert last["clients/accuracy_lowest_decile"] < last["clients/accuracy"] < last["clients/accuracy_highest_decile"]
assert last["total/bits_up"] > 600 * 32 * num_parameters
assert runs["5 epochs"][-1]["test/accuracy"] > runs["1 epoch"][-1]["test/accuracy"]
