"""Each document on TensorFlow Federated, walked through in order: its names resolve and do what it shows.

`fedjx.tff` stands for ``tensorflow_federated``, Flax for Keras, optax for its optimizers, NumPy for TF's dtypes.
"""

from __future__ import annotations

import collections
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx import parse_type, tff
from fedjx.algorithms.personalization import fine_tuning
from fedjx.models.losses import cross_entropy
from fedjx.tff import tensor_encoding as te

DATA_SETS = ("celeba", "cifar100", "emnist", "gldv2", "inaturalist", "shakespeare", "stackoverflow")


def sparse_categorical_accuracy(logits: Any, batch: Any) -> Any:
    return jnp.argmax(logits, axis=-1) == batch["y"]


# --- TFF for research -----------------------------------------------------------------------------


def test_tff_for_research(tmp_path):
    def local_training(model: Any, data: Any) -> Any:  # 1. without a name of tff in it
        return data - model

    local = tff.tf_computation("float32", "float32")(local_training)

    @tff.federated_computation("float32@SERVER", "{float32}@CLIENTS")  # 2. orchestration
    def next(model: Any, data: Any) -> Any:
        return tff.federated_mean(tff.federated_map(local, tff.federated_broadcast(model), data))

    assert float(next(1.0, [2.0, 6.0])) == float(np.mean([local(1.0, x) for x in (2.0, 6.0)])) == 3  # 3. a driver
    for name in DATA_SETS:
        data_set = getattr(tff.simulation.datasets, name)
        assert len(data_set.get_synthetic(num_clients=2, mean_examples=1).client_ids) == 2
        with pytest.raises(ValueError, match="fetches none"):
            data_set.load_data()
        with pytest.raises(FileNotFoundError):
            data_set.load_data(tmp_path)

    def model() -> tff.learning.Model:
        return tff.learning.from_keras_model(nn.Dense(2), {"x": np.ones((1, 3)), "y": np.zeros(1)})

    personalize_fn_dict = collections.OrderedDict(sgd=fine_tuning(model(), optimizer=optax.sgd(0.1)))
    evaluation = tff.learning.build_personalization_eval_computation(model, personalize_fn_dict)
    batches = [{"x": np.ones((4, 3), np.float32), "y": np.zeros(4, np.int32)}]
    result = evaluation(model().init(jax.random.key(0)), [{"train_data": batches, "test_data": batches}])
    assert result.sgd.loss[0] < result.baseline_metrics.loss[0]


# --- federated learning ----------------------------------------------------------------------------


def test_federated_learning():
    sample_batch = {"x": np.ones((4, 3), np.float32), "y": np.array([0, 1, 0, 1], np.int32)}

    def model_fn() -> tff.learning.Model:
        keras_model = nn.Dense(2)
        return tff.learning.from_keras_model(keras_model, sample_batch, loss=cross_entropy)

    trainer = tff.learning.build_federated_averaging_process(model_fn, lambda: optax.sgd(0.1))
    assert isinstance(trainer, tff.templates.IterativeProcess)
    assert isinstance(trainer.initialize, tff.Computation)
    state = trainer.initialize()
    federated_training_data = [[sample_batch] * (1 + k) for k in range(5)]

    def sample(federate_data: Any) -> Any:
        return federate_data[:3]

    losses = []
    for _ in range(3):  # for ever, in the document
        data_for_this_round = sample(federated_training_data)
        state, metrics = trainer.next(state, data_for_this_round)
        losses.append(float(metrics["train"]["loss"]))
    assert losses == sorted(losses, reverse=True)
    evaluate = tff.learning.build_federated_evaluation(model_fn)
    assert float(evaluate(trainer.get_model_weights(state), federated_training_data).loss) < losses[-1]
    assert tff.learning.metrics.sum_then_finalize.__doc__
    clients = tff.simulation.datasets.ClientData.from_clients_and_fn(["a"], lambda _: tff.Dataset(lambda: [1]))
    assert list(clients.create_tf_dataset_for_client(clients.client_ids[0])) == [1]


# --- federated core --------------------------------------------------------------------------------


