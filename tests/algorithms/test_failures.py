"""Clients that fail, against a loop in NumPy that is told who does."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.algorithms import ditto, fed_avg, fed_dyn, fed_lin, fed_nova, mime, scaffold
from fedjx.core.execution.process import StatefulAlgorithm
from fedjx.core.language.values import Clients, Sequence
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model
from fedjx.training import ClientUpdate, Failures, Method, compose
from fedjx.training.failures import fate
from fedjx.training.round import round_keys
from tests.algorithms.problems import assert_trees_close

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
    amount = {"num_epochs": NUM_EPOCHS, "shuffle": False}
    algorithm = fed_avg(mean_model(), client_optimizer=optax.sgd(RATE), failures=FAILURES, **amount)
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
        state, metrics = algorithm.next(state, Cohort(clients, ids, batch_size=BATCH_SIZE).whole())
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
    after, metrics = algorithm.next(state, Cohort(clients, range(len(SIZES)), batch_size=BATCH_SIZE).whole())
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


@pytest.mark.parametrize("method", [{"num_epochs": NUM_EPOCHS}, {"num_steps": 2}], ids=str)
def test_who_does_not_fail_reports_as_before(method):
    found = []
    for failures in (None, Failures(partial=1e-9)):
        algorithm = fed_avg(mean_model(), client_optimizer=optax.sgd(RATE, momentum=0.9), failures=failures, **method)
        found.append(
            algorithm.next(algorithm.init(jax.random.key(0)), Cohort(data(), range(8), batch_size=BATCH_SIZE).whole())
        )
    (plain, plain_metrics), (unfailing, metrics) = found
    chex.assert_trees_all_equal(unfailing.params, plain.params)
    assert metrics.items() >= plain_metrics.items()


def test_all_may_fail():
    algorithm = fed_avg(mean_model(), client_optimizer=optax.sgd(RATE), failures=Failures(dropped=0.5, non_finite=0.5))
    before = algorithm.init(jax.random.key(0))
    after, metrics = algorithm.next(before, Cohort(data(), range(8), batch_size=BATCH_SIZE).whole())
    chex.assert_trees_all_equal(after.params, before.params)
    assert np.isnan(metrics.pop("loss"))  # over nobody
    chex.assert_tree_all_finite(metrics)
    assert int(metrics["num_clients"]) == 0
    assert int(metrics["num_dropped_clients"] + metrics["num_non_finite_clients"]) == 8


def test_a_client_that_is_not_finite_by_itself_is_counted_once():
    def client_update(params: Any, data: Any, key: Any) -> ClientUpdate:
        by_itself = data.elements["x"][0, 0, 0]
        metrics = {"num_non_finite_clients": by_itself.astype(jnp.int32)}
        return ClientUpdate(jnp.zeros_like(params), jnp.float32(1), metrics)

    algorithm = compose(Method(mean_model().init, client_update), failures=Failures(non_finite=1.0))
    for length, by_itself, count in ((1, True, 1), (1, False, 1), (0, False, 0)):
        x, mask = jnp.full((1, 1, 1, 1), by_itself, jnp.float32), jnp.ones((1, 1, 1), bool)
        one = Clients.of(Sequence({"x": x, "mask": mask}, jnp.full(1, length, jnp.int32)))
        _, metrics = algorithm.next(algorithm.init(jax.random.key(0)), one)
        assert int(metrics["num_non_finite_clients"]) == count
        assert int(metrics["num_clients"]) == (0 if length else 1)


@pytest.mark.parametrize("method", ["scaffold", "ditto", "mime", "fed_lin", "fed_dyn"])
def test_who_fails_is_as_if_never_sampled_whatever_the_method(method):
    """With states, two passes, or both: what is left of a round are the clients that did not fail."""
    model, sgd, everybody = mean_model(), optax.sgd(RATE, momentum=0.5), range(len(SIZES))
    build = {
        "scaffold": functools.partial(scaffold, model, num_clients=8, client_optimizer=sgd),
        "ditto": functools.partial(ditto, model, proximal_strength=0.1, client_optimizer=sgd),
        "mime": functools.partial(mime, model, base_optimizer=sgd),
        "fed_lin": functools.partial(fed_lin, model, client_optimizer=sgd),
        "fed_dyn": functools.partial(fed_dyn, model, num_clients=8, proximal_strength=0.1, client_optimizer=sgd),
    }[method]
    failures = Failures(dropped=0.3, non_finite=0.3)
    failing, reliable = build(failures=failures), build()
    state = failing.init(jax.random.key(3))
    key = round_keys(state.key, state.round).clients
    fates = jax.vmap(lambda id: fate(failures, jax.random.fold_in(key, id)))(jnp.arange(len(SIZES)))
    left = [int(k) for k in np.flatnonzero(~(fates.dropped | fates.non_finite))]
    assert 0 < len(left) < len(SIZES)

    def after(algorithm: Any, ids: Any) -> Any:
        arguments = [state, Cohort(data(), ids, batch_size=BATCH_SIZE).whole(num_steps=4)]
        if isinstance(algorithm, StatefulAlgorithm):
            first = jax.tree.map(lambda x: x + 0.1, algorithm.init_client(state))
            arguments.append(Clients.of([first for _ in ids], ids=np.array(list(ids))))
        return algorithm.next(*arguments)

    got, metrics, *states = after(failing, everybody)
    want, _, *kept = after(reliable, left)
    assert_trees_close(got, want)
    counted = {kind: int(metrics[f"num_{kind}_clients"]) for kind in ("dropped", "non_finite")}
    assert counted == {"dropped": int(sum(fates.dropped)), "non_finite": int(sum(fates.non_finite))}
    if states:
        before = jax.tree.map(lambda x: x + 0.1, failing.init_client(state))
        members = states[0].members()
        for k in everybody:
            assert_trees_close(members[k], kept[0].members()[k] if k in left else jax.tree.map(np.asarray, before))


def test_wrong_failures_are_refused():
    for failures in (Failures(dropped=-0.1), Failures(dropped=0.6, partial=0.6)):
        with pytest.raises(ValueError, match=r"probabilities are not negative and add up to at most one; got Failures"):
            fed_avg(mean_model(), client_optimizer=optax.sgd(RATE), failures=failures)
    own = Method(mean_model().init, lambda params, data, key: ClientUpdate(params, jnp.float32(1), {}))
    with pytest.raises(TypeError, match=r"left incomplete trains with local.train; got Failures.*partial=0\.1"):
        compose(own, failures=Failures(partial=0.1))
