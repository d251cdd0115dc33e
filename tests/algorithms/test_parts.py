"""Parts of a model's parameters: what is fixed stays, whoever trains, and no parameter is in two parts."""

import jax
import numpy as np
import optax
import pytest

import fedjx
from fedjx.algorithms import fed_avg, fed_per
from fedjx.data import ClientStates, Cohort, FederatedData, split_examples
from fedjx.models import linear
from fedjx.training import combine, local_evaluate, partition, stateful_rounds, with_fixed

MODEL = linear(3, input_shape=(4,))
PARAMS = MODEL.init(jax.random.key(0))
SHARES = {"train": 0.8, "test": 0.2}
DATA = FederatedData({"x": np.eye(4, dtype=np.float32), "y": np.array([0, 1, 2, 0])}, np.array([0, 1, 4]))


@pytest.mark.parametrize("is_fixed", [lambda name: name.endswith("bias"), lambda name: name.endswith("kernel")])
def test_what_is_fixed_is_neither_trained_nor_in_the_state(is_fixed):
    parts = partition(PARAMS, is_fixed)
    algorithm = fed_avg(with_fixed(MODEL, parts.local), client_optimizer=optax.sgd(0.5, momentum=0.9))
    state = algorithm.init(jax.random.key(5))
    new, _ = algorithm.next(state, Cohort(DATA, [0, 1], batch_size=2, lanes=1))
    before, after = (combine(one.params, parts.local)["head"] for one in (state, new))
    for name in ("bias", "kernel"):
        moves = bool(np.any(before[name] != after[name]))
        assert moves == (not is_fixed(name)), name
        if is_fixed(name):
            np.testing.assert_array_equal(after[name], PARAMS["head"][name])


def test_parts_that_overlap_are_refused():
    parts = partition(PARAMS, lambda name: name.endswith("bias"))
    with pytest.raises(ValueError, match="two parts have no parameter in common; got 'head/bias' in both"):
        combine(PARAMS, parts.local)


def test_heads_are_those_of_their_clients_on_the_test_split(tmp_path):
    """Each client has a class of its own, and two of five have nothing to test."""
    sizes, model = [10, 1, 6, 2, 8], linear(5, input_shape=(3,))
    x, y = np.random.default_rng(0).uniform(0, 0.1, (27, 3)).astype(np.float32), np.repeat(range(5), sizes)
    parts = split_examples(FederatedData({"x": x, "y": y}, np.cumsum([0, *sizes])), fractions=SHARES, seed=0)
    train, test = parts["train"], parts["test"]
    assert test.ids.tolist() == [0, 1, 2, 3, 4]
    assert test.sizes.tolist() == [2, 0, 1, 0, 2]
    algorithm = fed_per(model, is_local=lambda name: name.endswith("bias"), client_optimizer=optax.sgd(3.0))
    state = algorithm.init(jax.random.key(0))
    states = ClientStates(tmp_path / "states", algorithm.init_client(state), num_clients=5)
    state, _ = stateful_rounds(algorithm, states, durable=False)(state, Cohort(train, train.ids, batch_size=9, lanes=1))

    @fedjx.federated_computation
    def accuracy(params, data, heads):
        def scored(params, data, head):
            return local_evaluate(model, combine(params, head), data)["accuracy"]

        return fedjx.federated_sum(fedjx.federated_map(scored, fedjx.federated_broadcast(params), data, heads))

    def of_heads(ids):
        heads = fedjx.Clients.of(states.take(ids), ids=test.ids)
        return tuple(accuracy(state.params, Cohort(test, test.ids, batch_size=4).whole(), heads))

    assert of_heads(test.ids) == (5, 5)
    assert of_heads([1, 2, 3, 4, 0])[0] < 5, "heads of other clients do as well: this test cannot fail"
