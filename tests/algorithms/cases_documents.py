"""The methods that the documents show, word for word."""

import ast
from pathlib import Path
from typing import Any

from tests.algorithms.case import Case
from tests.algorithms.problems import dropout_model
from tests.test_documents import ROOT, fenced_blocks


def shown(path: Path, name: str) -> Any:
    """Returns a function of a document's, made of the imports and definitions of the block that defines it."""
    sources = [block.source for block in fenced_blocks(path.read_text(encoding="utf-8"))]
    module = ast.parse(next(source for source in sources if f"def {name}(" in source))
    module.body = [node for node in module.body if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))]
    namespace: dict[str, Any] = {}
    exec(compile(module, str(path), "exec"), namespace)
    return namespace[name]


normalized_averaging = shown(ROOT / "docs" / "algorithms.md", "normalized_averaging")

CASES = {
    "normalized_averaging": Case(normalized_averaging(dropout_model(), step_length=0.1, server_momentum=0.9)),
}
