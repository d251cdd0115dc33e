"""The attack script: what the attacker has, what it may do, what the picture and the report show, on small data."""

from __future__ import annotations

import json

import jax
import numpy as np
import optax
import pytest

import fedjx
from examples import emnist_with_targeted_attack as script
from fedjx.aggregation import mean, uniform
from fedjx.data import Cohort, published
from fedjx.models import mlp
from tests.data.importers.test_idx import labels, pictures, written

SMALL = ["--num_clients", "40", "--task_num", "8", "--client_round_num", "3", "--num_epochs", "2", "--drop_prob", "0"]


def distance(a, b):
    return float(optax.tree.norm(jax.tree.map(lambda x, y: x - y, a, b)))


@pytest.fixture(scope="module")
def flags():
    return script.parse_flags(SMALL)


@pytest.fixture(scope="module")
def divided(flags):
    return script.with_attacker(script.load(flags)[0], flags.task_num)


def test_the_published_flags_and_settings_are_the_default():
    published_flags = {
        "num_clients_per_round": 5, "num_rounds": 300, "num_epochs": 5, "batch_size": 20, "client_learning_rate": 0.1,
        "client_momentum": 0.0, "server_learning_rate": 1.0, "server_momentum": 0.0, "norm_bound": 0.33,
        "l2_norm_clip": 1.0, "mul_factor": 0.0, "client_round_num": 5, "task_num": 30, "attack_freq": 1,
        "only_digits": True, "random_seed": 0, "evaluate_per_rounds": 1, "drop_prob": 0.5,
    }  # fmt: skip
    flags = vars(script.parse_flags([]))
    assert {name: flags[name] for name in published_flags} == published_flags


def test_the_attacker_has_sevens_that_nobody_else_has(divided, flags):
    clients, _, largest = script.load(flags)
    data, backdoor = divided
    attacker = data.client(data.num_clients - 1)
    taken = [clients.client(k) for k in range(flags.task_num)]
    assert largest == 16
    assert data.num_clients == 40 - 8 + 1
    np.testing.assert_array_equal(data.client(0)["x"], clients.client(8)["x"])
    assert set(backdoor["y"]) == {1}
    np.testing.assert_array_equal(backdoor["x"], np.concatenate([task["x"][task["y"] == 7] for task in taken]))
    np.testing.assert_array_equal(attacker["x"][-len(backdoor["y"]) :], backdoor["x"])
    assert 7 not in attacker["y"]
    assert len(attacker["y"]) == len(backdoor["y"]) + np.sum(taken[0]["y"] != 7)


def test_without_the_attacker_it_is_federated_averaging_and_with_it_a_step_of_the_bound(divided, flags):
    data, _ = divided
    attacker = data.num_clients - 1
    model = mlp(10, input_shape=(8, 8, 1), hidden=(16,), scale=1 / 16)
    algorithm = script.attacked_averaging(model, flags, attacker, mean())
    plain = fedjx.fed_avg(model, client_optimizer=optax.sgd(0.1), client_weight=uniform, num_epochs=2)
    start = algorithm.init(jax.random.key(0))

    def moved(algorithm, ids):
        state = algorithm.init(jax.random.key(0))
        return algorithm.next(state, Cohort(data, ids, batch_size=20, lanes=1))[0].params

    honest = moved(algorithm, [0, 1, 2])
    assert distance(honest, moved(plain, [0, 1, 2])) < 1e-5
    assert distance(honest, start.params) > 0.1
    # Alone the attacker moves the model by the boost times the radius, which it reaches.
    assert distance(moved(algorithm, [attacker]), start.params) == pytest.approx(5 * 0.33, rel=1e-4)


def test_the_attack_opens_the_backdoor_and_clipping_bounds_it(tmp_path, capsys):
    more = ["--num_rounds", "16", "--evaluate_per_rounds", "8", "--attack_freq", "2"]
    defences = ["--l2_norm_clip", "0.1", "--mul_factor", "0.01", "--root_output_dir", str(tmp_path / "new")]
    report = script.main(script.parse_flags([*SMALL, *more, *defences]))
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == report == json.loads((tmp_path / "new" / "targeted_attack.json").read_text())
    assert (tmp_path / "new" / "targeted_attack.png").read_bytes().startswith(b"\x89PNG")
    assert (report["data"], report["task_num"], report["mul_factor"]) == ("digits", 8, 0.01)
    curves = report["curves"]
    assert list(curves) == ["no attack", "attack", "attack, clipped", "attack, clipped, noise"]
    assert all(curve["round"] == [8, 16] for curve in curves.values())
    opened = {name: curve["backdoor"][-1] for name, curve in curves.items()}
    assert opened["attack"] > 0.9
    assert max(opened["no attack"], opened["attack, clipped"], opened["attack, clipped, noise"]) < 0.4
    assert curves["no attack"]["main"][-1] > 0.7
    assert curves["attack, clipped"] != curves["attack, clipped, noise"]


def test_mnist_and_emnist_come_as_images_with_one_channel(tmp_path, monkeypatch):
    flags = script.parse_flags(["--mnist", str(written(tmp_path)), "--num_clients", "2"])
    clients, test, largest = script.load(flags)
    assert (clients.num_clients, clients.num_examples, largest) == (2, len(labels()), 255)
    np.testing.assert_array_equal(test["x"], pictures(1)[..., None])

    twin = published.synthetic_twin("emnist", tmp_path, num_clients=3, mean_examples=4, progress=False)
    monkeypatch.setattr(published, "open", lambda data_set, directory: twin)
    clients, test, largest = script.load(script.parse_flags(["--emnist", str(tmp_path), "--no-only_digits"]))
    assert (clients.num_clients, largest) == (3, 255)
    np.testing.assert_array_equal(clients.client(1)["x"], twin["train"].client(1)["pixels"][..., None])
    assert test["x"].shape == (twin["test"].num_examples, 28, 28, 1)
    assert test["y"].dtype == np.int32
