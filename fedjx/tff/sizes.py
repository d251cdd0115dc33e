"""What the rounds of a process send, as TensorFlow Federated's sizing executor tells it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedjx.core.language.names import PyTree
from fedjx.core.language.streams import Planned, first_chunk
from fedjx.core.language.traffic import Traffic, traffic
from fedjx.core.language.types import type_of
from fedjx.core.language.values import Clients
from fedjx.tff.learning import IterativeProcess
from fedjx.training.method import ServerState


class SizeInfo(NamedTuple):
    """Bits sent in all rounds up to each, to all clients and by all clients."""

    broadcast_bits: list[int]
    aggregate_bits: list[int]


class SizingEnvironment:
    """Adds up what the rounds of processes send."""

    def __init__(self):
        self._rounds: list[Traffic] = []

    def sized(self, process: IterativeProcess) -> IterativeProcess:
        """Returns a process whose rounds are counted here."""
        per_client: dict[str, Traffic] = {}

        def run(state: ServerState, cohort: Clients | Planned) -> tuple[ServerState, dict[str, PyTree]]:
            name = str(type_of(first_chunk(cohort)))
            if name not in per_client:
                per_client[name] = traffic(process.next.computation, state, cohort)
            num_clients = int(np.sum(cohort.mask)) if isinstance(cohort, Clients) else len(cohort.ids)
            before = self._rounds[-1] if self._rounds else Traffic()
            self._rounds.append(before + per_client[name] * num_clients)
            return process.next.run(state, cohort)

        return process._replace(next=process.next._replace(run=run))

    def get_size_info(self) -> SizeInfo:
        """Returns the running totals."""
        return SizeInfo([t.down for t in self._rounds], [t.up for t in self._rounds])
