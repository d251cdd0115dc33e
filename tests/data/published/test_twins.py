"""Tests of synthetic twins: schema, statistics against those published, and independence of the scale."""

import numpy as np
import pytest

from fedjx.data import Store, StoreWriter, write_store
from fedjx.data.published import synthetic as draws
from fedjx.data.published import synthetic_twin, token_ids, twin_names, twin_source, twins
from fedjx.data.published.files import COUNTS
from fedjx.data.published.synthetic import Block, keys, labels


def sizes(name, split, num_clients):
    scaled = twins._scaled(name, 0, num_clients, None)[split]
    return twins._sizes(scaled, scaled.first + np.arange(scaled.num_clients))


@pytest.mark.parametrize("name", twin_names())
def test_every_twin_is_made_and_verifies(tmp_path, name):
    stores = synthetic_twin(name, tmp_path, num_clients=5, mean_examples=3, progress=False)
    assert list(stores) == list(twins.TWINS[name].splits)
    assert next(iter(stores.values())).num_clients == 5
    for store in stores.values():
        store.verify()
        assert store.manifest["provenance"]["synthetic_twin_of"] == name
        columns = store.client(0)
        assert all(len(np.unique(column)) > 1 for column in columns.values() if column.size > 30)


@pytest.mark.parametrize("name", sorted(set(twin_names()) & set(COUNTS)))
def test_full_scale_is_as_published(name):
    for split, scaled in twins._scaled(name, 0, None, None).items():
        expected = COUNTS[name][split]
        if expected.num_clients:
            assert scaled.num_clients == expected.num_clients
            if expected.num_examples:
                assert scaled.mean * scaled.num_clients == pytest.approx(expected.num_examples, rel=2e-3)
        elif scaled.is_central and expected.num_examples:
            assert scaled.mean == expected.num_examples


@pytest.mark.parametrize(
    ("name", "mean", "deviation", "largest"),
    [("emnist", 197.53, 76.7, 418), ("shakespeare", 22.47, 35.2, None), ("cifar100", 100, 0, 100)],
)
def test_sizes_have_the_published_mean_and_deviation(name, mean, deviation, largest):
    found = sizes(name, "train", 60_000)
    # Four standard errors of the mean; a log-normal's deviation is itself uncertain.
    assert abs(found.mean() - mean) <= 4 * deviation / np.sqrt(len(found)) + 0.01 * mean
    assert found.std() == pytest.approx(deviation, rel=0.06)
    assert found.min() >= 1
    assert largest is None or found.max() <= largest
    if deviation:
        # Negative control: sizes of another law of the same mean fail.
        poisson = np.random.default_rng(0).poisson(mean, len(found))
        assert poisson.std() != pytest.approx(deviation, rel=0.06)


def test_writers_are_of_two_kinds():
    counts = np.histogram(sizes("emnist", "train", 60_000), bins=np.arange(60, 400, 20))[0]
    peaks = [k for k in range(1, len(counts) - 1) if counts[k - 1] < counts[k] > counts[k + 1]]
    assert len(peaks) == 2


@pytest.mark.parametrize("mean", [1.0, 1.5, 2.0, 10.0, 396.6])
def test_sizes_keep_any_mean(mean):
    scaled = twins._scaled("stack_overflow", 0, None, mean)["train"]
    found = twins._sizes(scaled, np.arange(scaled.num_clients))
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - mean) <= 5 * error
    assert found.min() == 1
    assert mean < 10 or found.max() > 50 * mean  # A heavy tail.


def block(num_clients, size, seed=0):
    owner = np.repeat(np.arange(num_clients), size)
    clients = keys(seed, np.arange(num_clients))
    return Block(clients, owner, keys(clients[owner], np.arange(len(owner))))


