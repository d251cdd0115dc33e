"""What the engine does with cohorts that samplers draw: repeated ids, and nobody at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.algorithms import fed_avg
from fedjx.core.process import Aggregator
from fedjx.data import Cohort, cohort, uniform_sampler
from fedjx.data.cohort import empty_cohort
from fedjx.data.sampling import poisson_sampler
from tests.algorithms.problems import BATCH_SIZE, assert_trees_close, assert_trees_equal, dropout_model, federated_data
from tests.data.stores import written

DATA = federated_data()


def averaging(**options):
    return fed_avg(dropout_model(), client_optimizer=optax.sgd(0.1, momentum=0.9), **options)


def chunks(ids, **options):
    return Cohort(DATA, ids, batch_size=BATCH_SIZE, **options)


def weighted_by_number_of(ids):
    """Weights a client, which its number of examples gives away, by this number times how often it is named."""
    times = np.bincount(ids, minlength=DATA.num_clients)

    def weight(num_examples):
        return num_examples * jnp.sum(jnp.where(DATA.sizes == num_examples, times, 0)).astype(jnp.float32)

    return weight


@pytest.mark.parametrize("ids", [[3, 3, 5], [7, 2, 7, 4, 7, 2]])
def test_a_client_that_is_drawn_twice_counts_twice(ids):
    repeated = averaging()
    state = repeated.init(jax.random.key(0))
    got, metrics = repeated.next(state, cohort(DATA, ids, batch_size=BATCH_SIZE))
    for cohort_of in (
        chunks(ids, lanes=1),
        chunks(ids, lanes=2, placement="streamed"),
        chunks(sorted(ids), lanes=2, placement="resident"),
    ):
        again, same = repeated.next(state, cohort_of)
        assert_trees_close(again, got)
        assert_trees_close(same, metrics)
    once = averaging(client_weight=weighted_by_number_of(ids))
    expected, _ = once.next(state, cohort(DATA, np.unique(ids), batch_size=BATCH_SIZE))
    assert_trees_close(got, expected)
    assert int(metrics["num_clients"]) == len(ids)
    assert int(metrics["num_examples"]) == DATA.sizes[ids].sum()
    # The control: counted once, it makes another model.
    unweighted, _ = repeated.next(state, cohort(DATA, np.unique(ids), batch_size=BATCH_SIZE))
    with pytest.raises(AssertionError):
        assert_trees_close(got.params, unweighted.params)


def test_a_cohort_of_samples_with_replacement_runs():
    algorithm = averaging()
    state = algorithm.init(jax.random.key(0))
    ids = uniform_sampler(DATA.num_clients, 12, seed=0, replacement=True)(0)
    assert len(np.unique(ids)) < 12
    _, metrics = algorithm.next(state, chunks(ids, lanes=4))
    assert int(metrics["num_clients"]) == 12


def noisy_sum():
    """A sum with noise, as a mechanism of differential privacy has it."""
    from fedjx.core.computation import federated_computation
    from fedjx.core.operators import federated_sum, federated_value
    from fedjx.core.placed import federated_map
    from fedjx.core.types import SERVER

    def noised(key, total):
        return jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), total)

    @federated_computation
    def next(key, state, value, weight):
        del weight
        return state, federated_map(noised, key, federated_sum(value)), federated_value({}, SERVER)

    return Aggregator(lambda member: (), next)


@pytest.mark.parametrize("is_stored", [False, True])
def test_nobody_contributes_nothing_to_a_round_that_takes_place(tmp_path, is_stored):
    clients = [DATA.client(k) for k in range(DATA.num_clients)]
    data = written(tmp_path / "store", clients) if is_stored else DATA
    nobody = empty_cohort(data, batch_size=BATCH_SIZE)
    plain = averaging()
    state = plain.init(jax.random.key(0))
    after, metrics = plain.next(state, nobody)
    assert_trees_equal(after.params, state.params)
    assert int(after.round) == 1
    assert {name: float(metrics[name]) for name in ("loss", "num_clients", "num_examples")} == {
        "loss": 0, "num_clients": 0, "num_examples": 0,
    }  # fmt: skip

    private = averaging(aggregator=noisy_sum())
    after, _ = private.next(state, nobody)
    key = jax.random.fold_in(state.key, state.round)
    expected = jax.tree.map(lambda x: x - jax.random.normal(key, x.shape), state.params)
    assert_trees_close(after.params, expected)


def test_poisson_cohorts_of_any_size_run_one_after_another():
    algorithm = averaging()
    state = algorithm.init(jax.random.key(0))
    sample, sizes = poisson_sampler(DATA.num_clients, 0.15, seed=0), []
    for round in range(6):
        ids = sample(round)
        members = chunks(ids, lanes=2) if len(ids) else empty_cohort(DATA, batch_size=BATCH_SIZE)
        state, metrics = algorithm.next(state, members)
        assert int(metrics["num_clients"]) == len(ids)
        sizes.append(len(ids))
    assert int(state.round) == 6
    assert min(sizes) == 0 < max(sizes)
