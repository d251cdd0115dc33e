"""Synthetic twins of published data sets: same schema, sizes and skew, from a seed, at any scale."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from fedjx.core.language.checks import check_choice, check_integer, check_number
from fedjx.data.client_ids import ClientId
from fedjx.data.published import synthetic
from fedjx.data.published.images import emnist_domain
from fedjx.data.published.stores import CENTRAL, CENTRAL_ID, PUBLISHED_EXAMPLES
from fedjx.data.published.synthetic import Block, Content, Spread
from fedjx.data.published.text import SHAKESPEARE_VOCABULARY, token_ids
from fedjx.data.source import Client, Source
from fedjx.data.store import Store
from fedjx.data.store_writer import StoreWriter

# Changes with what is made of a seed.
_VERSION = 1
# Sizes are drawn for so many clients at once; their examples are made a few MB at a time.
_CLIENTS = 1 << 16
_BLOCK_BYTES = 1 << 22


class Split(NamedTuple):
    """A split of a twin.

    Attributes:
      num_clients: At full scale.
      mean: Examples of a client.
      kind: Whether the clients are the first of all, which other splits have too, are others than those of
        any split before it, or are parts of a central test set, of which `mean` is the size.
    """

    num_clients: int
    mean: float
    kind: Literal["shared", "own", "central"] = "shared"


class Twin(NamedTuple):
    """What a twin is like.

    Attributes:
      splits: By name; the first is the one that `num_clients` and `mean_examples` speak of.
      spread: From keys of clients to their sizes, relative to the mean.
      ids: From the numbers of clients to what they are called, in the style of the published ones.
      content: Makes examples.
      metadata: From ids and sizes to the columns of metadata.
    """

    splits: Mapping[str, Split]
    spread: Spread
    ids: Callable[[np.ndarray], list[ClientId]]
    content: Content
    metadata: Callable[[Sequence[Any], np.ndarray], dict[str, Any]] = lambda ids, sizes: {}


class _Scaled(NamedTuple):
    """A split of a twin at the scale that was asked for."""

    twin: Twin
    number: int
    first: int
    num_clients: int
    mean: float
    seed_key: np.ndarray
    is_central: bool


def synthetic_twin(
    name: str,
    path: str | Path,
    *,
    seed: int = 0,
    num_clients: int | None = None,
    mean_examples: float | None = None,
    progress: bool = True,
) -> dict[str, Store]:
    """Writes a synthetic data set like a published one into stores, and opens them; or opens those it wrote before.

    Schema, splits, number and ids of clients, law of their sizes, and skew of labels or words between clients are
    like the published data's; a model can learn something from the examples, but they mean nothing. They are a
    function of (name, seed, client): the clients of a small twin are the first of a large one, with as many
    examples if the mean is the same.

    Args:
      name: One of `twin_names`.
      path: A directory, which is created if need be; the stores are named `twin_of_<name>-<split>`.
      seed: Integer in [0, 2^63).
      num_clients: Clients of the first split; the others are scaled likewise. By default as published.
      mean_examples: Mean number of examples of the clients of the first split, at least 1; the others are scaled
        likewise. By default as published.
      progress: Whether to show a bar on stderr.

    Returns:
      The store of each split.

    Raises:
      ValueError: If there is no such data set, or a number is out of range.
      FileExistsError: If there is another twin's store.

    >>> import tempfile
    >>> twin = synthetic_twin("emnist", tempfile.mkdtemp(), num_clients=20, mean_examples=30, progress=False)
    >>> twin["train"].num_clients, twin["train"].client_ids([0]), twin["train"].client(0)["pixels"].shape[1:]
    (20, ['f0000_00'], (28, 28))
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    stores = {}
    for split, scaled in _scaled(name, seed, num_clients, mean_examples).items():
        target, provenance = path / f"twin_of_{name}-{split}", _provenance(name, split, seed, scaled)
        if not target.exists():
            with contextlib.suppress(FileExistsError):  # another process was faster
                _write(target, scaled, provenance, progress)
        stores[split] = Store(target)
        if stores[split].manifest["provenance"] != provenance:
            raise FileExistsError(
                f"a twin needs a path that is free or has the same twin; got {target} with "
                f"{stores[split].manifest['provenance']}, and not {provenance}. Choose another directory, or delete it."
            )
    return stores


