"""Noise over rounds: its variance and covariance, measured against what they are by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.privacy import Strategy, independent, matrix, sensitivity, tree
from fedjx.privacy.account import tree_sensitivity_squared

SIZE = 40_000


def drawn(noise, rounds, *, size=SIZE, keys=lambda t: jax.random.fold_in(jax.random.key(3), t)):
    """The noise of rounds, [rounds, size], of a pytree of two leaves."""
    member = {"w": jnp.zeros((size // 2, 1)), "b": jnp.zeros(size - size // 2)}
    state, step, rows = noise.init(member), jax.jit(noise.next), []
    for t in range(rounds):
        state, leaves = step(keys(t), state, member)
        rows.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(leaves)]))
    return np.stack(rows)


def covariance(rows):
    """Of rounds, with the mean known to be 0."""
    return rows @ rows.T / rows.shape[1]


def distance(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def node_sums(rounds, efficient):
    """Weights [rounds, nodes] of a tree's nodes in the sum of the first rounds, out of the formula of Honaker."""
    weights = np.zeros((rounds, rounds, rounds.bit_length()))

    def estimate(level, place, row, share):
        weights[row, place, level] += share * (1 / (2 - 2.0**-level) if efficient else 1)

    def below(level, place, row, share):
        estimate(level, place, row, share)
        if efficient and level:
            for child in (2 * place, 2 * place + 1):
                inner(level - 1, child, row, share * 0.5 / (2 - 2.0**-level))

    def inner(level, place, row, share):
        weights[row, place, level] += share
        if level:
            for child in (2 * place, 2 * place + 1):
                inner(level - 1, child, row, share / 2)

    for t in range(1, rounds + 1):
        done = 0
        for level in reversed(range(rounds.bit_length())):
            if t >> level & 1:
                below(level, done >> level, t - 1, 1.0)
                done += 1 << level
    return weights.reshape(rounds, -1)


@pytest.mark.parametrize("efficient", [False, True])
def test_a_tree_has_the_covariance_of_its_nodes(efficient):
    rounds = 16
    prefixes = np.cumsum(drawn(tree(rounds, efficient=efficient), rounds), axis=0)
    weights = node_sums(rounds, efficient)
    assert distance(covariance(prefixes), weights @ weights.T) < 0.05
    other = node_sums(rounds, not efficient)
    assert distance(covariance(prefixes), other @ other.T) > 0.1  # the negative control


def test_variances_of_prefixes_are_those_of_the_papers():
    plain, efficient = ((node_sums(16, way) ** 2).sum(axis=1) for way in (False, True))
    assert plain.tolist() == [bin(t).count("1") for t in range(1, 17)]
    table = [1, 0.666667, 1.666667, 0.571429, 1.571429, 1.238095, 2.238095, 0.533333]
    table += [1.533333, 1.2, 2.2, 1.104762, 2.104762, 1.771429, 2.771429, 0.516129]
    np.testing.assert_allclose(efficient, table, atol=1e-6)
    measured = np.cumsum(drawn(tree(16), 16), axis=0).var(axis=1)
    np.testing.assert_allclose(measured, table, rtol=0.05)


def test_the_first_tree_may_be_smaller():
    rows = drawn(tree(4, warm_up=2, efficient=False), 8)
    variances = np.cumsum(rows, axis=0).var(axis=1)
    np.testing.assert_allclose(variances, [1, 1, 2, 2, 3, 2, 3, 3], rtol=0.05)


def test_another_tree_begins_and_the_noise_so_far_stays():
    rows = drawn(tree(4, efficient=False), 12)
    variances = np.cumsum(rows, axis=0).var(axis=1)
    np.testing.assert_allclose(variances, [1, 1, 2, 1, 2, 2, 3, 2, 3, 3, 4, 3], rtol=0.05)
    first, second = rows[:4].sum(axis=0), rows[4:8].sum(axis=0)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


