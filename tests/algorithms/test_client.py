"""Local training and evaluation of one client."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx.algorithms import federated_evaluation
from fedjx.core.language.padding import own_padding
from fedjx.core.language.values import Batches, Sequence
from fedjx.data import Cohort, FederatedData, central
from fedjx.models import Model, Ratio, finalize_metrics
from fedjx.training import local_evaluate, local_train
from fedjx.training.client import _plan, as_batches, local_training
from fedjx.training.splits import split_where
from tests.algorithms.problems import assert_trees_equal, dropout_model, federated_data, plain_model

INDEX = np.array([[3, 4, 5], [6, 7, 8], [9, -1, -1], [-1, -1, -1]], np.int32)  # 7 examples in batches of 3


def planned(**options: Any) -> tuple[np.ndarray, int]:
    defaults = {"num_epochs": None, "num_steps": None, "shuffle": True, "drop_remainder": False}
    index = options.pop("index", INDEX)
    plan = _plan(jnp.asarray(index), options.pop("key", jax.random.key(0)), **{**defaults, **options})
    return np.asarray(plan.elements), int(plan.length)


def test_every_example_once_per_epoch_and_epochs_differ():
    rows, length = planned(num_epochs=4)
    assert length == 12
    epochs = rows[:length].reshape(4, 9)
    for epoch in epochs:
        assert sorted(epoch[epoch >= 0]) == list(range(3, 10))
        assert (epoch[:7] >= 0).all()  # the short batch comes last
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_orders_depend_on_the_key_and_not_on_the_padding():
    rows, length = planned(num_epochs=3)
    other, _ = planned(num_epochs=3, key=jax.random.key(1))
    assert (rows != other).any()
    wider, wide_length = planned(num_epochs=3, index=np.concatenate([INDEX, np.full((5, 3), -1, np.int32)]))
    assert wide_length == length
    np.testing.assert_array_equal(wider[:length], rows[:length])


def test_all_orders_are_equally_likely():
    index = jnp.array([[0, 1, 2, -1]], jnp.int32)
    keys = jax.random.split(jax.random.key(0), 6000)
    rows = jax.vmap(lambda key: _plan(index, key, 1, None, True, False).elements)(keys)
    _, counts = np.unique(np.asarray(rows).reshape(6000, 4), axis=0, return_counts=True)
    assert len(counts) == 6
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001
    biased = counts + np.array([150, -150, 0, 0, 0, 0])
    assert ((biased - 1000) ** 2 / 1000).sum() > 20.5  # what a slightly unfair shuffle would give


def test_without_shuffling_examples_keep_their_order():
    rows, length = planned(num_epochs=2, shuffle=False)
    np.testing.assert_array_equal(rows[:length], np.concatenate([INDEX[:3], INDEX[:3]]))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 8])
def test_a_number_of_steps_stops_early_or_wraps_around(num_steps):
    rows, length = planned(num_steps=num_steps, shuffle=False)
    assert length == num_steps == len(rows)
    np.testing.assert_array_equal(rows, np.resize(INDEX[:3], (num_steps, 3)))


def test_drop_remainder_leaves_out_the_short_batch():
    rows, length = planned(num_epochs=2, drop_remainder=True)
    assert length == 4
    assert (rows[:length] >= 0).all()
    assert planned(num_epochs=2, drop_remainder=True, index=INDEX[2:])[1] == 0


def test_examples_of_dropped_remainders_do_not_count():
    """Nor do they weigh: a client that has less than a batch takes no step."""

    def num_examples(size: int, **amount: Any) -> Any:
        data = central({"x": np.ones(size, np.float32)}, batch_size=3)
        key, sgd = jax.random.key(0), optax.sgd(0.1)
        return local_train(mean_model(), jnp.zeros(()), data, key, optimizer=sgd, **amount).num_examples

    found = jax.jit(lambda: [num_examples(size, drop_remainder=True) for size in (7, 2)] + [num_examples(7)])()
    assert [int(n) for n in found] == [6, 0, 7]


@pytest.mark.parametrize("options", [{"num_epochs": 3}, {"num_steps": 5}])
def test_a_client_without_examples_takes_no_step(options):
    assert planned(index=np.full((2, 3), -1, np.int32), **options)[1] == 0


def mean_model(seen: list[Any] | None = None) -> Model:
    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        if seen is not None:
            seen.append(batch["x"].dtype)
        return (params - batch["x"].astype(jnp.float32)) ** 2

    def metrics(params: Any, batch: Any) -> Any:
        x = batch["x"].astype(jnp.float32)
        return {"loss": (params - x) ** 2, "large": batch["x"] > 3, "per_unit": Ratio(x, jnp.ones_like(x) * 2)}

    return Model(lambda key: jnp.zeros(()), loss, metrics)


def test_one_client_by_itself_on_numpy_arrays():
    """Local logic needs no orchestration: plain arrays in, parameters out."""
    x = np.array([[1, 2], [6, 250]], np.uint8)
    data = Sequence({"x": x, "mask": np.array([[True, True], [True, False]])}, np.int32(2))
    seen: list[Any] = []
    result = local_train(
        mean_model(seen), jnp.float32(0), data, jax.random.key(0), optimizer=optax.sgd(0.25), shuffle=False
    )
    first = 0 - 0.25 * 2 * (0 - 1.5)
    assert float(result.params) == pytest.approx(first - 0.25 * 2 * (first - 6))
    assert int(result.num_examples) == 3
    assert set(seen) == {np.dtype(np.uint8)}  # bytes travel as they are
    total = 1 + 4 + (first - 6) ** 2
    assert float(finalize_metrics(result.metrics)["loss"]) == pytest.approx(total / 3)


def test_a_share_of_the_epochs_is_as_many_epochs_and_steps_to_the_bit():
    """Of 7 epochs of 3 steps: float32 of e / 7, times 21, is often a little more than 3 e."""
    model, params = mean_model(), jnp.float32(0)
    data = central({"x": np.arange(10, dtype=np.float32)}, batch_size=4)
    key, optimizer = jax.random.key(3), optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def shared(share):
        return local_train(model, params, data, key, optimizer=optimizer, num_epochs=7, completed=share)

    for epochs in (1, 3, 5, 7):
        found = shared(jnp.float32(epochs) / 7)
        expected = local_train(model, params, data, key, optimizer=optimizer, num_epochs=epochs)
        assert_trees_equal(found, expected)
    assert int(shared(jnp.float32(1e-6)).num_examples) == 4  # one step, rounded up
    steps = [int(jnp.ceil(jnp.float32(k) / n * n * (1 - 2**-20))) - k for n in (7, 49, 1000, 4095) for k in range(1, n)]
    assert not any(steps)

    with pytest.raises(TypeError, match=r"how much a client trains at most; .*completed="):
        jax.jit(lambda n: local_train(model, params, data, key, optimizer=optimizer, num_epochs=n))(3)


def test_a_client_of_its_own_pace_that_fails_completes_a_part_of_that_part():
    data = central({"x": np.arange(16, dtype=np.float32)}, batch_size=2)
    local = local_training(optax.sgd(0.1), fails_after=jnp.float32(0.5), num_epochs=1)
    arguments = (mean_model(), jnp.float32(0), data, jax.random.key(0))
    trained = [local.train(*arguments, optimizer=local.optimizer, **own) for own in ({}, {"completed": 0.25})]
    assert [int(x.num_examples) for x in trained] == [8, 2]


def test_batches_without_a_mask_are_all_real():
    data = Sequence.of({"x": np.array([[1, 2], [6, 250]], np.uint8)})
    sums = local_evaluate(mean_model(), jnp.float32(0), data)
    assert int(sums["large"].numerator) == 2
    assert int(sums["large"].denominator) == 4


def test_the_examples_of_a_client_by_itself_pad_with_its_own():
    """Whatever stands in the places of padding, here in the first one too, nobody computes on it."""
    x = np.array([[np.nan, 2], [3, np.nan], [np.nan, np.nan]], np.float32)
    data = Sequence({"x": x, "mask": np.isfinite(x) | (np.arange(3) == 2)[:, None]}, np.int32(2))
    (first,) = {x.tobytes() for x in (as_batches(data).gather()["x"], as_batches(own_padding(data)).gather()["x"])}
    np.testing.assert_array_equal(np.frombuffer(first, np.float32), [2, 2, 3, 2, 2, 2])
    pool = Batches({"x": np.array([9.0, 2.0, 3.0])}, np.array([[-1, 1], [2, -1], [0, 0]]))
    assert as_batches(Sequence(pool, np.int32(2))).gather()["x"].tolist() == [[2, 2], [3, 2], [2, 2]]
    ones, others = split_where(Sequence(pool, np.int32(2)), jnp.array([[True, True], [False, True], [True, True]]))
    assert [part.elements.gather()["x"].tolist()[0] for part in (ones, others)] == [[2, 2], [3, 3]]


def test_momentum_and_adam_do_not_move_on_padded_steps():
    index = np.array([[0, 1], [2, -1]], np.int32)
    pool = {"x": np.array([1.0, 2.0, 3.0], np.float32)}
    wide = np.concatenate([index, np.full((6, 2), -1, np.int32)])
    for optimizer in (optax.sgd(0.1, momentum=0.9), optax.adam(0.1)):
        results = [
            local_train(
                mean_model(),
                jnp.float32(0),
                Sequence(Batches(pool, i), np.int32(2)),
                jax.random.key(0),
                optimizer=optimizer,
                num_epochs=2,
            ).params
            for i in (index, wide)
        ]
        assert float(results[0]) == float(results[1]) != 0


def test_dropout_uses_a_new_key_every_step_and_client():
    data = federated_data((8, 8))
    model = dropout_model()
    params = model.init(jax.random.key(0))
    runs = [
        local_train(
            model, params, central(data, batch_size=8), jax.random.key(k), optimizer=optax.sgd(0.1), shuffle=False
        )
        for k in (0, 0, 1)
    ]
    same, again, other = (np.asarray(jax.tree.leaves(run.params)[-1]) for run in runs)
    np.testing.assert_array_equal(same, again)
    assert (same != other).any()


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_federated_evaluation_equals_the_centralised_value_on_the_union(batch_size):
    data = federated_data()
    model = plain_model()
    params = model.init(jax.random.key(0))
    evaluation = federated_evaluation(model)
    metrics = evaluation(params, Cohort(data, range(data.num_clients), batch_size=batch_size).whole())
    batch = {**data.examples, "mask": np.ones(data.num_examples, bool)}
    whole = model.metrics(params, batch)
    correct = int(np.sum(whole["accuracy"]))
    assert float(metrics["accuracy"]) == np.float32(correct) / np.float32(data.num_examples)  # exactly
    np.testing.assert_allclose(metrics["loss"], np.mean(whole["loss"]), rtol=1e-6)
    assert int(metrics["num_examples"]) == data.num_examples
    central_metrics = finalize_metrics(local_evaluate(model, params, central(data, batch_size=7)))
    assert float(central_metrics["accuracy"]) == float(metrics["accuracy"])
    np.testing.assert_allclose(central_metrics["loss"], metrics["loss"], rtol=1e-6)


def test_ratios_are_divided_at_the_server():
    """A mean of the clients' means would be wrong: clients differ in size."""
    data = FederatedData.from_clients([{"x": np.array([4, 4, 4], np.uint8)}, {"x": np.array([1], np.uint8)}])
    evaluation = federated_evaluation(mean_model())
    metrics = evaluation(jnp.float32(0), Cohort(data, [0, 1], batch_size=2).whole())
    assert float(metrics["large"]) == 0.75
    assert float(metrics["per_unit"]) == 13 / 8
    assert float(metrics["loss"]) == 49 / 4
    streamed = evaluation.streamed(lanes=1)(jnp.float32(0), Cohort(data, [0, 1], batch_size=2).whole())
    assert {k: float(v) for k, v in streamed.items()} == {k: float(v) for k, v in metrics.items()}
