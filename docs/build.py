"""Builds the site: ``python docs/build.py``, or ``make docs``.

The repository's own documents are its pages, under the same paths; README is the first one. What they link to comes
along: a program as a page with its text, a package as its reference, anything else as a download. What is
built is looked through for links that lead nowhere and for anything that a browser would fetch from another server.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import api

ROOT = Path(__file__).resolve().parents[1]
SOURCE, SITE = ROOT / "build" / "docs", ROOT / "site"
FOLDERS = ("docs", "examples", "colabs", "benchmarks")
DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", *(f"{folder}/**/*.md" for folder in FOLDERS))
NOTEBOOKS = "colabs/*.ipynb"
TEXTS = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".toml": "toml", "": "text"}
DESCRIBED = {module.__name__ for module in api.public_modules()}

# The order of the pages. A pattern stands for what no line before it, and no plain name, has listed.
GUIDES = ("data", "algorithms", "aggregation", "privacy", "analytics", "saving", "pods")
NAVIGATION = {
    "Guides": [*(f"docs/{name}" for name in GUIDES), "docs/*", "examples/*"],
    "Notebooks": ["colabs/README", "colabs/first_steps", "colabs/five_steps", "colabs/federated_core", "colabs/*"],
    "Coming from": ["docs/coming_from/*"],
    "Reference": ["api/index", "docs/guarantees", "docs/limits", "benchmarks/*", "benchmarks/*/*"],
    "Project": ["docs/design", "CONTRIBUTING", "CHANGELOG"],
}

FENCED = re.compile(r"(^ *(?P<fence>```+|~~~+).*?^ *(?P=fence) *$)", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|data:|#)([^)\s#]+)")  # in prose: inline code has no ](


def page_name(path: str) -> str:
    """Names the page of a document: its path, but README is the first page."""
    return "index.md" if path == "README.md" else re.sub(r"\.ipynb$", ".md", path)


def target(path: str) -> str:
    """Returns what of the site's source stands for a file or folder of the repository."""
    if (ROOT / path).is_dir() and path.replace("/", ".") in DESCRIBED:
        return f"api/{path.replace('/', '.')}.rst"
    is_page = path.endswith((".md", ".ipynb"))
    return page_name(path) if is_page or Path(path).suffix not in TEXTS else f"source/{path}.md"


