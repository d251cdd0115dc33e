"""Tests of partitions by label against their definitions, each with a control that fails."""

import numpy as np
import pytest
from scipy.special import gammaln
from sklearn.datasets import load_digits

from fedjx.data.partitions.allocation import drawn_counts
from fedjx.data.partitions.dirichlet import dirichlet_partition, iid_partition
from fedjx.data.partitions.labels import (
    distribution_partition,
    pathological_partition,
    rotating_weights,
    shards_partition,
)
from fedjx.data.partitions.pachinko import _drawn_by_example, dirichlet_by_client_partition, pachinko_partition

some = pytest.mark.filterwarnings("ignore:.*examples are in no client:UserWarning")
LABELS = np.random.default_rng(0).integers(0, 10, 3000)


def counts(parts, labels=LABELS):
    return np.stack([np.bincount(labels[rows], minlength=labels.max() + 1) for rows in parts])


def entropy(table):
    """Of the labels of a client in nats, mean over clients."""
    p = table / table.sum(1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(1).mean()


def test_golden_rows():
    """These may change with NumPy; if they do, say so to users."""
    labels = np.arange(12) % 4

    def rows(parts):
        return [part.tolist() for part in parts]

    assert rows(iid_partition(12, 3, seed=1)) == [[11, 2, 1, 6], [3, 0, 8, 4], [9, 7, 5, 10]]
    assert rows(dirichlet_partition(labels, 3, alpha=0.5, seed=1)) == [[11, 3, 0, 8], [2, 6, 10], [1, 4, 9, 7, 5]]
    parts = dirichlet_by_client_partition(labels, 3, alpha=1.0, seed=1)
    assert rows(parts) == [[2, 3, 10, 6], [4, 9, 1, 5], [8, 11, 7, 0]]
    parts = pachinko_partition(labels // 2, labels, 3, seed=1, coarse_alpha=0.5)
    assert rows(parts) == [[5, 8, 9, 1], [10, 7, 3, 11], [4, 6, 0, 2]]
    assert rows(shards_partition(labels, 3, seed=1)) == [[8, 1, 0, 4], [6, 2, 11, 7], [9, 5, 3, 10]]


# Dirichlet by label


def test_self_balancing_makes_sizes_less_unequal():
    def spread(**options):
        tables = [counts(dirichlet_partition(LABELS, 10, alpha=0.3, seed=s, **options)) for s in range(20)]
        return np.mean([table.sum(1).std() for table in tables]), np.mean([table.sum(1).max() for table in tables])

    plain, balanced = spread(), spread(self_balancing=True)
    assert balanced[0] < 0.85 * plain[0]
    assert balanced[1] < plain[1]


def test_self_balancing_gives_nothing_more_to_those_above_the_mean():
    for seed in range(20):
        table = counts(dirichlet_partition(LABELS, 6, alpha=0.3, seed=seed, min_examples=0, self_balancing=True))
        before = np.cumsum(table, axis=1)[:, :-1]
        assert not table[:, 1:][before > 500].any()
    table = counts(dirichlet_partition(LABELS, 6, alpha=0.3, seed=0, min_examples=0))
    assert table[:, 1:][np.cumsum(table, axis=1)[:, :-1] > 500].any()


def test_concentrations_of_clients():
    table = counts(dirichlet_partition(LABELS, 4, alpha=[1.0, 1.0, 100.0, 100.0], seed=0))
    np.testing.assert_allclose(table[2:].sum(1) / 3000, 0.5, atol=0.03)
    with pytest.raises(ValueError, match=r"one for each client; got concentration.shape=\(3,\)"):
        dirichlet_partition(LABELS, 4, alpha=[1.0, 1.0, 1.0], seed=0)


def test_many_clients_of_a_small_alpha_end():
    """flwr-datasets draws again until all have enough, which has probability nearly 0 here."""
    labels = load_digits().target
    for seed in range(5):
        assert min(map(len, dirichlet_partition(labels, 50, alpha=0.01, seed=seed, min_examples=10))) >= 10


# Dirichlet by client


def moments(table):
    p = table / table.sum(1, keepdims=True)
    return p.mean(0), p.var(0)


@some
@pytest.mark.parametrize("turns", ["client", "example"])
@pytest.mark.parametrize(("concentration", "total"), [("total", 2.0), ("per_class", 20.0)])
def test_by_client_moments(turns, concentration, total):
    """A client's share is Dirichlet-multinomial: mean p, variance p (1 - p) / (A + 1) * (1 + A / n)."""
    labels = np.arange(200_000) % 10  # So many that no class is exhausted.
    prior = np.arange(1, 11) / 55
    parts = dirichlet_by_client_partition(
        labels, [40] * 800, alpha=2.0, prior=prior * 7, seed=0, concentration=concentration, turns=turns
    )
    mean, variance = moments(counts(parts, labels))
    expected = prior * (1 - prior) / (total + 1) * (1 + total / 40)
    np.testing.assert_allclose(mean, prior, atol=4 * np.sqrt(expected.max() / 800))
    np.testing.assert_allclose(variance.sum(), expected.sum(), rtol=0.1)
    # The control: the other meaning of alpha.
    other = 22 - total
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            variance.sum(), (prior * (1 - prior) / (other + 1) * (1 + other / 40)).sum(), rtol=0.1
        )


@some
def test_by_client_entropy_rises_with_alpha():
    labels = load_digits().target

    def mean_entropy(alpha, labels=labels, **options):
        parts = [dirichlet_by_client_partition(labels, [100] * 10, alpha=alpha, seed=s, **options) for s in range(8)]
        return np.mean([entropy(counts(part, labels)) for part in parts])

    # Of 10 clients of 100 digits, published with this definition: 0.26, 0.78, 1.88, 2.20.
    np.testing.assert_allclose([mean_entropy(a) for a in (0.1, 1.0, 10.0, 100.0)], [0.26, 0.78, 1.88, 2.20], atol=0.12)
    np.testing.assert_allclose(mean_entropy(1.0, concentration="per_class"), mean_entropy(10.0), atol=1e-12)
    for turns in ("client", "example"):
        assert mean_entropy(1e-5, np.arange(100_000) % 10, turns=turns) < 0.01
        # Also where classes are exhausted: a second one follows, and not a mixture of what is left.
        assert mean_entropy(1e-9, turns=turns) < mean_entropy(0.1, turns=turns)
    # Without replacement from 1,797: a little less than ln 10, as of 100 uniform labels.
    assert abs(mean_entropy(1e6) - (np.log(10) - 0.045)) < 0.01


def test_turns_by_example_leave_nobody_the_rest():
    labels = np.repeat(np.arange(10), 100)

    def lowest(turns):
        return min(
            entropy(counts([rows], labels))
            for rows in dirichlet_by_client_partition(labels, 10, alpha=1e6, seed=0, turns=turns)
        )

    assert lowest("example") > 2.1
    assert lowest("client") < lowest("example") - 0.1


def test_an_exhausted_distribution_falls_back_to_what_is_left():
    """flwr-datasets' InnerDirichlet divides 0 by 0 here."""
    random = np.random.default_rng(0)
    left = np.array([2, 0, 5, 1])
    assert drawn_counts(random, 8, np.array([0.0, 1.0, 0.0, 0.0]), left).tolist() == left.tolist()
    parts = dirichlet_by_client_partition(np.arange(100) % 10, 20, alpha=1e-6, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))


