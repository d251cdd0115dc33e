"""The methods that the documents show, word for word."""

import ast
from pathlib import Path
from typing import Any

import optax

from fedjx.algorithms import fed_avg
from tests.algorithms.case import Case
from tests.algorithms.problems import dropout_model
from tests.test_documents import ROOT, fenced_blocks


def shown(path: Path) -> dict[str, Any]:
    """Returns what a document defines before it trains anything: its imports and functions."""
    namespace: dict[str, Any] = {}
    for block in fenced_blocks(path.read_text(encoding="utf-8")):
        module = ast.parse("" if block.source.startswith(">>>") else block.source)
        module.body = [node for node in module.body if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))]
        module.body = [node for node in module.body if not getattr(node, "decorator_list", [])]
        exec(compile(module, str(path), "exec"), namespace)
    return namespace


SHOWN = {**shown(ROOT / "docs" / "algorithms.md"), **shown(ROOT / "docs" / "aggregation.md")}
MOMENTUM = optax.sgd(0.7, momentum=0.9)

CASES = {
    "normalized_averaging": Case(
        SHOWN["normalized_averaging"](dropout_model(), step_length=0.1, server_optimizer=MOMENTUM)
    ),
    "homing": Case(SHOWN["homing"](dropout_model(), client_optimizer=optax.sgd(0.1, momentum=0.9), num_epochs=2)),
    "coarse_changes": Case(
        fed_avg(dropout_model(), client_optimizer=optax.sgd(0.1), aggregator=SHOWN["coarse_changes"](0.01))
    ),
    "corrected": Case(SHOWN["corrected"](dropout_model(), client_optimizer=optax.adam(0.05))),
}
