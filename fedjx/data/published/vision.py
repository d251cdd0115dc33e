"""EMNIST, CIFAR and CelebA, as bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from fedjx.core.language.checks import check_choice
from fedjx.core.language.types import ArrayType
from fedjx.data import importers
from fedjx.data.importers import cifar
from fedjx.data.importers.idx import packed_mnist
from fedjx.data.partitions import dirichlet_by_client_partition, iid_partition
from fedjx.data.preprocess import preprocess
from fedjx.data.published import files
from fedjx.data.published.images import as_bytes, emnist_domain, stacked
from fedjx.data.published.stores import CENTRAL, CENTRAL_ID, Container, DataSet, tff_containers, without_metadata
from fedjx.data.source import Client, Source, with_metadata

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
    *,
    digits_only: bool = False,
    dtype: Literal["uint8", "float32"] = "uint8",
) -> DataSet:
    """Returns Federated EMNIST, characters of 3,400 writers, or digits of 3,383.

    Features: ``pixels`` ``[n, 28, 28]``, the background is 255 or 1.0, and ``label`` uint8 ``[n]``: 0 to 9 the
    digits, 10 to 35 A to Z, 36 to 61 a to z. Splits: train, test, both with all writers. Metadata: ``domain_id``, see
    `emnist_domain`. `emnist_recognition`, `emnist_inverted` and `emnist_autoencoder` make batches of them.

    Its files are TFF's `emnist_all.sqlite.lzma`, unpacked or not, its retired HDF5 files or FedJAX's databases.

    Args:
      digits_only: Whether only the digits.
      dtype: Of the pixels. As bytes they take a quarter of the space, and nothing is lost, which is checked.
    """
    check_choice(("uint8", "float32"), dtype=dtype)
    features = {"pixels": ArrayType((28, 28), np.float32), "label": ArrayType((), np.uint8)}
    spelled, stem = ("digits_only", "emnist_digitsonly") if digits_only else ("all", "emnist")
    splits = {"train": f"{spelled}_train", "test": f"{spelled}_test"}

    def prepare(source: Source, directory: Path) -> Source:
        writers = with_metadata(source, lambda client: {"domain_id": emnist_domain(client.id)})  # type: ignore[arg-type]
        return preprocess(writers, as_bytes()) if dtype == "uint8" else writers

    name = "emnist_digits" if digits_only else "emnist"
    return DataSet(
        name,
        f"{name}-{dtype}",
        tff_containers("emnist_all", splits, features, hdf5=f"fed_{stem}", fedjax=f"federated_{stem}"),
        prepare=prepare,
    )


def mnist(path: str | Path, *, check_files: bool = True) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads MNIST from the archive that `make data` fetches, an npm package with the four original files.

    MNIST has no clients: distribute the training set with `iid_partition` or `shards_partition`.

    Args:
      path: The archive, a directory with it, or one with the four files, as `fedjx.data.importers.mnist` reads them.
      check_files: Whether the archive is compared with its published size and checksum.

    Returns:
      The training set, 60,000 images, and the test set, 10,000: images ``x`` uint8 ``[N, 28, 28, 1]``, 0 where nothing
      is written, and labels ``y`` uint8 ``[N]``.

    Raises:
      FileNotFoundError: If nothing of that is there; says what to do, the size and the checksum.
      ValueError: If a file is not the published one, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        patterns = [f"{part}-{what}*ubyte*" for part in ("train", "t10k") for what in ("images", "labels")]
        if files.found(path, "mnist", [[files.MNIST], patterns]):
            return importers.mnist(path)
        path = path / files.MNIST
    if check_files:
        files.check(path)
    return packed_mnist(path)


def cifar100() -> DataSet:
    """Returns TFF's CIFAR-100, drawn for 500 clients of 100 images by Pachinko allocation, and 100 others for the test.

    Features: ``image`` uint8 ``[n, 32, 32, 3]``, ``label`` uint8 ``[n]``, 0 to 99, and ``coarse_label`` uint8 ``[n]``,
    0 to 19. Splits: train, test. `cifar_standardised` makes TFF's batches of them, `cifar_normalised` FedJAX's.

    Its files are TFF's `cifar100.sqlite.lzma`, unpacked or not, its retired HDF5 files or FedJAX's databases.
    """
    features = {name: ArrayType((), np.uint8) for name in ("label", "coarse_label")}
    features["image"] = ArrayType((32, 32, 3), np.uint8)
    return DataSet(
        "cifar100",
        "cifar100",
        tff_containers(
            "cifar100", {"train": "train", "test": "test"}, features, hdf5="fed_cifar100", fedjax="federated_cifar100"
        ),
        prepare=lambda source, directory: without_metadata(source),
    )


def celeba(
    *,
    by: Literal["client", "example"] = "client",
) -> DataSet:
    """Returns TFF's CelebA, portraits of 9,343 celebrities.

    Features: ``image`` uint8 ``[n, 84, 84, 3]`` and ``attributes`` bool ``[n, 40]``, the `CELEBA_ATTRIBUTES`. Splits:
    train, test.

    Its files are TFF's `celeba.sqlite.lzma`, unpacked or not.

    Args:
      by: Whether other celebrities are in the test set, or other images of the same.
    """
    check_choice(("client", "example"), by=by)
    features = {name: ArrayType((), np.bool_) for name in CELEBA_ATTRIBUTES}
    features["image"] = ArrayType((84, 84, 3), np.uint8)
    return DataSet(
        f"celeba_by_{by}",
        f"celeba_by_{by}",
        tff_containers("celeba", {split: f"split_by_{by}s_{split}" for split in ("train", "test")}, features),
        prepare=lambda source, directory: preprocess(
            without_metadata(source), stacked("attributes", CELEBA_ATTRIBUTES)
        ),
    )


def cifar10(
    *,
    num_clients: int = 1000,
    alpha: float | None = None,
    seed: int = 0,
) -> DataSet:
    """Returns CIFAR-10, whose training images are distributed over clients.

    Features: ``image`` uint8 ``[n, 32, 32, 3]`` and ``label`` uint8 ``[n]``. Splits: train; test, the central test set,
    in parts of 1,000. `cifar_standardised` and `cifar_normalised` make batches of them.

    Its files are the six of the binary version, `cifar-10-binary.tar.gz`, unpacked.

    Args:
      num_clients: Number of clients, all with equally many images; the benchmark of pfl-research has 1,000.
      alpha: Concentration of the label skew, for each class, as in that benchmark, which has 0.1; see
        `dirichlet_by_client_partition`. By default there is no skew.
      seed: Of the partition.
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
    return DataSet(
        "cifar10",
        f"cifar10-{num_clients}-{skew}-{seed}",
        [Container({"train": "data_batch_1.bin", "test": "test_batch.bin"}, read)],
        prepare=lambda source, directory: source._replace(
            provenance={"num_clients": num_clients, "alpha": alpha, "seed": seed, **source.provenance}
        ),
    )


def _distributed(examples: Mapping[str, np.ndarray], partition: Mapping[str, np.ndarray]) -> Source:
    def clients() -> Iterator[Client]:
        for client_id, rows in partition.items():
            yield Client(client_id, {name: column[rows] for name, column in examples.items()})

    return Source(clients, len(partition))
