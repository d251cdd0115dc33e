"""The federated operators."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.core.language.checks import check_integer
from fedjx.core.language.names import DType, PyTree
from fedjx.core.language.passes import Reduction
from fedjx.core.language.placed import (
    FederatedValue,
    Node,
    check_numeric,
    function_key,
    function_name,
    map_node,
    one_value,
    value_at,
)
from fedjx.core.language.reductions import MAX, MIN, SECURE_SUM, SUM, aggregate_of, bin_sum, divide, mean_of
from fedjx.core.language.trees import as_float
from fedjx.core.language.types import CLIENTS, SERVER, FederatedType, Placement, member_type, notation, sequence_type

_REDUCE_HINT = "Only arguments that are Clients are at CLIENTS: make them with Clients.of or fedjx.data.Cohort."


def federated_zip(values: PyTree) -> FederatedValue:
    """Turns a pytree of values of one placement into one value of that pytree."""
    return one_value("federated_zip", values)


def federated_broadcast(value: PyTree) -> FederatedValue:
    """Sends a server value to every client: ``T@SERVER -> T@CLIENTS``; its transpose is the sum."""
    value = value_at("federated_broadcast", value, SERVER, "It is at the clients already: use it there as it is.")
    return _broadcast(value, value.type.member)


def _broadcast(value: FederatedValue, sent: PyTree) -> FederatedValue:
    type_ = FederatedType(value.type.member, CLIENTS, all_equal=True)
    return FederatedValue(Node("broadcast", type_, (value._node,), sent=sent))


def federated_value(value: PyTree, placement: Placement) -> FederatedValue:
    """Places a constant, the same for all participants."""
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, str):
            raise TypeError(f"members are arrays, numbers and pytrees of these; got {leaf!r}. Keep text outside.")
    type_ = FederatedType(value, placement, all_equal=True)
    return FederatedValue(Node("constant", type_, fn=jax.tree.map(jnp.asarray, value), key=_constant_key(value)))


def _constant_key(value: PyTree) -> Hashable:
    leaves, treedef = jax.tree.flatten(value)
    plain = all(isinstance(x, (numbers.Number, np.ndarray)) for x in leaves)
    return (treedef, *((np.asarray(x).tobytes() if plain else id(x)) for x in leaves))


def federated_eval(fn: Callable[[], PyTree], placement: Placement) -> FederatedValue:
    """Evaluates a function of no arguments at the server, or at every client."""
    if placement == SERVER:
        value = federated_value((), SERVER)
    else:
        value = federated_client_ids()
    return map_node(_WithoutArguments(fn), [value])


class _WithoutArguments(NamedTuple):
    fn: Callable[[], PyTree]

    def __call__(self, _: PyTree) -> PyTree:
        return self.fn()


def federated_client_ids() -> FederatedValue:
    """Gives every client its own id, int32 ``[]``: who it is, not where in the cohort.

    >>> ids = fedjx.federated_computation(lambda x: federated_max(federated_client_ids()))
    >>> int(ids(fedjx.Clients.of(np.zeros(2), ids=np.array([7, 3]))))
    7
    """
    return FederatedValue(Node("client_id", FederatedType(jnp.int32, CLIENTS)))


def federated_keys(key: PyTree) -> FederatedValue:
    """Gives every client its own random key, ``fold_in(key, client id)``.

    Guarantees: A client's key depends on nothing but the server's key and its id: not on the
    cohort, its order, chunks, padding or devices.
    """
    hint = "Keep one key in the server's state and fold the round into it."
    return map_node(
        jax.random.fold_in, [federated_broadcast(value_at("federated_keys", key, SERVER, hint)), federated_client_ids()]
    )


def federated_select(
    client_keys: PyTree, server_value: PyTree, select_fn: Callable[[PyTree, jax.Array], PyTree]
) -> FederatedValue:
    """Sends every client only the slices of a server value that it asks for.

    Args:
      client_keys: int32 ``[K]`` at CLIENTS; which slices each client wants.
      server_value: The value at SERVER.
      select_fn: ``(server value, key) -> slice``.

    Returns:
      The slices, leaves ``[K, ...]``, at CLIENTS. The communication bill counts the slices
      going down, not the whole value (nor the keys going up).
    """
    name = "federated_select"
    keys = value_at(name, client_keys, CLIENTS, "Every client chooses its keys.")
    value = value_at(name, server_value, SERVER, "Clients select from what the server has.")
    select = _SelectSlices(select_fn)
    slices = jax.eval_shape(select.__call__, value.type.member, keys.type.member)
    node = map_node(select, [_broadcast(value, slices), keys])._node
    return FederatedValue(Node(node.kind, node.type, node.inputs, node.fn, key=node.key, name=name))


class _SelectSlices(NamedTuple):
    select_fn: Callable[[PyTree, jax.Array], PyTree]

    def __call__(self, server_value: PyTree, keys: jax.Array) -> PyTree:
        return jax.vmap(lambda key: self.select_fn(server_value, key))(keys)


# --- reductions -----------------------------------------------------------------------------------


def _reduced(
    name: str, reduction: Reduction, value: FederatedValue, sent: PyTree = None, key: Hashable = None
) -> FederatedValue:
    member = value.type.member
    result = jax.eval_shape(lambda: reduction.report(reduction.zero(member)))
    sent = member if sent is None else sent
    node = Node("reduce", FederatedType(result, SERVER), (value._node,), reduction, sent, key or reduction, name)
    return FederatedValue(node)


def federated_decode(code: PyTree, decode: Callable[[PyTree], PyTree]) -> FederatedValue:
    """Lets the server decode what each client sends: ``{code}@CLIENTS -> {T}@CLIENTS``.

    What follows is done by the server for each client as its message arrives: any reduction of it,
    and of what is computed from it, is billed as the code, once however many use it.

    >>> @fedjx.federated_computation
    ... def mean(x):
    ...     code = fedjx.federated_map(lambda x: jnp.round(x).astype(jnp.int8), x)
    ...     return fedjx.federated_mean(federated_decode(code, lambda code: code.astype(jnp.float32)))
    >>> x = fedjx.Clients.of(np.array([1.2, 3.9], np.float32))
    >>> mean(x), [message.bits for message in mean.communication(x)]
    (Array(2.5, dtype=float32), [8])
    """
    hint = "Encode at the clients first."
    value = value_at("federated_decode", code, CLIENTS, hint)
    node = map_node(decode, [value])._node
    return FederatedValue(Node("map", node.type, node.inputs, node.fn, sent=value.type.member, key=node.key))


def federated_sum(value: PyTree, *, decode: Callable[[PyTree], PyTree] | None = None) -> FederatedValue:
    """Sums over the clients: ``{T}@CLIENTS -> T@SERVER``; 0 over no client.

    Args:
      value: Numbers or booleans at CLIENTS. Types narrower than 32 bits are summed, and
        returned, in float32, int32 or uint32.
      decode: Applied to each member on arrival, before it is added. What is typed before it is
        what travels: the whole hook for compression.

    >>> total = fedjx.federated_computation(lambda x: federated_sum(x))
    >>> total(fedjx.Clients.of(np.array([1, 2, 3])))
    Array(6, dtype=int32)
    """
    value = value_at("federated_sum", value, CLIENTS, _REDUCE_HINT)
    decoded = value if decode is None else federated_decode(value, decode)
    check_numeric(
        "federated_sum", decoded, (jnp.number, jnp.bool_), "numeric", "Map keys and the like to numbers first."
    )
    return _reduced("federated_sum", SUM, decoded)


def federated_secure_sum(value: PyTree, *, num_bits: int = 32) -> FederatedValue:
    """Sums integers of which the server is to see only the total, modulo 2^num_bits.

    Args:
      value: Integers at CLIENTS.
      num_bits: Of the ring in which the sum is taken, at most 32. A masked summand fills the ring,
        so the communication bill counts so many bits for each element, packed into 32-bit words,
        and marks the message as secure.

    Returns:
      The total, bit for bit whatever the chunks and devices: in ``[0, 2^num_bits)`` for unsigned
      integers, in ``[-2^(num_bits-1), 2^(num_bits-1))`` for signed ones; 0 over no client.

    The protocol that hides the summands is not run here; `fedjx.aggregation.secure_protocol`
    runs it for small cohorts, to the same total.

    >>> total = fedjx.federated_computation(lambda x: federated_secure_sum(x, num_bits=4))
    >>> total(fedjx.Clients.of(np.array([7, 7, 4], np.uint32)))
    Array(2, dtype=uint32)
    """
    value = value_at("federated_secure_sum", value, CLIENTS, _REDUCE_HINT)
    check_numeric("federated_secure_sum", value, (jnp.integer,), "integer", "Encode floats in fixed point first.")
    if not 1 <= num_bits <= 32:
        raise ValueError(f"num_bits must be between 1 and 32; got {num_bits=}. A 32-bit ring is the widest.")
    words = jax.tree.map(lambda leaf: _packed(leaf, num_bits), value.type.member)
    return map_node(_Modulo(num_bits), [_reduced("federated_secure_sum", SECURE_SUM, value, sent=words)])


def federated_bin_sum(bins: PyTree, values: PyTree, num_bins: int, *, secure: bool = False) -> FederatedValue:
    """Adds up what clients put into numbered bins: the sum of their vectors, of which most elements are 0.

    Args:
      bins: Integers ``[...]`` at CLIENTS; less than 0, or ``num_bins`` and more, for what is left out.
      values: Numbers or booleans ``[..., *V]`` at CLIENTS: for each of the bins what is added to it.
      num_bins: How many there are.
      secure: Whether the server sees the sums alone, as of `federated_secure_sum` in a ring of 32 bits; the values are
        then integers.

    Returns:
      The sums, ``[num_bins, *V]``; 0 over no client. Memory and time are those of the entries, not of the vectors; the
      communication bill is that of a vector for each client, for where its entries are would say what they are.

    >>> @fedjx.federated_computation
    ... def histogram(labels):
    ...     return federated_bin_sum(labels, fedjx.federated_map(jnp.ones_like, labels), 3)
    >>> histogram(fedjx.Clients.of(np.array([[0, 2], [2, -1]])))
    Array([1, 0, 2], dtype=int32)
    """
    name = "federated_secure_sum" if secure else "federated_sum"
    placed = [value_at(name, value, CLIENTS, _REDUCE_HINT) for value in (bins, values)]
    check_numeric("the bins of federated_bin_sum", placed[0], (jnp.integer,), "integer", "Number the bins from 0.")
    kinds, hint = (jnp.integer,) if secure else (jnp.number, jnp.bool_), "Encode them first."
    check_numeric("the values of federated_bin_sum", placed[1], kinds, "integer" if secure else "numeric", hint)
    check_integer("[1, 2^31)", num_bins=num_bins)
    of_bins, of_values = (one.type.member.shape for one in placed)
    if of_values[: len(of_bins)] != of_bins:
        raise ValueError(
            f"federated_bin_sum takes a bin for each of the values; got bins {list(of_bins)} and values "
            f"{list(of_values)}. Let the values' first axes be those of the bins."
        )
    reduction, both = bin_sum(num_bins, secure), federated_zip(tuple(placed))
    total = jax.eval_shape(lambda: reduction.zero(both.type.member))
    return _reduced(name, reduction, both, sent=_packed(total, 32) if secure else total)


def _packed(leaf: jax.ShapeDtypeStruct, num_bits: int) -> jax.ShapeDtypeStruct:
    """Types the words that hold the elements of a leaf."""
    shape = leaf.shape if num_bits == 32 else (-(-leaf.size * num_bits // 32),)
    return jax.ShapeDtypeStruct(shape, jnp.uint32)


class _Modulo(NamedTuple):
    num_bits: int

    def __call__(self, total: PyTree) -> PyTree:
        def one(x: jax.Array) -> jax.Array:
            # Up and down again, so that the sign of a signed integer comes from its highest bit in the ring.
            unused = jnp.asarray(jnp.iinfo(x.dtype).bits - self.num_bits, x.dtype)
            return x << unused >> unused

        return jax.tree.map(one, total)


def federated_mean(value: PyTree, weight: PyTree = None) -> FederatedValue:
    """Averages over the clients: ``{T}@CLIENTS -> T@SERVER``.

    Args:
      value: Floats at CLIENTS.
      weight: A scalar number per client; equal weights if not given. A client of weight 0
        changes nothing, whatever its value.

    Returns:
      ``sum(weight * value) / sum(weight)``; 0 over no client or if all weights are 0.

    >>> mean = fedjx.federated_computation(lambda x, w: federated_mean(x, w))
    >>> mean(fedjx.Clients.of(np.array([1.0, 4.0])), fedjx.Clients.of(np.array([1, 2])))
    Array(3., dtype=float32)
    """
    value = value_at("federated_mean", value, CLIENTS, _REDUCE_HINT)
    hint = "Use federated_sum, or map the members to float32 first."
    check_numeric("federated_mean", value, (jnp.inexact,), "floating-point", hint)
    dtypes = tuple(leaf.dtype for leaf in jax.tree.leaves(value.type.member))
    if weight is None:
        return _reduced("federated_mean", mean_of(dtypes), value)
    weight = value_at("federated_mean", weight, CLIENTS, _REDUCE_HINT)
    leaves = jax.tree.leaves(weight.type.member)
    if len(leaves) != 1 or leaves[0].shape or jnp.issubdtype(leaves[0].dtype, jnp.complexfloating):
        raise TypeError(f"a weight is one real number per client; got {weight.type}. Map it to a scalar first.")
    return map_node(_Divide(dtypes), [_reduced("federated_mean", SUM, map_node(_weighted, [value, weight]))])


def _weighted(value: PyTree, weight: PyTree) -> tuple[PyTree, jax.Array]:
    (weight,) = map(as_float, jax.tree.leaves(weight))
    return jax.tree.map(lambda v: jnp.where(weight == 0, 0, v * weight), value), weight


class _Divide(NamedTuple):
    dtypes: tuple[DType, ...]

    def __call__(self, sums: tuple[PyTree, jax.Array]) -> PyTree:
        total, weight = sums
        return divide(total, weight, self.dtypes)


def federated_min(value: PyTree) -> FederatedValue:
    """Takes the elementwise minimum over the clients; over no client, the dtype's largest value."""
    return _extremum("federated_min", MIN, value)


