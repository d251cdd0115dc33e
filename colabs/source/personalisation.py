# %% [markdown]
# # One model for all, or one for each
#
# Federated averaging ends with one model. It serves some clients well and others badly, and a client with unusual
# data has little say: it is averaged away. This notebook gives clients models of their own, in three ways, and looks
# at what a mean does not show: who gains, and who loses.
#
# It runs on a CPU.

# %%
# %pip install -q fedjx
# %matplotlib inline

# %% [markdown]
# ## Clients that disagree
#
# Sixty clients write digits. Half of them mean what everybody means. The others use one of two alphabets of their
# own, in which the signs have changed places: an image that is a 3 to most is perhaps a 7 to them. No single model
# can be right for all, since the same image has several right answers. Less extreme, this is the world: which word
# follows "I live in" depends on who writes.

# %%
import numpy as np

from fedjx.data import digits, filter_examples, label_permutations, map_examples, permute_labels, preprocess

NUM_CLIENTS = 60
NAMES = ("the majority", "second alphabet", "third alphabet")
images, _ = digits(num_clients=NUM_CLIENTS, alpha=2.0)
group = np.array([0, 1, 0, 2])[np.arange(NUM_CLIENTS) % 4]
alphabets = label_permutations(3, 10, seed=0)
for name, alphabet in zip(NAMES, alphabets, strict=True):
    print(f"{name:>16} calls the digits 0 to 9: {', '.join(map(str, alphabet))}")

# %% [markdown]
# Every client trains on two thirds of its images and keeps a third to test with. Which is which is one more feature,
# so that it travels with the example:

# %%


def marked(columns):
    return {**columns, "is_training": np.arange(len(columns["y"])) % 3 > 0}


clients = preprocess(images, permute_labels("y", alphabets[group]), map_examples(marked))
train = preprocess(clients, filter_examples(lambda columns: columns["is_training"]))
test = preprocess(clients, filter_examples(lambda columns: ~columns["is_training"]))
print(f"{train.num_examples} images to train with, {test.num_examples} to test with")

# %% [markdown]
# ## The shared model
#
# First federated averaging, with all clients in each round. Each then evaluates the shared model on the images that
# it has kept.

# %%
import jax
import optax

from fedjx.algorithms import fed_avg, federated_evaluation
from fedjx.data import Cohort
from fedjx.models import mlp

NUM_ROUNDS = 40
everybody = np.arange(NUM_CLIENTS)
training, testing, whole = (Cohort(data, everybody, batch_size=10, lanes=15) for data in (train, test, clients))
model = mlp(10, input_shape=(8, 8, 1), hidden=(64,), scale=1 / 16)
averaging = fed_avg(model, client_optimizer=optax.sgd(0.1), num_epochs=2)

step, state = averaging.next.streamed(), averaging.init(jax.random.key(0))
for _ in range(NUM_ROUNDS):
    state, _ = step(state, training)
_, of_each = federated_evaluation(model, per_client=True)(state.params, testing)
before = np.array(of_each.value["accuracy"])


def by_group(accuracies):
    return "  ".join(f"{name} {accuracies[group == number].mean():.2f}" for number, name in enumerate(NAMES))


print(f"all {before.mean():.2f}  {by_group(before)}")

# %% [markdown]
# The majority has its way, and the mean of all clients says nothing of that.
#
# ## First way: fine-tune
#
# Each client takes the shared model and trains on, for itself, when it needs it. Nothing is kept and nothing is sent,
# and any method's model will do. `personalization_evaluation` tries several *strategies*, functions from the shared
# parameters and training data to parameters, on every client. The split is that of the feature.

# %%
from fedjx.algorithms.personalization import fine_tuning, personalization_evaluation
from fedjx.training.splits import feature_split

EPOCHS = (2, 10, 40)
strategies = {f"{n} epochs": fine_tuning(model, optimizer=optax.sgd(0.1), num_epochs=n) for n in EPOCHS}
evaluation = personalization_evaluation(model, strategies, split=feature_split("is_training"))
_, tried = evaluation(state.params, whole, jax.random.key(1))
fine_tuned = {name: np.array(tried.value[name]["accuracy"]) for name in ("baseline", *strategies)}
for name, accuracies in fine_tuned.items():
    print(f"{name:>9}: {by_group(accuracies)}")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5.5, 3.4))
