"""Agreement with flwr-datasets 0.6.1, whose results are recorded here, where nothing is drawn at random."""

import numpy as np
import pytest

from fedjx.data.partitions.keys import continuous_partition, natural_grouped_partition, natural_partition
from fedjx.data.partitions.labels import (
    distribution_partition,
    pathological_partition,
    rotating_weights,
    shards_partition,
)
from fedjx.data.partitions.sizes import exponential_sizes, linear_sizes, square_sizes

ROW = np.arange(40)
LABELS, USERS, VALUES = ROW**2 % 13 % 4, ROW**3 % 13, np.cos(ROW)
NATURAL = [
    [0, 13, 26, 39],
    [1, 3, 9, 14, 16, 22, 27, 29, 35],
    [7, 8, 11, 20, 21, 24, 33, 34, 37],
    [2, 5, 6, 15, 18, 19, 28, 31, 32],
    [4, 10, 12, 17, 23, 25, 30, 36, 38],
]
TABLE = [[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 2, 1], [2, 1, 1, 1]]


def counts(parts):
    return [np.bincount(LABELS[rows], minlength=4).tolist() for rows in parts]


def rows_of(parts):
    return [sorted(rows.tolist()) for rows in parts]


def test_sizes():
    assert linear_sizes(40, 4).tolist() == [4, 8, 12, 16]
    assert square_sizes(40, 4).tolist() == [1, 5, 12, 22]
    assert exponential_sizes(40, 4).tolist() == [1, 3, 9, 27]


def test_natural_ids():
    assert rows_of(natural_partition(USERS)) == NATURAL


@pytest.mark.parametrize(
    ("remainder", "groups"),
    [
        ("smaller", [[0, 1], [2, 3], [4]]),  # allow-smaller
        ("bigger", [[0, 1, 2], [3, 4]]),  # allow-bigger
        ("drop", [[0, 1], [2, 3]]),  # drop-reminder
    ],
)
@pytest.mark.filterwarnings("ignore:9 of 40 examples are in no client:UserWarning")
def test_grouped_natural_ids(remainder, groups):
    expected = [sorted(row for key in group for row in NATURAL[key]) for group in groups]
    assert rows_of(natural_grouped_partition(USERS, 2, remainder=remainder)) == expected


def test_deterministic_pathological_labels():
    parts = pathological_partition(LABELS, 6, classes_per_client=2, seed=0, assignment="deterministic")
    expected = [[6, 3, 0, 0], [0, 3, 2, 0], [0, 0, 2, 3], [5, 0, 0, 3], [5, 3, 0, 0], [0, 3, 2, 0]]
    assert counts(parts) == expected
    # The control: the other assignment is not the same.
    other = pathological_partition(LABELS, 6, classes_per_client=2, seed=0, assignment="first-deterministic")
    assert counts(other) != expected


def test_a_given_distribution():
    weights = rotating_weights(TABLE, 8, classes_per_client=2)
    with pytest.warns(UserWarning, match="10 of 40 examples are in no client"):
        parts = distribution_partition(LABELS, weights, seed=0, rescale=False)
    assert counts(parts) == [
        [1, 4, 0, 0],
        [0, 3, 1, 0],
        [0, 0, 1, 2],
        [2, 0, 0, 1],
        [3, 2, 0, 0],
        [0, 1, 2, 0],
        [0, 0, 1, 1],
        [4, 0, 0, 1],
    ]


def test_strictly_by_a_value():
    assert rows_of(continuous_partition(VALUES, 3, strictness=1.0, seed=5)) == [
        [2, 3, 4, 9, 10, 15, 16, 21, 22, 23, 28, 29, 34, 35],
        [1, 5, 8, 11, 14, 17, 20, 24, 27, 30, 33, 36, 39],
        [0, 6, 7, 12, 13, 18, 19, 25, 26, 31, 32, 37, 38],
    ]


@pytest.mark.filterwarnings("ignore:5 of 40 examples are in no client:UserWarning")
def test_shards_of_a_size():
    parts = shards_partition(LABELS, 3, seed=0, shards_per_client=None, shard_size=7)
    assert sorted(map(len, parts)) == [7, 14, 14]
