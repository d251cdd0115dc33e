"""Audits: bounds that are published, a confidence that holds, and runs that are what they say, or are caught."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

import fedjx
from fedjx.aggregation import mean, secure_mean
from fedjx.algorithms import federated_evaluation
from fedjx.data import Cohort, FederatedData, flip_labels, only_clients, poisson_sampler, preprocess
from fedjx.models import linear
from fedjx.privacy import (
    Independent,
    Noise,
    account,
    audit,
    canary_score,
    coins,
    dp_mean,
    independent,
    tree,
    with_canaries,
)


def gaussian_scores(shift, number=2000, seed=0):
    normal = np.random.default_rng(seed).normal
    return np.concatenate([normal(shift, 1, number), normal(0, 1, number)]), np.arange(2 * number) < number


def corners(scores, included):
    """The thresholds at the corners of the convex hull of true over false positives, as jax-privacy takes them."""
    hull = []
    for t in [*np.unique(scores), np.inf]:
        x, y = np.sum(scores[included] < t), np.sum(scores[~included] < t)
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-1][0]) <= (y - hull[-1][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y, t))
    return np.array(hull)


def test_published_bounds():
    """Those of jax-privacy 2.0.0, at its thresholds; and those at our own, which are larger."""
    scores, included = gaussian_scores(1.0)
    hull = corners(scores, included)
    assert audit(scores, included, delta=0, thresholds=hull[:, 2]).clopper_pearson == pytest.approx(1.526139, abs=1e-6)
    assert audit(scores, included, delta=1e-5, thresholds=hull[:, 2]).one_run == pytest.approx(1.222453, abs=1e-6)
    assert np.trapezoid(hull[:, 1], hull[:, 0]) / 2000**2 == pytest.approx(0.759722, abs=1e-6)
    found = audit(scores, included, delta=1e-5)
    assert found.clopper_pearson == pytest.approx(1.663065, abs=1e-5)
    assert found.one_run == pytest.approx(1.428569, abs=1e-5)
    assert found.auroc == pytest.approx(roc_auc_score(included, scores))
    assert found.auroc == pytest.approx(norm.cdf(2**-0.5), abs=0.01)


def test_scores_without_a_difference_show_nothing():
    for seed in range(5):
        found = audit(*gaussian_scores(0.0, seed=seed), delta=1e-5)
        assert found[:2] == (0, 0)
        assert found.auroc == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_at_one_threshold_it_is_jax_privacy(delta):
    auditing = pytest.importorskip("jax_privacy.auditing")
    shown = 0
    for seed, threshold in enumerate((-3.0, 0.0, 1.0, 2.0, 9.0)):
        scores, included = gaussian_scores(1.5, number=200, seed=seed)
        scores = scores.round(1)  # so that some are equal, and equal the threshold
        other, at = auditing.CanaryScoreAuditor(scores[included], scores[~included]), auditing.Explicit(threshold)
        found = audit(scores, included, delta=delta, thresholds=[threshold])
        expected = other.epsilon_clopper_pearson(0.05, delta, threshold_strategy=at)
        assert found.clopper_pearson == pytest.approx(expected, abs=1e-6)
        expected = other.epsilon_one_run(0.05, delta, threshold_strategy=at)
        assert found.one_run == pytest.approx(expected, abs=2e-6)
        shown += found.clopper_pearson > 0
    assert 1 < shown < 5


def test_the_confidence_holds_where_it_is_hardest():
    """Scores that give away epsilon = 1 at every threshold; one test for each, uncorrected, would say more."""
    random, most = np.random.default_rng(0), (1 - np.exp(-1)) / (np.exp(1) - np.exp(-1))
    wrong = np.zeros(3)
    for _ in range(200):
        included, above = random.random(200) < 0.5, random.random(200) < np.exp(1) * most
        higher = np.where(above, 1 - most * random.random(200), (1 - most) * random.random(200))
        scores = np.where(included, higher, random.random(200))
        found, each = audit(scores, included, delta=1e-9), np.quantile(scores, np.linspace(0.55, 0.98, 12))
        uncorrected = max(audit(scores, included, delta=1e-9, thresholds=[t]).one_run for t in each)
        wrong += np.array([*found[:2], uncorrected]) > 1
    assert max(wrong[:2]) <= 0.05 * 200 < wrong[2]


# --- canaries -------------------------------------------------------------------------------------


def scaled_noise():
    """Independent noise, times the state: what an accountant is told of it is true for a state of 1 only."""

    def next(key, scale, member):
        return scale, jax.tree.map(lambda n: scale * n, independent().next(key, (), member)[1])

    return Noise(lambda member: jnp.float32(1), next, Independent())


def rounds(audited, state, number, size, clients, *, sample=None):
    """Scores [rounds, canaries] where other clients send zeros, and the last result."""
    step, found = jax.jit(audited.next), []
    for t in range(number):
        there = np.isin(np.arange(clients), sample(t)) if sample else np.ones(clients, bool)
        value = fedjx.Clients.of(np.zeros((clients, size), np.float32))
        weight = fedjx.Clients.of(there.astype(np.float32))
        state, result, measured = step(jax.random.fold_in(jax.random.key(0), t), state, value, weight)
        found.append(measured["canary_scores"])
    return np.stack(found), result


def test_a_canary_scores_one_if_it_is_there_and_noise_has_its_multiplier():
    private = dp_mean(clip=0.5, noise_multiplier=3.0, expected_clients=6, noise=scaled_noise())
    ids, included = [1, 4, 5, *range(70, 567)], np.array([True, False, *[True] * 498])
    audited = with_canaries(ids, included, norm=0.5, expected_clients=6, inner=private)
    [scores], result = rounds(audited, jnp.float32(0), 1, 10_000, 9)
    np.testing.assert_allclose(scores[:5], [1, 0, 1, 0, 0], atol=0.05)  # 4 is out, those from 70 are not in the cohort
    assert np.linalg.norm(result) == pytest.approx(0.5 * 2**0.5 / 6, rel=0.02)
    [noisy], _ = rounds(audited, jnp.float32(1), 1, 10_000, 9)
    assert (noisy - scores).std() == pytest.approx(3.0, rel=0.1)


def test_noise_of_a_tree_cancels_in_a_direction_that_stays():
    included, sample = coins(200, seed=0), fedjx.data.cyclic_sampler(200, 25, seed=0)
    private = dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=25, noise=tree(32))
    audited = with_canaries(range(200), included, norm=1.0, expected_clients=25, inner=private, seed=1)
    scores, _ = rounds(audited, audited.init(jnp.zeros(1000)), 32, 1000, 200, sample=sample)
    found = audit(canary_score(scores, noise_multiplier=1.0), included, delta=1e-4)
    assert found.auroc > 0.9 > norm.cdf(4 / (2 * 32) ** 0.5) + 0.2  # that of four rounds in 32 of independent noise
    assert 1 < found.clopper_pearson < account(private, sample).epsilon(32, 1e-4)


def test_canaries_keep_what_the_aggregator_guarantees():
    secure = secure_mean(bound=8.0, max_weight=16.0, max_clients=16)
    for inner in (dp_mean(clip=1.0, noise_multiplier=1.0, expected_clients=4), secure, mean()):
        audited = with_canaries([0], [False], norm=1.0, expected_clients=4, inner=inner)
        assert (audited.event, audited.secure) == (inner.event, inner.secure)
        assert (audited.bounded is None) == (inner.bounded is None)
    audited = with_canaries([0], [False], norm=2.0, expected_clients=4, inner=mean())
    value, weight = fedjx.Clients.of(np.ones((2, 3), np.float32)), fedjx.Clients.of(np.ones(2, np.float32))
    bounded = fedjx.federated_computation(lambda key, value, weight: audited.bounded(key, (), value, weight))
    values, weights = bounded(jax.random.key(0), value, weight)
    np.testing.assert_allclose(np.linalg.norm(values.value, axis=1), [2.0, 3**0.5], rtol=1e-6)
    assert weights.value.tolist() == [0, 1]


def test_the_score_of_all_rounds_is_their_likelihood_ratio():
    scores, z, q = np.random.default_rng(0).normal(size=(5, 3)), 0.7, 0.2
    there, absent = norm.pdf(scores, 1, z), norm.pdf(scores, 0, z)
    expected = np.log(((1 - q) * absent + q * there) / absent).sum(axis=0)
    np.testing.assert_allclose(canary_score(scores, noise_multiplier=z, probability=q), expected)
    np.testing.assert_allclose(canary_score(scores, noise_multiplier=z), np.log(there / absent).sum(axis=0))


# --- runs -----------------------------------------------------------------------------------------


NUMBER, PROBABILITY, ROUNDS, DELTA = 1000, 0.07, 30, 1e-5


def test_a_private_run_is_within_its_account_and_one_with_too_little_noise_is_caught():
    """Federated averaging of a linear model over the digits of 100 clients, beside 1,000 canaries."""
    digits, _ = fedjx.data.digits(num_clients=100)
    one = {name: column[:1] for name, column in digits.client(0).items()}
    data = FederatedData.from_clients([*(digits.client(k) for k in range(100)), *[one] * NUMBER])
    sample, included = poisson_sampler(NUMBER + 100, probability=PROBABILITY, seed=0), coins(NUMBER, seed=0)
    expected = PROBABILITY * (NUMBER + 100)
    private = dp_mean(clip=0.5, noise_multiplier=1.0, expected_clients=expected, noise=scaled_noise())
    claimed = account(private, sample).epsilon(ROUNDS, DELTA)
    assert claimed == pytest.approx(3.026, abs=1e-3)
    audited = with_canaries(range(100, 1100), included, norm=0.5, expected_clients=expected, inner=private)
    model = linear(10, input_shape=(8, 8, 1), scale=1 / 16)
    algorithm = fedjx.fed_avg(model, client_optimizer=optax.sgd(0.1), aggregator=audited)
    run, cohorts = algorithm.next.scanned(), [Cohort(data, sample(t), batch_size=20) for t in range(ROUNDS)]

    def scores(scale):
        state = algorithm.init(jax.random.key(0))._replace(aggregator=jnp.float32(scale))
        _, metrics = run(state, cohorts)
        rounds = metrics["aggregation"]["canary_scores"]
        return canary_score(rounds, noise_multiplier=0.5, probability=PROBABILITY)

    found = audit(scores(1), included, delta=DELTA)
    assert 0 < min(found[:2]) <= max(found[:2]) < claimed
    without = scores(0)  # by mistake
    assert min(audit(without, included, delta=DELTA)[:2]) > claimed
    assert audit(without, coins(NUMBER, seed=1), delta=DELTA)[:2] == (0, 0)  # of coins that nobody used
    assert min(audit(scores(1 / 4), included, delta=DELTA)[:2]) > claimed


def test_clients_with_flipped_labels_are_canaries_without_an_aggregator():
    random, included = np.random.default_rng(0), coins(100, seed=0)
    x = random.normal(size=(120, 1000)).astype(np.float32)
    data = FederatedData({"x": x, "y": (x[:, 0] > 0).astype(np.int32)}, np.arange(121))
    data = preprocess(data, only_clients(lambda client: client < 100, flip_labels(num_classes=2)))
    private = dp_mean(clip=1.0, noise_multiplier=4.0, expected_clients=60, noise=scaled_noise())
    model = linear(2, input_shape=(1000,))
    algorithm = fedjx.fed_avg(model, client_optimizer=optax.sgd(0.1), num_epochs=2, aggregator=private)
    run, evaluate = algorithm.next.scanned(), federated_evaluation(model, per_client=True)
    trained = Cohort(data, np.flatnonzero([*included, *[True] * 20]), batch_size=1)

    def found(scale):
        state, _ = run(algorithm.init(jax.random.key(0))._replace(aggregator=jnp.float32(scale)), [trained] * 10)
        _, of_each = evaluate(state.params, Cohort(data, range(100), batch_size=1))
        return audit(-np.asarray(of_each.value["loss"]), included, delta=1e-5)

    assert found(1)[:2] == (0, 0)
    assert min(found(0)[:2]) > 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: audit([1.0, 2.0], [True, True], delta=0), "Toss coins for more canaries"),
        (lambda: audit([1.0, np.nan], [True, False], delta=0), "got 1 NaN"),
        (lambda: audit([[1.0, 2.0]], [True, False], delta=0), "Make one score of the rounds' by canary_score"),
        (lambda: audit([1.0, 2.0], [1, 0], delta=0), "one flag"),
        (lambda: with_canaries([1, 1], [True] * 2, norm=1.0, expected_clients=4, inner=mean()), "ids that differ"),
        (lambda: with_canaries([1, 2], [True], norm=1.0, expected_clients=4, inner=mean()), "with a flag for each"),
        (lambda: canary_score([[1.0]], noise_multiplier=0.0), "Take the least that there may be"),
    ],
)
def test_mistakes_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
