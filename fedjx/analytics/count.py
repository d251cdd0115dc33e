"""How many records there are, or how many clients with one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.analytics.question import Entry, Question, Total, once
from fedjx.core.language.names import Array, PyTree

Predicate = Callable[[Mapping[str, Array]], Array]


def count(*columns: str, where: Predicate | None = None, clients: bool = False) -> Question:
    """Asks how many records there are, with a property.

    Args:
      *columns: What the property is of; any one column, such as the first by name, if there is none.
      where: ``(record) -> bool []``, of one record, a dict of the columns; all records if not given.
      clients: Whether clients are counted who have such a record, each once.

    Returns:
      A `Question`; its answer is a number.

    >>> from fedjx.analytics import ask, count
    >>> ages = fedjx.data.FederatedData.from_clients([{"age": [31, 52]}, {"age": [7]}, {"age": [60, 64]}])
    >>> old = count("age", where=lambda record: record["age"] >= 50)
    >>> float(ask(old, ages).value)
    3.0
    """
    if where is not None and not columns:
        raise ValueError('a property is one of columns; got none. Name them: count("age", where=...).')
    return Question(columns, _Counted(where), 1, _number, once, distinct=clients)


class _Counted(NamedTuple):
    where: Predicate | None

    def __call__(self, record: Mapping[str, Array], told: PyTree) -> Entry:
        is_one = jnp.bool_(True) if self.where is None else self.where(record)
        if not isinstance(is_one, jax.Array) or is_one.shape or is_one.dtype != bool:
            got = f"{is_one.dtype}{list(is_one.shape)}" if isinstance(is_one, jax.Array) else repr(is_one)
            raise ValueError(
                f"a record has a property or not, bool []; got {got} of where. Compare numbers, join by & and |, take "
                'all() of several, and is_text(record[...], "asthma") of text.'
            )
        return Entry(jnp.where(is_one, 0, -1).astype(jnp.int32))


def _number(total: Total) -> tuple[float, float]:
    return float(total.table[0, 0]), float(total.variance[0, 0] ** 0.5)
