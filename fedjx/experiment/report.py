"""A report of runs: one file of HTML, with pictures in it, that needs nothing else and no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedjx.core.language.checks import check_choice, check_number
from fedjx.data.federated_data import ClientData
from fedjx.data.manifest import replace_file
from fedjx.data.partitions.dirichlet import label_counts
from fedjx.data.plots import plot_label_distribution, plot_sizes
from fedjx.experiment.collect import Member, Runs, collect
from fedjx.experiment.curves import Columns, curve, points, ranked
from fedjx.experiment.drawing import (
    COLOURS,
    DASHES,
    LABELS,
    draw_curves,
    draw_ends,
    draw_percentiles,
    height_of,
    percentiles,
    wrapped,
)
from fedjx.experiment.plots import plot_clients, said_of_band
from fedjx.experiment.rows import Mode, better
from fedjx.experiment.summary import Table, problems, results, settings
from fedjx.experiment.svg import picture, svg

# What the metric of the report is drawn against, where runs have it.
_AXES = ("round", "total/bits_up", "total/examples", "total/seconds", "total/simulated_seconds")
# The metric of the report if none is named: the first of these that runs have.
_METRICS = ("test/accuracy", "clients/accuracy", "test/loss", "clients/loss", "train/accuracy", "train/loss")
_MOST_DRAWN = 30
_MOST_METRICS = 24
_MOST_OPEN = 8
_LONG = 16
_MOST_PERCENTILES = 6
# More clients than these are narrower than a point of the picture of labels.
_MOST_CLIENTS = 20_000
_Seeds = Mapping[str, Sequence[Columns]]
_BeforeAfter = tuple[ArrayLike, ArrayLike | Mapping[str, ArrayLike]]


def report(
    runs: Runs,
    output: str | Path,
    *,
    metric: str | None = None,
    mode: Mode | None = None,
    target: float | None = None,
    data: ClientData | None = None,
    label: str | None = None,
    personalised: Mapping[str, _BeforeAfter] = {},
    title: str | None = None,
) -> None:
    """Writes a report of runs: results, curves, clients, what was run, and what went wrong, as one file of HTML.

    The file needs no network and no scripts, is read on a phone too, and takes the browser's light or dark theme. The
    same runs give the same file. Of over 30 runs the best 30 are drawn; tables have all.

    Args:
      runs: A run's directory, a sweep's, several of them, or rows by name; as `fedjx.experiment.collect.collect` takes
        them.
      output: The file, such as ``"report.html"``; written over. Folders that are missing are made.
      metric: What runs are compared by; by default ``test/accuracy``, or else what is like it.
      mode: Whether more or less of it is better; by default less of a loss, an error, a perplexity or an epsilon.
      target: Of the metric: when runs reached it.
      data: The clients' examples, whose sizes are drawn, and how their labels are distributed.
      label: The feature with the labels, drawn where it is one integer per example, of up to 20,000 clients; by default
        "y", if the data have it.
      personalised: By name, such as "accuracy", a metric of each client before and after personalisation, as
        `plot_clients` takes them.
      title: Of the report; by default the names of the runs.

    Raises:
      ValueError: If there is no run, or none has the metric; if no rows have a round, the data no such label, or the
        file cannot be one.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "report.html"
    >>> report({"fed_avg": [{"round": 0, "test/loss": 2.0}, {"round": 1, "test/loss": 1.0}]}, path)
    >>> "<h1>fed_avg</h1>" in path.read_text()
    True
    """
    if target is not None:
        check_number("(-inf, inf)", "Pass one, or None for no target.", target=target)
    found = _with_rounds(collect(runs))
    seeds = {name: [member.metrics for member in members if member.metrics] for name, members in found.items()}
    metric = _chosen(metric, seeds)
    mode = mode or better(metric)
    check_choice(("max", "min"), mode=mode)
    title = title or _title(runs, list(found))
    drawn = {name: run for name, run in seeds.items() if run}
    if len(drawn) > _MOST_DRAWN:
        drawn = {name: drawn[name] for name in list(ranked(drawn, metric, "last", mode))[:_MOST_DRAWN]}
    sections = [
        *_beginning(title, found),
        *_results(found, metric, mode, target),
        *_curves(drawn, metric, target),
        *_comparison(drawn, metric, mode),
        *_others(drawn, metric),
        *_clients(drawn),
        *_before_and_after(personalised),
        *_data(data, label),
        *_settings(found),
    ]
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    page = template.substitute(title=escape(title), body="\n".join(sections))
    replace_file(_file(output), page.encode("utf-8", "replace"))


def _file(output: str | Path) -> Path:
    """Returns where the report is written, in a folder that is there."""
    path = Path(output).expanduser()
    if path.is_dir():
        raise ValueError(f"a report is a file; got {path}, a directory. Name a file in it: {path / 'report.html'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"a report needs a folder; got {path.parent}: {error.strerror}. Choose another.") from None
    return path


def _with_rounds(found: Mapping[str, Sequence[Member]]) -> dict[str, list[Member]]:
    """Leaves out rows without a round, and says so; refuses them where there are no others."""
    members = [member for of_name in found.values() for member in of_name if member.metrics]
    if members and not any("round" in member.metrics for member in members):
        names = sorted({name for member in members for name in member.metrics})
        raise ValueError(f"the rows of a report need their round; got {names} alone. Give each row its 'round'.")
    lost = {"metrics": {}, "problem": "its rows have no round, and are left out"}
    return {
        name: [m._replace(**lost) if m.metrics and "round" not in m.metrics else m for m in of_name]
        for name, of_name in found.items()
    }


# --- sections -----------------------------------------------------------------------------------


def _beginning(title: str, found: Mapping[str, Sequence[Member]]) -> Iterator[str]:
    num_seeds = sum(map(len, found.values()))
    counted = f"{len(found):,} run{'s' * (len(found) > 1)}"
    yield f"<h1>{escape(title)}</h1>"
    yield f'<p class="note">{counted}{f", {num_seeds:,} with all seeds" if num_seeds > len(found) else ""}</p>'
    if texts := list(problems(found)):
        items = "".join(f"<li>{escape(text)}</li>" for text in texts)
        is_open = " open" if len(texts) <= _MOST_OPEN else ""
        yield f'<details class="warnings"{is_open}><summary>Warnings: {len(texts)}</summary><ul>{items}</ul></details>'


def _results(found: Mapping[str, Sequence[Member]], metric: str, mode: Mode, target: float | None) -> Iterator[str]:
    yield "<h2>Results</h2>"
    yield _table(results(found, metric, mode, target), "numbers long" if max(map(len, found)) > _LONG else "numbers")
    said = f"{metric}: {'more' if mode == 'max' else 'less'} is better."
    if any(len(members) > 1 for members in found.values()):
        said += " Numbers are means of seeds ± their standard deviation, rounds to a target the median."
    yield f'<p class="note">{escape(said)}</p>'


def _curves(seeds: _Seeds, metric: str, target: float | None) -> Iterator[str]:
    drawn = [_curve_picture(seeds, metric, x, target) for x in _AXES if _has(seeds, metric, x)]
    if drawn:
        yield f"<h2>{escape(metric)}</h2>"
        yield from _legend(seeds)
        yield _pictures(drawn)


def _comparison(seeds: _Seeds, metric: str, mode: Mode) -> Iterator[str]:
    if len(seeds) < 2 or not _has(seeds, metric, "round"):
        return
    ends = ranked(
        {name: run for name, run in seeds.items() if _has({name: run}, metric, "round")}, metric, "last", mode
    )
    is_wide = max(map(len, ends)) > _LONG
    size = (6.4 if is_wide else 4.4, height_of(ends))

    def draw(axes: Any) -> None:
        draw_ends(axes, ends)
        axes.set_xlabel(wrapped(metric))

    yield "<h2>Runs compared</h2>"
    caption = f"{metric}, last of each seed, the best run first; a bar at the mean of several seeds"
    yield _pictures([_figure(picture(draw, f"{metric} of runs", size), caption, wide=is_wide)])


def _others(seeds: _Seeds, metric: str) -> Iterator[str]:
    """Draws all metrics that change."""
    names = _names(seeds)
    shown = [name for name in names if name not in ("round", metric) and not _is_apart(name) and _changes(seeds, name)]
    if shown:
        yield "<h2>Other metrics</h2>"
        yield from _legend(seeds) if len(seeds) <= _MOST_OPEN else ['<p class="note"><a href="#lines">Lines</a></p>']
        yield _pictures([_curve_picture(seeds, name, "round", None) for name in shown[:_MOST_METRICS]])
    if left := shown[_MOST_METRICS:]:
        yield f'<p class="note">Not drawn: {escape(", ".join(left))}</p>'


def _clients(seeds: _Seeds) -> Iterator[str]:
    """Draws the percentiles of clients, of the first seed of each run."""
    first = {name: run[0] for name, run in seeds.items() if run}
    names = ((run, key.rpartition("_p")[0]) for run, metrics in first.items() for key in metrics if _is_percentile(key))
    drawn = [(run, name) for run, name in dict.fromkeys(names) if len(percentiles(first[run], name)) > 1]
    if drawn:
        yield "<h2>Clients</h2>"
        yield _pictures(
            _percentile_picture(first[run], name, f"{run}, its first seed" if len(seeds[run]) > 1 else run)
            for run, name in drawn[:_MOST_PERCENTILES]
        )
    if left := drawn[_MOST_PERCENTILES:]:
        yield f'<p class="note">Not drawn: {len(left)} more</p>'


def _before_and_after(personalised: Mapping[str, _BeforeAfter]) -> Iterator[str]:
    if personalised:
        yield "<h2>Personalisation</h2>"
        yield _pictures(_gains(*pair, metric) for metric, pair in personalised.items())


def _data(data: ClientData | None, label: str | None) -> Iterator[str]:
    if data is None:
        return
    if label is not None and label not in data.schema:
        raise ValueError(f"label must be a feature of the data; got {label=}. Choose among {sorted(data.schema)}.")
    label = label or "y"
    yield "<h2>Data</h2>"
    yield f'<p class="note">{data.num_clients:,} clients, {data.num_examples:,} examples</p>'
    sizes = np.asarray(data.sizes)
    drawn = [_figure(svg(lambda: plot_sizes(sizes[sizes > 0]), "sizes of clients"), "sizes of clients", wide=True)]
    feature = data.schema.get(label)
    if feature and not feature.shape and feature.dtype.kind in "iu" and data.num_clients <= _MOST_CLIENTS:
        counts = label_counts(data, label)
        text = f"labels of clients, {label}"
        drawn.append(_figure(svg(lambda: plot_label_distribution(counts), text), text, wide=True))
    yield _pictures(drawn)


def _settings(found: Mapping[str, Sequence[Member]]) -> Iterator[str]:
    common, differing = settings(found)
    if common.rows or differing.rows:
        yield "<h2>What was run</h2>"
    if differing.rows:
        yield _table(differing, "text")
    if common.rows:
        yield f'<p class="note">{"The same for all" if len(found) > 1 else "Its settings"}:</p>'
        yield _table(common, "text")


# --- pieces -------------------------------------------------------------------------------------


def _title(runs: Runs, names: Sequence[str]) -> str:
    if isinstance(runs, str | Path):
        return Path(runs).absolute().name
    shown = [name for name in names if name][:3]
    return ", ".join([*shown, "…"] if len(names) > 3 else shown) or "A run"


def _chosen(metric: str | None, seeds: _Seeds) -> str:
    names = _names(seeds)
    if metric is not None and not _has(seeds, metric, "round"):
        raise ValueError(f"metric must be a number in some rows; got metric={metric!r}. Choose among {names}.")
    numbers = [name for name in names if name != "round" and not name.startswith("total/")]
    return metric or next((name for name in (*_METRICS, *numbers) if _has(seeds, name, "round")), "test/accuracy")


def _names(seeds: _Seeds) -> list[str]:
    return list(dict.fromkeys(name for run in seeds.values() for metrics in run for name in metrics))


def _has(seeds: _Seeds, y: str, x: str) -> bool:
    """Says whether some rows have a metric, and what it is drawn against changes."""
    return any(len(points(metrics, y, x)[0]) > (x != "round") for run in seeds.values() for metrics in run)


def _is_apart(name: str) -> bool:
    """Says whether a metric has pictures of its own: totals, and percentiles."""
    return name.startswith("total/") or _is_percentile(name)


def _is_percentile(name: str) -> bool:
    return name.rpartition("_p")[2].isdecimal()


def _changes(seeds: _Seeds, name: str) -> bool:
    values = [points(metrics, name)[1] for run in seeds.values() for metrics in run]
    return len(np.unique(np.concatenate([[], *values]))) > 1


def _curve_picture(seeds: _Seeds, y: str, x: str, target: float | None) -> str:
    # Each keeps the look of its place, whether or not those before it have the metric.
    curves = {name: curve(run, y, x) for name, run in seeds.items()}
    num_parts = int(np.clip(1500 / len(curves), 40, 150))
    text = f"{y} by {LABELS.get(x, x)}"
    drawn = picture(lambda axes: draw_curves(axes, curves, y, x, target=target, num_parts=num_parts), text)
    return _figure(drawn)


def _percentile_picture(metrics: Columns, name: str, caption: str) -> str:
    drawn = picture(
        lambda axes: draw_percentiles(axes, metrics, name, "round", num_parts=150), f"{name} of clients, {caption}"
    )
    return _figure(drawn, caption)


def _gains(before: ArrayLike, after: ArrayLike | Mapping[str, ArrayLike], metric: str) -> str:
    text = f"{metric} of each client before and after personalisation"
    return _figure(svg(lambda: plot_clients(before, after, metric), text), text, wide=True)


def _legend(seeds: _Seeds) -> Iterator[str]:
    if len(seeds) > 1:
        items = (f"<li>{_sample(place)}<span>{escape(name)}</span></li>" for place, name in enumerate(seeds))
        yield f'<ul class="legend" id="lines">{"".join(items)}</ul>'
    if any(len(run) > 1 for run in seeds.values()):
        yield f'<p class="note">{said_of_band("range").capitalize()}.</p>'


def _sample(place: int) -> str:
    """Draws a piece of the line of a run."""
    turn, colour = divmod(place, len(COLOURS))
    dashes = " ".join(f"{2 * length:g}" for length in DASHES[turn % len(DASHES)])
    style = f"stroke: var(--series-{colour}); stroke-width: 2; stroke-dasharray: {dashes or 'none'}"
    return f'<svg viewBox="0 0 40 24" aria-hidden="true"><path d="M 0 12 H 40" style="{style}"/></svg>'


def _pictures(figures: Iterable[str]) -> str:
    return f'<div class="pictures">{"".join(figures)}</div>'


def _figure(drawn: str, caption: str = "", *, wide: bool = False) -> str:
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    if wide:
        return f'<figure class="wide"><div class="scroll" tabindex="0">{drawn}</div>{said}</figure>'
    return f"<figure>{drawn}{said}</figure>"


def _table(table: Table, kind: str) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    head = f"<thead><tr>{head}</tr></thead>" if any(table.head) else ""
    body = ""
    for i, row in enumerate(table.rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body += f'<tr class="best">{cells}</tr>' if i == table.best else f"<tr>{cells}</tr>"
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'
