# %% [markdown]
# # First steps with fedjx
#
# Federated averaging on handwritten digits, from non-IID clients. Runs on a CPU; with a GPU or TPU runtime, nothing
# changes but the speed.

# %%
# %pip install -q fedjx
# %matplotlib inline

# %% [markdown]
# ## The data
#
# The digits of scikit-learn, divided among 50 clients with skewed labels. Every bar is a client.
#
# The cell begins with what JAX runs on. If that is `cpu` on a GPU runtime, the installation is newer than the runtime's
# CUDA plugin: run `%pip install -U "jax[cuda12]"`, or `cuda13` where `!nvidia-smi` names CUDA 13, and restart.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from fedjx.data import Cohort, digits, label_counts, uniform_sampler

print("JAX runs on:", jax.default_backend())
train, test = digits(num_clients=50, alpha=0.5)
counts = label_counts(train, num_classes=10)
figure, axis = plt.subplots(figsize=(9, 3.2), dpi=90, layout="constrained")
bottom = np.zeros(train.num_clients)
for digit in range(10):
    axis.bar(np.arange(train.num_clients), counts[:, digit], 0.9, bottom=bottom, label=digit)
    bottom += counts[:, digit]
axis.set(xlabel="client", ylabel="images")
figure.legend(title="digit", loc="outside right center", frameon=False)
plt.show()

# %% [markdown]
# ## The algorithm
#
# Any Optax optimizer at the clients and at the server. The computation of a round carries its type: what is at the
# server, what stays at the clients.

# %%
import optax

from fedjx.algorithms import fed_avg, federated_evaluation
from fedjx.models import mlp

model = mlp(10, input_shape=(8, 8, 1), scale=1 / 16)
algorithm = fed_avg(
    model,
    client_optimizer=optax.sgd(0.1),
    server_optimizer=optax.sgd(1.0, momentum=0.9),
    num_epochs=2,
)
sample = uniform_sampler(train.num_clients, 10, seed=0)
state = algorithm.init(jax.random.key(0))
print(algorithm.next.type_signature(state, Cohort(train, sample(1), batch_size=10)))

# %% [markdown]
# ## Train
#
# Every round trains ten clients at once, in one compiled program.

# %%
losses = []
for round_number in range(1, 31):
    clients = Cohort(train, sample(round_number), batch_size=10)
    state, metrics = algorithm.next(state, clients)
    losses.append(float(metrics["loss"]))
figure, axis = plt.subplots(figsize=(6, 3.2), dpi=90, layout="constrained")
axis.plot(range(1, 31), losses)
axis.set(xlabel="round", ylabel="clients' training loss")
plt.show()

# %% [markdown]
# ## Evaluate
#
# On the clients' own data, where it is. The result equals that on all images taken together.

# %%
evaluation = federated_evaluation(model)
result = evaluation(state.params, Cohort(train, range(train.num_clients), batch_size=10))
print({name: round(float(value), 3) for name, value in result.items()})
assert result["accuracy"] > 0.9

# %% [markdown]
# ## Write your own
#
# A federated computation is a function of placed values. This one asks every client for the mean brightness of its
# images, and the server for the mean, the least and the greatest of them.

# %%
import jax.numpy as jnp

import fedjx


@fedjx.federated_computation
def brightness(data):
    def of_one_client(batches):
        def add(total, batch):
            pixels = batch["x"].astype(jnp.float32) * batch["mask"][:, None, None, None]
            return total[0] + pixels.sum(), total[1] + 64 * batch["mask"].sum()

        total, num_pixels = fedjx.sequence_reduce(add, (jnp.float32(0), jnp.int32(0)), batches)
        return total / num_pixels

    client = fedjx.federated_map(of_one_client, data)
    return fedjx.federated_mean(client), fedjx.federated_min(client), fedjx.federated_max(client)


average, darkest, brightest = brightness(Cohort(train, range(train.num_clients), batch_size=10))
print(f"{average:.2f} on average, from {darkest:.2f} to {brightest:.2f}")
