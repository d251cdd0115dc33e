"""What holds for every sampler: golden values, no history, no dependence on process or population, descriptions."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from fedjx.data import uniform_sampler
from fedjx.data.sampling import Sampler, check_description, poisson_sampler
from fedjx.data.sampling_schedules import availability_sampler, cyclic_poisson_sampler, cyclic_sampler, fixed_sampler
from fedjx.data.sampling_weighted import size_weighted_sampler, weighted_sampler
from tests.data.samplers import C, N, cohorts, drawn, samplers
from tests.data.stores import MEMORY, ROOT

NAMES = list(samplers(0))
GOLDEN = {  # Seed 3, 100 clients, cohorts of 5, rounds 0 and 7.
    "uniform": [[3, 25, 43, 91, 97], [3, 22, 28, 64, 68]],
    "replacement": [[25, 26, 35, 49, 55], [22, 44, 55, 80, 87]],
    "poisson": [[26, 33, 39, 54], [20, 55, 62]],
    "poisson, truncated": [[26, 33, 39, 54], [20, 55, 62]],
    "cyclic poisson": [[10, 19, 49, 80, 93], [37, 42, 71, 92]],
    "cyclic": [[6, 34, 43, 68, 81], [10, 49, 51, 74, 82]],
    "separated": [[25, 40, 43, 85, 90], [9, 20, 26, 42, 56]],
    "shuffled": [[3, 11, 38, 58, 65], [27, 59, 64, 79, 89]],
    "availability": [[18, 29, 39, 67, 90], [18, 20, 21, 67, 79]],
    "diurnal": [[18, 29, 39, 67, 90], [2, 18, 21, 65, 79]],
    "over_select": [[13, 32, 59, 75, 88], [19, 23, 42, 44, 79]],
    "size": [[8, 38, 75, 79, 92], [16, 20, 55, 73, 82]],
    "size, replacement": [[8, 38, 75, 79, 92], [16, 55, 73, 73, 82]],
    "poisson, unequal": [[34, 47, 61, 70, 71, 81, 87, 91], [25, 40, 51, 88, 94]],
    "weighted": [[0, 3, 28, 34, 70], [0, 9, 24, 25, 39]],
    "weighted, replacement": [[0, 3, 28, 34, 70], [0, 9, 24, 25, 39]],
    "size in memory": [[8, 38, 75, 79, 92], [16, 20, 55, 73, 82]],
    "fixed": [[0, 1, 2, 3, 4], [35, 36, 37, 38, 39]],
}
# What does not depend on the seed.
SEEDLESS = {"fixed"}
IS_RANDOM = [name for name in NAMES if name not in SEEDLESS]
OVERLAPS = [name for name in IS_RANDOM if name in ("uniform", "poisson", "shuffled", "availability", "over_select")]


def test_golden_values():
    assert cohorts(3, [0, 7], n=100, c=5) == GOLDEN


@pytest.mark.parametrize("name", NAMES)
def test_cohorts_are_sorted_int32_of_the_population_and_keep_their_promises(name):
    sample = samplers(1)[name]
    can_repeat, sizes = sample.description["replacement"], []
    for round in range(60):
        ids = sample(round)
        sizes.append(len(ids))
        assert ids.dtype == np.int32
        assert (np.diff(ids) >= (0 if can_repeat else 1)).all()
        assert not len(ids) or (ids[0] >= 0 and ids[-1] < N)
    if "poisson" in name:
        assert len(set(sizes)) > 5
    else:
        assert set(sizes) == {C}


def test_the_next_round_alone_is_the_next_round_of_a_run():
    forward, backward = samplers(9), samplers(9)
    run = {name: [sample(round).tolist() for round in range(8)] for name, sample in forward.items()}
    resumed = {name: [sample(round).tolist() for round in reversed(range(8))] for name, sample in backward.items()}
    assert run == {name: ids[::-1] for name, ids in resumed.items()}
    assert {name: ids[7:] for name, ids in run.items()} == cohorts(9, [7])


def test_another_process_finds_the_same_cohorts():
    command = [sys.executable, "-m", "tests.data.samplers"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert json.loads(printed) == cohorts(3, [7, 0, 2**40])


@pytest.mark.parametrize("name", IS_RANDOM)
def test_seeds_and_rounds_do_not_collide(name):
    rounds = 10 if name == "cyclic" else 30  # Of a cycle all cohorts return.
    by_seed = [samplers(seed)[name] for seed in range(30)]
    cohorts = {tuple(sample(round).tolist()) for sample in by_seed for round in range(rounds)}
    assert len(cohorts) == 30 * rounds


def test_a_linear_combination_of_seed_and_round_collides():
    """The control of the test above: what others do."""
    linear = {tuple(uniform_sampler(N, C, seed=7 * seed + 3 * round)(0)) for seed in range(30) for round in range(30)}
    assert len(linear) < 400


def overlaps(one, other, num_rounds=300):
    """Returns the z score of the number of clients that two cohorts of 10 of 100 share; its mean is 1."""
    shared = [len(np.intersect1d(one(round), other(round))) for round in range(num_rounds)]
    return (np.mean(shared) - 1) / np.sqrt(1 / num_rounds)


@pytest.mark.parametrize("name", OVERLAPS)
def test_the_next_round_the_next_seed_and_the_next_epoch_are_independent(name):
    one, other = (samplers(seed, 100, 10)[name] for seed in (4, 5))
    assert abs(overlaps(one, other)) < 4
    assert abs(overlaps(one, lambda round: one(round ^ 2**32))) < 4
    if name == "shuffled":
        assert abs(overlaps(one, lambda round: one(round + 10))) < 4
    else:
        assert abs(overlaps(one, lambda round: one(round + 1))) < 4


def test_weak_keys_would_show():
    """The control of the test above: the key is seed + round, and the next seed is the next round."""

    def weak(seed):
        return lambda round: uniform_sampler(100, 10, seed=seed + round)(0)

    assert overlaps(weak(4), lambda round: weak(3)(round + 1)) > 100


@pytest.mark.parametrize("num_clients", [10**7, 2**31 - 1])
def test_memory_is_that_of_the_cohort(num_clients):
    peaks = {}
    for name, sample in drawn(0, num_clients, 1000).items():
        tracemalloc.start()
        ids = sample(12_345)
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(ids) > 800
    assert max(peaks.values()) < 1_000_000, peaks


@pytest.mark.parametrize("name", NAMES)
def test_descriptions_survive_json_and_recognise_their_sampler(name):
    described = {name: sample.description for name, sample in samplers(1).items()}
    saved = json.loads(json.dumps(described[name]))
    assert saved == described[name]
    assert {"kind", "version", "num_clients", "seed", "replacement", "min_separation"} <= set(saved)
    check_description(saved, samplers(1)[name])
    # The same sampler, with the offsets elsewhere.
    same = {"size", "size in memory"} if name in ("size", "size in memory") else {name}
    others = [sample for other, sample in samplers(1).items() if other not in same]
    others += [samplers(1, 980)[name], *([] if name in SEEDLESS else [samplers(2)[name]])]
    for sample in others:
        with pytest.raises(ValueError, match="a resumed run needs the sampler it began with"):
            check_description(saved, sample)


def test_the_description_says_what_the_accountant_must_know():
    by_name = {name: sample.description for name, sample in samplers(0).items()}
    assert {name for name, d in by_name.items() if d["replacement"]} == {name for name in by_name if "repl" in name}
    assert by_name["poisson"]["probability"] == 0.02
    assert by_name["poisson, unequal"]["probability"] == 0.04
    assert by_name["size"]["largest_share"] == 3 / 1999
    assert by_name["size in memory"] == by_name["size"]
    separations = {name: d["min_separation"] for name, d in by_name.items()}
    assert (separations["cyclic"], separations["separated"], separations["shuffled"]) == (50, 25, 1)
    assert (separations["fixed"], separations["uniform"], separations["replacement"]) == (50, 1, 0)


def test_the_refusal_names_the_differences():
    saved = uniform_sampler(100, 10, seed=1).description
    message = (
        r"a resumed run needs the sampler it began with; got \{'seed': 2, 'cohort_size': 20\}, "
        r"saved was \{'seed': 1, 'cohort_size': 10\}\. Repeat it, or begin another run\."
    )
    with pytest.raises(ValueError, match=message):
        check_description(saved, uniform_sampler(100, 20, seed=2))
    with pytest.raises(ValueError, match=r"got \{'kind': 'mine'\}, saved was \{'kind': 'uniform', "):
        check_description(saved, Sampler(lambda round: np.arange(3), {"kind": "mine"}))


def test_what_changes_the_cohorts_changes_the_description():
    assert samplers(0)["weighted"].description["weights"] != samplers(0, 980)["weighted"].description["weights"]
    one, other = (Sampler(lambda round: np.arange(1), {"kind": "mine", "x": x}) for x in (None, 0))
    with pytest.raises(ValueError, match=r"got \{'x': 0\}, saved was \{'x': None\}"):
        check_description(one.description, other)


CHECKED = [  # What is wrong, and what the error says of it.
    (lambda: uniform_sampler(5, 6, seed=0), "cohort_size must be at most num_clients; got cohort_size=6 and"),
    (lambda: uniform_sampler(5, 0, seed=0, replacement=True), "cohort_size must be an integer of at least 1"),
    (lambda: poisson_sampler(5, probability=0.0, seed=0), r"needs to be in \(0, 1\].*got float64\[\] from 0\.0 to"),
    (lambda: poisson_sampler(5, probability=1.5, seed=0), r"float64\[\] from 1\.5 to 1\.5 for num_clients=5"),
    (lambda: poisson_sampler(5, probability=np.nan, seed=0), r"float64\[\] from nan to nan"),
    (lambda: poisson_sampler(5, probability=[0.5] * 4, seed=0), r"one in \[0, 1\] for each client; got float64\[4\]"),
    (
        lambda: poisson_sampler(2, probability=[0.5, 0.1], max_cohort_size=1, seed=0),
        "if clients have probabilities of their own; got max_cohort_size=1",
    ),
    (lambda: poisson_sampler(5, probability=0.5, max_cohort_size=0, seed=0), "max_cohort_size must be"),
    (lambda: cyclic_poisson_sampler(5, probability=0.5, num_groups=6, seed=0), "num_groups must be"),
    (lambda: poisson_sampler(2**31, probability=0.5, seed=0), r"num_clients must be an integer in \[1, 2\^31\)"),
    (lambda: weighted_sampler([1, -1], 1, seed=0), r"a vector of finite numbers from 0; got int64\[2\]"),
    (lambda: weighted_sampler([1, np.inf], 1, seed=0), r"got float64\[2\]"),
    (lambda: weighted_sampler(3, 1, seed=0), r"got int64\[\]"),
    (lambda: weighted_sampler([], 1, seed=0), r"num_clients must be an integer in"),
    (lambda: weighted_sampler([0, 0], 1, seed=0, replacement=True), "weights need to have a positive one; got 2 zeros"),
    (lambda: weighted_sampler([1, 0, 1], 3, seed=0), "got cohort_size=3 and num_clients=2"),
    (lambda: size_weighted_sampler(MEMORY, 11, seed=0), "got cohort_size=11 and num_clients=10"),
    (lambda: cyclic_sampler(10, 3, seed=0, min_separation=5), r"an integer in \[1, 4\]; got min_separation=5"),
    (lambda: cyclic_sampler(10, 3, seed=0, min_separation=0), "got min_separation=0"),
    (lambda: availability_sampler(9, 3, lambda round, ids: ids, seed=0)(0), r"each of 3 ids a probability in \[0, 1\]"),
    (lambda: availability_sampler(9, 3, lambda round, ids: 1.0, seed=0)(0), r"got float64\[\] from 1\.0 to 1\.0 in"),
    (lambda: fixed_sampler(5, []), "a sampler needs at least one group; got groups="),
    (lambda: fixed_sampler(5, [[0], [5, 1]]), r"groups need ids from 0 to 4; got \[1 5\] in group 1"),
    (lambda: fixed_sampler(5, [[0], []]), r"got \[\] in group 1"),
    (lambda: cyclic_sampler(5, 1, seed=-1), r"seed must be an integer in \[0, 2\^64\); got seed=-1"),
    (lambda: cyclic_sampler(5, 1, seed=0)(-1), r"round must be an integer in \[0, 2\^64\); got round=-1"),
    (lambda: fixed_sampler(5, [[0]])(2**64), r"round must be an int.* in \[0, 2\^64\); got round=18446744073709551616"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), CHECKED)
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        wrong()
    assert "\n" not in str(error.value)
