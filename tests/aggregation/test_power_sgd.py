"""PowerSGD against a loop written from the paper, and against the mean where the rank is enough."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.aggregation.power_sgd import power_sgd, power_sgd_with_memory
from fedjx.core.language.types import CLIENTS, SERVER, FederatedType, type_of
from fedjx.core.language.values import Clients

NUM_CLIENTS = 4
WEIGHT = np.array([1, 0, 2, 5], np.float32)
MEMBER = {"kernel": jax.ShapeDtypeStruct((2, 3, 4), jnp.float32), "bias": jax.ShapeDtypeStruct((4,), jnp.float32)}


def is_matrix(leaf):
    return leaf.name == "kernel"


def values(seed, rank=4):
    random = np.random.default_rng(seed)
    left, right = random.normal(size=(6, rank)), random.normal(size=(NUM_CLIENTS, rank, 4))
    kernel = (left @ right).reshape(NUM_CLIENTS, 2, 3, 4).astype(np.float32)
    return {"kernel": kernel, "bias": random.normal(size=(NUM_CLIENTS, 4)).astype(np.float32)}


def average(x):
    return np.tensordot(WEIGHT / WEIGHT.sum(), np.asarray(x, np.float64), 1)


def paper(matrices, q):
    """One round of algorithm 1 on ``[clients, rows, columns]``; Gram-Schmidt as in the paper."""
    p = sum(w * m @ q for w, m in zip(WEIGHT / WEIGHT.sum(), matrices, strict=True))
    for i in range(p.shape[1]):
        for j in range(i):
            p[:, i] -= (p[:, j] @ p[:, i]) * p[:, j]
        p[:, i] /= np.linalg.norm(p[:, i])
    q = sum(w * m.T @ p for w, m in zip(WEIGHT / WEIGHT.sum(), matrices, strict=True))
    return p, q, p @ q.T


@pytest.fixture(scope="module")
def plain():
    return power_sgd(2, where=is_matrix)


@pytest.fixture(scope="module")
def remembering():
    return power_sgd_with_memory(2, where=is_matrix)


def test_rounds_are_those_of_the_paper_with_and_without_memory(plain, remembering):
    state, state_memory = plain.init(MEMBER), remembering.init(MEMBER)
    q = q_memory = np.asarray(state.factors[0], np.float64)
    errors = np.zeros((NUM_CLIENTS, 6, 4))
    memory = Clients.of(jax.tree.map(lambda x: np.zeros((NUM_CLIENTS, *x.shape), np.float32), MEMBER))
    for number in range(3):
        value, key = values(number), jax.random.key(number)
        matrices = value["kernel"].reshape(NUM_CLIENTS, 6, 4).astype(np.float64)
        clients = Clients.of(value), Clients.of(WEIGHT)

        state, result, _ = plain.next(key, state, *clients)
        _, q, expected = paper(matrices, q)
        np.testing.assert_allclose(result["kernel"].reshape(6, 4), expected, atol=1e-5)
        np.testing.assert_allclose(result["bias"], average(value["bias"]), atol=1e-6)

        state_memory, result, _, memory = remembering.next(key, state_memory, *clients, memory)
        p, q_memory, expected = paper(matrices + errors, q_memory)
        here = WEIGHT[:, None, None] > 0
        errors = np.where(here, matrices + errors - p @ (p.T @ (matrices + errors)), errors)
        np.testing.assert_allclose(result["kernel"].reshape(6, 4), expected, atol=1e-5)
        np.testing.assert_allclose(memory.value["kernel"].reshape(errors.shape), errors, atol=1e-5)
        assert not np.any(memory.value["bias"])
    assert np.abs(errors).max() > 0.1


def test_a_mean_of_low_rank_is_exact_and_one_of_full_rank_is_not(plain):
    for rank, is_exact in ((2, True), (4, False)):
        value = values(7, rank)
        _, result, _ = plain.next(jax.random.key(0), plain.init(MEMBER), Clients.of(value), Clients.of(WEIGHT))
        assert np.allclose(result["kernel"], average(value["kernel"]), atol=1e-5) == is_exact


def test_the_start_of_the_next_round_survives_a_round_of_nobody(plain):
    start = plain.init(MEMBER)
    state, result, _ = plain.next(jax.random.key(0), start, Clients.of(values(0)), Clients.of(np.zeros_like(WEIGHT)))
    np.testing.assert_array_equal(state.factors[0], start.factors[0])
    assert not np.any(result["kernel"])


def test_factors_and_whole_leaves_are_billed(plain):
    state = FederatedType(jax.eval_shape(lambda: plain.init(MEMBER)), SERVER)
    types = (type_of(jax.random.key(0)), state, FederatedType(MEMBER, CLIENTS), FederatedType(jnp.float32, CLIENTS))
    messages = plain.next.communication(*types)
    weights = 3 * 32
    assert sum(m.bits for m in messages if m.direction == "up") == 32 * (6 * 2 + 4 * 2 + 4) + weights
    assert sum(m.bits for m in messages if m.direction == "down") == 32 * (4 * 2 + 6 * 2)


def test_a_matrix_that_is_smaller_than_its_factors_travels_whole():
    aggregator, member = power_sgd(4, where=lambda leaf: True), jnp.zeros((6, 4))
    state = aggregator.init(member)
    assert not state.factors
    value = values(0)["kernel"].reshape(NUM_CLIENTS, 6, 4)
    arguments = jax.random.key(0), state, Clients.of(value), Clients.of(WEIGHT)
    np.testing.assert_allclose(aggregator.next(*arguments)[1], average(value), atol=1e-5)
    assert sum(m.bits for m in aggregator.next.communication(*arguments) if m.direction == "up") <= 32 * (24 + 3)


def test_memory_survives_a_value_that_is_not_finite(remembering):
    value = values(0)
    value["kernel"][2, 0, 0, 0] = np.nan
    memory = Clients.of(jax.tree.map(lambda x: np.ones((NUM_CLIENTS, *x.shape), np.float32), MEMBER))
    arguments = Clients.of(value), Clients.of(WEIGHT), memory
    _, result, measured, after = remembering.next(jax.random.key(0), remembering.init(MEMBER), *arguments)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((result, after.value)))
    np.testing.assert_array_equal(after.value["kernel"][2], 1)
    assert measured["num_non_finite"] == 1


def test_a_rank_is_positive():
    with pytest.raises(ValueError, match="rank must be an integer of at least 1; got rank=0"):
        power_sgd(0)
