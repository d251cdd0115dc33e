"""Brings rows that come in any order together by client, in memory that does not grow with their number."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from fedjx.data.source import Client

Columns = Mapping[str, np.ndarray]
Block = tuple[np.ndarray, Columns]


def grouped(
    blocks_fn: Callable[[], Iterable[Block]],
    *,
    keys_fn: Callable[[], Iterable[np.ndarray]] | None = None,
    buffer_bytes: int = 1 << 27,
) -> Iterator[Client]:
    """Groups rows by client, in two passes over them.

    The first pass counts the rows of each client. If they turn out to be sorted by client, the second pass
    hands them on as they come. If not, it gathers them in memory or, where they do not fit, in a temporary file
    (in `tempfile.gettempdir()`, as large as the rows), in ranges of clients that do fit. The file has no name, so it is
    gone with the process in any case.

    Guarantees: clients come in increasing order of their ids, each once; the rows of a client keep the order
    in which they arrive; the result does not depend on the blocks' boundaries nor on `buffer_bytes`.

    Memory: some 200 bytes for each client, the largest client, and about four times `buffer_bytes`.

    Args:
      blocks_fn: Begins a pass: blocks of n rows, as the ids of their clients ``[n]``, which are integers, str or
        bytes, and features by name, each ``[n, ...]``, where text is an object array of str or of bytes.
      keys_fn: Begins the first pass, over the clients' ids alone, where there is a cheaper way to them.
      buffer_bytes: How much of the rows to gather in memory.

    Raises:
      ValueError: If an id is not a str, bytes or integer, blocks disagree on features, dtypes or shapes, or the second
        pass brings other rows than the first.

    >>> blocks = [(np.array([7, 3, 7]), {"x": np.array([1, 2, 3])}), (np.array([3]), {"x": np.array([4])})]
    >>> [(client.id, client.examples["x"].tolist()) for client in grouped(lambda: blocks)]
    [(3, [2, 4]), (7, [1, 3])]
    """
    keys = keys_fn() if keys_fn else (keys for keys, _ in blocks_fn())
    index = _counted(keys)
    # Closed with this generator, so that files that are being read are closed too.
    with contextlib.closing(_ranked(blocks_fn(), index)) as blocks:
        yield from _streamed(blocks, index) if index.is_sorted else _gathered(blocks, index, buffer_bytes)


class _Index(NamedTuple):
    """The clients of some rows in increasing order, their numbers of rows, and whether the rows are sorted by them."""

    names: list[Any]
    sizes: np.ndarray
    is_sorted: bool


class _Changed(ValueError):
    def __init__(self):
        super().__init__(
            "rows need to be the same in every pass; got others in the second. Leave files alone while they are read, "
            "and give functions that return the same for the same example."
        )


def _counted(blocks: Iterable[np.ndarray]) -> _Index:
    totals: dict[Any, int] = {}
    is_sorted, last, kind = True, None, None
    for keys in blocks:
        if not len(keys):
            continue
        names, codes = uniques(keys)
        kind = kind or type(names[0])
        if type(names[0]) is not kind:
            raise ValueError(
                f"all client ids need the same type; got {names[0]!r} after ids of type {kind.__name__}. Convert them."
            )
        if is_sorted:
            # Names are numbered by value or by first appearance: sorted if both increase.
            follow = names if last is None or names[0] == last else [last, *names]
            is_sorted = bool((codes[1:] >= codes[:-1]).all()) and all(a < b for a, b in itertools.pairwise(follow))
            last = names[-1]
        for name, count in zip(names, np.bincount(codes).tolist(), strict=True):
            totals[name] = totals.get(name, 0) + count
    names = sorted(totals)
    return _Index(names, np.array([totals[name] for name in names], np.int64), is_sorted)


def uniques(keys: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """Returns the different clients of some rows, and the place of each row's client among them, int64 ``[n]``."""
    if keys.ndim == 1 and keys.dtype.kind in "iu":
        values, codes = np.unique(keys, return_inverse=True)
        return values.tolist(), codes
    rows = keys.tolist()
    types = set(map(type, rows))
    if keys.ndim != 1 or len(types) != 1 or not types <= {str, bytes, int}:
        found = keys.dtype if not keys.dtype.hasobject else sorted(kind.__name__ for kind in types)
        raise ValueError(f"client ids are all str, all bytes or all int; got {found}{list(keys.shape)}. Convert them.")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(rows))}
    return list(numbers), np.fromiter(map(numbers.__getitem__, rows), np.int64, len(rows))


