# %% [markdown]
# # Compression, to the bit
#
# What TensorFlow Federated's tutorial on compressing broadcasts and updates does, with today's fedjx: the same
# network, the same two computations, the same sizes. Beyond it: the sizes come from the types, before any round;
# codes that fill their words; what an entropy coder would send; and training that goes on until something is learnt.

# %%
# %pip install -q "fedjx[compress]"
# %matplotlib inline

# %% [markdown]
# ## The network
#
# Two convolutions and two dense layers. The tutorial trains it on the digits of EMNIST, 28 x 28; the digits that come
# with scikit-learn are 8 x 8 and are enlarged inside the step.

# %%
import jax
import jax.numpy as jnp
from flax import nnx

from fedjx.data import digits
from fedjx.models import from_flax


class Network(nnx.Module):
    def __init__(self, *, rngs):
        self.conv1 = nnx.Conv(1, 32, (5, 5), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (5, 5), rngs=rngs)
        self.dense1 = nnx.Linear(7 * 7 * 64, 512, rngs=rngs)
        self.dense2 = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, x):
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.dense2(nnx.relu(self.dense1(x.reshape(len(x), -1))))


def enlarged(batch):
    x = batch["x"].astype(jnp.float32).repeat(3, axis=1).repeat(3, axis=2) / 16
    return jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))


train, test = digits(num_clients=50, alpha=1.0)
model = from_flax(Network, inputs=enlarged)
params = jax.eval_shape(model.init, jax.random.key(0))
for path, x in jax.tree.leaves_with_path(params):
    print(f"{jax.tree_util.keystr(path, simple=True, separator='/'):<14} {x.shape!s:<15} {x.size:>9,}")
print(f"{'in all':<30} {sum(x.size for x in jax.tree.leaves(params)):>9,}")

# %% [markdown]
# ## Two computations, and a third
#
# There, a function chose an encoder for each variable, and `build_encoded_broadcast_process_from_model` and
# `build_encoded_mean_process_from_model` made processes of it. Here a `Compressor` is a pair of pure functions;
# `compressed_broadcast` and `compress` put it on the way down and on the way up. Both take every leaf of more than
# 10,000 elements, here the kernels of `conv2` and `dense1`; the others travel as they are.
#
# TFF rounds at random to 256 levels between the least and the greatest element, and packs the codes into 28 of the 32
# bits of a word: `word_bits=28`. The third computation fills the words.
#
# The clients report their loss and how many examples they have, as in the tutorial.

# %%
import optax

import fedjx
from fedjx.aggregation import compress, compressed_broadcast, uniform_quantizer
from fedjx.algorithms import fed_avg


def both_ways(compressor):
    return {"broadcaster": compressed_broadcast(compressor), "aggregator": compress(compressor)}


def loss_and_examples(metrics):
    return fedjx.federated_sum({name: metrics[name] for name in ("loss", "num_examples")})


def averaging(model, **options):
    return fed_avg(model, client_optimizer=optax.sgd(0.02), metrics_sum=loss_and_examples, **options)


plain = averaging(model)
coded = averaging(model, **both_ways(uniform_quantizer(8, word_bits=28)))
dense = averaging(model, **both_ways(uniform_quantizer(8)))

# %% [markdown]
# ## The bill
#
# TFF measured sizes while it ran, in an execution environment made for that. Here they are part of a computation's
# type: `communication` lists what one client receives and sends in a round, and nothing is run.

# %%
from fedjx.data import Cohort

NUM_CLIENTS = 10
clients = Cohort(train, range(NUM_CLIENTS), batch_size=20)


def messages(algorithm):
    return algorithm.next.communication(jax.eval_shape(algorithm.init, jax.random.key(0)), clients)


for message in messages(coded):
    print(f"{message.direction:<5}{message.bits:>11,} bits  {message.type}\n")

# %% [markdown]
# The words and the two ends of the range are there, and so are two random keys of 64 bits: one for the order of the
# clients' examples, one for the rounding. TFF's clients drew their own random numbers, so the totals below leave the
# keys out. `fedjx.traffic` is the sum of all messages.
#
# The tutorial prints running totals over ten rounds, by a function that divides by 1,024 and writes *MiB*. What it is
# given are bits, so read *Mibit*.


# %%
def format_size(size):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.2f}{unit}"
        size /= 1024
    return f"{size:.2f}TiB"


def round_bits(algorithm):
    without_keys = [m for m in messages(algorithm) if not str(m.type).startswith("key<")]
    return sum((fedjx.Traffic(**{m.direction: m.bits}) for m in without_keys), fedjx.Traffic()) * NUM_CLIENTS


bits = {"plain": round_bits(plain), "8 bits": round_bits(coded), "8 bits, dense": round_bits(dense)}
for name in ("plain", "8 bits"):
    print(f"{name}: round, broadcasted, aggregated")
    for round_number in range(10):
        sent = bits[name] * (round_number + 1)
        print(f"{round_number} {format_size(sent.down)} {format_size(sent.up)}")

# %% [markdown]
# On the way up there are 128 bits more: the weight, the sum and the number of the losses, the number of examples.
# They make the difference between 439.38 and 439.39.
#
# With bytes, and with words that are full:

# %%
for name, sent in bits.items():
    ratio = bits["plain"].down / sent.down
    sizes = f"{sent.down / 2**20:.2f} Mibit or {sent.metrics()['MiB_down']:.2f} MiB"
    print(f"{name:<14} {sizes} down, {ratio:.4f} times less")