def twin_source(
    name: str, split: str, *, seed: int = 0, num_clients: int | None = None, mean_examples: float | None = None
) -> Source:
    """Makes the clients of a twin one after another, for exporters and for stores of your own.

    Args:
      name: One of `twin_names`.
      split: One of its splits.
      seed: As for `synthetic_twin`, which writes the same clients.
      num_clients: As for `synthetic_twin`.
      mean_examples: As for `synthetic_twin`.

    Raises:
      ValueError: If there is no such data set or split, or a number is out of range.
    """
    splits = _scaled(name, seed, num_clients, mean_examples)
    check_choice(splits, split=split)
    scaled = splits[split]

    def clients() -> Iterator[Client]:
        for ids, columns, sizes, metadata in _blocks(scaled):
            ends = np.cumsum(sizes)
            for k, (client_id, start, end) in enumerate(zip(ids, ends - sizes, ends, strict=True)):
                examples = {key: column[start:end] for key, column in columns.items()}
                yield Client(client_id, examples, {key: values[k] for key, values in metadata.items()})

    return Source(clients, scaled.num_clients, _provenance(name, split, seed, scaled))


def twin_names() -> list[str]:
    """Returns the names of the data sets that have a twin; ``"tiny"`` is a twin of none, for trying the scale."""
    return sorted(TWINS)


def _scaled(name: str, seed: int, num_clients: int | None, mean_examples: float | None) -> dict[str, _Scaled]:
    check_choice(twin_names(), name=name)
    twin = TWINS[name]
    published = next(iter(twin.splits.values()))
    wanted = published.num_clients if num_clients is None else num_clients
    mean = published.mean if mean_examples is None else mean_examples
    check_integer("[0, 2^63)", seed=seed)
    check_integer("[1, inf)", num_clients=wanted)
    check_number("[1, inf)", mean_examples=mean)
    share, first, result = wanted / published.num_clients, 0, {}
    seed_key = synthetic.keys(seed, zlib.crc32(name.encode()))
    for number, (split, shape) in enumerate(twin.splits.items()):
        is_central = shape.kind == "central"
        count, scale = max(1, round(shape.num_clients * share)), mean / published.mean
        if is_central:
            total = max(1, round(shape.mean * scale * share))
            count, scale = -(-total // CENTRAL), total / shape.mean
        start = first if shape.kind != "shared" else 0
        result[split] = _Scaled(twin, number, start, count, max(1.0, shape.mean * scale), seed_key, is_central)
        first = max(first, start + count)
    return result


def _sizes(scaled: _Scaled, numbers: np.ndarray) -> np.ndarray:
    """Draws the number of examples of some clients, at least 1, with exactly the mean; int64 ``[C]``."""
    if scaled.is_central:
        return np.minimum(round(scaled.mean) - CENTRAL * (numbers - scaled.first), CENTRAL)
    clients = synthetic.keys(scaled.seed_key, numbers)
    more = (scaled.mean - 1) * scaled.twin.spread(clients)
    return 1 + np.floor(more + synthetic.uniform(clients, 50 + scaled.number)).astype(np.int64)


def _blocks(scaled: _Scaled) -> Iterator[tuple[list[ClientId], dict[str, np.ndarray], np.ndarray, dict[str, Any]]]:
    """Yields ids, columns, sizes and metadata of some clients at a time."""
    row_bytes = sum(
        column.nbytes for column in scaled.twin.content(_block(scaled, np.zeros(1, np.uint64), [1])).values()
    )
    for start in range(0, scaled.num_clients, _CLIENTS):
        numbers = scaled.first + np.arange(start, min(start + _CLIENTS, scaled.num_clients))
        clients = synthetic.keys(scaled.seed_key, numbers)
        sizes = _sizes(scaled, numbers)
        # Clients begin a new block where their examples would make it too large.
        group = (np.cumsum(sizes) - sizes) * row_bytes // _BLOCK_BYTES
        for part in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(group)) + 1):
            ids = (_central if scaled.is_central else scaled.twin.ids)(numbers[part] - scaled.first * scaled.is_central)
            columns = scaled.twin.content(_block(scaled, clients[part], sizes[part]))
            yield list(ids), columns, sizes[part], scaled.twin.metadata(ids, sizes[part])


def _block(scaled: _Scaled, clients: np.ndarray, sizes: Any) -> Block:
    owner = np.repeat(np.arange(len(clients)), sizes)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return Block(clients, owner, synthetic.keys(clients[owner], scaled.number, place))


