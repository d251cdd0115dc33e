"""The stream of records: every record of every client once, in few shapes, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest

from fedjx.analytics.records import Records
from fedjx.data import FederatedData, Store, StoreWriter


def clients(sizes: list[int]) -> FederatedData:
    rng = np.random.default_rng(0)
    return FederatedData.from_clients(
        [{"x": rng.normal(size=n).astype(np.float32), "y": rng.integers(0, 9, (n, 2))} for n in sizes]
    )


def seen(records: Records, name: str) -> dict[int, np.ndarray]:
    """Returns what a stream shows of each client, by id."""
    found: dict[int, np.ndarray] = {}
    for chunk in records:
        for k in np.flatnonzero(chunk.mask):
            assert chunk.id[k] not in found
            found[int(chunk.id[k])] = chunk.value.elements[name][k][: chunk.value.length[k]]
    return found


@pytest.mark.parametrize("name", ["x", "y"])
def test_shows_every_record_once(name: str, monkeypatch: pytest.MonkeyPatch):
    for constant, value in (("_CLIENTS", 7), ("_ROWS", 20), ("_CELLS", 16)):
        monkeypatch.setattr(f"fedjx.analytics.records.{constant}", value)
    data = clients([3, 1, 0, 8, 40, 1, 2, 5, 9, 1, 1, 1, 1, 0, 16, 17])
    found = seen(Records(data, [name]), name)
    assert sorted(found) == list(range(data.num_clients))
    for k, rows in found.items():
        np.testing.assert_array_equal(rows, data.client(k)[name])


def test_of_some_clients_shows_those():
    data = clients([3, 1, 4, 8])
    found = seen(Records(data, ["x"], np.array([3, 1])), "x")
    assert sorted(found) == [1, 3]
    np.testing.assert_array_equal(found[3], data.client(3)["x"])


def test_of_a_store_and_its_views_is_that_of_memory(tmp_path):
    data = clients([3, 1, 4, 8, 0, 2])
    with StoreWriter(tmp_path / "store") as writer:
        for k in range(data.num_clients):
            writer.add(k, data.client(k))
    for view in (Store(tmp_path / "store"), Store(tmp_path / "store").select_clients([1, 2, 5])):
        found = seen(Records(view, ["y"]), "y")
        assert sorted(found) == view.ids[:].tolist()
        for k, rows in found.items():
            np.testing.assert_array_equal(rows, data.client(k)["y"])


def test_has_few_shapes():
    data = clients(np.random.default_rng(1).integers(0, 40, 3000).tolist())
    shapes = {chunk.value.elements["x"].shape for chunk in Records(data, ["x"])}
    assert len(shapes) <= 7  # one for each power of two


def test_refuses_what_is_not_there():
    with pytest.raises(ValueError, match="columns of the data; got 'age'"):
        Records(clients([1]), ["age"])
    with pytest.raises(ValueError, match="asked once"):
        Records(clients([1, 1]), ["x"], np.array([0, 0]))
