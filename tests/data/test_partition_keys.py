"""Tests of partitions by keys and values, and of the split for evaluation."""

import numpy as np
import pytest

from fedjx.data import FederatedData, iid_partition
from fedjx.data.partitions.keys import (
    continuous_partition,
    natural_grouped_partition,
    natural_partition,
    sort_partition,
    train_test_partition,
)

KEYS = np.random.default_rng(0).permutation(np.repeat(np.arange(23), np.arange(1, 24)))
VALUES = np.random.default_rng(1).lognormal(size=2000)


@pytest.mark.parametrize("keys", [KEYS, KEYS.astype(str), KEYS.astype("S"), KEYS.astype(np.uint8), list(KEYS / 2)])
def test_natural_clients_are_exactly_the_keys(keys):
    parts = natural_partition(keys)
    keys = np.asarray(keys)
    for key, rows in zip(np.unique(keys), parts, strict=True):
        np.testing.assert_array_equal(rows, np.flatnonzero(keys == key))


def test_many_keys_are_fast_enough_to_have_no_loop():
    keys = np.random.default_rng(0).integers(0, 2**40, 200_000)
    assert len(natural_partition(keys)) == len(np.unique(keys))


@pytest.mark.parametrize(
    ("group_size", "remainder", "sizes"),
    [
        (5, "smaller", [5, 5, 5, 5, 3]),
        (5, "bigger", [6, 6, 6, 5]),
        (9, "bigger", [12, 11]),
        (23, "strict", [23]),
        (40, "smaller", [23]),
    ],
)
@pytest.mark.parametrize("seed", [None, 0])
def test_groups_of_keys(group_size, remainder, sizes, seed):
    parts = natural_grouped_partition(KEYS, group_size, remainder=remainder, seed=seed)
    groups = [set(KEYS[rows]) for rows in parts]
    assert sorted(map(len, groups), reverse=True) == sizes
    assert sum(map(len, parts)) == len(KEYS)
    assert len(set.union(*groups)) == sum(map(len, groups)) == 23  # No key is in two.
    is_in_order = sorted(groups[0]) == list(range(len(groups[0])))
    assert is_in_order == (seed is None or len(groups) == 1)


def test_keys_that_are_dropped_are_counted():
    with pytest.warns(UserWarning, match="66 of 276 examples are in no client. They belong to 3 of 23 keys") as caught:
        parts = natural_grouped_partition(KEYS, 5, remainder="drop")
    assert caught[0].filename == __file__
    assert [len(set(KEYS[rows])) for rows in parts] == [5] * 4


def test_sorted_clients_do_not_overlap():
    parts = sort_partition(VALUES, 7)
    assert [len(rows) for rows in parts] == [286] * 5 + [285] * 2
    np.testing.assert_array_equal(np.concatenate(parts), np.argsort(VALUES, kind="stable"))
    assert [rows.tolist() for rows in sort_partition(["b", "a", "b", "a"], 2)] == [[1, 3], [0, 2]]


def between(strictness, seed=0):
    """The share of the values' variance that is between clients."""
    parts = continuous_partition(VALUES, 10, strictness=strictness, seed=seed)
    return np.var([VALUES[rows].mean() for rows in parts]) / VALUES.var()


def test_strictness_goes_from_iid_to_sorted():
    strict = continuous_partition(VALUES, 10, strictness=1.0, seed=0)
    assert [set(rows) for rows in strict] == [set(rows) for rows in sort_partition(VALUES, 10)]
    skew = [between(s) for s in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert (np.diff(skew) > 0).all()
    assert skew[0] < 3 / 200  # 9 / 2000 expected of IID clients.
    assert np.var([VALUES[rows].mean() for rows in iid_partition(2000, 10, seed=0)]) / VALUES.var() < 3 / 200


def test_half_strict_scores_are_half_noise():
    values = np.random.default_rng(2).normal(size=100_000)
    top = continuous_partition(values, 20, strictness=0.5, seed=0)[-1]
    # With correlation sqrt(1/2) of score and value, the best 5 % have 2.063 / sqrt(2) of it.
    assert abs(values[top].mean() - 2.063 / np.sqrt(2)) < 0.05
    wrong = continuous_partition(values, 20, strictness=0.55, seed=0)[-1]
    assert abs(values[wrong].mean() - 2.063 / np.sqrt(2)) > 0.05


def test_rows_of_a_client_are_mixed():
    rows = continuous_partition(np.arange(1000), 2, strictness=1.0, seed=0)[0]
    assert abs(np.mean(np.diff(rows) > 0) - 0.5) < 0.1


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.6, 0.9, 0.999])
def test_train_and_test_by_leafs_rule(fraction):
    parts = natural_partition(KEYS)
    train, test = train_test_partition(parts, train_fraction=fraction, seed=0)
    for n, (a, b) in enumerate(zip(train, test, strict=True), start=1):
        assert len(a) == max(1, int(fraction * n))
        assert len(b) == n - len(a) >= (n > 1)
        assert sorted([*a, *b]) == parts[n - 1].tolist()
        assert (np.diff(a) > 0).all()
    assert FederatedData.from_partition({"x": KEYS}, test).sizes[0] == 0


def test_the_test_examples_are_drawn_uniformly():
    parts = [np.arange(10)] * 4000
    train, _ = train_test_partition(parts, train_fraction=0.3, seed=0)
    counts = np.bincount(np.concatenate(train))
    assert np.abs(counts - 1200).max() < 4 * np.sqrt(4000 * 0.3 * 0.7)


def test_golden_rows():
    """These may change with NumPy; if they do, say so to users."""
    parts = continuous_partition(np.arange(12), 3, strictness=0.8, seed=1)
    assert [rows.tolist() for rows in parts] == [[1, 0, 3, 2], [6, 4, 7, 5], [8, 10, 9, 11]]
    train, _ = train_test_partition([range(5), range(5, 12)], train_fraction=0.6, seed=1)
    assert [rows.tolist() for rows in train] == [[0, 3, 4], [5, 6, 7, 11]]


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (lambda: natural_partition([]), "keys need to be a vector, not empty"),
        (lambda: natural_partition([[1]]), "keys need to be a vector"),
        (lambda: natural_partition([1.0, np.nan]), "keys need to be known; got 1 NaN"),
        (lambda: natural_grouped_partition(KEYS, 0), "group_size=0"),
        (lambda: natural_grouped_partition(KEYS, 24, remainder="drop"), "Use at most 23"),
        (lambda: natural_grouped_partition(KEYS, 5, remainder="strict"), "Leave out 3 keys"),
        (lambda: natural_grouped_partition(KEYS, 5, remainder="x"), "remainder='x'"),
        (lambda: sort_partition(VALUES, 2001), "Use at most 2000 clients"),
        (lambda: continuous_partition(VALUES, 2, strictness=1.1, seed=0), "strictness=1.1"),
        (lambda: continuous_partition([1.0, 1.0], 2, strictness=1.0, seed=0), "finite and different; got 1.0 to 1.0"),
        (lambda: continuous_partition([1.0, np.inf], 2, strictness=1.0, seed=0), "finite and different"),
        (lambda: train_test_partition([[1, 2]], train_fraction=1.0, seed=0), "train_fraction=1.0"),
        (lambda: train_test_partition([[1]], train_fraction=0.5, seed=0), "a client with two examples; got none of 1"),
    ],
)
def test_errors(partition, message):
    with pytest.raises(ValueError, match=message):
        partition()
