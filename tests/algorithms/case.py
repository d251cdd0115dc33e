"""An algorithm under the laws."""

from __future__ import annotations

from typing import NamedTuple

from fedjx.core.execution.process import Algorithm, StatefulAlgorithm
from fedjx.data import FederatedData


class Case(NamedTuple):
    """What the laws need to know of it.

    Attributes:
      algorithm: It; its state is a dict by name if it is several `together`.
      rtol: How far apart the ways to run it may be.
      data: That of `problems.federated_data` if not given.
      collectives: Of each pass over the clients.
    """

    algorithm: Algorithm | StatefulAlgorithm
    rtol: float = 1e-5
    data: FederatedData | None = None
    collectives: tuple[str, ...] = ("all-reduce",)
