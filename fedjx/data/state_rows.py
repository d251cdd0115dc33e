"""States of clients as rows of bytes, and the file that holds a row in each of its slots."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.names import PyTree
from fedjx.core.language.narrow import is_numeric
from fedjx.core.language.types import ArrayType
from fedjx.data.columns import Column, header
from fedjx.data.federated_data import notation
from fedjx.data.state_journal import write_at

# Bytes that are copied, checked and written at once, and how many threads do so; each holds a block.
_BLOCK, _THREADS = 1 << 22, 4


class Leaf(NamedTuple):
    """An array of a state: its name, type, and where in a row it begins."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Returns this leaf of the states in rows, ``[C, ...]``, as a view of uint8 ``[C, row_bytes]``."""
        size = self.dtype.itemsize * math.prod(self.shape)
        return rows[:, self.offset : self.offset + size].view(self.dtype).reshape(len(rows), *self.shape)


class Layout(NamedTuple):
    """How a state is a row of bytes.

    Attributes:
      leaves: Its arrays.
      structure: What they are the leaves of.
      initial: The initial state, uint8 ``[row_bytes]``.
    """

    leaves: list[Leaf]
    structure: Any
    initial: np.ndarray

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return len(self.initial)

    def schema(self) -> list[dict[str, Any]]:
        """Returns names and types of the leaves as JSON."""
        return [{"name": leaf.name, "dtype": leaf.dtype.name, "shape": list(leaf.shape)} for leaf in self.leaves]

    def checked(self, states: PyTree, num_clients: int) -> list[np.ndarray]:
        """Returns the leaves of some states, ``[C, ...]`` each, which are as the initial one's."""
        leaves, structure = jax.tree.flatten(states)
        if structure != self.structure:
            raise ValueError(
                f"states need the structure of the initial one; got {structure}, expected {self.structure}. "
                "Give what take returns, changed."
            )
        leaves = [np.asarray(x) for x in leaves]
        for leaf, x in zip(self.leaves, leaves, strict=True):
            expected, error = (num_clients, *leaf.shape), TypeError if x.dtype != leaf.dtype else ValueError
            if x.dtype != leaf.dtype or x.shape != expected:
                raise error(
                    f"states need the dtypes and shapes of the initial one; got {x.dtype}{list(x.shape)} for "
                    f"'{leaf.name}', expected {leaf.dtype}{list(expected)}. Give what take returns, changed."
                )
        return leaves

    def packed(self, leaves: Iterable[np.ndarray], num_clients: int) -> np.ndarray:
        """Returns the rows of some states, uint8 ``[C, row_bytes]``."""
        rows = np.zeros((num_clients, self.row_bytes), np.uint8)
        for leaf, x in zip(self.leaves, leaves, strict=True):
            leaf.of(rows)[:] = x
        return rows

    def unpacked(self, rows: np.ndarray) -> PyTree:
        """Returns the states in some rows; the leaves are views."""
        return jax.tree.unflatten(self.structure, [leaf.of(rows) for leaf in self.leaves])


