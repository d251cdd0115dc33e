"""Nothing that a client says besides its delta moves the server further than the aggregator lets its delta."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjx import algorithms as methods
from fedjx.aggregation import clip_by_norm, coordinate_median, mean, norm_bounding, secure_mean
from fedjx.algorithms.attacks import lying
from fedjx.data import FederatedData
from fedjx.training import Failures
from tests.algorithms.test_every_combination import DATA, METHODS, run_one_round, toy

CLIP = 0.05
NUM_CLIENTS = 3

# How far the server goes where the aggregate is of norm 1, if that is not as far: by the server's rule, not by what
# clients say. Adaptive servers divide by no less than tau (1 + sqrt(b2)); see `server_adam`.
REACH = {
    "fed_sgd": 0.1,
    "fed_dyn": 2.0,  # h / alpha is another delta
    "fed_nova": 10.0,  # max_factor
    "ifca": np.sqrt(2),  # two models
    "fed_adagrad": 0.1 / 2e-3,
    "fed_adam": 0.1 * 0.1 / 1.9e-3,
    "fed_yogi": 0.1 * 0.1 / 1.9e-3,
}
LIES = (1e6, 1e-6)


def huge() -> FederatedData:
    """The clients' data, with the inputs of one times 200."""
    x = DATA.examples["x"].copy()
    x[: DATA.offsets[1]] *= 200
    return FederatedData({**DATA.examples, "x": x}, DATA.offsets)


def moved(algorithm: Any, data: FederatedData = DATA) -> float:
    """How far a round moves the server's parameters."""
    before, (after, *_) = run_one_round(algorithm, range(NUM_CLIENTS), data)
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, after.params, before.params)))


def liar(factor: float) -> Failures:
    return Failures(forged=lying(lambda client: client == 1, factor=factor))


@pytest.mark.parametrize("name", METHODS)
def test_the_server_moves_as_far_as_the_clip_allows(name):
    """Whatever one client's inputs are, and whatever another says of its weight, losses, steps and counts."""
    clip, reach = clip_by_norm(max_norm=CLIP), 1.0001 * CLIP * REACH.get(name, 1.0)
    for factor in LIES:
        assert 0 < moved(METHODS[name](aggregator=clip, failures=liar(factor)), huge()) <= reach, factor


@pytest.mark.parametrize("name", ["fed_exp", "fed_nova", "q_fed_avg"])
def test_without_a_clip_it_moves_further(name):
    """The negative control."""
    assert moved(METHODS[name](), huge()) > 2 * CLIP


@pytest.mark.parametrize("name", ["fed_exp", "fed_nova", "q_fed_avg", "fed_dyn"])
def test_no_negative_lie_moves_it_further(name):
    reach = 1.0001 * CLIP * REACH.get(name, 1.0)
    assert moved(METHODS[name](aggregator=clip_by_norm(max_norm=CLIP), failures=liar(-1e3))) <= reach


def test_a_factor_of_fed_nova_without_a_bound_is_found_out():
    """The negative control of the lies."""
    algorithm = METHODS["fed_nova"](aggregator=clip_by_norm(max_norm=CLIP), failures=liar(1e6), max_factor=np.inf)
    assert moved(algorithm) > 1e3 * CLIP


@pytest.mark.parametrize("aggregator", [clip_by_norm(max_norm=CLIP), norm_bounding(bound=CLIP), coordinate_median()])
def test_q_fed_avg_does_not_stall_under_a_bound(aggregator):
    """The factor is made of bounded norms: it was thousands of times smaller where one client is huge."""
    average = moved(methods.fed_avg(toy(), client_optimizer=optax.sgd(0.1), aggregator=aggregator), huge())
    for q in (0.5, 2.0):
        own = {"client_optimizer": optax.sgd(0.1), "aggregator": aggregator}
        assert moved(methods.q_fed_avg(toy(), q=q, lipschitz=10.0, **own), huge()) > 0.5 * average, q


def test_without_q_it_is_federated_averaging_under_the_same_clip():
    own = {"client_optimizer": optax.sgd(0.1), "aggregator": clip_by_norm(max_norm=CLIP)}
    fair = methods.q_fed_avg(toy(), q=0.0, lipschitz=10.0, **own)
    average = methods.fed_avg(toy(), client_weight=lambda n: (n > 0).astype(jnp.float32), **own)
    found, expected = (run_one_round(x, range(NUM_CLIENTS), huge())[1][0].params for x in (fair, average))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), found, expected)


def test_fed_exp_takes_the_norms_that_come_through_the_aggregator():
    """Clipped to one norm, or not at all, in the open or in secure sums."""
    epsilon, own = 1e-5, {"client_optimizer": optax.sgd(0.1), "client_weight": lambda n: (n > 0).astype(jnp.float32)}
    for aggregator, norm in [
        (clip_by_norm(max_norm=CLIP), CLIP),
        (secure_mean(bound=1.0, max_weight=1.0, max_clients=3), None),
        (clip_by_norm(max_norm=CLIP, inner=secure_mean(bound=1.0, max_weight=1.0, max_clients=3)), CLIP),
        (mean(), None),
    ]:
        algorithm = methods.fed_exp(toy(), epsilon=epsilon, aggregator=aggregator, **own)
        data = huge() if norm else DATA
        (_, (after, metrics)) = run_one_round(algorithm, range(NUM_CLIENTS), data)
        delta = moved(methods.fed_avg(toy(), aggregator=aggregator, **own), data)
        if norm:
            assert float(metrics["squared_norm"]) == pytest.approx(norm**2, rel=1e-5)
        expected = max(1.0, float(metrics["squared_norm"]) / (2 * (delta**2 + epsilon)))
        assert float(after.optimizer[0].scale) == pytest.approx(expected, rel=1e-4)


def test_what_bounds_no_single_client_is_refused_where_it_would_have_no_say():
    with pytest.raises(ValueError, match=r"takes a number of each client's change .* Take such as clip_by_norm"):
        methods.fed_exp(toy(), client_optimizer=optax.sgd(0.1), aggregator=coordinate_median())
