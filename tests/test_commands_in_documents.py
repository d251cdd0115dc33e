"""The commands that documents give exist: `python -m module`, with arguments that the module's parser takes."""

import argparse
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_documents import DOCUMENTS, ROOT, fenced_blocks, without_blocks

# Up to a quote or an operator of the shell.
COMMAND = re.compile(r"python3? -m ((?:benchmarks|examples|fedjx)[.\w]*)([^'|;&]*)")
PATHS = [*DOCUMENTS, ROOT / "benchmarks/results/README.md"]


class ParsedError(Exception):
    """A parser has taken its arguments."""


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the module and the arguments of each command in the code, fenced or inline, of a Markdown text."""
    code = [block.source.replace("\\\n", " ") for block in fenced_blocks(text)]
    code += [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", without_blocks(text))]
    for line in "\n".join(code).splitlines():
        for module, rest in COMMAND.findall(line):
            yield module, shlex.split(rest, comments=True)


def run(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a module as far as its parser; raises ParsedError if that takes the arguments, else SystemExit."""
    parse_args = argparse.ArgumentParser.parse_args

    def parsed(parser, args=None, namespace=None):
        del args
        parse_args(parser, arguments, namespace)
        raise ParsedError

    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    program = importlib.import_module(f"{module}.__main__" if spec.submodule_search_locations else module)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    getattr(program, "parse_flags", program.main)()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_exist(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module, arguments in commands(path.read_text(encoding="utf-8")):
        if not arguments:  # a module that prose names
            assert importlib.util.find_spec(module), module
            continue
        with monkeypatch.context() as patch, pytest.raises((ParsedError, SystemExit)) as ended:
            run(module, arguments, patch)
        assert ended.type is ParsedError, capsys.readouterr().err


def test_commands_are_found() -> None:
    text = "\n".join(
        [
            "`python -m benchmarks.a --b",
            "1`, and python -m benchmarks.prose",
            "```bash",
            "X=1 python -m examples.c --d \\",
            '  "e f"  # why',
            "sh -c 'exec python -m fedjx.g'; python -m pytest",
            "```",
        ]
    )
    expected = [("examples.c", ["--d", "e f"]), ("fedjx.g", []), ("benchmarks.a", ["--b", "1"])]
    assert list(commands(text)) == expected


def test_commands_that_do_not_exist_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, argument in (("fedjx.data", "--no-such"), ("benchmarks.limit", "--no-such")):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            run(module, [argument], patch)
    with pytest.raises((AssertionError, ImportError)):
        run("benchmarks.no_such", [], monkeypatch)