@pytest.mark.parametrize("concentration", [0.5, 3.0, 30.0])
def test_labels_have_the_moments_of_a_dirichlet_law(concentration):
    num_clients, size, classes = 2000, 40, 6
    found = labels(block(num_clients, size), classes, concentration).reshape(num_clients, size)
    # Two examples of a client are of one class with probability (1 + concentration / classes) / (1 + concentration).

    def agreement(rows):
        counts = np.array([np.bincount(row, minlength=classes) for row in rows])
        return (counts * (counts - 1)).sum() / (num_clients * size * (size - 1))

    expected = (1 + concentration / classes) / (1 + concentration)
    assert agreement(found) == pytest.approx(expected, rel=0.04)
    shares = np.bincount(found.ravel(), minlength=classes) / found.size
    np.testing.assert_allclose(shares, 1 / classes, atol=0.05)
    # Negative control: without skew they agree less.
    shuffled = np.random.default_rng(0).permutation(found.ravel()).reshape(found.shape)
    assert agreement(shuffled) < expected - 0.01


def test_draws_are_uniform_and_independent():
    key = keys(3, np.arange(100_000))
    u, v = draws.uniform(key, 1), draws.uniform(key, 2)
    for x in (u, v):
        counts = np.bincount((x * 64).astype(int), minlength=64)
        assert ((counts - x.size / 64) ** 2 / (x.size / 64)).sum() < 103.4  # 63 degrees of freedom, 0.999
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.015
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.015
    z = draws.normal(key, 3)
    assert abs(z.mean()) < 0.015
    assert z.std() == pytest.approx(1, abs=0.01)
    counts = np.bincount(draws.random_bytes(key[:5000], 21).ravel(), minlength=256)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 330.5  # 255 degrees of freedom, 0.999
    assert len(np.unique(key)) == len(key)
    assert keys(1, 2) != keys(2, 1)


def test_a_client_does_not_depend_on_the_others(tmp_path, monkeypatch):
    few = synthetic_twin("emnist", tmp_path / "few", num_clients=7, mean_examples=20, progress=False)["train"]
    monkeypatch.setattr(twins, "_CLIENTS", 4)
    monkeypatch.setattr(twins, "_BLOCK_BYTES", 20_000)
    many = synthetic_twin("emnist", tmp_path / "many", num_clients=20, mean_examples=20, progress=False)["train"]
    for k in range(7):
        for name, column in few.client(k).items():
            np.testing.assert_array_equal(many.client(k)[name], column)
    other = synthetic_twin("emnist", tmp_path / "other", seed=1, num_clients=7, mean_examples=20, progress=False)
    assert few.client(0)["pixels"].tobytes() != other["train"].client(0)["pixels"].tobytes()


def test_sources_and_stores_are_the_same(tmp_path):
    stores = synthetic_twin("stack_overflow", tmp_path, num_clients=30, mean_examples=4, progress=False)
    for split, store in stores.items():
        source = twin_source("stack_overflow", split, num_clients=30, mean_examples=4)
        copy = write_store(tmp_path / split, source, progress=False)
        assert copy.fingerprint == store.fingerprint
    # Users of the test split are users of the training split, and others are held out.
    ids = {split: set(store.client_ids(np.arange(store.num_clients))) for split, store in stores.items()}
    assert ids["test"] < ids["train"]
    assert not ids["heldout"] & ids["train"]
    test = stores["test"].client(0)["tokens"]
    assert test.tobytes() != stores["train"].client(0)["tokens"][: len(test)].tobytes()


def test_sentences_are_like_the_published(tmp_path):
    store = synthetic_twin("stack_overflow", tmp_path, num_clients=300, mean_examples=20, progress=False)["train"]
    tokens, ids = store.load().examples["tokens"].astype(int), token_ids(10_000)
    assert (tokens[:, 0] == ids.bos).all()
    assert tokens.max() == ids.eos
    words = (tokens > 0) & (tokens < ids.oov)
    lengths = ((tokens > 0) & (tokens != ids.eos) & (tokens != ids.bos)).sum(1)
    for row, length in zip(tokens[:500], lengths[:500], strict=True):
        assert length == 20 or (row[length + 1] == ids.eos and not row[length + 2 :].any())
    counts = np.sort(np.bincount(tokens[words], minlength=ids.oov))[::-1]
    # Like Zipf's law: rank 100 has about a hundredth of the words of rank 1, and a few per cent are unknown.
    assert 10 < counts[0] / counts[99] < 100
    assert 0.03 < (tokens == ids.oov).sum() / (lengths.sum()) < 0.07


