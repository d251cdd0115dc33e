"""Finds the public names of fedjx, and writes the pages that describe them; each name is described on one page."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import fedjx

# Modules that users import from, though no package's __all__ has their names.
MODULES = (
    "fedjx.aggregation.attacks",
    "fedjx.algorithms.attacks",
    "fedjx.analytics.question",
    "fedjx.data.exporters",
    "fedjx.data.poison",
)


class Page(NamedTuple):
    """What one page of the site describes.

    Attributes:
      module: The module that users import from.
      own: Its public names that are described here.
      elsewhere: Its other public names, each with the full name under which another page describes it.
    """

    module: str
    own: tuple[str, ...]
    elsewhere: dict[str, str]


def public_names(module: ModuleType) -> list[str]:
    """Lists what a module offers: its ``__all__``, or what it defines by itself."""
    named = getattr(module, "__all__", None)
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    return sorted(name for name in (own if named is None else named) if not name.startswith("_"))


def public_modules() -> list[ModuleType]:
    """Lists the packages that say by ``__all__`` what they offer, the modules among that, and `MODULES`."""
    found = {"fedjx", *MODULES}
    found |= {info.name for info in pkgutil.walk_packages(fedjx.__path__, "fedjx.") if _offers(info.name)}
    for name in sorted(found):
        module = importlib.import_module(name)
        named = (getattr(module, name) for name in getattr(module, "__all__", ()))
        found |= {value.__name__ for value in named if isinstance(value, ModuleType)}
    return [importlib.import_module(name) for name in sorted(found)]


def _offers(name: str) -> bool:
    return not name.endswith("__main__") and hasattr(importlib.import_module(name), "__all__")


def pages() -> list[Page]:
    """Divides the public names among pages, one a module: of several packages a name belongs to the innermost."""
    modules = {module.__name__: module for module in public_modules()}
    homes: dict[int, str] = {}
    for name in sorted(
        modules, key=lambda name: (name.startswith("fedjx.tff"), name in MODULES, -name.count("."), name)
    ):
        for member in public_names(modules[name]):
            homes.setdefault(id(getattr(modules[name], member)), f"{name}.{member}")
    found = []
    for name, module in modules.items():
        members = {member: getattr(module, member) for member in public_names(module)}
        of_values = {k: homes[id(value)] for k, value in members.items() if not isinstance(value, ModuleType)}
        own = tuple(member for member, home in of_values.items() if home == f"{name}.{member}")
        found.append(Page(name, own, {member: home for member, home in of_values.items() if member not in own}))
    return found


def aliases() -> dict[str, str]:
    """Maps where things are defined, as annotations name them, to the names that the pages give them."""
    found = {}
    for page in pages():
        for name in page.own:
            value = getattr(importlib.import_module(page.module), name)
            defined = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', name)}"
            found.setdefault(defined, f"{page.module}.{name}")
    return found


def render(page: Page) -> str:
    """Writes a page, in reStructuredText: what the module is, a table of its names, and each of them."""
    module = importlib.import_module(page.module)
    text = f"{page.module}\n{'=' * len(page.module)}\n\n.. py:module:: {page.module}\n\n{inspect.getdoc(module)}\n\n"
    names = {**{name: f"{page.module}.{name}" for name in page.own}, **page.elsewhere}
    if names:
        rows = (_row(name, home, getattr(module, name)) for name, home in sorted(names.items()))
        text += ".. list-table::\n   :widths: 30 70\n\n" + "".join(rows) + "\n"
    return text + "\n".join(_entry(name, getattr(module, name)) for name in page.own)


def _row(name: str, home: str, value: Any) -> str:
    return f"   * - :py:obj:`{name} <{home}>`\n     - {_summary(value)}\n"


def _summary(value: Any) -> str:
    """Takes the first paragraph of a docstring; of a value, which has that of its type, says what it is."""
    if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
        return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    if isinstance(value, dict | tuple) and all(isinstance(key, str) for key in value) and not hasattr(value, "_fields"):
        return ", ".join(f"``{key}``" for key in value)
    return f"A `{type(value).__name__}`." if type(value).__module__.startswith("fedjx.") else f"``{value}``"


def _entry(name: str, value: Any) -> str:
    if inspect.isclass(value):
        return f".. autoclass:: {name}\n   :members:\n"
    if inspect.isroutine(value):
        return f".. autofunction:: {name}\n"
    return f".. py:data:: {name}\n\n   {_summary(value)}\n"


def signature(value: Any) -> tuple[str, str] | None:
    """Returns the signature of a function or class as its source has it: with short types, and no overloads."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body
    except (OSError, SyntaxError, TypeError):  # what Python or a decorator has made
        return None
    if isinstance(definition, ast.ClassDef):
        return (_of_class(definition), "") if _of_class(definition) else None
    if not isinstance(definition, ast.FunctionDef):
        return None
    return f"({_arguments(definition)})", "" if definition.returns is None else ast.unparse(definition.returns)


def _of_class(definition: ast.ClassDef) -> str:
    """Writes down what a class is called with: what its constructor takes, or the fields of a NamedTuple."""
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return f"({_arguments(node)})"
    fields = [ast.unparse(node) for node in definition.body if isinstance(node, ast.AnnAssign)]
    return f"({', '.join(fields)})" if any("NamedTuple" in ast.unparse(base) for base in definition.bases) else ""


def _arguments(definition: ast.FunctionDef) -> str:
    text = ast.unparse(definition.args)
    return re.sub(r"^(self|cls)(, |$)", "", text)


def files() -> Iterator[tuple[str, str]]:
    """Yields the pages as files of the site's source, each with its text."""
    found = pages()
    listed = "".join(f"   {page.module}\n" for page in found)
    rows = [(page.module, _summary(importlib.import_module(page.module))) for page in found]
    table = "".join(f"   * - :py:mod:`{module}`\n     - {summary}\n" for module, summary in rows)
    title = "Reference\n=========\n\nEvery public name, from its docstring.\n\n"
    yield (
        "api/index.rst",
        f"{title}.. list-table::\n   :widths: 30 70\n\n{table}\n.. toctree::\n   :hidden:\n\n{listed}",
    )
    for page in found:
        yield f"api/{page.module}.rst", render(page)
