"""Robust rules against reference outputs, NumPy and SciPy, and their breakdown points."""

from __future__ import annotations

from fractions import Fraction

import jax
import numpy as np
import pytest
from scipy.optimize import minimize

from fedjx.aggregation.centred_clipping import centred_clipping, norm_bounding
from fedjx.aggregation.column_sort import by_columns, sorted_columns, sorted_with
from fedjx.aggregation.fl_trust import fl_trust
from fedjx.aggregation.geometric_median import geometric_median
from fedjx.aggregation.krum import bulyan, krum, krum_scores, multi_krum, squared_distances
from fedjx.aggregation.mean import mean
from fedjx.aggregation.median import coordinate_median, num_trimmed, trimmed_mean
from fedjx.core.language.values import Clients

# Eleven clients, the last two of which are malicious.
X = np.sin(1 + 3 * np.arange(11)[:, None] + 7 * np.arange(4)).astype(np.float32)
X[9:] = (10, -10, 10, -10), (8, 8, -8, -8)
MEAN = [1.667143, -0.114941, 0.251877, -1.597606]
HONEST_MEAN = [0.037619, 0.081739, 0.085628, 0.047371]


def run(aggregator, x=X, weight=None, *, ids=None, num_rounds=1):
    weight = np.ones(len(x), np.float32) if weight is None else np.asarray(weight, np.float32)
    state, result = aggregator.init(x[0]), None
    for _ in range(num_rounds):
        clients = (Clients.of(x, ids=ids), Clients.of(weight, ids=ids))
        state, result, measured = aggregator.next(jax.random.key(0), state, *clients)
    return np.asarray(result), measured


REFERENCES = {
    "median": (coordinate_median(), [0.149877, 0.551427, 0.650288, -0.132352]),
    "trimmed 0": (trimmed_mean(fraction=0), MEAN),
    "trimmed 1": (trimmed_mean(fraction=1 / 11), [1.010597, 0.081739, 0.085628, -0.941717]),
    "trimmed 2": (trimmed_mean(fraction=2 / 11), [0.234199, 0.106434, 0.108931, -0.174366]),
    "trimmed 4": (trimmed_mean(fraction=4 / 11), [0.187064, 0.216784, 0.245319, -0.181747]),
    "krum": (krum(num_malicious=2), X[8]),
    "multi-krum 3": (multi_krum(num_malicious=2, num_selected=3), [0.286332, 0.767781, 0.871332, 0.546017]),
    "multi-krum 7": (multi_krum(num_malicious=2, num_selected=7), [0.167214, 0.363325, 0.380609, 0.210559]),
    "multi-krum 9": (multi_krum(num_malicious=2, num_selected=9), HONEST_MEAN),
    "bulyan": (bulyan(num_malicious=2), [-0.090126, 0.767781, 0.816913, 0.043234]),
    "bulyan 0": (bulyan(num_malicious=0), MEAN),
    "weiszfeld 1": (geometric_median(num_steps=1, from_mean=True), [0.393335, 0.100261, 0.073718, -0.304988]),
    "weiszfeld 5": (geometric_median(num_steps=5, from_mean=True), [0.299369, 0.283481, 0.278715, -0.013884]),
    "clipping 1": (centred_clipping(bound=1.0), [0.112156, 0.046516, 0.048890, -0.063708]),
    "clipping 3": (centred_clipping(bound=1.0, num_steps=3), [0.213952, 0.128724, 0.127179, -0.084004]),
    "clipping 10, 3": (centred_clipping(bound=10.0, num_steps=3), [1.071043, 0.078842, 0.068898, -0.996020]),
    "bounding .5": (norm_bounding(bound=0.5), [0.056078, 0.023258, 0.024445, -0.031854]),
    "bounding 2": (norm_bounding(bound=2.0), [0.212597, 0.066878, 0.070059, -0.143060]),
    "bounding 100": (norm_bounding(bound=100.0), MEAN),
    "fl_trust": (fl_trust(lambda client: client == 0), [0.396813, 0.743403, 0.724094, 0.348388]),
}


