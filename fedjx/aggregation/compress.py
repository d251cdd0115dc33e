"""Compression of what clients send, leaf by leaf, with the bill of what would be sent.

A `Compressor` is two pure functions. `compress` encodes each client's value with it and lets the server
decode it before any other aggregator; what is typed between the two is on the bill.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjx.aggregation.bounding import exact_beside
from fedjx.aggregation.mean import wrapped
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator, bounded_after
from fedjx.core.language.names import DType, PyTree
from fedjx.core.language.operators import federated_decode, federated_keys, federated_sum, federated_zip
from fedjx.core.language.placed import FederatedValue, federated_map


class Leaf(NamedTuple):
    """What is known of a leaf before it is seen.

    Attributes:
      name: Its path, such as ``"conv1/kernel"``.
      shape: Its shape.
      dtype: Its dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def size(self) -> int:
        """Returns the number of elements."""
        return math.prod(self.shape)


class Compressor(NamedTuple):
    """How one vector is made small.

    Attributes:
      encode: ``(key, float32 [n]) -> code``, a pytree of arrays whose types are what travels.
      decode: ``(code, n) -> float32 [n]``, with no knowledge but the code.
      symbols: ``(code, n) -> (int32 [n], rest)``: the integers that a lossless coder could send in fewer bits than
        they are packed into, small where elements are, and what travels beside them. None where there are none.
    """

    encode: Callable[[jax.Array, jax.Array], PyTree]
    decode: Callable[[PyTree, int], jax.Array]
    symbols: Callable[[PyTree, int], tuple[jax.Array, PyTree]] | None = None


def identity() -> Compressor:
    """Sends every element as it is."""
    return Compressor(lambda key, x: x, lambda code, size: code)


def is_large(leaf: Leaf) -> bool:
    """Tells whether a leaf has more than 10,000 elements: biases and small kernels cost little."""
    return leaf.size > 10_000


def check_compressor(name: str, compressor: object) -> None:
    """Refuses what is no `Compressor`, such as an aggregator."""
    if not isinstance(compressor, Compressor):
        raise TypeError(
            f"{name} takes a Compressor, such as uniform_quantizer(8); got {type(compressor).__name__}. "
            "Pass what an aggregator is made of, not the aggregator."
        )


def compress(
    compressor: Compressor,
    *,
    inner: Aggregator | None = None,
    where: Callable[[Leaf], bool] = is_large,
    measure: Callable[[jax.Array], PyTree] | None = None,
) -> Aggregator:
    """Aggregates compressed values.

    Args:
      compressor: Of each leaf.
      inner: How the server aggregates what it has decoded; the weighted `mean` if not given.
      where: Which leaves of floats are compressed. Others travel as they are.
      measure: The length in bits of a lossless code of integers ``[n]``, such as `elias_gamma_bits`, or a dict of
        several. If given, the measurements are ``inner``, those of the inner aggregator, and ``payload_bits``,
        float32: what all clients of positive weight would send if their codes travelled so. The bill stays that of
        the packed codes.

    >>> from fedjx.aggregation.quantize import uniform_quantizer
    >>> aggregator = compress(uniform_quantizer(8))
    >>> value, weight = fedjx.Clients.of(np.ones((2, 20_000), np.float32)), fedjx.Clients.of(np.ones(2, np.float32))
    >>> up = aggregator.next.communication(jax.random.key(0), (), value, weight)[-1]
    >>> print(up.type, up.bits)
    {<<words=uint32[5000],range=float32[2]>,float32>}@CLIENTS 160096
    """
    inner = wrapped(inner)
    check_compressor("compress", compressor)

    def coded(key: FederatedValue, value: FederatedValue) -> FederatedValue:
        return federated_map(lambda key, value: encode_tree(compressor, where, key, value), federated_keys(key), value)

    def decoded(code: FederatedValue, value: FederatedValue) -> FederatedValue:
        member = value.type.member
        return federated_decode(code, lambda code: decode_tree(compressor, where, code, member))

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        key_encode, key_inner = federated_map(_two_keys, key)
        member = value.type.member
        code = coded(key_encode, value)
        state, result, measured = inner.next(key_inner, state, decoded(code, value), weight)
        if measure is None:
            return state, result, measured

        length = functools.partial(payload_bits, compressor, where, measure, member=member)
        counted = federated_map(_unless_weightless, federated_decode(code, length), weight)
        own = exact_beside(inner, federated_zip({"payload_bits": federated_sum(counted)}))
        return state, result, federated_map(lambda inner, own: {"inner": inner, **own}, measured, own)

    def to_inner(key: PyTree, state: PyTree, value: PyTree, weight: PyTree) -> tuple[PyTree, PyTree, PyTree, PyTree]:
        key_encode, key_inner = federated_map(_two_keys, key)
        return key_inner, state, decoded(coded(key_encode, value), value), weight

    return Aggregator(inner.init, next, bounded_after(inner, to_inner), inner.secure, inner.event)


