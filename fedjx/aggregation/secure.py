"""Sums and means in which the server sees only totals of integers.

Clients encode their values in fixed point (`fedjx.aggregation.fixed_point`) and the totals are
taken modulo 2^num_bits, as in Bonawitz et al., "Practical Secure Aggregation for
Privacy-Preserving Machine Learning" (CCS 2017, §6.2). Everything that leaves a client, the measurements too,
goes through `federated_secure_sum`, so all of them pass `fedjx.core.language.secure.check_secure`.

Overflow cannot happen up to ``max_clients``, and is detected beyond: the result is then NaN. With fewer than
``min_clients``, whose total would say much of each, the server gives up the round: result and counts are 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjx.aggregation.fixed_point import FixedPoint, decode, encode, fixed_point, num_clipped
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregation, Aggregator
from fedjx.core.language.checks import check_integer, check_number
from fedjx.core.language.names import DType, PyTree
from fedjx.core.language.operators import federated_keys, federated_secure_sum, federated_zip
from fedjx.core.language.placed import FederatedValue, check_numeric, federated_map
from fedjx.core.language.reductions import divide
from fedjx.core.language.trees import wide_dtype

Counts = dict[str, jax.Array]  # what is measured, by name
DTypes = tuple[DType, ...]  # of the leaves
Client = Callable[[jax.Array, PyTree, jax.Array], tuple[PyTree, Counts]]  # (key, value, weight) -> integers
Server = Callable[[DTypes, PyTree, Counts], tuple[PyTree, Counts]]  # (dtypes, total, counts) -> result


def secure_sum(
    *, bound: float, max_clients: int, min_clients: int = 1, num_bits: int = 32, stochastic: bool = False
) -> Aggregator:
    """Adds the values of the clients that have weight, in fixed point.

    Args:
      bound: Elements are clipped to ``[-bound, bound]``.
      max_clients: The most clients of one cohort.
      min_clients: The fewest with weight of which a total is shown. 1 shows the value of a single client: where that
        is to be hidden, pass the threshold of the protocol.
      num_bits: Of the ring, and of each element on its way.
      stochastic: Whether elements are rounded at random, without bias, or to the nearest.

    Returns:
      An `Aggregator`. It measures ``num_clients`` that had weight, ``num_clipped`` elements and whether there
      were too many clients (``overflow``) or ``too_few``.

    >>> total = secure_sum(bound=1.0, max_clients=10, num_bits=16)
    >>> value, weight = fedjx.Clients.of(np.float32([0.5, 0.25, 7.0])), fedjx.Clients.of(np.ones(3))
    >>> _, result, measured = total.next(jax.random.key(0), total.init(0.0), value, weight)
    >>> round(float(result), 3), int(measured["num_clipped"])
    (1.75, 1)
    """
    grid = fixed_point(bound=bound, max_clients=max_clients, num_bits=num_bits)
    _check(min_clients, max_clients)

    def client(key: jax.Array, value: PyTree, weight: jax.Array) -> tuple[PyTree, Counts]:
        value = jax.tree.map(lambda x: jnp.where(weight > 0, x, 0), value)
        return encode(grid, value, key if stochastic else None), _counts(max_clients, weight, num_clipped(grid, value))

    def server(dtypes: DTypes, total: PyTree, counts: Counts) -> tuple[PyTree, Counts]:
        measured = _measured(min_clients, max_clients, counts)
        return _cast(_shown(measured, decode(grid, total)), dtypes), measured

    return _aggregator(grid, client, server)


def secure_mean(
    *,
    bound: float,
    max_weight: float,
    max_clients: int,
    min_clients: int = 1,
    num_bits: int = 32,
    stochastic: bool = False,
) -> Aggregator:
    """Averages by weights, of which the server sees only the total, in fixed point.

    Each client sends ``weight / max_weight`` and its product with the value in one message. Weights travel in as many
    levels as values, about ``2**(num_bits - 1) / max_clients``: the least weight is ``max_weight`` over these. To the
    nearest, one below half of that is lost; at random, weights and products are right in expectation, and the result
    is the ratio of two unbiased totals, which is unbiased only in the limit of many clients.

    Args:
      bound: Elements are clipped to ``[-bound, bound]``.
      max_weight: Weights are clipped to ``[0, max_weight]``.
      max_clients: The most clients of one cohort.
      min_clients: As for `secure_sum`.
      num_bits: Of the ring, and of each element on its way.
      stochastic: Whether elements and weights are rounded at random, without bias, or to the nearest.

    Returns:
      An `Aggregator`; 0 if no client has weight. It measures what `secure_sum` does, ``num_clipped_weights``, and
      ``num_lost_weights``, which were positive and have been rounded to 0.
    """
    grid = fixed_point(bound=bound, max_clients=max_clients, num_bits=num_bits)
    of_weights = fixed_point(bound=1.0, max_clients=max_clients, num_bits=num_bits)
    check_number("(0, inf)", "Pass the largest weight.", max_weight=max_weight)
    _check(min_clients, max_clients)

    def client(key: jax.Array, value: PyTree, weight: jax.Array) -> tuple[PyTree, Counts]:
        value = jax.tree.map(lambda x: jnp.where(weight > 0, x, 0), value)
        counts = _counts(max_clients, weight, num_clipped(grid, value))
        counts["num_clipped_weights"] = 1 - jnp.asarray((weight >= 0) & (weight <= max_weight), jnp.uint32)
        share = jnp.clip(jnp.nan_to_num(weight / max_weight), 0.0, 1.0)
        # Clipped before it is weighted, or the weight would let a value out of its bounds.
        product = jax.tree.map(lambda x: share * jnp.clip(jnp.nan_to_num(x), -grid.bound, grid.bound), value)
        key_value, key_weight = jax.random.split(key) if stochastic else (None, None)
        code = encode(of_weights, share, key_weight)
        counts["num_lost_weights"] = jnp.asarray((weight > 0) & (code == 0), jnp.uint32)
        return (encode(grid, product, key_value), code), counts

    def server(dtypes: DTypes, total: tuple[PyTree, jax.Array], counts: Counts) -> tuple[PyTree, Counts]:
        measured = _measured(min_clients, max_clients, counts)
        product, share = decode(grid, total[0]), decode(of_weights, total[1])
        result = divide(product, share, (jnp.float32,) * len(jax.tree.leaves(product)))
        return _cast(_shown(measured, result), dtypes), measured

    def bounded(key: PyTree, state: PyTree, value: PyTree, weight: PyTree) -> tuple[FederatedValue, FederatedValue]:
        del key, state
        clipped = federated_map(lambda v: jax.tree.map(lambda x: jnp.clip(jnp.nan_to_num(x), -bound, bound), v), value)
        return clipped, federated_map(lambda w: jnp.clip(jnp.nan_to_num(w), 0.0, max_weight), weight)

    return _aggregator(grid, client, server)._replace(bounded=bounded)


def secure_total(
    *, bound: float, max_clients: int, min_clients: int = 1, num_bits: int = 32
) -> Callable[[PyTree], FederatedValue]:
    """Returns a sum of placed values, ``federated_sum`` but secure: for the metrics of an algorithm.

    Floats travel in fixed point, clipped to ``[-bound, bound]`` and 0 if they are no numbers; their total is NaN
    if there are more than ``max_clients``. Integers and booleans travel as they are, clipped so that ``max_clients``
    cannot overflow, in a ring of 32 bits. All totals are 0 of fewer than ``min_clients``.

    Totals of a dict have ``num_clipped_metrics`` beside them, uint32: how many numbers were clipped, or were none.
    """
    grid = fixed_point(bound=bound, max_clients=max_clients, num_bits=num_bits)
    _check(min_clients, max_clients)
    most = (2**31 - 1) // max_clients

    def client(value: PyTree) -> tuple[PyTree, tuple[PyTree, Counts]]:
        leaves = jax.tree.leaves(value)
        floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
        counts = [x for x in leaves if not jnp.issubdtype(x.dtype, jnp.floating)]
        clipped = [jnp.clip(x.astype(wide_dtype(x.dtype)), max=most) for x in counts]
        clipped = [jnp.maximum(x, -most) if x.dtype.kind == "i" else x for x in clipped]
        outside = sum(
            (jnp.sum(x != y, dtype=jnp.int32) for x, y in zip(clipped, counts, strict=True)), start=jnp.int32(0)
        )
        return encode(grid, floats), (
            clipped,
            _counts(max_clients, jnp.float32(1), num_clipped(grid, floats) + outside),
        )

    def total(value: PyTree) -> FederatedValue:
        value = federated_zip(value)
        check_numeric("a secure total", value, (jnp.floating, jnp.integer, jnp.bool_), "real", "Map them first.")
        leaves, treedef = jax.tree.flatten(value.type.member)
        sent = federated_map(client, value)
        codes, counts = federated_secure_sum(sent[0], num_bits=num_bits), federated_secure_sum(sent[1])

        def server(codes: PyTree, counts: tuple[PyTree, Counts]) -> PyTree:
            measured = _measured(min_clients, max_clients, counts[1])
            floats = iter(_shown(measured, decode(grid, codes)))
            integers = iter(_unless(measured["too_few"], counts[0], 0))
            totals = treedef.unflatten(
                [next(floats if jnp.issubdtype(x.dtype, jnp.floating) else integers) for x in leaves]
            )
            return totals | {"num_clipped_metrics": measured["num_clipped"]} if isinstance(totals, dict) else totals

        return federated_map(server, codes, counts)

    return total


def _aggregator(grid: FixedPoint, client: Client, server: Server) -> Aggregator:
    def init(member: PyTree) -> tuple[()]:
        del member
        return ()

    @federated_computation
    def next(key: FederatedValue, state: FederatedValue, value: FederatedValue, weight: FederatedValue) -> Aggregation:
        check_numeric(
            "a secure aggregator", value, (jnp.floating,), "real floating-point", "Map them to float32 first."
        )
        dtypes = tuple(leaf.dtype for leaf in jax.tree.leaves(value.type.member))
        sent = federated_map(client, federated_keys(key), value, weight)
        total = federated_secure_sum(sent[0], num_bits=grid.num_bits)
        counts = federated_secure_sum(sent[1])
        result = federated_map(lambda total, counts: server(dtypes, total, counts), total, counts)
        return state, result[0], result[1]

    return Aggregator(init, next, secure=True)


def _counts(max_clients: int, weight: jax.Array, clipped: jax.Array) -> Counts:
    # What a client may report is bounded, so that the total of so many clients fits into 32 bits.
    most = (2**32 - 1) // max_clients
    reported = jnp.minimum(clipped.astype(jnp.uint32), jnp.uint32(most))
    return {"num_clients": jnp.asarray(weight > 0, jnp.uint32), "num_clipped": reported}


def _measured(min_clients: int, max_clients: int, counts: Counts) -> Counts:
    number = counts["num_clients"]
    too_few = number < min_clients
    return {
        **_unless(too_few, counts, 0),
        "num_clients": number,
        "overflow": number > max_clients,
        "too_few": too_few,
    }


def _shown(measured: Counts, result: PyTree) -> PyTree:
    return _unless(measured["overflow"], _unless(measured["too_few"], result, 0), jnp.nan)


def _unless(condition: jax.Array, result: PyTree, other: float) -> PyTree:
    return jax.tree.map(lambda x: jnp.where(condition, jnp.asarray(other, x.dtype), x), result)


def _check(min_clients: int, max_clients: int) -> None:
    check_integer(f"[1, {max_clients}]", "Pass the threshold of the protocol.", min_clients=min_clients)


def _cast(result: PyTree, dtypes: DTypes) -> PyTree:
    leaves, treedef = jax.tree.flatten(result)
    return treedef.unflatten([x.astype(dtype) for x, dtype in zip(leaves, dtypes, strict=True)])