def linked(text: str, path: str, seen: Callable[[str], None]) -> str:
    """Turns the links of a document into those of its page, and tells which files they lead to.

    Raises:
      ValueError: If one leads to no file.
    """

    def rewrite(match: re.Match[str]) -> str:
        found = os.path.normpath(os.path.join(os.path.dirname(path), match[1]))
        if not (ROOT / found).exists():
            raise ValueError(f"a link leads to a file of the repository; got {match[1]} in {path}.")
        seen(found)
        return os.path.relpath(target(found), os.path.dirname(page_name(path)) or ".")

    # Every third part is the name of a group of the pattern.
    parts = FENCED.split(text)
    return "".join(LINK.sub(rewrite, part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 != 2)


def notebook(text: str) -> str:
    """Writes a notebook as a document, with what its cells have printed and drawn."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_output(output) for output in cell.get("outputs", ())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![What the cell draws](data:image/png;base64,{''.join(data['image/png'].split())})"
    text = "".join(output.get("text", data.get("text/plain", ""))).strip("\n")
    return f"```text\n{text}\n```" if text else ""


def pictures(text: str, name: str) -> Iterator[tuple[str, bytes | str]]:
    """Yields a document and its pictures as files: a search index is no place for them."""
    found: list[tuple[str, bytes]] = []

    def replace(match: re.Match[str]) -> str:
        found.append((f"{name.removesuffix('.md')}_{len(found)}.png", base64.b64decode(match[1])))
        return f"({os.path.basename(found[-1][0])})"

    yield name, re.sub(r"\(data:image/png;base64,([^)]*)\)", replace, text)
    yield from found


def navigation(pages: set[str]) -> str:
    """Writes the lists of pages that the first page ends with."""
    left = pages - {name for names in NAVIGATION.values() for name in names} - {"index"}
    text = ""
    for caption, names in NAVIGATION.items():
        listed = []
        for name in names:
            found = sorted(left & {page for page in left if Path(page).match(name)}) if "*" in name else [name]
            listed += [page for page in found if page in pages]
            left -= set(found)
        if listed:
            text += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(listed) + "\n```\n"
    if left:
        raise ValueError(f"every page has a place in NAVIGATION; got {sorted(left)}. Add them.")
    return text


def assemble() -> dict[str, str | bytes]:
    """Returns the site's source: what is in each of its files."""
    found: dict[str, str | bytes] = dict(api.files())
    files: set[str] = set()
    for pattern in (*DOCUMENTS, NOTEBOOKS):
        for file in sorted(ROOT.glob(pattern)):
            path = file.relative_to(ROOT).as_posix()
            text = file.read_text(encoding="utf-8")
            if path.endswith(".ipynb"):
                found.update(pictures(linked(notebook(text), path, files.add), page_name(path)))
            else:
                found[page_name(path)] = linked(text, path, files.add)
    pages = {re.sub(r"\.(md|rst)$", "", name) for name in found if name.endswith((".md", "api/index.rst"))}
    found["index.md"] = str(found["index.md"]) + navigation(pages)
    waiting = sorted(files)
    for path in waiting:
        name, file = target(path), ROOT / path
        if not name.startswith("source/"):
            if name not in found:
                found[name] = file.read_bytes()
        elif file.is_dir():
            inside = [child.relative_to(ROOT).as_posix() for child in sorted(file.iterdir()) if child.is_file()]
            found[name] = _shown(path, "\n".join(f"* [`{child}`](/{target(child)})" for child in inside))
            waiting += [child for child in inside if child not in files]
        else:
            text = file.read_text(encoding="utf-8")
            found[name] = _shown(path, f"``````{{code}} {TEXTS[file.suffix]}\n{text}\n``````")
    return found


def _shown(path: str, text: str) -> str:
    """Writes the page of a file or folder, which documents link to and no list of pages has."""
    return f"---\norphan: true\n---\n\n# `{path}`\n\n{text}\n"


class References(HTMLParser):
    """Collects what a page of HTML refers to, what of it a browser fetches to show the page, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.followed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Reads one element."""
        values = {name: value or "" for name, value in attrs}
        is_fetched = tag == "link" and not values.get("rel", "").startswith(("canonical", "author", "next", "prev"))
        for name in ("src", "srcset", "poster", "data", "href", "xlink:href"):
            if name in values:
                where = self.followed if name == "href" and not is_fetched else self.fetched
                where.append(values[name])


def mistakes(site: Path) -> list[str]:
    """Lists what pages fetch from other servers, and their links to files that are not there."""
    found = []
    for path in sorted(site.rglob("*.html")):
        references = References()
        references.feed(path.read_text(encoding="utf-8"))
        name = path.relative_to(site)
        found += [f"{name} fetches {url}" for url in references.fetched if re.match(r"(\w+:)?//", url)]
        for url in references.followed + references.fetched:
            local = re.split("[?#]", url)[0]
            if not re.match(r"(\w+:)|//", url) and local and not (path.parent / local).exists():
                found.append(f"{name} leads to {url}, which is not there")
    for path in sorted(site.rglob("*.css")):
        urls = re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]*)", path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)} fetches {url}" for url in urls]
    return found


def main() -> int:
    """Builds the site and looks through it; returns an exit status."""
    for folder in (SOURCE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    for name, content in assemble().items():
        path = SOURCE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--jobs", "auto", "--conf-dir", str(ROOT / "docs")]
    command = [sys.executable, "-m", "sphinx", *options, "--doctree-dir", str(SOURCE / ".doctrees")]
    failed = subprocess.run([*command, str(SOURCE), str(SITE)], cwd=ROOT / "docs", check=False).returncode
    found = [] if failed else mistakes(SITE)
    print("\n".join(found) or ("" if failed else f"The site is in {SITE.relative_to(ROOT)}: open index.html."))
    return failed or len(found)


if __name__ == "__main__":
    sys.exit(main())
