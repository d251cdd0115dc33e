"""Reads IDX files, in which MNIST, Fashion-MNIST and NIST's EMNIST are published, and EMNIST's `.mat` files."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedjx.data.importers.arrays import arrays
from fedjx.data.importers.features import cast
from fedjx.data.importers.files import PathLike, files, provenance, reading
from fedjx.data.importers.tars import tar_files
from fedjx.data.source import Source

Examples = dict[str, np.ndarray]

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_RATIO = 1100  # Deflate makes nothing smaller than by this.
_MAX_MEMBER = 1 << 28
_EMNIST = "emnist-"  # Files whose names begin so have images with rows and columns exchanged.
_SUBSETS = Literal["balanced", "byclass", "bymerge", "digits", "letters", "mnist"]


def idx(path: PathLike) -> np.ndarray:
    """Reads an array in the IDX format, compressed with gzip or not.

    Args:
      path: The file.

    Returns:
      The array, in its own dtype and the machine's order of bytes.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is no IDX file, cut or too long.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "labels-idx1-ubyte")
    >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))
    >>> idx(path)
    array([5, 0, 4], dtype=uint8)
    """
    (path,) = files(path)
    with reading(path, "an IDX file"), open(path, "rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        # What unpacks to more than can be is refused before it takes memory.
        most = path.stat().st_size * (_MAX_RATIO if is_packed else 1)
        return _array(gzip.GzipFile(fileobj=file) if is_packed else file, most)


def _array(file: io.BufferedIOBase, most: int) -> np.ndarray:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _DTYPES or not start[3]:
        raise ValueError(f"it begins with {start.hex(' ') or 'nothing'}, not with 00 00, a type and a number of axes")
    shape = np.frombuffer(file.read(4 * start[3]), ">u4").tolist()
    dtype = np.dtype(_DTYPES[start[2]])
    num_bytes = math.prod(shape) * dtype.itemsize
    if len(shape) < start[3] or num_bytes > most:
        raise ValueError(f"it is cut: {shape} of {dtype.name} take {num_bytes} bytes")
    content = file.read(num_bytes + 1)
    if len(content) != num_bytes:
        how = "cut" if len(content) < num_bytes else "too long"
        raise ValueError(f"it is {how}: {shape} of {dtype.name} take {num_bytes} bytes after the header")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def mnist(directory: PathLike) -> tuple[Examples, Examples]:
    """Reads MNIST, Fashion-MNIST, or another data set under MNIST's file names.

    `fedjx.data.published.mnist` reads MNIST from the archive of a package registry too.

    These have no clients: distribute the training set with a partitioner.

    Args:
      directory: With `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
        `t10k-labels-idx1-ubyte`, or the same with `.gz`.

    Returns:
      The training set and the test set: images ``x`` uint8 ``[N, 28, 28, 1]``, 0 where nothing is written, and labels
      ``y`` uint8 ``[N]``, as the networks of `fedjx.models` take them.

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If a file is cut or of another format, or there is no label for each image.
    """
    return _pair(directory, "train"), _pair(directory, "t10k")


def packed_mnist(archive: Path) -> tuple[Examples, Examples]:
    """Reads what `mnist` reads from a tar, in whichever folder the four files are.

    Raises:
      FileNotFoundError: If there is no such archive.
      ValueError: If it is damaged, holds links or files that lead out of it, or a file is missing or as in `mnist`.
    """
    contents = {Path(name).name: content for name, content in tar_files(archive, _MAX_MEMBER)}

    def pair(name: str) -> Examples:
        arrays = {}
        for feature, file in (("x", f"{name}-images-idx3-ubyte"), ("y", f"{name}-labels-idx1-ubyte")):
            if file not in contents:
                raise ValueError(f"it has no {file}")
            arrays[feature] = _array(io.BytesIO(contents[file]), len(contents[file]))
        return _checked(arrays, str(archive))

    with reading(archive, "an archive of MNIST"):
        return pair("train"), pair("t10k")


def emnist(directory: PathLike, *, subset: _SUBSETS = "balanced") -> tuple[Examples, Examples]:
    """Reads EMNIST as NIST publishes it, in IDX files or for MATLAB (Cohen et al. 2017, arXiv:1702.05373).

    Those for MATLAB say who wrote each character, for `natural_partition`. EMNIST by writers as TensorFlow Federated
    has it is `fedjx.data.published.emnist`.

    Args:
      directory: With `emnist-<subset>-train-images-idx3-ubyte`, likewise `-train-labels-idx1-ubyte`, `-test-images` and
        `-test-labels`, or the same with `.gz`; or with `emnist-<subset>.mat`.
      subset: Which of the six.

    Returns:
      The training set and the test set: images ``x`` uint8 ``[N, 28, 28, 1]``, upright (in the files they are not),
      and labels ``y`` uint8 ``[N]`` as in the files: those of "letters" are 1 to 26. From `.mat` also ``writer`` int32
      ``[N]``.

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If a file is cut or of another format, or there is no label for each image.
    """
    matlab = Path(directory) / f"emnist-{subset}.mat"
    if matlab.is_file():
        return emnist_mat(matlab, "train"), emnist_mat(matlab, "test")
    return _pair(directory, f"{_EMNIST}{subset}-train"), _pair(directory, f"{_EMNIST}{subset}-test")


def emnist_writers(path: PathLike, *, split: Literal["train", "test"] = "train") -> Source:
    """Reads EMNIST's file for MATLAB as clients, the writers.

    Args:
      path: Such as `emnist-byclass.mat`.
      split: Which part of it.

    Returns:
      The writers in increasing order of their numbers, with the features of `emnist`.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is cut or of another format.
    """
    examples = emnist_mat(path, split)
    clients = arrays({name: examples[name] for name in ("x", "y")}, examples["writer"])
    return clients._replace(provenance=provenance("emnist_writers", files(path), split=split))


def emnist_mat(path: PathLike, split: str) -> Examples:
    """Reads the training or the test set of one of EMNIST's files for MATLAB."""
    import scipy.io

    (path,) = files(path)
    with reading(path, "a .mat file of EMNIST"):
        part = scipy.io.loadmat(str(path), simplify_cells=True)["dataset"][split]
        images = np.asarray(part["images"]).reshape(-1, 28, 28)
        label, writer = (np.atleast_1d(part[name]) for name in ("labels", "writers"))
        examples = {"x": images, "y": cast("label", label, np.uint8), "writer": cast("writer", writer, np.int32)}
        return _upright(_checked(examples, f"its {split} set"))


def images_beside_labels(path: PathLike) -> Examples:
    """Reads an IDX file of images with that of their labels beside it, or the training set of EMNIST's `.mat`.

    Returns:
      The features of `mnist` or `emnist`.

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If a file is cut or of another format, or there is no label for each image.
    """
    (path,) = files(path)
    if path.suffix == ".mat":
        return emnist_mat(path, "train")
    name, found, _ = path.name.partition("-images")
    if not found:
        raise ValueError(f"images of IDX are in a file like train-images-idx3-ubyte; got {path}. Rename it.")
    return _pair(path.parent, name)


def _pair(directory: PathLike, name: str) -> Examples:
    """Reads the images and labels whose files begin with a name, with ``-idx`` or ``.idx``, packed or not."""
    found = {}
    for what, axes in (("images", 3), ("labels", 1)):
        names = [f"{name}-{what}{dot}idx{axes}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
        path = next((p for p in (Path(directory) / each for each in names) if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"{what} need their IDX file; there is no {names[0]}, or .gz, in {directory}. Put it there."
            )
        found[what] = path
    examples = _checked({"x": idx(found["images"]), "y": idx(found["labels"])}, str(found["images"]))
    return _upright(examples) if name.startswith(_EMNIST) else examples


def _checked(examples: Mapping[str, Any], where: str) -> Examples:
    """Returns examples whose features have a row each, and images one channel."""
    shapes = {name: list(np.shape(column)) for name, column in examples.items()}
    images = examples["x"]
    have_a_row_each = all(shape == [len(images)] for name, shape in shapes.items() if name != "x")
    if images.ndim != 3 or images.dtype != np.uint8 or not have_a_row_each:
        raise ValueError(
            f"images are uint8 [N, height, width], with a label each; got {images.dtype} of shapes {shapes} in "
            f"{where}. Take the files that belong together."
        )
    return {**examples, "x": images[..., None]}


def _upright(examples: Examples) -> Examples:
    return {**examples, "x": np.ascontiguousarray(examples["x"].swapaxes(1, 2))}
