"""Which files an importer reads, what a store's manifest says of them, and errors that name them."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

_PIECE = 1 << 20

PathLike = str | os.PathLike[str]
Paths = PathLike | Iterable[PathLike]


def files(paths: Paths) -> list[Path]:
    """Returns the files of one path, several, or a pattern with ``*``, which gives them in sorted order.

    Raises:
      FileNotFoundError: If there is no such file.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found = []
    for path in [str(Path(path)) for path in given]:
        # A file may have the characters of a pattern in its name.
        matches = [path] if os.path.exists(path) or not glob.has_magic(path) else sorted(glob.glob(path))
        if os.path.isdir(path):
            raise FileNotFoundError(
                f"an importer needs files to read; {path} is a directory. Name the files in it, as {path}/*."
            )
        if not matches or not all(map(os.path.isfile, matches)):
            raise FileNotFoundError(f"an importer needs files to read; there is none at {path}. Check the path.")
        found += map(Path, matches)
    if not found:
        raise FileNotFoundError(f"an importer needs files to read; got {paths=}. Give at least one.")
    return found


def provenance(importer: str, paths: Iterable[Path], **options: Any) -> dict[str, Any]:
    """Returns what a manifest says of an import: the importer, the files with their sizes in bytes, the options."""
    sizes = {path.name: path.stat().st_size for path in paths}
    return {"importer": importer, "files": sizes, "options": options}


def pieces(path: Path, text: str, *, progress: bool = True) -> Generator[bytes, None, None]:
    """Reads a file in pieces of 1 MiB; where that takes longer, with a bar if stderr is a terminal."""
    size, disable = path.stat().st_size, None if progress else True
    with (
        open(path, "rb") as file,
        tqdm(desc=text, total=size, unit="B", unit_scale=True, delay=1, leave=False, disable=disable) as bar,
    ):
        while piece := file.read(_PIECE):
            yield piece
            bar.update(len(piece))


@contextlib.contextmanager
def reading(path: PathLike, kind: str) -> Iterator[None]:
    """Turns whatever a library raises over a file into one ValueError that names the file.

    Raises:
      ValueError: If the block raises anything but FileNotFoundError or PermissionError.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # Parsers raise anything over a corrupt file, KeyError and MemoryError too.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{kind} needs to be whole and as the format says; {path} is not: {reason[:300]}. Fetch it again."
        ) from error
