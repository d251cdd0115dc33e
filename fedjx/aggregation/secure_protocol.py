"""The protocol behind a secure sum, run for a small cohort on the host.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017,
figure 4, against an honest but curious server): pairwise masks that cancel, a mask of each
client's own, and Shamir's shares of both, so that clients may drop out at any time.

The messages, masks, shares and what the server learns are those of the protocol. This is still a
simulation: masks and pads are SHAKE-256 of keys that clients agree on by Diffie-Hellman modulo
2^255 - 19, a group too small for a real adversary, nothing is authenticated, and all secrets come
from a seed. The total is that of `federated_secure_sum`, bit for bit.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjx.aggregation.shamir import PRIME, recover, share
from fedjx.core.language.checks import check_integer
from fedjx.core.language.traffic import Traffic

PHASES = ("advertise keys", "share keys", "send masked input", "unmask")
_GENERATOR = 2
_KEY_BITS = 256  # of a key and of a share, as in the paper's table of costs


class PhaseCost(NamedTuple):
    """What one phase costs one client, if none drops out.

    Attributes:
      phase: One of `PHASES`.
      bits_up: To the server.
      bits_down: From the server.
      key_agreements: Computed.
      shares: Computed, each a polynomial of degree ``threshold - 1``.
      mask_elements: Drawn from the generator.
    """

    phase: str
    bits_up: int
    bits_down: int
    key_agreements: int = 0
    shares: int = 0
    mask_elements: int = 0


class SecureTotal(NamedTuple):
    """The outcome of the protocol.

    Attributes:
      total: uint32 ``[elements]``; the sum modulo 2^num_bits of the summed clients.
      summed: The clients whose input arrived.
      masked: uint32 ``[summed, elements]``; all that the server saw of the inputs.
      bits_up: By phase, what all clients together sent to the server.
    """

    total: np.ndarray
    summed: tuple[int, ...]
    masked: np.ndarray
    bits_up: dict[str, int]


class _Client(NamedTuple):
    """A client's secrets: two private keys and the seed of its own mask."""

    id: int
    pad_key: int
    mask_key: int
    self_seed: int

    def public(self) -> tuple[int, int]:
        return pow(_GENERATOR, self.pad_key, PRIME), pow(_GENERATOR, self.mask_key, PRIME)


def run_secure_sum(
    values: np.ndarray, *, threshold: int, num_bits: int = 32, dropouts: Mapping[int, str] | None = None, seed: int = 0
) -> SecureTotal:
    """Runs the four phases for clients ``0 .. n-1``.

    Args:
      values: Integers ``[clients, elements]``; taken modulo 2^num_bits.
      threshold: How many clients must be there in every phase, at least 2. Fewer that conspire with the server
        learn nothing but the total of the others.
      num_bits: Of the ring, at most 32.
      dropouts: From clients to the first of the `PHASES` in which they say no more.
      seed: Of all secrets; another round needs another.

    Raises:
      ValueError: If fewer clients than the threshold are left after a phase: the sum is lost then.

    >>> outcome = run_secure_sum(np.array([[1, 2], [3, 4], [5, 6]]), threshold=2, dropouts={1: "unmask"})
    >>> outcome.total, outcome.summed
    (array([ 9, 12], dtype=uint32), (0, 1, 2))
    """
    values, phase_of = _checked(values, threshold, num_bits, dropouts or {})
    secrets = [_Client(i, *(_secret(seed, i, what) for what in ("pad", "mask", "self"))) for i in range(len(values))]
    present = _Presence(phase_of, threshold)
    bits_up: dict[str, int] = {}

    clients = [secrets[i] for i in present(PHASES[0], range(len(values)))]
    keys = {c.id: c.public() for c in clients}
    bits_up[PHASES[0]] = len(keys) * 2 * _KEY_BITS

    clients = [secrets[i] for i in present(PHASES[1], keys)]
    boxes = {c.id: _shared(c, keys, threshold, seed) for c in clients}
    bits_up[PHASES[1]] = sum(2 * _KEY_BITS * len(box) for box in boxes.values())

    clients = [secrets[i] for i in present(PHASES[2], boxes)]
    masked = {c.id: _masked_input(c, values[c.id], {i: keys[i] for i in boxes}, num_bits) for c in clients}
    bits_up[PHASES[2]] = len(masked) * values.shape[1] * num_bits

    clients = [secrets[i] for i in present(PHASES[3], masked)]
    received = {c.id: {i: boxes[i][c.id] for i in boxes if i != c.id} for c in clients}
    revealed = {c.id: _revealed(c, received[c.id], keys, set(masked)) for c in clients}
    for c in clients:  # a client keeps the shares of its own self mask
        revealed[c.id][c.id] = _polynomials(c, keys, threshold, seed)[0][c.id + 1]
    bits_up[PHASES[3]] = sum(_KEY_BITS * len(x) for x in revealed.values())

    total = unmasked(masked, revealed, keys, num_bits)
    return SecureTotal(total, tuple(masked), np.stack(list(masked.values())), bits_up)


