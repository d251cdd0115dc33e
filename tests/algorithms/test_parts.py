"""Parts of a model's parameters: what is fixed stays, whoever trains, and no parameter is in two parts."""

import jax
import numpy as np
import optax
import pytest

from fedjx.algorithms import fed_avg
from fedjx.data import Cohort, FederatedData
from fedjx.models import linear
from fedjx.training import combine, partition, with_fixed

MODEL = linear(3, input_shape=(4,))
PARAMS = MODEL.init(jax.random.key(0))
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