def one_by_one(random, num_draws, shares, left):
    """Draws as the definition says."""
    left, result = left.copy(), np.zeros(len(left), int)
    for _ in range(num_draws):
        p = np.where(left > 0, shares, 0)
        label = random.choice(len(left), p=p / p.sum())
        result[label] += 1
        left[label] -= 1
    return result


def by_example(random, num_draws, shares, left):
    return _drawn_by_example(random, np.array([num_draws]), shares[None].copy(), left)[0]


@pytest.mark.parametrize("draw", [drawn_counts, by_example])
def test_draws_are_distributed_as_one_by_one(draw):
    shares, left = np.array([0.6, 0.3, 0.1]), np.array([2, 2, 6])

    def distribution(draw, seed, shares=shares):
        random = np.random.default_rng(seed)
        outcomes = [draw(random, 5, shares, left) @ [100, 10, 1] for _ in range(4000)]
        return np.bincount(outcomes, minlength=300) / 4000

    expected = distribution(one_by_one, 0)
    assert np.abs(distribution(draw, 1) - expected).max() < 0.04
    assert np.abs(distribution(draw, 1, np.array([0.5, 0.3, 0.2])) - expected).max() > 0.04


# Pachinko

FINE = np.repeat(np.arange(100), 500)
COARSE = np.random.default_rng(1).permutation(100)[FINE] // 5