def test_federated_core():
    point = tff.StructType([("X", np.float32), ("Y", np.float32)])
    weights = tff.StructType([("weights", tff.TensorType(np.float32, [10, 5])), ("bias", "float32[5]")])
    printed = {
        "int32": tff.TensorType(np.int32),
        "int32[10]": tff.TensorType(np.int32, [10]),
        "int32*": tff.SequenceType(np.int32),
        "<int32,int32>": tff.StructType([np.int32, np.int32]),
        "<X=float32,Y=float32>": point,
        "<X=float32,Y=float32>*": tff.SequenceType(point),
        "(int32* -> int32)": tff.FunctionType(tff.SequenceType(np.int32), np.int32),
        "( -> int32)": tff.FunctionType(None, np.int32),
        "{int32}@CLIENTS": tff.FederatedType(np.int32, tff.CLIENTS),
        "int32@CLIENTS": tff.FederatedType(np.int32, tff.CLIENTS, all_equal=True),
        "{<X=float32,Y=float32>*}@CLIENTS": tff.FederatedType(tff.SequenceType(point), tff.CLIENTS),
        "<weights=float32[10,5],bias=float32[5]>@SERVER": tff.FederatedType(weights, tff.SERVER),
    }
    for text, type_ in printed.items():
        assert str(type_) == text
        if isinstance(type_, str):
            assert str(tff.FederatedType(parse_type(text), tff.SERVER)) == f"{text}@SERVER"
        else:
            assert parse_type(text) == type_

    @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
    def get_average_temperature(sensor_readings: Any) -> Any:
        return tff.federated_mean(sensor_readings)

    assert str(get_average_temperature.type_signature) == "({float32}@CLIENTS -> float32@SERVER)"
    assert get_average_temperature([68.5, 70.3, 69.8]) == pytest.approx(69.53333, abs=1e-5)

    @tff.tf_computation(tff.SequenceType(np.int32))
    def add_up_integers(x: Any) -> Any:
        return x.reduce(np.int32(0), lambda x, y: x + y)

    assert str(add_up_integers.type_signature) == "(int32* -> int32)"
    assert [int(add_up_integers(x)) for x in ([1, 2, 3], [])] == [6, 0]

    @tff.federated_computation(tff.FederatedType(tff.SequenceType(np.int32), tff.CLIENTS))
    def total(x: Any) -> Any:
        sums = tff.federated_map(add_up_integers, x)
        both = [tff.federated_sum(sums), tff.federated_reduce(sums, np.int32(0), jnp.add)]
        return both[0], both[1]

    assert str(total.type_signature) == "({int32*}@CLIENTS -> <int32@SERVER,int32@SERVER>)"
    assert tuple(map(int, total([[1, 2], [], [4]]))) == (7, 7)


# --- the tutorial on compression --------------------------------------------------------------------


class OriginalFedAvgCnn(nn.Module):
    """The CNN model used in https://arxiv.org/abs/1602.05629."""

    only_digits: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        max_pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2), padding="SAME")
        x = max_pool(nn.relu(nn.Conv(32, (5, 5))(x)))
        x = max_pool(nn.relu(nn.Conv(64, (5, 5))(x)))
        x = nn.relu(nn.Dense(512)(x.reshape(len(x), -1)))
        return nn.Dense(10 if self.only_digits else 62)(x)


MAX_CLIENT_DATASET_SIZE = 418
CLIENT_EPOCHS_PER_ROUND = 1
CLIENT_BATCH_SIZE = 20


def reshape_emnist_element(element: Any) -> Any:
    return (np.expand_dims(element["pixels"], axis=-1), element["label"])


def preprocess_train_dataset(dataset: tff.Dataset) -> tff.Dataset:
    return (
        dataset.shuffle(buffer_size=MAX_CLIENT_DATASET_SIZE)
        .repeat(CLIENT_EPOCHS_PER_ROUND)
        .batch(CLIENT_BATCH_SIZE, drop_remainder=False)
        .map(reshape_emnist_element)
    )


def format_size(size: float) -> str:
    size = float(size)
    for unit in ["B", "KiB", "MiB", "GiB"]:
        if size < 1024.0:
            return f"{size:3.2f}{unit}"
        size /= 1024.0
    return "{size:.2f}{unit}".format(size=size, unit="TiB")


def set_sizing_environment() -> Any:
    sizing_factory = tff.framework.sizing_executor_factory()
    context = tff.framework.ExecutionContext(executor_fn=sizing_factory)
    tff.framework.set_default_context(context)
    return sizing_factory


