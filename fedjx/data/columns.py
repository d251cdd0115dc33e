"""Columns on disk: `.npy` files, appended to with checksums and read by position, never mapped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# A checksum covers so many bytes: few enough to say where a file is corrupt, many enough to keep the manifest small.
BLOCK = 1 << 24
# Reading over a gap of a page costs less than a second call.
_GAP = 1 << 12
# A call takes at most 1,024 buffers (IOV_MAX); an entry needs one, and one for the gap before it.
_MAX_BUFFERS = 1000


@dataclasses.dataclass(frozen=True)
class Column:
    """An array in a `.npy` file of its own.

    Reading keeps nothing open and nothing cached, so that a column serves any number of threads and
    processes. A truncated file is an error message; under a memory map it would kill the process.

    Attributes:
      path: The file.
      dtype: The type of an element. One that NumPy alone does not know, as bfloat16, is in the
        file as unsigned integers of its width.
      shape: Shape of the array, ``[N, ...]``.
      checksums: The crc32 of every `BLOCK` bytes after the header.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    checksums: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @functools.cached_property
    def header(self) -> bytes:
        """What the file begins with."""
        return header(self.dtype, self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + len(self) * self.row_bytes

    def check_file(self) -> None:
        """Raises FileNotFoundError if the file is missing, and ValueError if it is none or its size is another."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise FileNotFoundError(f"a store needs all its files; {self.path} is missing. Import it again.") from None
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"a column of a store needs to be a file; {self.path} is none. Import it again.")
        size = found.st_size
        if size != self.num_bytes:
            how = "truncated" if size < self.num_bytes else "too long"
            raise ValueError(
                f"a file of a store needs its size at writing; {self.path} is {how}: got {size} bytes, expected "
                f"{self.num_bytes}. Import it again."
            )

    def check_header(self) -> None:
        """Raises ValueError if the file says that it holds another dtype or shape."""
        if not self._has_header():
            raise ValueError(
                f"a file of a store needs to hold what the manifest says; {self.path} is not {self.dtype}"
                f"{list(self.shape)}. Import it again."
            )

    def read(self, first: np.ndarray, count: np.ndarray, out: np.ndarray, place: np.ndarray) -> None:
        """Reads ranges of rows, in few calls where they are close to one another.

        Args:
          first: int64 ``[R]``, increasing: the first row of each range.
          count: int64 ``[R]``, the rows of each range.
          out: Contiguous array of the column's dtype, ``[M, ...]``, which is written to.
          place: int64 ``[R]``, where in `out` each range begins.

        Raises:
          ValueError: If there is no such row or the file has become shorter.
        """
        first, count, place = (x[count > 0] for x in (first, count, place))
        if not len(first) or not self.row_bytes:
            return
        if first[0] < 0 or (first + count).max() > len(self):
            raise ValueError(f"rows of {self.path} need to be in [0, {len(self)}); got others. Verify the store.")
        # Ranges adjacent in the file and in memory are one.
        new = np.append(True, (first[1:] != (first + count)[:-1]) | (place[1:] != (place + count)[:-1]))
        count = np.add.reduceat(count, np.flatnonzero(new))
        ranges = zip(*((x * self.row_bytes).tolist() for x in (first[new], count, place[new])), strict=True)
        calls = _calls(ranges, out.reshape(-1).view(np.uint8).data)
        with self._opened() as file:
            if len(calls) > 1 and hasattr(os, "posix_fadvise"):
                # A disk serves many requests at once: what is not in memory arrives in about half the time.
                for begin, length, _ in calls:
                    os.posix_fadvise(file, len(self.header) + begin, length, os.POSIX_FADV_WILLNEED)
            for begin, length, buffers in calls:
                self._fill(file, buffers, length, begin)

    def rows(self, rows: np.ndarray | range) -> np.ndarray:
        """Reads the rows of these numbers, in their order; ``[R, ...]``."""
        if isinstance(rows, range):
            return self.ranges(np.array([rows.start]), np.array([len(rows)]))
        return self.ranges(rows, np.ones(len(rows), np.int64))

    def ranges(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Reads ranges of rows, one after the other; ``[sum(count), ...]``."""
        out = np.empty((int(count.sum()), *self.shape[1:]), self.dtype)
        order = np.argsort(first, kind="stable")
        self.read(first[order], count[order], out, (count.cumsum() - count)[order])
        return out

    def pairs(self, rows: np.ndarray | range) -> tuple[np.ndarray, np.ndarray]:
        """Reads the rows of these numbers and those that follow them."""
        if isinstance(rows, range):
            values = self.rows(range(rows.start, rows.stop + 1))
            return values[:-1], values[1:]
        needed, inverse = np.unique(np.concatenate([rows, rows + 1]), return_inverse=True)
        values = self.rows(needed)[inverse]
        return values[: len(rows)], values[len(rows) :]

    def problems(self) -> Iterator[str]:
        """Compares header and checksums, and yields a line for everything that is not as it was written."""
        scratch = memoryview(bytearray(min(BLOCK, self.num_bytes)))
        if not self._has_header():
            yield f"{self.path}: the header is not that of {self.dtype}{list(self.shape)}"
        with self._opened() as file:
            for number, checksum in enumerate(self.checksums):
                first = number * BLOCK
                last = min(first + BLOCK, len(self) * self.row_bytes)
                part = scratch[: last - first]
                self._fill(file, [part], len(part), first)
                if zlib.crc32(part) != checksum:
                    rows = f"rows {first // self.row_bytes} to {(last - 1) // self.row_bytes}"
                    start = len(self.header)
                    yield f"{self.path}: corrupt between bytes {start + first} and {start + last} ({rows})"

    def _has_header(self) -> bool:
        with self._opened() as file:
            return os.pread(file, len(self.header), 0) == self.header

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            file = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise FileNotFoundError(f"a store needs all its files; {self.path} is gone. Import it again.") from None
        try:
            yield file
        except IsADirectoryError:
            raise ValueError(f"a column of a store needs to be a file; {self.path} is none. Import it again.") from None
        finally:
            os.close(file)

    def _fill(self, file: int, buffers: list[memoryview], length: int, begin: int) -> None:
        """Reads `length` bytes from `begin`, counted after the header."""
        begin += len(self.header)
        while length:
            got = os.preadv(file, buffers, begin)
            if got == 0:
                raise ValueError(
                    f"a file of a store needs its size at writing; {self.path} is truncated: got "
                    f"{os.fstat(file).st_size} bytes, expected {self.num_bytes}. Import it again."
                )
            begin, length = begin + got, length - got
            # A call may return less than was asked, at the latest after 2 GiB.
            while length and got:
                taken = min(got, len(buffers[0]))
                buffers[0] = buffers[0][taken:]
                got -= taken
                buffers = buffers if len(buffers[0]) else buffers[1:]


@dataclasses.dataclass(frozen=True, eq=False)
class OnDisk(np.lib.mixins.NDArrayOperatorsMixin):
    """A vector that is read when it is indexed, and only there.

    It takes part in arithmetic and comparisons, and has the methods of an array, which read all of it.

    Attributes:
      length: Its length.
      read: Returns the elements of these numbers, which exist.

    >>> squares = OnDisk(4, lambda rows: np.square(rows))
    >>> squares[[3, 1]], squares[-1], squares[:2], np.asarray(squares)
    (array([9, 1]), np.int64(9), array([0, 1]), array([0, 1, 4, 9]))
    >>> squares.max(), squares.mean(), squares > 2
    (np.int64(9), np.float64(3.5), array([False, False,  True,  True]))
    """

    length: int
    read: Callable[[np.ndarray | range], np.ndarray]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            rows = range(*index.indices(self.length))
            return self.read(rows if rows.step == 1 else np.asarray(rows, np.int64))
        rows = np.asarray(index)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        if rows.size and not -self.length <= rows.min() <= rows.max() < self.length:
            raise IndexError(
                f"indices need to be less than {self.length}; got {rows.min()} to {rows.max()}. Check them."
            )
        values = self.read(rows.reshape(-1).astype(np.int64) % self.length)
        return values.reshape(rows.shape)[()]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python and NumPy ask for these before there is anything to read.
            raise AttributeError(name)
        return getattr(self[:], name)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*(np.asarray(value) for value in inputs), **options)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class ColumnWriter:
    """Appends rows to a `.npy` file that must not exist yet; the memory does not grow with the file."""

    def __init__(self, path: Path, dtype: Any, shape: tuple[int, ...] = ()):
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self.num_bytes = 0
        self._checksums: list[int] = []
        self._crc = 0
        self._file = open(path, "xb", buffering=1 << 18)  # noqa: SIM115 (close() closes it)
        self._file.write(header(self.dtype, (0, *shape)))

    def append(self, data: bytes) -> None:
        """Appends the bytes of some rows."""
        self._file.write(data)
        room = BLOCK - self.num_bytes % BLOCK
        self.num_bytes += len(data)
        if len(data) < room:
            self._crc = zlib.crc32(data, self._crc)
            return
        rest = memoryview(data)
        while len(rest) >= room:
            self._checksums.append(zlib.crc32(rest[:room], self._crc))
            rest, room, self._crc = rest[room:], BLOCK, 0
        self._crc = zlib.crc32(rest)

    def finish(self, num_rows: int) -> Column:
        """Completes the header, waits until all is on disk, and closes the file."""
        if self.num_bytes % BLOCK:
            self._checksums.append(self._crc)
        column = Column(self.path, self.dtype, (num_rows, *self.shape), tuple(self._checksums))
        with self._file as file:
            file.seek(0)
            file.write(column.header)
            file.flush()
            os.fsync(file.fileno())
        return column

    def close(self) -> None:
        """Closes a file that is given up."""
        with contextlib.suppress(OSError):  # The disk may be full.
            self._file.close()


