"""Tests of what the plots show; how they look was seen."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from fedjx.data.plots import plot_label_distribution, plot_sizes

TABLE = np.array([[3, 0, 1], [0, 5, 0], [2, 2, 2], [1, 0, 0]])
MANY = np.random.default_rng(0).multinomial(20, [0.7, 0.2, 0.1, 0.0], 1000)


def drawn(figure, path):
    """Draws, so that what only drawing finds is an error; returns the panels."""
    assert isinstance(figure, Figure)
    figure.savefig(path / "plot.png", dpi=40)
    assert (path / "plot.png").stat().st_size > 2000
    return figure.axes


def test_bars_are_stacked_counts(tmp_path):
    (axes,) = drawn(plot_label_distribution(TABLE, class_names=["cat", "dog", "eel"]), tmp_path)
    bars = np.array([[(patch.get_y(), patch.get_height()) for patch in group] for group in axes.containers])
    np.testing.assert_array_equal(bars[..., 1].T, TABLE)
    np.testing.assert_array_equal(bars[..., 0].T, np.cumsum(TABLE, axis=1) - TABLE)
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["eel", "dog", "cat"]
    assert axes.get_title() == "4 clients, 16 examples"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("client", "examples")


def test_shares_add_to_one(tmp_path):
    (axes,) = drawn(plot_label_distribution(TABLE, share=True), tmp_path)
    heights = np.array([[patch.get_height() for patch in group] for group in axes.containers])
    np.testing.assert_allclose(heights.T, TABLE / TABLE.sum(1, keepdims=True))


def test_many_clients_are_a_heat_map(tmp_path):
    axes, _ = drawn(plot_label_distribution(MANY), tmp_path)
    (image,) = (artist for artist in axes.get_children() if isinstance(artist, AxesImage))
    cells = image.get_array()
    assert cells.shape == (4, 1000)
    # All clients are there, in another order: those of the same most frequent class side by side; none is white.
    assert sorted(cells.filled(0).T.tolist()) == sorted(MANY.tolist())
    assert (np.diff(cells.filled(0).argmax(0)) >= 0).all()
    assert (cells.mask == (cells.filled(0) == 0)).all()


def test_many_bars_are_few_patches(tmp_path):
    (axes,) = drawn(plot_label_distribution(MANY, kind="bars"), tmp_path)
    assert len(axes.patches) == 4
    assert sum(patch.get_data().values.sum() - patch.get_data().baseline.sum() for patch in axes.patches) == 20_000


def test_areas_of_bubbles_are_counts(tmp_path):
    (axes,) = drawn(plot_label_distribution(TABLE, kind="bubbles"), tmp_path)
    bubbles = axes.collections[0]
    np.testing.assert_array_equal(bubbles.get_offsets(), np.argwhere(TABLE))
    areas = bubbles.get_sizes()
    np.testing.assert_allclose(areas / areas.max(), TABLE[TABLE > 0] / 5)


def test_partitions_side_by_side(tmp_path):
    for kind, num_axes in (("bars", 2), ("heatmap", 3), ("bubbles", 2)):
        axes = drawn(plot_label_distribution({"one": TABLE, "two": TABLE[:2]}, kind=kind), tmp_path)
        assert len(axes) == num_axes
        assert [panel.get_title().split(":")[0] for panel in axes[:2]] == ["one", "two"]
        assert axes[0].get_ylim() == axes[1].get_ylim()


@pytest.mark.parametrize("num_classes", [15, 100])
@pytest.mark.parametrize("kind", ["bars", "heatmap", "bubbles"])
def test_any_number_of_classes(num_classes, kind, tmp_path):
    counts = np.arange(3 * num_classes).reshape(3, num_classes)
    axes = drawn(plot_label_distribution(counts, kind=kind), tmp_path)
    num_ticks = len(axes[0].get_yticks() if kind != "bars" else axes[-1].get_yticks())
    assert num_ticks <= 21


def test_sizes_are_sorted_and_counted(tmp_path):
    sizes = np.array([5, 1, 9, 3, 3])
    histogram, curve = drawn(plot_sizes(sizes), tmp_path)
    assert curve.lines[0].get_ydata().tolist() == [9, 5, 3, 3, 1]
    assert (histogram.get_xscale(), curve.get_yscale()) == ("linear", "linear")
    assert curve.get_legend().get_texts()[0].get_text() == "5 clients, 21 examples\nmedian 3"


def test_heavy_tails_are_on_logarithmic_scales(tmp_path):
    heavy = np.append(np.ones(100, int), 5000)
    histogram, curve = drawn(plot_sizes({"heavy": heavy, "equal": np.full(50, 7)}), tmp_path)
    assert (histogram.get_xscale(), curve.get_xscale(), curve.get_yscale()) == ("log", "log", "log")
    assert len(curve.lines) == 2
    assert drawn(plot_sizes(heavy, log=False), tmp_path)[0].get_xscale() == "linear"


def test_pyplot_knows_nothing_of_it():
    plt.close("all")  # what a notebook's test has left
    for figure in (plot_sizes([1, 2]), plot_label_distribution([[1, 2]])):
        assert figure.canvas.manager is None
    assert not plt.get_fignums()
    assert plt.figure().canvas.manager is not None  # The control.
    plt.close("all")


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        (lambda: plot_label_distribution([1, 2]), r"\[clients, classes\], not all 0; got int64\[2\]"),
        (lambda: plot_label_distribution([[0.5]]), "counts need to be integers"),
        (lambda: plot_label_distribution([[-1, 2]]), "counts need to be integers"),
        (lambda: plot_label_distribution([[0, 0]]), "not all 0"),
        (lambda: plot_label_distribution({}), "something to show"),
        (lambda: plot_label_distribution(TABLE, class_names=["a"]), r"the same classes; got \[3\] and 1"),
        (lambda: plot_label_distribution({"a": TABLE, "b": TABLE[:, :2]}), r"the same classes; got \[2, 3\] and 3"),
        (lambda: plot_label_distribution(TABLE, kind="pie"), "kind='pie'"),
        (lambda: plot_sizes([0, 1]), "at least 1"),
        (lambda: plot_sizes([]), "at least 1"),
    ],
)
def test_errors(plot, message):
    with pytest.raises(ValueError, match=message):
        plot()
