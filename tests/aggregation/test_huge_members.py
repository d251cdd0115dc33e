"""One finite client of 1e20 or more: results are finite, or rejected by the round; no state and no memory is lost."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.aggregation.compress import identity
from fedjx.aggregation.eden import drive, eden, lloyd_quantizer
from fedjx.aggregation.error_feedback import ef21, error_feedback
from fedjx.aggregation.power_sgd import power_sgd_with_memory
from fedjx.aggregation.quantize import qsgd, scaled_sign, terngrad, uniform_quantizer
from fedjx.aggregation.rotate import fourier, hadamard, rotated
from fedjx.aggregation.sparsify import random_k, top_k
from fedjx.core.language.values import Clients
from tests.aggregation.case import law_cases

COMPRESSORS = {
    "identity": identity(),
    "uniform": uniform_quantizer(8),
    "uniform, to the nearest": uniform_quantizer(4, stochastic=False),
    "qsgd": qsgd(4),
    "terngrad": terngrad(),
    "scaled_sign": scaled_sign(),
    "drive": drive(),
    "biased drive": drive(unbiased=False),
    "eden": eden(2),
    "eden by fourier": eden(2, rotation=fourier()),
    "lloyd": lloyd_quantizer(2),
    "top_k": top_k(fraction=0.5),
    "random_k": random_k(fraction=0.5, unbiased=False),
    "rotated": rotated(uniform_quantizer(8), hadamard()),
    "rotated by fourier": rotated(uniform_quantizer(8), fourier()),
}
SIZES = (1e-30, 1e-20, 1.0, 1e20, 1e30)
CASES = {name: case for name, case in law_cases().items() if name != "robust-alie"}  # it sends what is infinite


def vectors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    alone = np.zeros(70, np.float32)
    alone[3] = 1
    return {"normal": random.normal(size=70).astype(np.float32), "alone": alone, "alike": np.ones(70, np.float32)}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressor_knows_no_unit(name):
    """What is decoded of c times a vector is c times what is decoded of it, from 1e-30 to 1e30."""
    compressor = COMPRESSORS[name]

    @jax.jit
    def sent(x: jax.Array) -> jax.Array:
        return compressor.decode(compressor.encode(jax.random.key(0), x), x.size)

    for x in vectors().values():
        expected = np.asarray(sent(x))
        for size in SIZES:
            found = np.asarray(sent((size * x.astype(np.float64)).astype(np.float32)), np.float64) / size
            # A number that is rounded at random may be rounded otherwise.
            off = np.abs(found - expected) > 1e-4 * np.abs(x).max()
            assert np.mean(off) <= 0.03, size


def members(size: float) -> tuple[Clients, Clients]:
    """Seven clients, of which one is huge."""
    random = np.random.default_rng(1)
    value = {"w": random.normal(size=(7, 3, 5)).astype(np.float32), "b": random.normal(size=7).astype(np.float32)}
    value = {name: x.at[2].set(size * jnp.sign(x[2])) for name, x in jax.tree.map(jnp.asarray, value).items()}
    return Clients.of(value), Clients.of(np.ones(7, np.float32))


def all_finite(tree: Any) -> bool:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(bool(jnp.isfinite(x).all()) for x in leaves)


@pytest.mark.parametrize("name", CASES)
def test_one_huge_client_makes_no_aggregate_infinite(name):
    aggregator = CASES[name].aggregator
    step = aggregator.next.in_graph()
    for size in (1e20, 1e30):
        state = aggregator.init({"w": jnp.zeros((3, 5)), "b": jnp.zeros(())})
        for _ in range(2):
            state, result, measured = step(jax.random.key(0), state, *members(size))
            assert all_finite((state, result, measured)), size


MEMORIES = {
    "error_feedback": error_feedback(eden(2), where=lambda leaf: True),
    "ef21": ef21(qsgd(4), num_clients=7, where=lambda leaf: True),
    "power_sgd_with_memory": power_sgd_with_memory(1, where=lambda leaf: True),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_a_memory_stays_finite(name):
    aggregator = MEMORIES[name]
    member = {"w": jnp.zeros((3, 5)), "b": jnp.zeros(())}
    step = aggregator.next.in_graph()
    for size in (1e20, 1e30, 3e38):
        state, memory = (
            aggregator.init(member),
            jax.tree.map(lambda x: jnp.stack([x] * 7), aggregator.init_client(member)),
        )
        for _ in range(3):
            memory = Clients.of(memory)
            state, result, _, memory = step(jax.random.key(0), state, *members(size), memory)
            memory = memory.value
            assert all_finite(memory), size
            # What EF21 makes of infinite codes the round rejects, result and state.
            assert all_finite(state) or (name, size) == ("ef21", 3e38), size
            assert all_finite(result) or size == 3e38, size