# Who takes no part: padding, weight 0, NaN and infinity, between the others.
PLACES = [1, 1, 5, 11]
IDS = np.insert(np.arange(11), PLACES, [-1, 77, 78, 79])
ABSENT = np.array([[np.nan] * 4, [1e3] * 4, [0, np.nan, 0, 0], [np.inf, 0, 0, 0]], np.float32)


@pytest.mark.parametrize("name", REFERENCES)
def test_rules_equal_their_references_whoever_takes_no_part(name):
    aggregator, expected = REFERENCES[name]
    x = Clients.of(np.insert(X, PLACES, ABSENT, axis=0), ids=IDS, mask=IDS >= 0)

    def result(weight):
        weights = Clients.of(np.insert(np.full(11, weight, np.float32), PLACES, [1, 0, 1, 1]), ids=IDS, mask=IDS >= 0)
        return aggregator.next(jax.random.key(0), aggregator.init(X[0]), x, weights)[1:]

    value, measured = result(1.0)
    np.testing.assert_allclose(value, expected, atol=2e-6)
    assert measured["num_non_finite_clients"] == 2  # of these only, the server can tell
    value, _ = result(0.0)
    np.testing.assert_array_equal(value, np.zeros(4))


def test_centred_clipping_goes_on_from_the_round_before():
    rounds, _ = run(centred_clipping(bound=1.0), num_rounds=3)
    steps, _ = run(centred_clipping(bound=1.0, num_steps=3))
    np.testing.assert_allclose(rounds, steps, rtol=1e-6)


def test_a_round_of_nobody_moves_nothing_and_keeps_the_centre():
    aggregator, state, results = centred_clipping(bound=1.0), np.zeros(4, np.float32), []
    for present in (1, 0, 0, 1):
        weight = Clients.of(np.full(11, present, np.float32))
        state, result, _ = aggregator.next(jax.random.key(0), state, Clients.of(X), weight)
        results.append(result)
    assert not np.any(results[1:3])
    np.testing.assert_allclose(results[3], run(aggregator, num_rounds=2)[0], rtol=1e-6)


def test_krum_scores():
    distances = squared_distances(X)
    expected = np.square(X[:, None] - X[None]).sum(axis=2)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    scores = krum_scores(distances, np.ones(11, bool), 2)
    np.testing.assert_allclose(scores[:3], [26.864236, 33.384200, 26.896820], rtol=1e-6)
    np.testing.assert_allclose(scores[9:], [2796.279568, 1772.013370], rtol=1e-6)


# --- against SciPy and NumPy ----------------------------------------------------------------------


def weiszfeld(weight, z, num_steps):
    for _ in range(num_steps):
        w = weight / np.maximum(1e-6, np.linalg.norm(X - z, axis=1))
        z = w @ X / w.sum()
    return z


@pytest.mark.parametrize(("weight", "expected"), [(np.ones(11), 48.754975), (np.arange(1.0, 12.0), 438.903456)])
def test_the_geometric_median_minimises_the_sum_of_distances(weight, expected):
    def objective(z):
        return float(weight @ np.linalg.norm(X.astype(float) - z, axis=1))

    best = minimize(objective, np.zeros(4), method="BFGS", options={"gtol": 1e-8})
    assert best.fun == pytest.approx(expected, abs=1e-5)
    assert objective(weiszfeld(weight, np.zeros(4), 1000)) == pytest.approx(expected, abs=1e-5)
    for from_mean, start in ((True, weight @ X / weight.sum()), (False, np.zeros(4))):
        found, _ = run(geometric_median(num_steps=3, from_mean=from_mean, weighted=True), weight=weight)
        np.testing.assert_allclose(found, weiszfeld(weight, start, 3), rtol=1e-4, atol=1e-6)


REPEATS = np.array([1, 2, 3, 1, 4, 1, 2, 2, 5, 1, 3])


