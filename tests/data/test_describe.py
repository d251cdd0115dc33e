"""Tests of what `describe` finds, beside NumPy on the pooled data."""

import importlib

import ml_dtypes
import numpy as np
import pytest
from tqdm import tqdm

from fedjx.data import FederatedData, describe, plot_description, preprocess, truncate
from fedjx.data.describe import QUANTILES
from fedjx.data.tallies import MAX_SAMPLE, Sample, quantiles_of_counts
from tests.data.stores import written

MODULE = importlib.import_module("fedjx.data.describe")
SIZES = np.array([0, 0, 3, 1, 70, 0, 2, 9, 40, 1, 0, 5, 29, 1, 1, 0])
N = int(SIZES.sum())
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 2, 3)).astype(np.float32)
X[::7, 0, 1], X[3, 1, 1], X[5] = np.nan, -np.inf, 0
TEXT = np.zeros((N, 12), np.uint8)
LENGTHS = RNG.integers(0, 13, N)
for row, length in zip(TEXT, LENGTHS, strict=True):
    row[:length] = RNG.choice(list(b"secret\n\xc3\xa9"), length)
COLUMNS = {
    "x": X,
    "offset": 1e8 + RNG.normal(size=N),
    "offset32": (1e6 + RNG.normal(size=N)).astype(np.float32),
    "large": RNG.integers(-(2**62), 2**62, N),
    "unsigned": RNG.integers(2**63, 2**64, N, dtype=np.uint64),
    "tiny": RNG.integers(-128, 128, (N, 2)).astype(np.int8),
    "constant": np.full(N, 0.1),
    "y": RNG.choice([-5, 0, 7, 10**12], N, p=[0.1, 0.2, 0.3, 0.4]),
    "flag": RNG.random(N) < 0.2,
    "half": RNG.normal(size=N).astype(np.float16),
    "text": TEXT,
}
CLIENTS = [
    {name: column[end - size : end] for name, column in COLUMNS.items()}
    for size, end in zip(SIZES, SIZES.cumsum(), strict=True)
]
MEMORY = FederatedData.from_clients(CLIENTS)


@pytest.fixture(params=["memory", "store", "store in small passes"])
def described(request, tmp_path, monkeypatch):
    """Describes the same clients wherever they are."""
    if "passes" in request.param:
        for name, length in (("_CLIENTS", 5), ("_VALUES", 300), ("_METADATA", 3)):
            monkeypatch.setattr(MODULE, name, length)
        monkeypatch.setattr("fedjx.data.tallies._SLICE", 4)
    data = MEMORY if request.param == "memory" else written(tmp_path / "s", CLIENTS, shard_bytes=2000)
    return describe(data, progress=False)


def test_numbers_are_those_of_numpy_on_the_pooled_data(described):
    for name in sorted(COLUMNS.keys() - {"text"}):
        values = COLUMNS[name].reshape(-1)
        finite = values[np.isfinite(values)]
        found = described.features[name].numbers
        assert (found.num_values, found.num_non_finite) == (len(values), len(values) - len(finite)), name
        assert (found.minimum, found.maximum) == (finite.min(), finite.max()), name
        assert found.zeros == np.mean(values == 0), name
        exact = finite.astype(np.float64)
        np.testing.assert_allclose(found.mean, exact.mean(), rtol=1e-14, atol=1e-15, err_msg=name)
        np.testing.assert_allclose(found.standard_deviation, exact.std(), rtol=1e-13, atol=1e-15, err_msg=name)
        np.testing.assert_array_equal(found.sample, np.sort(finite))
        assert found.is_exact
    assert described.features["x"].numbers.num_non_finite == len(range(0, N, 7)) + 1
    # A variance as the mean of squares less the square of the mean is wrong here: the control.
    offset = COLUMNS["offset"]
    assert not np.isclose((offset**2).mean() - offset.mean() ** 2, offset.var(), rtol=1e-3)


def test_sizes(described):
    assert (described.num_clients, described.num_examples) == (16, N)
    assert described.sizes == {size: int((size == SIZES).sum()) for size in np.unique(SIZES).tolist()}
    expected = np.quantile(SIZES, QUANTILES)
    np.testing.assert_allclose(list(described.size_quantiles.values()), expected)
    assert described.share_of_largest(0.01) == 70 / N
    assert described.share_of_largest(0.1) == 110 / N  # Two of 16.
    assert described.share_of_largest(1.0) == 1
    assert described.num_bytes == sum(column.nbytes for column in COLUMNS.values())


def test_labels_of_all_and_of_each_client(described):
    for name in ("y", "flag"):
        found = described.features[name].labels
        values, counts = np.unique(COLUMNS[name], return_counts=True)
        assert found.counts == dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert list(found.counts.values()) == sorted(counts.tolist(), reverse=True)
        own = [np.unique(client[name], return_counts=True)[1] for client in CLIENTS if len(client[name])]
        assert found.num_labels.tolist() == sorted(map(len, own))
        np.testing.assert_allclose(found.largest_share, sorted(count.max() / count.sum() for count in own))
    assert all(described.features[name].labels is None for name in ("x", "tiny", "offset"))


