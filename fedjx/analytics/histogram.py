"""How many records have a value, or two values together, in each of some bins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedjx.analytics.numbers import category, number
from fedjx.analytics.question import Entry, Question, Total, once
from fedjx.core.language.names import Array, DType, PyTree


class Bins(NamedTuple):
    """The bins of a column.

    Attributes:
      edges: Of the bins of numbers, increasing; all but the last are half open, ``[edge, next)``, as NumPy has it. Of
        categories, None.
      size: How many there are.
    """

    edges: tuple[float, ...] | None
    size: int

    def bin_of(self, x: Array) -> Array:
        """Returns the bin of a value, int32 ``[]``; -1 if it is in none."""
        if self.edges is None:
            x = category(x)
            return jnp.where((x >= 0) & (x < self.size), x, -1).astype(jnp.int32)
        x = number(x)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            x = x.astype(jnp.float32)
        edges = jnp.asarray(_rounded_up(self.edges, x.dtype))
        if self.is_even and len(edges) == self.size + 1:
            # Of even bins the number is known to one, which costs less than a search.
            low, high = self.edges[0], self.edges[-1]
            about = jnp.floor((x.astype(jnp.float32) - low) * (self.size / (high - low)))
            found = jnp.clip(about, 0, self.size - 1).astype(jnp.int32)
            found = found + (x >= edges[1:][found]) - (x < edges[:-1][found])
        else:
            found = jnp.searchsorted(edges, x, side="right").astype(jnp.int32) - 1
        last = _rounded_down(self.edges[-1], x.dtype)
        if last is None or not len(edges):
            return jnp.full_like(found, -1)
        return jnp.where((x >= edges[0]) & (x <= last), jnp.clip(found, 0, self.size - 1), -1)

    @property
    def is_even(self) -> bool:
        """Whether bins between edges are as wide as each other, and so wide that float32 is off by one at most."""
        edges = np.asarray(self.edges)
        width = (edges[-1] - edges[0]) / self.size
        is_coarse = np.abs(edges[[0, -1]]).max() < width * 2**21 and self.size < 1 << 20
        return bool(is_coarse and np.allclose(np.diff(edges), width, rtol=1e-6, atol=0))


def _rounded_up(edges: tuple[float, ...], dtype: DType) -> np.ndarray:
    """Returns edges in a dtype, no number of which is on another side of them; fewer, if the last are above all."""
    exact = np.asarray(edges)
    if jnp.issubdtype(dtype, jnp.integer):
        most = jnp.iinfo(dtype)
        return np.ceil(exact[exact <= most.max]).clip(most.min).astype(dtype)
    near = exact.astype(np.float32)
    return np.where(near < exact, np.nextafter(near, np.float32(np.inf)), near)


def _rounded_down(edge: float, dtype: DType) -> Array | None:
    """Returns the largest number of a dtype that is not above an edge; None if there is none."""
    if jnp.issubdtype(dtype, jnp.integer):
        most = jnp.iinfo(dtype)
        return None if edge < most.min else np.asarray(min(math.floor(edge), most.max), dtype)
    near = np.float32(edge)
    return np.asarray(near if near <= edge else np.nextafter(near, np.float32(-np.inf)))


def bins_of(bins: int | ArrayLike) -> Bins:
    """Returns the bins of so many categories, 0, 1, 2, ..., or between edges.

    Raises:
      ValueError: If edges do not increase, or there is no bin.
    """
    if np.ndim(bins) == 0:
        number = int(np.asarray(bins))
        if number < 1 or number != np.asarray(bins):
            raise ValueError(f"categories are 0 to bins - 1; got {bins=}. Pass their number, or the edges of bins.")
        return Bins(None, number)
    edges = np.asarray(bins, np.float64)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all() or not np.isfinite(edges).all():
        raise ValueError(f"edges of bins increase, and are at least two; got {bins}. Pass np.linspace(0, 100, 11).")
    return Bins(tuple(edges.tolist()), len(edges) - 1)


def histogram(column: str, *, bins: int | ArrayLike, distinct: bool = False) -> Question:
    """Asks how many records are in each bin.

    Args:
      column: Of numbers, or of categories, integers ``[]``.
      bins: Edges of k bins, increasing ``[k + 1]``, as for `numpy.histogram`; or the number of categories.
      distinct: Whether a client counts once in a bin, however many of its records are there: of what it has, and not of
        how often, which takes noise of the root of ``max_records`` in place of ``max_records``.

    Returns:
      A `Question`; its answer is float64 ``[k]``. What is in no bin is left out.

    >>> from fedjx.analytics import ask, histogram
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [31, 52]}, {"age": [7]}, {"age": [60, 64]}])
    >>> ask(histogram("age", bins=[0, 20, 40, 60, 80]), ages).value
    array([1., 1., 1., 2.])
    """
    of = bins_of(bins)
    return Question((column,), _Binned((column,), (of,)), of.size, _counts((of.size,)), once, distinct=distinct)


def histogram_2d(columns: Sequence[str], *, bins: Sequence[int | ArrayLike], distinct: bool = False) -> Question:
    """Asks how many records are in each cell of a table by two columns, such as of a map.

    Args:
      columns: Two of them.
      bins: Of each, as for `histogram`.
      distinct: As for `histogram`.

    Returns:
      A `Question`; its answer is float64 ``[k, l]``.

    >>> from fedjx.analytics import ask, histogram_2d
    >>> places = fedjx.data.FederatedData.from_clients([{"x": [0.1, 0.9], "y": [0.2, 0.3]}, {"x": [0.7], "y": [0.6]}])
    >>> ask(histogram_2d(("x", "y"), bins=([0, 0.5, 1], [0, 0.5, 1])), places).value
    array([[1., 0.],
           [1., 1.]])
    """
    if isinstance(bins, int) or len(columns) != 2 or len(bins) != 2:
        raise ValueError(f"a table is by two columns, with bins of each; got {columns=} and {bins=}. Give two of both.")
    of = tuple(map(bins_of, bins))
    shape = tuple(each.size for each in of)
    entry = _Binned(tuple(columns), of)
    return Question(tuple(columns), entry, shape[0] * shape[1], _counts(shape), once, distinct=distinct)


class _Binned(NamedTuple):
    columns: tuple[str, ...]
    bins: tuple[Bins, ...]

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        found = jnp.int32(0)
        for column, bins in zip(self.columns, self.bins, strict=True):
            index = bins.bin_of(record[column])
            found = jnp.where((found < 0) | (index < 0), -1, found * bins.size + index)
        return Entry(found)


class _counts(NamedTuple):
    shape: tuple[int, ...]

    def __call__(self, total: Total) -> tuple[np.ndarray, np.ndarray]:
        return total.table[:, 0].reshape(self.shape), np.sqrt(total.variance[:, 0]).reshape(self.shape)