# %% [markdown]
# ## Train until it learns
#
# After its ten rounds, the tutorial's accuracies are between 0.08 and 0.15, of ten classes: both runs guess, and that
# one guesses as well as the other says little. The runs below go on until something is learnt, with a small network
# and a learning rate with which a CPU is enough. For the tutorial's, put `model` in place of `small` and be patient
# or take an accelerator; `fedjx.data.published.emnist` reads its images once you have its files.
#
# Every round logs its sizes beside its loss. The 8-bit run also measures how long the clients' codes would be if a
# lossless coder packed them: most elements of an update are near zero, and such a coder gives the codes that are
# frequent few bits. `compress(..., measure=...)` takes the length in bits of any code and adds up, over the round's
# clients, what they would send.

# %%
from fedjx.aggregation import ans_encode, entropy_bits
from fedjx.data import central, uniform_sampler
from fedjx.models import finalize_metrics, mlp
from fedjx.training import local_evaluate, local_training, local_update

NUM_ROUNDS = 40
small = mlp(10, input_shape=(8, 8, 1), hidden=(200,), scale=1 / 16)
quantizer = uniform_quantizer(8)


sample = uniform_sampler(train.num_clients, NUM_CLIENTS, seed=0)
test_batches = central(test, batch_size=len(test["y"]))
accuracy = jax.jit(lambda params: finalize_metrics(local_evaluate(small, params, test_batches))["accuracy"])


def run(**options):
    algorithm = fed_avg(small, client_optimizer=optax.sgd(0.2), **options)
    state, log = algorithm.init(jax.random.key(0)), []
    for round_number in range(NUM_ROUNDS):
        clients = Cohort(train, sample(round_number), batch_size=20)
        if round_number == 0:
            of_a_round = fedjx.traffic(algorithm.next, state, clients) * NUM_CLIENTS
        state, metrics = algorithm.next(state, clients)
        sent = of_a_round * (round_number + 1)
        log.append(
            {
                **{name: float(x) for name, x in metrics.items() if name != "aggregation"},
                "entropy_coded_bits": float(metrics["aggregation"].get("payload_bits", 0)),
                "accuracy": float(accuracy(state.params)),
                "cumulative_broadcasted_bits": sent.down,
                "cumulative_aggregated_bits": sent.up,
            }
        )
    return state.params, log


_, plain_log = run()
measured = compress(quantizer, measure=lambda codes: entropy_bits(codes, num_symbols=256))
params, coded_log = run(broadcaster=compressed_broadcast(quantizer), aggregator=measured)
for log in (plain_log, coded_log):
    print(log[-1])

# %%
import matplotlib.pyplot as plt
import numpy as np

entropy_coded = np.cumsum([row["entropy_coded_bits"] for row in coded_log])
_, (by_round, by_size) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for name, log in (("plain", plain_log), ("8 bits", coded_log)):
    accuracies = [row["accuracy"] for row in log]
    by_round.plot(range(1, NUM_ROUNDS + 1), accuracies, label=name)
    by_size.plot([row["cumulative_aggregated_bits"] / 2**20 for row in log], accuracies, label=name)
by_size.plot(entropy_coded / 2**20, accuracies, "--", label="8 bits, entropy-coded")
by_round.set(xlabel="round", ylabel="test accuracy")
by_size.set(xlabel="Mibit aggregated", xscale="log")
by_size.legend()
plt.show()

# %% [markdown]
# That length is the entropy of the codes, which no coder of one element after the other can beat. The true payload of
# one client's update, by asymmetric numeral systems, is as near to it as the table of how often each code occurs lets
# it be: 258 words, which is much for a kernel of 12,800 elements and nothing for one of a million.

# %%
client_update, local = local_update(small), local_training(optax.sgd(0.2))


@jax.jit
def codes_of_a_kernel(params, batches, key):
    kernel = max(jax.tree.leaves(client_update(params, batches, key, local=local).delta), key=jnp.size).reshape(-1)
    codes, _ = quantizer.symbols(quantizer.encode(key, kernel), kernel.size)
    return codes - codes.min()


codes = codes_of_a_kernel(params, central(train.client(0), batch_size=20), jax.random.key(0))
payload = 32 * len(ans_encode(codes))
print(f"{8 * codes.size:,} bits packed, {float(entropy_bits(codes, 256)):,.0f} of entropy, {payload:,} sent")

# %% [markdown]
# By rounds the curves cannot be told apart; by what was sent they are nearly three times apart (a sixth of this small
# network's parameters are in leaves too small to be compressed), and more with entropy coding. For several seeds, and
# for fewer bits, see `benchmarks/compression.py` and its picture in `benchmarks/results`.
#
# ## Your own encoding
#
# The tutorial ends with an exercise: write an encoding stage of your own. Here it is two functions, and what the
# first returns is what is billed. This one halves every float and works in both directions and in any algorithm.

# %%
from fedjx.aggregation import Compressor

halves = Compressor(
    encode=lambda key, x: x.astype(jnp.bfloat16),
    decode=lambda halves, size: halves.astype(jnp.float32),
)
sent = round_bits(averaging(model, **both_ways(halves)))
print(f"{sent.down:,} bits down, {bits['plain'].down / sent.down:.4f} times less")

# %% [markdown]
# `rotated(...)` turns the vector at random before another compressor, `lloyd_quantizer` has levels that are not
# uniform, `eden` needs as little as one bit an element, and `error_feedback` and `compressed_broadcast(...,
# error_feedback=True)` remember from round to round what was not sent.
