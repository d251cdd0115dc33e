"""What the engine does with cohorts that samplers draw: repeated ids, and nobody at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.algorithms import fed_avg
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.operators import federated_sum, federated_value
from fedjx.core.language.placed import federated_map
from fedjx.core.language.types import SERVER
from fedjx.data import Cohort
from fedjx.data.sampling import poisson_sampler
from fedjx.models import Model
from fedjx.training.round import round_keys
from tests.algorithms.problems import BATCH_SIZE, NUM_FEATURES, assert_trees_close, federated_data
from tests.data.stores import written

DATA = federated_data()


def noisy_means():
    """Estimates the features' means from noisy examples: quick to compile, and the clients' keys matter."""

    def loss(params, batch, key):
        noise = jax.random.normal(key, (1, NUM_FEATURES))
        return jnp.sum((batch["x"] + noise - params[None]) ** 2, axis=-1)

    return Model(lambda key: jnp.zeros(NUM_FEATURES), loss, lambda params, batch: {})


def averaging(**options):
    return fed_avg(noisy_means(), client_optimizer=optax.sgd(0.01, momentum=0.9), **options)


def chunks(ids, **options):
    return Cohort(DATA, ids, batch_size=BATCH_SIZE, **options)


def weighted_by_number_of(ids):
    """Weights a client, which its number of examples gives away, by this number times how often it is named."""
    times = np.bincount(ids, minlength=DATA.num_clients)

    def weight(num_examples):
        return num_examples * jnp.sum(jnp.where(DATA.sizes == num_examples, times, 0)).astype(jnp.float32)

    return weight


def test_a_client_that_is_drawn_twice_counts_twice():
    ids = [7, 2, 7, 4, 7, 2]
    different = Cohort(DATA, np.unique(ids), batch_size=BATCH_SIZE).whole(num_places=len(ids))
    repeated = averaging()
    state = repeated.init(jax.random.key(0))
    got, metrics = repeated.next(state, Cohort(DATA, ids, batch_size=BATCH_SIZE).whole())
    again, same = repeated.next(state, chunks(ids, lanes=1, placement="streamed"))
    assert_trees_close(again, got)
    assert_trees_close(same, metrics)
    once = averaging(client_weight=weighted_by_number_of(ids))
    expected, _ = once.next(state, different)
    assert_trees_close(got, expected)
    assert int(metrics["num_clients"]) == len(ids)
    assert int(metrics["num_examples"]) == DATA.sizes[ids].sum()
    # The control: counted once, it makes another model.
    unweighted, _ = repeated.next(state, different)
    with pytest.raises(AssertionError):
        assert_trees_close(got.params, unweighted.params)


def noisy_sum():
    """A sum with noise, as a mechanism of differential privacy has it."""

    def noised(key, total):
        return jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), total)

    @federated_computation
    def next(key, state, value, weight):
        del weight
        return state, federated_map(noised, key, federated_sum(value)), federated_value({}, SERVER)

    return Aggregator(lambda member: (), next)


def test_nobody_contributes_nothing_to_a_round_that_takes_place(tmp_path):
    private = averaging(aggregator=noisy_sum())
    state = private.init(jax.random.key(0))
    key = round_keys(state.key, state.round).aggregator
    expected = jax.tree.map(lambda x: x - jax.random.normal(key, x.shape), state.params)
    store = written(tmp_path / "store", [DATA.client(k) for k in range(DATA.num_clients)])
    for data in (DATA, store):
        after, metrics = private.next(state, Cohort(data, [], batch_size=BATCH_SIZE))
        assert_trees_close(after.params, expected)
        assert int(after.round) == 1
        assert [int(metrics[name]) for name in ("num_clients", "num_examples", "num_non_finite_clients")] == [0, 0, 0]


def test_poisson_cohorts_of_any_size_run_one_after_another():
    algorithm = averaging()
    state = algorithm.init(jax.random.key(0))
    sample, sizes = poisson_sampler(DATA.num_clients, probability=0.15, seed=0), []
    for round in range(6):
        ids = sample(round)
        members = chunks(ids, lanes=1)
        before = state
        state, metrics = algorithm.next(state, members)
        is_same = jax.tree.map(np.array_equal, state.params, before.params)
        assert all(jax.tree.leaves(is_same)) == (len(ids) == 0)
        assert int(metrics["num_clients"]) == len(ids)
        sizes.append(len(ids))
    assert int(state.round) == 6
    assert min(sizes) == 0 < max(sizes)
