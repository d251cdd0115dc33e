"""The laws of every partitioner: who gets an example, and what the result is a function of."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fedjx.data import (
    continuous_partition,
    dirichlet_by_client_partition,
    dirichlet_partition,
    distribution_partition,
    natural_grouped_partition,
    natural_partition,
    pachinko_partition,
    pathological_partition,
    shards_partition,
    sort_partition,
)
from tests.data.partitions import CASES, COARSE, FINE, KEYS, VALUES, N, digests, quietly
from tests.data.stores import ROOT

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def check_conservation(parts, num_examples, *, is_covering, min_examples=1):
    assert all(isinstance(rows, np.ndarray) and rows.dtype == np.int64 and rows.ndim == 1 for rows in parts)
    assert min(map(len, parts)) >= min_examples
    owners = np.bincount(np.concatenate(parts), minlength=num_examples)
    assert len(owners) == num_examples
    assert owners.max() == 1
    assert (owners.min() == 1) == is_covering


@cases
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_every_example_is_in_one_client(case, seed):
    parts = quietly(case, seed)
    check_conservation(parts, N, is_covering=case.is_covering, min_examples=case.min_examples)
    if case.is_covering:
        pooled = sum(np.bincount(FINE[rows], minlength=12) for rows in parts)
        np.testing.assert_array_equal(pooled, np.bincount(FINE))


@pytest.mark.parametrize("parts", [[[0, 1], [1, 2]], [[0, 1], [2, 3]], [[0], [2]], [[0, 1, 2], []]])
def test_the_check_of_conservation_can_fail(parts):
    with pytest.raises(AssertionError):
        check_conservation([np.array(rows, np.int64) for rows in parts], 3, is_covering=True)


@cases
def test_the_seed_decides_and_nothing_else(case):
    before = [values.copy() for values in (FINE, COARSE, KEYS, VALUES)]
    one = quietly(case, 3)
    np.random.seed(8)  # noqa: NPY002
    global_state = np.random.get_state()[1].copy()  # noqa: NPY002
    same, other = quietly(case, 3), quietly(case, 4)
    assert [rows.tolist() for rows in one] == [rows.tolist() for rows in same]
    is_other = len(one) != len(other) or any(set(a) != set(b) for a, b in zip(one, other, strict=True))
    assert is_other == case.is_random
    np.testing.assert_array_equal(global_state, np.random.get_state()[1])  # noqa: NPY002
    for values, copy in zip((FINE, COARSE, KEYS, VALUES), before, strict=True):
        np.testing.assert_array_equal(values, copy)


UNKNOWN = {
    "a number": [1.0, 2.0, np.nan],
    "a number of objects": np.array([1, 2, np.nan], object),
    "text": ["a", "b", float("nan")],
    "nobody": ["a", "b", None],
    "a date": np.array(["2026-01-01", "2026-01-02", "NaT"], "datetime64[D]"),
}


@pytest.mark.parametrize("of", UNKNOWN)
def test_what_is_not_known_is_no_class_of_its_own(of):
    values = UNKNOWN[of]
    for partition in (
        lambda: natural_partition(values),
        lambda: natural_grouped_partition(values, 1),
        lambda: sort_partition(values, 1),
        lambda: continuous_partition(values, 1, strictness=1, seed=0),
        lambda: dirichlet_partition(values, 1, alpha=1, seed=0),
        lambda: dirichlet_by_client_partition(values, 1, alpha=1, seed=0),
        lambda: shards_partition(values, 1, seed=0),
        lambda: pathological_partition(values, 1, classes_per_client=1, seed=0),
        lambda: distribution_partition(values, [[1.0]], seed=0),
        lambda: pachinko_partition(values, [0, 0, 0], 1, seed=0),
        lambda: pachinko_partition([0, 1, 2], values, 1, seed=0),
    ):
        with pytest.raises(ValueError, match="need to be known; got 1 NaN"):
            partition()


def test_other_processes_get_the_same():
    environment = {**os.environ, "PYTHONHASHSEED": "4321", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.data.partitions", "6"]
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == digests(6)
    assert output.splitlines() != digests(7)
