"""Operators on one client's data set: reduce, map and sum over a `Sequence`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from fedjx.core.language.debugging import is_watched, watched_fold
from fedjx.core.language.names import PyTree
from fedjx.core.language.padding import own_padding
from fedjx.core.language.reductions import SUM
from fedjx.core.language.types import notation, without_leading_axis
from fedjx.core.language.values import Sequence, gathered, per_client
from fedjx.core.rewriting.early_stop import fold, longest


def sequence_reduce(
    fn: Callable[[PyTree, PyTree], PyTree],
    zero: PyTree,
    sequence: Sequence,
    *,
    loop: Literal["scan", "while"] = "scan",
) -> PyTree:
    """Folds the elements of a sequence in order: ``(T*, U, (U, T -> U)) -> U``.

    Args:
      fn: ``(accumulator, element) -> accumulator``.
      zero: The initial accumulator.
      sequence: Elements past its length are never seen in the result; ``fn`` gets copies of a real one instead.
      loop: "scan" runs over the whole capacity and can be differentiated in reverse, except that
        a streamed computation, which is not differentiated, stops it where the longest sequence of
        those mapped together ends; "while" always stops there.

    >>> sequence_reduce(jnp.add, jnp.int32(0), Sequence(jnp.array([1, 2, 3, 99]), jnp.int32(3)))
    Array(6, dtype=int32)
    """
    own, pools, join = per_client(own_padding(sequence).elements)
    zero = jax.tree.map(jnp.asarray, zero)

    def step(total: PyTree, position: jax.Array, row: PyTree) -> PyTree:
        updated = fn(total, gathered(join(row, pools)))
        _check_accumulator(zero, updated)
        return jax.tree.map(lambda new, old: lax.select(position < sequence.length, new, old), updated, total)

    capacity = min((leaf.shape[0] for leaf in jax.tree.leaves(own)), default=0)
    if capacity == 0:
        return zero
    length = jnp.minimum(sequence.length, capacity)
    if is_watched((zero, own, pools, length)):
        return watched_fold(fn, zero, int(length), lambda k: gathered(join(jax.tree.map(lambda x: x[k], own), pools)))
    if loop == "scan":
        positions = jnp.arange(capacity, dtype=jnp.int32)
        return fold(lambda total, xs: step(total, *xs), zero, (positions, own), length)

    def body(state: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        position, total = state
        return position + 1, step(total, position, jax.tree.map(lambda x: x[position], own))

    stop = longest(length)
    return lax.while_loop(lambda state: state[0] < stop, body, (jnp.int32(0), zero))[1]


def _check_accumulator(zero: PyTree, updated: PyTree) -> None:
    expected, got = notation(jax.eval_shape(lambda: zero)), notation(jax.eval_shape(lambda: updated))
    if expected != got:
        raise TypeError(
            f"an accumulator keeps its type; got {got} from a zero of {expected}. "
            "Give zero the dtype and shape of the result."
        )


def sequence_map(fn: Callable[[PyTree], PyTree], sequence: Sequence) -> Sequence:
    """Applies a function to every element: ``(T*, (T -> U)) -> U*``."""
    own, pools, join = per_client(own_padding(sequence).elements)
    return Sequence(jax.vmap(lambda row: fn(gathered(join(row, pools))))(own), sequence.length)


def sequence_sum(sequence: Sequence) -> PyTree:
    """Sums the elements: ``T* -> T``, narrow types in float32 or 32-bit integers; 0 if there is none.

    >>> sequence_sum(Sequence.of(jnp.array([1, 2, 3])))
    Array(6, dtype=int32)
    """
    elements = sequence_map(lambda element: element, sequence).elements
    capacity = min(leaf.shape[0] for leaf in jax.tree.leaves(elements))
    real = jnp.arange(capacity, dtype=jnp.int32) < sequence.length
    return SUM.update(SUM.zero(without_leading_axis(elements)), elements, real)
