"""The words and tags of Stack Overflow by rank, out of the published archives, which are never unpacked to disk."""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# A JSON text of 50,000 tags has 2 MB, a line some tens of bytes.
_MOST_BYTES = 1 << 26
_LONGEST_LINE = 1 << 16


def word_counts(path: str | Path, num_words: int = 10_000) -> list[bytes]:
    """Reads the most frequent words, the vocabulary of the published experiments.

    Args:
      path: `stackoverflow.word_count.tar.bz2`.
      num_words: How many.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is not such an archive, or has fewer words.
    """
    words: list[bytes] = []
    with _member(Path(path)) as file:
        while len(words) < num_words and (line := file.readline(_LONGEST_LINE)):
            word, _, count = line.rstrip(b"\n").rpartition(b" ")
            if not line.endswith(b"\n") or not count.isdigit():
                raise ValueError(
                    f"lines of {path} need to be a word and a count; got {line[:50]!r} in line {len(words) + 1}. "
                    "Fetch it again."
                )
            words.append(word)
    if len(words) < num_words:
        raise ValueError(f"{path} needs {num_words=}; got {len(words)}. Ask for fewer, or fetch it again.")
    return words


def tag_counts(path: str | Path, num_tags: int = 500) -> list[bytes]:
    """Reads the most frequent tags, in the order of the file where two are as frequent.

    Args:
      path: `stackoverflow.tag_count.tar.bz2`.
      num_tags: How many.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is not such an archive, or has fewer tags.
    """
    with _member(Path(path)) as file:
        text = file.read(_MOST_BYTES + 1)
    try:
        counts = json.loads(text) if len(text) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        counts = None
    if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
        raise ValueError(f"{path} needs to hold the counts of tags as JSON; got something else. Fetch it again.")
    if len(counts) < num_tags:
        raise ValueError(f"{path} needs {num_tags=}; got {len(counts)}. Ask for fewer, or fetch it again.")
    return [tag.encode() for tag in sorted(counts, key=counts.__getitem__, reverse=True)[:num_tags]]


@contextlib.contextmanager
def _member(path: Path) -> Iterator[IO[bytes]]:
    """Opens the first regular file of an archive; what it is called there and whatever else is there is not looked at.

    Nothing is unpacked, so that a name such as `../x`, a link or a file of a petabyte does no harm.
    """
    try:
        with tarfile.open(path, "r|bz2") as archive:
            for member in archive:
                if member.isreg() and (file := archive.extractfile(member)):
                    yield file
                    return
                if not member.isdir():
                    raise ValueError(
                        f"{path} needs to hold one regular file; got {member.name[:50]!r}, a link or a device. "
                        "Fetch it again."
                    )
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} needs to be a whole .tar.bz2; got one that is not ({error}). Fetch it again."
        ) from error
    raise ValueError(f"{path} needs to hold one regular file; got an empty archive. Fetch it again.")
