"""A question of each group, such as a region or a device, by a column that says which; and which groups are large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedjx.analytics.histogram import histogram
from fedjx.analytics.numbers import category
from fedjx.analytics.question import Entry, Question, Total
from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import Array, PyTree

_ODD = 0x9E3779B1  # by which numbers of groups become words of 32 bits that differ in many of them
_WHY = (
    "a report says of which group it is, or has a number of it, not both. Ask for numbers of one group at a time, or "
    "for counts"
)


def by_group(question: Question, column: str, *, num_groups: int, shown: ArrayLike | None = None) -> Question:
    """Asks a question of each group, at once, by a column that says in which one a record is.

    A record is in one group, so noise is that of the question over all: what a client adds is bounded as before, over
    all groups together. Local reports are on one record: they allow counts, and no numbers.

    Args:
      question: About records, such as `fedjx.analytics.mean` or `histogram`.
      column: Of integers ``[]``, from 0 to ``num_groups - 1``; records with others take no part.
      num_groups: How many.
      shown: bool ``[num_groups]``, of which groups anything is said, such as the answer to `large_groups`; clients
        send nothing of the others, whose answers are NaN. All if not given.

    Returns:
      A `Question`; its answer is that of each group: arrays ``[num_groups, ...]`` in place of ``[...]``, and for a
      `Sketch`, a `Regression`, a `Hierarchy` or counts by string a tuple with one for each group, None where it is not
      shown.

    >>> from fedjx.analytics import ask, by_group, mean
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [31, 53], "city": [0, 2]}, {"age": [7], "city": [2]}])
    >>> ask(by_group(mean("age", low=0, high=100), "city", num_groups=3), ages).value
    array([31., nan, 30.])
    """
    check_integer("[1, 2^30)", num_groups=num_groups)
    if not isinstance(question, Question):
        raise TypeError(
            f"each group is asked the same question, of which the answer is one sum; got a {type(question).__name__}. "
            "Ask a Dialogue of one group at a time: of data with these records alone."
        )
    tells = np.ones(num_groups, bool) if shown is None else np.asarray(shown)
    if tells.shape != (num_groups,) or tells.dtype != bool:
        raise ValueError(
            f"shown is a bool for each group, [{num_groups}]; got {tells.dtype}{list(tells.shape)}. Pass the answer to "
            "large_groups, with the same num_groups."
        )
    local = dict.fromkeys(("local_dp", "shuffled_dp"), _WHY) if question.bounds and num_groups > 1 else {}
    columns = question.columns if column in question.columns else (*question.columns, column)
    return question._replace(
        columns=columns,
        entry=_Grouped(question.entry, column, num_groups, question.num_bins),
        num_bins=num_groups * question.num_bins,
        estimate=_OfEach(question.estimate, tells, bool(question.bounds)),
        told=(question.told, tells),
        refuses={**local, **question.refuses},
    )


def large_groups(column: str, *, num_groups: int, min_clients: int) -> Question:
    """Asks which groups have so many clients at least: of which anything may be said without pointing at somebody.

    A client is in each group in which it has a record. With noise it is their estimated number that is compared; of a
    client in several groups, ``max_records`` are counted.

    Args:
      column: As for `by_group`.
      num_groups: How many.
      min_clients: The fewest clients of a group that is shown, the k of k-anonymity. The server sees the number of
        clients of each group, or what trust makes of it; of groups that are not shown it sees nothing more.

    Returns:
      A `Question`; its answer is bool ``[num_groups]``, for ``shown`` of `by_group`.

    >>> from fedjx.analytics import ask, by_group, large_groups, mean
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [31, 53], "city": [0, 1]}, {"age": [7], "city": [1]}])
    >>> shown = ask(large_groups("city", num_groups=2, min_clients=2), ages, trust="secure").value
    >>> question = by_group(mean("age", low=0, high=100), "city", num_groups=2, shown=shown)
    >>> ask(question, ages, trust="secure").value.round()
    array([nan, 30.])
    """
    check_integer("[1, inf)", min_clients=min_clients)
    check_integer("[1, 2^30)", num_groups=num_groups)

    def estimate(total: Total) -> tuple[np.ndarray, None]:
        return total.table[:, 0] >= min_clients, None

    return histogram(column, bins=num_groups, distinct=True)._replace(estimate=estimate)


class _Grouped(NamedTuple):
    entry: Callable[[Mapping[str, Array], PyTree], Entry]
    column: str
    num_groups: int
    num_bins: int

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        told, tells = told
        found, group = self.entry(record, told), category(record[self.column])
        is_one = (group >= 0) & (group < self.num_groups)
        group = jnp.where(is_one, group, 0).astype(jnp.int32)
        takes_part = is_one & tells[group] & (found.bins >= 0)
        bins = jnp.where(takes_part, group * self.num_bins + found.bins, -1)
        if found.identity is None:
            return found._replace(bins=bins)
        # The same in another group is another one.
        identity = found.identity.astype(jnp.uint32) ^ (group.astype(jnp.uint32) * np.uint32(_ODD))
        return found._replace(bins=bins, identity=identity)


class _OfEach(NamedTuple):
    estimate: Callable[[Total], tuple[Any, Any]]
    tells: np.ndarray
    of_values: bool  # whose dicts have the same names in every group; those of strings have not

    def __call__(self, total: Total) -> tuple[Any, Any]:
        num_groups = len(self.tells)
        table, variance = (x.reshape(num_groups, -1, x.shape[1]) for x in (total.table, total.variance))
        size, found = table[0].size, []
        for k in range(num_groups):
            own = slice(k * size, (k + 1) * size)
            covariance = None if total.covariance is None else total.covariance[own, own]
            found.append(self.estimate(Total(table[k], variance[k], covariance)))
        values, stddevs = zip(*found, strict=True)
        return self._together(values), self._together(stddevs)

    def _together(self, of_each: tuple[Any, ...]) -> Any:
        if isinstance(of_each[0], tuple) or (isinstance(of_each[0], dict) and not self.of_values):
            return tuple(one if is_shown else None for one, is_shown in zip(of_each, self.tells, strict=True))

        def stacked(*of_each: Any) -> np.ndarray:
            array = np.stack(of_each)
            return np.where(self.tells.reshape(-1, *[1] * (array.ndim - 1)), array, np.nan)

        return jax.tree.map(stacked, *of_each)
