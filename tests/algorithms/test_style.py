"""A method is a short file whose round is read at a glance."""

from __future__ import annotations

import ast
from pathlib import Path

import fedjx.algorithms

# What methods are made of, or a collection of them.
LIBRARY = {"__init__", "attacks"}


def faults(text: str) -> list[str]:
    """Says what is too long in the file of a method."""
    num_lines = text.count("\n")
    found = [] if num_lines < 150 else [f"{num_lines} lines"]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("next"):
            length = (node.end_lineno or 0) - node.lineno + 1
            found += [f"{node.name} of {length} lines"] if length > 20 else []
    return found


def test_a_method_is_a_short_file_with_a_short_round():
    files = sorted(Path(fedjx.algorithms.__path__[0]).glob("*.py"))
    assert {path.stem for path in files} > LIBRARY
    assert {
        path.stem: faults(path.read_text()) for path in files if path.stem not in LIBRARY and faults(path.read_text())
    } == {}


def test_what_is_long_is_found():
    """The negative control."""
    long = "def next(state):\n" + "    state += 1\n" * 20
    assert faults(long) == ["next of 21 lines"]
    assert faults(long + "\n" * 129) == ["150 lines", "next of 21 lines"]
    assert faults(long.replace("next", "init") + "\n" * 128) == []
