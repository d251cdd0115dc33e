"""Tests of the digits: nothing lost, nothing shared between training and test."""

import sys
from collections import Counter

import numpy as np
import pytest

from fedjx.data import digits, label_counts

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def multiset(examples):
    """The examples as a multiset, so that the order does not matter."""
    return Counter((x.tobytes(), int(y)) for x, y in zip(examples["x"], examples["y"], strict=True))


def test_training_and_test_set_are_all_the_digits():
    train, test = digits()
    for examples in (train.examples, test):
        assert examples["x"].dtype == np.uint8
        assert examples["x"].shape[1:] == (8, 8, 1)
        assert examples["y"].dtype == np.int32
    images, labels = sklearn_datasets.load_digits(return_X_y=True)
    original = {"x": images.astype(np.uint8), "y": labels}
    assert np.array_equal(original["x"], images), "grey values are whole numbers"
    assert multiset(train.examples) + multiset(test) == multiset(original)
    assert (train.num_clients, train.num_examples, len(test["y"])) == (50, 1438, 359)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_test_set_is_stratified(fraction):
    train, test = digits(num_clients=5, test_fraction=fraction)
    held_out = np.bincount(test["y"], minlength=10)
    total = held_out + np.bincount(train.examples["y"], minlength=10)
    assert (np.abs(held_out - fraction * total) <= 0.5).all()


def test_seed_and_skew():
    one, same, other = (digits(20, seed=seed) for seed in (1, 1, 2))
    for name in ("x", "y"):
        np.testing.assert_array_equal(one[0].examples[name], same[0].examples[name])
        np.testing.assert_array_equal(one[1][name], same[1][name])
    np.testing.assert_array_equal(one[0].offsets, same[0].offsets)
    assert multiset(one[1]) != multiset(other[1])
    # The shares of the classes are drawn anew, too: with the same ones the correlation is above 0.9.
    assert np.corrcoef(one[0].sizes, other[0].sizes)[0, 1] < 0.7

    def largest_share(alpha):
        counts = label_counts(digits(20, alpha=alpha)[0], num_classes=10)
        return (counts.max(axis=1) / counts.sum(axis=1)).mean()

    assert largest_share(0.1) > 0.5 > 0.25 > largest_share(100.0)


def test_every_client_has_an_example_even_with_extreme_skew():
    train, _ = digits(300, alpha=0.01)
    assert train.sizes.min() == 1
    assert train.sizes.sum() == 1438


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match=r"test_fraction must be in \(0, 1\); got test_fraction=1.0"):
        digits(test_fraction=1.0)
    with pytest.raises(ValueError, match="seed must be an integer of at least 0; got seed=-1"):
        digits(seed=-1)
    with pytest.raises(ValueError, match="got num_examples=1438, num_clients=2000"):
        digits(2000)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digits()
