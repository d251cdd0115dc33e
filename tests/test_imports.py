"""Imports point up the table of CONTRIBUTING, never down or sideways, and never in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

ALLOWED = {
    # It measures every aggregator that the laws hold, and theirs is the list of them.
    ("benchmarks.aggregation_memory", "tests.aggregation.case"),
}


def rooms(text: str) -> dict[str, int]:
    """Reads the rooms off the table, as packages, each with the number of its row."""
    rows = re.findall(r"^\| (`.*?`) \|", text, flags=re.MULTILINE)
    return {room.replace("/", "."): i for i, row in enumerate(rows) for room in re.findall(r"`([\w/]+)`", row)}


def module_name(path: Path) -> str:
    """Names the module of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(name: str, text: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Yields the modules among those given that one of them imports: anywhere in it, for type checking too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"imports are absolute; got a relative one in {name}. Name the package."
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for dotted in found:
            parent = dotted.rpartition(".")[0]
            yield from [module for module in (dotted, parent) if module in modules][:1]


def graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Returns, for each module, which others it imports."""
    return {name: set(imported(name, text, modules)) - {name} for name, text in modules.items()}


def edges_with(name: str, text: str) -> dict[str, set[str]]:
    """Returns the graph as it would be if one module had another text."""
    return {**EDGES, name: set(imported(name, text, MODULES)) - {name}}


def room_of(module: str, table: Mapping[str, int]) -> str:
    """Returns the innermost room that a module is in."""
    within = [room for room in table if f"{module}.".startswith(f"{room}.")]
    assert within, f"every module has a place in the table of CONTRIBUTING; got {module}. Add its folder."
    return max(within, key=len)


def wrong_turns(edges: Mapping[str, set[str]], table: Mapping[str, int]) -> set[tuple[str, str]]:
    """Lists the imports that point down or sideways."""
    placed = {module: room_of(module, table) for module in edges}
    pairs = ((a, b) for a, others in edges.items() for b in others if placed[a] != placed[b])
    return {(a, b) for a, b in pairs if table[placed[b]] >= table[placed[a]] and placed[a] != "tests"}


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Returns modules that import each other in a circle; none if there is no circle."""
    left = {a: set(others) for a, others in edges.items()}
    while free := {a for a, others in left.items() if not others}:
        left = {a: others - free for a, others in left.items() if a not in free}
    return sorted(left)


def modules_of(*folders: str) -> dict[str, str]:
    """Returns the text of every module below some folders, by its name."""
    return {module_name(path): path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


TABLE = rooms((ROOT / "CONTRIBUTING.md").read_text())
MODULES = modules_of("fedjx", "benchmarks", "examples", "tests")
EDGES = graph(MODULES)


def test_the_table_is_read():
    assert list(TABLE)[:3] == ["fedjx.core.rewriting", "fedjx.core.language", "fedjx.core.execution"]
    assert TABLE["fedjx.data"] == TABLE["fedjx.models"] < TABLE["fedjx.training"] < TABLE["fedjx.algorithms"]
    assert TABLE["fedjx.algorithms"] < TABLE["fedjx.tff"] < TABLE["benchmarks"] < TABLE["tests"]


def test_imports_point_up():
    assert wrong_turns(EDGES, TABLE) == ALLOWED


def test_no_imports_go_in_a_circle():
    assert circle(EDGES) == []


def test_an_import_turned_round_is_seen():
    """The negative control, for each of the ways to write one."""
    low, high = "fedjx.core.language.values", "fedjx.core.execution.engine"
    for line in (
        f"from {high} import map_reduce",
        f"import {high}",
        "from fedjx.core.execution import engine",
        f"def late():\n    from {high} import map_reduce",
        f"if TYPE_CHECKING:\n    from {high} import map_reduce",
    ):
        edges = edges_with(low, f"{MODULES[low]}\n{line}\n")
        assert (low, high) in wrong_turns(edges, TABLE)
        assert {low, high} <= set(circle(edges))


def test_an_import_to_the_side_is_seen():
    edges = edges_with("fedjx.models.model", "from fedjx.data import Cohort")
    assert ("fedjx.models.model", "fedjx.data") in wrong_turns(edges, TABLE)