def _ranked(blocks: Iterable[Block], index: _Index) -> Generator[Block, None, None]:
    """Yields the blocks with the ranks of the clients in place of their ids, and refuses what is unlike the first."""
    ranks = {name: rank for rank, name in enumerate(index.names)}
    first = None
    for keys, columns in blocks:
        if not len(keys):
            continue
        columns = {name: plain(column) for name, column in columns.items()}
        kinds = {name: _kind(name, column, len(keys)) for name, column in columns.items()}
        first = first or kinds
        if kinds != first:
            raise ValueError(
                f"all rows need the same features, dtypes and shapes; got {_shown(kinds)} after {_shown(first)}. "
                "Convert them first."
            )
        names, codes = uniques(keys)
        try:
            yield np.array([ranks[name] for name in names], np.int64)[codes], columns
        except KeyError:
            raise _Changed from None


def plain(column: np.ndarray) -> np.ndarray:
    """Returns text of fixed width as objects."""
    return column.astype(object) if column.dtype.kind in "US" else column


def _kind(name: str, column: np.ndarray, num_rows: int) -> tuple[str, tuple[int, ...]]:
    """Returns what the rows of a column need to have in common."""
    if column.ndim == 0 or len(column) != num_rows:
        raise ValueError(
            f"a feature needs one row for each client id; got {name!r} of shape {list(column.shape)} for {num_rows}. "
            "Give as many."
        )
    if not column.dtype.hasobject:
        return column.dtype.name, column.shape[1:]
    types = set(map(type, column.ravel().tolist()))
    if types not in ({str}, {bytes}):
        found = sorted(kind.__name__ for kind in types)
        raise ValueError(f"a feature is numeric, all str or all bytes; got {name!r} with {found}. Convert it.")
    return types.pop().__name__, column.shape[1:]