def federated_max(value: PyTree) -> FederatedValue:
    """Takes the elementwise maximum over the clients; over no client, the dtype's smallest value."""
    return _extremum("federated_max", MAX, value)


def _extremum(name: str, reduction: Reduction, value: PyTree) -> FederatedValue:
    value = value_at(name, value, CLIENTS, _REDUCE_HINT)
    check_numeric(
        name, value, (jnp.integer, jnp.floating, jnp.bool_), "ordered", "Map the members to real numbers first."
    )
    return _reduced(name, reduction, value)


def federated_aggregate(
    value: PyTree,
    zero: PyTree,
    accumulate: Callable[[PyTree, PyTree], PyTree],
    merge: Callable[[PyTree, PyTree], PyTree],
    report: Callable[[PyTree], PyTree] = lambda accumulator: accumulator,
) -> FederatedValue:
    """Folds the members with any commutative operation.

    Args:
      value: A value at CLIENTS.
      zero: The empty accumulator, neutral for ``merge``: arrays, no placed values.
      accumulate: ``(accumulator, member) -> accumulator``; the type of ``zero`` in and out.
      merge: ``(accumulator, accumulator) -> accumulator``, for partial results of devices.
      report: From the accumulator to the result.

    The order in which clients are folded is not defined: ``accumulate`` and ``merge`` must be
    associative and commutative for a result that does not depend on chunks and devices.

    >>> @fedjx.federated_computation
    ... def histogram(label):
    ...     return federated_aggregate(label, jnp.zeros(3, jnp.int32), lambda h, y: h.at[y].add(1), jnp.add)
    >>> histogram(fedjx.Clients.of(np.array([0, 2, 2, 1])))
    Array([1, 1, 2], dtype=int32)
    """
    value = value_at("federated_aggregate", value, CLIENTS, _REDUCE_HINT)
    expected = member_type(zero)
    for fn, other in ((accumulate, value.type.member), (merge, expected)):
        got = jax.eval_shape(fn, expected, other)
        if notation(got) != notation(expected):
            raise TypeError(
                f"an accumulator keeps its type; got {notation(got)} from {function_name(fn)} "
                f"for a zero of {notation(expected)}. Give zero the dtype and shape of the result."
            )
    key = (*map(function_key, (accumulate, merge, report)), _constant_key(zero))
    return _reduced("federated_aggregate", aggregate_of(zero, accumulate, merge, report), value, key=key)