def test_text_is_lengths_and_nothing_else(described):
    found = described.features["text"]
    assert found.lengths == {length: int((length == LENGTHS).sum()) for length in np.unique(LENGTHS).tolist()}
    assert (found.numbers, found.labels) == (None, None)
    shown = str(described)
    words = [bytes(row[:5]).decode("latin1") for row in TEXT[LENGTHS >= 5]]
    assert words
    assert not any(word in shown for word in words)
    assert shown.split("length of text")[1].split("\n")[1].split() == [
        *("text", "uint8", "[12]"),
        *(f"{length:.5g}" for length in np.quantile(LENGTHS, QUANTILES)),
    ]


@pytest.mark.parametrize("rows", [[[1, 2, 3]], [[0, 97, 98]], [[97, 0, 98]], [[0, 0, 0]], [[97, 98, 0], [97, 127, 0]]])
def test_bytes_that_are_no_text_are_numbers(rows):
    data = FederatedData({"b": np.array(rows, np.uint8)}, [0, 0, len(rows)])
    found = describe(data).features["b"]
    assert found.lengths is None
    assert found.numbers.mean == np.mean(rows)


def test_columns_of_too_many_values_are_no_labels():
    for count, are_labels in ((256, True), (257, False)):
        for step in (1, 10**6):
            y = step * np.random.default_rng(1).permutation(np.repeat(np.arange(count), 2))
            found = describe(FederatedData({"y": y}, [0, 100, 2 * count])).features["y"]
            assert (found.labels is not None) == are_labels
            assert found.numbers.mean == y.mean()


def test_a_sample_has_each_value_equally_often():
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=3 * MAX_SAMPLE + 12_345)
    found = describe(FederatedData({"v": values}, np.array([0, 10, len(values)]))).features["v"].numbers
    assert len(found.sample) == MAX_SAMPLE
    assert not found.is_exact
    assert np.isin(found.sample, values).all()
    assert len(np.unique(found.sample)) == MAX_SAMPLE  # No value twice.
    # The ranks of the sample's quantiles, within six standard errors of what is said; the first values are the control.
    middle = np.array(QUANTILES[1:-1])
    rank = np.searchsorted(np.sort(values), np.quantile(found.sample, middle)) / len(values)
    assert np.abs(rank - middle).max() < 6 * 0.0014
    first = np.searchsorted(np.sort(values), np.quantile(np.sort(values)[:MAX_SAMPLE], middle)) / len(values)
    assert np.abs(first - middle).max() > 0.1
    assert (found.mean, found.maximum) == (pytest.approx(values.mean(), rel=1e-13), values.max())


def test_a_sample_keeps_no_step_with_the_data():
    found = describe(FederatedData({"v": np.arange(4 * MAX_SAMPLE, dtype=np.uint8) % 4}, np.array([0, 4 * MAX_SAMPLE])))
    counts = np.bincount(found.features["v"].numbers.sample)
    assert np.abs(counts - MAX_SAMPLE / 4).max() < 5 * np.sqrt(MAX_SAMPLE * 3 / 16)


def test_outliers_first_and_numbers_too_large_to_square():
    values = np.append(1e20, np.random.default_rng(0).normal(size=10**5))
    found = describe(FederatedData({"v": values}, [0, 1, len(values)])).features["v"].numbers
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.standard_deviation == pytest.approx(values.std(), rel=1e-12)
    found = describe(FederatedData({"v": np.array([1e200, -1e200, 1e200])}, [0, 1, 3])).features["v"].numbers
    assert (found.mean, found.standard_deviation) == (pytest.approx(1e200 / 3), np.inf)


