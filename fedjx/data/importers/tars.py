"""Reads tars as streams, strictly: what Python's module takes for the end of a damaged tar is an error here."""

from __future__ import annotations

import contextlib
import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedjx.data.importers.files import reading

_PIECE = 1 << 20


def tar_files(path: Path, max_member_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Yields the names and contents of the files in a tar, in its order; directories are passed over.

    Args:
      path: A tar, also compressed with gzip, which is then compared with its checksum.
      max_member_bytes: Most bytes of one file.

    Raises:
      ValueError: If the tar is corrupt, has no end or something after it, or holds links, devices, larger files or
        names that lead out of it.
    """
    with reading(path, "a tar"), contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        if file.read(2) == b"\x1f\x8b":
            file.seek(0)
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        file.seek(0)
        # Read as a stream, or the module would seek over what is missing.
        tar = stack.enter_context(tarfile.open(fileobj=file, mode="r|", tarinfo=_Strict, bufsize=512))
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # It would keep all of them.
            if member.isdir():
                continue
            _check(member, max_member_bytes)
            content = tar.extractfile(member)
            data = content.read() if content else b""
            if len(data) != member.size:
                raise ValueError(f"{member.name!r} has {len(data)} bytes of {member.size}")
            yield member.name, data
        while piece := file.read(_PIECE):
            if piece.count(0) != len(piece):
                raise ValueError("it has something after its end")


class _Strict(tarfile.TarInfo):
    """Refuses to take a damaged header, or the end of the file, for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from None


def _check(member: tarfile.TarInfo, max_member_bytes: int) -> None:
    name = member.name
    if not member.isreg() or member.issparse():
        raise ValueError(f"{name!r} is not a plain file, but a link, a device or sparse")
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or not name.isprintable():
        raise ValueError(f"{name!r} leads out of it")
    if member.size > max_member_bytes:
        raise ValueError(f"{name!r} has {member.size} bytes, more than max_member_bytes={max_member_bytes}")
