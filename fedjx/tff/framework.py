"""``tff.framework``: what the rounds of processes send, as TensorFlow Federated's sizing executor tells it.

It counts tensors, as it does there: a client's random key is fedjx's own, theirs draw by themselves.
"""

from __future__ import annotations

import contextvars
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.names import PyTree
from fedjx.core.language.streams import AtClients, first_chunk, is_planned
from fedjx.core.language.traced import Traced
from fedjx.core.language.traffic import Traffic
from fedjx.core.language.types import type_of
from fedjx.core.language.values import Clients


class SizeInfo(NamedTuple):
    """Bits sent in all rounds up to each, to all clients and by all clients."""

    broadcast_bits: list[int]
    aggregate_bits: list[int]


class SizingExecutorFactory:
    """Adds up what is sent by the rounds that run in its `ExecutionContext`."""

    def __init__(self):
        self._rounds: list[Traffic] = []
        self._per_client: dict[tuple[Traced, str], Traffic] = {}

    def count(self, computation: Traced, state: PyTree, cohort: AtClients) -> None:
        """Adds a round of some clients."""
        name = computation, str(type_of(first_chunk(cohort)))
        if name not in self._per_client:
            self._per_client[name] = _of_one_client(computation, state, cohort)
        num_clients = _num_clients(cohort)
        before = self._rounds[-1] if self._rounds else Traffic()
        self._rounds.append(before + self._per_client[name] * num_clients)

    def get_size_info(self) -> SizeInfo:
        """Returns the running totals."""
        return SizeInfo([t.down for t in self._rounds], [t.up for t in self._rounds])


def _num_clients(cohort: AtClients) -> int:
    if isinstance(cohort, Clients):
        return int(np.sum(cohort.mask))
    return len(cohort.ids) if is_planned(cohort) else sum(map(_num_clients, list(cohort)))  # type: ignore[arg-type]


def _of_one_client(computation: Traced, *args: PyTree) -> Traffic:
    bits = {"down": 0, "up": 0}
    for message in computation.communication(*args):
        for leaf in jax.tree.leaves(message.type.member):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            bits[message.direction] += 0 if is_key else leaf.size * jax.dtypes.itemsize_bits(leaf.dtype)
    return Traffic(**bits)


def sizing_executor_factory() -> SizingExecutorFactory:
    """Makes what `ExecutionContext` takes to count."""
    return SizingExecutorFactory()


class ExecutionContext(NamedTuple):
    """What happens beside a round of a process.

    Attributes:
      executor_fn: Counts what the rounds send, if given.
    """

    executor_fn: SizingExecutorFactory | None = None


# The only state of the package, since it is theirs: a script says once where its computations run.
_default: contextvars.ContextVar[ExecutionContext] = contextvars.ContextVar("default")


def set_default_context(context: ExecutionContext) -> None:
    """Lets rounds be counted from now on, in this thread; by nobody in an empty `ExecutionContext`."""
    _default.set(context)


def count(computation: Traced, state: PyTree, cohort: AtClients) -> None:
    """Counts a round if somebody wants it counted."""
    counter = _default.get(ExecutionContext()).executor_fn
    if counter is not None:
        counter.count(computation, state, cohort)
