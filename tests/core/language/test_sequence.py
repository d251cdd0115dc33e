"""Tests of the operators on one client's data set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx import Batches, Sequence, federated_computation, sequence_map, sequence_reduce, sequence_sum

ELEMENTS = np.array([[1.0, -2.0], [0.5, 4.0], [3.0, 1.0]], np.float32)
GARBAGE = jnp.full((3, 2), jnp.nan)
PADDED = Sequence(jnp.concatenate([ELEMENTS, GARBAGE]), jnp.int32(3))

LOOPS = pytest.mark.parametrize("loop", ["scan", "while"])


def momentum(state, element):
    """A fold in which each step depends on all before it: a wrong order or an extra step shows."""
    position, velocity = state
    velocity = 0.9 * velocity + element / jnp.linalg.norm(element + position)
    return position - 0.1 * velocity, velocity


def by_hand(elements):
    state = np.ones(2, np.float32), np.zeros(2, np.float32)
    return functools.reduce(momentum, elements, state)


@LOOPS
def test_reduce_is_the_python_loop(loop):
    zero = jnp.ones(2), jnp.zeros(2)
    reduced = sequence_reduce(momentum, zero, PADDED, loop=loop)
    for got, expected in zip(reduced, by_hand(ELEMENTS), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("loop", ["scan", "while"])
def test_the_elements_may_be_numpy_arrays(loop):
    assert int(sequence_reduce(jnp.add, 0, Sequence(np.array([1, 2, 3, 99]), 3), loop=loop)) == 6


@LOOPS
@pytest.mark.parametrize("jit", [False, True])
def test_reduce_of_sequences_of_different_length(loop, jit):
    lengths = jnp.array([0, 1, 3, 2], jnp.int32)
    rows = jnp.arange(6)[None, :, None] < lengths[:, None, None]
    elements = jnp.where(rows, PADDED.elements, jnp.nan)

    def fold(sequence):
        return sequence_reduce(momentum, (jnp.ones(2), jnp.zeros(2)), sequence, loop=loop)

    fold = jax.vmap(fold)
    positions, _ = (jax.jit(fold) if jit else fold)(Sequence(elements, lengths))
    for position, length in zip(positions, lengths, strict=True):
        np.testing.assert_allclose(position, by_hand(ELEMENTS[: int(length)])[0], rtol=1e-6)


@LOOPS
def test_an_empty_sequence_is_its_zero(loop):
    assert sequence_reduce(jnp.add, jnp.full(2, 7.0), Sequence(GARBAGE, 0), loop=loop).tolist() == [7.0, 7.0]


@pytest.mark.parametrize("loop", ["scan", "while"])
def test_a_sequence_without_capacity_is_its_zero(loop):
    assert sequence_reduce(jnp.add, jnp.full(2, 7.0), Sequence(jnp.zeros((0, 2)), 0), loop=loop).tolist() == [7.0, 7.0]


@LOOPS
def test_batches_are_gathered_step_by_step(loop):
    pool = {"x": np.array([10, 20, 30], np.uint8)}
    data = Sequence(Batches(pool, jnp.array([[2, 0], [1, -1], [-1, -1]], jnp.int32)), jnp.int32(2))

    def add(total, batch):
        return total + jnp.sum(jnp.where(batch["mask"], batch["x"].astype(jnp.int32), 0)), None

    assert int(sequence_reduce(lambda s, b: add(s, b)[0], 0, data, loop=loop)) == 60
    assert int(sequence_sum(sequence_map(lambda batch: batch["mask"].sum(), data))) == 3


def test_gradient_through_padded_steps_is_finite():
    def loss(w, sequence):
        return sequence_reduce(lambda total, e: total + jnp.linalg.norm(w * e), 0.0, sequence)

    copies = Sequence(np.concatenate([ELEMENTS, ELEMENTS[:1], ELEMENTS[:1]]), jnp.int32(3))
    expected = np.linalg.norm(ELEMENTS, axis=1).sum()
    np.testing.assert_allclose(jax.grad(loss)(2.0, copies), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(2.0, Sequence.of(ELEMENTS)), expected, rtol=1e-6)


@pytest.mark.parametrize("padding", [0.0, np.nan])
def test_gradient_through_steps_that_do_not_exist_is_finite(padding):
    def loss(w):
        sequence = Sequence(np.concatenate([ELEMENTS, np.full_like(ELEMENTS, padding)]), jnp.int32(3))
        return sequence_reduce(lambda total, e: total + jnp.linalg.norm(w * e), 0.0, sequence)

    np.testing.assert_allclose(jax.grad(loss)(2.0), np.linalg.norm(ELEMENTS, axis=1).sum(), rtol=1e-6)


def test_map_keeps_the_length():
    mapped = sequence_map(lambda e: {"sum": e.sum(), "first": e[0]}, PADDED)
    assert int(mapped.length) == 3
    assert mapped.elements["sum"].shape == (6,)
    np.testing.assert_allclose(mapped.elements["sum"][:3], ELEMENTS.sum(axis=1))
    np.testing.assert_allclose(mapped.elements["first"][:3], ELEMENTS[:, 0])


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (np.float32, jnp.float32),
        (jnp.bfloat16, jnp.float32),
        (np.float16, jnp.float32),
        (np.int8, jnp.int32),
        (np.uint8, jnp.uint32),
        (np.bool_, jnp.int32),
    ],
)
def test_sums_are_wide(dtype, wide):
    result = sequence_sum(Sequence(jnp.ones(5000, dtype), jnp.int32(4096)))
    assert (float(result), result.dtype) == (4096.0, wide)


def test_sum_of_structures():
    result = sequence_sum(Sequence({"x": PADDED.elements, "n": np.array([1, -2, 3, 9, 9, 9], np.int8)}, jnp.int32(3)))
    np.testing.assert_allclose(result["x"], ELEMENTS.sum(axis=0), rtol=1e-6)
    assert int(result["n"]) == 2
    assert sequence_sum(Sequence(GARBAGE, jnp.int32(0))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("fn", "zero", "message"),
    [
        (lambda t, e: t + e.sum(), np.int32(0), r"got float32 from a zero of int32\. Give zero the dtype and shape"),
        (lambda t, e: t + e, np.zeros(1, np.float32), r"got float32\[2\] from a zero of float32\[1\]\."),
        (lambda t, e: {"a": t}, np.float32(0), r"got <a=float32> from a zero of float32\."),
    ],
)
@LOOPS
def test_an_accumulator_keeps_its_type(loop, fn, zero, message):
    with pytest.raises(TypeError, match=r"an accumulator keeps its type; " + message):
        sequence_reduce(fn, zero, PADDED, loop=loop)


def test_a_local_computation_of_a_sequence():
    @federated_computation("<x=float32,n=int32>*")
    def weighted(data):
        return sequence_sum(sequence_map(lambda e: e.x * e.n, data))

    assert str(weighted.type_signature) == "(<x=float32,n=int32>* -> float32)"
