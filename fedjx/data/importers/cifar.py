"""Reads the binary files of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedjx.data.importers.files import PathLike

_PIXELS = 32 * 32 * 3
_NUM_EXAMPLES = {**{f"data_batch_{k}.bin": 10_000 for k in range(1, 6)}, "test_batch.bin": 10_000}
_NUM_EXAMPLES_100 = {"train.bin": 50_000, "test.bin": 10_000}


def cifar(directory: PathLike) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads CIFAR-10 or CIFAR-100, whichever the directory holds in its binary version.

    These have no clients: distribute the training set with a partitioner.

    Args:
      directory: With `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or `train.bin` and `test.bin`.

    Returns:
      The training set and the test set: ``image`` uint8 ``[N, 32, 32, 3]`` and ``label`` uint8 ``[N]``, and for
      CIFAR-100 ``coarse_label`` uint8 ``[N]`` too.

    Raises:
      FileNotFoundError: If a file is missing.
      ValueError: If a file has not the published size, or a label that does not exist.
    """
    directory = Path(directory)
    is_100 = (directory / "train.bin").exists()
    sizes = _NUM_EXAMPLES_100 if is_100 else _NUM_EXAMPLES
    num_classes = {"coarse_label": 20, "label": 100} if is_100 else {"label": 10}
    missing = [name for name in sizes if not (directory / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"CIFAR needs its binary files; {', '.join(missing)} are not in {directory}. Unpack them there."
        )
    train = {name: size for name, size in sizes.items() if not name.startswith("test")}
    test = {name: size for name, size in sizes.items() if name.startswith("test")}
    return _split(directory, train, num_classes), _split(directory, test, num_classes)


def _split(directory: Path, sizes: Mapping[str, int], num_classes: Mapping[str, int]) -> dict[str, np.ndarray]:
    total = sum(sizes.values())
    images = np.empty((total, 32, 32, 3), np.uint8)
    labels = {name: np.empty(total, np.uint8) for name in num_classes}
    start = 0
    for name, size in sizes.items():
        records = _records(directory / name, size, len(num_classes))
        for place, (label, number) in enumerate(num_classes.items()):
            column = records[:, place]
            if column.max() >= number:
                raise ValueError(
                    f"labels need to be less than {number}; got {column.max()} for {label!r} in {directory / name}. "
                    "Fetch it again."
                )
            labels[label][start : start + size] = column
        # A record has the planes of red, green and blue one after the other.
        planes = records[:, len(num_classes) :].reshape(size, 3, 32, 32)
        images[start : start + size] = planes.transpose(0, 2, 3, 1)
        start += size
    return {"image": images, "label": labels.pop("label"), **labels}


def _records(path: Path, size: int, num_labels: int) -> np.ndarray:
    record = num_labels + _PIXELS
    found = path.stat().st_size
    if found != size * record:
        raise ValueError(f"{path} needs {size * record} bytes, as published; got {found}. Fetch it again.")
    return np.fromfile(path, np.uint8).reshape(size, record)
