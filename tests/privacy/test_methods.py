"""Private aggregators in methods: what would lose the guarantee is refused, and a run resumes with all its noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import fedjx
from fedjx import algorithms, privacy
from fedjx.aggregation import error_feedback, top_k
from fedjx.models import linear
from tests.algorithms.problems import NUM_CLASSES, NUM_FEATURES, federated_data, normed_model

MODEL = linear(NUM_CLASSES, input_shape=(NUM_FEATURES,))
SGD = optax.sgd(0.1)
SOME = {"clip": 0.5, "noise_multiplier": 0.2, "expected_clients": 4}
PRIVATE = privacy.dp_mean(**SOME)


def traced(algorithm):
    state = algorithm.init(jax.random.key(0))
    algorithm.next.type_signature(state, fedjx.data.Cohort(federated_data(), [1, 2], batch_size=12).whole())


def plateau():
    """A server that looks at the loss."""
    optimizer = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau())
    return algorithms.fed_avg(MODEL, client_optimizer=SGD, aggregator=PRIVATE, server_optimizer=optimizer)


@pytest.mark.parametrize(
    "make",
    [
        plateau,
        lambda: algorithms.fed_nova(MODEL, client_optimizer=SGD, aggregator=PRIVATE),
        lambda: algorithms.q_fed_avg(MODEL, client_optimizer=SGD, aggregator=PRIVATE, q=1.0, lipschitz=1.0),
    ],
    ids=["plateau", "fed_nova", "q_fed_avg"],
)
def test_a_server_that_reads_exact_metrics_is_refused(make):
    with pytest.raises(ValueError, match="may read nothing exact of its clients"):
        traced(make())


def test_a_rejected_round_uses_its_noise():
    noise = privacy.dp_mean(clip=0.5, noise_multiplier=0.2, expected_clients=4, noise=privacy.tree(4))
    breaks = optax.GradientTransformation(
        lambda params: jnp.int32(0),
        lambda updates, state, params: (jax.tree.map(lambda x: x + jnp.inf, updates), state),
    )
    algorithm = algorithms.fed_avg(MODEL, client_optimizer=SGD, aggregator=noise, server_optimizer=breaks)
    before = algorithm.init(jax.random.key(0))
    after, metrics = algorithm.next(before, fedjx.data.Cohort(federated_data(), [1, 2], batch_size=12).whole())
    assert metrics["num_non_finite_aggregates"] == 1
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert (int(after.round), int(after.aggregator.rounds)) == (1, 1)


def test_a_state_of_noise_that_is_not_finite_does_not_stay():
    noise = privacy.independent()
    breaks = privacy.Noise(
        lambda member: jnp.float32(1),
        lambda key, state, member: (state / 0, noise.next(key, (), member)[1]),
        noise.kind,
    )
    algorithm = algorithms.fed_avg(MODEL, client_optimizer=SGD, aggregator=privacy.dp_mean(**SOME, noise=breaks))
    before = algorithm.init(jax.random.key(0))
    after, metrics = algorithm.next(before, fedjx.data.Cohort(federated_data(), [1, 2], batch_size=12).whole())
    assert (metrics["num_non_finite_aggregates"], float(after.aggregator)) == (1, 1)


def test_two_passes_and_numbers_beside_the_mean_are_refused():
    with pytest.raises(ValueError, match="twice a round, and an account of a private aggregator is of one pass"):
        algorithms.fed_lin(MODEL, client_optimizer=SGD, aggregator=PRIVATE)
    with pytest.raises(ValueError, match="takes a number of each client's change besides their mean"):
        algorithms.fed_exp(MODEL, client_optimizer=SGD, aggregator=PRIVATE)


def test_other_methods_take_private_means_and_other_aggregators_all_metrics():
    traced(algorithms.reptile(MODEL, client_optimizer=SGD, aggregator=PRIVATE))
    traced(algorithms.fed_yogi(MODEL, client_optimizer=SGD, aggregator=PRIVATE))
    traced(algorithms.fed_nova(MODEL, client_optimizer=SGD))


def test_a_memory_of_the_clients_own_keeps_the_account():
    remembered = error_feedback(top_k(fraction=0.5), inner=PRIVATE)
    sampler = fedjx.data.poisson_sampler(8, probability=0.5, seed=0)
    assert privacy.account(remembered, sampler) == privacy.account(PRIVATE, sampler)


def test_batch_statistics_are_clipped_with_the_rest():
    data = federated_data()
    wild = fedjx.data.FederatedData({**data.examples, "x": 1e3 * data.examples["x"]}, data.offsets)
    private = privacy.dp_mean(clip=0.5, noise_multiplier=0, expected_clients=1)
    algorithm = algorithms.fed_avg(normed_model(), client_optimizer=SGD, aggregator=private)
    before = algorithm.init(jax.random.key(0))
    after, _ = algorithm.next(before, fedjx.data.Cohort(wild, [1], batch_size=12))
    moved = jax.tree.map(lambda a, b: np.sum(np.square(a - b)), after.params, before.params)
    assert np.sqrt(sum(jax.tree.leaves(moved))) == pytest.approx(0.5, rel=1e-5)
    assert moved.batch_stats != {}


AGGREGATORS = {
    "adaptive": privacy.dp_mean_adaptive(noise_multiplier=0.2, expected_clients=4),
    "tree": privacy.dp_mean(noise=privacy.tree(4), **SOME),
    "bands": privacy.dp_mean(noise=privacy.matrix(privacy.Strategy((1.0, 0.5)), 8, min_separation=2), **SOME),
    "buffers": privacy.dp_mean(
        noise=privacy.matrix(privacy.Strategy((1.0,), (0.3,), (0.9,)), 8, min_separation=2), **SOME
    ),
}


@pytest.mark.parametrize("which", AGGREGATORS)
def test_a_run_resumes_with_its_noise_and_its_clip(which):
    algorithm = algorithms.fed_avg(
        MODEL,
        client_optimizer=SGD,
        aggregator=AGGREGATORS[which],
        server_optimizer=optax.sgd(1.0, momentum=0.9),
    )
    fresh, data = algorithm.init(jax.random.PRNGKey(0)), federated_data()

    def run(state, rounds):
        for _ in rounds:
            state, _ = algorithm.next(state, fedjx.data.Cohort(data, [1, 2, 5], batch_size=12))
        return state

    middle = run(fresh, range(3))
    resumed = serialization.from_bytes(fresh, serialization.to_bytes(middle))
    whole, again, anew = (
        run(middle, range(3)),
        run(resumed, range(3)),
        run(middle._replace(aggregator=fresh.aggregator), range(3)),
    )
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    with pytest.raises(AssertionError):  # the negative control: the aggregator's state matters
        jax.tree.map(np.testing.assert_array_equal, whole.params, anew.params)
