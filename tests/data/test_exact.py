"""Every way of feeding x every dtype that JAX would narrow: exact, or refused in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjx
from fedjx.data import ClientStates, Cohort, FederatedData, central, importers, write_store

EXACT = {
    "int64": np.array([1, -5, 2**31 - 1]),
    "uint64": np.array([1, 2, 2**32 - 1], np.uint64),
    "float64": np.array([0.5, 2.0**-149, np.nan]),
    "complex128": np.array([0.5j, 1, np.inf]),
}
INEXACT = {
    "int64": np.array([2**40, 1, 3]),
    "a time in ms": np.array([1_764_400_000_999, 1, 2]),
    "uint64": np.array([2**63, 2, 3], np.uint64),
    "float64": np.array([0.1, 1, 2]),
    "float64 without end": np.array([1e300, 1, 2]),
    "complex128": np.array([0.1j, 1, 2]),
}
UNKNOWN = {
    "datetime64": np.array(["2026-01-01", "2026-01-02", "NaT"], "datetime64[s]"),
    "timedelta64": np.array([1, 2, 3], "timedelta64[s]"),
    "longdouble": np.array([0.5, 1, 2], np.longdouble),
    "text": np.array(["a", "b", "c"]),
}


def planned(data, placement, whole=False):
    """What the examples of a cohort's clients are, one each, where the device has them."""
    chunks = Cohort(data, range(3), batch_size=1, lanes=3, placement=placement)
    batches = (chunks.whole() if whole else next(iter(chunks))).value.elements
    found = np.asarray(jnp.asarray(batches.pool["x"])[np.asarray(batches.index)[:, 0, 0]])
    return found if whole else found[np.argsort(next(iter(chunks)).id)]


def of_store(data, tmp_path, placement):
    return planned(write_store(tmp_path / "store", data, progress=False), placement)


def states(x, tmp_path):
    """The second state of three clients, of whom none was ever there."""
    state = ClientStates(tmp_path / "states", {"x": x[0]}, num_clients=3)
    return np.asarray(jnp.asarray(state.cohort(np.arange(3)).members(np.arange(3), np.ones(3, bool)).value["x"]))


def data(x):
    return FederatedData({"x": x}, np.arange(4))


FEEDS = {
    "resident": lambda x, _: planned(data(x), "resident"),
    "streamed": lambda x, _: planned(data(x), "streamed"),
    "whole, resident": lambda x, _: planned(data(x), "resident", whole=True),
    "whole, streamed": lambda x, _: planned(data(x), "streamed", whole=True),
    "central": lambda x, _: np.asarray(central({"x": x}, batch_size=1).elements.pool["x"][:3]),
    "a store, resident": lambda x, path: of_store(data(x), path, "resident"),
    "a store, streamed": lambda x, path: of_store(data(x), path, "streamed"),
    "an importer": lambda x, path: of_store(importers.arrays({"x": x}, np.arange(3)), path, "streamed"),
    "client states": states,
}


@pytest.mark.parametrize("feed", FEEDS)
def test_a_feature_is_on_the_device_as_it_is_or_refused(feed, tmp_path):
    for number, x in enumerate(EXACT.values()):
        (path := tmp_path / f"exact {number}").mkdir()
        found = FEEDS[feed](x, path)
        expected = np.broadcast_to(x[0], 3) if feed == "client states" else x
        assert found.dtype == jax.dtypes.canonicalize_dtype(x.dtype)
        np.testing.assert_array_equal(found.astype(x.dtype), expected)
    for number, x in enumerate(INEXACT.values()):
        (path := tmp_path / f"inexact {number}").mkdir()
        with pytest.raises(
            ValueError, match=rf"must be exact in \w+, as the device stores it; got {x.dtype} .* Round or"
        ):
            FEEDS[feed](x, path)
    for number, x in enumerate(UNKNOWN.values()):
        (path := tmp_path / f"unknown {number}").mkdir()
        with pytest.raises(TypeError, match=r"numeric; got 'x' of dtype .*ncode it"):
            FEEDS[feed](x, path)


@pytest.mark.parametrize("feed", FEEDS)
def test_with_64_bits_all_are_exact(feed, tmp_path):
    with jax.enable_x64(True):
        for number, x in enumerate([*EXACT.values(), *INEXACT.values()]):
            (path := tmp_path / f"{number}").mkdir()
            found = FEEDS[feed](x, path)
            assert found.dtype == x.dtype
            np.testing.assert_array_equal(found, np.broadcast_to(x[0], 3) if feed == "client states" else x)


@fedjx.federated_computation
def unchanged(x):
    return fedjx.federated_map(lambda own: own, x)


@pytest.mark.parametrize("run", [unchanged, unchanged.streamed()], ids=["one program", "streamed"])
def test_lists_and_arrays_of_clients_keep_integers_and_stay_finite(run):
    """Reals in an argument are rounded, as in any call of JAX."""
    for x in (EXACT["int64"], EXACT["uint64"], EXACT["float64"]):
        for given in (x, list(x)):
            np.testing.assert_array_equal(np.asarray(run(fedjx.Clients.of(given)).value).astype(x.dtype), x)
    np.testing.assert_array_equal(run(fedjx.Clients.of(INEXACT["float64"])).value, np.float32([0.1, 1, 2]))
    for name in ("int64", "a time in ms", "uint64", "float64 without end"):
        for given in (INEXACT[name], list(INEXACT[name])):
            with pytest.raises(ValueError, match=r"a value must be exact in .*, as the device stores it; got"):
                run(fedjx.Clients.of(given))