def _calls(ranges: Iterable[tuple[int, int, int]], memory: memoryview) -> list[tuple[int, int, list[memoryview]]]:
    """Plans which bytes of a file one call reads, from where, how many, and to which buffers.

    Args:
      ranges: Where ranges of bytes begin in the file, in increasing order, their lengths, and where in
        `memory` they go to.
      memory: What is written to.
    """
    calls: list[tuple[int, int, list[memoryview]]] = []
    gap = memoryview(bytearray(_GAP))
    buffers, begin, length = [], 0, 0
    for start, size, target in ranges:
        between = start - begin - length
        if not buffers or not 0 <= between <= _GAP or len(buffers) >= _MAX_BUFFERS:
            if buffers:
                calls.append((begin, length, buffers))
            buffers, begin, length, between = [], start, 0, 0
        if between:
            buffers.append(gap[:between])
        buffers.append(memory[target : target + size])
        length += between + size
    return [*calls, (begin, length, buffers)]


def header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Returns the beginning of a `.npy` file (version 1.0), of a length that does not depend on the number of rows.

    >>> len(header(np.dtype("int32"), (5, 2))), len(header(np.dtype("int32"), (5_000_000_000, 2)))
    (128, 128)
    """
    native = dtype.kind in "biufc"
    stored = dtype.str if native else f"<u{dtype.itemsize}"

    def text(num_rows: int) -> str:
        return f"{{'descr': '{stored}', 'fortran_order': False, 'shape': {(int(num_rows), *map(int, shape[1:]))}, }}"

    length = -(-(len(text(2**63)) + 11) // 64) * 64
    padded = text(shape[0]).ljust(length - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + (length - 10).to_bytes(2, "little") + padded.encode("latin1")
