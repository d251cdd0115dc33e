"""Plots of data: the labels of each client, the clients' sizes, and what `describe` found.

Each returns a `matplotlib.figure.Figure` that no global state knows: it is shown where a notebook displays it and
saved with ``figure.savefig(path)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_choice
from fedjx.data.describe import Description, Feature
from fedjx.data.tallies import quantiles_of_counts

if TYPE_CHECKING:  # Matplotlib takes a while to import, which those who plot nothing need not wait for.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["auto", "bars", "heatmap", "bubbles"]

# More bars than these are thinner than the gaps between them.
_MOST_BARS = 60
_MOST_IN_LEGEND = 20
_MOST_FEATURES = 16
# Labels up to so far apart are at their places on an axis.
_MOST_LABELS = 1000


def plot_label_distribution(
    counts: ArrayLike | Mapping[str, ArrayLike],
    *,
    kind: Kind = "auto",
    share: bool = False,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Plots how many examples of each class each client has.

    Args:
      counts: As `label_counts` returns them, ``[K, C]``; or several of them by title, to compare partitions
        side by side.
      kind: "bars", stacked; "heatmap", a cell for each client and class; "bubbles", whose areas are the numbers;
        "auto", bars for up to 60 clients, else a heat map. In heat maps and among over 60 bars, clients with the
        same most frequent class are side by side.
      share: Whether to plot shares of a client's examples in place of numbers.
      class_names: Of the C classes; their numbers if not given.

    Raises:
      ValueError: If `counts` are not counts, tables to compare have other classes, or `kind` is unknown.

    >>> figure = plot_label_distribution([[3, 0], [1, 2]])
    >>> [axes.get_title() for axes in figure.axes]
    ['2 clients, 6 examples']
    """
    from matplotlib.figure import Figure

    check_choice(("auto", "bars", "heatmap", "bubbles"), kind=kind)
    tables = {name: _checked_table(table) for name, table in _by_title(counts).items()}
    num_classes = {table.shape[1] for table in tables.values()}
    names = list(map(str, range(max(num_classes)))) if class_names is None else list(class_names)
    if num_classes != {len(names)}:
        raise ValueError(
            f"tables and class_names need the same classes; got {sorted(num_classes)} and {len(names)}. "
            "Give num_classes to label_counts."
        )
    if kind == "auto":
        kind = "bars" if max(map(len, tables.values())) <= _MOST_BARS else "heatmap"
    draw = {"bars": _bars, "heatmap": _heatmap, "bubbles": _bubbles}[kind]

    figure = Figure(figsize=(2.0 + 5.5 * len(tables), 4.2), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        axes.set_title(_title(name, len(table), table.sum()), fontsize=10)
        axes.set_xlabel("client")
        axes.xaxis.get_major_locator().set_params(integer=True)
    values = [table / table.sum(1, keepdims=True).clip(1) if share else table for table in tables.values()]
    draw(figure, panels, values, names, "share of the client's examples" if share else "examples")
    return figure


def plot_sizes(sizes: ArrayLike | Mapping[str, ArrayLike], *, log: bool | None = None) -> Figure:
    """Plots how the clients' sizes are distributed: a histogram, and the sizes from the largest to the smallest.

    Args:
      sizes: Number of examples of each client, ``[K]``; or several of them by name, to compare.
      log: Whether the scales are logarithmic; by default if the largest client has over 20 times the median.

    Raises:
      ValueError: If a size is less than 1, or there is none.

    >>> [axes.get_xlabel() for axes in plot_sizes([3, 1, 2]).axes]
    ['examples of a client', 'clients, the largest first']
    """
    from matplotlib.figure import Figure

    columns = {name: np.asarray(column) for name, column in _by_title(sizes).items()}
    for column in columns.values():
        if column.ndim != 1 or not len(column) or column.min() < 1:
            raise ValueError(f"sizes need to be at least 1, [clients]; got {column.shape=}. Give those of all clients.")
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    histogram, curve = figure.subplots(1, 2)
    counts = {name: dict(zip(*np.unique(column, return_counts=True), strict=True)) for name, column in columns.items()}
    _draw_sizes(histogram, curve, counts, log)
    return figure


def plot_description(description: Description) -> Figure:
    """Plots what `describe` found: the clients' sizes, the features' values, and how often each label is there.

    A histogram is of the values of the sample; where a few are far from all others it leaves them out, and says how
    many. Of more than 16 features the first are shown.

    >>> from fedjx.data import describe, digits
    >>> figure = plot_description(describe(digits(num_clients=10)[0]))
    >>> [axes.get_title(loc="left").splitlines()[0] for axes in figure.axes[2:]]
    ['x  uint8 [8, 8, 1]', 'y  int32']
    """
    from matplotlib.figure import Figure

    shown = dict(list(description.features.items())[:_MOST_FEATURES])
    num_rows = -(-(2 + len(shown)) // 3)
    figure = Figure(figsize=(13.0, 0.4 + 3.3 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, 3, squeeze=False).ravel()
    counts = {size: count for size, count in description.sizes.items() if size}
    _draw_sizes(panels[0], panels[1], {"": counts}, None)
    if num_empty := description.sizes.get(0, 0):
        panels[0].set_title(f"without {num_empty:,} that have no examples", fontsize=9, loc="left")
    for axes, (name, feature) in zip(panels[2:], shown.items(), strict=False):
        _draw_feature(axes, name, feature)
        _tidy(axes)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    for axes in panels[2 + len(shown) :]:
        axes.remove()
    if len(shown) < len(description.features):
        figure.suptitle(f"the first {len(shown)} of {len(description.features)} features", fontsize=9)
    return figure


def _draw_sizes(histogram: Any, curve: Any, columns: Mapping[str, Mapping[int, int]], log: bool | None) -> None:
    """Draws clients by size, each column of them as numbers of clients of each size."""
    sizes = {name: np.array(sorted(column)) for name, column in columns.items()}
    clients = {name: np.array([columns[name][size] for size in column.tolist()]) for name, column in sizes.items()}
    medians = {name: float(quantiles_of_counts(column, 0.5)) for name, column in columns.items()}
    if log is None:
        log = any(column[-1] > 20 * medians[name] for name, column in sizes.items())
    edges = _edges(list(sizes.values()), max(column.sum() for column in clients.values()), log)
    for name, column in sizes.items():
        kind = "stepfilled" if len(columns) == 1 else "step"
        histogram.hist(column, edges, weights=clients[name], histtype=kind, linewidth=1.5)
        last = clients[name][::-1].cumsum()
        # Clients of one size are a line between the first and the last of them.
        rank, first_of = np.unique(np.stack([last - clients[name][::-1] + 1, last], 1).ravel(), return_index=True)
        title = _title(name, int(last[-1]), int(column @ clients[name]))
        curve.plot(rank, column[::-1].repeat(2)[first_of], label=f"{title}\nmedian {medians[name]:,g}")
    histogram.set(xlabel="examples of a client", ylabel="clients", xscale="log" if log else "linear")
    histogram.yaxis.get_major_locator().set_params(integer=True)
    curve.set(xlabel="clients, the largest first", ylabel="examples of a client")
    if log:
        curve.set(xscale="log", yscale="log")
    else:
        curve.set_ylim(bottom=0)
    curve.legend(fontsize=8)
    for axes in (histogram, curve):
        _tidy(axes)
        axes.grid(alpha=0.3)


def _draw_feature(axes: Axes, name: str, feature: Feature) -> None:
    """Draws a bar for each label or length, or a histogram of numbers."""
    about = ""
    if feature.labels or feature.lengths is not None:
        _draw_counts(axes, feature.labels.counts if feature.labels else feature.lengths or {}, bool(feature.labels))
    elif feature.numbers and len(feature.numbers.sample):
        found = feature.numbers
        about = f"\nmean {found.mean:.4g}, deviation {found.standard_deviation:.4g}"
        about += f", {found.num_non_finite:,} not finite" if found.num_non_finite else ""
        _draw_numbers(axes, found.sample)
    else:
        axes.text(0.5, 0.5, "no finite real numbers", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    shape = str(list(feature.type.shape)).replace("[]", "")
    title = f"{name if len(name) < 30 else name[:29] + '…'}  {feature.type.dtype} {shape}".rstrip()
    axes.set_title(title + about, loc="left", fontsize=9)


def _draw_counts(axes: Axes, counts: Mapping[int, int], are_labels: bool) -> None:
    values = sorted(counts)
    number = [counts[value] for value in values]
    axes.set(xlabel="label" if are_labels else "bytes of text", ylabel="examples")
    if not are_labels:
        axes.hist(values, _edges([np.array(values)], sum(number), False), weights=number, histtype="stepfilled")
    elif len(values) <= _MOST_IN_LEGEND:
        axes.bar(np.arange(len(values)), number, 0.85)
        axes.set_xticks(range(len(values)), list(map(str, values)))
    elif values[-1] - values[0] < _MOST_LABELS:
        axes.bar(np.array(values), number, 0.85 if len(values) <= _MOST_BARS else 1.0)
    else:
        axes.stairs(sorted(number, reverse=True), np.arange(len(number) + 1) + 0.5, fill=True)
        axes.set_xlabel(f"{len(counts)} labels, the most frequent first")


def _draw_numbers(axes: Axes, sample: np.ndarray) -> None:
    values = sample.astype(np.float64)
    low, high = np.quantile(values, [0.005, 0.995])
    log = values[0] > 0 and high > 1000 * low
    if not log and values[-1] - values[0] > 5 * (high - low) > 0:
        values = values[(values >= low) & (values <= high)]
    beyond = f"; {1 - len(values) / len(sample):.1%} are beyond" if len(values) < len(sample) else ""
    axes.set(xlabel=f"value{beyond}", ylabel="share of values", xscale="log" if log else "linear")
    low, high = values[0], values[-1]
    if low == high:
        edges = low + np.array([-0.5, 0.5]) * max(1.0, abs(low))
    elif sample.dtype.kind in "iub" and not log:  # Bins of as many integers each.
        width = -(-(high - low + 1) // 32)
        edges = np.arange(low, high + width + 1, width) - 0.5
    else:
        edges = (np.geomspace if log else np.linspace)(low, high, 41)
    axes.hist(values, edges.tolist(), weights=np.full(len(values), 1 / len(values)), histtype="stepfilled")


def _bars(figure: Figure, panels: Any, tables: list[np.ndarray], names: list[str], quantity: str) -> None:
    colours = _colours(len(names))
    for axes, table in zip(panels, tables, strict=True):
        table = table if len(table) <= _MOST_BARS else _by_class(axes, table)
        ends = np.cumsum(table, axis=1)
        for label in range(len(names)):
            start = ends[:, label] - table[:, label]
            if len(table) <= _MOST_BARS:
                axes.bar(np.arange(len(table)), table[:, label], 0.85, bottom=start, color=colours[label])
            else:  # One outline a class, and not a patch a client.
                edges = np.arange(len(table) + 1) - 0.5
                axes.stairs(ends[:, label], edges, baseline=start, fill=True, color=colours[label])
        axes.set_xlim(-0.7, len(table) - 0.3)
        _tidy(axes)
    panels[0].set_ylabel(quantity)
    _class_key(figure, panels, colours, names)


def _heatmap(figure: Figure, panels: Any, tables: list[np.ndarray], names: list[str], quantity: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm, Normalize

    highest = max(table.max() for table in tables)
    # Counts of a skewed partition span several powers of ten; white is none.
    norm = LogNorm(1, highest) if highest >= 50 else Normalize(0, highest)
    for axes, table in zip(panels, tables, strict=True):
        cells = np.ma.masked_equal(_by_class(axes, table).T, 0)
        axes.imshow(cells, aspect="auto", cmap="viridis_r", norm=norm, interpolation="nearest", origin="lower")
    _class_axis(panels[0], names)
    figure.colorbar(ScalarMappable(norm, "viridis_r"), ax=list(panels), label=quantity)


def _bubbles(figure: Figure, panels: Any, tables: list[np.ndarray], names: list[str], quantity: str) -> None:
    highest = max(table.max() for table in tables)
    # The largest just touch, with a panel of about 330 by 220 points.
    widest = min(330 / max(map(len, tables)), 220 / len(names))
    for axes, table in zip(panels, tables, strict=True):
        client, label = np.nonzero(table)
        axes.scatter(client, label, widest**2 * table[client, label] / highest, alpha=0.7, linewidths=0)
        axes.set(xlim=(-0.7, len(table) - 0.3), ylim=(-0.7, len(names) - 0.3))
        _tidy(axes)
    _class_axis(panels[0], names)
    shown = [highest, highest / 4] if highest <= 1 else sorted({int(highest), max(1, int(highest) // 4)}, reverse=True)
    handles = [
        panels[0].scatter([], [], widest**2 * n / highest, color="C0", alpha=0.7, label=f"{n:.3g}") for n in shown
    ]
    figure.legend(handles=handles, title=quantity.replace(" of", "\nof"), loc="outside right center", frameon=False)


def _by_class(axes: Axes, table: np.ndarray) -> np.ndarray:
    """Sorts the clients by their most frequent class, and those with the same by how many examples they have of it."""
    axes.set_xlabel("clients, by their most frequent class")
    return table[np.lexsort((-table.max(1), table.argmax(1)))]


def _class_axis(axes: Axes, names: list[str]) -> None:
    axes.set_ylabel("class")
    step = -(-len(names) // _MOST_IN_LEGEND)
    axes.set_yticks(range(0, len(names), step), names[::step])


def _class_key(figure: Figure, panels: Any, colours: np.ndarray, names: list[str]) -> None:
    """Tells the classes' colours: in a legend, or where there are many by a scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    if len(names) <= _MOST_IN_LEGEND:
        # From top to bottom as in the bars.
        handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)][::-1]
        figure.legend(handles=handles, title="class", loc="outside right center", frameon=False)
        return
    norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
    key = figure.colorbar(ScalarMappable(norm, ListedColormap(colours.tolist())), ax=list(panels), label="class")
    step = -(-len(names) // _MOST_IN_LEGEND)
    key.set_ticks(list(range(0, len(names), step)), labels=names[::step])
    key.minorticks_off()


def _colours(num_classes: int) -> np.ndarray:
    from matplotlib import colormaps

    if num_classes <= 10:
        return colormaps["tab10"](np.arange(num_classes))
    if num_classes <= _MOST_IN_LEGEND:
        return colormaps["tab20"](np.arange(num_classes))
    return colormaps["turbo"](np.linspace(0, 1, num_classes))


def _edges(columns: list[np.ndarray], num_clients: int, log: bool) -> list[float]:
    """Returns the edges of a histogram's bins, which hold whole numbers of sizes each, few for few clients."""
    smallest, largest = min(column[0] for column in columns), max(column[-1] for column in columns)
    num_edges = int(np.clip(2 * np.sqrt(num_clients), 5, 40)) + 1
    edges = (np.geomspace if log else np.linspace)(smallest, largest + 1, num_edges)
    return (np.unique(np.rint(edges)) - 0.5).tolist()


def _by_title(values: Any) -> dict[str, Any]:
    tables = dict(values) if isinstance(values, Mapping) else {"": values}
    if not tables:
        raise ValueError("a plot needs something to show; got {}. Give at least one partition.")
    return tables


def _checked_table(counts: ArrayLike) -> np.ndarray:
    table = np.asarray(counts)
    if table.ndim != 2 or 0 in table.shape or table.dtype.kind not in "iu" or table.min() < 0 or not table.any():
        raise ValueError(
            f"counts need to be integers, [clients, classes], not all 0; got {table.dtype}{list(table.shape)}. "
            "Take them from label_counts."
        )
    return table


def _title(name: str, num_clients: int, num_examples: int) -> str:
    counted = f"{num_clients:,} client{'s' * (num_clients != 1)}, {num_examples:,} examples"
    return f"{name}: {counted}" if name else counted


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
