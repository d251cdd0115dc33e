"""Tests of what pictures show: curves against sums by hand."""

import math

import numpy as np
import pytest

from fedjx.experiment.curves import Curve, columns, curve, ends, points, ranked, thinned


def seeds_of(*runs, y="loss"):
    return [columns([{"round": x, y: value} for x, value in run]) for run in runs]


def test_a_band_is_from_the_least_seed_to_the_greatest():
    found = curve(seeds_of([(0, 1.0), (2, 3.0)], [(0, 2.0), (1, 5.0), (2, 0.0)]), "loss")
    np.testing.assert_array_equal(found.x, [0, 1, 2])
    np.testing.assert_array_equal(found.seeds, [[1, 2, 3], [2, 5, 0]])  # linear between rounds
    np.testing.assert_array_equal(found.mean, [1.5, 3.5, 1.5])
    np.testing.assert_array_equal([found.low, found.high], [[1, 2, 0], [2, 5, 3]])


def test_a_band_is_a_deviation():
    runs = np.random.default_rng(0).normal(size=(4, 6))
    found = curve(seeds_of(*(list(enumerate(run)) for run in runs)), "loss", band="deviation")
    np.testing.assert_allclose(found.high, runs.mean(0) + runs.std(0, ddof=1))
    np.testing.assert_allclose(found.low, runs.mean(0) - runs.std(0, ddof=1))
    alone = curve(seeds_of([(0, 1.0)]), "loss", band="deviation")
    assert alone.low == alone.high == alone.mean == 1.0


def test_a_mean_is_of_all_seeds_or_not_there():
    whole, short, lost = [(0, 1.0), (1, 2.0), (2, 3.0)], [(0, 3.0), (1, 4.0)], [(0, 5.0), (1, math.nan), (2, math.inf)]
    np.testing.assert_array_equal(curve(seeds_of(whole, short), "loss").mean, [2, 3, np.nan])
    found = curve(seeds_of(whole, lost), "loss")
    np.testing.assert_array_equal(found.mean, [3, np.nan, np.nan])
    np.testing.assert_array_equal(found.high, [5, np.nan, np.nan])
    np.testing.assert_array_equal(found.seeds[0], [1, 2, 3])


def test_what_is_beside_nan_is_known():
    found = curve(seeds_of([(0, 1.0), (1, math.nan), (2, 3.0), (3, 4.0)]), "loss")
    np.testing.assert_array_equal(found.mean, [1, np.nan, 3, 4])


def test_points_are_numbers_in_order():
    rows = [
        {"round": 3, "x": 2.0, "y": 1},
        {"round": 1, "x": 1.0, "y": 5.0},
        {"round": 2, "x": 1.0, "y": 7.0},  # later, and at the same place
        {"round": 4, "x": math.nan, "y": 1.0},
        {"round": 5, "x": 9.0},
        {"round": 6, "x": 9.0, "y": "much"},
        {"round": 7, "x": 9.0, "y": [1.0, 2.0]},
    ]
    found = points(columns(rows), "y", "x")
    np.testing.assert_array_equal(found, [[1, 2], [7, 1]])
    assert points(columns(rows), "z")[0].size == 0
    assert curve([columns(rows), columns([])], "z") is None


@pytest.mark.parametrize("num_parts", [5, 40])
def test_a_thinned_curve_keeps_peaks_and_gaps(num_parts):
    values = np.random.default_rng(1).normal(size=4001)
    values[1234], values[3210] = 9.0, -9.0
    values[2000:2010] = np.nan
    line = Curve(np.arange(4001.0), values[None], values, values, values)
    found = thinned(line, num_parts)
    assert len(found.x) <= 3 * num_parts + 2
    assert (found.x[0], found.x[-1]) == (0, 4000)
    assert {1234.0, 3210.0} <= set(found.x)
    assert np.isnan(found.mean).any()
    np.testing.assert_array_equal(found.mean, values[found.x.astype(int)])
    assert thinned(line, 2000) is line


def test_runs_come_to_the_last_or_the_best():
    runs = {
        "lost": seeds_of([(0, 1.0), (1, math.nan)], [(0, 9.0)]),
        "steady": seeds_of([(0, 2.0), (1, 3.0)], [(0, 2.0), (1, 1.0)]),
        "best": seeds_of([(0, 5.0), (1, 4.0)]),
        "nothing": [],
    }
    last, best = (ranked(runs, "loss", at, "max") for at in ("last", "best"))
    assert list(last) == ["best", "steady", "lost", "nothing"]
    np.testing.assert_array_equal(last["lost"].values, [np.nan, 9])
    np.testing.assert_array_equal(last["steady"].values, [3, 1])
    np.testing.assert_array_equal(best["lost"].values, [1, 9])
    assert list(ranked(runs, "loss", "last", "min"))[:2] == ["steady", "best"]
    np.testing.assert_array_equal(ends(runs["steady"], "loss", "best", "min").values, [2, 1])
    assert [(name, found.lost) for name, found in last.items() if found.lost] == [("lost", "1 of 2 not finite")]


def test_what_was_never_measured_is_not_called_infinite():
    one, other = seeds_of([(0, math.nan)]), seeds_of([(0, 1.0)], y="accuracy")
    assert ends(other, "loss", "last", "min").lost == "not measured"
    assert ends(one + one, "loss", "best", "min").lost == "not finite"
    found = ends(seeds_of([(0, 2.0)]) + other + one, "loss", "last", "min")
    np.testing.assert_array_equal(found.values, [2, np.nan, np.nan])
    assert found.lost == "1 of 3 not measured, 1 of 3 not finite"