@pytest.mark.parametrize(
    "rule",
    [
        coordinate_median,
        lambda **options: trimmed_mean(fraction=0.2, **options),
        lambda **options: geometric_median(num_steps=3, **options),
        lambda **options: centred_clipping(bound=1.0, num_steps=2, **options),
        lambda **options: norm_bounding(bound=1.0, **options),
    ],
    ids=["median", "trimmed", "geometric", "clipping", "bounding"],
)
def test_a_weight_is_that_many_clients(rule):
    repeated, _ = run(rule(), np.repeat(X, REPEATS, axis=0))
    weighted, _ = run(rule(weighted=True), weight=REPEATS)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-5, atol=1e-6)
    unweighted, _ = run(rule(), weight=REPEATS)
    np.testing.assert_allclose(unweighted, run(rule())[0], rtol=1e-6)
    assert np.abs(unweighted - weighted).max() > 0.01


@pytest.mark.parametrize("num_clients", [1, 2, 8])
def test_the_median_and_trimmed_mean_equal_numpy_for_any_number(num_clients):
    x = np.random.default_rng(num_clients).normal(size=(num_clients, 6)).astype(np.float32)
    for weighted in (False, True):
        np.testing.assert_allclose(run(coordinate_median(weighted=weighted), x)[0], np.median(x, axis=0), rtol=1e-6)
    trimmed = int(num_clients * 0.4)
    expected = np.sort(x, axis=0)[trimmed : num_clients - trimmed].mean(axis=0)
    np.testing.assert_allclose(run(trimmed_mean(fraction=0.4), x)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_fraction_that_floats_round_down_trims_whole_clients():
    x = np.arange(100, dtype=np.float32)[:, None] ** 2
    expected = x[29:71].mean(axis=0)
    np.testing.assert_allclose(run(trimmed_mean(fraction=0.29), x)[0], expected, rtol=1e-6)


def test_trimming_is_exact_for_any_number_and_leaves_one():
    numbers = np.arange(100_001)
    for fraction in ("0.29", "0.1", "0.07", "0.4999", "0.3333"):
        exact = Fraction(fraction)
        expected = numbers * exact.numerator // exact.denominator
        np.testing.assert_array_equal(num_trimmed(float(fraction), numbers), expected)
    almost_half = 0.5 - 1e-12
    np.testing.assert_array_equal(num_trimmed(almost_half, numbers[1:]), (numbers[1:] - 1) // 2)
    np.testing.assert_allclose(run(trimmed_mean(fraction=almost_half), X[:2])[0], X[:2].mean(axis=0), rtol=1e-6)


def test_values_are_trees_of_any_shape_and_dtype():
    random = np.random.default_rng(0)
    tree = {"a": random.normal(size=(5, 2, 3)).astype(np.float16), "b": random.normal(size=5).astype(np.float32)}
    result, _ = run_tree(coordinate_median(), tree)
    assert {k: (v.shape, v.dtype) for k, v in result.items()} == {"a": ((2, 3), np.float16), "b": ((), np.float32)}
    np.testing.assert_array_equal(result["a"], np.median(tree["a"], axis=0))
    np.testing.assert_array_equal(result["b"], np.median(tree["b"]))


def run_tree(aggregator, tree):
    member = jax.tree.map(lambda x: x[0], tree)
    weight = Clients.of(np.ones(5, np.float32))
    return aggregator.next(jax.random.key(0), aggregator.init(member), Clients.of(tree), weight)[1:]


# --- breakdown ------------------------------------------------------------------------------------

SURVIVORS = {
    "median": (coordinate_median(), 5),
    "weighted median": (coordinate_median(weighted=True), 5),
    "trimmed mean": (trimmed_mean(fraction=5 / 11), 5),
    "weighted trimmed mean": (trimmed_mean(fraction=5.1 / 11, weighted=True), 5),
    "geometric median": (geometric_median(), 5),
    "weighted geometric median": (geometric_median(num_steps=1, weighted=True), 5),
    "krum": (krum(num_malicious=4), 4),
    "multi-krum": (multi_krum(num_malicious=4, num_selected=7), 4),
    "bulyan": (bulyan(num_malicious=2), 2),
    "centred clipping": (centred_clipping(bound=1.0, num_steps=3), 5),
    "norm bounding": (norm_bounding(bound=1.0), 5),
    "fl_trust": (fl_trust(lambda client: client == 0), 10),
}


PLACEMENTS = {
    "together": np.array([-1, 1, -1, -1]),
    "opposite": np.array([[1, 1, 1, 1], [-1, -1, -1, -1]] * 5),
    "scattered": np.random.default_rng(1).normal(size=(10, 4)),
}


def attacked_rows(num_malicious, placement="together", size=1e6):
    """Honest clients around (1, 1, 1, 1), and malicious ones far off."""
    x = 1 + 0.1 * np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
    x[11 - num_malicious :] = size * np.broadcast_to(PLACEMENTS[placement], (10, 4))[:num_malicious]
    return x


@pytest.mark.parametrize("name", SURVIVORS)
def test_rules_survive_their_fraction(name):
    aggregator, num_malicious = SURVIVORS[name]
    for placement in PLACEMENTS:
        for size in (1e6, 1e30, 3.0):
            x = attacked_rows(num_malicious, placement, size)
            result, _ = run(aggregator, x)
            assert np.linalg.norm(result - 1) < 2.5, (placement, size)  # the honest mean's norm is 2
            if name in ("median", "trimmed mean"):
                honest = x[: 11 - num_malicious]
                assert (result >= honest.min(axis=0)).all()
                assert (result <= honest.max(axis=0)).all()


@pytest.mark.parametrize("name", ["krum", "multi-krum", "bulyan"])
def test_clients_that_the_guarantee_lacks_are_counted(name):
    for number in (11, 10, 3, 1):
        result, measured = run(SURVIVORS[name][0], weight=np.arange(11) < number)
        assert measured["num_missing_clients"] == 11 - number  # 11 is 2 * 4 + 3, 7 + 4 and 4 * 2 + 3
        assert np.isfinite(result).all()


def test_the_mean_survives_nobody():
    assert np.linalg.norm(run(mean(), attacked_rows(1))[0] - 1) > 1e5


@pytest.mark.parametrize("name", ["median", "trimmed mean", "krum"])
def test_more_than_the_fraction_breaks_a_rule(name):
    assert np.linalg.norm(run(SURVIVORS[name][0], attacked_rows(6))[0] - 1) > 1e5


# --- sorting and errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 8, 21])
def test_columns_are_sorted(num_rows):
    random = np.random.default_rng(num_rows)
    x = random.integers(-5, 5, size=(num_rows, 9)).astype(np.float32)
    carried = random.normal(size=x.shape).astype(np.float32)
    np.testing.assert_array_equal(sorted_columns(x), np.sort(x, axis=0))
    keys, values = map(np.asarray, sorted_with(x, carried))
    for column in range(9):
        got = sorted(zip(keys[:, column], values[:, column], strict=True))
        assert got == sorted(zip(x[:, column], carried[:, column], strict=True))


def test_blocks_of_columns_are_put_together():
    x = np.random.default_rng(0).normal(size=(3, 5000)).astype(np.float32)
    np.testing.assert_array_equal(by_columns(lambda columns: columns[1], x), x[1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: trimmed_mean(fraction=0.5),
        lambda: trimmed_mean(fraction=-0.1),
        lambda: krum(num_malicious=-1),
        lambda: bulyan(num_malicious=-1),
        lambda: multi_krum(num_malicious=1, num_selected=0),
        lambda: geometric_median(num_steps=0),
        lambda: centred_clipping(bound=0.0),
        lambda: norm_bounding(bound=-1.0),
    ],
)
def test_settings_without_meaning_are_refused(call):
    with pytest.raises(ValueError, match="must"):
        call()


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        run(coordinate_median(), X.astype(np.int32))
