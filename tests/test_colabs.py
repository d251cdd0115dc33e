"""Every notebook runs from top to bottom, as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import tutorial

NOTEBOOKS = sorted((Path(__file__).parents[1] / "colabs").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path, capsys):
    namespace = {"__name__": "__main__"}
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    for number, cell in enumerate(cells):
        assert not cell["outputs"], "notebooks are kept without outputs"
        exec(compile("".join(cell["source"]), f"{path.name}[{number}]", "exec"), namespace)
    if path.name == "compression.ipynb":
        bills_like_the_tutorial(namespace["bits"], capsys.readouterr().out)
    if path.name == "analytics.ipynb":
        answers_at_equal_epsilon(namespace)


def bills_like_the_tutorial(bits, printed):
    """The bits of a round, and the twenty sizes of each of the tutorial's two runs as it prints them."""
    extra = 10 * 128  # of ten clients: the weight, the sum and the number of the losses, the number of examples
    assert {name: sent.down for name, sent in bits.items()} == tutorial.BITS
    assert {name: sent.up - extra for name, sent in bits.items()} == tutorial.BITS
    for name, down, up in (
        ("plain", tutorial.PLAIN, tutorial.PLAIN),
        ("8 bits", tutorial.CODED_DOWN, tutorial.CODED_UP),
    ):
        rows = [f"{number} {a} {b}" for number, (a, b) in enumerate(zip(down, up, strict=True))]
        assert "\n".join([f"{name}: round, broadcasted, aggregated", *rows]) in printed
    assert "8 bits         146.46 Mibit or 18.31 MiB down, 3.4659 times less" in printed
    assert "8 bits, dense  128.40 Mibit or 16.05 MiB down, 3.9533 times less" in printed


def answers_at_equal_epsilon(namespace):
    """Answers are near the truth and no dearer than they say; more epsilon is less error; the ledger has refused."""
    drawn, exact = namespace["drawn"], namespace["exact"]
    assert drawn.keys() == namespace["decades"].keys() == {"central_dp", "distributed_dp", "local_dp", "shuffled_dp"}
    for answer in [*namespace["decades"].values(), *(one for answers in drawn.values() for one in answers)]:
        assert answer.epsilon(1e-6) <= 1.0001
    for answers in drawn.values():
        mean, few = sum(one.value for one in answers) / len(answers), 4 * answers[0].stddev / len(answers) ** 0.5
        assert exact - few < mean < exact + few
    for error in namespace["errors"].values():
        assert error == sorted(error, reverse=True)
    assert len(namespace["ledger"].payments) == 3
