"""Builds the notebooks: ``make colabs``, or ``python colabs/build.py [NAME ...] [--output FOLDER]``.

The source of a notebook is a Python file, `source/<name>.py`, which also runs as a script. A line ``# %%`` begins a
cell of code, ``# %% [markdown]`` one of words, whose lines are comments. A command that only notebooks have is a
comment too: ``# %pip install fedjx``. A notebook is executed from top to bottom, in a process and an empty directory
of its own, and stored with what its cells print and draw. An error ends the build.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "source"
MARKER = re.compile(r"^# %%( \[markdown\])?$", flags=re.MULTILINE)
COMMAND = re.compile(r"^# (?=%[a-z])", flags=re.MULTILINE)
# The longest that a cell may take, on a machine that does other things too.
SECONDS = 600


class Cell(NamedTuple):
    """A cell of a notebook: ``kind`` is "code" or "markdown", ``source`` its text."""

    kind: str
    source: str


def cells(text: str) -> list[Cell]:
    r"""Cuts a source into its cells.

    Raises:
      ValueError: If something stands before the first cell, or a line of words is no comment.

    >>> cells("# %% [markdown]\n# # Title\n\n# %%\n# %pip install fedjx\nx = 1\n")
    [Cell(kind='markdown', source='# Title'), Cell(kind='code', source='%pip install fedjx\nx = 1')]
    """
    before, *parts = MARKER.split(text)
    if before.strip():
        raise ValueError(f"a source begins with a cell; got {before!r}. Write '# %%' above it.")
    return [
        Cell("markdown", _words(body)) if kind else Cell("code", COMMAND.sub("", body.strip()))
        for kind, body in zip(parts[::2], parts[1::2], strict=True)
    ]


def _words(body: str) -> str:
    lines = body.strip().splitlines()
    if wrong := [line for line in lines if line != "#" and not line.startswith("# ")]:
        raise ValueError(f"words are comments; got {wrong[0]!r}. Begin the line with '# '.")
    return "\n".join(line[2:] for line in lines)


def notebook(text: str) -> dict[str, Any]:
    """Makes a notebook, not yet executed, of a source."""
    found: list[dict[str, Any]] = []
    for number, (kind, source) in enumerate(cells(text)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)}
        found.append({**cell, "execution_count": None, "outputs": []} if kind == "code" else cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return {"cells": found, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def executed(made: dict[str, Any]) -> dict[str, Any]:
    """Runs a notebook in an empty directory, and returns it with the outputs."""
    import nbformat  # here, so that the tests, which cut sources into cells, need none of these
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        run = nbformat.reads(json.dumps(made), as_version=4)
        where = {"metadata": {"path": folder}}
        NotebookClient(run, timeout=SECONDS, resources=where, record_timing=False, coalesce_streams=True).execute()
    outputs = [list(_shown(cell)) for cell in run["cells"]]
    done = [
        {**cell, "outputs": shown, "execution_count": ran["execution_count"]} if cell["cell_type"] == "code" else cell
        for cell, ran, shown in zip(made["cells"], run["cells"], outputs, strict=True)
    ]
    return {**made, "cells": done}


def _shown(cell: Any) -> Iterator[dict[str, Any]]:
    """Yields what a reader should see of a cell: nothing of an installation, nor of what goes to standard error."""
    if any(line.startswith("%pip") for line in cell["source"].splitlines()):
        return
    for output in cell.get("outputs", ()):
        if output.get("name") != "stderr":
            yield json.loads(json.dumps(output))


def main() -> None:
    """Executes the notebooks that are named, or all, and writes them."""
    parser = argparse.ArgumentParser(description="Executes the notebooks and stores them with their outputs.")
    parser.add_argument("names", nargs="*", help="which, such as first_steps; all by default")
    parser.add_argument("--output", type=Path, default=ROOT, help="where they go; beside this file by default")
    arguments = parser.parse_args()
    os.environ.update(JAX_PLATFORMS="cpu")  # Stored outputs are those that everybody can have.
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or sorted(path.stem for path in SOURCES.glob("*.py")):
        done = executed(notebook((SOURCES / f"{name}.py").read_text(encoding="utf-8")))
        path = arguments.output / f"{name}.ipynb"
        path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
