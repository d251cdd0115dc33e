"""Private means whose noise the clients make: what they cost, what comes out, and what the server sees."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from fedjx.aggregation.secure import secure_total
from fedjx.data import cyclic_sampler, fixed_sampler, poisson_sampler, uniform_sampler
from fedjx.models import linear
from fedjx.privacy import BudgetSpent, Event, account, budget, distributed_dp_mean, dp_mean, within
from fedjx.privacy.distributed import _rounded
from fedjx.privacy.events import Shared
from fedjx.privacy.integer_loss import IntegerSum, norms_after_rounding
from fedjx.privacy.loss import epsilon
from tests.algorithms.test_laws import mesh

KEY = jax.random.key(7)
ALL = fixed_sampler(100, [range(100)])
SOME = {"clip": 1.0, "noise_multiplier": 0.5, "expected_clients": 8, "num_elements": 64}
private = functools.partial(distributed_dp_mean, **SOME, min_clients=4, max_clients=8)


def test_rounding_lengthens_a_vector_by_so_much():
    assert norms_after_rounding(100, 2**20).l2 == pytest.approx(522.260471, abs=1e-6)
    assert norms_after_rounding(1000, 1024).l2 == pytest.approx(1000.635798, abs=1e-6)
    assert norms_after_rounding(1000, 1024, log_inverse_beta=math.inf).l2 == 1032
    assert norms_after_rounding(3, 4).l1 == pytest.approx(2 * norms_after_rounding(3, 4).l2)


def shares(mechanism, clip, stddev, size, probability=1.0):
    return IntegerSum(1.0, mechanism, stddev, 100, 100, norms_after_rounding(clip, size), size, probability)


@pytest.mark.parametrize(
    ("loss", "count", "delta", "expected"),
    [
        (shares("discrete_gaussian", 1 / 0.01, 0.5 / 0.01, 1024), 1, 1e-5, 0.810254),
        (shares("discrete_gaussian", 1 / 0.001, 0.5 / 0.001, 1024), 1, 1e-5, 0.795082),
        (shares("skellam", 100, 5 * 100 / 10, 1024), 1, 1e-5, 0.810256),
        (shares("skellam", 1000, 5 * 1000 / 10, 1024), 1, 1e-5, 0.795082),
        (shares("discrete_gaussian", 0.03 / 1e-4, 0.01 / 1e-4, 2**20, 100 / 3400), 1500, 1 / 3400, 3.378582),
    ],
)
def test_it_costs_what_is_published(loss, count, delta, expected):
    assert epsilon(loss, count, delta, "zero_out_one") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("num_bits", "z", "step"), [(12, 2.1737, 0.074352), (16, 2.15024, 0.0046305), (20, 2.14971, 0.00028938)]
)
@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
def test_few_bits_cost_a_little_more_noise(mechanism, num_bits, z, step):
    """The noise multiplier for an epsilon of 2; of the continuous Gaussian by RDP it is 2.149678."""
    of = {"clip": 10.0, "expected_clients": 100, "num_elements": 1000, "min_clients": 100, "max_clients": 100}
    mean = distributed_dp_mean(noise_multiplier=z, num_bits=num_bits, mechanism=mechanism, **of)
    assert isinstance(mean.event.noise, Shared)
    assert 10 / mean.event.noise.clip == pytest.approx(step, rel=2e-4)
    assert account(mean, ALL).epsilon(1, 1e-5) == pytest.approx(2, abs=2e-5)


def test_an_account_is_of_the_sum_that_is_seen():
    few = {"min_clients": 40, "num_elements": 1000, "max_clients": 190, "num_bits": 20}
    mean = distributed_dp_mean(clip=1.0, noise_multiplier=2.0, expected_clients=100, **few)
    # The server sees sums with 40 shares out of 190.
    seen = account(mean, cyclic_sampler(3400, 100, seed=0)).epsilon(34, 1e-5)
    z = 2 * math.sqrt(40 / 190)
    rdp = account(Event(z), ALL).epsilon(1, 1e-5, "rdp")
    assert seen == pytest.approx(rdp, rel=1e-3)
    assert account(mean, ALL, relation="zero_out_one").epsilon(100, 1e-5) > 10 * seen
    # Others see results with all shares, and not who was there.
    sampler = poisson_sampler(3400, probability=100 / 3400, seed=0)
    results = account(mean, sampler)
    gaussian = account(Event(2.0), sampler).epsilon(50, 1e-5, "rdp")
    assert gaussian < results.epsilon(50, 1e-5) < 1.6 * gaussian  # by a theorem that is not about Gaussians
    assert results.relation == "add_or_remove_one"
    assert results.epsilon_so_far(50, 1e-5) == results.epsilon(50, 1e-5)
    assert results.epsilon(1, 1e-5) < account(mean, ALL).epsilon(1, 1e-5)


def test_a_client_that_decides_whether_anything_is_shown_is_no_part_of_it():
    mean = distributed_dp_mean(
        clip=1.0, noise_multiplier=2.0, expected_clients=100, num_elements=9, min_clients=60, max_clients=150
    )
    spent = account(mean, poisson_sampler(3400, probability=100 / 3400, seed=0))
    assert isinstance(spent.loss, IntegerSum)
    # Of 3,399 others 59 or 150.
    assert spent.loss.deciding == pytest.approx(2.574e-6, rel=1e-3)
    with pytest.raises(ValueError, match=r"hardly ever decide.*Lower min_clients or raise max_clients"):
        spent.epsilon(1, 1e-5)
    assert spent.epsilon(1, 0.1) < 1
    assert spent.epsilon(1000, 0.1) == math.inf


@pytest.mark.parametrize(
    ("sampler", "relation", "sentence"),
    [
        (uniform_sampler(100, 10, seed=0), None, "draws of a fixed size do to shares of noise is not derived"),
        (ALL, "replace_one", "or one that sends noise alone"),
        (ALL, "add_or_remove_one", "the server sees how many clients take part"),
        (poisson_sampler(3, probability=[0.1, 0.2, 0.3], seed=0), None, "a probability for each client"),
        (poisson_sampler(30, probability=0.1, seed=0, max_cohort_size=9), None, "in cohorts that are cut off"),
    ],
)
def test_what_no_theorem_covers_is_refused(sampler, relation, sentence):
    with pytest.raises(ValueError, match=sentence):
        account(private(), sampler, relation=relation)


def rounds(mean, value, number, weight=None):
    """Results of rounds with the same clients, and the measurements of the last one."""
    placed = fedjx.Clients.of(value), fedjx.Clients.of(np.ones(len(value)) if weight is None else weight)

    @jax.jit
    def run(keys):
        return jax.lax.map(lambda key: mean.next.in_graph()(key, (), *placed)[1:], keys)

    result, measured = run(jax.random.split(KEY, number))
    return np.asarray(result), jax.tree.map(lambda x: x[-1], measured)


VALUE = (
    np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    * np.linspace(0.02, 0.3, 8, dtype=np.float32)[:, None]
)
CLIPPED = VALUE / np.maximum(1, np.linalg.norm(VALUE, axis=1, keepdims=True))


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
@pytest.mark.parametrize("present", [8, 5])
def test_noise_is_as_much_as_is_said_whoever_is_missing(mechanism, present):
    weight = np.float32([1] * present + [0] * (8 - present))
    found, measured = rounds(private(mechanism=mechanism), VALUE, 300, weight)
    off = found - CLIPPED[:present].sum(axis=0) / 8
    assert off.std() == pytest.approx(0.5 / 8, rel=0.02)
    assert float(measured["noise_stddev"]) == pytest.approx(0.5 / 8)
    assert np.abs(off.mean(axis=0)).max() < 4.5 * 0.5 / 8 / 300**0.5
    assert np.abs(np.corrcoef(off.T) - np.eye(64)).max() < 0.3
    assert abs(np.mean(off[1:] * off[:-1])) < 0.02 * off.var()
    assert int(measured["not_private"]["num_clients"]) == present
    with pytest.raises(AssertionError):  # the control: a share less would be seen
        assert off.std() == pytest.approx(0.5 / 8 * math.sqrt(7 / 8), rel=0.02)


def test_without_noise_it_is_the_mean_up_to_the_grid():
    exact = CLIPPED.mean(axis=0)
    fine, _ = rounds(private(noise_multiplier=0, num_bits=20), VALUE, 1)
    np.testing.assert_allclose(fine[0], exact, atol=1e-5)
    coarse, measured = rounds(private(noise_multiplier=0, num_bits=8), VALUE, 400)
    error = coarse - exact
    assert error.std() > 30 * np.abs(fine[0] - exact).max()
    assert np.abs(error.mean(axis=0)).max() < 4.5 * error.std() / 20  # rounding has no bias
    assert int(measured["not_private"]["num_clipped"]) == np.sum(np.linalg.norm(VALUE, axis=1) > 1)


def test_a_rounded_vector_is_never_longer_than_is_accounted_for():
    event = private(num_bits=12).event.noise
    assert isinstance(event, Shared)
    x = jax.random.normal(KEY, (64,))
    x *= event.clip / jnp.linalg.norm(x)
    found = jax.vmap(lambda key: _rounded(key, x, event))(jax.random.split(KEY, 500))
    most = norms_after_rounding(event.clip, event.size).l2
    assert np.linalg.norm(found, axis=1).max() <= most
    once = np.floor(np.asarray(x) + np.random.default_rng(0).uniform(size=(500, 64)))  # the control
    assert np.linalg.norm(once, axis=1).max() > most
    # What can never be within it is rounded towards 0 in the end.
    np.testing.assert_array_equal(_rounded(KEY, 9 * x, event), jnp.trunc(9 * x))


def test_a_result_is_the_same_bits_however_a_round_runs():
    mean, placed = private(), (fedjx.Clients.of(VALUE), fedjx.Clients.of(np.ones(8)))
    _, expected, _ = mean.next(KEY, (), *placed)
    for step in (mean.next.in_graph(mesh=mesh(4), lanes=1), mean.next.streamed(mesh=mesh(2), lanes=3)):
        np.testing.assert_array_equal(step(KEY, (), *placed)[1], expected)


def test_a_client_that_is_not_finite_adds_noise_alone():
    value = VALUE.copy()
    value[2, 5] = np.nan
    value[3, :] = 1e30
    found, measured = rounds(private(), value, 200)
    exact = CLIPPED.sum(axis=0) - CLIPPED[2] - CLIPPED[3] + np.ones(64) / 8
    assert np.abs((found - exact / 8).mean(axis=0)).max() < 4.5 * 0.5 / 8 / 200**0.5
    assert {name: int(n) for name, n in measured["not_private"].items()} == {
        "num_clients": 8,
        "num_clipped": int(np.sum(np.linalg.norm(VALUE, axis=1) > 1)),
        "num_non_finite": 1,
        "too_few": 0,
        "overflow": 0,
    }


def test_of_too_few_and_too_many_nothing_is_shown():
    (few,), measured = rounds(private(), VALUE, 1, np.float32([1, 1, 1, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(few, np.zeros(64))
    assert bool(measured["not_private"]["too_few"])
    (many,), measured = rounds(private(min_clients=1, max_clients=7), VALUE, 1)
    assert np.isnan(many).all()
    assert bool(measured["not_private"]["overflow"])


def test_an_algorithm_shows_secure_sums_and_has_a_budget():
    train, _ = fedjx.data.digits(num_clients=6)
    mean = distributed_dp_mean(
        clip=0.5, noise_multiplier=4.0, expected_clients=6, num_elements=650, min_clients=6, max_clients=6
    )
    algorithm = fedjx.fed_avg(
        linear(10, input_shape=(8, 8, 1)),
        client_optimizer=optax.sgd(0.1),
        aggregator=mean,
        metrics_sum=secure_total(bound=1e4, max_clients=6),
    )
    state, cohort = algorithm.init(KEY), fedjx.data.Cohort(train, range(6), batch_size=50)
    fedjx.check_secure(algorithm.next, state, cohort)
    limit = budget(account(mean, fixed_sampler(6, [range(6)])), epsilon=1.8, delta=1e-5)
    assert limit.max_rounds == 2
    assert limit.report(2)["epsilon"] == limit.account.epsilon(2, 1e-5) <= 1.8
    assert limit.description["noise"] == ["Shared", *mean.event.noise]
    with pytest.raises(BudgetSpent, match="pays 2 rounds"):
        within(limit, algorithm.next)(state._replace(round=jnp.int32(2)), cohort)


def test_a_plain_private_mean_is_not_secure():
    plain = dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=8)
    arguments = KEY, (), fedjx.Clients.of(VALUE), fedjx.Clients.of(np.ones(8))
    with pytest.raises(ValueError, match="only secure sums may touch client values"):
        fedjx.check_secure(plain.next, *arguments)
    fedjx.check_secure(private().next, *arguments)


def summary(ages):
    decades = jnp.histogram(ages, bins=10, range=(0, 100))[0]
    return {"age": ages.mean() / 100, "decades": decades / ages.size}


def test_hospitals_are_asked_for_ages_that_nobody_sees():
    """The mean age and a histogram: secure and private at once, and neither once the sum is a plain one."""
    ages = np.clip(np.random.default_rng(0).gamma(9, 6, size=(1000, 20)), 0, 99).astype(np.float32)
    survey = distributed_dp_mean(
        clip=1.5, noise_multiplier=4, expected_clients=1000, num_elements=11, min_clients=900, max_clients=1000
    )

    @fedjx.federated_computation
    def ask(key, ages):
        told, one = fedjx.federated_map(summary, ages), fedjx.federated_map(lambda ages: 1.0, ages)
        return survey.next(key, fedjx.federated_value((), fedjx.SERVER), told, one)[1]

    hospitals = fedjx.Clients.of(ages)
    fedjx.check_secure(ask, KEY, hospitals)
    found, stddev = ask(KEY, hospitals), 4 * 1.5 / 1000
    assert 100 * float(found["age"]) == pytest.approx(ages.mean(), abs=4 * 100 * stddev)
    truth = np.histogram(ages, bins=10, range=(0, 100))[0] / ages.size
    assert 0.2 * stddev < np.abs(found["decades"] - truth).max() < 4 * stddev
    everyone = fixed_sampler(1000, [range(1000)])
    assert 1 < account(survey, everyone).epsilon(1, 1e-5) < 1.2

    @fedjx.federated_computation
    def add(ages):
        return fedjx.federated_sum(fedjx.federated_map(summary, ages))

    np.testing.assert_allclose(add(hospitals)["decades"] / 1000, truth, rtol=1e-4)
    with pytest.raises(ValueError, match="only secure sums may touch client values; got federated_sum"):
        fedjx.check_secure(add, hospitals)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_bits": 3, "max_clients": 100}, "the rounding errors of all clients must fit into the ring"),
        ({"num_bits": 25}, "Floats have no finer steps"),
        ({"clip": math.inf}, "Choose a finite clip"),
        ({"min_clients": 9}, "Pass the threshold of the protocol"),
        ({"mechanism": "laplace"}, "must be one of 'skellam', 'discrete_gaussian'"),
        ({"num_bits": 24, "noise_multiplier": 50.0}, "Take coarser steps"),
    ],
)
def test_mistakes_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        private(**options)


def test_larger_values_than_was_said_are_refused():
    with pytest.raises(ValueError, match=r"at most num_elements=64; got one of 65\. Pass num_elements=65"):
        private().init(jnp.zeros(65))


def test_the_account_is_of_the_rounding_that_is_done():
    how: Any = {"clip": 1.0, "noise_multiplier": 1.0, "expected_clients": 30, "num_elements": 8}
    how |= {"min_clients": 20, "max_clients": 30}
    found = {}
    for log_inverse_beta in (0.5, 20.0):
        private = distributed_dp_mean(log_inverse_beta=log_inverse_beta, **how)
        event = private.event
        assert isinstance(event, Event)
        assert isinstance(event.noise, Shared)
        loss = account(private, fixed_sampler(30, [range(30)])).loss
        assert isinstance(loss, IntegerSum)
        expected = norms_after_rounding(event.noise.clip, event.noise.size, log_inverse_beta=log_inverse_beta)
        assert loss.norms == expected
        found[log_inverse_beta] = loss.norms.l2
    assert found[20.0] > found[0.5]
