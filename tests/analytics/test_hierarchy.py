"""Hierarchical histograms: least squares, sensitivity, and what the answers say of ranges and shares."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fedjx.analytics import Hierarchy, Total, ask, hierarchical_histogram, histogram
from fedjx.analytics.hierarchy import Tree, hierarchy_of, leaf_variances, least_squares, node_variances
from fedjx.data import FederatedData
from fedjx.data.sampling import poisson_sampler

SIZES = (8, 4, 2, 1)  # of an arity of 2, with the root
EDGES = np.linspace(0, 80, 41)
RANGES = [(0, 81), (10, 12), (34, 78)]


def ages(num_clients: int = 60, seed: int = 0) -> FederatedData:
    rng = np.random.default_rng(seed)
    records = [rng.integers(-5, 90, rng.integers(0, 6)).astype(np.float32) for _ in range(num_clients)]
    return FederatedData.from_clients([{"age": x} for x in [np.array([3], np.float32), *records]])


def dense(sizes: tuple[int, ...], arity: int) -> np.ndarray:
    """Returns the matrix from leaves to the nodes of all levels."""
    levels = [np.eye(sizes[0])]
    for size in sizes[1:]:
        levels.append(np.array([levels[-1][arity * k : arity * (k + 1)].sum(0) for k in range(size)]))
    return np.concatenate(levels)


def range_variance(low: int, high: int, sizes: tuple[int, ...] = SIZES, arity: int = 2) -> float:
    tree = Hierarchy(
        np.arange(sizes[0] + 1.0),
        tuple(np.zeros(size) for size in sizes),
        np.zeros(sizes[0]),
        arity,
        True,
        1.0,
        np.zeros(sizes[0]),
    )
    return tree.between(low, high).stddev ** 2


# --- least squares --------------------------------------------------------------------------------


def test_variances_are_those_of_the_oracle():
    from_below = [variance[0] for variance in node_variances(SIZES, 2)]
    np.testing.assert_allclose(from_below, [1, 0.666667, 0.571429, 0.533333], atol=5e-7)
    np.testing.assert_allclose(leaf_variances(SIZES, 2), np.full(8, 0.609524), atol=5e-7)
    ranges = [range_variance(*ends) for ends in [(0, 2), (0, 4), (1, 7), (3, 5), (0, 8)]]
    np.testing.assert_allclose(ranges, [0.438095, 0.419048, 1.466667, 1.2, 0.533333], atol=5e-7)


def test_leaves_are_those_of_the_oracle():
    sums, nodes = [np.array([3.0, 1, 4, 1, 5, 9, 2, 6])], []
    for _ in range(3):
        sums.append(sums[-1].reshape(-1, 2).sum(1))
    for level in reversed(sums):
        places = len(nodes) + np.arange(len(level))
        nodes.extend(level + (-1.0) ** places * (1 + places % 3))
    assert nodes == [32, 7, 25, 3, 7, 11, 9, 1, 4, 3, 3, 2, 10, 0, 9]
    levels = np.split(np.array(nodes), [1, 3, 7])[::-1]
    leaves = [-0.104762, 2.895238, 2.895238, 2.895238, 2.371429, 10.371429, 0.704762, 9.704762]
    np.testing.assert_allclose(least_squares(levels, 2), leaves, atol=5e-7)
    np.testing.assert_allclose(least_squares(levels, 2).sum(), 31.733333, atol=5e-7)


@pytest.mark.parametrize("with_root", [False, True])
@pytest.mark.parametrize(
    ("num_leaves", "arity"), [(1, 2), (7, 2), (16, 2), (17, 2), (23, 3), (27, 3), (61, 4), (26, 5)]
)
def test_two_passes_are_a_dense_solution(num_leaves: int, arity: int, with_root: bool):
    sizes = Tree(num_leaves, arity).sizes
    sizes = (*sizes, 1) if with_root and sizes[-1] > 1 else sizes
    matrix, rng = dense(sizes, arity), np.random.default_rng(num_leaves)
    nodes = rng.normal(size=(2, len(matrix)))
    levels = np.split(nodes, np.cumsum(sizes[:-1]), axis=1)
    expected = np.linalg.lstsq(matrix, nodes.T, rcond=None)[0].T
    np.testing.assert_allclose(least_squares(levels, arity), expected, atol=1e-12)
    covariance = np.linalg.inv(matrix.T @ matrix)
    np.testing.assert_allclose(leaf_variances(sizes, arity), np.diag(covariance), atol=1e-12)
    for low, high in [(0, num_leaves), (num_leaves // 3, num_leaves // 3 + 1), (num_leaves // 4, num_leaves - 1)]:
        expected = covariance[low:high, low:high].sum()
        np.testing.assert_allclose(range_variance(low, high, sizes, arity), expected, atol=1e-12)
    if len(sizes) > 1:
        assert np.abs(least_squares(levels, arity) - levels[0]).max() > 0.1  # the control: leaves by themselves


@pytest.mark.parametrize(("arity", "length"), [(2, 13), (4, 12), (16, 18)])
def test_at_one_price_long_ranges_are_better_than_of_a_histogram_and_short_ones_worse(arity: int, length: int):
    sizes = Tree(1024, arity).sizes

    def is_better(number: int) -> bool:
        start = np.arange(0, 1024 - number, 7)
        weights = np.array([(np.arange(1024) >= k) & (np.arange(1024) < k + number) for k in start], np.float64)
        others = [np.zeros((len(start), size)) for size in sizes[1:]]
        variance = np.mean(np.sum(weights * least_squares([weights, *others], arity), axis=1))
        return len(sizes) * variance < number  # a record is there on each level, and the noise is for all

    assert not is_better(length - 1)
    assert is_better(length)
    assert is_better(1000)


def test_at_one_price_less_is_known_of_a_median_from_bins_alone():
    variances = {}
    for arity in (4, 1024):
        sizes = Tree(1024, arity).sizes
        below = np.tril(np.ones((1024, 1024)))[16:-16:16]
        weights = below - below.mean(1, keepdims=True)
        others = [np.zeros((len(weights), size)) for size in sizes[1:]]
        found = np.sum(weights * least_squares([weights, *others], arity), axis=1)
        variances[arity] = found.max() * len(sizes)
    np.testing.assert_allclose(variances[1024], 256, rtol=0.01)
    assert 10 < variances[4] < 16


# --- sensitivity ----------------------------------------------------------------------------------


def test_sensitivity_is_that_of_the_oracle():
    for records in (1, 3, 8):
        subsampled, distinct = (Tree(1024, 2).sensitivity(records, of) for of in (False, True))
        assert subsampled.l1 == distinct.l1 == 10 * records
        np.testing.assert_allclose(subsampled.l2, np.sqrt(10) * records)
        np.testing.assert_allclose(distinct.l2**2, sum(min(records**2, records * 2**level) for level in range(10)))
    assert Tree(16, 16).sensitivity(4, True).l2 == 2  # of the plain histogram


def test_no_client_changes_the_nodes_by_more_and_one_does_by_as_much():
    tree, rng = Tree(27, 3), np.random.default_rng(0)
    paths = np.array([tree.path(np.array(leaf)) for leaf in range(27)])
    for records in (1, 2, 3, 5):
        most = {True: 0.0, False: 0.0}
        for trial in range(300):
            for distinct in most:
                leaves = (
                    np.arange(records) if trial == 0 and distinct else rng.choice(27, records, replace=not distinct)
                )
                leaves = np.zeros(records, int) if trial == 0 and not distinct else leaves
                table = np.bincount(paths[leaves].reshape(-1), minlength=sum(tree.sizes))
                assert table.sum() == tree.sensitivity(records, distinct).l1
                most[distinct] = max(most[distinct], float(np.linalg.norm(table)))
        np.testing.assert_allclose(most[False], tree.sensitivity(records, False).l2)
        assert most[True] <= tree.sensitivity(records, True).l2 + 1e-9
        if records in (1, 3):  # as many as below a node
            np.testing.assert_allclose(most[True], tree.sensitivity(records, True).l2)


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", ["plain", "secure"])
def test_without_noise_is_numpy(trust):
    data = ages()
    values = np.concatenate([data.client(k)["age"] for k in range(data.num_clients)])
    values = values[(values >= 0) & (values <= 80)]
    answer = ask(hierarchical_histogram("age", bins=EDGES, arity=3), data, trust=trust)
    tree = answer.value
    np.testing.assert_array_equal(tree.leaves, np.histogram(values, EDGES)[0])
    assert [len(level) for level in tree.levels] == [40, 14, 5, 2]
    np.testing.assert_array_equal(tree.levels[-1], [np.sum(values < 54), np.sum(values >= 54)])
    found = tree.between(*np.transpose(RANGES))
    np.testing.assert_array_equal(found.value, [np.sum((values >= low) & (values < high)) for low, high in RANGES])
    np.testing.assert_array_equal(found.stddev, 0)
    np.testing.assert_allclose(tree.cdf([22, 100]).value, [float(np.mean(values < 22)), 1])
    assert answer.stddev is None


def test_of_categories_counts_each():
    data = FederatedData.from_clients([{"pet": [0, 4, 2]}, {"pet": [2]}, {"pet": [9, 5, 5]}])
    tree = ask(hierarchical_histogram("pet", bins=6), data).value
    np.testing.assert_array_equal(tree.leaves, [1, 0, 2, 0, 1, 2])
    assert tree.between(2, 5).value == 3
    assert tree.between(1.5, 2.5).value == 2
    np.testing.assert_allclose(tree.cdf([1.9, 2, 5]).value, [1 / 6, 0.5, 1])
    np.testing.assert_array_equal(
        tree.quantile([0, 0.4, 0.5, 1]).value, np.quantile([0, 2, 2, 4, 5, 5], [0, 0.4, 0.5, 1])
    )
    twice = ask(hierarchical_histogram("pet", bins=6, distinct=True), data).value
    np.testing.assert_array_equal(twice.leaves, [1, 0, 2, 0, 1, 1])


def test_of_no_records_knows_no_shares():
    tree = ask(hierarchical_histogram("age", bins=[200, 201, 202]), ages(5)).value
    assert np.isnan(tree.quantile(0.5).value)
    assert np.isnan(tree.cdf(201).value)
    assert tree.between(200, 202).value == 0


def test_noisy_answers_are_unbiased_and_of_the_stated_variance():
    tree, rng, variance = Tree(40, 3), np.random.default_rng(1), 9.0
    counts = rng.poisson(30, 40).astype(np.float64)
    nodes = dense(tree.sizes, 3) @ counts
    found = []
    for _ in range(1000):
        table = nodes + rng.normal(0, np.sqrt(variance), len(nodes))
        total = Total(table[:, None], np.full((len(nodes), 1), variance))
        found.append(hierarchy_of(total, tree, EDGES, discrete=False))
    raw = np.array([one.levels[0][5:35].sum() for one in found])
    for ask_for, true in [
        (lambda one: one.between(10, 70), counts[5:35].sum()),
        (lambda one: one.cdf(71), (counts[:35].sum() + counts[35] / 2) / counts.sum()),
        (lambda one: type(one.histogram())(*(x[7] for x in one.histogram())), counts[7]),
    ]:
        values, stddevs = np.array([ask_for(one) for one in found]).T
        assert abs(values.mean() - true) < 4 * stddevs.mean() / np.sqrt(1000)
        np.testing.assert_allclose(values.std(), stddevs.mean(), rtol=0.1)  # 4 standard deviations of one
    stated = found[0].between(10, 70).stddev
    assert raw.std() > 1.5 * stated  # the control: the leaves by themselves


def test_with_noise_of_the_server_it_is_as_far_off_as_it_says():
    rng, question = np.random.default_rng(3), hierarchical_histogram("age", bins=EDGES, arity=4)
    data = FederatedData.from_clients([{"age": rng.uniform(0, 80, 1)} for _ in range(300)])
    truth = ask(question, data).value.between(20, 60).value
    how = {"trust": "central_dp", "epsilon": 2.0, "delta": 1e-5, "max_records": 1}
    found = [ask(question, data, key=jax.random.key(seed), **how).value.between(20, 60) for seed in range(40)]
    values, stddevs = np.array(found).T
    assert abs(values.mean() - truth) < 4 * stddevs[0] / np.sqrt(40)
    assert 0.7 < values.std() / stddevs[0] < 1.3
    flat = ask(histogram("age", bins=EDGES), data, key=jax.random.key(0), **how)
    assert np.sqrt(20) * flat.stddev[0] > 1.3 * stddevs[0]


@pytest.mark.parametrize(("bins", "arity"), [(8, 2), (60, 3)])
def test_of_a_sample_says_how_far_it_is_off(bins: int, arity: int):
    data = ages(400, seed=2)
    question = hierarchical_histogram("age", bins=np.linspace(0, 80, bins + 1), arity=arity)
    truth, sampler = ask(question, data).value, poisson_sampler(data.num_clients, probability=0.3, seed=0)
    found = [ask(question, data, sampler=sampler, round=round).value for round in range(40)]
    values, stddevs = np.array([one.between(20, 60) for one in found]).T
    assert abs(values.mean() - truth.between(20, 60).value) < 4 * values.std() / np.sqrt(40)
    most = 1.3 if bins == 8 else 2.6  # the second is a bound: five records of a client may be in one range
    assert 1 / 1.3 < stddevs.mean() / values.std() < most


def test_tells_noise_from_sampling():
    tree, table = Tree(100, 4), np.random.default_rng(0).uniform(50, 200, sum(Tree(100, 4).sizes))
    for noise, rate in [(7.0, 0.0), (7.0, 3.0), (0.0, 3.0)]:
        found = hierarchy_of(
            Total(table[:, None], noise + rate * table[:, None]), tree, np.arange(101.0), discrete=True
        )
        np.testing.assert_allclose(found.noise, noise)
        np.testing.assert_allclose(found.sampling, rate * found.leaves, atol=1e-9)


def test_refuses_local_reports_of_several_levels():
    for trust in ("local_dp", "shuffled_dp"):
        with pytest.raises(ValueError, match=f"not for trust='{trust}'.*one on each level.*by bisection"):
            ask(
                hierarchical_histogram("age", bins=EDGES),
                ages(),
                trust=trust,
                epsilon=1.0,
                delta=1e-5,
                key=jax.random.key(0),
            )
    single = hierarchical_histogram("age", bins=[0, 40, 80], arity=2)
    tree = ask(single, ages(2000), trust="local_dp", epsilon=3.0, key=jax.random.key(0)).value
    assert tree.noise > 0
    assert len(tree.levels) == 1


def test_refuses_a_tree_that_does_not_branch():
    with pytest.raises(ValueError, match="arity must be an integer of at least 2; got arity=1"):
        hierarchical_histogram("age", bins=8, arity=1)