@pytest.mark.parametrize(
    "strategy",
    [Strategy((0.676678, 0.397713, 0.32376, 0.283046)), Strategy((1.0,), (0.0440746, 0.435982), (0.99, 0.857133))],
    ids=["bands", "buffers"],
)
def test_noise_of_a_matrix_has_the_covariance_of_its_inverse(strategy):
    rounds = 24
    column = strategy.column(rounds)
    whole = sum(np.diag(np.full(rounds - k, c), -k) for k, c in enumerate(column))
    norm = sensitivity(strategy, rounds, min_separation=6, max_participations=3)
    inverse = norm * np.linalg.inv(whole)
    got = covariance(drawn(matrix(strategy, rounds, min_separation=6, max_participations=3), rounds))
    assert distance(got, inverse @ inverse.T) < 0.05
    assert distance(got, norm**2 * np.eye(rounds)) > 0.1  # the negative control


def test_independent_noise_is_of_its_round_and_leaf():
    def correlations(rows):
        halves = np.concatenate([rows[:, : SIZE // 2], rows[:, SIZE // 2 :]])
        return np.abs(np.corrcoef(halves) - np.eye(len(halves))).max()

    rows = drawn(independent(), 6)
    np.testing.assert_allclose(rows.std(axis=1), 1, rtol=0.02)
    assert correlations(rows) < 0.04
    assert correlations(drawn(independent(), 6, keys=lambda t: jax.random.key(t // 2))) > 0.9  # the negative control


def test_the_sensitivity_of_strategies_is_that_of_jax_privacy():
    toeplitz = pytest.importorskip("jax_privacy.matrix_factorization.toeplitz")
    optimal = Strategy(tuple(np.cumprod([1, *((2 * k - 1) / (2 * k) for k in range(1, 64))])))
    np.testing.assert_allclose(optimal.coefficients[:5], [1, 0.5, 0.375, 0.3125, 0.2734375])
    assert sensitivity(optimal, 64, min_separation=64, max_participations=1) ** 2 == pytest.approx(2.388848, abs=1e-6)
    for strategy in (optimal, Strategy((1.0,), (0.3, 0.1), (0.9, 0.5)), Strategy((1.0, 0.5))):
        for separation, most in ((64, 1), (8, 3), (16, 4), (5, 13)):
            got = sensitivity(strategy, 64, min_separation=separation, max_participations=most) ** 2
            expected = toeplitz.minsep_sensitivity_squared(jnp.asarray(strategy.column(64)), separation, most, 64)
            assert got == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("rounds", "most", "separation", "expected"),
    [
        (8, 2, 4, 10),
        (16, 2, 5, 14),
        (64, 4, 16, 44),
        (64, 3, 11, 35),
        (100, 4, 25, 37),
        (128, 4, 32, 48),
        (2000, 6, 314, 79),
    ],
)
def test_the_sensitivity_of_trees_is_published(rounds, most, separation, expected):
    assert tree_sensitivity_squared(rounds, min_separation=separation, max_participations=most) == expected


def test_the_sensitivity_of_trees_bounds_every_schedule():
    """By brute force over all ways to take part."""
    rounds, separation = 11, 3

    def schedules(first):
        yield ()
        for start in range(first, rounds):
            for rest in schedules(start + separation):
                yield (start, *rest)

    def nodes(schedule):
        sizes = [1 << level for level in range(rounds.bit_length())]
        return sum(
            sum(start // size == node for start in schedule) ** 2 for size in sizes for node in range(rounds // size)
        )

    worst = max(map(nodes, schedules(0)))
    assert worst <= tree_sensitivity_squared(rounds, min_separation=separation) <= 1.2 * worst


def test_what_is_no_strategy_is_refused():
    with pytest.raises(ValueError, match="never below 0, and falls"):
        matrix(Strategy((1.0, 1.5)), 8, min_separation=4)
    with pytest.raises(ValueError, match="cannot be there more often"):
        matrix(Strategy((1.0,)), 8, min_separation=4, max_participations=3)
