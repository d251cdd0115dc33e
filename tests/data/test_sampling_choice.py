"""Tests of samplers that are told what clients reported."""

import json

import numpy as np
import pytest

from fedjx.data import (
    FederatedData,
    check_description,
    fixed_sampler,
    poisson_sampler,
    power_of_choice,
    size_weighted_sampler,
    uniform_sampler,
)

CANDIDATES = uniform_sampler(30, 10, seed=3)
SAMPLE = power_of_choice(CANDIDATES, 4, seed=3)


def test_of_the_candidates_those_with_the_largest_reports_are_chosen():
    reports = SAMPLE.told(SAMPLE.init(), np.arange(30), np.random.default_rng(0).permutation(30))
    for round in range(50):
        candidates = CANDIDATES(round)
        expected = sorted(candidates.tolist(), key=lambda k: -reports[k])[:4]
        assert SAMPLE(round, reports).tolist() == sorted(expected)
        assert SAMPLE(round, reports).dtype == np.int32


def test_who_has_not_reported_comes_first_and_who_reports_nothing_last():
    candidates = CANDIDATES(0)
    reports = SAMPLE.told(SAMPLE.init(), candidates[:8], [1e9, 1, 2, 3, np.nan, 5, 6, np.inf])
    assert set(SAMPLE(0, reports)) == {*candidates[8:], candidates[0], candidates[6]}


def test_what_is_told_replaces_what_was_said_and_leaves_the_rest():
    before = SAMPLE.told(SAMPLE.init(), [3, 4], [1.0, 2.0])
    after = SAMPLE.told(before, [4, 7], [5.0, 6.0])
    assert before[[3, 4, 7]].tolist() == [1.0, 2.0, np.inf]  # as it was
    assert after[[3, 4, 7]].tolist() == [1.0, 5.0, 6.0]


def biased(sample, reports, num_rounds=3000):
    """The largest z score of how often one of six clients is chosen, of which all are equally likely."""
    counts = sum(np.bincount(sample(round, reports), minlength=6) for round in range(num_rounds))
    share = 2 / 6
    return np.abs(counts - share * num_rounds).max() / np.sqrt(num_rounds * share * (1 - share))


def test_ties_are_broken_at_random():
    sample = power_of_choice(uniform_sampler(6, 4, seed=1), 2, seed=1)
    assert biased(sample, sample.init()) < 4
    assert biased(lambda round, _: uniform_sampler(6, 4, seed=1)(round)[:2], None) > 4, "this test cannot fail"


def test_a_run_resumes_with_the_reports_of_its_round():
    def run(reports, rounds):
        drawn = []
        for round in rounds:
            drawn.append(SAMPLE(round, reports))
            reports = SAMPLE.told(reports, drawn[-1], np.sin(drawn[-1] + round))
        return reports, [ids.tolist() for ids in drawn]

    half, first = run(SAMPLE.init(), range(20))
    whole, drawn = run(SAMPLE.init(), range(40))
    resumed, second = run(np.array(json.loads(json.dumps(half.tolist()))), range(20, 40))
    assert first + second == drawn
    np.testing.assert_array_equal(resumed, whole)


def test_it_describes_itself_and_its_candidates():
    saved = json.loads(json.dumps(SAMPLE.description))
    check_description(saved, SAMPLE)
    assert (saved["replacement"], saved["min_separation"], saved["candidates"]["seed"]) == (False, 1, 3)
    for other in (
        power_of_choice(CANDIDATES, 5, seed=3),
        power_of_choice(CANDIDATES, 4, seed=4),
        power_of_choice(uniform_sampler(30, 10, seed=4), 4, seed=3),
        CANDIDATES,
    ):
        with pytest.raises(ValueError, match="a resumed run needs the sampler it began with"):
            check_description(saved, other)


def test_fewer_candidates_than_are_chosen_are_all_chosen():
    few = poisson_sampler(30, probability=0.1, seed=0)
    sample = power_of_choice(few, 4, seed=0)
    sizes = [len(sample(round, sample.init())) for round in range(50)]
    assert sizes == [min(4, len(few(round))) for round in range(50)]
    assert 0 in sizes


VIEW = FederatedData({"x": np.arange(6)}, np.array([0, 2, 4, 6])).select_clients([1, 2])


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda: SAMPLE(0, np.zeros(3)), r"a number for each of 30 clients; got shape \[3\]. Begin with `init\(\)`"),
        (lambda: SAMPLE.told(np.zeros(3), [0], [1.0]), r"a number for each of 30 clients; got shape \[3\]"),
        (lambda: SAMPLE.told(SAMPLE.init(), [0, 1], [1.0]), r"one number; got ids \[2\] and values \[1\]"),
        (lambda: SAMPLE.told(SAMPLE.init(), [30], [1.0]), r"ids need to be in \[0, 30\); got 30 to 30"),
        (lambda: power_of_choice(CANDIDATES, 0, seed=0), "cohort_size must be an integer of at least 1"),
        (lambda: power_of_choice(size_weighted_sampler(VIEW, 2, seed=0), 1, seed=0)(0, np.zeros(2)), "In a view"),
    ],
)
def test_errors(fn, message):
    with pytest.raises(ValueError, match=message):
        fn()
    assert fixed_sampler(3, [[0, 1]]).description["num_clients"] == 3
