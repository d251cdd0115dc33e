"""Over-selection: who reports in time. What holds for every sampler is in `test_sampling_laws.py`."""

import numpy as np
import pytest

from fedjx.data import uniform_sampler
from fedjx.data.sampling import Sampler
from fedjx.data.sampling_reports import over_select

N, SELECTED, GOAL = 500, 130, 100
ALL = Sampler(lambda round: np.arange(N, dtype=np.int32), {"kind": "all"})


def test_the_first_reports_count_and_the_others_are_counted():
    seen = {}

    def times(ids, uniform):
        seen.update(zip(ids.tolist(), uniform.tolist(), strict=True))
        return uniform

    select = uniform_sampler(N, SELECTED, seed=3)
    sample, report = over_select(select, GOAL, seed=5, dropped=0.1, times=times)
    for round in range(20):
        seen.clear()
        reports = report(round)
        lost = SELECTED - reports.num_dropped - reports.num_late - len(reports.ids)
        assert lost == 0
        assert set(reports.ids) <= set(select(round))
        np.testing.assert_array_equal(sample(round), reports.ids)
        assert len(reports.ids) == min(GOAL, SELECTED - reports.num_dropped)
        assert reports.time == max(seen[k] for k in reports.ids)
        others = sorted(time for k, time in seen.items() if k not in reports.ids)
        # Who is not in the round was lost, whenever it would have come, or came later.
        assert sum(time > reports.time for time in others) >= reports.num_late
        assert sum(time < reports.time for time in others) <= reports.num_dropped


def test_a_report_depends_on_seed_round_and_client_alone():
    """A client that is among the first of all is so among any others; the same seed as the sampler's will do."""
    everybody, _ = over_select(ALL, GOAL, seed=5, dropped=0.1)
    few = uniform_sampler(N, 300, seed=5)
    some, _ = over_select(few, 300, seed=5, dropped=0.1)
    fewer, _ = over_select(few, GOAL, seed=5, dropped=0.1)
    for round in range(5):
        first = np.intersect1d(everybody(round), few(round))
        assert set(first) <= set(some(round))
        assert set(first) <= set(fewer(round))
        assert set(fewer(round)) < set(some(round))
    assert not np.array_equal(everybody(0), everybody(1))
    assert not np.array_equal(everybody(0), over_select(ALL, GOAL, seed=6, dropped=0.1)[0](0))


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum()


def test_drop_outs_come_as_often_as_they_should_and_reports_are_fair():
    rounds = 400
    sample, report = over_select(ALL, GOAL, seed=1, dropped=0.1)
    dropped = np.array([report(round).num_dropped for round in range(rounds)])
    z = (dropped.sum() - 0.1 * N * rounds) / np.sqrt(N * rounds * 0.1 * 0.9)
    assert abs(z) < 4
    assert (dropped.sum() - 0.104 * N * rounds) / np.sqrt(N * rounds * 0.104 * 0.896) < -4  # the control
    assert 0.8 < dropped.var() / (N * 0.1 * 0.9) < 1.25

    counts = np.bincount(np.concatenate([sample(round) for round in range(rounds)]), minlength=N)
    fair = rounds * GOAL / N
    # Without replacement: the variance is that of one draw out of five, by N / (N - 1).
    assert abs(chi_square(counts, fair) / (1 - GOAL / N) - N) < 4 * np.sqrt(2 * N)
    slow, _ = over_select(ALL, GOAL, seed=1, times=lambda ids, uniform: uniform * (1 + 0.2 * (ids % 2)))
    biased = np.bincount(np.concatenate([slow(round) for round in range(rounds)]), minlength=N)
    assert abs(chi_square(biased, fair) / (1 - GOAL / N) - N) > 4 * np.sqrt(2 * N)  # the control
    assert biased[::2].sum() > 1.1 * biased[1::2].sum()


def test_a_round_goes_on_with_those_who_report():
    sample, report = over_select(ALL, 10, seed=0, times=lambda ids, uniform: np.where(ids < 4, 1.0, np.inf))
    np.testing.assert_array_equal(sample(0), [0, 1, 2, 3])
    assert report(0)[1:] == (N - 4, 0, 1.0)
    sample, report = over_select(ALL, 2, seed=0, times=lambda ids, uniform: np.ones(len(ids)))
    np.testing.assert_array_equal(sample(0), [0, 1])  # of equal times
    nobody, report = over_select(ALL, 10, seed=0, dropped=1.0)
    assert nobody(0).shape == (0,)
    assert report(0)[1:] == (N, 0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reporting_goal": 0}, "reporting_goal must be an integer of at least 1; got reporting_goal=0"),
        ({"dropped": 1.5}, r"dropped must be in \[0, 1\]; got dropped=1\.5"),
        ({"seed": -1}, r"seed must be an integer in \[0, 2\^64\)"),
        ({"sampler": uniform_sampler(9, 3, seed=0, replacement=True)}, "reports once; got a sampler with replacement"),
        ({"times": lambda ids, uniform: uniform * np.nan}, "at some time or never; got NaN for 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        over_select(**{"sampler": ALL, "reporting_goal": 10, "seed": 0} | arguments)[0](0)
