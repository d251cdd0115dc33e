"""Tests of what evaluations refuse, and say; what they measure is tested in the runs of `test_loop.py`."""

import jax
import pytest

from fedjx.data import digits
from fedjx.experiment import client_evaluation, personalised_evaluation
from fedjx.models import linear

TRAIN, _ = digits(num_clients=3)
MODEL = linear(10, input_shape=(8, 8, 1))


@pytest.mark.parametrize("ids", [[], [0, 2, 0]])
def test_clients_are_some_and_each_once(ids):
    with pytest.raises(
        ValueError, match=r"ids must be clients that differ, one at least; got ids=\[.*\]. Leave it out"
    ):
        client_evaluation(MODEL, TRAIN, ids=ids)


def test_a_model_is_no_computation():
    with pytest.raises(TypeError, match="personalization_evaluation and personal_evaluation return; got a Model"):
        personalised_evaluation(MODEL, TRAIN, key=jax.random.key(0))
