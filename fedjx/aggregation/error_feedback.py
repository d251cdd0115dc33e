"""Error feedback: what compression lost in one round is sent in a later one, out of a memory of each client.

EF: Karimireddy et al., "Error Feedback Fixes SignSGD" (arXiv 1901.09847, algorithm 2). EF21: Richtarik
et al. (arXiv 2106.05203, algorithm 2; with partial participation arXiv 2110.03294, algorithm 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.bounding import exact_beside, with_own
from fedjx.aggregation.compress import Compressor, Leaf, check_compressor, decode_tree, encode_tree, is_large
from fedjx.aggregation.mean import wrapped
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.names import PyTree
from fedjx.core.language.operators import federated_decode, federated_keys, federated_sum, federated_zip
from fedjx.core.language.placed import FederatedValue, federated_map
from fedjx.core.language.trees import all_finite

# An aggregator's state, result and measurements at the server, and the clients' memory.
StatefulAggregation = tuple[FederatedValue, FederatedValue, FederatedValue, FederatedValue]


class StatefulAggregator(NamedTuple):
    """An aggregator whose clients keep a memory between rounds.

    Attributes:
      init: ``(member) -> state``, the server's.
      init_client: ``(member) -> memory`` of a client that was never here; see `fedjx.data.ClientStates`.
      next: ``(key@SERVER, state@SERVER, value@CLIENTS, weight@CLIENTS, memory@CLIENTS) ->
        (state@SERVER, result@SERVER, measurements@SERVER, memory@CLIENTS)``. The memory of a client
        of weight 0 stays as it is, and so does that of one with a number that is not finite in its
        value and memory together: it takes no part, and is counted in ``num_non_finite``. One
        that would become infinite stays too.
      event: As of an `Aggregator`.
    """

    init: Callable[[PyTree], PyTree]
    init_client: Callable[[PyTree], PyTree]
    next: Callable[[PyTree, PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree, PyTree, PyTree]]
    event: object = None


def error_feedback(
    compressor: Compressor, *, inner: Aggregator | None = None, where: Callable[[Leaf], bool] = is_large
) -> StatefulAggregator:
    """Compresses value and memory together, and remembers what is lost.

    What was decoded of a client over the rounds, and its memory, sum up to its values, up to rounding.

    Args:
      compressor: A biased one of small error, such as `top_k`, is what this is for.
      inner: How the server aggregates what it has decoded; the weighted `mean` if not given.
      where: Which leaves of floats are compressed.
    """
    inner = wrapped(inner)
    check_compressor("error_feedback", compressor)

    def encode(key: jax.Array, value: PyTree, weight: jax.Array, memory: PyTree) -> tuple[PyTree, ...]:
        total, weight, non_finite = sound(jax.tree.map(jnp.add, value, memory), weight)
        code = encode_tree(compressor, where, key, total)
        rest = jax.tree.map(jnp.subtract, total, decode_tree(compressor, where, code, value))
        return code, weight, non_finite, kept_if((weight > 0) & all_finite(rest), rest, memory)

    @federated_computation
    def next(
        key: FederatedValue,
        state: FederatedValue,
        value: FederatedValue,
        weight: FederatedValue,
        memory: FederatedValue,
    ) -> StatefulAggregation:
        member = value.type.member
        key_encode, key_inner = federated_map(lambda key: tuple(jax.random.split(key)), key)
        code, weight, non_finite, memory = federated_map(encode, federated_keys(key_encode), value, weight, memory)
        decoded = federated_decode(code, lambda code: decode_tree(compressor, where, code, member))
        state, result, measured = inner.next(key_inner, state, decoded, weight)
        own = exact_beside(inner, counted(non_finite))
        return state, result, federated_map(with_own, measured, own), memory

    # A client's memory is of its own values, so that the inner one still sees each client by itself.
    return StatefulAggregator(inner.init, _zeros, next, inner.event)


def ef21(compressor: Compressor, *, num_clients: int, where: Callable[[Leaf], bool] = is_large) -> StatefulAggregator:
    """Compresses how each client's value differs from its memory; server and client keep the sum of it.

    The result is the mean of the memories of all clients, also of those that are absent.

    Args:
      compressor: Of the differences.
      num_clients: Of the whole population; each counts alike.
      where: Which leaves of floats are compressed.
    """
    check_compressor("ef21", compressor)

    def encode(key: jax.Array, value: PyTree, weight: jax.Array, memory: PyTree) -> tuple[PyTree, ...]:
        difference, weight, non_finite = sound(jax.tree.map(jnp.subtract, value, memory), weight)
        code = encode_tree(compressor, where, key, difference)
        moved = jax.tree.map(jnp.add, memory, decode_tree(compressor, where, code, value))
        return (code, weight > 0), non_finite, kept_if((weight > 0) & all_finite(moved), moved, memory)

    @federated_computation
    def next(
        key: FederatedValue,
        state: FederatedValue,
        value: FederatedValue,
        weight: FederatedValue,
        memory: FederatedValue,
    ) -> StatefulAggregation:
        member = value.type.member

        def decode(message: tuple[PyTree, jax.Array]) -> PyTree:
            code, present = message
            step = decode_tree(compressor, where, code, member)
            return kept_if(present, step, jax.tree.map(jnp.zeros_like, step))

        message, non_finite, memory = federated_map(encode, federated_keys(key), value, weight, memory)
        total = federated_sum(message, decode=decode)
        state = federated_map(
            lambda state, total: jax.tree.map(lambda s, t: s + (t / num_clients).astype(s.dtype), state, total),
            state,
            total,
        )
        return state, state, counted(non_finite), memory

    return StatefulAggregator(_zeros, _zeros, next)


def _zeros(member: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), member)


def sound(value: PyTree, weight: jax.Array) -> tuple[PyTree, jax.Array, jax.Array]:
    """Makes a value with a number that is not finite zeros of weight 0; returns also whether it was one with weight."""
    finite = all_finite(value)
    value = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), value)
    return value, jnp.where(finite, weight, jnp.zeros_like(weight)), (weight > 0) & ~finite


def counted(non_finite: FederatedValue) -> FederatedValue:
    """Counts the clients that were left out, as a measurement."""
    return federated_zip({"num_non_finite": federated_sum(non_finite)})


def kept_if(condition: jax.Array, value: PyTree, other: PyTree) -> PyTree:
    """Returns a value on a condition, else the other one."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), value, other)
