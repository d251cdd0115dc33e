"""The page says which line to change for which idea: every change fits the file, runs, and does something."""

from __future__ import annotations

import importlib
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from fedjx.data import Cohort, digits
from tests.test_documents import fenced_blocks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SOURCE = (EXAMPLES / "simple_fed_avg.py").read_text(encoding="utf-8")
PAGE = (EXAMPLES / "README.md").read_text(encoding="utf-8")
FLAGS = ["--num-clients", "8", "--num-rounds", "2", "--batch-size", "32", "--test-batch-size", "400"]

# Those that leave the server's parameters as they are, and what they are for instead.
SAME_PARAMS = {"A state of the server's", "What every client says", "The test is on clients too"}


def ideas(page: str) -> Iterator[tuple[str, str]]:
    """Yields each change with the line that introduces it."""
    lines = page.splitlines()
    for block in fenced_blocks(page):
        if block.info == "diff":
            before = [line for line in lines[: block.line - 2] if line and not line.startswith(("+", "-", " ", "```"))]
            yield re.split(r"[:,;]", before[-1])[0], block.source


def changed(source: str, change: str) -> str:
    """Applies the hunks of a change, which blank lines divide, each to the one place where it fits."""
    lines = source.splitlines()
    for hunk in change.strip("\n").split("\n\n"):
        rows = hunk.splitlines()
        assert all(row[0] in " +-" for row in rows), hunk
        old, new = ([row[1:] for row in rows if row[0] in kinds] for kinds in (" -", " +"))
        places = [i for i in range(len(lines)) if lines[i : i + len(old)] == old]
        assert len(places) == 1, f"a hunk needs to fit in one place; got {len(places)} of\n{hunk}"
        lines[places[0] : places[0] + len(old)] = new
    return "\n".join(lines) + "\n"


def loaded(source: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("edited_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "edited_example.py", "exec"), vars(module))
    return module


def run(source: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = loaded(source, monkeypatch)
    return module.main(module.parse_flags(FLAGS))


def equal(a: Any, b: Any, atol: float = 1e-6) -> bool:
    same = jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.map(np.shape, a) == jax.tree.map(np.shape, b)
    return same and all(
        np.allclose(x, y, rtol=0, atol=atol) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


IDEAS = list(ideas(PAGE))


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """What each change came to, for the test that compares them."""
    return {}


@pytest.fixture(scope="module")
def unchanged() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        return run(SOURCE, patch)


@pytest.mark.parametrize(("idea", "change"), IDEAS, ids=[f"{i}-{idea}" for i, (idea, _) in enumerate(IDEAS)])
def test_a_change_fits_runs_and_does_something(idea, change, unchanged, results, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    state = run(changed(SOURCE, change), monkeypatch)
    assert int(state.round) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert equal(state.params, unchanged.params) == (idea in SAME_PARAMS)
    assert re.search(r"round 2: loss \d\.\d+, test accuracy 0\.\d+", capsys.readouterr().out)
    results[idea] = state


def test_changes_that_are_related(unchanged, results):
    if len(results) < len({idea for idea, _ in IDEAS}):
        pytest.skip("only some changes were run")
    # Of two clients the median is the mean; half of the bits are near all of them; a mean is not a model.
    assert equal(results["The median"].params, results["Clients that count the same"].params)
    assert equal(results["Compression"].params, unchanged.params, atol=1e-2)
    averaged = results["A state of the server's"]
    assert not equal(averaged.average, averaged.params)


def test_ideas_are_all_there():
    text = " ".join(change for _, change in IDEAS)
    for word in ("network.apply", "digits(", "adam", "momentum", "coordinate_median", "bfloat16", "clip=", "sampler("):
        assert word in text
    assert len(IDEAS) >= 20


def test_compression_halves_what_clients_send(monkeypatch):
    """The bits of the change, by the bill that the page names."""
    (compression,) = (change for idea, change in IDEAS if idea == "Compression")
    clients = Cohort(digits(8)[0], [0, 1], batch_size=16)
    bits = []
    for source in (SOURCE, changed(SOURCE, compression)):
        module = loaded(source, monkeypatch)
        optimizer = optax.sgd(0.1)
        params = module.init_params(jax.random.key(0))
        state = module.ServerState(params, optimizer.init(params), np.int32(0))
        bill = module.federated_averaging(optimizer, optimizer, 1).communication(state, clients)
        bits.append(sum(message.bits for message in bill if message.direction == "up"))
    others = 32 * 4  # the weights' sums and the loss, which stay
    assert bits[0] - bits[1] == 16 * 2410
    assert bits[0] <= 32 * 2410 + others


def test_commands_are_understood():
    commands = re.findall(r"^python -m examples\.(\w+)([^#\n]*)", PAGE, flags=re.MULTILINE)
    assert {name for name, _ in commands} == {path.stem for path in EXAMPLES.glob("*.py")} - {"__init__"}
    for name, arguments in commands:
        importlib.import_module(f"examples.{name}").parse_flags(arguments.split())


def test_a_change_that_does_not_fit_is_seen():
    with pytest.raises(AssertionError, match="one place; got 0"):
        changed("a\nb\n", "-c\n+d\n")
    with pytest.raises(AssertionError, match="one place; got 2"):
        changed("a\na\n", "-a\n+d\n")
    assert changed("a\nb\nc\n", " a\n+x\n-b\n\n-c\n+y\n") == "a\nx\ny\n"
