"""Tests of what a report says. How it looks is tested in a browser, and was seen."""

import math
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest

from fedjx.data import FederatedData
from fedjx.experiment.__main__ import main
from fedjx.experiment.report import report
from tests.experiment.histories import history, write_run, write_sweep


class Page(HTMLParser):
    """Reads tables, pictures and texts of a page, and fails where tags do not match."""

    def __init__(self, path):
        super().__init__()
        self.open, self.texts, self.rows, self.labels, self.links, self.tags = [], {}, [], [], [], set()
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.add(tag)
        self.links += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "style", "srcset")
        ]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "svg" and "aria-label" in named:
            self.labels.append(named["aria-label"])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open[-1:] == [tag]:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data
        elif self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())


def reported(runs, path, **options):
    report(runs, path / "report.html", **options)
    return Page(path / "report.html")


def test_a_sweep(tmp_path):
    write_sweep(tmp_path / "rates")
    page = reported(tmp_path / "rates", tmp_path, target=0.55)
    assert page.texts["title"] == page.texts["h1"] == ["rates"]
    head, slow, fast, failed = page.rows[:4]
    assert dict(zip(head, slow, strict=True)) == {
        "run": "rate=0.05",
        "seeds": "2",
        "rounds": "20",
        "last test/accuracy": "0.505 ± 0.0071",
        "best": "0.505 ± 0.0071",
        "rounds to 0.55": "not reached",
        "bits up": "20 M",
        "examples": "3,600",
        "seconds": "10",
    }
    # 0.6 in round 15 after 0.5 in round 10; 0.61 after 0.51.
    assert fast[:6] == ["rate=0.1", "2", "20", "0.6717 ± 0.0071", "0.6717 ± 0.0071", "12.25"]
    assert failed == ["rate=4.0", "0 of 1", "–", "–", "–", "–", "–", "–", "–"]
    assert page.texts["li"] == [
        "rate=0.1: it has not ended: it goes on, or was killed (seed-1)",
        "rate=4.0: it failed with ValueError: rate must be <b>below</b> 2 (seed-0)",
    ]
    assert page.texts["h2"] == ["Results", "test/accuracy", "Runs compared", "Other metrics", "Clients", "What was run"]
    assert page.labels == [
        "test/accuracy by round",
        "test/accuracy by bits from clients to the server",
        "test/accuracy by examples, each time one is seen",
        "test/accuracy by seconds",
        "test/accuracy of runs",
        "train/loss by round",
        "clients/accuracy of clients, rate=0.05, its first seed",
        "clients/accuracy of clients, rate=0.1, its first seed",
    ]
    assert page.rows[4:] == [
        ["run", "rate"],
        ["rate=0.05", "0.05"],
        ["rate=0.1", "0.1"],
        ["rate=4.0", "4.0"],
        ["data", "8f3b"],
    ]
    assert page.texts["span"] == ["rate=0.05", "rate=0.1"] * 2  # the run that failed has no line
    assert '<tr class="best"><td>rate=0.1</td>' in (tmp_path / "report.html").read_text()


def test_why_runs_have_ended(tmp_path):
    for seed, reason in enumerate(("all 20 rounds are done", "it was told to end, by SIGTERM")):
        write_run(tmp_path / "runs" / "a" / f"seed-{seed}", history(), ended={"reason": reason, "error": ""})
    write_run(tmp_path / "runs" / "b", history(), ended={"reason": "", "error": "ValueError: no"})
    page = reported(tmp_path / "runs", tmp_path)
    assert [row[-1] for row in page.rows[:3]] == ["ended", "all 20 rounds are done, and 1 more", "–"]
    assert page.texts["li"][:1] == ["b: it ended with ValueError: no"]


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
    page = reported({"a": history(), "b": history()}, tmp_path)
    assert page.tags.isdisjoint({"script", "iframe", "object", "embed", "form", "base", "img"})
    assert all(
        link.startswith(("#", "data:", "fill", "stroke", "clip-path", "font", "text-anchor")) for link in page.links
    )
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert "default-src 'none'" in text


EVIL = '<script>alert("1")</script>&amp;\'x\' style="#000000" $\\no{formula$'


