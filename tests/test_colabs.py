"""Every notebook is its source, was executed, and runs from top to bottom."""

from __future__ import annotations

import importlib.util
import json
import types
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

from tests.benchmarks import tutorial

COLABS = Path(__file__).parents[1] / "colabs"
# What only notebooks have, and what tests have done: their process has four devices from the beginning.
LEFT_OUT = ("%", 'jax.config.update("jax_num_cpu_devices"')
SOURCES = sorted((COLABS / "source").glob("*.py"))
NAMES = [path.stem for path in SOURCES]


def _build() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("colabs_build", COLABS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _build()


def stored(name):
    return json.loads((COLABS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_each_notebook_has_a_source():
    assert len(NAMES) >= 3
    assert sorted(path.stem for path in COLABS.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_source_with_outputs(name):
    made = build.notebook((COLABS / "source" / f"{name}.py").read_text(encoding="utf-8"))["cells"]
    bare = [{**cell, "outputs": [], "execution_count": None} if "outputs" in cell else cell for cell in stored(name)]
    assert bare == made, "run `make colabs` and add what it writes"
    code = [cell for cell in stored(name) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert [output for output in outputs if output.get("name") == "stdout"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert (COLABS / f"{name}.ipynb").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_begins_with_its_installation(name):
    words, install = stored(name)[:2]
    assert "".join(words["source"]).startswith("# ")
    assert "".join(install["source"]).startswith("%pip install -q ")
    assert not install["outputs"]


@pytest.fixture
def as_readers_have_it(monkeypatch, tmp_path):
    """Runs a notebook in an empty directory, with JAX's own settings."""
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_rank_promotion", "raise")
    plt.close("all")


@pytest.mark.usefixtures("as_readers_have_it")
@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_a_notebook_runs(path, capsys):
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(build.cells(path.read_text(encoding="utf-8"))):
        if cell.kind == "code":
            lines = [line for line in cell.source.splitlines() if not line.startswith(LEFT_OUT)]
            exec(compile("\n".join(lines), f"{path.name}[{number}]", "exec"), namespace)
    if path.stem == "compression_to_the_bit":
        bills_like_the_tutorial(namespace["bits"], capsys.readouterr().out)
    if path.stem == "analytics":
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


# The checks above can fail.


def test_sources_are_cut_into_cells():
    found = build.cells("# %% [markdown]\n# # A\n#\n# b\n\n# %%\n# %pip install x\ny = 1  # %% no\n\n# %%\n# why\n")
    words, code, comment = found
    assert words == ("markdown", "# A\n\nb")
    assert code == ("code", "%pip install x\ny = 1  # %% no")
    assert comment == ("code", "# why")


@pytest.mark.parametrize("text", ["x = 1\n# %%\n", "# %% [markdown]\nno comment\n"])
def test_what_is_no_source_is_refused(text):
    with pytest.raises(ValueError, match="got"):
        build.cells(text)


def test_readers_see_what_is_printed_and_drawn_and_no_installation():
    outputs = [{"output_type": "stream", "name": name, "text": "x"} for name in ("stdout", "stderr")]
    assert list(build._shown({"source": "x", "outputs": outputs})) == outputs[:1]
    assert not list(build._shown({"source": "# a\n%pip install x", "outputs": outputs}))
