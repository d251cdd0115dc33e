"""The documents are true: their Python blocks run, their make commands exist; no file names the paths of a machine."""

import doctest
import re
import shlex
import subprocess
import sys
import textwrap
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    p for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "examples/*.md") for p in ROOT.glob(pattern)
)
SHELLS = ("bash", "console", "sh", "shell")

# The working directories of one machine. A path that only contains one of these (/usr/work/x, ~/work/x) is fine.
MACHINE_PATH = re.compile(rb"(?<![\w.~}-])/(?:work/|tmp/env\b|root/|home/\w|Users/\w)[^\s\"'`)]*")


class Block(NamedTuple):
    info: str  # What follows the opening fence, such as "python" or "python no-run".
    line: int  # The number in the document of the first line of the source, from 1.
    source: str


def fenced_blocks(text: str) -> Iterator[Block]:
    """Yields the fenced code blocks of a Markdown text; a block may be indented, as in a list."""
    fence, info, start, lines = "", "", 0, []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not fence and (match := re.match(r"(`{3,}|~{3,})([^`]*)$", stripped)):
            fence, info, start, lines = match[1], match[2].strip(), number + 1, []
        elif fence and stripped.startswith(fence) and not stripped.strip(fence[0]):
            yield Block(info, start, textwrap.dedent("\n".join(lines)) + "\n")
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        raise ValueError(f"each fence must be closed; got an open one before line {start}. Close it.")


def without_blocks(text: str) -> str:
    """Returns a Markdown text without its fenced code blocks."""
    return re.sub(r"^\s*(`{3,}|~{3,}).*?^\s*\1`*\s*$", "", text, flags=re.DOTALL | re.MULTILINE)


def run_block(block: Block, path: Path, namespace: dict[str, object]) -> None:
    """Runs one block in `namespace`, as a doctest where it has prompts, and fails with the document's file and line."""
    if ">>>" in block.source:
        flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
        test = doctest.DocTestParser().get_doctest(block.source, namespace, path.name, str(path), block.line - 1)
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
        if runner.run(test, out=report.append, clear_globs=False).failed:
            pytest.fail("".join(report), pytrace=False)
        namespace.update(test.globs)
        return
    try:
        # The blank lines give tracebacks the document's own line numbers.
        exec(compile("\n" * (block.line - 1) + block.source, str(path), "exec"), namespace)
    except Exception as error:
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (frames or [block.line])[0]
        pytest.fail(f"{path}:{line}: {type(error).__name__}: {error}\n\n{traceback.format_exc()}", pytrace=False)


