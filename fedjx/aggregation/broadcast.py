"""What the server sends to all clients: as it is, or one code for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.compress import Compressor, Leaf, decode_tree, encode_tree, is_large
from fedjx.core.execution.computation import federated_computation
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_broadcast
from fedjx.core.language.placed import FederatedValue, federated_map

Sent = tuple[FederatedValue, FederatedValue]  # a broadcaster's state at the server, and the value at the clients


class Broadcaster(NamedTuple):
    """How the server sends a value to all clients.

    Attributes:
      init: ``(member) -> state``, for values of the type of ``member``.
      next: ``(key@SERVER, state@SERVER, value@SERVER) -> (state@SERVER, value@CLIENTS)``.
    """

    init: Callable[[PyTree], PyTree]
    next: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]


def broadcast() -> Broadcaster:
    """Sends a value as it is."""

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue) -> Sent:
        del key
        return state, federated_broadcast(value)

    return Broadcaster(lambda member: (), next)


def compressed_broadcast(
    compressor: Compressor, *, error_feedback: bool = False, where: Callable[[Leaf], bool] = is_large
) -> Broadcaster:
    """Sends a compressed value.

    Args:
      compressor: Of each leaf.
      error_feedback: Whether the server remembers what the clients did not get, and adds it the next time.
      where: Which leaves of floats are compressed.
    """

    def init(member: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), member) if error_feedback else ()

    def encode(key: jax.Array, state: PyTree, value: PyTree) -> tuple[PyTree, PyTree]:
        total = jax.tree.map(jnp.add, value, state) if error_feedback else value
        code = encode_tree(compressor, where, key, total)
        if not error_feedback:
            return code, state
        return code, jax.tree.map(jnp.subtract, total, decode_tree(compressor, where, code, value))

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue) -> Sent:
        member = value.type.member
        code, state = federated_map(encode, key, state, value)
        decoded = federated_map(lambda code: decode_tree(compressor, where, code, member), federated_broadcast(code))
        return state, decoded

    return Broadcaster(init, next)