class RowFile(NamedTuple):
    """A file of slots, each with room for a row; the first one holds the initial state."""

    path: Path
    row_bytes: int

    @property
    def header(self) -> bytes:
        """What the file begins with: to NumPy it is an array of the initial row alone."""
        return header(np.dtype(np.uint8), (1, self.row_bytes))

    def check_size(self, num_slots: int) -> None:
        """Raises FileNotFoundError if there is no file and ValueError if it lacks slots."""
        expected = len(self.header) + num_slots * self.row_bytes
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            raise FileNotFoundError(
                f"client states need all their files; {self.path} is missing. Take a copy of the directory."
            ) from None
        if size < expected:
            raise ValueError(
                f"client states need the bytes that were committed; {self.path} is truncated: got {size} bytes, "
                f"expected {expected}. Take a copy of the directory, or begin the run anew."
            )

    def read(self, slots: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        """Reads slots to these places among rows, in few calls where they are close to one another."""
        order, most = np.argsort(slots, kind="stable"), int(slots.max(initial=0)) + 1
        self.check_size(most)
        column = Column(self.path, rows.dtype, (most, self.row_bytes), ())
        column.read(slots[order].astype(np.int64), np.ones(len(slots), np.int64), rows, places[order])

    def write(self, file: int, slots: np.ndarray, rows: np.ndarray) -> None:
        """Writes rows to slots of the opened file, those of adjacent ones in one call."""
        first = np.append(np.flatnonzero(np.diff(slots, prepend=-2) != 1), len(slots)).tolist()
        for start, stop in itertools.pairwise(first):
            offset = len(self.header) + int(slots[start]) * self.row_bytes
            write_at(file, rows[start:stop].reshape(-1).data, offset)


def checksums(rows: np.ndarray) -> np.ndarray:
    """Returns the crc32 of every row, uint32 ``[C]``."""
    data, size = np.ascontiguousarray(rows).reshape(-1).data, rows.shape[1]
    # Slices of one memoryview: a view of each row in NumPy takes longer than its checksum.
    return np.array([zlib.crc32(data[start : start + size]) for start in range(0, len(data), size)], np.uint32)


def blocks(number: int, row_bytes: int) -> list[slice]:
    """Divides rows, to be copied, checked and written in little memory."""
    step = max(1, _BLOCK // row_bytes)
    return [slice(start, start + step) for start in range(0, number, step)]


def for_blocks(do: Callable[[slice], None], number: int, row_bytes: int) -> None:
    """Handles blocks of rows in threads: copies, checksums and calls of the system need no Python."""
    parts = blocks(number, row_bytes)
    if len(parts) < 2:
        for part in parts:
            do(part)
        return
    with concurrent.futures.ThreadPoolExecutor(min(len(parts), _THREADS)) as threads:
        for _ in threads.map(do, parts):
            pass  # What a thread raises is raised here.


def layout(initial: PyTree) -> Layout:
    """Returns how states like this one are rows.

    Raises:
      ValueError: If there is nothing in it.
      TypeError: If a leaf is not numeric.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(initial)
    leaves, arrays, end, widest = [], [], 0, 1
    for path, value in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        array = _array(name, value)
        # Aligned, so that what is read is an array without a copy.
        offset = _up(end, array.dtype.alignment)
        leaves.append(Leaf(name, array.dtype, array.shape, offset))
        arrays.append(array)
        end, widest = offset + array.nbytes, max(widest, array.dtype.alignment)
    if not end:
        raise ValueError(f"a state needs at least one number; got {initial=}. Keep nothing for stateless algorithms.")
    empty = Layout(leaves, structure, np.zeros(_up(end, widest), np.uint8))
    return empty._replace(initial=empty.packed(arrays, 1)[0])


def check_schema(head: Mapping[str, Any], expected: Layout, num_clients: int, path: Path) -> None:
    """Refuses what is on disk if it is of other shapes, another number of clients or another initial state."""
    if head["leaves"] != expected.schema():
        what = f"states {spoken(expected.schema())}, and {spoken(head['leaves'])} are"
    elif head["num_clients"] != num_clients:
        what = f"{num_clients=}, and {head['num_clients']} are"
    elif head["initial_crc32"] != zlib.crc32(expected.initial.data):
        what = "an initial state, and one of other values is"
    else:
        return
    raise ValueError(f"client states are opened as they were created; got {what} in {path}. Use another path.")


def spoken(schema: Iterable[dict[str, Any]]) -> str:
    """Prints a schema as types are printed."""
    return notation({x["name"]: ArrayType(x["shape"], np.dtype(x["dtype"])) for x in schema})


def _array(name: str, value: Any) -> np.ndarray:
    """Returns a leaf of the initial state in NumPy; a Python number gets the dtype that JAX gives it."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(f"a state is numeric; got random keys in '{name}'. Keep jax.random.key_data of them.")
    if isinstance(value, (ArrayType, jax.ShapeDtypeStruct)):
        array = np.zeros(value.shape, value.dtype)
    else:
        array = np.asarray(value if dtype is not None else jnp.asarray(value))
    if not is_numeric(array.dtype):
        raise TypeError(f"a state is numeric; got '{name}' of dtype {array.dtype}. Encode it first.")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
