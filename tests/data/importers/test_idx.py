"""Tests of reading IDX files and EMNIST's files for MATLAB, small ones in the real formats, whole and damaged."""

import gzip
import struct

import numpy as np
import pytest
import scipy.io

from fedjx.data import FederatedData, Store, iid_partition, shards_partition, write_store
from fedjx.data.__main__ import main
from fedjx.data.importers import emnist, emnist_writers, idx, mnist
from tests.data.damage import damaged

CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
NUM_EXAMPLES = 12


def packed(array, dtype="u1"):
    """An array in IDX, made a number at a time."""
    header = bytes([0, 0, CODES[dtype], array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return header + b"".join(np.array(x, dtype).tobytes() for x in array.reshape(-1))


def pictures(seed, n=NUM_EXAMPLES):
    return np.random.default_rng(seed).integers(0, 256, (n, 28, 28)).astype(np.uint8)


def labels(n=NUM_EXAMPLES):
    return (np.arange(n) % 3).astype(np.uint8)


def written(directory, train="train", test="t10k", end="", pack=bytes):
    for k, name in enumerate((train, test)):
        (directory / f"{name}-images-idx3-ubyte{end}").write_bytes(pack(packed(pictures(k))))
        (directory / f"{name}-labels-idx1-ubyte{end}").write_bytes(pack(packed(labels())))
    return directory


@pytest.mark.parametrize("dtype", CODES)
def test_every_type_of_idx_is_read(dtype, tmp_path):
    array = np.array([[1, 2, 3], [4, 5, 100]])
    for pack in (bytes, gzip.compress):
        (tmp_path / "a").write_bytes(pack(packed(array, dtype)))
        found = idx(tmp_path / "a")
        assert found.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_mnist_keeps_its_one_channel(tmp_path, pack):
    pair = mnist(written(tmp_path, end=".gz" if pack is gzip.compress else "", pack=pack))
    for k, examples in enumerate(pair):
        np.testing.assert_array_equal(examples["x"], pictures(k)[..., None])
        np.testing.assert_array_equal(examples["y"], labels())
        assert examples["x"].dtype == examples["y"].dtype == np.uint8


def test_emnist_stands_upright_from_both_its_forms(tmp_path):
    written(tmp_path, "emnist-letters-train", "emnist-letters-test", ".gz", gzip.compress)
    part = {"images": pictures(0).reshape(-1, 784), "labels": labels()[:, None], "writers": np.arange(12)[:, None] // 4}
    scipy.io.savemat(tmp_path / "emnist-digits.mat", {"dataset": {"train": part, "test": part, "mapping": np.eye(2)}})
    for found in (emnist(tmp_path, subset="letters")[0], emnist(tmp_path, subset="digits")[1]):
        np.testing.assert_array_equal(found["x"], pictures(0).swapaxes(1, 2)[..., None])
        np.testing.assert_array_equal(found["y"], labels())
    store = write_store(tmp_path / "s", emnist_writers(tmp_path / "emnist-digits.mat"), progress=False)
    assert (store.num_clients, store.client_ids([0, 2])) == (3, [0, 2])
    np.testing.assert_array_equal(store.client(1)["x"], pictures(0)[4:8].swapaxes(1, 2)[..., None])
    with pytest.raises(FileNotFoundError, match="images need their IDX file; there is no emnist-byclass-train-images"):
        emnist(tmp_path, subset="byclass")


def test_mnist_is_distributed_in_two_lines_and_by_the_command(tmp_path, capsys):
    train, _ = mnist(written(tmp_path))
    iid = FederatedData.from_partition(train, iid_partition(len(train["y"]), 3, seed=0))
    shards = FederatedData.from_partition(train, shards_partition(train["y"], 3, shards_per_client=2, seed=0))
    assert iid.sizes.tolist() == shards.sizes.tolist() == [4, 4, 4]
    images = str(tmp_path / "train-images-idx3-ubyte")
    tail = ["3", "--seed", "0", "--output"]
    assert main(["partition", "shards", images, *tail, str(tmp_path / "s"), "--labels", "y"]) == 0
    store = Store(tmp_path / "s")
    np.testing.assert_array_equal(store.client(2)["x"], shards.client(2)["x"])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(packed(labels(11)))
    assert main(["partition", "iid", images, *tail, str(tmp_path / "t")]) == 1
    assert "with a label each; got uint8 of shapes {'x': [12, 28, 28], 'y': [11]}" in capsys.readouterr().err


def test_damaged_files_are_refused_or_whole(tmp_path):
    """Of each cut copy and each flipped bit: an error that names the file, or an array of the form that it had."""
    path, array = tmp_path / "a", np.arange(60).reshape(3, 4, 5)
    for pack in (bytes, gzip.compress):
        for name, copy in damaged(pack(packed(array)), 300):
            path.write_bytes(copy)
            try:
                assert idx(path).nbytes == 60, name
            except ValueError as error:
                problem = str(error)
            else:
                problem = ""
            assert not problem or problem.startswith(f"an IDX file needs to be whole and as the format says; {path} is")
            assert problem or not name.startswith("cut"), name


def test_a_header_takes_no_memory_that_the_file_cannot_fill(tmp_path):
    path = tmp_path / "a"
    for pack in (bytes, gzip.compress):
        path.write_bytes(pack(bytes([0, 0, 14, 3]) + b"\xff" * 12))
        with pytest.raises(ValueError, match=f"it is cut: .* take {8 * (2**32 - 1) ** 3} bytes"):
            idx(path)


def test_damaged_matlab_files_are_refused_or_whole(tmp_path):
    path = tmp_path / "emnist-mnist.mat"
    part = {"images": pictures(0).reshape(-1, 784), "labels": labels()[:, None], "writers": labels()[:, None]}
    scipy.io.savemat(path, {"dataset": {"train": part, "test": part}}, do_compression=True)
    problems = []
    for _, copy in damaged(path.read_bytes(), 100):
        path.write_bytes(copy)
        try:
            assert emnist(tmp_path, subset="mnist")[0]["x"].shape == (NUM_EXAMPLES, 28, 28, 1)
        except ValueError as error:
            problems.append(str(error))
    assert len(problems) > 80
    assert all(str(path) in problem for problem in problems)
