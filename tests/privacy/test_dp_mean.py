"""Private means: what they clip, how much noise they make, and how their clip adapts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjx
from fedjx import tff
from fedjx.aggregation import mean
from fedjx.models import linear
from fedjx.privacy import account, dp_mean, dp_mean_adaptive, tree
from tests.algorithms.test_laws import mesh

KEY = jax.random.key(7)


def rounds(aggregator, value, weight, number, step=None):
    """Results and measurements of rounds with the same clients."""
    state, found = aggregator.init(jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), value)), []
    placed, step = (fedjx.Clients.of(value), fedjx.Clients.of(weight)), step or jax.jit(aggregator.next.in_graph())
    for t in range(number):
        state, result, measured = step(jax.random.fold_in(KEY, t), state, *placed)
        found.append((result, measured, state))
    return found


VALUE = {"w": np.float32([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0]]), "b": np.float32([4.0, 0.4, 0.0])}
ONES = np.ones(3, np.float32)


def test_each_client_is_clipped_over_all_leaves_and_the_number_is_fixed():
    (result, measured, _), *_ = rounds(dp_mean(clip=1.0, noise_multiplier=0, expected_clients=10), VALUE, ONES, 1)
    np.testing.assert_allclose(result["w"], [(0.6 + 0.3) / 10, 0], rtol=1e-6)
    np.testing.assert_allclose(result["b"], (0.8 + 0.4) / 10, rtol=1e-6)
    np.testing.assert_allclose(measured["not_private"]["clipped_fraction"], 1 / 3)


def test_without_noise_and_clip_it_is_the_mean():
    plain = rounds(mean(), VALUE, ONES, 1)[0][0]
    private = rounds(dp_mean(clip=math.inf, noise_multiplier=0, expected_clients=3), VALUE, ONES, 1)[0][0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), private, plain)


@pytest.mark.parametrize(("max_weight", "most"), [(None, 0.1), (100.0, 0.1)])
def test_no_client_moves_the_mean_further_than_the_noise_assumes(max_weight, most):
    """One of 1,000 examples among 1,090 moves a weighted mean by .917."""
    weight = np.float32([1000, *[10] * 9])
    values = np.zeros((2, 10, 4), np.float32)
    values[1, 0] = 1e6
    private = dp_mean(clip=1.0, noise_multiplier=0, expected_clients=10, max_weight=max_weight)
    before, after = (rounds(private, value, weight, 1)[0][0] for value in values)
    assert np.linalg.norm(after - before) <= most * (1 + 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_who_is_not_finite_or_has_no_weight_adds_nothing(bad):
    value, weight = np.float32([[1.0], [bad], [bad]]), np.float32([1, 1, 0])
    result, measured, _ = rounds(dp_mean(clip=2.0, noise_multiplier=0, expected_clients=1), value, weight, 1)[0]
    np.testing.assert_allclose(result, [3.0] if bad == 1e30 else [1.0], rtol=1e-6)
    assert measured["not_private"]["num_non_finite"] == (0 if bad == 1e30 else 1)


def test_the_noise_of_the_mean_has_the_deviation_that_is_accounted_for():
    private = dp_mean(clip=0.5, noise_multiplier=2.0, expected_clients=10)
    value = {"w": np.zeros((3, 20, 10), np.float32), "b": np.zeros((3, 20), np.float32)}
    found = rounds(private, value, ONES, 2000)
    for leaf in ("w", "b"):
        drawn = np.stack([result[leaf].ravel() for result, *_ in found])
        assert drawn.std() == pytest.approx(2.0 * 0.5 / 10, rel=0.02)
        assert abs(np.mean(drawn[1:] * drawn[:-1])) < 0.02 * drawn.var()  # from round to round
    np.testing.assert_allclose(found[0][1]["noise_stddev"], 0.1)
    both = np.stack([np.r_[result["w"].ravel()[:20], result["b"].ravel()] for result, *_ in found])
    assert np.abs(np.corrcoef(both.T) - np.eye(40)).max() < 0.12  # of leaf and leaf


def test_the_noise_is_drawn_once_however_a_round_runs():
    private, others = dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=8), []
    value, weight = np.zeros((8, 5), np.float32), np.ones(8, np.float32)
    whole = rounds(private, value, weight, 2)
    for step in (
        private.next.in_graph(mesh=mesh(4), lanes=1),
        private.next.streamed(mesh=mesh(2), lanes=3),
        private.next.streamed(mesh=mesh(1), lanes=1),
    ):
        others.append(rounds(private, value, weight, 2, step))
    for other in others:
        for (a, *_), (b, *_) in zip(whole, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_noise_for_larger_cohorts_is_smaller_and_said():
    few = dp_mean(clip=0.4, noise_multiplier=0.61615, expected_clients=50, noise_clients=1000)
    measured = rounds(few, VALUE, ONES, 1)[0][1]
    np.testing.assert_allclose(measured["noise_stddev"] * 50, 0.012323, rtol=1e-4)  # on the sum, arXiv 2404.06430
    assert measured["noise_clients"] == 1000
    with pytest.raises(ValueError, match="noise is simulated for larger cohorts"):
        dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=50, noise_clients=10)


def clips(initial, number, norms=np.ones(100), **options):
    private = dp_mean_adaptive(noise_multiplier=0, expected_clients=len(norms), initial_clip=initial, **options)
    value = np.asarray(norms, np.float32)[:, None]
    return [float(state.clip) for *_, state in rounds(private, value, np.ones(len(norms), np.float32), number)]


def test_the_clip_follows_the_norms_from_both_sides():
    """The closed form for norms of 1; with the sign turned round, it would run away (.0905, .0607, ... from .1)."""
    below, above = clips(0.1, 24), clips(10.0, 24)
    np.testing.assert_allclose(
        [below[t - 1] for t in (1, 5, 15, 23, 24)], [0.110517, 0.164872, 0.448169, 0.997418, 1.102318], atol=1e-5
    )
    np.testing.assert_allclose(
        [above[t - 1] for t in (1, 5, 15, 23, 24)], [9.048374, 6.065307, 2.231302, 1.002588, 0.907180], atol=1e-5
    )
    assert clips(0.505, 3, np.arange(1, 101) / 100) == pytest.approx([0.505] * 3)


def test_padding_and_clients_without_weight_have_no_say_in_the_clip():
    private = dp_mean_adaptive(noise_multiplier=0, expected_clients=4, initial_clip=1.0)
    value, weight = np.float32([[2.0]] * 4 + [[0.0]] * 4), np.float32([1] * 4 + [0] * 4)
    *_, state = rounds(private, value, weight, 1)[0]
    assert float(state.clip) == pytest.approx(math.exp(0.2 * 0.5))


def test_an_adaptive_clip_makes_noise_with_the_clip_of_the_round():
    private = dp_mean_adaptive(noise_multiplier=1.0, expected_clients=100, initial_clip=0.1)
    found = rounds(private, np.zeros((100, 1), np.float32), np.ones(100, np.float32), 2)
    np.testing.assert_allclose(found[0][1]["noise_stddev"], 1.005038 * 0.1 / 100, rtol=1e-5)
    np.testing.assert_allclose(found[1][1]["noise_stddev"], 1.005038 * float(found[0][2].clip) / 100, rtol=1e-5)


@pytest.mark.parametrize("efficient", [False, True])
def test_momentum_on_what_a_tree_changes_is_dp_ftrl(efficient):
    """``v_t = m v_(t-1) + (sum of all so far + noise_t) / n`` and ``w_t = w_0 - rate v_t`` (arXiv 2103.00039)."""
    private = dp_mean(clip=1.0, noise_multiplier=0.7, expected_clients=3, noise=tree(8, efficient=efficient))
    optimizer, rng = optax.sgd(0.5, momentum=0.9), np.random.default_rng(0)
    noise, params = tree(8, efficient=efficient), jnp.zeros(4)
    state, tree_state, opt = private.init(params), tree(8).init(params), optimizer.init(params)
    summed, v = np.zeros(4), np.zeros(4)
    for t in range(8):
        key, value = jax.random.fold_in(KEY, t), rng.normal(size=(3, 4)).astype(np.float32) * 0.3
        state, delta, _ = private.next(key, state, fedjx.Clients.of(value), fedjx.Clients.of(ONES))
        updates, opt = optimizer.update(delta, opt, params)
        params = optax.apply_updates(params, updates)
        tree_state, _ = noise.next(key, tree_state, jnp.zeros(4))
        summed += value.sum(axis=0)
        v = 0.9 * v + (summed + 0.7 * np.asarray(tree_state.prefix)) / 3
        np.testing.assert_allclose(params, -0.5 * v, rtol=1e-4, atol=1e-5)


def test_the_names_of_tensorflow_federated():
    factory = tff.aggregators.DifferentiallyPrivateFactory
    sampler = fedjx.data.poisson_sampler(100, probability=0.1, seed=0)
    for private in (
        factory.gaussian_fixed(1.0, 10, clip=0.5),
        factory.gaussian_adaptive(0.5, 10, clipped_count_stddev=1.0),
        factory.tree_aggregation(1.0, 10, 0.5, num_rounds=16),
        tff.learning.dp_aggregator(0.5, 40.0, zeroing=False),
    ):
        assert account(private, sampler).epsilon(2, 1e-3) > 0
    with pytest.raises(TypeError, match="an account needs an aggregator that makes noise"):
        account(tff.learning.dp_aggregator(0.5, 40.0), sampler)
    train, _ = fedjx.data.digits(num_clients=4)
    process = tff.learning.build_unweighted_fed_avg(
        lambda: linear(10, input_shape=(8, 8, 1)),
        lambda: optax.sgd(0.1),
        model_aggregator=factory.gaussian_fixed(0.1, 4, clip=0.5),
    )
    state, metrics = process.next(process.initialize(), fedjx.data.Cohort(train, range(4), batch_size=20))
    assert int(state.round) == 1
    assert "noise_stddev" in str(metrics)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"clip": math.inf}, ValueError, "noise is in clips"),
        ({"clip": 0.0}, ValueError, "clip must be"),
        ({"noise_multiplier": -1.0}, ValueError, "noise_multiplier must be"),
        ({"expected_clients": 0}, ValueError, "Pass probability"),
        ({"max_weight": math.inf}, ValueError, "Pass the largest weight"),
    ],
)
def test_mistakes_are_refused(options, error, sentence):
    with pytest.raises(error, match=sentence):
        dp_mean(**{"clip": 1.0, "noise_multiplier": 1.0, "expected_clients": 10, **options})


def test_whole_numbers_are_no_updates():
    private = dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=2)
    with pytest.raises(TypeError, match="what is clipped must be floating-point; got int32"):
        rounds(private, np.ones((3, 2), np.int32), ONES, 1)