def _write(path: Path, scaled: _Scaled, provenance: Mapping[str, Any], progress: bool) -> None:
    with (
        StoreWriter(path, provenance=provenance) as writer,
        tqdm(total=scaled.num_clients, unit=" clients", disable=not progress) as bar,
    ):
        for ids, columns, sizes, metadata in _blocks(scaled):
            writer.add_many(ids, columns, sizes, **metadata)
            bar.update(len(ids))


def _provenance(name: str, split: str, seed: int, scaled: _Scaled) -> dict[str, Any]:
    return {
        "synthetic_twin_of": name,
        "split": split,
        "seed": seed,
        "num_clients": scaled.num_clients,
        "mean_examples": scaled.mean,
        "version": _VERSION,
    }


def _numbered(text: str) -> Callable[[np.ndarray], list[ClientId]]:
    return lambda numbers: [text % number for number in numbers.tolist()]


_central = _numbered(CENTRAL_ID)


def _writers(numbers: np.ndarray) -> list[ClientId]:
    return [f"f{number % 4100:04d}_{number // 4100:02d}" for number in numbers.tolist()]


def _domains(ids: Sequence[Any], sizes: np.ndarray) -> dict[str, Any]:
    return {"domain_id": [emnist_domain(client_id) for client_id in ids]}


def _emnist(num_clients: int, train: float, test: float, num_classes: int, concentration: float) -> Twin:
    content = synthetic.images((28, 28), num_classes, concentration, image="pixels")
    splits = {"train": Split(num_clients, train), "test": Split(num_clients, test)}
    return Twin(splits, synthetic.two_bells, _writers, content)


def _photographs(num_clients: int, num_examples: int, num_test: int, num_classes: int, sigma: float) -> Twin:
    splits = {"train": Split(num_clients, num_examples / num_clients), "test": Split(1, num_test, "central")}
    content = synthetic.images((128, 128, 3), num_classes, 8.0, dtype="uint16")
    return Twin(splits, synthetic.log_normal(sigma), _numbered("%d"), content)


def _words(splits: Mapping[str, Split], ids: str, sigma: float, sequence_length: int) -> Twin:
    numbers = token_ids(10_000)
    content = synthetic.sentences(
        synthetic.zipf(10_000, first=numbers.first, oov=numbers.oov),
        sequence_length=sequence_length,
        bos=numbers.bos,
        eos=numbers.eos,
        mean_words=13,
        longest=40,
        topic=1024,
    )
    return Twin(splits, synthetic.log_normal(sigma), _numbered(ids), content)


def _posts(twin: Twin) -> Twin:
    def content(block: Block) -> dict[str, np.ndarray]:
        is_answer = synthetic.uniform(block.examples, 7) < 0.6
        return {**twin.content(block), "domain_id": is_answer.astype(np.uint8)}

    return twin._replace(content=content)


def _tagged(twin: Twin, num_words: int = 10_000, num_tags: int = 500) -> Twin:
    """Keeps the known words of sentences; the tags of a post go with its most frequent and its rarest word."""

    def content(block: Block) -> dict[str, np.ndarray]:
        words = twin.content(block)["tokens"][:, 1:].astype(np.int64) - 1
        words = np.sort(np.where((words >= 0) & (words < num_words), words, num_words), axis=1)
        known = (words < num_words).sum(axis=1)
        rarest = np.take_along_axis(words, np.maximum(known - 1, 0)[:, None], axis=1)
        tags = np.where(known[:, None] > 0, np.append(words[:, :1], rarest, axis=1) % num_tags, num_tags)
        tags[tags[:, 0] == tags[:, 1], 1] = num_tags
        return {
            "words": _widened(words, 64, num_words),
            "num_words": known.astype(np.uint16),
            "tags": _widened(np.sort(tags, axis=1), 5, num_tags),
        }

    return twin._replace(content=content)


def _widened(rows: np.ndarray, width: int, fill: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=fill).astype(np.uint16)


