"""Tests of what the plots of runs show; how they look was seen."""

import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import fedjx.experiment
from fedjx.experiment.drawing import COLOURS, look_of
from fedjx.experiment.plots import plot_clients, plot_comparison, plot_curves, plot_percentiles
from tests.experiment.histories import history, write_sweep


def drawn(figure, path):
    """Draws, so that what only drawing finds is an error; returns the panels."""
    assert isinstance(figure, Figure)
    assert not plt.get_fignums()
    figure.savefig(path / "plot.png", dpi=40)
    assert (path / "plot.png").stat().st_size > 1500
    return figure.axes


def lines(axes):
    """Returns the curves of runs, which have a name, and not the thin lines of seeds alone."""
    return [line for line in axes.lines if re.fullmatch(r"run \d+", line.get_label())]


def test_curves_are_means_of_seeds_in_bands(tmp_path):
    runs = {"slow": [history(seed=s) for s in range(3)], "fast": [history(rate=0.5)]}
    (axes,) = drawn(plot_curves(runs, "test/accuracy", "total/bits_up", target=0.8), tmp_path)
    slow, fast = lines(axes)
    np.testing.assert_array_equal(slow.get_xdata(), [5e6, 10e6, 15e6, 20e6])  # nothing was sent before round 0
    rows = [[row["test/accuracy"] for row in history(seed=s) if "test/accuracy" in row][1:] for s in range(3)]
    np.testing.assert_allclose(slow.get_ydata(), np.mean(rows, 0))
    assert len(fast.get_ydata()) == 4
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    assert edges[:, 1].min() == np.min(rows)
    assert edges[:, 1].max() == np.max(rows)
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["slow", "fast"]
    assert axes.get_xlabel() == "bits from clients to the server"
    assert axes.get_title(loc="left") == "lines: means of seeds; bands: from the least seed to the greatest"
    assert 0.8 in [line.get_ydata()[0] for line in axes.lines]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert {"10M", "20M"} <= set(labels)


def test_seeds_that_go_on_alone_are_lines_of_their_own(tmp_path):
    seeds = [history(20, every=1), history(8, every=1), history(20, every=1, seed=1, lost_from=15)]
    (axes,) = drawn(plot_curves({"a": seeds}, "train/loss"), tmp_path)
    (mean,) = lines(axes)
    assert np.isfinite(mean.get_ydata()).sum() == 8
    alone = [line.get_ydata() for line in axes.lines if line is not mean]
    assert [np.isfinite(values).sum() for values in alone] == [13, 1, 7]  # from where the lines part
    gap = [row | {"train/loss": math.nan} if row["round"] == 10 else row for row in history(20, every=1)]
    (axes,) = plot_curves({"a": [history(20, every=1), gap]}, "train/loss").axes
    alone = [line.get_ydata() for line in axes.lines if line not in lines(axes)]
    assert [np.isfinite(values).sum() for values in alone] == [3, 2]  # to where they meet again


def test_a_curve_that_explodes_leaves_the_others_to_be_seen(tmp_path):
    steady, wild = [(0, 1.0), (1, 0.5), (2, 0.4)], [(0, 1.0), (1, 1e6), (2, 1e12)]
    runs = {k: [{"round": x, "loss": y} for x, y in v] for k, v in {"steady": steady, "wild": wild}.items()}
    assert plot_curves(runs, "loss").axes[0].get_yscale() == "log"
    assert plot_curves({"steady": runs["steady"]}, "loss").axes[0].get_yscale() == "linear"


NAMES = ("_hidden", r"$\no{formula$", "50$ and 60$", "n" * 80, "a_long=name,of=many,parts=" * 3, "a<b&c")


def test_any_name_is_shown_as_it_is(tmp_path):
    rows = [{"round": 0} | {f"test/{name}": 1.0 for name in NAMES}]
    for figure in (plot_curves(dict.fromkeys(NAMES, rows), f"test/{NAMES[1]}"), plot_curves(rows, f"test/{NAMES[2]}")):
        (axes,) = drawn(figure, tmp_path)
    (axes,) = drawn(plot_comparison(dict.fromkeys(NAMES, rows), f"test/{NAMES[1]}"), tmp_path)
    legend = plot_curves(dict.fromkeys(NAMES, rows), f"test/{NAMES[0]}").legends[0]
    for texts in (legend.get_texts(), axes.get_yticklabels()):
        shown = [text.get_text() for text in texts]
        plain = ["".join(text.split()).replace("\\$", "$") for text in shown]
        assert plain == [name.replace(" ", "") for name in NAMES]
        assert max(len(line) for text in shown for line in text.splitlines()) <= 42


def test_one_round_is_a_dot(tmp_path):
    (axes,) = drawn(plot_curves(history(0), "test/accuracy"), tmp_path)
    (line,) = lines(axes)
    assert line.get_marker() == "o"
    assert len(line.get_ydata()) == 1
    (axes,) = drawn(plot_curves(history(200, every=1), "test/accuracy"), tmp_path)
    assert lines(axes)[0].get_marker() == "None"


def test_thirty_runs_look_different():
    looks = [look_of(place, 100) for place in range(30)]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 30
    assert look_of(30, 100) == looks[0]


def test_runs_are_compared_best_first(tmp_path):
    runs = {
        "middle": [history(seed=s) for s in range(2)],
        "lost": [[{"round": 0, "test/accuracy": 0.9}, {"round": 1, "test/accuracy": math.nan}]],
        "best": [history(rate=1.0)],
        "has none": [[{"round": 0}]],
    }
    (axes,) = drawn(plot_comparison(runs, "test/accuracy"), tmp_path)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["best", "middle", "lost"]
    low, high = axes.get_ylim()
    assert low > high  # the first is above
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots[1].get_xdata(), [2 / 3, 2 / 3 + 0.01])
    (bar,) = [line for line in axes.lines if line.get_marker() == "|"]
    np.testing.assert_allclose(bar.get_xdata(), [2 / 3 + 0.005])
    assert [text.get_text() for text in axes.texts] == ["not finite"]
    assert axes.get_xlabel() == "test/accuracy, last of each seed"
    (axes,) = plot_comparison(runs, "test/accuracy", at="best", mode="min").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["best", "middle", "lost"]


