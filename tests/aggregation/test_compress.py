"""Aggregation of compressed values: the sum of what was decoded, and the bill of what would be sent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjx.aggregation.compress import compress, identity, is_large, payload_bits
from fedjx.aggregation.eden import drive, eden, lloyd_quantizer
from fedjx.aggregation.entropy import elias_gamma_bits, entropy_bits
from fedjx.aggregation.mean import mean
from fedjx.aggregation.quantize import qsgd, quantize, uniform_quantizer
from fedjx.aggregation.rotate import rotated
from fedjx.aggregation.sparsify import random_k, top_k
from fedjx.core.execution.computation import federated_computation
from fedjx.core.execution.process import Aggregator
from fedjx.core.language.operators import (
    federated_broadcast,
    federated_decode,
    federated_mean,
    federated_secure_sum,
    federated_sum,
)
from fedjx.core.language.placed import federated_map
from fedjx.core.language.types import CLIENTS, SERVER, FederatedType, type_of
from fedjx.core.language.values import Clients

TUTORIAL = {
    "conv1": {"kernel": (5, 5, 1, 32), "bias": (32,)},
    "conv2": {"kernel": (5, 5, 32, 64), "bias": (64,)},
    "dense1": {"kernel": (3136, 512), "bias": (512,)},
    "dense2": {"kernel": (512, 10), "bias": (10,)},
}
WEIGHT_BITS = 32
NUM_CLIENTS = 10


def member():
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32), TUTORIAL, is_leaf=lambda s: isinstance(s, tuple)
    )


def bits_up(aggregator: Aggregator, value=None) -> int:
    """The bits of one client's value, without its weight."""
    value = member() if value is None else value
    types = [type_of(jax.random.key(0)), FederatedType((), SERVER)]
    types += [FederatedType(value, CLIENTS), FederatedType(jnp.float32, CLIENTS)]
    up = [m for m in aggregator.next.communication(*types) if m.direction == "up"]
    return sum(m.bits for m in up) - WEIGHT_BITS


def test_the_bill_of_the_compression_tutorial():
    assert NUM_CLIENTS * bits_up(mean()) == 532_278_400
    assert bits_up(compress(uniform_quantizer(8, word_bits=28))) == 15_357_536
    assert NUM_CLIENTS * bits_up(compress(uniform_quantizer(8, word_bits=28))) == 153_575_360
    assert NUM_CLIENTS * bits_up(quantize(8)) == 134_640_000


def test_what_travels_is_billed_with_scales_seeds_and_positions():
    value = {"w": jax.ShapeDtypeStruct((100, 200), jnp.float32), "b": jax.ShapeDtypeStruct((9,), jnp.float32)}
    plain = 9 * 32
    for compressor, bits in (
        (identity(), 20_000 * 32),
        (uniform_quantizer(5), 20_000 * 5 + 64),
        (qsgd(4), 20_000 * 4 + 32),
        (drive(), 20 * (2**10 + 32) + 32),
        (rotated(uniform_quantizer(2)), 20 * (2**10 * 2 + 64) + 32),
        (top_k(fraction=0.01), 200 * 32 + 32 * int(np.ceil(200 * 15 / 32))),
        (random_k(fraction=0.01), 200 * 32 + 32),
    ):
        assert bits_up(compress(compressor), value) == bits + plain


def test_leaves_are_chosen_by_size_and_name():
    small = compress(uniform_quantizer(8), where=lambda leaf: leaf.name == "conv1/kernel")
    assert bits_up(small) == 53_227_840 - 800 * (32 - 8) + 64
    assert bits_up(compress(uniform_quantizer(8), where=lambda leaf: leaf.shape == (10,))) == 53_227_840 - 320 + 96 + 64
    assert not is_large(jax.ShapeDtypeStruct((10_000,), jnp.float32))
    assert is_large(jax.ShapeDtypeStruct((10_001,), jnp.float32))


def always(_):
    return True


def clients():
    random = np.random.default_rng(0)
    value = {"w": random.normal(size=(5, 8, 9)).astype(np.float32), "n": np.arange(5, dtype=np.float32)}
    return value, np.array([1, 0, 2, 5, 1], np.float32)


