"""The laws of every partitioner: who gets an example, and what the result is a function of."""

import os
import subprocess
import sys

import numpy as np
import pytest

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


def test_other_processes_get_the_same():
    environment = {**os.environ, "PYTHONHASHSEED": "4321", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.data.partitions", "6"]
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == digests(6)
    assert output.splitlines() != digests(7)