def run_document(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs the Python blocks of a document in order, in one namespace, and returns how many there were."""
    module = types.ModuleType(f"document_{path.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # Classes and type hints look their module up by name.
    blocks = list(fenced_blocks(path.read_text(encoding="utf-8")))
    for block in blocks:
        if block.info.startswith("py") and block.info not in ("python", "python no-run"):
            message = f"write ```python or ```python no-run; got ```{block.info}."
            pytest.fail(f"{path}:{block.line}: {message}", pytrace=False)
    executed = [block for block in blocks if block.info == "python"]
    for block in executed:
        run_block(block, path, vars(module))
    return len(executed)


def make_targets_named(text: str) -> set[str]:
    """Returns the targets of every make command in shell blocks and in inline code."""
    blocks = [block for block in fenced_blocks(text) if block.info.split(" ")[0] in SHELLS]
    commands = [line for block in blocks for line in block.source.splitlines()]
    commands += re.findall(r"(?<!`)`(make\b[^`\n]*)`(?!`)", without_blocks(text))
    targets = set()
    for command in commands:
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        for position, word in enumerate(words):
            starts = position == 0 or words[position - 1] in ("$", "&&", "||", ";", "|") or "=" in words[position - 1]
            if word != "make" or not starts:
                continue
            for argument in words[position + 1 :]:
                if re.fullmatch(r"[();<>|&]+", argument):
                    break
                if "=" not in argument and not argument.startswith("-"):
                    targets.add(argument)
    return targets


def make_targets_defined(makefile: str) -> set[str]:
    """Returns the names that a Makefile gives a rule."""
    rules = re.findall(r"^([a-z][\w. -]*):(?!=)", makefile, flags=re.MULTILINE)
    return {name for rule in rules for name in rule.split()}


def project_files() -> list[Path]:
    """Returns what git tracks or would add; outside a git checkout, every file that no tool has written."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
        paths = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        written = {".git", "__pycache__", "build", "dist", "runs", ".pytest_cache", ".ruff_cache"}
        names = [(path, path.relative_to(ROOT).parts) for path in ROOT.rglob("*")]
        paths = [p for p, parts in names if not written.intersection(parts) and not parts[0].startswith(".venv-")]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_blocks_run(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # What a block writes does not land in the checkout.
    run_document(path, monkeypatch)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_make_commands_exist(path: Path) -> None:
    named = make_targets_named(path.read_text(encoding="utf-8"))
    assert named <= make_targets_defined((ROOT / "Makefile").read_text(encoding="utf-8"))


def test_no_file_names_a_path_of_one_machine() -> None:
    files = project_files()
    assert Path(__file__).resolve() in files
    found = [
        f"{p.relative_to(ROOT)}: {m[0].decode(errors='replace')}"
        for p in files
        for m in MACHINE_PATH.finditer(p.read_bytes())
    ]
    assert not found


# The checks above can fail.


def write(path: Path, *blocks: str) -> Path:
    path.write_text("# A document\n\n" + "\n\n".join(blocks) + "\n", encoding="utf-8")
    return path


def test_blocks_share_a_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    document = write(
        tmp_path / "good.md",
        "```python\nimport typing\nclass Point(typing.NamedTuple):\n    x: 'int'\n```",
        "```python\n>>> point = Point(3)\n>>> typing.get_type_hints(Point)\n{'x': <class   'int'>}\n```",
        "* In a list:\n\n  ```python\n  assert point.x == 3\n  ```",
        "```python no-run\nraise ValueError\n```\n\n```text\nraise ValueError\n```",
    )
    assert run_document(document, monkeypatch) == 3


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("```python\nx = 1\nraise KeyError('gone')\n```", r"bad\.md:5: KeyError: 'gone'"),
        ("```python\ndef f():\n    return 1 / 0\n\nf()\n```", r"bad\.md:7: ZeroDivisionError"),
        ("```python\nx = = 1\n```", r"bad\.md:4: SyntaxError"),
        ("```python\n>>> 1 + 1\n3\n```", r"(?s)bad\.md.*line 4.*Expected:\s+3\s+Got:\s+2"),
        ("```py\nx = 1\n```", r"bad\.md:4: write ```python"),
    ],
)
def test_failing_block_names_file_and_line(
    block: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(pytest.fail.Exception, match=message):
        run_document(write(tmp_path / "bad.md", block), monkeypatch)


def test_make_commands_are_found() -> None:
    text = "\n".join(
        [
            "Run `make alpha`; make sure.",
            "```bash",
            "git pull && make beta ARGS='-k x'  # make nothing",
            "make -j PYTHON=python3 gamma delta; ls",
            "```",
            "```text",
            "make epsilon",
            "```",
        ]
    )
    assert make_targets_named(text) == {"alpha", "beta", "gamma", "delta"}
    assert make_targets_defined("A := 1\nb: c ## d\n\te: f\n.PHONY: g\nh i:\n") == {"b", "h", "i"}


@pytest.mark.parametrize("directory", ["work", "tmp/env", "root", "home/someone", "Users/someone"])
def test_machine_paths_are_found(directory: str) -> None:
    assert MACHINE_PATH.search(f'path = "/{directory}/data"'.encode())
    assert not MACHINE_PATH.search(f"see ~/{directory}/data and https://example.org/{directory}/data".encode())
