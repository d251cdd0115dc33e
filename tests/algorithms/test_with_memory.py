"""Rounds with a memory at the clients: on disk as in memory, and federated averaging where nothing is lost."""

from __future__ import annotations

import operator

import jax
import numpy as np
import optax
import pytest

from fedjx.aggregation.compress import identity
from fedjx.aggregation.error_feedback import error_feedback
from fedjx.aggregation.sparsify import top_k
from fedjx.algorithms import fed_avg
from fedjx.core.language.values import Clients
from fedjx.data import ClientStates, Cohort
from fedjx.models import linear
from tests.algorithms.problems import NUM_CLASSES, NUM_FEATURES, assert_trees_close, federated_data

DATA = federated_data()
COHORTS = ([9, 0, 4, 5], [1, 4, 7, 9])
MODEL = linear(NUM_CLASSES, input_shape=(NUM_FEATURES,))


def with_memory(compressor):
    return fed_avg(
        MODEL,
        client_optimizer=optax.sgd(0.05, momentum=0.9),
        server_optimizer=optax.sgd(0.7, momentum=0.9),
        aggregator=error_feedback(compressor, where=lambda leaf: len(leaf.shape) > 1),
    )


def in_memory(algorithm):
    """Two rounds in one program each, with a table of all clients' memories."""
    state = algorithm.init(jax.random.key(1))
    table = jax.tree.map(lambda x: np.zeros((DATA.num_clients, *x.shape), x.dtype), algorithm.init_client(state))
    metrics = None
    for ids in COHORTS:
        memories = Clients.of(jax.tree.map(operator.itemgetter(np.array(ids)), table), ids=ids)
        state, metrics, memories = algorithm.next(state, Cohort(DATA, ids, batch_size=4).whole(), memories)
        for kept, new in zip(jax.tree.leaves(table), jax.tree.leaves(memories.value), strict=True):
            kept[np.array(ids)] = new
    return state, metrics, table


@pytest.fixture(scope="module")
def sparse():
    algorithm = with_memory(top_k(fraction=0.2))
    return algorithm, in_memory(algorithm)


def test_streamed_with_memories_on_disk_is_as_in_memory(sparse, tmp_path):
    algorithm, (expected, expected_metrics, table) = sparse
    state = algorithm.init(jax.random.key(1))
    with ClientStates(tmp_path / "states", algorithm.init_client(state), num_clients=DATA.num_clients) as states:
        step, metrics = algorithm.next.streamed(sink=states.sink), None
        for number, ids in enumerate(COHORTS, 1):
            state, metrics, _ = step(state, Cohort(DATA, ids, batch_size=4, lanes=1), states.cohort(ids))
            states.commit(number)
        assert_trees_close((state, metrics), (expected, expected_metrics), rtol=1e-4, atol=1e-6)
        assert_trees_close(states.take(np.arange(DATA.num_clients)), table, rtol=1e-4, atol=1e-6)
    remembered = np.abs(table["head"]["kernel"]).max(axis=(1, 2))
    np.testing.assert_array_equal(np.flatnonzero(remembered), sorted({*COHORTS[0], *COHORTS[1]}))
    assert np.abs(table["head"]["bias"]).max() == 0


def test_where_nothing_is_lost_it_is_federated_averaging(sparse):
    state, metrics, table = in_memory(with_memory(identity()))
    algorithm = fed_avg(
        MODEL, client_optimizer=optax.sgd(0.05, momentum=0.9), server_optimizer=optax.sgd(0.7, momentum=0.9)
    )
    expected, expected_metrics = algorithm.init(jax.random.key(1)), None
    for ids in COHORTS:
        expected, expected_metrics = algorithm.next(expected, Cohort(DATA, ids, batch_size=4).whole())
    assert metrics.pop("aggregation") == {"num_non_finite": 0}
    assert expected_metrics.pop("aggregation") == {}
    assert_trees_close((state, metrics), (expected, expected_metrics))
    assert not np.any(table["head"]["kernel"])
    with pytest.raises(AssertionError):  # the negative control
        assert_trees_close(sparse[1][0].params, expected.params)
