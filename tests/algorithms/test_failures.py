"""Clients that fail, against a loop in NumPy that is told who does."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from fedjx.algorithms import ClientUpdate, compose, local_update
from fedjx.algorithms.fed_nova import fed_nova
from fedjx.core.language.values import Sequence
from fedjx.data import FederatedData, central, cohort
from fedjx.models import Model
from fedjx.training.compose import round_keys
from fedjx.training.failures import Failures, fate, with_failures

RATE, BATCH_SIZE, NUM_EPOCHS = 0.1, 2, 2
SIZES = (1, 3, 4, 6, 5, 2, 7, 3)
FAILURES = Failures(dropped=0.25, non_finite=0.15, partial=0.4)
KINDS = ("dropped", "non_finite", "partial")


def mean_model() -> Model:
    """The squared distance from a point; the weights of examples and steps all show in where it ends."""

    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        return jnp.sum((params - batch["x"]) ** 2, axis=1)

    return Model(lambda key: jnp.zeros((1, 2)), loss, lambda params, batch: {"loss": loss(params, batch, None)})


def data() -> FederatedData:
    random = np.random.default_rng(0)
    return FederatedData.from_clients([{"x": random.normal(k, size=(n, 2)).astype("f4")} for k, n in enumerate(SIZES)])


def client_in_numpy(params: Any, x: Any, completed: float) -> Any:
    """Gradient steps over the batches of two epochs, as far as the client comes; returns the delta and the weight."""
    starts = [*range(0, len(x), BATCH_SIZE)] * NUM_EPOCHS
    w, seen = params, 0
    for start in starts[: int(np.ceil(np.float32(completed) * len(starts)))]:
        batch = x[start : start + BATCH_SIZE].astype(np.float64)
        w = w - RATE * 2 * (w - batch).mean(axis=0)
        seen += len(batch)
    return params - w, min(seen, len(x))


def test_two_rounds_equal_the_loop_in_numpy_over_those_who_report():
    clients, ids = data(), range(len(SIZES))
    train = local_update(mean_model(), optimizer=optax.sgd(RATE), num_epochs=NUM_EPOCHS, shuffle=False)
    algorithm = compose(with_failures(train, FAILURES), init=mean_model().init)
    state = algorithm.init(jax.random.key(3))
    draw = jax.jit(lambda key, id: fate(FAILURES, jax.random.fold_in(key, id)))
    params, happened = np.zeros(2), dict.fromkeys(KINDS, 0)
    for _ in range(2):
        key = round_keys(state.key, state.round).clients
        total, weight = np.zeros(2), 0
        counts = dict.fromkeys(KINDS, 0)
        for k in ids:
            drawn = draw(key, k)
            counts = {kind: counts[kind] + int(getattr(drawn, kind)) for kind in KINDS}
            if not (drawn.dropped or drawn.non_finite):
                delta, num_examples = client_in_numpy(params, clients.client(k)["x"], float(drawn.completed))
                total, weight = total + num_examples * delta, weight + num_examples
        params = params - total / weight
        state, metrics = algorithm.next(state, cohort(clients, ids, batch_size=BATCH_SIZE))
        np.testing.assert_allclose(np.asarray(state.params)[0], params, rtol=1e-5)
        assert {kind: int(metrics[f"num_{kind}_clients"]) for kind in KINDS} == counts
        assert int(metrics["num_clients"]) == len(SIZES) - counts["dropped"] - counts["non_finite"]
        assert int(metrics["num_examples"]) == weight
        happened = {kind: happened[kind] + counts[kind] for kind in KINDS}
    assert all(happened.values())  # or nothing was tested


def test_fed_nova_with_failures_equals_its_formula_over_the_steps_taken():
    """Wang et al., equation 10, with tau_i the steps that client i gets done."""
    clients, params = data(), np.zeros(2)
    algorithm = fed_nova(
        mean_model(), client_optimizer=optax.sgd(RATE), failures=FAILURES, num_epochs=NUM_EPOCHS, shuffle=False
    )
    state = algorithm.init(jax.random.key(3))
    key = round_keys(state.key, state.round).clients
    fates = jax.jit(jax.vmap(lambda id: fate(FAILURES, jax.random.fold_in(key, id))))(jnp.arange(len(SIZES)))
    normalised, norms, weights = [], [], []
    for k in np.flatnonzero(~(fates.dropped | fates.non_finite)):
        completed = float(fates.completed[k])
        delta, num_examples = client_in_numpy(params, clients.client(int(k))["x"], completed)
        norms.append(np.ceil(np.float32(completed) * (NUM_EPOCHS * -(-SIZES[k] // BATCH_SIZE))))
        normalised.append(delta / norms[-1])
        weights.append(num_examples)
    p = np.array(weights) / np.sum(weights)
    after, metrics = algorithm.next(state, cohort(clients, range(len(SIZES)), batch_size=BATCH_SIZE))
    np.testing.assert_allclose(np.asarray(after.params)[0], -(p @ norms) * (p @ normalised), rtol=1e-5)
    assert int(metrics["num_partial_clients"]) == int(np.sum(fates.partial)) > 0
    assert int(metrics["num_dropped_clients"]) == int(np.sum(fates.dropped)) > 0


def test_fates_come_as_often_as_they_should():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.device_get(jax.jit(jax.vmap(lambda key: fate(FAILURES, key)))(keys))
    kinds = np.stack(drawn[:3])
    assert kinds.sum(axis=0).max() == 1
    counts = np.append(kinds.sum(axis=1), 4000 - kinds.sum())

    def chi_square(probabilities: Any) -> float:
        return float(((counts - 4000 * np.array(probabilities)) ** 2 / (4000 * np.array(probabilities))).sum())

    assert chi_square([0.25, 0.15, 0.4, 0.2]) < 16.3  # 3 degrees of freedom, p = 0.001
    assert chi_square([0.28, 0.15, 0.37, 0.2]) > 16.3  # the control

    parts = drawn.completed[drawn.partial]
    assert (drawn.completed[~drawn.partial] == 1).all()
    assert parts.min() > 0
    expected = len(parts) / 8
    assert ((np.histogram(parts, 8, (0, 1))[0] - expected) ** 2 / expected).sum() < 24.3  # 7 degrees, p = 0.001
    assert ((np.histogram(parts**1.2, 8, (0, 1))[0] - expected) ** 2 / expected).sum() > 24.3


def test_who_does_not_fail_reports_as_before_and_all_may_fail():
    train = local_update(mean_model(), optimizer=optax.sgd(RATE, momentum=0.9), num_epochs=NUM_EPOCHS)
    one = central({"x": data().client(6)["x"]}, batch_size=BATCH_SIZE)
    short, rarely = local_update(mean_model(), optimizer=optax.sgd(RATE), num_steps=2), Failures(partial=1e-9)
    updates = train, with_failures(train, Failures()), short, with_failures(short, rarely)
    found = jax.jit(lambda *given: [update(*given) for update in updates])(jnp.ones((1, 2)), one, jax.random.key(0))
    for plain, unfailing in (found[:2], found[2:]):
        chex.assert_trees_all_equal(unfailing[:2], plain[:2])
        assert unfailing.metrics.items() >= plain.metrics.items()

    algorithm = compose(with_failures(train, Failures(dropped=0.5, non_finite=0.5)), init=mean_model().init)
    before = algorithm.init(jax.random.key(0))
    after, metrics = algorithm.next(before, cohort(data(), range(8), batch_size=BATCH_SIZE))
    chex.assert_trees_all_equal(after.params, before.params)
    chex.assert_tree_all_finite(metrics)
    assert int(metrics["num_clients"]) == 0
    assert int(metrics["num_dropped_clients"] + metrics["num_non_finite_clients"]) == 8


def test_a_client_that_is_not_finite_by_itself_is_counted_once():
    def client_update(params: Any, data: Any, key: Any, by_itself: Any) -> ClientUpdate:
        del data, key
        metrics = {"num_non_finite_clients": by_itself.astype(jnp.int32)}
        return ClientUpdate(jnp.zeros_like(params), jnp.float32(1), metrics)

    failing = jax.jit(with_failures(client_update, Failures(non_finite=1.0)))
    for length, by_itself, count in ((1, True, 1), (1, False, 1), (0, False, 0)):
        data = Sequence({"x": jnp.ones((1, 1))}, jnp.int32(length))
        update = failing(jnp.ones((1, 2)), data, jax.random.key(0), jnp.array(by_itself))
        assert int(update.metrics["num_non_finite_clients"]) == count
        assert float(update.weight) == (0 if length else 1)


def test_wrong_failures_are_refused():
    train = local_update(mean_model(), optimizer=optax.sgd(RATE))
    for failures in (Failures(dropped=-0.1), Failures(dropped=0.6, partial=0.6)):
        with pytest.raises(ValueError, match=r"probabilities are not negative and add up to at most one; got Failures"):
            with_failures(train, failures)
    with pytest.raises(TypeError, match=r"left incomplete takes completed; got Failures.*partial=0\.1"):
        with_failures(lambda params, data, key: train(params, data, key), Failures(partial=0.1))
    with pytest.raises(TypeError, match=r"clients fail one by one; got a computation of all of them"):
        compose(fedjx.federated_computation(lambda params, data, key: data), init=mean_model().init, failures=FAILURES)
