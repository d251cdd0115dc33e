"""Scripts written for TensorFlow Federated run with the imports changed, and Flax in place of Keras."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.measuring import Compilations
from fedjx import Sequence, parse_type, tff
from fedjx.algorithms import fed_avg
from fedjx.algorithms.personalization import fine_tuning, no_fine_tuning
from fedjx.data import Cohort, FederatedData
from fedjx.models import Model, from_flax
from fedjx.models.metrics import accuracy
from fedjx.tff.learning.process import _client_work
from fedjx.training import local_training
from tests.algorithms.problems import assert_trees_close, assert_trees_equal

NUM_PARAMS = 8 * 8 * 3 + 3
CLIENT_BATCH_SIZE = 8


@pytest.fixture(scope="module")
def images() -> FederatedData:
    """Bright squares in one of three corners, 7 to 30 of them on each of six clients."""
    random = np.random.default_rng(0)
    clients = []
    for size in (7, 30, 12, 25, 20, 9):
        label = random.integers(3, size=size).astype(np.int32)
        pixels = random.random((size, 8, 8), np.float32) * 0.5
        for image, y in zip(pixels, label, strict=True):
            image[4 * (y // 2) :][:4, 4 * (y % 2) :][:, :4] += 0.5
        clients.append({"pixels": pixels, "label": label})
    return FederatedData.from_clients(clients)


def tff_model_fn() -> Model:
    return from_flax(
        nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(3)]),
        sample_input=jnp.zeros((1, 8, 8, 1)),
        metrics={"sparse_categorical_accuracy": accuracy},
    )


def preprocess_train_dataset(dataset: tff.Dataset) -> tff.Dataset:
    def reshape_emnist_element(element):
        return (np.expand_dims(element["pixels"], axis=-1), element["label"])

    return (
        dataset.shuffle(buffer_size=418, seed=1)
        .repeat(1)
        .batch(CLIENT_BATCH_SIZE, drop_remainder=False)
        .map(reshape_emnist_element)
    )


@pytest.fixture(scope="module")
def trainer() -> tff.templates.IterativeProcess:
    return tff.learning.build_federated_averaging_process(
        tff_model_fn, client_optimizer_fn=lambda: optax.sgd(0.1, momentum=0.9)
    )


def test_the_loop_of_the_guide(images, trainer):
    federated_training_data = [
        [{"x": client["pixels"][i : i + 8, ..., None], "y": client["label"][i : i + 8]} for i in range(0, 31, 8)]
        for client in map(images.client, range(6))
    ]
    federated_training_data = [[batch for batch in data if len(batch["y"])] for data in federated_training_data]
    num_rounds = 0

    def sample(federate_data):
        return [federate_data[num_rounds], federate_data[num_rounds + 2], federate_data[num_rounds + 3]]

    printed = str(trainer.initialize.type_signature)
    state = trainer.initialize()

    while True:
        data_for_this_round = sample(federated_training_data)
        state, metrics = trainer.next(state, data_for_this_round)
        num_rounds += 1
        if num_rounds == 2:
            break

    assert printed.startswith("( -> <params=<layers_1=<bias=float32[3],kernel=float32[64,3]>>,")
    assert str(parse_type(printed)) == printed
    assert list(metrics) == ["broadcast", "aggregation", "train"]
    assert str(metrics).startswith("<broadcast=<>,aggregation=<>,train=<")
    assert set(metrics.train._asdict()) == {"loss", "sparse_categorical_accuracy"}

    renamed = FederatedData({"x": images.examples["pixels"][..., None], "y": images.examples["label"]}, images.offsets)
    algorithm = fed_avg(tff_model_fn(), client_optimizer=optax.sgd(0.1, momentum=0.9), shuffle=False)
    expected, own = algorithm.init(jax.random.key(0)), {}
    for ids in ([0, 2, 3], [1, 3, 4]):
        expected, own = algorithm.next(expected, Cohort(renamed, ids, batch_size=8).whole())
    assert_trees_close(trainer.get_model_weights(state), expected.params)
    np.testing.assert_allclose(metrics["train"]["loss"], own["loss"], rtol=1e-5)


def train(federated_averaging_process, emnist_train, num_rounds, num_clients_per_round, log):
    """The loop of the tutorial on compression, with a list in place of a writer for TensorBoard."""
    environment = tff.framework.sizing_executor_factory()
    tff.framework.set_default_context(tff.framework.ExecutionContext(executor_fn=environment))
    state = federated_averaging_process.initialize()
    random = np.random.default_rng(0)
    for round_num in range(num_rounds):
        sampled_clients = random.choice(emnist_train.client_ids, size=num_clients_per_round, replace=False)
        sampled_train_data = [emnist_train.create_tf_dataset_for_client(client) for client in sampled_clients]
        state, metrics = federated_averaging_process.next(state, sampled_train_data)
        size_info = environment.get_size_info()
        broadcasted_bits = size_info.broadcast_bits[-1]
        aggregated_bits = size_info.aggregate_bits[-1]
        for name, value in metrics["train"]._asdict().items():
            log.append((name, round_num, float(value)))
        log.append(("cumulative_broadcasted_bits", round_num, broadcasted_bits))
        log.append(("cumulative_aggregated_bits", round_num, aggregated_bits))
    tff.framework.set_default_context(tff.framework.ExecutionContext())


def logged(log: Any, name: str) -> Any:
    return [value for tag, _, value in log if tag == name]


def test_the_loop_of_the_tutorial_on_compression(images, trainer):
    emnist_train = tff.simulation.datasets.ClientData.of(images).preprocess(preprocess_train_dataset)
    framework, encoders = tff.learning.framework, tff.tensor_encoding.encoders

    def encoder_fn(as_encoder):
        def encoder(value):
            large = value.shape.num_elements() > 100
            return as_encoder(encoders.uniform_quantization(bits=8) if large else encoders.identity(), None)

        return encoder

    compressing_trainer = tff.learning.build_federated_averaging_process(
        tff_model_fn,
        client_optimizer_fn=lambda: optax.sgd(0.1, momentum=0.9),
        server_optimizer_fn=lambda: optax.sgd(1.0),
        broadcast_process=framework.build_encoded_broadcast_process_from_model(
            tff_model_fn, encoder_fn(encoders.as_simple_encoder)
        ),
        aggregation_process=framework.build_encoded_mean_process_from_model(
            tff_model_fn, encoder_fn(encoders.as_gather_encoder)
        ),
    )
    original: Any = []
    train(trainer, emnist_train, num_rounds=4, num_clients_per_round=3, log=original)
    compressed: Any = []
    train(compressing_trainer, emnist_train, num_rounds=4, num_clients_per_round=3, log=compressed)

    plain = 32 * NUM_PARAMS
    coded = 32 * math.ceil(8 * (NUM_PARAMS - 3) / 28) + 2 * 32 + 3 * 32  # codes, least and greatest, and the bias
    measured = 32 + 2 * (32 + 32)  # the weight, and loss and accuracy with their numbers
    for log, bits in ((original, plain), (compressed, coded)):
        assert logged(log, "cumulative_broadcasted_bits") == [bits * 3 * r for r in (1, 2, 3, 4)]
        assert logged(log, "cumulative_aggregated_bits") == [(bits + measured) * 3 * r for r in (1, 2, 3, 4)]
    for log in (original, compressed):
        assert logged(log, "loss")[-1] < 0.7 * logged(log, "loss")[0]
    np.testing.assert_allclose(logged(compressed, "loss"), logged(original, "loss"), rtol=0.05)


def test_a_client_without_batches_and_the_order_change_nothing_and_evaluation_is_central(images, trainer):
    clients = tff.simulation.datasets.ClientData.of(images).preprocess(lambda data: data.batch(8))
    renamed = clients.preprocess(lambda data: data.map(lambda batch: (batch["pixels"][..., None], batch["label"])))
    datasets = [renamed.create_dataset_for_client(name) for name in clients.client_ids[:3]]
    state = trainer.initialize()
    result = trainer.next(state, datasets)
    other = trainer.next(state, [[], *datasets[::-1]])
    assert_trees_close(other.state.params, result.state.params)
    metrics = tff.learning.build_federated_evaluation(tff_model_fn)(trainer.get_model_weights(result.state), datasets)
    batch = {"x": images.examples["pixels"][:49, ..., None], "y": images.examples["label"][:49]}
    whole = jax.device_get(tff_model_fn().metrics(result.state.params, batch))
    np.testing.assert_allclose(metrics.loss, np.mean(whole["loss"]), rtol=1e-5)
    correct = np.sum(whole["sparse_categorical_accuracy"])
    assert float(metrics.sparse_categorical_accuracy) == np.float32(correct) / np.float32(49)


def test_a_list_of_another_size_compiles_nothing_after_the_first_of_its_bucket():
    """Whatever the numbers of clients, of their batches, of examples in these, and the order."""
    random = np.random.default_rng(0)
    model = Model(lambda key: jnp.float32(0), lambda w, batch, key: (w - batch["x"]) ** 2, lambda w, batch: {})
    process = tff.learning.build_federated_averaging_process(lambda: model, lambda: optax.sgd(0.1))
    state, compiled = process.initialize(), {}
    for num_clients in (9, 12, 10, 9, 11, 10, 12, 10, 9, 11):
        sizes = random.integers(1, 40, size=num_clients)
        sizes[:2] = 0, 39  # nobody's data, and five batches
        examples = [np.full(size, 2, np.float32) for size in random.permutation(sizes)]
        batches = [[{"x": x[i : i + 8]} for i in range(0, len(x), 8)] for x in examples]
        shape = tff.as_clients(batches).value.elements["x"].shape
        with Compilations() as done:
            state, _ = process.next(state, batches)
        compiled.setdefault(shape, []).append(done.number)
    assert {shape: counts[1:] for shape, counts in compiled.items()} == {(10, 8, 8): [0] * 5, (12, 8, 8): [0] * 3}
    assert all(counts[0] > 0 for counts in compiled.values())  # or nothing would have been counted
    assert float(state.params) == pytest.approx(2, abs=1e-3)


def test_every_step_has_a_random_key_of_its_own():
    def loss(params, batch, key):
        return params * jax.random.normal(key) * batch["x"]

    model = Model(lambda key: jnp.float32(0), loss, lambda params, batch: {})
    update = jax.jit(functools.partial(_client_work(model), local=local_training(optax.sgd(1.0))))
    key = jax.random.key(5)
    delta = update(jnp.float32(0), Sequence.of({"x": np.ones((3, 1), np.float32)}), key).delta
    drawn = [float(jax.random.normal(jax.random.fold_in(key, t))) for t in range(3)]
    assert float(delta) == pytest.approx(sum(drawn), rel=1e-5)


def test_later_versions_name_the_metrics_after_the_parts_of_the_process():
    process = tff.learning.build_weighted_fed_avg(tff_model_fn, lambda: optax.sgd(0.1), lanes=1)
    sums = {"loss": 2.5, "num_examples": 7, "num_non_finite_clients": 3, "num_non_finite_aggregates": 1}
    metrics = process.next.report({**sums, "aggregation": {}})
    assert str(metrics) == (
        "<distributor=<>,client_work=<train=<loss=2.5,num_examples=7>>,aggregator=<>,finalizer=<update_non_finite=1>>"
    )


def test_personalisation_is_evaluated_client_by_client_against_the_baseline(images):
    clients = tff.simulation.datasets.ClientData.of(images).preprocess(
        lambda data: data.batch(8).map(lambda batch: (batch["pixels"][..., None], batch["label"]))
    )
    data = []
    for name in clients.client_ids[:3]:
        batches = list(clients.create_dataset_for_client(name))
        data.append({"train_data": batches[1:], "test_data": batches[:1]})
    strategies = {"stay": no_fine_tuning, "sgd": fine_tuning(tff_model_fn(), optimizer=optax.sgd(0.1), num_epochs=3)}
    params = tff_model_fn().init(jax.random.key(0))
    metrics = tff.learning.build_personalization_eval(tff_model_fn, strategies)(params, data)
    assert list(metrics) == ["baseline_metrics", "sgd", "stay"]
    assert_trees_equal(dict(metrics.stay), dict(metrics.baseline_metrics))
    test = [tff_model_fn().metrics(params, dict(zip("xy", client["test_data"][0], strict=True))) for client in data]
    np.testing.assert_allclose(metrics.stay.loss, [np.mean(m["loss"]) for m in test], rtol=1e-5)
    assert metrics.sgd.loss[0] == metrics.stay.loss[0]  # This client has nothing to train on,
    assert (metrics.sgd.loss[1:] < metrics.stay.loss[1:]).all()  # and these learn.


# --- data -----------------------------------------------------------------------------------------


def test_data_sets_are_shuffled_repeated_and_batched():
    data = tff.Dataset.from_tensor_slices(np.arange(7))
    assert [batch.tolist() for batch in data.batch(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [batch.tolist() for batch in data.repeat(2).batch(4, drop_remainder=True)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 0],
        [1, 2, 3, 4],
    ]
    shuffled = data.shuffle(418, seed=0)
    first, second = ([int(x) for x in shuffled] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second != list(range(7))
    assert [int(x) for x in data.take(2)] == [0, 1]
    assert data.batch(3).element_spec == jax.ShapeDtypeStruct((3,), np.dtype(int))


def test_clients_are_made_when_they_are_asked_for(images):
    made: list[str] = []

    def dataset(name: str) -> tff.Dataset:
        made.append(name)
        return tff.Dataset.from_tensor_slices({"x": np.arange(int(name))})

    names = [str(k) for k in range(1, 8)]
    clients = tff.simulation.datasets.ClientData.from_clients_and_fn(names, dataset).preprocess(
        lambda data: data.batch(2)
    )
    assert made == []
    assert [batch["x"].tolist() for batch in clients.create_tf_dataset_for_client("3")] == [[0, 1], [2]]
    assert made == ["3"]
    train_clients, test_clients = clients.train_test_client_split(2, seed=0)
    assert len(test_clients.client_ids) == 2
    assert sorted(train_clients.client_ids + test_clients.client_ids) == names
    assert len(list(clients.datasets(limit_count=4, seed=0))) == 4
    assert made.count("3") <= 2
    assert tff.simulation.datasets.ClientData.of(images).element_type_structure["pixels"].shape == (8, 8)
    with pytest.raises(ValueError, match="both sides"):
        clients.train_test_client_split(7)


def test_batches_of_different_features_are_refused():
    with pytest.raises(ValueError, match="same features"):
        tff.as_clients([[{"x": np.ones(2)}], [{"z": np.ones(2)}]])
    with pytest.raises(ValueError, match="same features"):
        tff.as_clients([[], []])
