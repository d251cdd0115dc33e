"""Tests of partitions: conservation, determinism, and the moments of the Dirichlet skew."""

import numpy as np
import pytest

from fedjx.data import FederatedData, Store, dirichlet_partition, iid_partition, label_counts
from tests.data.stores import MEMORY, written

LABELS = np.random.default_rng(0).integers(0, 10, 3000)


def shares(alpha, *, num_clients=10, num_classes=1000, class_size=500, seed=0):
    """Each client's share of each class, ``[num_classes, K]``."""
    labels = np.repeat(np.arange(num_classes), class_size)
    parts = dirichlet_partition(labels, num_clients, alpha=alpha, seed=seed, min_examples=0)
    counts = [np.bincount(labels[rows], minlength=num_classes) for rows in parts]
    return np.stack(counts, axis=1) / class_size


def variance(alpha, num_clients):
    return (num_clients - 1) / (num_clients**2 * (num_clients * alpha + 1))


@pytest.mark.parametrize("alpha", [1e-4, 0.05, 0.5, 100.0])
@pytest.mark.parametrize(("num_clients", "min_examples"), [(1, 1), (7, 0), (100, 1), (100, 30), (3000, 1)])
def test_dirichlet_covers_every_example_once(alpha, num_clients, min_examples):
    parts = dirichlet_partition(LABELS, num_clients, alpha=alpha, seed=1, min_examples=min_examples)
    assert len(parts) == num_clients
    assert all(rows.dtype == np.int64 for rows in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(3000))
    assert min(map(len, parts)) >= min_examples


def test_dirichlet_is_a_function_of_its_seed():
    one, same, other = (dirichlet_partition(LABELS, 20, alpha=0.5, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
def test_dirichlet_moments(alpha):
    p = shares(alpha)
    expected = variance(alpha, 10)
    np.testing.assert_allclose(p.mean(axis=0), 0.1, atol=4 * np.sqrt(expected / len(p)))
    np.testing.assert_allclose(((p - 0.1) ** 2).mean(), expected, rtol=0.1)
    # The control: the moment tells this alpha from one a little larger.
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(((p - 0.1) ** 2).mean(), variance(1.5 * alpha, 10), rtol=0.1)


def test_dirichlet_draws_each_class_anew():
    p = shares(0.5)
    assert abs(np.corrcoef(p[:-1].ravel(), p[1:].ravel())[0, 1]) < 0.05
    assert np.corrcoef(p[:-1].ravel(), p[:-1].ravel())[0, 1] > 0.99


def test_small_classes_favour_no_client():
    # Three examples over ten clients: cutting at rounded-down ends starves the first and feeds the last.
    counts = 3 * shares(1.0, num_classes=20_000, class_size=3)
    np.testing.assert_allclose(counts.mean(axis=0), 0.3, atol=4 * counts.std() / np.sqrt(20_000))


def test_smaller_alpha_is_more_skewed():
    largest = [shares(alpha, num_classes=200).max(axis=1).mean() for alpha in (0.01, 0.1, 1.0, 10.0, 1000.0)]
    assert (np.diff(largest) < 0).all()
    assert largest[0] > 0.9
    assert largest[-1] < 0.12


def test_classes_are_mixed_within_a_client():
    labels = np.repeat([0, 1], 1000)
    (rows,) = dirichlet_partition(labels, 1, alpha=1.0, seed=0)
    # 1000 changes expected of 1999, standard deviation 22; classes one after another would have one.
    assert 900 < np.count_nonzero(np.diff(labels[rows])) < 1100


def test_filling_up_takes_from_the_largest_only():
    without, filled = (dirichlet_partition(LABELS, 100, alpha=0.05, seed=0, min_examples=m) for m in (0, 5))
    before, after = (np.array([len(rows) for rows in parts]) for parts in (without, filled))
    short = before < 5
    assert short.any()
    assert before.min() == 0
    assert (after[short] == 5).all()
    givers = after < before
    assert givers.any()
    assert after[givers].min() + 1 >= before[~givers].max()
    for old, new in zip(without, filled, strict=True):
        kept = min(len(old), len(new))
        np.testing.assert_array_equal(old[:kept], new[:kept])


def test_labels_need_not_be_numbered():
    labels = np.array(["cat", "dog"] * 50)
    parts = dirichlet_partition(labels, 5, alpha=0.5, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS, {"alpha": 0.0}, "alpha must be positive and finite; got alpha=0.0"),
        (LABELS, {"alpha": float("nan")}, "alpha must be positive"),
        (LABELS, {"alpha": float("inf")}, "alpha must be positive and finite; got alpha=inf"),
        (LABELS, {"num_clients": 0}, "num_clients must be an integer of at least 1; got num_clients=0"),
        (LABELS, {"num_clients": 3001}, "got num_examples=3000, num_clients=3001 and min_examples=1"),
        (LABELS, {"min_examples": 301}, "got num_examples=3000, num_clients=10 and min_examples=301"),
        (LABELS, {"min_examples": -1}, "min_examples must be an integer of at least 0; got min_examples=-1"),
        (LABELS, {"seed": -1}, "seed must be an integer of at least 0; got seed=-1"),
        (LABELS.reshape(-1, 2), {}, r"labels need to be a vector, not empty; got shape=\(1500, 2\)"),
    ],
)
def test_dirichlet_errors(labels, options, message):
    with pytest.raises(ValueError, match=message):
        dirichlet_partition(labels, **{"num_clients": 10, "alpha": 0.5, "seed": 0, **options})