def test_pachinko_as_cifar_100():
    parts = pachinko_partition(COARSE, FINE, 500, seed=0)
    assert [len(rows) for rows in parts] == [100] * 500
    assert sorted(np.concatenate(parts).tolist()) == list(range(50_000))
    fine = [len(np.unique(FINE[rows])) for rows in parts]
    coarse = [len(np.unique(COARSE[rows])) for rows in parts]
    # One run of another implementation of the paper gave 21.7 fine labels, 3 to 42, and 6.5 coarse ones.
    assert abs(np.mean(fine) - 21.7) < 0.8
    assert abs(np.mean(coarse) - 6.5) < 0.3
    assert 2 <= min(fine) < 8
    assert 35 < max(fine) < 50
    # The control: other concentrations give other numbers.
    other = pachinko_partition(COARSE, FINE, 500, seed=0, fine_alpha=1.0)
    assert abs(np.mean([len(np.unique(FINE[rows])) for rows in other]) - 21.7) > 1.6
    other = pachinko_partition(COARSE, FINE, 500, seed=0, coarse_alpha=0.2)
    assert abs(np.mean([len(np.unique(COARSE[rows])) for rows in other]) - 6.5) > 1


@some
def test_pachinko_number_of_coarse_labels():
    """While nothing is exhausted, a client of n examples misses a coarse label with probability E[(1 - q)^n]."""
    many_fine = np.repeat(np.arange(100), 5000)
    coarse = many_fine // 5
    parts = pachinko_partition(coarse, many_fine, [100] * 400, seed=0)

    def expected(alpha, num_labels, n):
        rest = alpha * (num_labels - 1)
        missed = gammaln(rest + n) - gammaln(rest) + gammaln(alpha + rest) - gammaln(alpha + rest + n)
        return num_labels * (1 - np.exp(missed))

    found = np.mean([len(np.unique(coarse[rows])) for rows in parts])
    assert abs(found - expected(0.1, 20, 100)) < 0.5
    assert abs(found - expected(0.2, 20, 100)) > 1.5
    # Under a client's most frequent coarse label, the five fine ones are nearly uniform.
    shares = []
    for rows in parts:
        below = many_fine[rows][coarse[rows] == np.bincount(coarse[rows]).argmax()]
        shares.append(np.bincount(below % 5, minlength=5) / len(below))
    n = np.mean([1 / len(rows) for rows in parts])
    variance = 0.2 * 0.8 / 51  # Of Dirichlet(10) over five, before drawing.
    assert np.var(shares) > variance
    assert np.var(shares) < 0.2 * 0.8 / 6 + n


# Few labels for each client


@pytest.mark.parametrize("assignment", ["random", "first-deterministic", "deterministic"])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_pathological_clients_have_k_classes(assignment, k):
    table = counts(pathological_partition(LABELS, 30, classes_per_client=k, seed=1, assignment=assignment))
    assert ((table > 0).sum(1) == k).all()
    for column in table.T:
        owned = column[column > 0]
        assert owned.max() - owned.min() <= 1
    if assignment != "random":
        assert (table[np.arange(30), np.arange(30) % 10] > 0).all()
    if assignment == "deterministic":
        assert (table[np.arange(30), (np.arange(30) + k - 1) % 10] > 0).all()


