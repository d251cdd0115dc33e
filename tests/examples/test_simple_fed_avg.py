"""The stand-alone federated averaging: its three parts, each by itself, against NumPy and against the library's."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from examples import simple_fed_avg
from examples.simple_fed_avg import ServerState, client_update, federated_averaging, init_params, server_update
from fedjx.models import Model

CLIENT, SERVER = optax.sgd(0.1, momentum=0.9), optax.sgd(1.0, momentum=0.9)
SIZES, BATCH_SIZE, NUM_EPOCHS = (20, 7, 33), 8, 2


def arrays(size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(size)
    return {"x": random.integers(0, 17, (size, 8, 8, 1)).astype(np.uint8), "y": random.integers(0, 10, size)}


def batches(examples: dict[str, np.ndarray], num_steps: int) -> dict[str, np.ndarray]:
    """Cuts one client's arrays into batches, in NumPy, and fills up with garbage."""
    size, total = len(examples["y"]), num_steps * BATCH_SIZE
    padded = {
        name: np.concatenate([x, np.full((total - size, *x.shape[1:]), 9, x.dtype)]) for name, x in examples.items()
    }
    padded["mask"] = np.arange(total) < size
    return {name: x.reshape(num_steps, BATCH_SIZE, *x.shape[1:]) for name, x in padded.items()}


@pytest.fixture(scope="module")
def data():
    return fedjx.data.FederatedData.from_clients([arrays(size) for size in SIZES])


@pytest.fixture(scope="module")
def next_round():
    return federated_averaging(CLIENT, SERVER, NUM_EPOCHS)


@pytest.fixture(scope="module")
def start():
    params = init_params(jax.random.key(0))
    return ServerState(params, SERVER.init(params), jnp.int32(0))


def assert_close(a, b, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def differs(a, b, atol=1e-4):
    return any(np.abs(x - y).max() > atol for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def cohort(data, ids):
    return fedjx.data.Cohort(data, ids, batch_size=BATCH_SIZE, lanes=1)


def test_local_functions_know_nothing_of_fedjx():
    lines = inspect.getsource(simple_fed_avg).split("# --- ")
    local, orchestration, driver = lines[1:]
    assert "fedjx" not in local
    assert "fedjx.data" not in orchestration
    assert "fedjx.federated" not in driver
    assert len(inspect.getsource(simple_fed_avg.main).splitlines()) <= 20


@pytest.mark.parametrize("weighted", [True, False])
def test_clients_by_themselves_and_a_mean_in_numpy_are_the_round(data, next_round, start, weighted):
    """Other numbers of padded batches than the engine's; an unweighted mean is the control."""
    train = jax.jit(functools.partial(client_update, optimizer=CLIENT, num_epochs=NUM_EPOCHS))
    updates = [jax.device_get(train(start.params, batches(arrays(size), 6))) for size in SIZES]
    assert [update.num_examples for update in updates] == list(SIZES)
    weights = SIZES if weighted else None
    delta = jax.tree.map(lambda *leaves: np.average(leaves, axis=0, weights=weights), *(u.delta for u in updates))
    after = server_update(start, delta, optimizer=SERVER)
    state, loss = next_round(start, cohort(data, range(3)))
    if weighted:
        assert_close(state, after)
        np.testing.assert_allclose(loss, np.average([u.loss for u in updates], weights=SIZES), atol=1e-6)
    else:
        assert differs(state.params, after.params)


def test_the_round_is_a_step_of_the_librarys_federated_averaging(data, next_round, start):
    """The same network and optimizers, with momentum on both sides; shuffled batches are the control."""

    def loss(params, batch, key):
        del key
        values = simple_fed_avg.logits(params, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(values, batch["y"])

    model = Model(init_params, loss, lambda params, batch: {"loss": loss(params, batch, None)})
    for shuffle in (False, True):
        algorithm = fedjx.fed_avg(
            model, client_optimizer=CLIENT, server_optimizer=SERVER, num_epochs=NUM_EPOCHS, shuffle=shuffle
        )
        own, theirs = start, algorithm.init(jax.random.key(0))._replace(params=start.params)
        for ids in ([0, 1, 2], [2, 1]):
            own, own_loss = next_round(own, cohort(data, ids))
            theirs, metrics = algorithm.next(theirs, cohort(data, ids))
        if shuffle:
            assert differs(own.params, theirs.params)
        else:
            assert_close(own.params, theirs.params)
            np.testing.assert_allclose(own_loss, metrics["loss"], atol=1e-6)


def test_a_round_has_a_type_without_ids_and_does_not_see_the_order(data, next_round, start):
    signature = str(next_round.type_signature(start, cohort(data, [0, 1])))
    assert signature.startswith("(<state=<params=<<float32[64,32],float32[32]>,<float32[32,10],float32[10]>>")
    assert "data={<mask=bool[8],x=uint8[8,8,8,1],y=int" in signature
    assert signature.endswith("round=int32>@SERVER,float32@SERVER>)")
    assert signature == str(next_round.type_signature(start, cohort(data, [2])))
    forward, backward = (next_round(start, cohort(data, ids)) for ids in ([0, 1, 2], [2, 0, 1]))
    assert_close(forward, backward)
    renamed = fedjx.data.FederatedData.from_clients([arrays(size) for size in (5, *SIZES)])  # clients 1, 2 and 3
    assert_close(forward, next_round(start, cohort(renamed, [1, 2, 3])))
    assert differs(forward, next_round(start, cohort(renamed, [0, 1, 2])))


def test_the_script_learns(capsys):
    state = simple_fed_avg.main(
        simple_fed_avg.parse_flags(["--num-clients", "10", "--num-rounds", "40", "--eval-every", "30"])
    )
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["round 30", "round 40"]
    assert float(printed[-1].split()[-1]) > 0.7
    assert int(state.round) == 40


def test_the_published_setting_is_the_default():
    flags = vars(simple_fed_avg.parse_flags([]))
    published = {
        "num_rounds": 256, "clients_per_round": 2, "batch_size": 16, "test_batch_size": 128, "num_epochs": 1,
        "client_rate": 0.1, "server_rate": 1.0,
    }  # fmt: skip
    assert {name: flags[name] for name in published} == published
