"""What a published data set is, and one `open`: of its stores, or of the published files where there are none yet."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fedjx.core.language.types import ArrayType
from fedjx.data.importers import fedjax_sqlite, tff_hdf5, tff_sqlite
from fedjx.data.published import files
from fedjx.data.source import Source, with_metadata, write_store
from fedjx.data.store import Store

# What `num_examples` of a published count is compared with, where examples are not what was published.
PUBLISHED_EXAMPLES = "num_published_examples"

# A central test set is in a store as parts of so many examples, so that none is too large to read, called so.
CENTRAL = 1000
CENTRAL_ID = "test_%05d"


class Container(NamedTuple):
    """One of the forms in which a data set is published.

    Attributes:
      files: The file of each split, or a pattern of which the first that fits stands for all.
      read: From the path of a file and a split to its clients.
    """

    files: Mapping[str, str]
    read: Callable[[Path, str], Source]


def without_metadata(source: Source) -> Source:
    """Returns the clients of a source, with nothing said of them."""
    return with_metadata(source, lambda client: {})


def tff_containers(
    stem: str,
    splits: Mapping[str, str],
    features: Mapping[str, ArrayType],
    *,
    hdf5: str = "",
    fedjax: str = "",
) -> list[Container]:
    """Returns the forms in which TFF's data sets are published.

    Args:
      stem: Of the database, `<stem>.sqlite.lzma`, which has all splits.
      splits: How it spells each split.
      features: What is read of an example.
      hdf5: Stem of the HDF5 files, one for a split, where there are some.
      fedjax: Stem of FedJAX's databases, one for a split, where there are some.
    """

    def sqlite(path: Path, split: str) -> Source:
        return tff_sqlite(path, split=splits[split], features=features)

    containers = [Container(dict.fromkeys(splits, stem + end), sqlite) for end in (".sqlite.lzma", ".sqlite")]
    spelled = {split: "held_out" if split == "heldout" else split for split in splits}
    if hdf5:
        names = {split: f"{hdf5}_{spelling}.h5" for split, spelling in spelled.items()}
        containers.append(Container(names, lambda path, split: tff_hdf5(path, features=features)))
    if fedjax:
        names = {split: f"{fedjax}_{spelling}.sqlite" for split, spelling in spelled.items()}
        containers.append(Container(names, lambda path, split: fedjax_sqlite(path, features=features)))
    return containers


class DataSet(NamedTuple):
    """A published data set: its files, and how stores are made of them; `open` opens it.

    Attributes:
      name: As published; `files.COUNTS` are compared under it.
      stem: Begins what the stores are called, and says all on which their examples depend.
      containers: The forms in which it is published, in the order in which they are looked for.
      prepare: Maps the clients of a split on their way into a store, given the directory of the files.
      others: Files that an import needs besides.
    """

    name: str
    stem: str
    containers: Sequence[Container]
    prepare: Callable[[Source, Path], Source] = lambda source, directory: source
    others: Sequence[str] = ()


def open(
    data_set: DataSet, directory: str | Path, *, check_files: bool = True, progress: bool = True
) -> dict[str, Store]:
    """Opens the store of each split of a published data set, after importing those that are missing.

    Args:
      data_set: One of `DATA_SETS`, called with its options, such as ``emnist(digits_only=True)``.
      directory: A directory with the published files, at the first call; the stores go there too.
      check_files: Whether sizes and checksums are compared with the published ones before an import.
      progress: Whether an import shows a bar on stderr.

    Returns:
      The store of each split. Counts that are not as published are warnings.

    Raises:
      FileNotFoundError: If neither stores nor files are there; names the files, their checksums and their places.
      ValueError: If a file is not the published one, or is malformed.
    """
    if not isinstance(data_set, DataSet):
        raise TypeError(
            f"open takes a description of a data set; got {data_set!r}. Call one of published.DATA_SETS: emnist()."
        )
    directory = Path(directory)
    paths = {split: directory / f"{data_set.stem}-{split}" for split in data_set.containers[0].files}
    missing = [split for split in paths if not paths[split].exists()]
    if missing:
        alternatives = [[*container.files.values(), *data_set.others] for container in data_set.containers]
        container = data_set.containers[files.found(directory, data_set.name, alternatives)]
        if check_files:
            for file in sorted({*(container.files[split] for split in missing), *data_set.others}):
                files.check(files.first(directory, file), progress=progress)
        for split in missing:
            source = container.read(files.first(directory, container.files[split]), split)
            _write(paths[split], _named(data_set.prepare(source, directory), data_set.name, split), progress)
    stores = {split: Store(path) for split, path in paths.items()}
    compare(stores, data_set.name)
    return stores


def compare(stores: Mapping[str, Store], published: str) -> None:
    """Warns of each split that has not as many clients or examples as were published."""
    for split, store in stores.items():
        expected = files.COUNTS.get(published, {}).get(split, files.Count())
        num_examples = store.num_examples
        if PUBLISHED_EXAMPLES in store.manifest["metadata"]:
            num_examples = int(store.metadata(PUBLISHED_EXAMPLES).sum())
        counts = files.Count(store.num_clients, num_examples)
        different = [
            f"{field} {count} instead of {wanted}"
            for field, count, wanted in zip(counts._fields, counts, expected, strict=True)
            if wanted not in (None, count)
        ]
        if different:
            warnings.warn(f"{published}, {split}, is not as published: {', '.join(different)}", stacklevel=3)


def _write(path: Path, source: Source, progress: bool) -> None:
    try:
        write_store(path, source, progress=progress)
    except FileExistsError:
        Store(path)  # Another process was faster.


def _named(source: Source, name: str, split: str) -> Source:
    return source._replace(provenance={"dataset": name, "split": split, **source.provenance})
