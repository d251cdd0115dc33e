"""The site: every public name is described, links of documents become links of pages, nothing comes from elsewhere."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import fedjx
from tests.test_documents import DOCUMENTS, fenced_blocks

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def build() -> Iterator[ModuleType]:
    """The script that builds the site, which is in no package."""
    sys.path.insert(0, str(ROOT / "docs"))
    yield importlib.import_module("build")
    sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="module")
def pages(build: ModuleType) -> dict[str, str]:
    """The pages of the reference, by module."""
    return {page.module: build.api.render(page) for page in build.api.pages()}


def described(pages: dict[str, str]) -> list[str]:
    """Lists the full names that pages describe."""
    found = []
    for module, text in pages.items():
        lines = [line for line in text.splitlines() if line.startswith((".. auto", ".. py:data::"))]
        found += [f"{module}.{line.split(':: ')[1]}" for line in lines]
    return found


def packages() -> Iterator[ModuleType]:
    yield fedjx
    for info in pkgutil.walk_packages(fedjx.__path__, "fedjx."):
        if info.ispkg:
            yield importlib.import_module(info.name)


def test_every_public_name_of_every_package_is_described_once(pages: dict[str, str]) -> None:
    names = described(pages)
    assert len(names) == len(set(names)) > 400
    objects = {id(getattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2])) for name in names}
    for package in packages():
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            if isinstance(value, ModuleType):
                assert value.__name__ in pages
            else:
                assert id(value) in objects, f"{package.__name__}.{name}"
                assert f"`{name} <" in pages[package.__name__], f"{package.__name__}.{name}"
    assert id(fedjx.core) not in objects


def test_the_version_is_that_of_the_distribution() -> None:
    assert fedjx.__version__ == importlib.metadata.version("fedjx")


def test_what_the_documents_import_is_described(pages: dict[str, str]) -> None:
    names = {name: getattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in described(pages)}
    objects, imported = set(map(id, names.values())), 0
    for path in DOCUMENTS:
        for block in fenced_blocks(path.read_text(encoding="utf-8")):
            if block.info != "python" or ">>>" in block.source:
                continue
            for node in ast.walk(ast.parse(block.source)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fedjx"):
                    module = importlib.import_module(str(node.module))
                    for alias in node.names:
                        value = getattr(module, alias.name)
                        known = value.__name__ in pages if isinstance(value, ModuleType) else id(value) in objects
                        assert known, f"{path.name} imports {node.module}.{alias.name}"
                        imported += 1
    assert imported > 100


def test_every_document_and_notebook_has_a_place_in_the_navigation(build: ModuleType) -> None:
    found = build.assemble()
    assert {"index.md", "docs/data.md", "CONTRIBUTING.md", "api/fedjx.rst", "api/index.rst"} <= found.keys()
    documents = {build.page_name(path.relative_to(ROOT).as_posix()) for path in DOCUMENTS}
    documents |= {f"colabs/{path.stem}.md" for path in (ROOT / "colabs").glob("*.ipynb")}
    assert documents <= found.keys()
    listed = found["index.md"].split("\n")
    assert all(listed.count(name.removesuffix(".md")) == 1 for name in documents - {"index.md"})
    with pytest.raises(ValueError, match=r"every page has a place in NAVIGATION; got \['notes/x'\]\. Add them\."):
        build.navigation({"index", "docs/data", "notes/x"})


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("[a](docs/data.md#importers)", "README.md", "[a](docs/data.md#importers)"),
        ("[a](../README.md)", "docs/data.md", "[a](../index.md)"),
        ("[`a`](../fedjx/algorithms)", "docs/data.md", "[`a`](../api/fedjx.algorithms.rst)"),
        ("[a](../tests/versions)", "docs/data.md", "[a](../source/tests/versions.md)"),
        ("[a](../Makefile)", "docs/data.md", "[a](../source/Makefile.md)"),
        ("[a](conftest.py)", "README.md", "[a](source/conftest.py.md)"),
        ("[a](colabs/analytics.ipynb)", "README.md", "[a](colabs/analytics.md)"),
        ("![a](data:image/png;base64,AA==)", "colabs/analytics.ipynb", "![a](data:image/png;base64,AA==)"),
        ("![a](privacy.png)", "benchmarks/results/README.md", "![a](privacy.png)"),
        ("[a](#b) [c](https://example.org/x.py)", "README.md", "[a](#b) [c](https://example.org/x.py)"),
        ("```\n[a](gone)\n```\n[a](LICENSE)", "README.md", "```\n[a](gone)\n```\n[a](source/LICENSE.md)"),
    ],
)
def test_a_link_of_a_document_is_one_of_its_page(build: ModuleType, text: str, path: str, expected: str) -> None:
    assert build.linked(text, path, lambda found: None) == expected


def test_a_link_that_leads_nowhere_is_refused(build: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"a link leads to a file of the repository; got gone\.md in docs/data\.md"):
        build.linked("[a](gone.md)", "docs/data.md", lambda found: None)


def test_a_notebook_is_a_page_with_what_it_printed_and_drew(build: ModuleType) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "\n", "b"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [{"text": ["1\n"]}, {"data": {"text/plain": "<Figure>", "image/png": "YWJj\n"}}],
        },
    ]
    text = build.notebook(json.dumps({"cells": cells}))
    (name, page), picture = build.pictures(text, "colabs/x.md")
    assert (name, page.split("\n\n")[:4]) == (
        "colabs/x.md",
        ["# A", "b", "```python\nprint(1)\n```", "```text\n1\n```"],
    )
    assert picture == ("colabs/x_0.png", b"abc")
    assert page.endswith("(x_0.png)\n")


def test_what_comes_from_elsewhere_or_leads_nowhere_is_found(build: ModuleType, tmp_path: Path) -> None:
    good = '<a href="https://example.org">a</a><a href="b.html#c">b</a><img src="b.html"><a href="#d">d</a>'
    (tmp_path / "a.html").write_text(good, encoding="utf-8")
    (tmp_path / "b.html").write_text("<p>b</p>", encoding="utf-8")
    (tmp_path / "c.css").write_text("a { background: url(b.html) }", encoding="utf-8")
    assert build.mistakes(tmp_path) == []
    bad = (
        '<script src="https://example.org/a.js"></script><link rel="stylesheet" href="//example.org/a.css">'
        '<img src="http://example.org/a.png"><a href="gone.html">gone</a>'
    )
    (tmp_path / "b.html").write_text(bad, encoding="utf-8")
    (tmp_path / "c.css").write_text("@import 'https://example.org/b.css'; a { b: url(//example.org/f) }", "utf-8")
    assert build.mistakes(tmp_path) == [
        "b.html fetches https://example.org/a.js",
        "b.html fetches //example.org/a.css",
        "b.html fetches http://example.org/a.png",
        "b.html leads to gone.html, which is not there",
        "c.css fetches https://example.org/b.css",
        "c.css fetches //example.org/f",
    ]
