"""Error feedback and the compressed broadcast: nothing is lost for good, and what is sent is billed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjx.aggregation.broadcast import compressed_broadcast
from fedjx.aggregation.compress import compress, identity
from fedjx.aggregation.error_feedback import ef21, error_feedback
from fedjx.aggregation.quantize import uniform_quantizer
from fedjx.aggregation.sparsify import top_k
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.operators import federated_mean
from fedjx.core.language.types import SERVER, FederatedType, type_of
from fedjx.core.language.values import Clients
from tests.aggregation.test_compress import member

NUM_CLIENTS, SIZE = 4, 30
WEIGHT = np.ones(NUM_CLIENTS, np.float32)


def always(_):
    return True


def test_what_was_sent_and_what_is_remembered_sum_up_to_all_values():
    aggregator = error_feedback(top_k(fraction=0.1), where=always)
    values = np.random.default_rng(0).normal(size=(6, NUM_CLIENTS, SIZE)).astype(np.float32)
    memory, total = Clients.of(np.zeros((NUM_CLIENTS, SIZE), np.float32)), 0
    for number, value in enumerate(values):
        key = jax.random.key(number)
        _, result, _, memory = aggregator.next(key, (), Clients.of(value), Clients.of(WEIGHT), memory)
        total = total + result
        assert np.count_nonzero(result) <= 3 * NUM_CLIENTS
    assert np.abs(memory.value).max() > 0.1
    np.testing.assert_allclose(total + memory.value.mean(0), values.sum(0).mean(0), atol=1e-5)


def test_a_client_of_zero_weight_keeps_its_memory():
    start = np.random.default_rng(1).normal(size=(NUM_CLIENTS, SIZE)).astype(np.float32)
    weight = np.array([1, 0, 1, 1], np.float32)
    value = np.ones((NUM_CLIENTS, SIZE), np.float32)
    value[1] = np.nan
    for aggregator in (
        error_feedback(top_k(fraction=0.1), where=always),
        ef21(top_k(fraction=0.1), num_clients=4, where=always),
    ):
        state = aggregator.init(jnp.zeros(SIZE))
        _, result, _, memory = aggregator.next(
            jax.random.key(0), state, Clients.of(value), Clients.of(weight), Clients.of(start)
        )
        np.testing.assert_array_equal(memory.value[1], start[1])
        assert np.all(np.isfinite(result))
        assert not np.array_equal(memory.value[0], start[0])


def test_a_client_whose_total_is_not_finite_keeps_its_memory_and_is_counted():
    value = np.ones((NUM_CLIENTS, SIZE), np.float32)
    value[1, 3], value[2, 0] = np.nan, np.inf
    start = np.random.default_rng(1).normal(size=(NUM_CLIENTS, SIZE)).astype(np.float32)
    for aggregator in (
        error_feedback(top_k(fraction=0.1), where=always),
        ef21(top_k(fraction=0.1), num_clients=4, where=always),
    ):
        state = aggregator.init(jnp.zeros(SIZE))
        arguments = Clients.of(value), Clients.of(np.array([1, 1, 1, 0], np.float32)), Clients.of(start)
        state, result, measured, memory = aggregator.next(jax.random.key(0), state, *arguments)
        np.testing.assert_array_equal(memory.value[1:], start[1:])
        assert measured["num_non_finite"] == 2
        assert 0 < np.abs(result).max() < np.inf
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def descent(aggregator, num_rounds):
    """Minimises the mean of quadratics about different centres, with gradients through an aggregator."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(NUM_CLIENTS, SIZE)).astype(np.float32)
    curvature = random.uniform(0.5, 1.5, size=(NUM_CLIENTS, SIZE)).astype(np.float32)
    best = (curvature * centres).sum(0) / curvature.sum(0)
    x, state, memory = np.zeros(SIZE, np.float32), aggregator.init(jnp.zeros(SIZE)), Clients.of(np.zeros_like(centres))
    for number in range(num_rounds):
        value, key = Clients.of(curvature * (x - centres)), jax.random.key(number)
        if isinstance(aggregator, Aggregator):
            state, result, _ = aggregator.next(key, state, value, Clients.of(WEIGHT))
        else:
            state, result, _, memory = aggregator.next(key, state, value, Clients.of(WEIGHT), memory)
        x = x - 0.1 * np.asarray(result)
    return np.linalg.norm(x - best) / np.linalg.norm(best)


def test_ef21_reaches_the_minimum_where_plain_top_k_stalls():
    assert descent(ef21(top_k(fraction=0.2), num_clients=NUM_CLIENTS, where=always), 300) < 1e-3
    assert descent(compress(top_k(fraction=0.2), where=always), 300) > 0.05


def test_a_memory_of_the_value_itself_is_the_value():
    aggregator = ef21(identity(), num_clients=NUM_CLIENTS, where=always)
    value = np.random.default_rng(0).normal(size=(NUM_CLIENTS, SIZE)).astype(np.float32)
    memory = Clients.of(np.zeros_like(value))
    _, result, _, memory = aggregator.next(
        jax.random.key(0), jnp.zeros(SIZE), Clients.of(value), Clients.of(WEIGHT), memory
    )
    np.testing.assert_allclose(result, value.mean(0), atol=1e-6)
    np.testing.assert_allclose(memory.value, value, atol=1e-6)


def received(broadcaster):
    @federated_computation
    def step(key, state, value, anyone):
        del anyone
        state, value = broadcaster.next(key, state, value)
        return state, federated_mean(value)

    return step


def test_the_broadcast_of_the_tutorial_is_billed_as_its_code():
    step = received(compressed_broadcast(uniform_quantizer(8, word_bits=28)))
    anyone = type_of(Clients.of(WEIGHT))
    types = (type_of(jax.random.key(0)), FederatedType((), SERVER), FederatedType(member(), SERVER), anyone)
    assert [m.bits for m in step.communication(*types) if m.direction == "down"] == [15_357_536]


def test_clients_get_what_was_encoded_and_the_server_remembers_the_rest():
    broadcaster = compressed_broadcast(top_k(fraction=0.1), error_feedback=True, where=always)
    step, state, total = received(broadcaster), broadcaster.init(jnp.zeros(SIZE)), 0
    value = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    for number in range(5):
        state, got = step(jax.random.key(number), state, value, Clients.of(WEIGHT))
        assert np.count_nonzero(got) == 3
        total = total + got
    np.testing.assert_allclose(total + state, 5 * value, atol=1e-5)
    plain = compressed_broadcast(uniform_quantizer(8), where=always)
    _, got = received(plain)(jax.random.key(0), plain.init(value), value, Clients.of(WEIGHT))
    np.testing.assert_allclose(got, value, atol=np.ptp(value) / 255)
