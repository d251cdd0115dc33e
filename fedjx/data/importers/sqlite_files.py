"""Opens SQLite databases that others wrote: packed or not, read-only, and with one kind of error."""

from __future__ import annotations

import contextlib
import lzma
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from fedjx.data.importers.files import pieces

_MAGIC = b"SQLite format 3\0"
_PIECE = 1 << 20
# What .lzma files ask for is 64 MiB at most; a corrupt header may ask for 4 GiB.
_MAX_UNPACKER_BYTES = 1 << 28


@contextlib.contextmanager
def opened(path: Path, tables: Mapping[str, tuple[str, ...]]) -> Iterator[sqlite3.Connection]:
    """Opens a database that nobody writes to, as a context manager; text is str, with surrogates where not UTF-8.

    Args:
      path: The file. If its name ends in ``.lzma`` or ``.xz``, it is unpacked to a file without a name, in the
        temporary directory, for the block.
      tables: The columns that are needed, by name of the table.

    Raises:
      ValueError: If it is not such a database, is in use, or SQLite finds it corrupt, also later in the block.
    """
    for suffix in ("-wal", "-journal"):
        beside = path.with_name(path.name + suffix)
        if beside.is_file() and beside.stat().st_size:
            raise ValueError(
                f"a database needs to be closed to be imported; got {path} with {beside.name} beside it. Close it, or "
                "open it once with sqlite3 to recover it."
            )
    try:
        with contextlib.closing(_connected(path)) as connection:
            connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
            # Pages are never mapped: a file that becomes shorter would kill the process.
            for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
                connection.execute(f"PRAGMA {pragma}")
            for table, columns in tables.items():
                _check_table(connection, path, table, columns)
            yield connection
    except (sqlite3.Error, UnicodeDecodeError) as error:  # The latter if a message quotes what is corrupt.
        raise ValueError(
            f"a database needs to be one that SQLite can read; got {path}: {error}. Fetch it again."
        ) from error


def _connected(path: Path) -> sqlite3.Connection:
    if not is_packed(path):
        return _read_only(path)
    with tempfile.TemporaryDirectory(prefix="fedjx-") as directory:
        copy = Path(directory) / "unpacked.sqlite"
        try:
            _unpack(path, copy)
        except (lzma.LZMAError, EOFError) as error:
            raise ValueError(
                f"a packed database needs to be whole; got {path}: {error}. Fetch it again, it is truncated or corrupt."
            ) from error
        # It stays open, without a name, and is gone with the process, however that ends.
        return _read_only(copy)


def _read_only(path: Path) -> sqlite3.Connection:
    uri = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


def check_whole(connection: sqlite3.Connection, path: Path) -> None:
    """Reads all of a database and compares its structure, in which a loop would keep a reader for ever.

    Raises:
      ValueError: If it is corrupt.
    """
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise ValueError(f"a database needs to be intact; got {path}: {' '.join(found.split())}. Fetch it again.")


def is_packed(path: Path) -> bool:
    """Tells whether a file's name says that it is compressed."""
    return path.suffix in (".lzma", ".xz")


def _unpack(path: Path, copy: Path) -> None:
    """Unpacks up to the mark of the end, and no more than the database says that it is long."""
    unpacker = lzma.LZMADecompressor(memlimit=_MAX_UNPACKER_BYTES)
    beginning, num_bytes, limit = b"", 0, 1 << 16
    with open(copy, "wb") as target, contextlib.closing(pieces(path, f"Unpacking {path.name}")) as source:
        while not unpacker.eof:
            piece = next(source, b"") if unpacker.needs_input else b""
            if unpacker.needs_input and not piece:
                raise EOFError("it ends before the mark of its end")
            data = unpacker.decompress(piece, _PIECE)
            num_bytes += target.write(data)
            if len(beginning) < 100 <= len(beginning) + len(data):
                limit = _database_bytes(beginning + data)
            beginning = beginning if len(beginning) >= 100 else beginning + data
            if num_bytes > limit:
                raise lzma.LZMAError(f"it unpacks to more than the {limit} bytes that the database says it has")
        if unpacker.unused_data or next(source, b""):
            raise lzma.LZMAError("something follows the mark of its end")


def _database_bytes(header: bytes) -> int:
    """Returns the size of a database by its header."""
    if not header.startswith(_MAGIC):
        raise lzma.LZMAError("what is in it is not an SQLite database")
    page = int.from_bytes(header[16:18], "big")
    return (1 << 16 if page == 1 else page) * int.from_bytes(header[28:32], "big")


def _check_table(connection: sqlite3.Connection, path: Path, table: str, columns: tuple[str, ...]) -> None:
    kinds = dict(connection.execute("SELECT name, type FROM sqlite_master WHERE sql NOT LIKE 'CREATE VIRTUAL%'"))
    # A view could be a query of any length.
    if kinds.get(table) != "table":
        tables = sorted(name for name, kind in kinds.items() if kind == "table")
        raise ValueError(
            f"a database needs a table {table!r}; got {path} with {tables}. Use the importer of its format."
        )
    found = [row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]
    missing = [column for column in columns if column not in found]
    if missing:
        raise ValueError(
            f"table {table!r} needs columns {list(columns)}; got {path} with {found}. Use the importer of its format."
        )