def test_pathological_classes_are_drawn_uniformly():
    labels = np.repeat(np.arange(10), 2000)
    owners = (counts(pathological_partition(labels, 2000, classes_per_client=3, seed=0), labels) > 0).sum(0)
    assert np.abs(owners - 600).max() < 4 * np.sqrt(2000 * 0.3 * 0.7)
    first = pathological_partition(labels, 2000, classes_per_client=3, seed=0, assignment="first-deterministic")
    assert abs((counts(first, labels) > 0)[::10, 1].sum() - 200 * 2 / 9) < 4 * np.sqrt(200 * 2 / 9 * 7 / 9)


def test_classes_that_nobody_owns_are_counted():
    with pytest.warns(UserWarning, match=r"(\d+) of 3000 .* Nobody owns 7 classes, \[3, 4, 5, 6, 7\]") as caught:
        parts = pathological_partition(LABELS, 2, classes_per_client=2, seed=0, assignment="deterministic")
    assert str(caught[0].message).startswith(f"{3000 - sum(map(len, parts))} of 3000")
    assert caught[0].filename == __file__
    assert set(LABELS[np.concatenate(parts)]) == {0, 1, 2}


def test_shards_of_mnist():
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(10), 6000))
    parts = shards_partition(labels, 100, seed=0)
    assert {len(rows) for rows in parts} == {600}
    assert sorted(np.concatenate(parts).tolist()) == list(range(60_000))
    num_labels = (counts(parts, labels) > 0).sum(1)
    assert num_labels.max() <= 2  # 6,000 is a multiple of 300.
    assert (counts(iid_partition(60_000, 100, seed=0), labels) > 0).sum(1).min() > 2
    # The same shard holds the same rows in every seed: the order of one label stays.
    by_label = np.argsort(labels, kind="stable").reshape(200, 300)
    shards = {tuple(sorted(shard)) for shard in by_label.tolist()}
    ends = np.isin(parts[0], by_label[:, 0]).sum()
    assert ends == 2
    assert sum(set(shard) <= set(parts[0].tolist()) for shard in shards) == 2


def test_shards_cross_classes_at_most_once():
    num_labels = (counts(shards_partition(LABELS[:3000], 10, seed=0)) > 0).sum(1)
    assert num_labels.max() <= 4


def test_the_tail_of_shards_is_counted():
    with pytest.warns(UserWarning, match="8 of 3000 examples are in no client. Shards have 187 examples and 16 are"):
        parts = shards_partition(LABELS, 8, seed=0)
    assert sum(map(len, parts)) == 2992
    # Of the tail are the last of the largest label.
    last = np.argsort(LABELS, kind="stable")[-8:]
    assert not np.isin(last, np.concatenate(parts)).any()


# A table of weights


def test_a_distribution_is_reproduced():
    weights = np.random.default_rng(3).lognormal(0, 1, (12, 10))
    weights[0, 3:] = 0
    table = counts(distribution_partition(LABELS, weights, seed=0))
    exact = np.bincount(LABELS) * weights / weights.sum(0)
    assert np.abs(table - exact).max() < 1
    np.testing.assert_array_equal(table.sum(0), np.bincount(LABELS))
    assert not table[0, 3:].any()
    with pytest.raises(AssertionError):
        assert np.abs(table[::-1] - exact).max() < 1


def test_the_power_law_of_fedprox():
    lognormal = np.random.default_rng(4).lognormal(0, 2, (10, 40))
    weights = rotating_weights(lognormal, 200, classes_per_client=2)
    assert ((weights > 0).sum(1) == 2).all()
    np.testing.assert_array_equal(weights[:, 0][weights[:, 0] > 0], lognormal[0])
    labels = np.arange(60_000) % 10
    table = counts(distribution_partition(labels, weights, seed=0, min_per_class=5), labels)
    assert table[weights > 0].min() == 5
    rest = lognormal[0] / lognormal[0].sum() * (6000 - 200)
    assert np.abs(table[:, 0][table[:, 0] > 0] - 5 - rest).max() < 1
    assert table.sum() == 60_000


