"""Evaluation of personalised models, splits of a client's data, and reconstruction of a matrix of ratings."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest

from fedjx.aggregation import uniform
from fedjx.algorithms.personalization import fine_tuning, personal_evaluation, personalization_evaluation
from fedjx.algorithms.reconstruction import reconstructing, reconstruction
from fedjx.core.language.values import Batches, Clients, Sequence
from fedjx.data import Cohort, FederatedData
from fedjx.models.factorization import matrix_factorization
from fedjx.training.splits import feature_split, random_split
from tests.algorithms.test_personal import BATCH_SIZE, START, batches, gradient, regression, sgd

KEY = jax.random.key(4)


@pytest.fixture(scope="module")
def data() -> FederatedData:
    """Client 2 has a single example, thus none to test on."""
    random = np.random.default_rng(3)
    clients = [{"x": random.normal(size=(n, 2)), "y": random.normal(size=n) + 1} for n in (4, 3, 1, 8)]
    return FederatedData.from_clients([{k: v.astype(np.float32) for k, v in c.items()} for c in clients])


# --- evaluation -----------------------------------------------------------------------------------

TUNED = {"shuffle": False, "optimizer": optax.sgd(0.1)}
EVALUATION = personalization_evaluation(
    regression(),
    {
        "still": fine_tuning(regression(), optimizer=optax.sgd(0.0)),
        "one": fine_tuning(regression(), num_epochs=1, **TUNED),
        "two": fine_tuning(regression(), num_epochs=2, **TUNED),
    },
)


@pytest.fixture(scope="module")
def evaluated(data: FederatedData) -> Any:
    return EVALUATION(START, Cohort(data, [3, 0, 2, 1], batch_size=BATCH_SIZE).whole(), KEY)


def test_strategies_equal_the_loop_in_numpy(data, evaluated):
    means, metrics = evaluated
    tested, start = [], np.append(START["weight"], START["bias"])
    for k, got in metrics.members().items():
        x, y = (np.concatenate(parts) for parts in zip(*batches(data, k), strict=True))
        train = [(x[::2][i : i + BATCH_SIZE], y[::2][i : i + BATCH_SIZE]) for i in range(0, len(y[::2]), BATCH_SIZE)]
        for name, epochs in (("baseline", 0), ("still", 0), ("one", 1), ("two", 2)):
            w = sgd(start, train * epochs, gradient, rate=0.1)
            loss = np.mean((x[1::2] @ w[:2] + w[2] - y[1::2]) ** 2) if len(y) > 1 else np.nan
            np.testing.assert_allclose(got[name]["loss"], loss, rtol=1e-5)
            assert got[name]["num_examples"] == len(y) // 2
        jax.tree.map(np.testing.assert_array_equal, got["still"], got["baseline"])  # No step, no difference.
        tested += [got["two"]["loss"]] * (k != 2)
    np.testing.assert_allclose(means["two"]["loss"], np.mean(tested), rtol=1e-6)
    assert int(means["num_clients"]) == 3


def test_what_a_client_gets_does_not_depend_on_the_cohort(data, evaluated):
    """In chunks into a sink, with others, in another order."""
    found: dict[int, Any] = {}
    streamed = EVALUATION.streamed(sink=lambda chunk: found.update(Clients(*leaves(chunk)).members()))
    streamed(START, Cohort(data, [2, 3, 1], batch_size=BATCH_SIZE, lanes=1), KEY)
    assert sorted(found) == [1, 2, 3]
    expected = evaluated[1].members()
    for k, (got,) in found.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected[k])


def leaves(chunk: Clients) -> Any:
    return chunk.value, chunk.mask, chunk.id


def test_training_and_test_data_may_be_given_as_pairs(data):
    model = regression()
    pair = Cohort(data, [3, 0], batch_size=BATCH_SIZE).whole()
    pairs = Clients.of({"train": pair.value, "test": pair.value}, ids=pair.id)
    evaluation = personalization_evaluation(
        model,
        {"tuned": fine_tuning(model, num_steps=1, **TUNED)},
        split=lambda pair, key: (pair["train"], pair["test"]),
    )
    _, metrics = evaluation(START, pairs, KEY)
    np.testing.assert_array_equal(metrics.value["baseline"]["num_examples"], [8, 4])
    assert (metrics.value["tuned"]["loss"] < metrics.value["baseline"]["loss"]).all()


def test_personal_models_are_evaluated_each_on_its_own_data(data):
    evaluation = personal_evaluation(regression(), lambda params, own: {**params, "bias": own})
    clients = Cohort(data, [3, 0], batch_size=BATCH_SIZE).whole()
    biases = np.array([-1, 2], np.float32)
    means, metrics = evaluation({"weight": START["weight"]}, clients, Clients.of(biases, ids=[3, 0]))
    expected = [
        np.mean((data.client(k)["x"] @ START["weight"] + b - data.client(k)["y"]) ** 2)
        for k, b in zip((3, 0), biases, strict=True)
    ]
    np.testing.assert_allclose(metrics.value["personal"]["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(means["personal"]["loss"], np.mean(expected), rtol=1e-5)


def test_a_strategy_has_a_name_of_its_own():
    with pytest.raises(ValueError, match=r"a strategy has a name of its own; got \['baseline'\]. Call"):
        personalization_evaluation(regression(), {"baseline": fine_tuning(regression(), **TUNED)})


# --- splits ---------------------------------------------------------------------------------------


def rows(part: Sequence) -> list[int]:
    index = np.asarray(part.elements.index)
    return index[index >= 0].tolist()


def test_a_random_split_is_a_cover_that_padding_does_not_change():
    split = jax.jit(random_split(0.3))
    pool = {"x": np.arange(9)}
    index = np.array([[4, 5, 6], [7, 8, 0], [1, -1, -1]], np.int32)
    padded = np.concatenate([index, np.full((2, 3), -1, np.int32)])
    drawn = set()
    for seed in range(20):
        key = jax.random.key(seed)
        first, second = split(Sequence(Batches(pool, padded), np.int32(3)), key)
        assert sorted(rows(first) + rows(second)) == sorted(index[index >= 0])
        assert len(rows(first)) == 3  # ceil(0.3 * 7)
        holed = np.concatenate([index[:1], np.full((2, 3), -1, np.int32), index[1:]])
        assert rows(split(Sequence(Batches(pool, holed), np.int32(5)), key)[0]) == rows(first)
        drawn |= set(rows(first))
    assert len(drawn) == 7
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\]; got fraction=1.1. Pass"):
        random_split(1.1)


def test_a_feature_may_say_what_is_for_training():
    pool = {"x": np.arange(4), "is_train": np.array([True, False, False, True])}
    data = Sequence(Batches(pool, np.array([[0, 1], [3, -1]], np.int32)), np.int32(2))
    first, second = feature_split("is_train")(data, KEY)
    assert (rows(first), rows(second)) == ([0, 3], [1])


# --- reconstruction of a matrix -------------------------------------------------------------------

NUM_ITEMS, NUM_FACTORS, NUM_USERS, NUM_NEW, NOISE = 16, 2, 32, 8, 0.1
MODEL = matrix_factorization(NUM_ITEMS, num_factors=NUM_FACTORS)


def is_local(name: str) -> bool:
    return name == "user"


def strategy(rate: float) -> Any:
    return reconstructing(MODEL, is_local=is_local, optimizer=optax.sgd(rate), num_steps=30)


RECONSTRUCTION = reconstruction(
    MODEL,
    is_local=is_local,
    client_optimizer=optax.sgd(0.5),
    reconstruction_optimizer=optax.sgd(0.1),
    num_reconstruction_steps=30,
    server_optimizer=optax.sgd(1.0, momentum=0.9),
    client_weight=uniform,
)


def users(data: FederatedData, ids: Any) -> Clients:
    return Cohort(data, ids, batch_size=NUM_ITEMS).whole(num_places=NUM_USERS)  # One shape, one program.


@pytest.fixture(scope="module")
def ratings() -> tuple[FederatedData, np.ndarray]:
    """Every user's noisy ratings of all items, in an order of its own, and the true factors of the items."""
    random = np.random.default_rng(0)
    items = random.normal(size=(NUM_ITEMS, NUM_FACTORS))
    users = []
    for user in random.normal(size=(NUM_USERS + NUM_NEW, NUM_FACTORS)):
        x = random.permutation(NUM_ITEMS)
        y = items[x] @ user + NOISE * random.normal(size=NUM_ITEMS)
        users.append({"x": x.astype(np.int32), "y": y.astype(np.float32)})
    return FederatedData.from_clients(users), items


