"""Batch statistics: through a client's steps, over the clients of a round, and each client's own."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from fedjx.algorithms import fed_avg
from fedjx.algorithms.agnostic_fed_avg import agnostic_fed_avg
from fedjx.algorithms.apfl import apfl
from fedjx.algorithms.fed_bn import fed_bn
from fedjx.algorithms.fed_dyn import fed_dyn
from fedjx.algorithms.fed_exp import fed_exp
from fedjx.algorithms.fed_lin import fed_lin
from fedjx.algorithms.fed_nova import fed_nova
from fedjx.algorithms.mime import mime
from fedjx.algorithms.q_fed_avg import q_fed_avg
from fedjx.algorithms.scaffold import scaffold
from fedjx.core.language.values import Clients
from fedjx.data import Cohort, FederatedData
from fedjx.models import batch_loss, from_flax, mean_loss
from fedjx.models.model import Variables
from fedjx.training import local_train
from fedjx.training.batch_stats import in_batch_norm, is_batch_stat
from fedjx.training.parts import combine, partition
from tests.algorithms.problems import BATCH_SIZE, federated_data, materialised, normed_model, plain_model

MOMENTUM, EPSILON, RATE = 0.8, 1e-5, 0.1  # Momentum is that of `normed_model`, epsilon Flax's.
COHORT = (1, 3, 5)


def statistics_in_numpy(stats: Any, x: Any, num_epochs: int) -> Any:
    """Running mean and variance over the batches of one client; of the inputs, so they depend on no parameter."""
    mean, var = stats
    for start in [*range(0, len(x), BATCH_SIZE)] * num_epochs:
        batch = x[start : start + BATCH_SIZE].astype(np.float64)
        mean = MOMENTUM * mean + (1 - MOMENTUM) * batch.mean(axis=0)
        var = MOMENTUM * var + (1 - MOMENTUM) * batch.var(axis=0)
    return np.stack([mean, var])


def with_features(data: FederatedData, client: int, value: float) -> FederatedData:
    """The same data, but for the features of one client."""
    x = np.array(data.examples["x"])
    x[data.offsets[client] : data.offsets[client + 1]] = value
    return FederatedData({**data.examples, "x": x}, data.offsets)


def stats_of(variables: Variables) -> Any:
    norm = variables.batch_stats["norm"]
    return np.stack([norm["mean"], norm["var"]])


def test_statistics_are_the_clients_mean_whatever_the_server_does_to_parameters():
    data = federated_data()
    algorithm = fed_avg(
        normed_model(),
        client_optimizer=optax.sgd(RATE, momentum=0.9),
        server_optimizer=optax.adam(0.1),
        num_epochs=2,
        shuffle=False,
    )
    state = first = algorithm.init(jax.random.key(0))
    stats = np.stack([np.zeros(5), np.ones(5)])
    for _ in range(2):
        own = [statistics_in_numpy(stats, data.client(k)["x"], 2) for k in COHORT]
        stats = np.average(own, axis=0, weights=[data.sizes[k] for k in COHORT])
        state, _ = algorithm.next(state, Cohort(data, COHORT, batch_size=BATCH_SIZE).whole(num_places=4))
        np.testing.assert_allclose(stats_of(state.params), stats, rtol=1e-5)
    assert "batch_stats" not in str(jax.tree.map(jnp.shape, state.optimizer))

    broken = with_features(data, 3, np.nan)
    got, metrics = algorithm.next(first, Cohort(broken, COHORT, batch_size=BATCH_SIZE).whole(num_places=4))
    without, _ = algorithm.next(first, Cohort(data, (1, 5), batch_size=BATCH_SIZE).whole(num_steps=3, num_places=4))
    assert int(metrics["num_non_finite_clients"]) == 1
    chex.assert_trees_all_close(got.params, without.params, rtol=1e-5)
    outlier, _ = algorithm.next(
        first, Cohort(with_features(data, 3, 1e3), COHORT, batch_size=BATCH_SIZE).whole(num_places=4)
    )
    assert np.abs(stats_of(outlier.params) - stats_of(got.params)).max() > 10  # the control


def loss_by_hand(params: Any, x: Any, y: Any) -> Any:
    """Batch normalisation of whole batches of real examples, from its formula."""
    centred = x - x.mean(axis=0, keepdims=True)
    normed = centred * jax.lax.rsqrt((centred**2).mean(axis=0, keepdims=True) + EPSILON)
    hidden = normed * params["norm"]["scale"][None] + params["norm"]["bias"][None]
    logits = hidden @ params["out"]["kernel"] + params["out"]["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def test_padding_in_a_batch_does_not_count():
    data, model = federated_data(), normed_model()
    variables = model.init(jax.random.key(1))
    padded = materialised(data, [3], num_steps=4, num_clients=1, garbage=1e6).value
    one = jax.tree.map(lambda x: jnp.asarray(x)[0], padded)
    train = jax.jit(
        lambda v, data: local_train(model, v, data, jax.random.key(0), optimizer=optax.adam(RATE), shuffle=False)
    )
    trained = train(variables, one).params

    optimizer, params, client = optax.adam(RATE), variables.params, data.client(3)
    step = jax.jit(lambda p, s, x, y: optimizer.update(jax.grad(loss_by_hand)(p, x, y), s, p))
    state = optimizer.init(params)
    for rows in (slice(0, 4), slice(4, 7)):
        updates, state = step(params, state, client["x"][rows], client["y"][rows])
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(trained.params, params, rtol=1e-4, atol=1e-5)
    expected = statistics_in_numpy(np.stack([np.zeros(5), np.ones(5)]), client["x"], 1)
    np.testing.assert_allclose(stats_of(trained), expected, rtol=1e-5)


def test_what_is_local_goes_by_the_layer():
    model = normed_model()
    variables = jax.eval_shape(model.init, jax.random.key(0))
    layers = partition(variables, in_batch_norm(model))
    assert jax.tree.leaves(layers.shared) == jax.tree.leaves(variables.params["out"])
    assert set(layers.local.params["norm"]) == {"bias", "scale"}
    alone = partition(variables, is_batch_stat)
    assert jax.tree.leaves(alone.shared) == jax.tree.leaves(variables.params)
    assert jax.tree.leaves(alone.local) == jax.tree.leaves(variables.batch_stats)
    with pytest.raises(ValueError, match="the model must have batch statistics; got parameters of dict"):
        fed_bn(plain_model(), client_optimizer=optax.sgd(RATE))


def test_an_algorithm_that_does_not_carry_them_refuses_them():
    model = normed_model()
    batch = {"x": jnp.ones((2, 5)), "y": jnp.zeros(2, int), "mask": jnp.ones(2, bool)}
    variables = model.init(jax.random.key(0))
    with pytest.raises(TypeError, match="needs an algorithm that carries them; got loss as LossWithStats"):
        jax.eval_shape(lambda: mean_loss(model.loss(variables, batch, jax.random.key(0)), batch["mask"]))
    with pytest.raises(TypeError, match="needs an algorithm that carries them; got loss as LossWithStats"):
        jax.eval_shape(batch_loss(model), variables, batch, jax.random.key(0))


def test_the_loss_of_a_batch_carries_them_when_asked_to():
    model = normed_model()
    batch = {"x": jnp.ones((3, 5)), "y": jnp.zeros(3, int), "mask": jnp.array([True, True, False])}
    variables, key = model.init(jax.random.key(0)), jax.random.key(1)
    mean, (sums, stats) = batch_loss(model, carries_stats=True)(variables, batch, key)
    losses, expected = model.loss(variables, batch, key)
    jax.tree.map(np.testing.assert_array_equal, stats, expected)
    assert float(mean) == pytest.approx(float(losses[:2].mean()))
    assert (float(sums["loss"].numerator), int(sums["loss"].denominator)) == (pytest.approx(2 * float(mean)), 2)
    assert batch_loss(plain_model(), carries_stats=True)(plain_model().init(key), batch, key)[1].batch_stats is None


def test_a_method_that_treats_them_as_parameters_refuses_them():
    model, clients = normed_model(), {"client_optimizer": optax.sgd(RATE)}
    for algorithm in (
        q_fed_avg(model, q=1.0, lipschitz=1.0, **clients),
        fed_exp(model, **clients),
        fed_nova(model, **clients),
        fed_lin(model, **clients),
        agnostic_fed_avg(model, domain_weights=[1.0], domain_learning_rate=0.1, **clients),
        apfl(model, **clients),
        scaffold(model, num_clients=4, **clients),
        fed_dyn(model, num_clients=4, proximal_strength=0.1, **clients),
        mime(model, base_optimizer=optax.sgd(RATE)),
    ):
        with pytest.raises(ValueError, match=r"takes models without batch statistics; got Variables\. Freeze them"):
            jax.eval_shape(algorithm.init, jax.random.key(0))


# --- FedBN ----------------------------------------------------------------------------------------

NUM_CLIENTS, NUM_EXAMPLES, NUM_ROUNDS = 6, 40, 10


class Digits(nnx.Module):
    """A linear classifier of normalised pixels."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(64, momentum=0.8, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Any, mask: Any) -> Any:
        return self.out(self.norm(x, mask=mask[:, None]))


