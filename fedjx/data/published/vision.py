"""EMNIST, CIFAR and CelebA: opens them as stores of bytes, or imports them from the published files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from fedjx.core.language.checks import check_choice
from fedjx.core.language.types import ArrayType
from fedjx.data.importers import cifar
from fedjx.data.partitions import dirichlet_by_client_partition, iid_partition
from fedjx.data.preprocess import preprocess
from fedjx.data.published.images import as_bytes, emnist_domain, stacked
from fedjx.data.published.stores import CENTRAL, CENTRAL_ID, Container, opened, tff_containers
from fedjx.data.source import Client, Source, with_metadata
from fedjx.data.store import Store

# fmt: off
CELEBA_ATTRIBUTES = (
    "five_o_clock_shadow", "arched_eyebrows", "attractive", "bags_under_eyes", "bald", "bangs", "big_lips", "big_nose",
    "black_hair", "blond_hair", "blurry", "brown_hair", "bushy_eyebrows", "chubby", "double_chin", "eyeglasses",
    "goatee", "gray_hair", "heavy_makeup", "high_cheekbones", "male", "mouth_slightly_open", "mustache", "narrow_eyes",
    "no_beard", "oval_face", "pale_skin", "pointy_nose", "receding_hairline", "rosy_cheeks", "sideburns", "smiling",
    "straight_hair", "wavy_hair", "wearing_earrings", "wearing_hat", "wearing_lipstick", "wearing_necklace",
    "wearing_necktie", "young",
)
# fmt: on


def emnist(
    directory: str | Path,
    *,
    digits_only: bool = False,
    dtype: Literal["uint8", "float32"] = "uint8",
    check_files: bool = True,
    progress: bool = True,
) -> dict[str, Store]:
    """Opens Federated EMNIST, characters of 3,400 writers, or digits of 3,383.

    Features: ``pixels`` ``[n, 28, 28]``, the background is 255 or 1.0, and ``label`` uint8 ``[n]``: 0 to 9 the
    digits, 10 to 35 A to Z, 36 to 61 a to z. Splits: train, test, both with all writers. Metadata: ``domain_id``, see
    `emnist_domain`. `emnist_recognition`, `emnist_inverted` and `emnist_autoencoder` make batches of them.

    Args:
      directory: With TFF's `emnist_all.sqlite.lzma`, unpacked or not, its retired HDF5 files or FedJAX's
        databases, at the first call, which makes the stores there.
      digits_only: Whether only the digits.
      dtype: Of the pixels. As bytes they take a quarter of the space, and nothing is lost, which is checked.
      check_files: Whether sizes and checksums are compared with the published ones before an import.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split. Counts that are not as published are warnings.

    Raises:
      FileNotFoundError: If neither stores nor files are there; names the file, its checksum and its place.
      ValueError: If a file is not the published one, or is malformed, or pixels are not bytes / 255.
    """
    check_choice(("uint8", "float32"), dtype=dtype)
    features = {"pixels": ArrayType((28, 28), np.float32), "label": ArrayType((), np.uint8)}
    spelled, stem = ("digits_only", "emnist_digitsonly") if digits_only else ("all", "emnist")
    splits = {"train": f"{spelled}_train", "test": f"{spelled}_test"}

    def prepare(source: Source) -> Source:
        writers = with_metadata(source, lambda client: {"domain_id": emnist_domain(client.id)})  # type: ignore[arg-type]
        return preprocess(writers, as_bytes()) if dtype == "uint8" else writers

    return opened(
        directory,
        f"{'emnist_digits' if digits_only else 'emnist'}-{dtype}",
        tff_containers("emnist_all", splits, features, hdf5=f"fed_{stem}", fedjax=f"federated_{stem}"),
        published="emnist_digits" if digits_only else "emnist",
        check_files=check_files,
        progress=progress,
        prepare=prepare,
    )


def cifar100(directory: str | Path, *, check_files: bool = True, progress: bool = True) -> dict[str, Store]:
    """Opens TFF's CIFAR-100, drawn for 500 clients of 100 images by Pachinko allocation, and 100 others for the test.

    Features: ``image`` uint8 ``[n, 32, 32, 3]``, ``label`` uint8 ``[n]``, 0 to 99, and ``coarse_label`` uint8 ``[n]``,
    0 to 19. Splits: train, test. `cifar_standardised` makes TFF's batches of them, `cifar_normalised` FedJAX's.

    Args:
      directory: With TFF's `cifar100.sqlite.lzma`, unpacked or not, its retired HDF5 files or FedJAX's databases,
        at the first call, which makes the stores there.
      check_files: Whether sizes and checksums are compared with the published ones before an import.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split. Counts that are not as published are warnings.

    Raises:
      FileNotFoundError: If neither stores nor files are there; names the file, its checksum and its place.
      ValueError: If a file is not the published one, or is malformed.
    """
    features = {name: ArrayType((), np.uint8) for name in ("label", "coarse_label")}
    features["image"] = ArrayType((32, 32, 3), np.uint8)
    return opened(
        directory,
        "cifar100",
        tff_containers(
            "cifar100", {"train": "train", "test": "test"}, features, hdf5="fed_cifar100", fedjax="federated_cifar100"
        ),
        published="cifar100",
        check_files=check_files,
        progress=progress,
        prepare=lambda source: with_metadata(source, lambda client: {}),
    )


def celeba(
    directory: str | Path,
    *,
    by: Literal["client", "example"] = "client",
    check_files: bool = True,
    progress: bool = True,
) -> dict[str, Store]:
    """Opens TFF's CelebA, portraits of 9,343 celebrities.

    Features: ``image`` uint8 ``[n, 84, 84, 3]`` and ``attributes`` bool ``[n, 40]``, the `CELEBA_ATTRIBUTES`. Splits:
    train, test.

    Args:
      directory: With TFF's `celeba.sqlite.lzma`, unpacked or not, at the first call, which makes the stores there.
      by: Whether other celebrities are in the test set, or other images of the same.
      check_files: Whether sizes and checksums are compared with the published ones before an import.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split. Counts that are not as published are warnings.

    Raises:
      FileNotFoundError: If neither stores nor files are there; names the file, its checksum and its place.
      ValueError: If a file is not the published one, or is malformed.
    """
    check_choice(("client", "example"), by=by)
    features = {name: ArrayType((), np.bool_) for name in CELEBA_ATTRIBUTES}
    features["image"] = ArrayType((84, 84, 3), np.uint8)
    return opened(
        directory,
        f"celeba_by_{by}",
        tff_containers("celeba", {split: f"split_by_{by}s_{split}" for split in ("train", "test")}, features),
        published=f"celeba_by_{by}",
        check_files=check_files,
        progress=progress,
        prepare=lambda source: preprocess(
            with_metadata(source, lambda client: {}), stacked("attributes", CELEBA_ATTRIBUTES)
        ),
    )


def cifar10(
    directory: str | Path,
    *,
    num_clients: int = 1000,
    alpha: float | None = None,
    seed: int = 0,
    check_files: bool = True,
    progress: bool = True,
) -> dict[str, Store]:
    """Opens CIFAR-10, whose training images are distributed over clients.

    Features: ``image`` uint8 ``[n, 32, 32, 3]`` and ``label`` uint8 ``[n]``. Splits: train; test, the central test set,
    in parts of 1,000. `cifar_standardised` and `cifar_normalised` make batches of them.

    Args:
      directory: With the six files of the binary version, `cifar-10-binary.tar.gz`, unpacked, at the first call, which
        makes the stores there.
      num_clients: Number of clients, all with equally many images; the benchmark of pfl-research has 1,000.
      alpha: Concentration of the label skew, for each class, as in that benchmark, which has 0.1; see
        `dirichlet_by_client_partition`. By default there is no skew.
      seed: Of the partition.
      check_files: Whether the sizes of the files are compared with the published ones.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split.

    Raises:
      FileNotFoundError: If neither stores nor files are there; names the files and their places.
      ValueError: If a file is not the published one, or an argument is out of range.
    """

    def read(path: Path, split: str) -> Source:
        train, test = cifar(path.parent)
        if split == "test":
            starts = range(0, len(test["label"]), CENTRAL)
            return _distributed(test, {CENTRAL_ID % k: np.arange(j, j + CENTRAL) for k, j in enumerate(starts)})
        if alpha is None:
            partition = iid_partition(len(train["label"]), num_clients, seed=seed)
        else:
            partition = dirichlet_by_client_partition(
                train["label"], num_clients, alpha=alpha, seed=seed, concentration="per_class"
            )
        return _distributed(train, {str(k): rows for k, rows in enumerate(partition)})

    skew = "iid" if alpha is None else f"dirichlet-{alpha}"
    return opened(
        directory,
        f"cifar10-{num_clients}-{skew}-{seed}",
        [Container({"train": "data_batch_1.bin", "test": "test_batch.bin"}, read)],
        published="cifar10",
        check_files=check_files,
        progress=progress,
        prepare=lambda source: source._replace(
            provenance={"num_clients": num_clients, "alpha": alpha, "seed": seed, **source.provenance}
        ),
    )


def _distributed(examples: Mapping[str, np.ndarray], partition: Mapping[str, np.ndarray]) -> Source:
    def clients() -> Iterator[Client]:
        for client_id, rows in partition.items():
            yield Client(client_id, {name: column[rows] for name, column in examples.items()})

    return Source(clients, len(partition))
