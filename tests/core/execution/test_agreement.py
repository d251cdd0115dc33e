"""Tests of what processes that share a mesh must agree on: one thing that differs is named, and nothing else is.

That they are asked, in every executor, is in `test_hosts`.
"""

import jax
import numpy as np
import optax
import pytest

from fedjx import Clients, fed_avg
from fedjx.aggregation import clip_by_norm
from fedjx.algorithms.scaffold import scaffold
from fedjx.core.execution.agreement import described
from fedjx.data import Cohort, FederatedData, preprocess, truncate, write_store
from fedjx.data.fingerprint import fingerprint
from fedjx.models import linear

SIZES = np.array([3, 1, 4, 0, 2])


def clients_data(*, seed=0, num_classes=3):
    random = np.random.default_rng(seed)
    examples = {"x": random.normal(size=(10, 4)).astype(np.float32), "y": np.arange(10) % num_classes}
    return FederatedData(examples, np.append(0, SIZES.cumsum()))


def algorithm(*, rate=0.1, **options):
    return fed_avg(linear(3, input_shape=(4,)), client_optimizer=optax.sgd(rate), **options)


def parts(*, of=None, state=None, data=None, ids=(0, 2), batch_size=2, **options):
    of = of or algorithm()
    state = of.init(jax.random.key(0)) if state is None else state
    cohort = Cohort(clients_data() if data is None else data, ids, batch_size=batch_size, **options)
    return described(of.next.program(state, cohort), {"state": state, "data": cohort})


@pytest.fixture(scope="module")
def same():
    return parts()


def other_state(**fields):
    return algorithm().init(jax.random.key(0))._replace(**fields)


def one_weight():
    params = algorithm().init(jax.random.key(0)).params
    return jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1e-6), params)


THE_COMPUTATION = "the computation (a function, or a number in one, such as a rate)"
DIFFERENT = {
    "first key": (lambda: parts(state=other_state(key=jax.random.key(1))), {"state.key"}),
    "one weight": (lambda: parts(state=other_state(params=one_weight())), {"state.params"}),
    "another round": (lambda: parts(state=other_state(round=np.int32(1))), {"state.round"}),
    "sampler": (lambda: parts(ids=(0, 1)), {"data.ids"}),
    "order of the cohort": (lambda: parts(ids=(2, 0)), {"data.ids"}),
    "data": (lambda: parts(data=clients_data(seed=1)), {"data.data"}),
    "lanes": (lambda: parts(lanes=2), {"data.lanes"}),
    "placement": (lambda: parts(placement="streamed"), {"data.placement"}),
    "batch size": (lambda: parts(batch_size=3), {"data.batch_size", THE_COMPUTATION}),
    "client's rate": (lambda: parts(of=algorithm(rate=0.1 + 1e-6)), {THE_COMPUTATION}),
    "server's rate": (lambda: parts(of=algorithm(server_optimizer=optax.sgd(0.5))), {THE_COMPUTATION}),
    "epochs": (lambda: parts(of=algorithm(num_epochs=2)), {THE_COMPUTATION}),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_named_and_nothing_else(name, same):
    described_of, expected = DIFFERENT[name]
    other = described_of()
    assert {part for part in same | other if same.get(part) != other.get(part)} == expected


def test_what_is_made_again_is_the_same(same):
    jax.clear_caches()  # what JAX shares between traces must not count
    assert parts() == same


def test_constants_in_functions_count():
    """An array, and a number of an aggregator or of another method, held by functions at clients and server."""
    found = [
        parts(of=algorithm(aggregator=clip_by_norm(max_norm=1.0)))[THE_COMPUTATION],
        parts(of=algorithm(aggregator=clip_by_norm(max_norm=1.0 + 1e-6)))[THE_COMPUTATION],
    ]
    model = linear(3, input_shape=(4,))
    for offset in (np.zeros((1, 4), np.float32), np.full((1, 4), 1e-6, np.float32)):
        moved = model._replace(
            loss=lambda params, batch, key, offset=offset: model.loss(params, {**batch, "x": batch["x"] + offset}, key)
        )
        found.append(parts(of=fed_avg(moved, client_optimizer=optax.sgd(0.1)))[THE_COMPUTATION])
    for num_clients in (5, 6):
        method = scaffold(model, num_clients=num_clients, client_optimizer=optax.sgd(0.1))
        state = method.init(jax.random.key(0))
        own = jax.tree.map(lambda x: np.zeros((2, *np.shape(x)), x.dtype), method.init_client(state))
        cohort = Cohort(clients_data(), [0, 2], batch_size=2)
        found.append(method.next.program(state, cohort, Clients.of(own, ids=np.array([0, 2]))).fingerprint())
    assert len(set(found)) == len(found)


def test_a_fingerprint_of_data_is_of_who_has_what(tmp_path):
    data = clients_data()
    same = fingerprint(data)
    assert fingerprint(write_store(tmp_path / "store", data, progress=False)) == same
    examples = {name: x.copy() for name, x in data.examples.items()}
    examples["x"][-1, -1] += 1e-6
    others = [
        FederatedData(examples, data.offsets),
        FederatedData(data.examples, np.array([0, 3, 5, 8, 8, 10])),
        FederatedData(data.examples, data.offsets, ids=np.array([0, 1, 2, 3, 5])),
        FederatedData({**data.examples, "y": data.examples["y"].astype(np.int16)}, data.offsets),
        preprocess(data, truncate(2)),
        preprocess(data, lambda columns: {**columns, "x": columns["x"] + 1}),
    ]
    assert len({same, *map(fingerprint, others)}) == 1 + len(others)