def test_percentiles_are_bands_between_them(tmp_path):
    (axes,) = drawn(plot_percentiles(history(), "clients/accuracy"), tmp_path)
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    at_end = edges[edges[:, 0] == 20, 1]
    np.testing.assert_allclose([at_end.min(), at_end.max()], [2 / 3 - 0.1, 2 / 3 + 0.1])
    assert axes.get_title(loc="left") == "clients; line: the median, band: 10 to 90%"


def test_clients_before_and_after(tmp_path):
    before = [0.2, 0.5, 0.9, math.nan, 0.4]
    after = {"fine-tuned": [0.4, 0.5, 0.8, 0.7, 0.9], "own": [0.1, 0.6, math.nan, 0.7, 0.5]}
    figure = plot_clients(before, after)
    cloud, gains = drawn(figure, tmp_path)
    np.testing.assert_allclose(cloud.lines[0].get_xydata(), [[0.2, 0.4], [0.5, 0.5], [0.9, 0.8], [0.4, 0.9]])
    np.testing.assert_allclose(gains.lines[1].get_ydata(), [-0.1, 0.1, 0.1], atol=1e-12)
    np.testing.assert_allclose(gains.lines[0].get_xdata(), [12.5, 37.5, 62.5, 87.5])
    assert figure.get_suptitle().splitlines() == [
        "fine-tuned: mean 0.5 before, 0.65 after; 50% of 4 clients gain, 25% lose",
        "own: mean 0.3667 before, 0.4 after; 67% of 3 clients gain, 33% lose",
    ]


def test_a_sweep_is_plotted_from_its_directory(tmp_path):
    write_sweep(tmp_path / "s")
    (axes,) = drawn(plot_curves(tmp_path / "s", "test/accuracy"), tmp_path)
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["rate=0.05", "rate=0.1"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: plot_curves(history(), "test/acc"), "'test/acc' and 'round'.*Choose among.*'test/accuracy'"),
        (lambda: plot_curves(history(), "test/accuracy", "epoch"), "'epoch'"),
        (lambda: plot_curves(history(), "test/accuracy", band="std"), "band must be one of"),
        (lambda: plot_curves(history(), "test/accuracy", target="0.8"), "target must be a number.*got target='0.8'"),
        (lambda: plot_curves([{"round": 0, "a": math.inf, "b": 1.0}], "a"), r"'a' .* finite .* among \['b', 'round'\]"),
        (lambda: plot_percentiles([history(), history()], "clients/accuracy"), "percentiles are of one run; got 2 in"),
        (lambda: plot_comparison(history(), "test/accuracy", at="first"), "at must be one of"),
        (lambda: plot_percentiles(history(), "test/accuracy"), "percentiles of 'test/accuracy'"),
        (lambda: plot_clients([0.5], [0.5, 0.6]), "the same clients"),
        (lambda: plot_clients([math.nan], [0.5]), "some client"),
        (lambda: plot_clients([0.5], {}), "something to show"),
    ],
)
def test_what_cannot_be_plotted_is_said(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


# --- colours ------------------------------------------------------------------------------------

# What those see who lack a kind of cone: Machado, Oliveira and Fernandes 2009, table 1, severity 1; of linear RGB.
LACKING = {
    "none": np.eye(3),
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def themes():
    """Reads the colours of both themes off the page: those of series, and the page's."""
    text = Path(fedjx.experiment.__file__).with_name("report.html").read_text()
    for block in re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL):
        found = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        yield [found[f"series-{i}"] for i in range(6)], found


def linear(colours):
    values = np.array([to_rgb(colour) for colour in colours])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(colour, page):
    """Returns the contrast ratio of WCAG 2."""
    luminance = linear([colour, page]) @ [0.2126, 0.7152, 0.0722] + 0.05
    return luminance.max() / luminance.min()


def nearest(colours, lacking):
    """Returns the least distance in Oklab between two colours, as seen by those who lack a cone."""
    cones = [
        [0.41222147, 0.53633254, 0.05144599],
        [0.2119035, 0.68069955, 0.10739696],
        [0.08830246, 0.28171884, 0.6299787],
    ]
    axes = [
        [0.21045426, 0.79361779, -0.00407205],
        [1.9779985, -2.42859221, 0.45059371],
        [0.02590404, 0.78277177, -0.80867577],
    ]
    seen = (linear(colours) @ np.transpose(LACKING[lacking])).clip(0, 1)
    places = np.cbrt(seen @ np.transpose(cones)) @ np.transpose(axes)
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    return distances[np.triu_indices(len(colours), 1)].min()


def test_colours_are_told_apart_and_from_the_page_in_both_themes():
    light, dark = themes()
    assert light[0] == list(COLOURS)
    for colours, page in (light, dark):
        assert min(contrast(colour, page["page"]) for colour in colours) >= 3
        assert contrast(page["text"], page["page"]) >= 7
        assert contrast(page["text"], page["warn"]) >= 7
        assert contrast(page["grey"], page["page"]) >= 4.5
        assert min(nearest(colours, lacking) for lacking in LACKING) > 0.08
    # Matplotlib's own are not.
    assert min(nearest([f"C{i}" for i in range(6)], lacking) for lacking in LACKING) < 0.06