def test_held_out_ratings_are_recovered_to_the_noise(ratings):
    """Users that never took part: from half of their ratings nearly as well as by least squares on the true items."""
    data, items = ratings
    state, clients = RECONSTRUCTION.init(jax.random.key(0)), users(data, range(NUM_USERS))
    for _ in range(100):
        state, _ = RECONSTRUCTION.next(state, clients)
    assert jax.tree.map(np.shape, state.params) == {"items": (NUM_ITEMS, NUM_FACTORS), "user": None}

    evaluation = personalization_evaluation(MODEL, {"reconstructed": strategy(0.1)}, baseline=strategy(0.0))
    new = np.arange(NUM_USERS, NUM_USERS + NUM_NEW)
    means, _ = evaluation(state.params, Cohort(data, new, batch_size=NUM_ITEMS).whole(), KEY)
    oracle = []
    for k in new:
        x, y = data.client(k)["x"], data.client(k)["y"]
        user = np.linalg.lstsq(items[x[::2]], y[::2], rcond=None)[0]
        oracle.append(np.mean((items[x[1::2]] @ user - y[1::2]) ** 2))
    assert np.mean(oracle) < means["reconstructed"]["loss"] < 1.5 * NOISE**2
    assert means["baseline"]["loss"] > 50 * NOISE**2


def test_no_local_parameter_influences_another_client(ratings):
    """A round of two clients is the mean of the rounds of each alone: neither saw anything of the other's."""
    data, _ = ratings
    state = RECONSTRUCTION.init(jax.random.key(0))
    after = {ids: RECONSTRUCTION.next(state, users(data, ids))[0].params["items"] for ids in ((5,), (9,), (5, 9))}
    np.testing.assert_allclose(after[5, 9], (after[5,] + after[9,]) / 2, rtol=1e-5, atol=1e-6)
    assert np.abs(after[5,] - after[9,]).max() > 0.1