def test_iid_covers_every_example_once_in_equal_numbers():
    parts = iid_partition(1003, 10, seed=0)
    assert sorted(map(len, parts)) == [100] * 7 + [101] * 3
    assert sorted(np.concatenate(parts).tolist()) == list(range(1003))
    assert all(np.array_equal(a, b) for a, b in zip(parts, iid_partition(1003, 10, seed=0), strict=True))
    assert not np.array_equal(parts[0], iid_partition(1003, 10, seed=1)[0])
    # Random: the mean of the rows is that of all, within 4 standard deviations; in blocks it would be 50.
    assert abs(parts[0].mean() - 501) < 4 * 290 / np.sqrt(101)


def test_iid_errors():
    with pytest.raises(ValueError, match="got num_examples=3, num_clients=4 and min_examples=1"):
        iid_partition(3, 4, seed=0)
    with pytest.raises(ValueError, match="got num_clients=0"):
        iid_partition(3, 0, seed=0)


def test_label_counts():
    parts = dirichlet_partition(LABELS, 30, alpha=0.2, seed=0)
    data = FederatedData.from_partition({"y": LABELS.astype(np.uint8)}, parts)
    counts = label_counts(data)
    assert counts.shape == (30, 10)
    assert counts.dtype == np.int64
    for k in range(30):
        np.testing.assert_array_equal(counts[k], np.bincount(data.client(k)["y"], minlength=10))
    assert label_counts(data, num_classes=12)[:, 10:].sum() == 0


def test_label_counts_of_a_store_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("fedjx.data.partitions.dirichlet._BLOCK_BYTES", 1000)
    store = written(tmp_path / "s")
    calls = []
    monkeypatch.setattr(
        Store, "read", lambda self, ids, out=None, read=Store.read: calls.append(ids) or read(self, ids)
    )
    np.testing.assert_array_equal(label_counts(store), label_counts(MEMORY))
    assert label_counts(store, num_classes=20).shape == (10, 20)
    assert len(calls) == 2
    monkeypatch.setattr("fedjx.data.partitions.dirichlet._BLOCK_BYTES", 100)
    np.testing.assert_array_equal(label_counts(store), label_counts(MEMORY))
    assert np.concatenate(calls[2:]).tolist() == list(range(10))
    # A row has 27 bytes, so a block of 100 begins with 3 examples, and holds more only where a client does.
    assert max(MEMORY.sizes[ids[:-1]].sum() for ids in calls[2:]) < 3
    with pytest.raises(ValueError, match="got num_classes=3 and labels from"):
        label_counts(store, num_classes=3)


def test_label_counts_errors():
    data = FederatedData({"x": np.zeros((3, 2)), "t": np.array([-1, 0, 4])}, np.array([0, 1, 3]))
    with pytest.raises(ValueError, match=r"label must be one of 't', 'x'; got label='y'. Choose one of these"):
        label_counts(data)
    with pytest.raises(TypeError, match=r"'x' needs to be one integer per example; got float64\[3, 2\]"):
        label_counts(data, "x")
    with pytest.raises(ValueError, match="got num_classes=5 and labels from -1 to 4"):
        label_counts(data, "t")
    with pytest.raises(ValueError, match="got num_classes=3 and labels from 0 to 4"):
        label_counts(FederatedData({"y": np.array([0, 4])}, np.array([0, 2])), num_classes=3)
