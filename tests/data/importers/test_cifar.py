"""Tests of reading CIFAR's binary files, against records made one pixel at a time."""

import pytest

from fedjx.data.importers import cifar
from fedjx.data.importers.cifar import _NUM_EXAMPLES, _NUM_EXAMPLES_100


def record(labels, number):
    """A record whose pixel (row, column, channel) is a known number."""
    planes = bytes(
        (number + 3 * row + 5 * column + 7 * channel) % 256
        for channel in range(3)
        for row in range(32)
        for column in range(32)
    )
    return bytes(labels) + planes


@pytest.fixture
def few(monkeypatch):
    """Files of three records instead of ten or fifty thousand."""
    for sizes in (_NUM_EXAMPLES, _NUM_EXAMPLES_100):
        for name in sizes:
            monkeypatch.setitem(sizes, name, 3)


def written(directory, sizes, num_labels, largest=10):
    for k, name in enumerate(sizes):
        (directory / name).write_bytes(b"".join(record([(k + n) % largest] * num_labels, 10 * k + n) for n in range(3)))


def test_sizes_are_the_published_ones():
    assert {size * 3073 for size in _NUM_EXAMPLES.values()} == {30_730_000}
    assert [size * 3074 for size in _NUM_EXAMPLES_100.values()] == [153_700_000, 30_740_000]
    assert list(_NUM_EXAMPLES) == [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]


def test_planes_become_pixels(tmp_path, few):
    written(tmp_path, _NUM_EXAMPLES, 1)
    train, test = cifar(tmp_path)
    assert train["image"].shape == (15, 32, 32, 3)
    assert train["label"].tolist() == [k + n for k in range(5) for n in range(3)]
    for k, n, row, column, channel in ((0, 0, 0, 0, 0), (4, 2, 31, 7, 1), (2, 1, 7, 31, 2)):
        assert (
            train["image"][3 * k + n, row, column, channel] == (10 * k + n + 3 * row + 5 * column + 7 * channel) % 256
        )
    assert test["image"][1, 2, 3, 1] == 51 + 6 + 15 + 7
    assert sorted(train) == ["image", "label"]
    assert train["image"].flags.c_contiguous


def test_cifar_100_has_two_labels(tmp_path, few):
    (tmp_path / "train.bin").write_bytes(b"".join(record([19 - n, 99 - n], n) for n in range(3)))
    (tmp_path / "test.bin").write_bytes(b"".join(record([n, n], n) for n in range(3)))
    train, test = cifar(tmp_path)
    assert train["coarse_label"].tolist() == [19, 18, 17]
    assert train["label"].tolist() == [99, 98, 97]
    assert test["image"].shape == (3, 32, 32, 3)


def test_files_that_are_missing_cut_or_corrupt_are_refused(tmp_path, few):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin, .*test_batch\.bin are not in"):
        cifar(tmp_path)
    written(tmp_path, _NUM_EXAMPLES, 1)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-3073], whole + b"\0", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data_batch_3\.bin needs 9219 bytes, as published"):
            cifar(tmp_path)
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(ValueError, match=r"less than 10; got 10 for 'label' in .*data_batch_3\.bin"):
        cifar(tmp_path)