for number, name in enumerate(NAMES):
    means = [accuracies[group == number].mean() for accuracies in fine_tuned.values()]
    axes.plot(range(len(means)), means, marker="o", label=name)
axes.set(xticks=range(4), xticklabels=[0, *EPOCHS], xlabel="epochs of fine-tuning", ylabel="accuracy, mean of clients")
axes.set_ylim(0, 1)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Second way: a head of one's own
#
# What strokes look like is the same for all; what they are called is not. FedRep (Collins et al.) shares the layers
# that see, and leaves each client the last layer, the *head*, which never leaves it. A client fits its head first and
# then improves the shared layers under it.
#
# So clients keep something from round to round. It goes into a round beside the data and comes out again; `combine`
# puts shared and own parameters together.

# %%
import fedjx
from fedjx.algorithms.fed_rep import fed_rep
from fedjx.algorithms.personalization import personal_evaluation
from fedjx.training import combine


def trained(algorithm):
    """Trains with what clients keep; at first they keep the same."""
    step, state = algorithm.next.streamed(), algorithm.init(jax.random.key(0))
    first = algorithm.init_client(state)
    kept = fedjx.Clients.of(jax.tree.map(lambda x: np.repeat(x[None], NUM_CLIENTS, 0), first), ids=everybody)
    for _ in range(NUM_ROUNDS):
        state, _, kept = step(state, training, kept)
    return state.params, kept


def accuracy_of_each(combined, params, kept):
    _, of_each = personal_evaluation(model, combined)(params, testing, kept)
    return np.array(of_each.value["personal"]["accuracy"])


heads = fed_rep(
    model,
    is_local=lambda name: name.startswith("head"),
    client_optimizer=optax.sgd(0.1),
    num_epochs=2,
    num_local_epochs=5,
)
own_head = accuracy_of_each(combine, *trained(heads))
print(f"all {own_head.mean():.2f}  {by_group(own_head)}")

# %% [markdown]
# ## Third way: a model of one's own, held near
#
# Ditto (Li et al.) trains the shared model as before, and beside it a whole model at every client. The own model is
# drawn to the shared one, by a strength: 0 is each for itself, infinity is no model of one's own.

# %%
from fedjx.algorithms.ditto import ditto

held = ditto(model, proximal_strength=0.1, client_optimizer=optax.sgd(0.1), num_epochs=2)
own_model = accuracy_of_each(lambda params, own: own, *trained(held))
print(f"all {own_model.mean():.2f}  {by_group(own_model)}")

# %% [markdown]
# ## Who gains, and who loses
#
# A point is a client: its accuracy with the shared model, and with its own. Below the diagonal personalisation has
# done harm.

# %%
from fedjx.experiment import plot_clients

after = {"fine-tuned": fine_tuned["10 epochs"], "own head": own_head, "own model": own_model}
plot_clients(before, after)

# %%
for name, accuracies in after.items():
    loses = accuracies < before
    of_majority = (loses & (group == 0)).sum()
    print(f"{name:>10}: {(accuracies > before).sum()} gain, {loses.sum()} lose, {of_majority} of them in the majority")

# %% [markdown]
# Those who lose are mostly those whom the shared model served: they have few images to learn from, and had the
# experience of all. A client can know which it is, for it has images to test with, and keep the better of the two.
# That choice would have to be made on other images than those that it is then judged by, which is why the numbers
# above do not make it.
#
# | | a client keeps | a client sends | serves |
# |---|---|---|---|
# | fine-tuning | nothing | what it sent before | clients never seen in training, too |
# | own head (FedRep, FedPer) | the head | the other layers only | shared looks, different labels |
# | own model (Ditto) | a whole model | what it sent before | any difference, for more work |
#
# `docs/algorithms.md` has more of them: APFL, pFedMe, Per-FedAvg, Reptile, reconstruction, clusters. With clients too
# many for memory, `fedjx.experiment.run` keeps what they keep on disk.

# %%
minority = group > 0
assert before[~minority].mean() > before[minority].mean() + 0.2
for accuracies in after.values():
    assert accuracies[minority].mean() > before[minority].mean() + 0.2
    assert accuracies.mean() > before.mean()
assert all((accuracies < before).any() for accuracies in after.values())