@pytest.mark.parametrize(
    "compressor", [uniform_quantizer(3), drive(), random_k(fraction=0.5)], ids=["uniform", "drive", "k"]
)
def test_the_decoded_mean_is_the_mean_of_the_decoded(compressor):
    value, weight = clients()
    key, ids = jax.random.key(7), np.array([3, 1, 4, 11, 5])
    aggregator = compress(compressor, where=always)
    got = aggregator.next(key, (), Clients.of(value, ids=ids), Clients.of(weight, ids=ids))[1]
    through = jax.jit(lambda key, x: compressor.decode(compressor.encode(key, x), x.size))
    expected = {"w": 0.0, "n": 0.0}
    for i, number in enumerate(ids):
        key_client = jax.random.fold_in(jax.random.split(key)[0], number)
        for position, name in enumerate(("n", "w")):
            x = jnp.asarray(value[name][i])
            decoded = through(jax.random.fold_in(key_client, position), x.reshape(-1)).reshape(x.shape)
            expected[name] += weight[i] / weight.sum() * decoded
    for name in got:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_what_a_lossless_coder_would_send_is_measured_and_the_bill_stays():
    value, weight = clients()
    value["w"] **= 3  # heavy tails: most codes are small
    key, ids = jax.random.key(7), np.array([3, 1, 4, 11, 5])
    compressor = uniform_quantizer(6, stochastic=False)

    def large(leaf):
        return leaf.name == "w"

    def measure(codes):
        return {"gamma": elias_gamma_bits(codes), "entropy": entropy_bits(codes, 64)}

    measuring = compress(compressor, where=large, measure=measure)
    clients_ = Clients.of(value, ids=ids), Clients.of(weight, ids=ids)
    _, _, measured = measuring.next(key, (), *clients_)
    types = {"w": jax.ShapeDtypeStruct((8, 9), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.float32)}
    assert bits_up(measuring, types) == bits_up(compress(compressor, where=large), types) == 14 * 32 + 64 + 32
    assert measured["inner"] == {}

    expected = {"gamma": 0.0, "entropy": 0.0}
    for x, w in zip(value["w"], weight, strict=True):
        step = np.ptp(x) / 63
        codes = np.round((x - x.min()) / step).astype(int) - int(np.round(-x.min() / step))
        beside = 64 + 32  # range, and the leaf that travels as it is
        shares = np.unique(codes, return_counts=True)[1] / codes.size
        expected["entropy"] += (w > 0) * (beside - codes.size * np.sum(shares * np.log2(shares)))
        expected["gamma"] += (w > 0) * (beside + sum(2 * int(np.log2(max(2 * c + 1, -2 * c))) + 1 for c in codes.flat))
    for name, bits in measured["payload_bits"].items():
        assert bits.dtype == jnp.float32
        np.testing.assert_allclose(bits, expected[name], rtol=1e-5)
    assert expected["entropy"] < expected["gamma"] < 4 * (6 * 72 + 64 + 32)


@pytest.mark.parametrize(
    "compressor", [qsgd(4), eden(2), lloyd_quantizer(3), rotated(uniform_quantizer(4)), top_k(fraction=0.2)]
)
def test_symbols_and_what_travels_beside_them_are_all_of_a_code(compressor):
    x = jnp.asarray(clients()[0]["w"][0].reshape(-1))
    code = jax.eval_shape(compressor.encode, jax.random.key(0), x)

    def lossless(code):
        return payload_bits(compressor, always, lambda codes: jnp.float32(1000 * codes.size), code, x)

    def bits(tree):
        return sum(leaf.size * leaf.dtype.itemsize * 8 for leaf in jax.tree.leaves(tree))

    got = float(jax.jit(lambda key: lossless(compressor.encode(key, x)))(jax.random.key(0)))
    if compressor.symbols is None:
        assert got == bits(code)
    else:
        integers, beside = jax.eval_shape(lambda code: compressor.symbols(code, x.size), code)
        assert integers.dtype == jnp.int32
        assert got == 1000 * integers.size + bits(beside)
        assert 0 < bits(code) - bits(beside) < 32 * integers.size


def test_identity_changes_nothing_and_integers_travel_as_they_are():
    value, weight = (Clients.of(x) for x in clients())
    key = jax.random.key(0)
    got, expected = compress(identity(), where=always).next(key, (), value, weight), mean().next(key, (), value, weight)
    np.testing.assert_array_equal(got[1]["w"], expected[1]["w"])

    @federated_computation
    def total(key, state, value, weight):
        del key
        return state, federated_sum(value), federated_sum(weight)

    counts = Clients.of(np.arange(10).reshape(5, 2))
    integers = compress(uniform_quantizer(1), inner=Aggregator(lambda member: (), total), where=always)
    np.testing.assert_array_equal(integers.next(key, (), counts, weight)[1], [20, 25])


def test_the_inner_aggregator_and_its_state_are_used():
    @federated_computation
    def next(key, state, value, weight):
        del key, weight
        total = federated_sum(value)
        return federated_map(lambda n: n + 1, state), total, federated_map(lambda n: {"rounds": n}, state)

    inner = Aggregator(lambda member: jnp.int32(4), next)
    value, weight = (Clients.of(x) for x in clients())
    aggregator = compress(identity(), inner=inner, where=always)
    assert aggregator.init(clients()[0]) == 4
    state, _, measured = aggregator.next(jax.random.key(0), jnp.int32(4), value, weight)
    assert (int(state), int(measured["rounds"])) == (5, 4)


# --- the bill of decoded values -------------------------------------------------------------------


def bill(fn, *types):
    return [
        (m.round_trip, m.direction, str(m.type), m.secure) for m in federated_computation(*types)(fn).communication()
    ]


HALVES = FederatedType(jax.ShapeDtypeStruct((6,), jnp.int8), CLIENTS)


def test_a_code_is_billed_once_however_many_sums_use_it():
    def fn(code, weight):
        x = federated_decode(code, lambda c: c / 2)
        once = federated_mean(x, weight)
        centred = federated_map(lambda x, m: (x - m) ** 2, x, federated_broadcast(once))
        return federated_sum(x), once, federated_sum(centred), federated_sum(weight)

    assert bill(fn, HALVES, FederatedType(jnp.float32, CLIENTS)) == [
        (0, "up", "{int8[6]}@CLIENTS", False),
        (0, "up", "{float32}@CLIENTS", False),
        (0, "up", "{float32}@CLIENTS", False),
    ]


def test_what_the_server_decodes_is_not_secure():
    assert bill(lambda x: federated_secure_sum(federated_decode(x, lambda c: c.astype(jnp.int32))), HALVES) == [
        (0, "up", "{int8[6]}@CLIENTS", False)
    ]