def unmasked(
    masked: Mapping[int, np.ndarray],
    revealed: Mapping[int, Mapping[int, int]],
    keys: Mapping[int, tuple[int, int]],
    num_bits: int,
) -> np.ndarray:
    """Computes the total from all that the server has.

    Args:
      masked: The masked inputs by client.
      revealed: From the clients that are left, by client that shared: a share of the self mask's
        seed if its input arrived, of its private key if not; never both.
      keys: All public keys.
      num_bits: Of the ring.
    """
    total = np.stack(list(masked.values())).sum(axis=0, dtype=np.uint32)
    shared = sorted({i for shares in revealed.values() for i in shares})
    secrets = {i: recover({j + 1: x[i] for j, x in revealed.items() if i in x}) for i in shared}
    for i, secret in secrets.items():
        if i in masked:
            total -= _mask(secret, total.size)
            continue
        for j in masked:  # the masks that the others share with one that has dropped out
            mask = _mask(_agreed(secret, keys[j][1]), total.size)
            total = total - mask if j < i else total + mask
    return total & np.uint32(2**num_bits - 1)


# --- a client's side ------------------------------------------------------------------------------


def _polynomials(client: _Client, ids: Sequence[int] | Mapping, threshold: int, seed: int) -> list[dict[int, int]]:
    points = [i + 1 for i in ids]

    def shares(name: str, secret: int) -> dict[int, int]:
        coefficients = [_secret(seed, client.id, f"{name}/{k}") for k in range(1, threshold)]
        return share(secret, coefficients, points)

    return [shares("self", client.self_seed), shares("mask", client.mask_key)]


def _shared(client: _Client, keys: Mapping[int, tuple[int, int]], threshold: int, seed: int) -> dict[int, list[int]]:
    """Returns, for every other client, its shares of the self seed and of the mask key, encrypted."""
    shares = _polynomials(client, keys, threshold, seed)
    return {
        i: [(s[i + 1] + pad) % PRIME for s, pad in zip(shares, _pads(client, keys[i][0], client.id), strict=True)]
        for i in keys
        if i != client.id
    }


def _pads(client: _Client, other_key: int, sender: int) -> list[int]:
    """Draws what encrypts the two shares that one of a pair sends to the other."""
    agreed = _agreed(client.pad_key, other_key)
    return [_hashed(f"{agreed}/{sender}/{k}") for k in range(2)]


def _masked_input(client: _Client, value: np.ndarray, keys: Mapping[int, tuple[int, int]], num_bits: int) -> np.ndarray:
    masked = value + _mask(client.self_seed, value.size)
    for i, (_, key) in keys.items():
        if i != client.id:
            mask = _mask(_agreed(client.mask_key, key), value.size)
            masked = masked + mask if client.id < i else masked - mask
    return masked & np.uint32(2**num_bits - 1)


def _revealed(
    client: _Client, boxes: Mapping[int, list[int]], keys: Mapping[int, tuple[int, int]], arrived: set[int]
) -> dict[int, int]:
    """Decrypts one of each client's two shares: of its self seed if its input arrived, else of its mask key."""
    which = {i: 0 if i in arrived else 1 for i in boxes}
    return {i: (box[which[i]] - _pads(client, keys[i][0], i)[which[i]]) % PRIME for i, box in boxes.items()}