def _snippets(splits: Mapping[str, Split], sigma: float) -> Twin:
    numbers = token_ids(len(SHAKESPEARE_VOCABULARY))
    frequent = b" " * 9 + b"eeeeeettttaaaaooooiiinnnsssshhhhrrrddlluummccyywwffggppbbvvk\nkTIAHS,.'"
    letters = np.array([SHAKESPEARE_VOCABULARY.index(letter) + numbers.first for letter in frequent], np.uint8)
    content = synthetic.sentences(
        letters[np.arange(65536) % len(letters)],
        sequence_length=80,
        bos=numbers.bos,
        eos=numbers.eos,
        mean_words=50,
        longest=79,
    )
    return Twin(splits, synthetic.log_normal(sigma), _numbered("PLAY_OF_%04d_ROLE"), content)


def _celeba(train: Split, test: Split) -> Twin:
    content = synthetic.portraits((84, 84, 3), 40)
    return Twin({"train": train, "test": test}, synthetic.bell(0.4), _numbered("%d"), content)


def _cifar(
    num_clients: int, mean: int, test: Split, classes: int, concentration: float, coarse: int | None = None
) -> Twin:
    content = synthetic.images((32, 32, 3), classes, concentration, coarse=coarse)
    return Twin({"train": Split(num_clients, mean), "test": test}, synthetic.same, _numbered("%d"), content)


_INATURALIST = {"user_120k": 9275, "geo_100": 3607, "geo_300": 1209, "geo_1k": 369} | {
    "geo_3k": 136,
    "geo_10k": 39,
    "geo_30k": 12,
}

_STACK_OVERFLOW = _words(
    {"train": Split(342_477, 396.6), "heldout": Split(38_758, 425.5, "own"), "test": Split(204_088, 81.3)},
    "%08d",
    1.25,
    20,
)

TWINS: Mapping[str, Twin] = {
    "emnist": _emnist(3400, 197.53, 22.79, 62, 60.0)._replace(metadata=_domains),
    "emnist_digits": _emnist(3383, 101.06, 12.07, 10, 100.0)._replace(metadata=_domains),
    "cifar10": _cifar(1000, 50, Split(1, 10_000, "central"), 10, 1.0),
    "cifar100": _cifar(500, 100, Split(100, 100, "own"), 100, 10.0, coarse=5),
    # An example is a snippet that fits in one sequence.
    "shakespeare": _snippets({"train": Split(715, 22.47), "test": Split(715, 3.3)}, 1.143)._replace(
        metadata=lambda ids, sizes: {PUBLISHED_EXAMPLES: sizes.tolist()}
    ),
    "stack_overflow": _posts(_STACK_OVERFLOW),
    "stack_overflow_tags": _tagged(_STACK_OVERFLOW),
    "celeba_by_client": _celeba(Split(8408, 21.46), Split(935, 21.24, "own")),
    "celeba_by_example": _celeba(Split(9343, 18.99), Split(9343, 2.44)),
    "landmarks_gld23k": _photographs(233, 23_080, 1_959, 203, 0.9),
    "landmarks_gld160k": _photographs(1262, 164_172, 19_526, 2028, 0.9),
    **{f"inaturalist_{key}": _photographs(n, 120_300, 35_641, 1203, 1.2) for key, n in _INATURALIST.items()},
    "flair": Twin(
        {"train": Split(41_131, 8.41), "val": Split(5_141, 8.09, "own"), "test": Split(5_142, 8.09, "own")},
        synthetic.log_normal(1.2),
        _numbered("%08d@N00"),
        synthetic.albums((256, 256, 3), 17, 1628, 16),
    ),
    "reddit": _words(
        {split: Split(1_660_820, mean) for split, mean in {"train": 34.07, "val": 4.0, "test": 4.0}.items()},
        "user_%07d",
        1.2,
        10,
    ),
    "leaf_femnist": _emnist(3500, 207.1, 23.0, 62, 60.0),
    "leaf_shakespeare": _snippets({"train": Split(660, 2300.0), "test": Split(660, 256.0)}, 1.3),
    "leaf_celeba": Twin(
        {"train": Split(9343, 19.3), "test": Split(9343, 2.1)},
        synthetic.bell(0.4),
        _numbered("%d"),
        synthetic.images((84, 84, 3), 2, 1.0),
    ),
    "leaf_sent140": Twin(
        {"train": Split(660_120, 2.42), "test": Split(66_012, 2.42)},
        synthetic.log_normal(1.0),
        _numbered("user%06d"),
        synthetic.tweets(280),
    ),
    "tiny": Twin(
        {"train": Split(10_000_000, 2.0)}, synthetic.bell(0.6), lambda numbers: numbers.tolist(), synthetic.tiny
    ),
}