def train(federated_averaging_process: Any, emnist_train: Any, num_rounds: int, num_clients_per_round: int) -> Any:
    environment = set_sizing_environment()
    state = federated_averaging_process.initialize()
    broadcast, aggregated, metrics = [], [], None
    for _ in range(num_rounds):
        sampled_clients = np.random.default_rng(0).choice(
            emnist_train.client_ids, size=num_clients_per_round, replace=False
        )
        sampled_train_data = [emnist_train.create_tf_dataset_for_client(client) for client in sampled_clients]
        state, metrics = federated_averaging_process.next(state, sampled_train_data)
        size_info = environment.get_size_info()
        broadcast.append(format_size(size_info.broadcast_bits[-1]))
        aggregated.append(format_size(size_info.aggregate_bits[-1]))
    tff.framework.set_default_context(tff.framework.ExecutionContext())
    return " ".join(broadcast), " ".join(aggregated), metrics


PLAIN = "507.62MiB 1015.24MiB 1.49GiB 1.98GiB 2.48GiB 2.97GiB 3.47GiB 3.97GiB 4.46GiB 4.96GiB"
CODED = "146.46MiB 292.92MiB {}MiB {}MiB {}MiB 878.77MiB 1.00GiB 1.14GiB 1.29GiB 1.43GiB"


def test_compression():
    @tff.federated_computation
    def hello_world() -> str:
        return "Hello, World!"

    assert hello_world() == b"Hello, World!"
    # Clients of one example: the sizes are those of the model.
    emnist_train = tff.simulation.datasets.emnist.get_synthetic(num_clients=10, mean_examples=1)
    emnist_train = emnist_train.preprocess(preprocess_train_dataset)
    input_spec = emnist_train.create_tf_dataset_for_client(emnist_train.client_ids[0]).element_spec

    def tff_model_fn() -> tff.learning.Model:
        return tff.learning.from_keras_model(
            keras_model=OriginalFedAvgCnn(),
            input_spec=input_spec,
            loss=cross_entropy,
            metrics=[sparse_categorical_accuracy],
        )

    def broadcast_encoder_fn(value: Any) -> te.core.SimpleEncoder:
        spec = jax.ShapeDtypeStruct(value.shape, value.dtype)
        if value.shape.num_elements() > 10000:
            return te.encoders.as_simple_encoder(te.encoders.uniform_quantization(bits=8), spec)
        return te.encoders.as_simple_encoder(te.encoders.identity(), spec)

    def mean_encoder_fn(value: Any) -> te.core.GatherEncoder:
        spec = jax.ShapeDtypeStruct(value.shape, value.dtype)
        if value.shape.num_elements() > 10000:
            return te.encoders.as_gather_encoder(te.encoders.uniform_quantization(bits=8), spec)
        return te.encoders.as_gather_encoder(te.encoders.identity(), spec)

    processes = {
        name: tff.learning.build_federated_averaging_process(
            model_fn=tff_model_fn,
            client_optimizer_fn=lambda: optax.sgd(learning_rate=0.02),
            server_optimizer_fn=lambda: optax.sgd(learning_rate=1.0),
            **encoded,
        )
        for name, encoded in {
            "plain": {},
            "coded": {
                "broadcast_process": tff.learning.framework.build_encoded_broadcast_process_from_model(
                    tff_model_fn, broadcast_encoder_fn
                ),
                "aggregation_process": tff.learning.framework.build_encoded_mean_process_from_model(
                    tff_model_fn, mean_encoder_fn
                ),
            },
        }.items()
    }
    # What is sent is a matter of types: the rounds are counted and not run, which `test_tff` does with a small network.
    runs = {name: train(not_run(process), emnist_train, 10, 10) for name, process in processes.items()}
    assert runs["plain"][:2] == (PLAIN, PLAIN)
    assert runs["coded"][:2] == (CODED.format("439.38", "585.84", "732.30"), CODED.format("439.39", "585.85", "732.31"))
    assert str(runs["plain"][2]) == (
        "<broadcast=<>,aggregation=<>,train=<sparse_categorical_accuracy=0.09433962404727936,loss=2.3181073665618896>>"
    )


def not_run(process: Any) -> Any:
    measured = {"loss": np.float32(2.3181073665618896), "sparse_categorical_accuracy": np.float32(0.09433962404727936)}
    run = lambda state, cohort: (state, {**jax.tree.map(jnp.asarray, measured), "aggregation": {}})  # noqa: E731
    initialize = lambda: jax.eval_shape(process.initialize)  # noqa: E731
    return process._replace(initialize=initialize, next=process.next._replace(run=run))
