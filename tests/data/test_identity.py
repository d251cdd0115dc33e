"""A client keeps its number and its name through every split, selection and view, and may be empty in one of them."""

import jax
import numpy as np
import pytest

import fedjx
from fedjx.data import (
    Cohort,
    FederatedData,
    filter_examples,
    preprocess,
    split_clients,
    split_examples,
    train_test_partition,
    truncate,
    uniform_sampler,
    write_store,
)
from fedjx.data.exporters import to_fedjax_sqlite, to_tff_sqlite
from fedjx.data.importers import fedjax_sqlite, tff_sqlite
from fedjx.data.source import client_ids
from tests.data.stores import MEMORY, SIZES, SPLITS, written


def halves(data):
    return split_examples(data, fractions={"seen": 0.4, "unseen": 0.6}, seed=1)


WHOLE = {
    "memory": lambda path: MEMORY,
    "store": lambda path: written(path, split=SPLITS),
    "view of a store": lambda path: written(path, split=SPLITS).select_clients(np.array(SIZES) != 9),
    "preprocessed": lambda path: preprocess(written(path), filter_examples(lambda columns: columns["flag"])),
    "store of a split": lambda path: write_store(path, halves(MEMORY)["seen"], progress=False),
    "split": lambda path: split_examples(MEMORY, fractions={"train": 0.4, "test": 0.6}, seed=1)["train"],
}
WAYS = {
    "split_examples": lambda data: split_examples(data, fractions={"train": 0.7, "test": 0.3}, seed=0).values(),
    "split_clients": lambda data: split_clients(data, fractions={"train": 0.6, "test": 0.4}, seed=0).values(),
    "split twice": lambda data: [
        part
        for clients in split_clients(data, fractions={"train": 0.6, "test": 0.4}, seed=0).values()
        for part in split_examples(clients, fractions={"seen": 0.5, "unseen": 0.5}, seed=0).values()
    ],
    "select": lambda data: [data.select_clients(data.ids[2:]).select_clients(data.ids[[3, 6]])],
    "select by a mask": lambda data: [data.select_clients(data.sizes[:] == data.sizes[4])],
    "preprocess": lambda data: [preprocess(data, truncate(2), filter_examples(lambda columns: columns["y"] % 3 != 1))],
    "load": lambda data: [data.load() if hasattr(data, "load") else data],
}


def test_a_split_that_is_written_keeps_every_client(tmp_path):
    part = halves(written(tmp_path / "whole"))["seen"]
    assert 0 in part.sizes
    store = write_store(tmp_path / "store", part, progress=False)
    to_tff_sqlite(part, tmp_path / "tff", "seen")
    to_fedjax_sqlite(part, tmp_path / "fedjax")
    read_back = [tff_sqlite(tmp_path / "tff", features=store.schema), fedjax_sqlite(tmp_path / "fedjax")]
    for number, source in enumerate(read_back):
        again = write_store(tmp_path / str(number), source, progress=False)
        names = [str(name, "utf-8") if isinstance(name, bytes) else name for name in again.client_ids(again.ids[:])]
        assert sorted(names) == part.client_ids(part.ids[:])
        assert sorted(again.sizes[:]) == sorted(part.sizes[:])
    assert store.client_ids(store.ids[:]) == part.client_ids(part.ids[:])
    for k in part.ids[:]:
        assert len(store.client(k)["x"]) == store.sizes[k] == part.sizes[k]
        np.testing.assert_array_equal(store.client(k)["x"], part.client(k)["x"])
    ids = uniform_sampler(store.num_clients, 10, seed=0)(0)
    assert 0 in store.sizes[ids]
    assert sum(len(store.client(k)["x"]) for k in store.select_clients(store.sizes[:] > 0).ids[:]) == part.num_examples


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("way", WAYS)
def test_a_client_keeps_its_identity(way, whole, tmp_path):
    data = WHOLE[whole](tmp_path / "store")
    names = dict(zip(data.ids[:].tolist(), client_ids(data, data.ids[:]), strict=True))
    for part in WAYS[way](data):
        ids = part.ids[:]
        assert part.num_clients == len(ids) == len(part.sizes) == len(part.offsets) - 1
        if way != "load":  # What is in memory has numbers alone.
            assert client_ids(part, ids) == [names[k] for k in ids.tolist()]
        for k, size in zip(ids, part.sizes[:], strict=True):
            assert len(part.client(k)["x"]) == size
            assert is_part(part.client(k), data.client(k))
        for placement in ("resident", "streamed"):
            chunks = list(Cohort(part, ids[::-1], batch_size=2, lanes=3, placement=placement))
            for chunk in [*chunks, Cohort(part, ids[::-1], batch_size=2).whole()]:
                check_chunk(chunk, data)
        strangers = [k for k in range(-1, 11) if k not in ids]
        for call in (part.client, lambda k, part=part: Cohort(part, [k], batch_size=1)):
            for k in strangers:
                with pytest.raises(ValueError, match="ids need to be clients of the data set"):
                    call(k)


def is_part(columns, others):
    """Whether each example is among the others, which are all different."""
    return np.isin(columns["x"][:, 0, 0], others["x"][:, 0, 0]).all()


def check_chunk(chunk, data):
    """Checks that the members of a chunk have examples of the client whose number they have."""
    batches = chunk.value.elements
    for k, index, is_member in zip(chunk.id, batches.index, chunk.mask, strict=True):
        rows = index[index >= 0]
        if is_member and len(rows):
            assert is_part({"x": np.asarray(batches.pool["x"])[rows]}, data.client(k))


def test_the_law_can_fail():
    renumbered = MEMORY.select_clients([1, 2, 4])
    renumbered = FederatedData(renumbered.examples, renumbered.offsets)
    assert not all(is_part(renumbered.client(k), MEMORY.client(k)) for k in range(3))


def test_a_partition_is_split_under_the_same_numbers():
    rows = [np.arange(10), np.array([10]), np.arange(11, 17), np.empty(0, int)]
    train, test = (
        FederatedData.from_partition({"x": np.arange(17)}, part)
        for part in train_test_partition(rows, train_fraction=0.5, seed=0)
    )
    assert train.sizes.tolist() == [5, 1, 3, 0]
    assert test.sizes.tolist() == [5, 0, 3, 0]
    for k in range(4):
        assert sorted([*train.client(k)["x"], *test.client(k)["x"]]) == rows[k].tolist()


def test_random_keys_follow_the_number():
    @fedjx.federated_computation
    def draw(data, key):
        return fedjx.federated_map(lambda client, key: jax.random.uniform(key), data, fedjx.federated_keys(key))

    def drawn(data, ids):
        return dict(
            zip(ids, np.asarray(draw(Cohort(data, ids, batch_size=4).whole(), jax.random.key(0)).value), strict=True)
        )

    whole = drawn(MEMORY, range(10))
    view = drawn(MEMORY.select_clients([3, 5, 8]), [3, 5, 8])
    assert view == {k: whole[k] for k in (3, 5, 8)}
    assert len(set(whole.values())) == 10
