"""Tests of the benchmark that goes on with the tables of McMahan et al., on images that are made up."""

import itertools
import json
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import mcmahan, mcmahan_report
from benchmarks.mcmahan_paper import CELLS, TABLE_1, TABLE_2, Cell, published
from benchmarks.mcmahan_report import Curve, best_curves, rounds_to_target, show
from fedjx.data import FederatedData
from fedjx.experiment import read_rows
from fedjx.models import linear, mlp

CELL = Cell("2nn", "iid", 0.1, 10, 1)


def curve(accuracies, rounds=None, rate=0.1, cell=CELL):
    return Curve(cell, rate, 0, "plain", rounds or list(range(len(accuracies))), accuracies, 1.0)


def test_the_tables_have_the_cells_of_the_paper():
    assert (len(TABLE_1), len(TABLE_2), len(CELLS)) == (40, 30, 66)
    assert TABLE_1[CELL] == 87
    assert TABLE_1[Cell("cnn", "non-iid", 1.0, 10, 5)] == 97
    assert TABLE_2[Cell("lstm", "non-iid", 0.1, 10, 5)] == 41
    assert published(Cell("cnn", "non-iid", 0.1, 10, 5)) == [206, 229]
    assert sum(rounds is None for rounds in TABLE_1.values()) == 5  # "Five runs ... did not reach the target".


def test_rounds_are_where_the_best_accuracy_so_far_crosses_the_target():
    assert rounds_to_target(curve([0.1, 0.96, 0.90, 0.98])) == pytest.approx(2.5)  # Not 2 + 7 / 8: it is monotone.
    assert rounds_to_target(curve([0.1, 0.95, 0.99], [0, 20, 40])) == pytest.approx(30.0)
    assert rounds_to_target(curve([0.1, 0.97])) == pytest.approx(1.0)
    assert rounds_to_target(curve([0.98])) == 0.0
    assert rounds_to_target(curve([0.1, 0.969, float("nan")])) is None


def test_the_table_has_the_fastest_rate_that_reaches_the_target():
    slow, fast = curve([0.1, 0.9, 0.98], rate=0.1), curve([0.1, 0.975], rate=0.3)
    short = curve([0.1, 0.9], rate=0.03)
    assert best_curves([short, slow, fast]) == [fast]
    low = short._replace(rate=0.01, accuracies=[0.1, 0.8])
    assert best_curves([low, short, slow, fast], reached=False) == [fast]
    assert (best_curves([low, short]), best_curves([low, short], reached=False)) == ([], [short])
    row = show([short, slow, fast]).splitlines()[-1]
    assert row.split() == ["2nn", "iid", "C=0.1", "B=10", "E=1", "plain", "0", "87", "1", "0.3", "0.03", "0.1", "0.3"]
    assert show([short]).splitlines()[-1].split()[-3:] == ["-", "-", "0.03"]


def test_rates_are_tried_until_the_best_has_a_neighbour_on_each_side():
    flags, tried = mcmahan.parse_flags([]), []

    def needs(rate):
        return 10 + abs(np.log(rate / 0.3))

    while (rate := next(mcmahan.tried(CELL, tried, flags), None)) is not None:
        tried.append(curve([0.0, 1.0], [0, needs(rate)], rate))
    assert [c.rate for c in tried] == [0.215, 0.464, 0.1]
    assert best_curves(tried)[0].rate == 0.215
    low = list(mcmahan.tried(CELL, [curve([0.0, 0.5], rate=0.215), curve([0.0, 0.6], rate=0.1)], flags))
    assert low == [0.0464]  # Of rates that do not reach the target, the more accurate one.
    flags = mcmahan.parse_flags(["--rates", "0.1", "0.2"])
    assert list(mcmahan.tried(CELL, tried, flags)) == [0.2]