def shifted_digits(seed: int, strength: float) -> list[Any]:
    """Digits for training and for testing, ``[clients, examples, ...]``; every client's pixels are scaled and moved."""
    random, (x, y) = np.random.default_rng(seed), load_digits(return_X_y=True)
    scale = np.exp(strength * random.normal(size=(NUM_CLIENTS, 1, 64)))
    shift = strength * random.normal(size=(NUM_CLIENTS, 1, 64))
    rows = random.permutation(len(y))[: 2 * NUM_CLIENTS * NUM_EXAMPLES]
    return [
        {"x": (x[part] / 16 * scale + shift).astype(np.float32), "y": y[part].astype(np.int32)}
        for part in rows.reshape(2, NUM_CLIENTS, NUM_EXAMPLES)
    ]


def federated(examples: dict[str, np.ndarray]) -> FederatedData:
    return FederatedData.from_clients([{name: x[k] for name, x in examples.items()} for k in range(NUM_CLIENTS)])


@pytest.fixture(scope="module")
def on_digits() -> Any:
    """FedAvg and FedBN of one model, and its accuracy over models and test data of all clients."""
    model = from_flax(Digits)
    algorithms = [build(model, client_optimizer=optax.sgd(0.1)) for build in (fed_avg, fed_bn)]
    return *algorithms, jax.jit(jax.vmap(lambda v, batch: model.metrics(v, batch)["accuracy"].mean()))


