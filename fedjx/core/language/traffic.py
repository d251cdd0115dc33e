"""How much a computation sends: its communication bill in bits, per client, per round and cumulative."""

from __future__ import annotations

import dataclasses

from fedjx.core.language.names import PyTree
from fedjx.core.language.traced import Traced

_BITS_PER_MIB = 8 * 2**20


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What was sent in each direction, in bits: Python integers, which do not overflow.

    Add rounds up with ``+``, and multiply a client's by the number of clients.

    Attributes:
      down: Bits from the server to clients.
      up: Bits from clients to the server.

    >>> cohort = Traffic(down=64, up=32) * 10
    >>> sum([cohort] * 3, Traffic())
    Traffic(down=1920, up=960)
    """

    down: int = 0
    up: int = 0

    @property
    def total(self) -> int:
        """Bits in both directions."""
        return self.down + self.up

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.down + other.down, self.up + other.up)

    def __mul__(self, num_clients: int) -> Traffic:
        return Traffic(self.down * int(num_clients), self.up * int(num_clients))

    __rmul__ = __mul__

    def metrics(self) -> dict[str, float]:
        """Returns the bits and mebibytes (2^20 bytes of 8 bits), to be logged with a round's metrics."""
        bits = {"down": self.down, "up": self.up}
        return {f"bits_{k}": v for k, v in bits.items()} | {f"MiB_{k}": v / _BITS_PER_MIB for k, v in bits.items()}


def traffic(computation: Traced, *args: PyTree, protocol: Traffic | None = None, **kwargs: PyTree) -> Traffic:
    """Adds up what one client receives and sends in one call of a computation, without running it.

    A round's traffic is this times the number of its clients: for a cohort on a mesh or in padded
    chunks, those that are real.

    Args:
      computation: For example ``algorithm.next``.
      *args: Its arguments, or their types; none are needed where types are declared.
      protocol: What the protocol behind secure sums costs a client besides its masked inputs, for each pass over the
        cohort that has such sums: `fedjx.aggregation.protocol_traffic`. Nothing if not given.
      **kwargs: The same, by name.

    Raises:
      ValueError: If a message holds a sequence, whose size only a run knows.

    >>> @fedjx.federated_computation
    ... def mean_shift(model, x):
    ...     return fedjx.federated_mean(fedjx.federated_map(jnp.subtract, x, fedjx.federated_broadcast(model)))
    >>> traffic(mean_shift, jnp.zeros(100), fedjx.Clients.of(np.zeros((5, 100), np.float32)))
    Traffic(down=3200, up=3200)
    """
    bits, secure_passes = {"down": 0, "up": 0}, set()
    for message in computation.communication(*args, **kwargs):
        if message.bits is None:
            raise ValueError(
                f"every message needs a size known before the run; got {message.type} {message.direction}. "
                "Send arrays in place of sequences."
            )
        bits[message.direction] += message.bits
        if message.secure:
            secure_passes.add(message.round_trip)
    return Traffic(**bits) + (protocol or Traffic()) * len(secure_passes)