def test_clients_need_not_be_a_multiple_of_the_classes():
    weights = rotating_weights(np.ones((4, 2)), 6, classes_per_client=1)
    assert (weights > 0).sum(0).tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (lambda: pathological_partition(LABELS, 5, classes_per_client=11, seed=0), "Use at most 10"),
        (
            lambda: pathological_partition(LABELS, 5, classes_per_client=0, seed=0),
            r"in \[1, 10\]; got classes_per_cl",
        ),
        (lambda: pathological_partition([0, 0, 1, 1], 4, classes_per_client=2, seed=0), "Use at most 2 clients"),
        (lambda: pathological_partition(LABELS, 5, classes_per_client=1, seed=0, assignment="x"), "assignment='x'"),
        (lambda: pathological_partition(LABELS, 3001, classes_per_client=1, seed=0), "Use at most 3000 clients"),
        (lambda: shards_partition(LABELS, 10, seed=0, shard_size=200), "got 15 of shard_size=200 .* at most 7 clients"),
        (lambda: shards_partition(LABELS, 2000, seed=0), "2000 clients need 4000 shards; .* Use at most 1500 clients"),
        (lambda: shards_partition(LABELS, 10, seed=0, shards_per_client=None), "got neither"),
        (lambda: shards_partition(LABELS, 10, seed=0, shards_per_client=0), "shards_per_client=0"),
        (lambda: distribution_partition(LABELS, np.ones((3, 9)), seed=0), r"\[clients, 10\]; got .*\(3, 9\)"),
        (lambda: distribution_partition(LABELS, -np.ones((3, 10)), seed=0), "weights need to be at least 0"),
        (lambda: distribution_partition([0, 0, 0, 1, 1], np.ones((2, 2)), seed=0, min_per_class=2), "Use at most 1"),
        (
            lambda: distribution_partition([0, 1], [[1, 1]], seed=0, min_per_class=-1),
            "at least 0; got min_per_class=-1",
        ),
        (lambda: distribution_partition([0, 1], [[1, 1], [0, 0]], seed=0), "got none for client 1 "),
        (lambda: distribution_partition([0, 1], [[1, 2]], seed=0, rescale=False), r"add to at most \[1, 1\]"),
        (lambda: distribution_partition([0, 1], [[0.5, 1]], seed=0, rescale=False), "need to be integers"),
        (lambda: rotating_weights(np.ones((4, 3)), 8, classes_per_client=1), "as many columns .*, 2; got"),
        (lambda: dirichlet_by_client_partition(LABELS, 5, alpha=0, seed=0), "alpha must be positive"),
        (lambda: dirichlet_by_client_partition(LABELS, 3001, alpha=1, seed=0), "Use at most 3000 clients"),
        (lambda: dirichlet_by_client_partition(LABELS, [2000, 900, 200], alpha=1, seed=0), "the first 2 clients"),
        (lambda: dirichlet_by_client_partition(LABELS, [20, 0], alpha=1, seed=0), "at least one example"),
        (lambda: dirichlet_by_client_partition(LABELS, 5, alpha=1, seed=0, prior=[1, 2]), "each of 10 classes"),
        (
            lambda: dirichlet_by_client_partition(LABELS, 5, alpha=1, seed=0, concentration="x"),
            "'total', 'per_class'",
        ),
        (lambda: dirichlet_by_client_partition(LABELS, 5, alpha=1, seed=0, turns="x"), "'client', 'example'"),
        (lambda: dirichlet_by_client_partition([0.0, np.nan], 1, alpha=1, seed=0), "got 1 NaN"),
        (lambda: dirichlet_by_client_partition([], 1, alpha=1, seed=0), "not empty"),
        (lambda: pachinko_partition([0, 1], [5, 5], 1, seed=0), r"several for 5 \(1 labels in all\)"),
        (lambda: pachinko_partition([0, 1], [5, 6, 7], 1, seed=0), "got 2 and 3"),
        (lambda: pachinko_partition([0, 1], [5, 6], 1, seed=0, fine_alpha=0), "fine_alpha must be positive"),
    ],
)
def test_errors(partition, message):
    with pytest.raises(ValueError, match=message):
        partition()


def test_sizes_are_integers():
    with pytest.raises(TypeError, match=r"sizes need to be integers; got float64\[1\]"):
        dirichlet_by_client_partition(LABELS, [0.5], alpha=1, seed=0)