@pytest.fixture
def tiny(monkeypatch):
    """A problem that a linear model learns in a few rounds."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 4)) * 3

    def examples(n):
        y = random.integers(3, size=n)
        return {"x": (centres[y] + random.normal(size=(n, 4))).astype(np.float32), "y": y.astype(np.int32)}

    data = FederatedData.from_partition(examples(60), np.arange(60).reshape(20, 3))
    found = mcmahan.Problem(linear(3, input_shape=(4,)), data, examples(100), 2)
    monkeypatch.setattr(mcmahan, "problem", lambda *_: found)
    monkeypatch.setattr(mcmahan_report, "TARGETS", dict.fromkeys(("2nn", "cnn", "lstm"), 0.9))
    monkeypatch.setattr(mcmahan, "TARGETS", dict.fromkeys(("2nn", "cnn", "lstm"), 0.9))


def test_a_run_that_was_killed_goes_on_where_it_was_and_ends_alike(tiny, tmp_path, capsys):
    def run(name, *more):
        flags = ["--networks", "2nn", "--fractions", "0.1", "--batch-sizes", "10", "--splits", "iid", *more]
        return mcmahan.main(mcmahan.parse_flags([*flags, "--output", str(tmp_path / name), "--rates", "0.02", "0.05"]))

    whole = run("a.json")
    [found] = whole["best"]
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    curves = {json.loads(line)["rate"]: json.loads(line) for line in lines}
    assert list(curves) == [0.02, 0.05]
    best = curves[found["rate"]]
    assert 0 < found["rounds"] <= best["rounds"][-1]
    assert max(best["accuracies"]) >= 0.9 > best["accuracies"][0]
    (tmp_path / "b.jsonl").write_bytes(lines[0] + lines[1][:40])  # Killed while it wrote.
    capsys.readouterr()
    run("b.json", "--hours", "0")
    out = capsys.readouterr().out
    assert "No time is left for 2nn iid C=0.1 B=10 E=1; start again" in out
    assert (tmp_path / "b.jsonl").read_bytes() == lines[0]
    again = run("b.json")
    assert "rate 0.02:" not in capsys.readouterr().out  # It is not trained again.
    assert [again["best"][0][name] for name in ("rate", "rounds", "published")] == [
        found["rate"],
        found["rounds"],
        [87],
    ]
    last = [json.loads(path.read_bytes().splitlines()[1]) for path in (tmp_path / "a.jsonl", tmp_path / "b.jsonl")]
    assert last[0]["accuracies"] == last[1]["accuracies"]
    assert (tmp_path / "b.png").stat().st_size > 10_000
    before = os.stat(tmp_path / "b.jsonl").st_size
    run("b.json", "--report-only")
    assert os.stat(tmp_path / "b.jsonl").st_size == before


def test_a_rate_that_was_stopped_goes_on_in_its_round(tiny, tmp_path, monkeypatch):
    def train(name, deadline):
        flags = mcmahan.parse_flags(["--output", str(tmp_path / name), "--eval-every", "2"])
        return mcmahan.train(CELL, 0.05, 60, flags, deadline)

    whole, clock = train("a.json", np.inf), itertools.count()
    assert 5 < whole.rounds[-1] < 60
    assert not list((tmp_path / "a").iterdir())
    monkeypatch.setattr(mcmahan, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert train("b.json", 1.5) is None  # the clock is read before the first round, after two and after four
    [begun] = (tmp_path / "b").iterdir()
    assert [row["round"] for row in read_rows(begun) if "test/accuracy" in row] == [0, 2, 4]
    tested, accuracy = [], mcmahan.accuracy
    monkeypatch.setattr(mcmahan, "accuracy", lambda *given: tested.append(0) or accuracy(*given))
    again = train("b.json", np.inf)
    assert (again.rounds, again.accuracies) == (whole.rounds, whole.accuracies)
    assert len(tested) == len(whole.rounds) - 3


def test_problems_have_the_clients_and_the_networks_of_the_paper(tmp_path):
    for part in ("train", "t10k"):
        for what, shape in (("images-idx3", (400, 28, 28)), ("labels-idx1", (400,))):
            header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
            content = np.arange(400) % 10 if len(shape) == 1 else np.zeros(shape)
            (tmp_path / f"{part}-{what}-ubyte").write_bytes(header + content.astype(np.uint8).tobytes())
    said = "".join(f"{role}.\n{'I say ' * 30}{n}.\n\n" for role, num in (("ANN", 5), ("BOB", 15)) for n in range(num))
    (tmp_path / "play_gut.txt").write_text(f"SCENE.\n\n{said}")

    def found(network, split):
        return mcmahan.problem.__wrapped__(network, split, tmp_path, 0, 4)

    def num_params(model):
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))

    num_labels = {}
    for split in ("iid", "non-iid"):
        data = found("2nn", split).data
        assert data.sizes.tolist() == [4] * 100
        num_labels[split] = np.mean([len(set(data.client(k)["y"].tolist())) for k in range(100)])
    assert num_labels["iid"] > 3 > 2 >= num_labels["non-iid"]
    assert (num_params(found("2nn", "iid").model), num_params(found("cnn", "iid").model)) == (199_210, 1_663_370)
    roles = {split: found("lstm", split) for split in ("iid", "non-iid")}
    assert num_params(roles["iid"].model) == 820_522
    assert roles["non-iid"].data.sizes.tolist() == [12, 36]  # 4 and 12 speeches of three sequences.
    assert roles["iid"].data.sizes.tolist() == [24, 24]
    assert roles["iid"].test["x"].shape == (4, 80)
    rows = roles["non-iid"].data.client(1)
    np.testing.assert_array_equal(rows["x"][:, 1:], rows["y"][:, :-1])


def test_cells_are_chosen_by_the_command_line_and_the_cheapest_come_first():
    cells = mcmahan.chosen(mcmahan.parse_flags(["--networks", "2nn", "--cells", "3"]))
    assert cells == [CELL, Cell("2nn", "iid", 0.0, 10, 1), Cell("2nn", "iid", 0.2, 10, 1)]
    cells = mcmahan.chosen(mcmahan.parse_flags(["--networks", "cnn", "--epochs", "5", "--batch-sizes", "0"]))
    assert len(cells) == 10
    assert {(cell.batch_size, cell.num_epochs) for cell in cells} == {(None, 5)}


@pytest.mark.parametrize(
    ("law", "bias", "kernel"), [("fan_in", 1 / 400**0.5 / 3**0.5, 1 / 1200**0.5), ("normal", 0, 0.088)]
)
def test_laws_of_the_first_parameters(law, bias, kernel):
    model = mlp(10, input_shape=(20, 20, 1), hidden=(200,))
    params = mcmahan.varied(model, law).init(jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, model.init(jax.random.key(0)))
    [layer] = [
        layer for layer in jax.tree.leaves(params, is_leaf=lambda p: "kernel" in p) if len(layer["kernel"]) == 400
    ]
    np.testing.assert_allclose(np.std(layer["kernel"]), kernel, rtol=0.02)
    np.testing.assert_allclose(np.std(layer["bias"]), bias, rtol=0.1, atol=1e-6)
    assert mcmahan.varied(model, "plain") is model


def test_variants_of_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 1)).astype(np.uint8)
    plain = linear(10, input_shape=(6, 6, 1), scale=1 / 255)
    params = plain.init(jax.random.key(0))
    unscaled, labels, key = linear(10, input_shape=(6, 6, 1)), np.arange(8), jax.random.key(0)
    for variant, x in (("centred", pixels / 255 - 0.5), ("standardised", (pixels / 255 - 0.1307) / 0.3081)):
        expected = unscaled.loss(params, {"x": x.astype(np.float32), "y": labels}, key)
        found = mcmahan.varied(plain, variant).loss(params, {"x": pixels, "y": labels}, key)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