def encode_tree(compressor: Compressor, where: Callable[[Leaf], bool], key: jax.Array, value: PyTree) -> PyTree:
    """Encodes the leaves that are to be compressed, each with its own key."""
    leaves, treedef = jax.tree.flatten(value)
    codes = [
        compressor.encode(jax.random.fold_in(key, i), x.astype(jnp.float32).reshape(-1)) if chosen else x
        for i, (x, chosen) in enumerate(zip(leaves, leaves_where(where, value), strict=True))
    ]
    return treedef.unflatten(codes)


def decode_tree(compressor: Compressor, where: Callable[[Leaf], bool], code: PyTree, member: PyTree) -> PyTree:
    """Decodes what `encode_tree` has encoded of a value like ``member``."""
    leaves, treedef = jax.tree.flatten(member)
    codes = treedef.flatten_up_to(code)
    decoded = [
        compressor.decode(x, leaf.size).reshape(leaf.shape).astype(leaf.dtype) if chosen else x
        for x, leaf, chosen in zip(codes, leaves, leaves_where(where, member), strict=True)
    ]
    return treedef.unflatten(decoded)


def _two_keys(key: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jax.random.split(key))


def _unless_weightless(bits: PyTree, weight: jax.Array) -> PyTree:
    return jax.tree.map(lambda b: jnp.where(weight > 0, b, 0), bits)


def payload_bits(
    compressor: Compressor,
    where: Callable[[Leaf], bool],
    measure: Callable[[jax.Array], PyTree],
    code: PyTree,
    member: PyTree,
) -> PyTree:
    """Adds up, in float32, what a client sends if the integers of its code are as long as is measured."""
    leaves, treedef = jax.tree.flatten(member)
    fixed, measured = 0, []
    for x, leaf, chosen in zip(treedef.flatten_up_to(code), leaves, leaves_where(where, member), strict=True):
        if chosen and compressor.symbols is not None:
            integers, x = compressor.symbols(x, leaf.size)
            measured.append(measure(integers))
        fixed += sum(jax.dtypes.itemsize_bits(part.dtype) * part.size for part in jax.tree.leaves(x))
    if not measured:
        measured = [jax.tree.map(jnp.zeros_like, measure(jnp.zeros(1, jnp.int32)))]
    return jax.tree.map(lambda *bits: sum(b.astype(jnp.float32) for b in bits) + jnp.float32(fixed), *measured)


def leaves_where(where: Callable[[Leaf], bool], tree: PyTree) -> list[bool]:
    """Tells of every leaf of a tree, in order, whether it has floats and is chosen."""

    def chosen(path: jax.tree_util.KeyPath, x: jax.Array) -> bool:
        leaf = Leaf(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape, x.dtype)
        return leaf.size > 0 and jnp.issubdtype(leaf.dtype, jnp.floating) and bool(where(leaf))

    return [chosen(path, x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]
