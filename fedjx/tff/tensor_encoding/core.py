"""``te.core``: an encoding stage is a `Compressor`, one with a memory an `Aggregator` of its own."""

from __future__ import annotations

from typing import NamedTuple

from fedjx.aggregation.compress import Compressor
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.names import PyTree

EncodingStageInterface = Compressor
AdaptiveEncodingStageInterface = Aggregator


class SimpleEncoder(NamedTuple):
    """How one variable is sent to the clients.

    Attributes:
      encoder: The compressor.
      tensorspec: The variable's shape and dtype.
    """

    encoder: Compressor
    tensorspec: PyTree


class GatherEncoder(NamedTuple):
    """How one variable's changes are sent to the server.

    Attributes:
      encoder: The compressor.
      tensorspec: The variable's shape and dtype.
    """

    encoder: Compressor
    tensorspec: PyTree
