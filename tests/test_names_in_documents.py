"""The names that documents give in inline code exist: `fedjx.…`, and the arguments in its parentheses."""

import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_documents import DOCUMENTS, ROOT, without_blocks

# A dotted name, and the arguments of a call that is not nested.
NAME = re.compile(r"\bfedjx((?:\.[A-Za-z]\w*)+)(?:\(([^()]*)\))?")


def named(text: str) -> Iterator[tuple[str, set[str]]]:
    """Yields the dotted names in the inline code of a Markdown text, each with the keywords that it is called with."""
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without_blocks(text)):
        for match in NAME.finditer(code):
            yield f"fedjx{match[1]}", set(re.findall(r"(\w+)=", match[2] or ""))


def found(name: str) -> Any:
    """Returns what a dotted name stands for; raises ImportError or AttributeError if nothing."""
    parent, _, last = name.rpartition(".")
    if not parent:
        return importlib.import_module(name)
    value = found(parent)
    if inspect.ismodule(value) and not hasattr(value, last):
        importlib.import_module(name)
    return getattr(value, last)


def arguments(function: Any) -> set[str]:
    """Returns the names of a function's arguments, those of its `**arguments: Unpack[...]` too."""
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters}
    for unpacked in [p.name for p in parameters if p.kind is p.VAR_KEYWORD]:
        hint = typing.get_type_hints(function)[unpacked]
        names |= set(typing.get_type_hints(typing.get_args(hint)[0]))
    return names


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_exist(path: Path) -> None:
    for name, keywords in named(path.read_text(encoding="utf-8")):
        value = found(name)
        assert not keywords or keywords <= arguments(value), (name, keywords)


def test_pages_for_those_who_come_from_elsewhere_name_much() -> None:
    pages = sorted((ROOT / "docs/coming_from").glob("*.md"))
    assert [page.stem for page in pages] == ["fedjax", "flower", "pfl_research", "pfllib", "pytorch", "tff"]
    assert all(len({name for name, _ in named(page.read_text(encoding="utf-8"))}) > 30 for page in pages)


def test_names_are_found() -> None:
    text = "`fedjx.algorithms.fed_prox(model, num_epochs=2)`, `fedjx.gone`\n```python\nfedjx.no()\n```\nfedjx.neither"
    assert [(n, sorted(k)) for n, k in named(text)] == [
        ("fedjx.algorithms.fed_prox", ["num_epochs"]),
        ("fedjx.gone", []),
    ]
    assert {"model", "num_epochs", "aggregator"} <= arguments(found("fedjx.algorithms.fed_prox"))
    assert "num_clients" not in arguments(found("fedjx.algorithms.fed_prox"))
    with pytest.raises(ImportError):
        found("fedjx.gone")
    with pytest.raises(AttributeError):
        found("fedjx.data.Store.gone")