def test_a_sample_does_not_depend_on_how_it_comes(monkeypatch):
    monkeypatch.setattr("fedjx.data.tallies.MAX_SAMPLE", 50)
    whole, parts = Sample(1000, np.int64), Sample(1000, np.int64)
    whole.add(np.arange(1000))
    for part in np.split(np.arange(1000), [1, 1, 300, 999]):
        parts.add(part)
    np.testing.assert_array_equal(parts.values, whole.values)
    assert (whole.values // 20 == np.arange(50)).all()  # One of each part.


def test_one_client_one_example_and_other_dtypes():
    columns = {
        "b": np.array([3], ml_dtypes.bfloat16),
        "c": np.array([1j]),
        "n": np.array([[np.nan]]),
        "e": np.ones((1, 0)),
    }
    found = describe(FederatedData(columns, [0, 1]))
    assert found.features["b"].numbers[:7] == (1, 0, 3.0, 3.0, 0.0, 3.0, 0.0)
    assert found.features["c"].numbers is None
    np.testing.assert_array_equal(found.features["n"].numbers[2:6], np.full(4, np.nan))
    assert found.features["e"].numbers.num_values == 0
    assert found.share_of_largest(0.01) == 1
    assert "All numbers are exact." in str(found)


def test_metadata_are_counted(tmp_path, monkeypatch):
    metadata = {
        "split": ["train", "test", *["train"] * 14],
        "number": [3, *[1] * 15],
        "many": list(range(16)),
        "score": [0.5] * 8 + [1.5] * 8,
        "is_new": [True] * 3 + [False] * 13,
    }
    store = written(tmp_path / "s", CLIENTS, **metadata)
    monkeypatch.setattr(MODULE, "MAX_LABELS", 15)
    monkeypatch.setattr(MODULE, "_METADATA", 3)
    found = describe(store, features=["y"]).metadata
    assert list(found["split"].items()) == [("train", 15), ("test", 1)]
    assert (found["number"], found["is_new"]) == ({1: 15, 3: 1}, {False: 13, True: 3})
    assert (found["many"].minimum, found["many"].mean, found["many"].maximum) == (0, 7.5, 15)
    assert (found["score"].mean, found["score"].standard_deviation) == (1.0, 0.5)
    view = describe(store.select_clients([2, 3, 9]), features=["y"])
    assert (view.metadata["many"], view.sizes) == ({2: 1, 3: 1, 9: 1}, {1: 2, 3: 1})


def test_some_features_and_preprocessed_data():
    found = describe(preprocess(MEMORY, truncate(2)), features=["y", "text"])
    assert list(found.features) == ["y", "text"]
    assert found.num_examples == np.minimum(SIZES, 2).sum()
    first = np.concatenate([client["y"][:2] for client in CLIENTS])
    assert found.features["y"].numbers.mean == pytest.approx(first.mean(), rel=1e-14)
    for features in (["z", "y"], []):
        with pytest.raises(ValueError, match=r"features need to be some of \['constant', .*; got \[.*\]\. Choose"):
            describe(MEMORY, features=features)


def test_quantiles_of_counts_are_those_of_numpy():
    values = np.random.default_rng(2).integers(0, 9, 101)
    counts = {int(value): int((value == values).sum()) for value in np.unique(values)[::-1]}
    quantiles = np.linspace(0, 1, 57)
    np.testing.assert_allclose(quantiles_of_counts(counts, quantiles), np.quantile(values, quantiles), rtol=1e-14)


def test_the_bar_is_for_terminals(capsys, monkeypatch):
    monkeypatch.setattr(MODULE, "tqdm", lambda **options: tqdm(**{**options, "delay": 0}))
    describe(MEMORY)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    describe(MEMORY)
    assert "Describing:   0%|          | 0/16" in capsys.readouterr().err
    describe(MEMORY, progress=False)
    assert capsys.readouterr().err == ""


def test_the_picture_shows_sizes_labels_and_numbers(tmp_path):
    description = describe(MEMORY)
    figure = plot_description(description)
    figure.savefig(tmp_path / "plot.png", dpi=40)
    assert (tmp_path / "plot.png").stat().st_size > 5000
    panels = {axes.get_title(loc="left").split("  ")[0]: axes for axes in figure.axes[2:]}
    assert list(panels) == list(COLUMNS)
    assert figure.axes[0].get_title(loc="left") == "without 5 that have no examples"
    assert figure.axes[1].lines[0].get_ydata().tolist() == [70, 40, 29, 9, 5, 3, 2, 1, 1]
    assert figure.axes[1].lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 11]
    heights = [bar.get_height() for bar in panels["y"].patches]
    assert heights == [description.features["y"].labels.counts[value] for value in (-5, 0, 7, 10**12)]
    assert [tick.get_text() for tick in panels["flag"].get_xticklabels()] == ["0", "1"]
    outline = panels["half"].patches[0].get_xy()
    expected = np.histogram(COLUMNS["half"].astype(float), 40)[0] / N
    np.testing.assert_allclose(outline[1:81:2, 1], expected)
    assert f"{description.features['x'].numbers.num_non_finite} not finite" in panels["x"].get_title(loc="left")


def test_pictures_of_unusual_columns(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "outlier": np.append(rng.normal(size=999), 1e9),
        "heavy": rng.lognormal(0, 4, 1000),
        "none": np.full(1000, np.nan),
        "constant": np.full(1000, 1e20),
        "wide": rng.choice(np.arange(100) * 10**9, 1000),
        "dense": rng.integers(0, 200, 1000),
        "complex": np.ones((1000, 2), np.complex64),
        **{f"further {k}": np.arange(1000) for k in range(10)},
    }
    figure = plot_description(describe(FederatedData(columns, np.arange(0, 1001, 100))))
    figure.savefig(tmp_path / "plot.png", dpi=40)
    panels = {axes.get_title(loc="left").split("  ")[0]: axes for axes in figure.axes[2:]}
    assert len(panels) == 16
    assert figure.get_suptitle() == "the first 16 of 17 features"
    assert panels["outlier"].get_xlabel() == "value; 1.0% are beyond"
    assert panels["outlier"].get_xlim()[1] < 5
    assert panels["heavy"].get_xscale() == "log"
    assert panels["none"].texts[0].get_text() == "no finite real numbers"
    assert "labels, the most frequent first" in panels["wide"].get_xlabel()
    assert panels["dense"].get_xlabel() == "label"