def own_models(algorithm: Any, examples: dict[str, np.ndarray], seed: int, num_rounds: int = NUM_ROUNDS) -> Any:
    """Trains, and returns the model of each client, leaves ``[clients, ...]``."""
    state = algorithm.init(jax.random.key(seed))
    clients, ids = Cohort(federated(examples), range(NUM_CLIENTS), batch_size=20).whole(), np.arange(NUM_CLIENTS)

    def each(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], NUM_CLIENTS, 0), tree)

    states = (
        [Clients.of(each(jax.jit(algorithm.init_client)(state)), ids=ids)] if hasattr(algorithm, "init_client") else []
    )
    for _ in range(num_rounds):
        state, _, *states = algorithm.next(state, clients, *states)
    return combine(each(state.params), states[0].value) if states else each(state.params)


def test_fed_bn_beats_shared_statistics_under_feature_shift(on_digits):
    *algorithms, accuracy = on_digits
    gains = {}
    for strength in (0.0, 0.5):
        gains[strength] = []
        for seed in range(5):
            train, test = shifted_digits(seed, strength)
            shared, local = (float(accuracy(own_models(a, train, seed), test).mean()) for a in algorithms)
            gains[strength].append(local - shared)
    assert min(gains[0.5]) > 0.2, gains  # in every one of five seeds
    assert np.mean(gains[0.0]) < 0.03, gains  # the control: without a shift there is nothing to gain


def test_what_a_client_keeps_is_not_touched_by_another(on_digits):
    _, algorithm, _ = on_digits
    train, _ = shifted_digits(0, 0.5)
    before = own_models(algorithm, train, 0, num_rounds=2)
    for value in (1e4, np.nan):
        x = train["x"].copy()
        x[2] = value
        after = own_models(algorithm, {**train, "x": x}, 0, num_rounds=2)
        others = np.arange(NUM_CLIENTS) != 2
        for a, b in zip(jax.tree.leaves(before.batch_stats), jax.tree.leaves(after.batch_stats), strict=True):
            np.testing.assert_array_equal(np.asarray(a)[others], np.asarray(b)[others])
            assert np.isfinite(b).all()
            assert (np.asarray(a)[2] != np.asarray(b)[2]).any()