def _shown(kinds: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return "<" + ",".join(f"{name}={kind}{list(shape) if shape else ''}" for name, (kind, shape) in kinds.items()) + ">"


def _streamed(blocks: Iterator[Block], index: _Index) -> Iterator[Client]:
    """Yields the clients of rows that are sorted by them."""
    rank, parts = 0, []
    for ranks, columns in blocks:
        bounds = [0, *(np.flatnonzero(np.diff(ranks)) + 1).tolist(), len(ranks)]
        for start, end in itertools.pairwise(bounds):
            if ranks[start] != rank:
                yield _client(rank, parts, index)
                rank, parts = rank + 1, []
                if ranks[start] != rank:
                    raise _Changed
            parts.append({name: column[start:end] for name, column in columns.items()})
    if index.names:
        yield _client(rank, parts, index)
    if rank + 1 < len(index.names):
        raise _Changed


def _client(rank: int, parts: list[Columns], index: _Index) -> Client:
    examples = parts[0] if len(parts) == 1 else _joined(parts) if parts else {}
    if not examples or any(len(column) != index.sizes[rank] for column in examples.values()):
        raise _Changed
    return Client(index.names[rank], examples)


def _gathered(blocks: Iterator[Block], index: _Index, buffer_bytes: int) -> Iterator[Client]:
    """Yields the clients of rows in any order."""
    bounds, pieces = np.array([0, len(index.names)]), []
    with tempfile.TemporaryFile() as file:
        for part, is_last in _parts(blocks, buffer_bytes):
            if is_last and not pieces:
                yield from _split(*part, 0, len(index.names), index)
                return
            if not pieces:
                bounds = _bounds(index.sizes, len(part[0]))
            pieces.append(_written(file, part, bounds))
        for k, (low, high) in enumerate(itertools.pairwise(bounds.tolist())):
            read = [_read(file, *piece[k]) for piece in pieces]
            joined = _joined([{"": ranks, **columns} for ranks, columns in read])
            yield from _split(joined.pop(""), joined, low, high, index)


def _parts(blocks: Iterator[Block], buffer_bytes: int) -> Iterator[tuple[Block, bool]]:
    """Joins blocks until they fill the buffer, and sorts their rows by client; the last ones are marked."""
    held, num_bytes = [], 0
    for ranks, columns in blocks:
        if num_bytes >= buffer_bytes:
            yield _sorted(held), False
            held, num_bytes = [], 0
        held.append({"": ranks, **columns})
        num_bytes += sum(map(_num_bytes, held[-1].values()))
    if not held:
        raise _Changed
    yield _sorted(held), True


def _sorted(held: list[Columns]) -> Block:
    joined = _joined(held)
    ranks = joined.pop("")
    order = np.argsort(ranks, kind="stable")
    return ranks[order], {name: column[order] for name, column in joined.items()}


def _joined(parts: list[Columns]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _split(ranks: np.ndarray, columns: Columns, low: int, high: int, index: _Index) -> Iterator[Client]:
    """Yields the clients of ranks low to high - 1 out of their rows."""
    if not np.array_equal(np.bincount(ranks - low, minlength=high - low), index.sizes[low:high]):
        raise _Changed
    if (ranks[1:] < ranks[:-1]).any():
        order = np.argsort(ranks, kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
    ends = np.cumsum(index.sizes[low:high]).tolist()
    for rank, (start, end) in enumerate(itertools.pairwise([0, *ends]), low):
        yield Client(index.names[rank], {name: column[start:end] for name, column in columns.items()})


def _bounds(sizes: np.ndarray, num_rows: int) -> np.ndarray:
    """Cuts the clients into ranges of about so many rows; a larger client has one for itself and its neighbours."""
    ranges = (np.cumsum(sizes) - sizes) // num_rows
    return np.concatenate([[0], np.flatnonzero(np.diff(ranges)) + 1, [len(sizes)]])


def _num_bytes(column: np.ndarray) -> int:
    if not column.dtype.hasobject:
        return column.nbytes
    return sum(map(len, column.ravel().tolist())) + 60 * column.size


# What `_read` needs to know of a column: dtype and shape of a row, and whether an object is a str.
_Layout = list[tuple[str, np.dtype, tuple[int, ...], bool]]


def _written(file: IO[bytes], part: Block, bounds: np.ndarray) -> list[tuple[int, int, _Layout]]:
    """Appends the rows of each range of clients to a file, and returns where they are: offset, rows, layout."""
    ranks, columns = part
    columns = {"": ranks, **columns}
    layout = [
        (name, column.dtype, column.shape[1:], column.dtype.hasobject and isinstance(column.flat[0], str))
        for name, column in columns.items()
    ]
    places = []
    for start, end in itertools.pairwise(np.searchsorted(ranks, bounds).tolist()):
        places.append((file.tell(), end - start, layout))
        for name, dtype, _, is_text in layout if end > start else []:
            rows = columns[name][start:end]
            if not dtype.hasobject:
                file.write(np.ascontiguousarray(rows).tobytes())
                continue
            values = rows.ravel().tolist()
            if is_text:
                values = [value.encode("utf-8", "surrogatepass") for value in values]
            file.write(np.fromiter(map(len, values), np.int64, len(values)).tobytes())
            file.write(b"".join(values))
    return places


def _read(file: IO[bytes], offset: int, num_rows: int, layout: _Layout) -> Block:
    """Reads what `_written` wrote."""
    file.seek(offset)
    columns = {}
    for name, dtype, shape, is_text in layout:
        size = num_rows * int(np.prod(shape, dtype=np.int64))
        if not dtype.hasobject:
            columns[name] = np.frombuffer(file.read(size * dtype.itemsize), dtype).reshape(num_rows, *shape)
            continue
        ends = np.frombuffer(file.read(8 * size), np.int64).cumsum().tolist()
        data = file.read(ends[-1] if ends else 0)
        values = [data[a:b] for a, b in itertools.pairwise([0, *ends])]
        column = np.empty(size, object)
        column[:] = [value.decode("utf-8", "surrogatepass") for value in values] if is_text else values
        columns[name] = column.reshape(num_rows, *shape)
    return columns.pop(""), columns
