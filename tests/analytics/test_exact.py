"""Answers without noise: those of NumPy on the pooled records, whatever a column holds; secure ones to the bit."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from fedjx.analytics.ask import ask
from fedjx.analytics.count import count
from fedjx.analytics.digits import decode, digits_for, encode
from fedjx.analytics.histogram import bins_of, histogram, histogram_2d
from fedjx.analytics.mean import mean
from fedjx.analytics.numbers import bounds
from fedjx.analytics.total import total
from fedjx.core.language.narrow import narrowed
from fedjx.data import FederatedData

RANDOM = np.random.default_rng(1)
SIZES = (3, 0, 1, 4, 4, 2, 0, 3)
NUMBER = sum(SIZES)

COLUMNS = {
    "uint8": RANDOM.integers(0, 256, NUMBER).astype(np.uint8),
    "int8": RANDOM.integers(-128, 128, NUMBER).astype(np.int8),
    "int16": RANDOM.integers(-30_000, 30_000, NUMBER).astype(np.int16),
    "bool": RANDOM.integers(0, 2, NUMBER).astype(bool),
    "time": (1_600_000_000 + RANDOM.integers(0, 60, NUMBER)).astype(np.int32),
    "late": (4_000_000_000 + RANDOM.integers(0, 60, NUMBER)).astype(np.uint32),
    "long": RANDOM.integers(-100, 100, NUMBER).astype(np.int64),
    "float64": RANDOM.normal(size=NUMBER),
    "float32": RANDOM.normal(size=NUMBER).astype(np.float32),
}
RANGES = {
    "uint8": (0, 1000),
    "int8": (-100, 100),
    "int16": (-1e5, 1e5),
    "bool": (0, 1),
    "time": (1_600_000_010, 1_600_000_050),
    "late": (4_000_000_010.5, 4_000_000_050.5),
    "long": (-50, 1e12),
    "float64": (-1, 1),
    "float32": (-0.5, 2),
}


def clients(columns: dict[str, np.ndarray], sizes: tuple[int, ...] = SIZES) -> FederatedData:
    return FederatedData(columns, np.concatenate([[0], np.cumsum(sizes)]))


DATA = clients(COLUMNS)


def within(name: str) -> np.ndarray:
    x, (low, high) = COLUMNS[name], RANGES[name]
    if x.dtype.kind in "iub":  # of integers the bounds are the integers between them
        low, high = np.ceil(low), np.floor(high)
    return np.clip(x.astype(np.float64), low, high)


@pytest.mark.parametrize("name", ["uint8", "time", "float64"])
def test_a_mean_is_that_of_the_clipped_records(name):
    low, high = RANGES[name]
    found = ask(mean(name, low=low, high=high), DATA)
    assert abs(found.value - within(name).mean()) <= 2e-7 * (high - low)
    assert (found.stddev, found.num_answered, found.num_clients) == (0, 6, 8)


def test_distances_from_the_middle_are_exact_however_far_it_is():
    ranges = {name: bounds(low, high) for name, (low, high) in RANGES.items()}
    held = {name: narrowed(x, name, may_round=True) for name, x in COLUMNS.items()}
    found = jax.jit(lambda columns: {name: jax.vmap(ranges[name].distance)(x) for name, x in columns.items()})(held)
    for name, (low, high) in RANGES.items():
        expected = within(name) - (low + high) / 2
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=2e-7 * (high - low), err_msg=name)
        assert (np.abs(found[name]) <= np.float32((high - low) / 2)).all()


@pytest.mark.parametrize("name", ["bool", "float32"])
def test_without_bounds_it_is_all_of_them(name):
    x = COLUMNS[name].astype(np.float64)
    assert ask(mean(name), DATA).value == pytest.approx(x.mean(), rel=1e-6)
    assert ask(total(name), DATA).value == pytest.approx(x.sum(), rel=1e-6)


def binned(x: np.ndarray, bins: Any) -> np.ndarray:
    of = bins_of(bins)
    found = np.asarray(jax.jit(jax.vmap(of.bin_of))(narrowed(x, "x", may_round=True)))
    return np.bincount(found[found >= 0], minlength=of.size)


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("even", [True, False])
def test_bins_are_numpys(name, even):
    x = COLUMNS[name] + 0 if name == "bool" else COLUMNS[name]
    low, high = float(x.min()), float(x.max())  # both ends are there: the last one belongs to the last bin
    edges = np.linspace(low, high, 8)
    if not even:
        edges = np.array([low - 0.5, *edges[2:5], edges[5] + 1e-3 * (high - low), high])
    # JAX holds float32, which is on another side of some edges than float64.
    expected = np.histogram(x.astype(np.float32) if x.dtype == np.float64 else x, edges)[0]
    np.testing.assert_array_equal(binned(COLUMNS[name], edges), expected)


def test_a_histogram_is_numpys():
    edges = [1_600_000_000, 1_600_000_007, 1_600_000_011, 1_600_000_060]
    expected = np.histogram(COLUMNS["time"], edges)[0]
    np.testing.assert_array_equal(ask(histogram("time", bins=edges), DATA).value, expected)


def test_categories_are_counted_in_whatever_dtype():
    for name, size in (("uint8", 300), ("bool", 2), ("int8", 50), ("late", 7)):
        x = COLUMNS[name].astype(np.int64)
        np.testing.assert_array_equal(
            binned(COLUMNS[name], size), np.bincount(x[(x >= 0) & (x < size)], minlength=size)
        )


def test_edges_beyond_what_a_dtype_holds_are_edges():
    for x in (np.array([0, 255, 2**31 - 1], np.uint32), np.array([-5, 7, 2**31 - 1], np.int32)):
        for bins in ([-10, -1], [-10, 0, 3e9, 6e9], [5e9, 6e9], [0, 2**31 - 1], [2**31 - 2, 2**31, 2**33]):
            np.testing.assert_array_equal(binned(x, bins), np.histogram(x, bins)[0], err_msg=f"{x.dtype} {bins}")


def test_narrow_bins_far_from_zero_are_searched():
    assert bins_of(np.linspace(0, 1, 11)).is_even
    assert not bins_of(1.6e9 + np.arange(10.0)).is_even
    x = np.float32(1.6e9) + 128 * np.arange(6, dtype=np.float32)
    edges = 1.6e9 + 100 * np.arange(8)
    np.testing.assert_array_equal(binned(x, edges), np.histogram(x, edges)[0])


def test_a_table_is_numpys_and_its_margins_those_of_each():
    edges = [-2, 0, 0.5, 2], [0, 64, 256]
    expected = np.histogram2d(COLUMNS["float32"], COLUMNS["uint8"], edges)[0]
    found = ask(histogram_2d(("float32", "uint8"), bins=edges), DATA, trust="secure")
    np.testing.assert_array_equal(found.value, expected)


def test_what_is_not_finite_takes_no_part():
    x = clients({"x": np.array([np.nan, 1, np.inf, -np.inf, 3], np.float32)}, (2, 1, 2))
    for trust in ("plain", "secure"):
        found = ask(mean("x", low=0, high=4), x, trust=trust)
        assert (round(found.value, 6), found.num_answered) == (2, 2)
    assert ask(total("x"), x).value == 4
    np.testing.assert_array_equal(ask(histogram("x", bins=[0, 2, 4]), x).value, [1, 1])
    assert np.isnan(ask(mean("x", low=0, high=1), x, clients=[1]).value)


def test_counts_are_of_records_or_of_clients():
    def is_large(record: Any) -> Any:
        return record["uint8"] >= 128

    large = COLUMNS["uint8"] >= 128
    of_clients = sum(large[a:b].any() for a, b in zip(DATA.offsets, DATA.offsets[1:], strict=False))
    assert ask(count(clients=True), DATA).value == 6
    for trust in ("plain", "secure"):
        assert ask(count("uint8", where=is_large), DATA, trust=trust).value == large.sum()
        assert ask(count("uint8", where=is_large, clients=True), DATA, trust=trust).value == of_clients
        assert ask(count(), DATA, trust=trust).value == NUMBER


def test_distinct_bins_count_a_client_once():
    x = clients({"x": np.array([1, 1, 2, 2, 2, 9], np.int32)}, (3, 3))
    np.testing.assert_array_equal(ask(histogram("x", bins=4, distinct=True), x).value, [0, 1, 2, 0])


def test_of_a_client_at_most_so_many_records_are_drawn_each_as_likely():
    x = clients({"x": np.tile(np.arange(6, dtype=np.int32), 400)}, (6,) * 400)
    found = ask(histogram("x", bins=6), x, max_records=2).value
    assert found.sum() == 800
    assert np.abs(found - 800 / 6).max() < 5 * np.sqrt(400 * 2 / 6 * 4 / 6)
    again = ask(histogram("x", bins=6), x, max_records=2, key=jax.random.key(1)).value
    assert (again != found).any()


def test_a_secure_mean_is_the_sum_in_fixed_point():
    key, bound = jax.random.key(5), 4  # by which division is exact
    x = RANDOM.integers(-64, 65, NUMBER).astype(np.float32) / 64  # sums of these are exact
    data = clients({"x": x})
    found = ask(mean("x", low=-1, high=1), data, trust="secure", max_records=bound, clients=[0, 2, 5, 7], key=key)
    num_levels, summed = 2**23, 0
    for k in (0, 2, 5, 7):
        sent = x[DATA.offsets[k] : DATA.offsets[k + 1]].sum(dtype=np.float32)
        own = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 2), k), 1)[0]
        scaled = np.float32(sent / np.float32(bound)) * np.float32(num_levels)
        whole = np.floor(scaled)
        summed += int(whole + (float(jax.random.uniform(own, (1, 1), np.float32)[0, 0]) < scaled - whole))
    assert found.value == summed * (bound / num_levels) / 9
    assert found.stddev == pytest.approx(np.sqrt(4 * (bound / num_levels) ** 2 / 4) / 9)


def test_a_secure_mean_is_as_fine_whoever_is_large():
    """A client with half of all records, or ten million clients, do not make the grid coarse."""
    x = RANDOM.integers(-64, 65, 3000).astype(np.float32) / 64
    data = FederatedData({"x": x}, np.append(np.arange(1500), 3000))
    found = ask(mean("x", low=-1, high=1), data, trust="secure")
    assert abs(found.value - x.mean()) < 6 * found.stddev < 1e-4  # the control: in one word it was off by 1e-3
    for number in (1, 100, 10**5, 10**7, 2**30 - 1):
        digits = digits_for(3.0, number)
        most = np.asarray(encode(digits, np.float32([3.0, -3.0, 1.0, 0.0]), jax.random.key(number)), np.int64)
        assert np.abs(most * number).max() < 2**31
        np.testing.assert_allclose(decode(digits, most * number), np.array([3.0, -3.0, 1.0, 0.0]) * number, rtol=1e-6)


def test_of_a_column_of_vectors_nothing_is_asked():
    data = clients({"x": np.zeros((NUMBER, 3), np.float32)})
    with pytest.raises(ValueError, match="categories and groups are integers; got a column of float32"):
        ask(histogram("x", bins=3), data)
    for question in (mean("x"), total("x"), histogram("x", bins=[0, 1])):
        with pytest.raises(ValueError, match=r"one number a record; got float32\[3\]. Ask about one element"):
            ask(question, data)
    with pytest.raises(ValueError, match=r"has a property or not, bool \[\]; got bool\[3\] of where"):
        ask(count("x", where=lambda record: record["x"] > 0), data)
