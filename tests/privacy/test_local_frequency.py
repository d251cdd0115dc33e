"""Frequency oracles: every likelihood enumerated, every estimate unbiased and as variable as said, every bit billed."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard

import fedjx
from fedjx.privacy import (
    category_response,
    frequency_response,
    hadamard_response,
    hash_response,
    local_mean,
    unary_response,
)

NUMBER, K = 200_000, 5
MAKERS = {
    "category": category_response,
    "unary": unary_response,
    "hash": hash_response,
    "hadamard": hadamard_response,
}


def messages(randomizer, value, number=NUMBER):
    keys = jax.random.split(jax.random.key(3), number)
    return jax.jit(jax.vmap(randomizer.report, (0, None)))(keys, jnp.int32(value))


def estimates(randomizer, value, number=NUMBER):
    return np.asarray(jax.jit(jax.vmap(randomizer.decode))(messages(randomizer, value, number)))


def kept(epsilon, support):
    """Returns, of outputs with a chance e^epsilon times as large where a value supports them, chances [outputs, k]."""
    shares = np.where(support, math.exp(epsilon), 1.0)
    return shares / shares.sum(axis=0)


def likelihoods(which, epsilon, k):
    """Returns, by the papers, what a message says for which categories [outputs, k], and its likelihood of each."""
    if which == "category":
        return np.eye(k, dtype=bool), kept(epsilon, np.eye(k, dtype=bool))
    if which == "hadamard":
        size = 2 ** math.ceil(math.log2(k + 1))
        support = hadamard(size)[:, 1 : k + 1] > 0
        return support, kept(epsilon, support)
    if which == "unary":
        outputs = np.array(list(itertools.product([False, True], repeat=k)))
        ones = np.where(np.eye(k, dtype=bool), 0.5, 1 / (math.exp(epsilon) + 1))  # [value, bit]
        return outputs, np.where(outputs[:, None], ones, 1 - ones).prod(axis=2)
    g = round(math.exp(epsilon)) + 1  # all hash functions, of the same likelihood, with all hashes said
    tables = np.array(list(itertools.product(range(g), repeat=k)))
    support = tables[:, None] == np.arange(g)[:, None]  # [table, said, k]
    return support.reshape(-1, k), np.concatenate([kept(epsilon, one) for one in support]) / len(tables)


def surprise(which, epsilon, found, value):
    """Returns the most standard errors by which patterns of categories that messages speak for are off."""
    outputs, likely = likelihoods(which, epsilon, K)
    of_pattern = np.bincount(outputs @ 2 ** np.arange(K), likely[:, value], minlength=2**K)
    counts = np.bincount((found > 0) @ 2 ** np.arange(K), minlength=2**K)
    assert (counts[of_pattern == 0] == 0).all()
    possible = of_pattern > 0
    errors = np.sqrt(NUMBER * of_pattern * (1 - of_pattern))[possible]
    return (np.abs(counts - NUMBER * of_pattern)[possible] / errors).max()


@pytest.mark.parametrize("which", MAKERS)
def test_no_message_is_likelier_than_epsilon_allows(which):
    """All messages, of all pairs of values; for hashes under each function, for its seed says nothing of the value."""
    for epsilon, k in ((1.0, K), (0.3, 3), (1.4, 4)):
        _, likely = likelihoods(which, epsilon, k)
        np.testing.assert_allclose(likely.sum(axis=0), 1)
        ratios = likely.max(axis=1) / likely.min(axis=1)
        assert ratios.max() == pytest.approx(math.exp(epsilon), rel=1e-12)
    randomizer = MAKERS[which](epsilon=1.0, num_categories=K)
    for value in range(K):
        found = estimates(randomizer, value)
        assert surprise(which, 1.0, found, value) < 5
        assert surprise(which, 1.1, found, value) > 8


def test_seeds_say_nothing_of_the_value_and_hashes_are_said_alike():
    randomizer = hash_response(epsilon=1.0, num_categories=K)
    one, other = (messages(randomizer, value) for value in (0, 4))
    np.testing.assert_array_equal(one["seed"], other["seed"])
    for said in range(4):  # each of g hashes
        assert (one["said"] == said).mean() == pytest.approx(1 / 4, abs=5 * math.sqrt(3 / 16 / NUMBER))
    assert len(np.unique(one["seed"])) > NUMBER - 100


@pytest.mark.parametrize("which", MAKERS)
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_estimates_are_unbiased_and_as_variable_as_said(which, epsilon):
    randomizer = MAKERS[which](epsilon=epsilon, num_categories=K)
    found = estimates(randomizer, 1)
    error = 5 * math.sqrt(max(randomizer.variance, 1) / NUMBER)
    np.testing.assert_allclose(found.mean(axis=0), np.eye(K)[1], atol=error)
    others = found[:, [0, 2, 3, 4]].var(axis=0)
    np.testing.assert_allclose(others, randomizer.variance, rtol=0.03)
    wrong = MAKERS[which](epsilon=0.9 * epsilon, num_categories=K)  # a server that decodes for another epsilon
    assert others.max() < 0.97 * wrong.variance
    biased = np.asarray(jax.vmap(wrong.decode)(messages(randomizer, 1)))
    assert np.abs(biased.mean(axis=0) - np.eye(K)[1]).max() > error


def test_variances_are_published():
    """n times the variance of a frequency near 0."""
    for e, k, expected in ((1, 2, 0.920674), (1, 16, 5.662430), (1, 256, 86.949683), (2, 256, 6.403450)):
        assert category_response(epsilon=e, num_categories=k).variance == pytest.approx(expected, abs=1e-6)
    for e, least, hashed in ((1, 3.682694, 3.691655), (2, 0.724062, 0.724591)):
        assert unary_response(epsilon=e, num_categories=9).variance == pytest.approx(least, abs=1e-6)
        # Of g hashes, which are e^epsilon + 1 at best, and a whole number.
        grown = math.exp(e)
        of_best, of_whole = ((grown + g - 1) ** 2 / ((g - 1) * (grown - 1) ** 2) for g in (grown + 1, round(grown) + 1))
        assert (of_best, of_whole) == (pytest.approx(least, abs=1e-6), pytest.approx(hashed, abs=1e-6))
        assert hash_response(epsilon=e, num_categories=9).variance == pytest.approx(hashed, abs=1e-6)
        assert hadamard_response(epsilon=e, num_categories=9).variance == pytest.approx(1 / math.tanh(e / 2) ** 2)


@pytest.mark.parametrize(
    ("which", "num_categories", "bits"),
    [
        ("category", 256, 8),
        ("category", 257, 16),
        ("unary", 300, 300),
        ("hash", 100_000, 32 + 8),
        ("hadamard", 255, 8),  # one column is that of nobody
        ("hadamard", 256, 16),
        ("hadamard", 65_536, 32),
    ],
)
def test_a_client_sends_its_message_and_whether_it_reports(which, num_categories, bits):
    reports = local_mean(MAKERS[which](epsilon=1.0, num_categories=num_categories))
    value, weight = fedjx.Clients.of(np.arange(3)), fedjx.Clients.of(np.ones(3))
    sent = reports.next.communication(jax.random.key(0), (), value, weight)
    assert [message.bits for message in sent if message.direction == "up"] == [bits + 1]
    assert reports.next.type_signature(jax.random.key(0), (), value, weight).result[1].member.shape == (num_categories,)


@pytest.mark.parametrize(
    ("epsilon", "num_categories", "which"),
    [
        (1.0, 3, "category"),
        (12.0, 1000, "category"),
        (1.0, 20, "unary"),  # 20 bits, where a hash and its seed are 40
        (1.0, 100, "hash"),
        (0.3, 100, "hadamard"),  # 8 bits, for 2 % more variance
    ],
)
def test_frequencies_are_told_with_next_to_the_least_variance_in_the_fewest_bits(epsilon, num_categories, which):
    chosen = frequency_response(epsilon=epsilon, num_categories=num_categories)
    made = {name: make(epsilon=epsilon, num_categories=num_categories) for name, make in MAKERS.items()}
    assert chosen.variance == made[which].variance <= 1.05 * min(one.variance for one in made.values())
    sent = [jax.eval_shape(one.report, jax.random.key(0), jnp.int32(0)) for one in (chosen, made[which])]
    assert str(sent[0]) == str(sent[1])


@pytest.mark.parametrize("which", MAKERS)
def test_frequencies_are_those_of_who_reports_and_the_same_in_any_chunks(which):
    values = np.repeat(np.arange(40), np.arange(1, 41)).astype(np.int32)
    weight = (values < 30).astype(np.float32)
    reports = local_mean(MAKERS[which](epsilon=4.0, num_categories=40)).next
    given = jax.random.key(1), (), fedjx.Clients.of(values), fedjx.Clients.of(weight)
    _, result, measured = reports(*given)
    counts = np.bincount(values[values < 30], minlength=40)
    assert measured["num_clients"] == counts.sum() == 465
    np.testing.assert_allclose(result, counts / 465, atol=4.5 * math.sqrt(1.5) * float(measured["noise_stddev"]))
    np.testing.assert_allclose(reports.in_graph(lanes=3)(*given)[1], result, atol=1e-5)


@pytest.mark.parametrize("which", MAKERS)
def test_categories_at_the_ends_and_of_narrow_integers_are_not_cut(which):
    randomizer = MAKERS[which](epsilon=12.0, num_categories=300)
    for value, told in ((jnp.uint8(200), 200), (jnp.int32(-5), 0), (jnp.int32(300), 299), (jnp.int32(299), 299)):
        keys = jax.random.split(jax.random.key(0), 64)
        found = jax.vmap(lambda key, value=value: randomizer.decode(randomizer.report(key, value)))(keys).mean(axis=0)
        assert int(jnp.argmax(found)) == told


def test_epsilons_that_floats_cannot_draw_and_one_category_are_refused():
    for make in (*MAKERS.values(), frequency_response):
        for wrong in (1e-20, 17.0, 800.0):
            with pytest.raises(ValueError, match="Chances are drawn in float32"):
                make(epsilon=wrong, num_categories=3)
        with pytest.raises(ValueError, match="num_categories must be"):
            make(epsilon=1.0, num_categories=1)