# --- what both sides compute ----------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _agreed(private: int, public: int) -> int:
    return pow(public, private, PRIME)


def _mask(key: int, num_elements: int) -> np.ndarray:
    """Draws uint32 ``[elements]``; modulo 2^num_bits it is uniform too."""
    stream = hashlib.shake_256(b"mask" + key.to_bytes(32, "little")).digest(4 * num_elements)
    return np.frombuffer(stream, "<u4").astype(np.uint32)


def _hashed(name: str) -> int:
    # Twice as many bits as the prime has, so that the remainder is uniform.
    return int.from_bytes(hashlib.shake_256(name.encode()).digest(64), "little") % PRIME


@functools.lru_cache(maxsize=4096)
def _secret(seed: int, client: int, what: str) -> int:
    return _hashed(f"secret/{seed}/{client}/{what}")


class _Presence(NamedTuple):
    phase_of: Mapping[int, int]
    threshold: int

    def __call__(self, phase: str, clients: Sequence[int] | Mapping) -> list[int]:
        """Lists the clients that take part in a phase, of those that did in the one before."""
        left = [i for i in clients if self.phase_of.get(i, len(PHASES)) > PHASES.index(phase)]
        if len(left) < self.threshold:
            raise ValueError(
                f"a secure sum needs threshold={self.threshold} clients in every phase; got {len(left)} to "
                f"{phase}. Repeat the round with other clients, or lower the threshold."
            )
        return left


def _checked(
    values: np.ndarray, threshold: int, num_bits: int, dropouts: Mapping[int, str]
) -> tuple[np.ndarray, dict[int, int]]:
    values = np.asarray(values)
    if values.ndim != 2 or values.dtype.kind not in "iu":
        raise TypeError(
            f"values are integers [clients, elements]; got {values.dtype}{list(values.shape)}. Encode them."
        )
    check_integer(f"[2, {max(len(values), 2)}]", "One share tells the secret.", threshold=threshold)
    check_integer("[1, 32]", "A 32-bit ring is the widest.", num_bits=num_bits)
    for client, phase in dropouts.items():
        if phase not in PHASES or not 0 <= client < len(values):
            raise ValueError(f"dropouts name clients and phases; got {client}: {phase!r}. The phases are {PHASES}.")
    return values.astype(np.uint32), {i: PHASES.index(phase) for i, phase in dropouts.items()}


# --- cost -----------------------------------------------------------------------------------------


def protocol_traffic(num_clients: int) -> Traffic:
    """Bills one client's keys and shares in one run without dropouts, for `fedjx.traffic(..., protocol=)`.

    >>> protocol_traffic(3)
    Traffic(down=2048, up=2304)
    """
    phases = protocol_cost(num_clients=num_clients, num_elements=0)
    return Traffic(down=sum(phase.bits_down for phase in phases), up=sum(phase.bits_up for phase in phases))


def protocol_cost(*, num_clients: int, num_elements: int, num_bits: int = 32) -> list[PhaseCost]:
    """Bills the protocol to one client of a cohort without dropouts (Bonawitz et al., §7.1 and table 1).

    Keys and shares have 256 bits. Up and down together are
    ``2 n a_K + (5 n - 4) a_S + num_elements * num_bits`` bits.

    >>> bill = protocol_cost(num_clients=2**10, num_elements=2**20, num_bits=26)
    >>> sum(phase.bits_up + phase.bits_down for phase in bill)
    29096960
    """
    others = num_clients - 1
    return [
        PhaseCost(PHASES[0], 2 * _KEY_BITS, 2 * _KEY_BITS * others),
        PhaseCost(PHASES[1], 2 * _KEY_BITS * others, 2 * _KEY_BITS * others, others, 2 * num_clients),
        PhaseCost(PHASES[2], num_elements * num_bits, 0, others, 0, num_elements * num_clients),
        PhaseCost(PHASES[3], _KEY_BITS * num_clients, 0),
    ]