def federated_reduce(value: PyTree, zero: PyTree, op: Callable[[PyTree, PyTree], PyTree]) -> FederatedValue:
    """Folds the members with ``op``: ``(U, T) -> U``, where T and U are one type.

    ``op`` must be associative and commutative and ``zero`` its neutral element. For an
    accumulator of another type than the members, use `federated_aggregate`.
    """
    value = value_at("federated_reduce", value, CLIENTS, _REDUCE_HINT)
    if notation(member_type(zero)) != notation(value.type.member):
        raise TypeError(
            f"federated_reduce needs a zero of the member's type; got {notation(member_type(zero))} for {value.type}. "
            "Use federated_aggregate, which merges accumulators of their own type."
        )
    return federated_aggregate(value, zero, op, op)


def federated_collect(value: PyTree) -> FederatedValue:
    """Brings every member to the server: ``{T}@CLIENTS -> T*@SERVER``.

    The one operator that materialises all members, in memory that grows with the cohort: for
    medians and the like. The sequence holds the real clients in the cohort's order, but in that of
    its chunks when streamed; its capacity is that of the padded cohort, so look at its ``mask``.

    >>> @fedjx.federated_computation
    ... def median(x):
    ...     def of_real(xs):
    ...         return jnp.nanmedian(jnp.where(xs.mask, xs.elements, jnp.nan))
    ...     return fedjx.federated_map(of_real, federated_collect(x))
    >>> median(fedjx.Clients.of(np.array([1.0, 5.0, 2.0])))
    Array(2., dtype=float32)
    """
    value = value_at("federated_collect", value, CLIENTS, _REDUCE_HINT)
    member = value.type.member
    type_ = FederatedType(sequence_type(member), SERVER)
    return FederatedValue(Node("collect", type_, (value._node,), sent=member, name="federated_collect"))