def test_tags_go_with_words(tmp_path):
    store = synthetic_twin("stack_overflow_tags", tmp_path, num_clients=20, mean_examples=20, progress=False)["train"]
    posts = store.load().examples
    known = posts["words"] < 10_000
    assert (known.sum(axis=1) == posts["num_words"]).all()
    assert 5 < posts["num_words"].mean() < 20
    num_tags = (posts["tags"] < 500).sum(axis=1)
    assert {1, 2} <= set(num_tags.tolist()) <= {0, 1, 2}
    assert ((num_tags > 0) == known.any(axis=1)).all()
    for words, mask, tags in zip(posts["words"][:200], known, posts["tags"], strict=False):
        expected = {int(words[mask].min()) % 500, int(words[mask].max()) % 500} if mask.any() else set()
        assert tags.tolist() == sorted(expected) + [500] * (5 - len(expected))


def test_a_twin_that_another_process_writes_meanwhile_is_opened(tmp_path, monkeypatch):
    write = twins._write

    def too_late(path, *arguments):
        write(path, *arguments)
        raise FileExistsError(path)

    monkeypatch.setattr(twins, "_write", too_late)
    assert synthetic_twin("tiny", tmp_path, num_clients=9, progress=False)["train"].num_clients == 9


def test_a_twin_is_opened_and_not_written_twice(tmp_path, monkeypatch):
    first = synthetic_twin("tiny", tmp_path, num_clients=9, progress=False)["train"]
    monkeypatch.setattr(StoreWriter, "add_many", None)
    again = synthetic_twin("tiny", tmp_path, num_clients=9, progress=False)["train"]
    assert again.fingerprint == first.fingerprint
    for change in ({"seed": 1}, {"num_clients": 8}, {"mean_examples": 1.5}):
        with pytest.raises(FileExistsError, match="a twin needs a path that is free or has the same twin"):
            synthetic_twin("tiny", tmp_path, **{"num_clients": 9, "progress": False, **change})


def test_a_crash_leaves_nothing(tmp_path, monkeypatch):
    def crash(block):
        raise OSError("the disk is gone")

    monkeypatch.setitem(twins.TWINS, "tiny", twins.TWINS["tiny"]._replace(content=crash))
    with pytest.raises(OSError, match="the disk is gone"):
        synthetic_twin("tiny", tmp_path, num_clients=9, progress=False)
    assert not list(tmp_path.iterdir())


def test_central_test_sets_are_in_parts(tmp_path):
    test = synthetic_twin("cifar10", tmp_path, num_clients=210, progress=False)["test"]
    assert test.client_ids(np.arange(3)) == ["test_00000", "test_00001", "test_00002"]
    assert test.sizes[:].tolist() == [1000, 1000, 100]
    assert Store(tmp_path / "twin_of_cifar10-train").sizes[:].tolist() == [50] * 210


@pytest.mark.parametrize("change", [{"seed": -1}, {"num_clients": 0}, {"mean_examples": 0.5}])
def test_arguments_out_of_range(tmp_path, change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"^{name} must be .*; got {name}={value}"):
        synthetic_twin("emnist", tmp_path, **change)
    with pytest.raises(ValueError, match=r"name must be one of .*emnist.*; got name='mnist'"):
        synthetic_twin("mnist", tmp_path)
    with pytest.raises(ValueError, match=r"one of 'train', 'test'; got split='val'"):
        twin_source("emnist", "val")
