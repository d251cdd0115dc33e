"""A user's script, the README's own, has types throughout: pyright, being strict, finds only what is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.test_documents import ROOT, fenced_blocks

# What JAX and optax leave untyped, and no user of theirs can help: by rule, how the message begins.
NOT_OURS = {
    "reportMissingTypeStubs": ('Stub file not found for "optax"',),
    "reportUnknownMemberType": ('Type of "make_mesh"', 'Type of "device_count"'),
}

# What methods, aggregators and what wraps them are to a type checker.
METHODS = """
from typing import Any, assert_type

from fedjx import Aggregator, Algorithm, StatefulAlgorithm
from fedjx.aggregation import StatefulAggregator, clip_by_norm, error_feedback, mean, top_k
from fedjx.algorithms import EmaState, ema, gaussian_mixture, mixture_around, scaffold
from fedjx.data import ClientStates, Cohort
from fedjx.training import ServerState, averaging, compose, stateful_rounds

sgd, remembers = optax.sgd(0.1), error_feedback(top_k(fraction=0.1))
controlled = scaffold(model, num_clients=50, client_optimizer=sgd)
assert_type(controlled, StatefulAlgorithm[ServerState, Any])
assert_type(controlled.next(state, clients, clients)[0].round, jax.Array)
assert_type(ema(controlled, 0.9), StatefulAlgorithm[EmaState[ServerState], Any])
assert_type(gaussian_mixture(init=lambda key: mixture_around([[0.0]])), Algorithm[ServerState])
assert_type(clip_by_norm(max_norm=1.0, inner=mean()), Aggregator)
assert_type(remembers, StatefulAggregator)
assert_type(fed_avg(model, client_optimizer=sgd, aggregator=remembers), StatefulAlgorithm[ServerState, Any])
assert_type(compose(averaging(model), client_optimizer=sgd, aggregator=mean()), Algorithm[ServerState])
step_on_disk = stateful_rounds(controlled, ClientStates("states", controlled.init_client(state), num_clients=50))
assert_type(step_on_disk(state, Cohort(train, [4], batch_size=10))[0], ServerState)
"""

MISTAKES = """
algorithm.next(state)
algorithm.next(state, 3)
algorithm.next(state, clients)[0].parameters
algorithm.init("a seed")
step(clients, state, clients)
step.ahead([3])
round_fn(state)
sample("the seventh")
Cohort(train, 4, batch_size="ten")
Cohort(model, [4], batch_size=10)
evaluation(state.params)
controlled.next(state, clients)
clip_by_norm(max_norm=1.0, inner=remembers)
fed_avg(model, client_optimizer=sgd, num_epoch=2)
"""


class Problem(NamedTuple):
    line: int
    rule: str
    message: str


def section(heading: str) -> str:
    """Returns the Python of a section of the README, without what comes in sections of its own."""
    text = (ROOT / "README.md").read_text().partition(f"## {heading}\n")[2]
    text = re.split(r"^###? ", text, flags=re.MULTILINE)[0]
    return "".join(block.source for block in fenced_blocks(text) if block.info == "python")


SCRIPT = section("Train a model") + section("One program, or a stream")


def problems(folder: Path, script: str) -> list[Problem]:
    """Returns what pyright, in strict mode, finds in a script that uses this fedjx."""
    (folder / "script.py").write_text(script)
    config = {"include": ["script.py"], "extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    # As in the Makefile: pyright runs on the Node.js that is installed beside it.
    environment = {**os.environ, "PYRIGHT_PYTHON_GLOBAL_NODE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1, done.stdout + done.stderr
    return [
        Problem(found["range"]["start"]["line"], found.get("rule", ""), found["message"])
        for found in report["generalDiagnostics"]
        if not found["message"].startswith(NOT_OURS.get(found.get("rule", ""), ("\0",)))
    ]


def test_a_script_is_fully_typed(tmp_path):
    assert SCRIPT.count("\n") > 30
    assert problems(tmp_path, SCRIPT + METHODS) == []


def test_mistakes_are_seen(tmp_path):
    """The negative control: types that were all `Any` would let these pass."""
    lines = (SCRIPT + METHODS + MISTAKES).splitlines()
    found = problems(tmp_path, SCRIPT + METHODS + MISTAKES)
    wrong = {problem.line for problem in found if problem.rule != "reportUnusedExpression"}
    assert [lines[i] for i in sorted(wrong)] == MISTAKES.split("\n")[1:-1]


def test_the_package_says_that_it_has_types():
    assert (ROOT / "fedjx/py.typed").exists()