def test_names_are_text(tmp_path):
    rows = [
        {"round": r, f"test/{EVIL}": float(r), "test/note": EVIL, f"clients/{EVIL}_p10": r, f"clients/{EVIL}_p90": r}
        for r in (1, 2)
    ]
    write_run(tmp_path / "runs" / "seed-0", rows, {EVIL: {"a": EVIL}})
    data = FederatedData({"y": np.arange(4)}, np.array([0, 2, 4]))
    options = {"metric": f"test/{EVIL}", "title": EVIL, "data": data}
    page = reported({EVIL: tmp_path / "runs" / "seed-0", f"{EVIL}2": rows}, tmp_path, **options)
    assert "script" not in page.tags
    assert page.texts["h1"] == page.texts["title"] == [EVIL]
    assert page.rows[1][0] == EVIL
    assert page.rows[3:] == [["run", f"{EVIL}.a"], [EVIL, EVIL], [f"{EVIL}2", "–"]]
    assert f"test/{EVIL}".split()[0] in page.texts["text"]  # a label in a picture, line by line
    assert any("#000000" in text for text in page.texts["text"])


def test_the_same_rows_make_the_same_file(tmp_path):
    rows = [{"round": r, "test/loss": 1 / (1 + r)} for r in range(3)]
    runs = {"a": [rows, rows[:2]], "b": rows}
    report(runs, tmp_path / "a.html")
    with mpl.rc_context({"axes.linewidth": 5, "font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9}):
        report(runs, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    report({"a": runs["a"]}, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() != (tmp_path / "b.html").read_bytes()


def test_pictures_take_their_colours_from_the_page(tmp_path):
    reported({"a": [history(), history(seed=1)], "b": history()}, tmp_path, target=0.5)
    drawn = "".join(re.findall(r"<svg.*?</svg>", (tmp_path / "report.html").read_text(), flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)
    for colour in ("currentColor", "var(--grey)", "var(--series-0)", "var(--series-1)"):
        assert colour in drawn
    names = re.findall(r'\bid="([^"]*)"', drawn)
    assert len(names) == len(set(names))
    assert set(re.findall(r'(?:href="|url\()#(\w+)', drawn)) <= set(names)


def test_what_is_not_finite_is_told(tmp_path):
    rows = history(10, lost_from=4)
    rows[10]["test/accuracy"] = math.inf
    page = reported({"lost": [rows, history(10)]}, tmp_path)
    assert page.rows[1][3:5] == ["1 of 2 not finite", "0.4167 ± 0.12"]
    assert page.texts["li"] == [
        "lost: test/accuracy is not finite (in round 10)",
        "lost: train/loss is not finite (in 7 rounds from 4 on)",
        "lost: train/num_non_finite_clients is not 0 (21 in all, in 7 rounds from 4 on)",
    ]


@pytest.mark.parametrize(
    "rows", [[], [{"round": 0}], history(0), [{"round": 0, "test/loss": math.nan}], [{"round": 3, "note": "x"}]]
)
def test_little_is_reported_too(rows, tmp_path):
    page = reported({"a": rows, "b": rows}, tmp_path)
    assert [row[0] for row in page.rows[1:3]] == ["a", "b"]
    assert ("test/accuracy by round" in page.labels) == (rows == history(0))


def test_many_runs_and_long_ones(tmp_path):
    runs = {f"{'long name ' * 7}{i}": history(20, rate=0.01 * i, every=10) for i in range(32)}
    runs["long"] = [{"round": r, "test/accuracy": math.sin(r) / 9} for r in range(4001)]
    page = reported(runs, tmp_path)
    assert len(page.rows) == 1 + 33
    assert len(page.texts["span"]) == 30
    assert "long" not in page.texts["span"]
    reported(runs["long"], tmp_path, title="One")
    assert (tmp_path / "report.html").stat().st_size < 60_000


def test_data_are_drawn(tmp_path):
    data = FederatedData({"y": np.array([0, 1, 1, 0, 2])}, np.array([0, 3, 3, 5]))
    page = reported({"a": history(1)}, tmp_path, data=data)
    assert page.labels[-2:] == ["sizes of clients", "labels of clients, y"]
    assert "3 clients, 5 examples" in page.texts["p"]
    with pytest.raises(ValueError, match=r"label must be a feature .* got label='z'. Choose among \['y'\]"):
        reported({"a": history(1)}, tmp_path, data=data, label="z")
    other = FederatedData({"x": np.arange(2)}, np.array([0, 2]))
    assert reported({"a": history(1)}, tmp_path, data=other).labels[-1] == "sizes of clients"


def test_what_personalisation_gains_is_drawn(tmp_path):
    before, after = [0.5, 0.75, 0.25], {"tuned": [0.75, 0.75, 0.5], "<alone>": [0.25, 1.0, np.nan]}
    page = reported({"a": history(1)}, tmp_path, personalised={"accuracy": (before, after), "loss": (before, before)})
    texts = [f"{metric} of each client before and after personalisation" for metric in ("accuracy", "loss")]
    assert page.labels[-2:] == page.texts["figcaption"][-2:] == texts
    assert "tuned: mean 0.5 before, 0.6667 after; 67% of 3 clients gain, 0% lose" in page.texts["text"]
    assert "<alone>: mean 0.625 before, 0.625 after; 50% of 2 clients gain, 50% lose" in page.texts["text"]
    with pytest.raises(ValueError, match="need to be of the same clients"):
        reported({"a": history(1)}, tmp_path, personalised={"accuracy": (before, [1.0])})


def test_what_was_never_measured_is_told(tmp_path):
    runs = {"mine": [{"round": 0, "test/accuracy": 0.5, "privacy/epsilon": 1}], "theirs": [{"round": 0, "val/loss": 1}]}
    page = reported({**runs, "both": [*runs.values()]}, tmp_path, target=0.1)
    assert page.rows[2] == ["theirs", "1", "0", *["not measured"] * 4]
    assert page.rows[3] == [
        "both",
        "2",
        "0",
        *["1 of 2 not measured"] * 2,
        "not reached (1 of 2)",
        "1 of 2 not measured",
    ]
    assert page.texts["text"].count("1 of 2 not measured") == 1  # in the picture that compares
    assert "not finite" not in (tmp_path / "report.html").read_text()


def test_the_file_is_made_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    report(history(0), "~/not/there/yet.html")
    assert (tmp_path / "not" / "there" / "yet.html").exists()
    for output, words in (("~/not", "not, a directory. Name a file in it"), ("~/not/there/yet.html/a", "File exists")):
        with pytest.raises(ValueError, match=words):
            report(history(0), output)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["not", "there", "yet.html"]


def test_rows_without_a_round_are_told_or_refused(tmp_path):
    page = reported({"a": history(1), "b": [{"test/accuracy": 1.0}]}, tmp_path)
    assert page.rows[2][:4] == ["b", "0 of 1", "–", "–"]
    assert page.texts["li"] == ["b: its rows have no round, and are left out"]
    with pytest.raises(ValueError, match=r"need their round; got \['loss'\] alone"):
        reported([{"loss": 1.0}], tmp_path)
    with pytest.raises(TypeError, match="target must be a number"):
        reported(history(1), tmp_path, target="0.8")


def test_the_metric_is_chosen(tmp_path):
    rows = [{"round": 1, "total/seconds": 1, "train/loss": 2.0, "train/error": 0.5}]
    assert "train/loss: less is better." in reported({"a": rows}, tmp_path).texts["p"]
    assert (
        "train/error: more is better." in reported({"a": rows}, tmp_path, metric="train/error", mode="max").texts["p"]
    )
    with pytest.raises(ValueError, match=r"metric must be .* got metric='accuracy'. Choose among .*'train/loss'"):
        reported({"a": rows}, tmp_path, metric="accuracy")
    with pytest.raises(ValueError, match="mode must be one of"):
        reported({"a": rows}, tmp_path, mode="least")


def test_the_command(tmp_path, capsys):
    write_run(tmp_path / "a", history(3), {"rate": 0.1})
    write_run(tmp_path / "b", history(3), {"rate": 0.2})
    output = tmp_path / "out.html"
    paths = [str(tmp_path / name) for name in "ab"]
    flags = ["--metric", "train/loss", "--mode", "min", "--target", "1.7", "--title", "Two"]
    assert main(["report", *paths, "--output", str(output), *flags]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    page = Page(output)
    assert page.texts["h1"] == ["Two"]
    assert page.rows[0][5] == "rounds to 1.7"
    assert main(["report", str(tmp_path / "c"), "--output", str(output)]) == 1
    assert "there must be runs to look at" in capsys.readouterr().err
